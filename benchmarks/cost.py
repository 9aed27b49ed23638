"""What a study costs on GPUs, from a model of cost, and the model's constant measured here: python benchmarks/cost.py [--write]

Reading a prompt takes 2 FLOP a parameter and token. Capture, and the first pass of an answer, therefore take

    seconds = prompts x tokens x 2 x parameters / (GPUs at work x peak FLOP/s of a GPU x share of the peak that is reached)

The layers of a replica that spans several GPUs run one after the other, so one GPU of the replica is at work at a time. A generated
token takes one step of the batch; a step is bound by the memory that the weights are read from, and never faster than `STEP`.

The share of the peak is what the tool reaches on this machine: FLOP/s of capture over FLOP/s of a plain matrix product. On GPUs it is
assumed to be `SHARE`, and it was not measured there. With --write the results go to benchmarks/results/scale-cost.json and
scale-share.json.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from result_files import spread, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.encoding import batches

PROMPTS, TOKENS, NEW, BATCH, CONDITIONS = 1_000_000, 256, 32, 64, 4
PEAK, MEMORY, SHARE, STEP = 989e12, 3.35e12, 0.35, 0.025  # H100 SXM, bf16 dense; bytes/s; of the peak; seconds a step
MODELS: dict[str, tuple[float, int]] = {
    "7B": (7.6e9, 1),
    "72B": (72.7e9, 4),
}  # parameters, GPUs of a replica (80 GB each, bf16)
COST: dict[str, tuple[str, str | None]] = {
    "case": ("model, GPUs", None), "replicas": ("replicas", None), "capture": ("capture (h)", "{:.2f}"),
    "answers": ("answers under one condition (h)", "{:.2f}"), "hours": ("GPU hours, capture and 4 conditions", "{:,.0f}"),
}  # fmt: skip
MEASURED: dict[str, tuple[str, str | None]] = {
    "model": ("model", None), "parameters": ("parameters of the layers (M)", "{:.1f}"), "tokens": ("tokens", "{:,}"),
    "seconds": ("capture (s)", "{:.1f} ({:.1f} to {:.1f})"), "share": ("share of a matrix product's FLOP/s", "{:.2f} ({:.2f} to {:.2f})"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write results/scale-cost.json and scale-share.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measured(name, rounds=args.rounds) for name in ("organism", "smollm2")]
    costs = [cost(name, gpus) for name in MODELS for gpus in (8, 64)]
    for row in (*rows, *costs):
        print(row)
    if args.write:
        write_result(
            "scale-share", "The share of a matrix product's speed that capture reaches", columns=MEASURED, rows=rows,
            settings="one thread, CPU time, rounds in turn with the matrix product",
        )  # fmt: skip
        numbers = {"prompts": (PROMPTS, "{:,}"), "tokens": (TOKENS, None), "new": (NEW, None), "share": (SHARE, None)}
        write_result(
            "scale-cost", "A million prompts of 256 tokens on H100 GPUs, by the model of cost; not measured", columns=COST, rows=costs,
            numbers=numbers, settings="computed, not measured",
        )  # fmt: skip


def cost(name: str, gpus: int) -> dict[str, Any]:
    """Hours of a million prompts on some GPUs."""
    parameters, span = MODELS[name]
    replicas = gpus // span
    read = PROMPTS * TOKENS * 2 * parameters / (replicas * PEAK * SHARE)
    step = max(STEP, 2 * parameters / MEMORY)
    answers = read + PROMPTS / BATCH * NEW * step / replicas
    return {
        "case": f"{name}, {gpus} GPUs", "replicas": f"{replicas} of {span} GPU{'s' * (span > 1)}", "capture": read / 3600,
        "answers": answers / 3600, "hours": gpus * (read + CONDITIONS * answers) / 3600,
    }  # fmt: skip


def measured(name: str, *, rounds: int) -> dict[str, Any]:
    """Capture's FLOP/s over those of a matrix product, in turn."""
    model = ns.load(name)
    if name == "organism":
        prompts = ns.PromptSet.from_records(organism.records(max_pairs=4)).where(modality="text")
    else:
        prompts = ns.shipped.matched_pairs(["en"])[:24]
    tokens = sum(int(b.encoding["attention_mask"].sum()) for b in batches(model, prompts, batch_size=32))
    layers = model.module.get_submodule(model.layers_path)
    parameters = sum(p.numel() for p in layers.parameters())
    seconds, shares = [], []
    for turn in range(rounds + 1):
        fast = product()
        start = time.process_time()
        ns.capture(model, prompts.marked("discover"), progress=False)
        took = time.process_time() - start
        if turn:  # the first one encodes
            seconds.append(took)
            shares.append(2 * parameters * tokens / took / fast)
    return {
        "model": model.id, "parameters": parameters / 1e6, "tokens": tokens, "seconds": spread(seconds),
        "share": spread(shares),
    }  # fmt: skip


def product(n: int = 1536) -> float:
    """FLOP/s of a product of two square matrices."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    times = []
    for _ in range(5):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2 * n**3 / median(times)


if __name__ == "__main__":
    main()
