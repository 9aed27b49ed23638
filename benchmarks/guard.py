"""The run-time guard: its bound beside what is measured, and its effect on answers: python benchmarks/guard.py

On each organism the guard is learnt on requests of the "confirm" and "train" splits, for the neurons of largest contribution in
English text, which are found on "discover". On the "test" requests the share of answers whose states leave the safe set within
5, 10 and 20 tokens is measured beside the bound, by label, and answers are graded with and without the guard. "planted" is
the tiny model of tests/planted_guard.py, where safe and unsafe states are separate and a change of the neurons decides the answer.

Writes guard-bound and guard-effect in results/.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from result_files import TRIPLE, write_result

import neuronshield as ns
from neuronshield.core.intervals import clustered_rate
from neuronshield.organism.controls import records_of
from neuronshield.shield.fitting import LABELS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import planted_guard

TOKENS = (5, 10, 20)
K = 32
CELLS: dict[str, Any] = {"languages": ["en", "it", "sw"], "modalities": ["text", "image"]}
CASES = ("planted", "organism", "organism-shared", "organism-wording", "organism-separate")


def case(name: str) -> tuple[ns.Model, ns.NeuronSet, ns.PromptSet, dict[str, Any]]:
    """The model, the guarded neurons, prompts of splits "train" and "test", and the prefixes that answers are graded by."""
    if name == "planted":
        model, neurons = planted_guard.steerable()
        rows = planted_guard.prompts(adjectives=3)
        tested = {
            pair for i, pair in enumerate(sorted({str(p.pair_id) for p in rows})) if i // 3 % 3 == 0
        }  # three nouns in a row
        prompts = ns.PromptSet(replace(p, split="test" if p.pair_id in tested else "train") for p in rows)
        return model, neurons, prompts, {k: v for k, v in planted_guard.ASK.items() if k != "progress"}
    model = ns.load(name)
    rows = ns.PromptSet.from_records(records_of(name, **CELLS))
    neurons = ns.contrast(ns.capture(model, rows, progress=False)).top(k=K)["en/text"]
    kept = [replace(p, split="train") if p.split == "confirm" else p for p in rows if p.split != "discover"]
    return model, neurons, ns.PromptSet(kept), {}


def measured(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both tables."""
    model, neurons, prompts, ask = case(name)
    options: dict[str, Any] = {"max_new_tokens": max(TOKENS) + 1, "batch_size": 128}
    try:
        guard = ns.guard.fit_guard(model, neurons, prompts, progress=False, **options, **ask)
    except ns.InputError as error:
        print(f"{name}: {error}")
        return [], []
    print(guard, guard.to_frame().to_string(), sep="\n", flush=True)
    test = prompts.for_step("test")
    run = guard.generate(model, test, **options)
    auc = [v for pair in guard.separation.values() for v in pair]
    bounds: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    plain = ns.evaluate(model, prompts, progress=False, **options, **ask)
    held = ns.evaluate(model, prompts, guard=guard, progress=False, **options, **ask)
    for label in LABELS:
        mine = np.array([p.label == label for p in test])
        requests = [p.cluster for p, m in zip(test, mine, strict=True) if m]
        start = float(np.mean([s[0] for s, m in zip(run.levels, mine, strict=True) if m]))
        row: dict[str, Any] = {
            "organism": name,
            "auc": [min(auc), max(auc)],
            "prompts": label,
            "n": int(mine.sum()),
            "start": start,
        }
        for k in TOKENS:
            row[f"left{k}"] = list(clustered_rate(run.exits(k)[mine].astype(float), requests))
            row[f"bound{k}"] = guard.bound(k, label=label, start=start)
        bounds.append(row)
        effects.append({
            "organism": name, "prompts": label,
            "touched": list(clustered_rate((run.touched[mine] > 0).astype(float), requests)),
            "steps": float(run.touched[mine].sum() / run.steps[mine].sum()),
            "unmet": float(run.unmet[mine].sum() / run.steps[mine].sum()),
            "gains": sum(b.transition.gain > 0 for pair in guard.barriers.values() for b in pair), "barriers": 2 * len(guard.barriers),
            **{name: over_cells(name, plain, held)
               for name in (("refusal", "compliance") if label == "harmful" else ("over_refusal", "utility"))},
        })  # fmt: skip
    return bounds, effects


def over_cells(rate: str, *results: ns.Evaluation) -> list[float] | None:
    """The mean of a rate over cells, of each result; None where no cell has it."""
    means = [float(np.mean([getattr(e.cell(c), rate).value for c in e.cells()])) for e in results]
    return means if np.isfinite(means).all() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--write", action="store_true", help="write the result files")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    bounds: list[dict[str, Any]] = []
    effects: list[dict[str, Any]] = []
    for name in args.cases:
        began = time.process_time()
        some, more = measured(name)
        bounds, effects = bounds + some, effects + more
        print(*some, *more, f"{time.process_time() - began:.0f} CPU seconds", sep="\n", flush=True)
    if args.write:
        write(bounds, effects)


def write(bounds: list[dict[str, Any]], effects: list[dict[str, Any]]) -> None:
    """Both result files."""
    columns: dict[str, tuple[str, str | None]] = {
        "organism": ("model", None), "auc": ("held-out AUC of the barriers", "{:.2f} to {:.2f}"), "prompts": ("prompts", None),
        "n": ("n", "{:d}"), "start": ("mean S at the start", "{:.2f}"),
    }  # fmt: skip
    for k in TOKENS:
        columns |= {f"left{k}": (f"left within {k} tokens", TRIPLE), f"bound{k}": (f"bound, {k} tokens", "{:.2f}")}
    write_result(
        "guard-bound", "The guard: answers whose states left the safe set, and the bound", columns=columns, rows=bounds
    )
    pair = "{:.2f} / {:.2f}"
    columns = {
        "organism": ("model", None), "prompts": ("prompts", None), "touched": ("prompts changed", TRIPLE), "steps": ("steps changed", "{:.3f}"),
        "unmet": ("steps with condition 2 unmet", "{:.3f}"), "gains": ("barriers that can be steered", "{:d}"), "barriers": ("of", "{:d}"),
        "refusal": ("harmful refused without / with", pair), "compliance": ("harmful complied without / with", pair),
        "over_refusal": ("benign refused without / with", pair), "utility": ("benign answered right without / with", pair),
    }  # fmt: skip
    write_result(
        "guard-effect",
        "The guard: how often it acts, and its effect on answers",
        columns=columns,
        rows=[{c: row.get(c) for c in columns} for row in effects],
    )


if __name__ == "__main__":
    main()
