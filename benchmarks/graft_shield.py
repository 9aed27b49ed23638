"""Does safety that is trained by text reach pictures on the graft? python benchmarks/graft_shield.py --raw graft-shield.jsonl

smollm2-vision refuses harm in text and answers much of it in pictures. At most 0.03 % of its parameters are trained, the neurons of largest
contribution in text, beside random masks, a plain LoRA of as many numbers, and a fine-tune of every MLP weight. Two sets of requests:

    text       the training pairs in text
    drawings   the same, and with drawings; typeset words are not trained

Every condition is evaluated after a quarter, a half and all of its steps on held-out test pairs, and compared at matched benign refusal
(`neuronshield.check.curves`) in the cells that were not trained. Answers are graded on their first ten tokens.

A condition is written to --raw when it is done and skipped if it is there. Writes results/graft-shield.json.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from result_files import SIGNED, TRIPLE, in_processes, write_result
from shield import evaluation
from shield import measure as outcomes

import neuronshield as ns
from neuronshield import graft
from neuronshield.check.curves import Curve, matched
from neuronshield.check.evaluation import Evaluation
from neuronshield.shield.unmasked import full_update, plain_lora
from neuronshield.shield.update import Update, masked_update

MODEL, BUDGET = "smollm2-vision", 3e-4
TRAINING: dict[str, Any] = {
    "steps": 32,
    "lr": 3e-3,
    "batch_size": 8,
    "retention": 4.0,
    "snapshots": (8, 16),
    "progress": False,
}
FULL_LR = 1e-4  # the other rate destroys the model when every weight moves
TEXT, DRAWN, TYPED = (ns.Cell("en", m) for m in ("text", "image", "typographic"))
REGIMES = {"text": (TEXT,), "drawings": (TEXT, DRAWN)}
MASKS, PAIRS = 2, 24
CHOSEN = "chosen"
NAMES = (CHOSEN, *(f"random mask {i + 1}" for i in range(MASKS)), "plain LoRA", "full fine-tune")


@functools.cache
def study() -> tuple[ns.Model, ns.PromptSet, ns.NeuronSet]:
    """The model, all requests, and the neurons of largest contribution in text within the budget."""
    model, prompts = ns.load(MODEL), ns.PromptSet.from_records(graft.records())
    stats = ns.capture(model, prompts.for_step("discover").in_cells([TEXT]), progress=False)
    return model, prompts, ns.contrast(stats).top(param_fraction=BUDGET)[TEXT]


@functools.cache
def tested() -> ns.PromptSet:
    """The requests of the tables."""
    return ns.PromptSet.from_records(graft.records(splits=["test"], max_pairs=PAIRS))


def conditions(regime: str) -> dict[str, Callable[[], Update]]:
    """What is trained, by name."""
    model, prompts, chosen = study()
    rows = prompts.for_step("train").in_cells(list(REGIMES[regime]))

    def masked(neurons: ns.NeuronSet, seed: int = 0) -> Callable[[], Update]:
        return lambda: masked_update(
            model, neurons, rows, seed=seed, budget=BUDGET, allow_unproven=True, **TRAINING
        )  # fmt: skip

    numbers = len(chosen) * model.params_per_neuron
    masks = {f"random mask {i + 1}": masked(ns.random_like(chosen, model, seed=i), i) for i in range(MASKS)}
    return {
        CHOSEN: masked(chosen), **masks, "plain LoRA": lambda: plain_lora(model, numbers, rows, **TRAINING),
        "full fine-tune": lambda: full_update(model, rows, **{**TRAINING, "lr": FULL_LR}),
    }  # fmt: skip


def measure(unit: str) -> dict[str, Any]:
    """Outcomes by number of steps, of a condition of a regime; of the untouched model where no condition is named."""
    regime, name = json.loads(unit)
    model, _, chosen = study()
    if not name:
        return {
            "neurons": len(chosen),
            "fraction": chosen.param_fraction(model),
            "answers": {"0": outcomes(model, tested())},
        }
    update = conditions(regime)[name]()
    models = {step: update.at(step) for step in update.snapshots} | {TRAINING["steps"]: update.model}
    return {"fraction": update.param_fraction, "answers": {str(s): outcomes(m, tested()) for s, m in models.items()}}


def rows_of(regime: str, done: dict[str, Any], base: Evaluation) -> tuple[list[dict[str, Any]], list[float]]:
    """One row a condition: refused by cell, and chosen minus it at matched benign refusal in the cells that were not trained; the last
    over all masks."""
    others = [c for c in (TEXT, DRAWN, TYPED) if c not in REGIMES[regime]]
    evaluations = {n: [evaluation(tested(), x) for x in done[n]["answers"].values()] for n in NAMES}
    curves = {n: Curve([0, *map(int, done[n]["answers"])], [base, *evaluations[n]]) for n in NAMES}
    table: list[dict[str, Any]] = []
    for name, found in {"no update": base, **{n: evaluations[n][-1] for n in NAMES}}.items():
        row: dict[str, Any] = {"trained": regime, "condition": name, "matched": None, "benign": None}
        for cell in (TEXT, DRAWN, TYPED):
            row |= {f"{cell.modality} {m}": list(found.cell(cell)[m]) for m in ("refusal", "over_refusal")}
        if name not in ("no update", CHOSEN):
            at = matched(curves[CHOSEN], [curves[name]], others)
            row |= {"matched": list(at.difference), "benign": at.benign}
        table.append(row | ({"emphasis": True} if name == CHOSEN else {}))
    return table, list(matched(curves[CHOSEN], [curves[n] for n in NAMES if n.startswith("random")], others).difference)


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=Path("graft-shield.jsonl"), help="finished units, one a line")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    untouched = json.dumps(["", ""])
    units = [untouched, *(json.dumps([regime, name]) for regime in REGIMES for name in NAMES)]
    found = in_processes(measure, units, workers=args.workers, raw=args.raw)
    base = evaluation(tested(), found[untouched]["answers"]["0"])
    tables = {r: rows_of(r, {n: found[json.dumps([r, n])] for n in NAMES}, base) for r in REGIMES}
    rows = [row for table, _ in tables.values() for row in table]
    columns: dict[str, tuple[str, str | None]] = {"trained": ("trained with", None), "condition": ("condition", None)}
    for modality, title in (("text", "text"), ("image", "drawings"), ("typographic", "words")):
        columns |= {
            f"{modality} refusal": (f"{title}, harmful refused", TRIPLE),
            f"{modality} over_refusal": (f"{title}, benign refused", TRIPLE),
        }
    columns |= {"matched": ("chosen minus it, untrained cells, at matched benign refusal", SIGNED), "benign": ("benign refusal there", "{:.2f}")}  # fmt: skip
    write_result(
        "graft-shield", "smollm2-vision: refused after training by text, and by text and drawings", columns=columns, rows=rows,
        settings=f"{TRAINING['steps']} steps of {TRAINING['batch_size']}, learning rate {TRAINING['lr']:g} (full fine-tune {FULL_LR:g}), one seed",
        numbers={
            "neurons": (found[untouched]["neurons"], None), "fraction": (100 * found[untouched]["fraction"], "{:.3f} %"),
            "pairs": (PAIRS, None), "masks": (MASKS, None), "steps": (TRAINING["steps"], None),
            **{f"masks_{r}": (over, SIGNED) for r, (_, over) in tables.items()},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
