"""Capture, a masked update and Ray replicas on a GPU, in bfloat16: python benchmarks/gpu.py [--part capture update ray] [--shape 7b]

1. capture: time of capture over the bare decoder of the same batches, in turn, and the share of a matrix product's FLOP/s it reaches.
2. update: time of a step of the masked update over steps of its baselines, in turn (`update.py`).
3. ray: one replica against two on one card, capture of the same prompts in turn; the three replicas of the two engines have 0.3 of it each.

Models: SmolLM2-135M-Instruct, and a Llama of 7 billion parameters (the sizes of LLaVA-1.5-7B's language model) with random weights, which
reads the organism's tokens. Prompts have about TOKENS tokens. --shape tiny takes a small Llama instead, to try the script without a GPU.
Each part writes its rows to --raw; with all of them there, results/gpu-capture.json, gpu-update.json and gpu-ray.json are written.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import update
from capture import BATCH
from result_files import spread, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.core.files import write_text
from neuronshield.find import shards
from neuronshield.model.encoding import batches

TOKENS, PROMPTS = 256, 256
SPREAD = "{:.2f} ({:.2f} to {:.2f})"
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
}  # fmt: skip
BASELINES = {"smollm2": update.CONDITIONS[2:], "7b": ("plain LoRA r=8",), "tiny": update.CONDITIONS[2:]}


def saved(shape: str, folder: Path) -> Path:
    """A folder with a Llama of random weights and the organism's tokenizer, for loading by several processes."""
    import transformers

    if (folder / "config.json").exists():
        return folder
    config = transformers.LlamaConfig(vocab_size=32064, max_position_embeddings=4096, **SHAPES[shape])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            module = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    module.save_pretrained(folder, max_shard_size="4GB")
    ns.load("organism").tokenizer.save_pretrained(folder)
    return folder


def long_prompts(model: ns.Model, n: int = PROMPTS) -> ns.PromptSet:
    """Prompts of about TOKENS tokens, half of them harmful: requests of the organism one after the other."""
    texts = [r["prompt"] for r in organism.records(max_pairs=32) if r["language"] == "en" and r["modality"] == "text"]
    rows: list[dict[str, Any]] = []
    for i in range(n):
        words, at = "", i
        while len(model.tokenizer(words)["input_ids"]) < TOKENS:
            words, at = f"{words} {texts[at % len(texts)]}", at + 7
        rows.append({"id": f"long-{i}", "prompt": words, "label": ("harmful", "benign")[i % 2], "language": "en"})
    return ns.PromptSet.from_records(rows)


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, by round; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            start = clock()
            work()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def product(n: int) -> Callable[[], object]:
    """Ten products of two bfloat16 matrices of n x n."""
    where = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=where) for _ in range(2))
    return lambda: [a @ b for _ in range(10)]


def capture_rows(name: str, model: ns.Model, rounds: int) -> list[dict[str, Any]]:
    """Capture beside the bare decoder."""
    prompts = long_prompts(model)
    layers = model.module.get_submodule(model.layers_path)
    parameters = sum(p.numel() for p in layers.parameters())
    tokens = sum(int(b.encoding["attention_mask"].sum()) for b in batches(model, list(prompts), batch_size=BATCH))
    inner: Any = model.module.model

    def decoder() -> None:
        with torch.no_grad():
            for batch in batches(model, list(prompts), batch_size=BATCH):
                inner(**batch.encoding, use_cache=False)

    def captured() -> None:
        ns.capture(model, prompts, batch_size=BATCH, progress=False)

    n = 8192 if torch.cuda.is_available() else 256
    seconds = in_turn({"decoder": decoder, "capture": captured, "product": product(n)}, rounds)
    ratios = [a / b for a, b in zip(seconds["capture"], seconds["decoder"], strict=True)]
    fast = 10 * 2 * n**3 / median(seconds["product"])
    return [{
        "model": name, "tokens": tokens, "seconds": spread(seconds["capture"]), "ratio": spread(ratios),
        "rate": tokens / median(seconds["capture"]), "product": fast / 1e12,
        "share": spread([2 * parameters * tokens / s / fast for s in seconds["capture"]]),
    }]  # fmt: skip


def update_rows(name: str, model: ns.Model, rounds: int) -> list[dict[str, Any]]:
    """Steps of the masked update over those of its baselines."""
    names = (*update.CONDITIONS[:2], *BASELINES[name])
    seconds = in_turn({n: update.stepper(model, n) for n in names}, 4 * rounds)
    return [
        {"model": name, "update": mine, "baseline": other, "step_ms": 1000 * median(seconds[mine]),
         "ratio": spread([a / b for a, b in zip(seconds[mine], seconds[other], strict=True)])}
        for mine in update.CONDITIONS[:2] for other in BASELINES[name]
    ]  # fmt: skip


def ray_rows(name: str, model: ns.Model, rounds: int) -> list[dict[str, Any]]:
    """Capture by one replica and by two on one card, and in this process."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    prompts = long_prompts(model)
    shards.PROMPTS = 32  # so that both have many
    gpu = torch.cuda.is_available()
    ray.init(num_cpus=4, num_gpus=int(gpu), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    found: list[ns.Stats] = []
    try:
        engines = {n: ns.RayEngine(replicas=n, gpus_per_replica=0.3 if gpu else 0) for n in (1, 2)}
        start = clock()
        found = [ns.capture(model, prompts, engine=e, progress=False) for e in engines.values()]
        ready = clock() - start
        ways: dict[str, Callable[[], object]] = {
            f"{n}": lambda e=e: ns.capture(model, prompts, engine=e, progress=False) for n, e in engines.items()  # type: ignore[misc]
        }  # fmt: skip
        ways["here"] = lambda: ns.capture(model, prompts, progress=False)
        seconds = in_turn(ways, rounds)
        for engine in engines.values():
            engine.close()
    finally:
        ray.shutdown()
    here = ns.capture(model, prompts, progress=False)
    equal = all(
        bool((getattr(a.groups[g], m) == getattr(here.groups[g], m)).all())
        for a in found for g in here.groups for m in ("mean",)
    )  # fmt: skip
    return [{
        "model": name, "here": spread(seconds["here"]), "one": spread(seconds["1"]), "two": spread(seconds["2"]),
        "ratio": spread([a / b for a, b in zip(seconds["1"], seconds["2"], strict=True)]), "ready": ready, "equal": str(equal).lower(),
    }]  # fmt: skip


PARTS: dict[str, Callable[[str, ns.Model, int], list[dict[str, Any]]]] = {"capture": capture_rows, "update": update_rows, "ray": ray_rows}  # fmt: skip
TABLES: dict[str, tuple[str, dict[str, tuple[str, str | None]]]] = {
    "capture": ("Capture on a GPU over the bare decoder, bfloat16, prompts of 256 tokens", {
        "model": ("model", None), "tokens": ("tokens", "{:,}"), "seconds": ("capture (s)", SPREAD), "ratio": ("capture over decoder", SPREAD),
        "rate": ("tokens a second", "{:,.0f}"), "product": ("matrix product (TFLOP/s)", "{:.0f}"), "share": ("share of it", SPREAD),
    }),
    "update": ("A training step of the masked update on a GPU over that of its baselines, bfloat16", {
        "model": ("model", None), "update": ("update", None), "baseline": ("baseline", None), "step_ms": ("step (ms)", "{:.0f}"),
        "ratio": ("time over the baseline's", SPREAD),
    }),
    "ray": ("Capture by Ray replicas that share one GPU, bfloat16", {
        "model": ("model", None), "here": ("in process (s)", SPREAD), "one": ("one replica (s)", SPREAD), "two": ("two replicas (s)", SPREAD),
        "ratio": ("one over two", SPREAD), "ready": ("starting both (s)", "{:.0f}"), "equal": ("means equal in every bit", None),
    }),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", nargs="+", choices=["smollm2", *SHAPES], default=["smollm2", "7b"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--raw", type=Path, default=Path("gpu.json"))
    parser.add_argument("--folder", type=Path, help="where the random model is kept; a temporary folder without it")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    done: dict[str, list[dict[str, Any]]] = json.loads(args.raw.read_text()) if args.raw.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        for name in args.model:
            source = name if name == "smollm2" else str(saved(name, (args.folder or Path(made)) / name))
            model = ns.load(source, dtype="bfloat16", device=device)
            for part in args.part:
                start = time.perf_counter()
                rows = PARTS[part](name, model, args.rounds)
                done[part] = [r for r in done.get(part, []) if r["model"] != name] + rows
                write_text(args.raw, json.dumps(done))
                print(f"{name}, {part}: {time.perf_counter() - start:.0f} s", rows, flush=True)
            del model
    for part, rows in done.items():
        title, columns = TABLES[part]
        write_result(
            f"gpu-{part}", title, columns=columns, rows=rows, settings=f"{args.rounds} rounds in turn", device=device
        )


if __name__ == "__main__":
    main()
