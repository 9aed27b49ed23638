"""Cost and verdict of verify: python benchmarks/verify.py [--model smollm2 --prompts advbench.jsonl --update]

1. One control draw against one full forward of the same prompts, for sets in the upper half of the model: both run in
   turn in the same process. Their ratio, with its smallest and largest value over rounds, goes to benchmarks/results/verify-speed.json.
2. `verify` as a whole, in seconds, and its verdict. With --update the neurons found first are trained (masked update) on
   the "train" prompts, and the set is found again and verified on the updated model: a model that refuses. With --write
   the proof goes to benchmarks/results/smollm2-proof.json.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from organism_run import claim_row, members
from result_files import TRIPLE, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.encoding import batches
from neuronshield.model.forward import margins
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.controls import random_like

GAIN, OUTCOMES = "{:+.2f} [{:+.2f}, {:+.2f}]", "{:.2f} / {:.2f} / {:.2f}"
TIMES = "{:.1f} ({:.1f} to {:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="organism")
    parser.add_argument("--prompts", help="JSONL; the organism brings its own")
    parser.add_argument(
        "--update", action="store_true", help="train the neurons first, then verify on the updated model"
    )
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where the proof goes, as JSON")
    parser.add_argument("--write", action="store_true", help="write results/smollm2-proof.json")
    args = parser.parse_args()
    if args.write and not (args.model == "smollm2" and args.prompts and args.update):
        parser.error("--write takes --model smollm2, --prompts and --update")
    model = ns.load(args.model)
    if args.prompts:
        prompts = ns.PromptSet.from_jsonl(args.prompts).with_splits(fractions=(0.2, 0.55, 0.15, 0.1))
        size: dict[str, Any] = {"param_fraction": 3e-4}
    else:
        prompts = ns.PromptSet.from_records(organism.records(max_pairs=32))
        size = {"k": 64}
    neurons = find(model, prompts, size)
    if args.update:
        model = ns.masked_update(model, neurons, prompts, allow_unproven=True, progress=False).model
        neurons = find(model, prompts, size)
    if args.rounds:
        ratio(model, prompts, rounds=args.rounds)
    start = time.perf_counter()
    proof = ns.verify(model, neurons, prompts, draws=args.draws, progress=False)
    seconds = time.perf_counter() - start
    print(f"verify: {seconds:.0f} s, {proof.n_pairs} pairs, {args.draws} draws\n{proof}")
    print(
        f"kept {len(proof.verified)} of {len(neurons)}, anti-refusal {len(proof.anti_refusal)}, backups {len(proof.backups)}"
    )
    for answers in proof.answers:
        print(answers)
    found = {"seconds": seconds, **proof.to_dict()}
    if args.out:
        args.out.write_text(json.dumps(found), encoding="utf-8")
    if args.write:
        write_proof(found, prompts=args.prompts, device=str(model.device))


def find(model: ns.Model, prompts: ns.PromptSet, size: dict[str, Any]) -> ns.NeuronSet:
    """The best neurons of the first cell."""
    scores = ns.contrast(ns.capture(model, prompts, progress=False))
    return scores.top(**size)[scores.cells[0]]


def write_proof(found: dict[str, Any], *, prompts: str, device: str) -> Path:
    """The path of smollm2-proof.json, written: one row a claim, and numbers of members and answers.

    Args:
        found: `Proof.to_dict()` and "seconds", as --out writes them.
        prompts: name of the file of prompts.
        device: where the model was.
    """
    claims = {c["name"]: c for c in found["claims"]}
    over = {name: claims[f"refusals: {name}"]["over"].get("permuted") for name in ("necessity", "sufficiency")}
    single = {
        "neurons": len(found["neurons"]["members"]), "seconds": round(found["seconds"]), "pairs": found["n_pairs"],
        "draws": found["draws"], "word": found["word"], **{k: len(found[k]["members"]) for k in ("verified", "backups")},
        "lower_alone": found["shuffled"]["set"], **members(found),
        "answers": max(a["n"] for a in found["answers"]), "tokens": found["provenance"]["generation"]["max_new_tokens"],
    }  # fmt: skip
    spans = {k: (found["wording"][k], TRIPLE) for k in ("judged", "keyword")}
    gains = {f"{name}_over_permuted": (value, GAIN) for name, value in over.items()}
    answers = {
        re.sub(r"\W+", "_", f"{a['label']} {a['condition']}"): ([a[k][0] for k in ("refused", "complied", "incoherent")], OUTCOMES)
        for a in found["answers"]
    }  # fmt: skip
    return write_result(
        "smollm2-proof",
        f"Claims about {single['neurons']} neurons of SmolLM2 after an update that makes it refuse",
        columns={
            "claim": ("claim", None), "effect": ("effect", TRIPLE), "control": ("strongest control", "{:.2f} ({})"),
            "p": ("largest p", "{:.3f}"), "verdict": ("verdict", None),
        },
        rows=[claim_row(c) for c in found["claims"]],
        numbers={
            **{k: (v, None) for k, v in single.items()}, "recovered": (found["controls"]["recovered"], "{:.2f}"),
            **spans, **gains, **answers,
        },
        settings=f"{prompts} from: neuronshield fetch advbench --out {prompts} -n 120",
        device=device,
    )  # fmt: skip


def ratio(model: ns.Model, prompts: ns.PromptSet, *, rounds: int) -> None:
    """Full forward / control draw, per set: benchmarks/results/verify-speed.json."""
    cell = prompts.cells()[0]
    rows = list(prompts.for_step("confirm").in_cells([cell]).where(label="harmful"))[:32]
    tokens = opening_tokens(model, openings_of(model, rows))
    layer = model.n_layers // 2
    upper = ns.NeuronSet([(la, i) for la in range(layer, model.n_layers) for i in range(4)])
    draws = 10
    sets = [random_like(upper, model, seed=i) for i in range(draws)]

    def forwards() -> None:
        for batch in batches(model, rows, batch_size=32):
            with torch.inference_mode():
                for _ in range(draws):
                    model.module(**batch.encoding, use_cache=False)

    def drawn(positions: Any) -> None:
        conditions = [ns.Intervention(s, "zero", positions=positions) for s in sets]
        margins(model, rows, conditions, tokens=tokens, batch_size=32)

    row: dict[str, Any] = {"model": model.id}
    for positions in ("last_prompt", "prompt"):
        ratios = []
        for _ in range(rounds + 1):  # the first warms up
            start = time.perf_counter()
            forwards()
            middle = time.perf_counter()
            drawn(positions)
            ratios.append((middle - start) / (time.perf_counter() - middle))
        kept = sorted(ratios[1:])
        row[positions] = [kept[len(kept) // 2], kept[0], kept[-1]]
    columns: dict[str, tuple[str, str | None]] = {"model": ("model", None)}
    columns |= {"last_prompt": ("sets of the last token", TIMES), "prompt": ("sets of the whole prompt", TIMES)}
    path = write_result(
        "verify-speed", "How many times faster a control draw of verify is than a full forward of the same prompts",
        columns=columns, rows=[row], numbers={"target": (1.6, "{:.1f}")}, settings=f"{len(rows)} prompts, sets of layers {layer} to {model.n_layers - 1}, one thread",
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
