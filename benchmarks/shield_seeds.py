"""Does a shield of chosen neurons beat random masks at matched benign refusal? python benchmarks/shield_seeds.py --workers 16

On the organism. The 64 neurons of largest contribution in en/text are trained on en/image, sw/text and the text that was safe, with
all training requests: 80 steps, benign prompts held by KL with weight 1 (their targets are not used). Beside them, with each seed,
a mask of random neurons of the same layers (another one for every seed) and a plain LoRA with as many trained numbers. Each is evaluated after 10, 20, 40
and 80 steps on all test requests of the 24 cells of which no prompt was trained; harmful refusal is compared at the benign refusal of
the finished update (`neuronshield.check.curves`), with an interval over requests and seeds.

A unit is one condition with one seed. Each is written to --raw when it is done and skipped if it is there; the table of all of them
is results/organism-seeds.json.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from result_files import OUTCOMES, SIGNED, in_processes, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.check.cells import Answer
from neuronshield.check.curves import Curve, matched
from neuronshield.check.evaluation import Evaluation

SAFE = [ns.Cell(language, "text") for language in organism.HIGH_RESOURCE]
TRAINED = [ns.Cell("en", "image"), ns.Cell("sw", "text"), *SAFE]
STEPS = (10, 20, 40, 80)
TRAINING: dict[str, Any] = {
    "steps": STEPS[-1], "snapshots": STEPS[:-1], "lr": 2e-2, "batch_size": 32, "retention": 1.0, "progress": False,
}  # fmt: skip
K = 64
CHOSEN, MASK, LORA, BASE = "chosen", "random mask", "plain LoRA", "no update"
LETTERS = {"refused": "r", "complied": "c", "incoherent": "i"}


@functools.cache
def study() -> tuple[ns.Model, ns.PromptSet, ns.PromptSet, ns.NeuronSet]:
    """The model, the training prompts, the test prompts of the untrained cells, and the chosen neurons."""
    model = ns.load("organism")
    prompts = ns.PromptSet.from_records(organism.records())
    chosen = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=K)["en/text"]
    rows = [
        replace(p, target=p.target if p.label == "harmful" else None)
        for p in prompts.for_step("train").in_cells(TRAINED)
    ]
    test = prompts.for_step("test")
    return model, ns.PromptSet(rows), test.in_cells([c for c in test.cells() if c not in TRAINED]), chosen


def measure(unit: str) -> dict[str, Any]:
    """Outcomes of the answers by strength, a letter each, and whether each answer was right."""
    model, rows, test, chosen = study()
    name, _, seed = unit.partition(" / ")
    options: dict[str, Any] = {**TRAINING, "seed": int(seed)}
    if name == BASE:
        models = {0: model}
    else:
        if name == LORA:
            update = ns.plain_lora(model, len(chosen) * model.params_per_neuron, rows, **options)
        else:
            mask = chosen if name == CHOSEN else ns.random_like(chosen, model, seed=int(seed))
            update = ns.masked_update(model, mask, rows, allow_unproven=True, **options)
        models = {step: update.at(step) for step in STEPS[:-1]} | {STEPS[-1]: update.model}
    out = {}
    for step, trained in models.items():
        answers = ns.evaluate(trained, test, max_new_tokens=20, progress=False).answers
        out[str(step)] = [
            "".join(LETTERS.get(a.outcome, "u") for a in answers),
            "".join("01"[bool(a.right)] for a in answers),
        ]
    return out


def evaluation(found: Sequence[str]) -> Evaluation:
    """The evaluation that a unit's letters stand for."""
    test = study()[2]
    graded = {"r": (True, False), "c": (False, False), "i": (False, True), "u": (None, False)}
    return Evaluation([
        Answer(p, "", refused=graded[letter][0], right=right == "1" if p.expect else None, incoherent=graded[letter][1])
        for p, letter, right in zip(test, *found, strict=True)
    ])  # fmt: skip


def curve(base: Evaluation, unit: dict[str, Any]) -> Curve:
    return Curve([0, *map(int, unit)], [base, *(evaluation(found) for found in unit.values())])


def averaged(evaluations: Sequence[Evaluation], metric: str) -> list[float]:
    """Mean over seeds of a rate and of the ends of its interval over requests."""
    return np.mean([e.mean(metric) for e in evaluations], axis=0).tolist()


def table(units: dict[str, Any], seeds: int) -> None:
    """Writes the result file and prints its rows."""
    base = evaluation(units[f"{BASE} / 0"]["0"])
    curves = {n: [curve(base, units[f"{n} / {s}"]) for s in range(seeds)] for n in (CHOSEN, MASK, LORA)}
    rows: list[dict[str, Any]] = [{"condition": BASE, **{m: list(base.mean(m)) for m in OUTCOMES}}]
    numbers: dict[str, tuple[Any, str | None]] = {
        "seeds": (seeds, None), "neurons": (K, None), "steps": (STEPS[-1], None), "cells": (len(base.cells()), None),
        "requests": (len({a.cluster for a in base.answers}), None),
    }  # fmt: skip
    for name, of_seeds in curves.items():
        row: dict[str, Any] = {"condition": name}
        row |= {m: averaged([c.evaluations[-1] for c in of_seeds], m) for m in OUTCOMES}
        if name != CHOSEN:
            found = matched(curves[CHOSEN], of_seeds)
            key = "mask" if name == MASK else "lora"
            numbers |= {
                f"over_{key}": (list(found.difference), SIGNED), f"benign_{key}": (found.benign, "{:.3f}"),
                f"reached_{key}": (found.reached, None),
            }  # fmt: skip
            gains = [
                a.evaluations[-1].gain(b.evaluations[-1], "selectivity").value
                for a, b in zip(curves[CHOSEN], of_seeds, strict=True)
            ]
            t = float(np.mean(gains) / (np.std(gains, ddof=1) / np.sqrt(seeds)))
            numbers |= {f"gain_{key}": (float(np.mean(gains)), "{:+.3f}"), f"t_{key}": (t, "{:.1f}")}
            row |= {
                "benign": found.benign,
                "here": found.harmful,
                "there": found.others,
                "difference": list(found.difference),
            }
        else:
            row |= {"benign": None, "here": None, "there": None, "difference": None, "emphasis": True}
        rows.append(row)
    rows[0] |= {"benign": None, "here": None, "there": None, "difference": None}
    columns: dict[str, tuple[str, str | None]] = {
        "condition": ("condition", None), **OUTCOMES, "benign": ("compared at benign refused", "{:.3f}"),
        "here": ("chosen there", "{:.3f}"), "there": ("this there", "{:.3f}"), "difference": ("chosen minus this", SIGNED),
    }  # fmt: skip
    title = f"The organism, untrained cells: harmful refused at matched benign refusal, {seeds} seeds"
    settings = f"{STEPS[-1]} steps, benign prompts held by KL with weight 1"
    write_result("organism-seeds", title, columns=columns, rows=rows, numbers=numbers, settings=settings)
    for key, (value, _) in numbers.items():
        print(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--raw", type=Path, default=Path("shield-seeds.jsonl"), help="finished units, one a line")
    args = parser.parse_args()
    units = [f"{name} / {seed}" for seed in range(args.seeds) for name in (CHOSEN, MASK, LORA)]
    table(in_processes(measure, [f"{BASE} / 0", *units], workers=args.workers, raw=args.raw), args.seeds)


if __name__ == "__main__":
    main()
