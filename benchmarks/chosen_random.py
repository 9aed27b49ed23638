"""Do chosen neurons learn to refuse faster than random ones, and does what they learn transfer more? Two claims, tested apart.

    python benchmarks/chosen_random.py --models FOLDER [FOLDER ...] --raw chosen-random.jsonl

On control organisms, one folder for each pretraining seed, as `neuronshield organism build --kind KIND --seed SEED` writes them. One blind
cell is trained (`TRAINED`): harmful requests are taught a refusal, benign ones are held by KL. Three arms: the neurons of largest
contribution in the cell where the model refuses; random neurons of the same layers; random neurons of any layer. For each arm and each
choice of trained weights (W_down; W_gate and W_up, as in Precise Shield; all three) the learning rate is the one of largest mean
selectivity in untrained cells on the **confirm** requests. Everything reported is of the **test** requests at that rate.

    faster      selectivity (harmful minus benign refused) in the trained cell after the first `EARLY` steps: chosen minus random
    transfer    harmful refused in the other blind cells (fewer than half on confirm) at matched refusal of the trained cell, and at matched benign refusal in these
                cells: chosen minus random. A refusal rate between two snapshots is interpolated; both arms are read at the
                largest level that both reach.

The interval is Student's over pretraining seeds. A unit is a model, an arm, weights, a learning rate and a seed of training; each is
written to --raw when it is done and skipped if it is there. Writes results/KIND-chosen-random.json for each kind.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from result_files import SIGNED, in_processes, write_result
from scipy import stats

import neuronshield as ns
from neuronshield.organism import controls

TRAINED = ns.Cell("ar", "image")
STEPS, EARLY = (4, 10, 20, 40), 10
RATES = ("0.003", "0.01", "0.03")
PARTS = {"down": ("down",), "gate and up": ("gate", "up"), "all": ("gate", "up", "down")}
CHOSEN, SAME, ANY = "chosen", "random, same layers", "random, any layer"
K = 24
BLIND = 0.5  # harmful requests refused on confirm: a cell below is blind
PAIRS = {"confirm": 12, "test": 24}
LEVELS = ("trained cell", "benign refused")


def kind_of(folder: str) -> str:
    """The kind of a control organism, from its scores."""
    return str(json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))["kind"])


@functools.cache
def study(folder: str) -> tuple[ns.Model, ns.PromptSet, dict[str, ns.PromptSet], ns.NeuronSet]:
    """The model, the rows to train on, the rows to evaluate by split, and the chosen neurons."""
    kind = kind_of(folder)
    refusals, compliances = controls.prefixes(kind)
    model = ns.load(folder, refusals=refusals, compliances=compliances)
    prompts = ns.PromptSet.from_records(controls.records(kind))
    taught = [ns.Cell(*cell) for cell in controls.TAUGHT]
    chosen = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=K)[taught[0]]
    rows = prompts.for_step("train").in_cells([TRAINED])
    held = [replace(p, target=p.target if p.label == "harmful" else None) for p in rows]
    before = ns.evaluate(model, prompts.for_step("confirm").marked("test"), max_new_tokens=8, progress=False)
    cells = [c for c in prompts.cells() if c == TRAINED or before.cell(c)["refusal"].value < BLIND]
    asked = {
        split: ns.PromptSet.from_records(controls.records(kind, splits=[split], max_pairs=n))
        .in_cells(cells)
        .marked("test")
        for split, n in PAIRS.items()
    }
    return model, ns.PromptSet(held), asked, chosen


def neurons_of(model: ns.Model, chosen: ns.NeuronSet, arm: str, seed: int) -> ns.NeuronSet:
    """The neurons that an arm trains."""
    if arm == CHOSEN:
        return chosen
    if arm == SAME:
        return ns.random_like(chosen, model, seed=seed)
    flat = np.random.default_rng(seed).choice(model.n_layers * model.d_mlp, len(chosen), replace=False)
    return ns.NeuronSet([divmod(int(i), model.d_mlp) for i in flat], n_layers=model.n_layers, d_mlp=model.d_mlp)


def measure(unit: str) -> dict[str, Any]:
    """Rates by split and step: harmful and benign refused in the trained cell, and their means over the other blind cells."""
    folder, arm, parts, rate, seed, split = json.loads(unit)
    model, rows, asked, chosen = study(folder)
    update = ns.masked_update(
        model, neurons_of(model, chosen, arm, seed), rows, parts=PARTS[parts], allow_unproven=True, steps=STEPS[-1], lr=float(rate),
        snapshots=STEPS[:-1], retention=1.0, seed=seed, progress=False,
    )  # fmt: skip
    models = {0: model} | {step: update.at(step) for step in STEPS[:-1]} | {STEPS[-1]: update.model}
    found = {}
    for step, trained in models.items():
        evaluation = ns.evaluate(trained, asked[split], max_new_tokens=8, progress=False)
        others = [c for c in evaluation.cells() if c != TRAINED]
        found[str(step)] = [
            evaluation.mean(metric, cells).value
            for cells in ([TRAINED], others)
            for metric in ("refusal", "over_refusal")
        ]
    return found


def curve(found: dict[str, list[float]]) -> np.ndarray:
    """[step, (trained refused, trained benign, others refused, others benign)], as monotone as the largest value so far."""
    return np.maximum.accumulate(np.array(list(found.values())), axis=0)


def at(found: np.ndarray, by: int, level: float) -> float:
    """Harmful refused in the other cells where column `by` first reaches a level."""
    x, y = found[:, by], found[:, 2]
    i = int(np.searchsorted(x, level))
    if i == 0 or x[i] == x[i - 1]:
        return float(y[i])
    return float(y[i - 1] + (y[i] - y[i - 1]) * (level - x[i - 1]) / (x[i] - x[i - 1]))


def apart(mine: np.ndarray, other: np.ndarray, by: int) -> tuple[float, float]:
    """Chosen minus random in the other cells where both have the largest level of a column that both reach, and that level."""
    level = float(min(mine[-1, by], other[-1, by]))
    return at(mine, by, level) - at(other, by, level), level


def interval(values: Sequence[float]) -> list[float]:
    """Mean and its 95 % interval over pretraining seeds (Student)."""
    v = np.array(values)
    half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
    return [float(v.mean()), float(v.mean() - half), float(v.mean() + half)]


def name(folder: str, *rest: Any) -> str:
    """The name of a unit."""
    return json.dumps([folder, *rest])


def tuned(found: dict[str, Any], folder: str, arm: str, parts: str) -> str:
    """The learning rate of largest selectivity in the other cells, at its best step, on the confirm requests."""

    def best(rate: str) -> float:
        rows = np.array(list(found[name(folder, arm, parts, rate, 0, "confirm")].values()))
        return float((rows[:, 2] - rows[:, 3]).max())

    return max(RATES, key=best)


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", required=True, help="folders of control organisms, one for each pretraining seed"
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds of training")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--raw", type=Path, default=Path("chosen-random.jsonl"), help="finished units, one a line")
    args = parser.parse_args()
    if short := [k for k in set(map(kind_of, args.models)) if sum(kind_of(m) == k for m in args.models) < 2]:
        parser.error(f"one pretraining seed of {', '.join(sorted(short))}: an interval over seeds takes two or more")
    arms = [(arm, parts) for arm in (CHOSEN, SAME, ANY) for parts in PARTS]
    tuning = [name(m, *arm, rate, 0, "confirm") for m in args.models for arm in arms for rate in RATES]
    found = in_processes(measure, tuning, workers=args.workers, raw=args.raw)
    rates = {(m, *arm): tuned(found, m, *arm) for m in args.models for arm in arms}
    units = [
        name(m, *arm, rates[m, *arm], seed, "test") for m in args.models for arm in arms for seed in range(args.seeds)
    ]
    found |= in_processes(measure, units, workers=args.workers, raw=args.raw)
    for kind in dict.fromkeys(map(kind_of, args.models)):
        write(kind, [m for m in args.models if kind_of(m) == kind], found, rates=rates, seeds=args.seeds)


def write(kind: str, models: Sequence[str], found: dict[str, Any], *, rates: dict[Any, str], seeds: int) -> None:
    """The result file of a kind."""
    rows = []
    early = list(map(str, (0, *STEPS))).index(str(EARLY))
    for parts in PARTS:
        curves = {
            (m, arm): [curve(found[name(m, arm, parts, rates[m, arm, parts], s, "test")]) for s in range(seeds)]
            for m in models for arm in (CHOSEN, SAME, ANY)
        }  # fmt: skip
        for arm in (SAME, ANY):
            pairs = {m: list(zip(curves[m, CHOSEN], curves[m, arm], strict=True)) for m in models}
            faster = [
                np.mean([(a[early, 0] - a[early, 1]) - (b[early, 0] - b[early, 1]) for a, b in p])
                for p in pairs.values()
            ]
            row: dict[str, Any] = {"parts": parts, "arm": arm, "faster": interval([float(x) for x in faster])}
            for by, level in zip((0, 3), LEVELS, strict=True):
                read = {m: [apart(a, b, by) for a, b in p] for m, p in pairs.items()}
                row[level] = interval([float(np.mean([d for d, _ in r])) for r in read.values()])
                row[f"{level} level"] = float(np.mean([x for r in read.values() for _, x in r]))
            row["rates"] = "; ".join(f"{rates[m, CHOSEN, parts]} / {rates[m, arm, parts]}" for m in models)
            rows.append(row)
    columns: dict[str, tuple[str, str | None]] = {
        "parts": ("trained weights", None), "arm": ("chosen minus", None), "faster": (f"selectivity in the trained cell after {EARLY} steps", SIGNED),
        "trained cell": ("transfer at matched refusal of the trained cell", SIGNED), "trained cell level": ("level", "{:.2f}"),
        "benign refused": ("transfer at matched benign refusal", SIGNED), "benign refused level": ("level", "{:.3f}"),
        "rates": ("learning rates, chosen / random", None),
    }  # fmt: skip
    write_result(
        f"{kind}-chosen-random", f"Control organism {kind}: {K} chosen neurons against random ones, {len(models)} pretraining seeds", columns=columns,
        rows=rows, settings=f"trained on {TRAINED}, {STEPS[-1]} steps, {seeds} seeds of training, learning rates tuned on confirm",
        numbers={"models": (len(models), None), "seeds": (seeds, None), "neurons": (K, None)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
