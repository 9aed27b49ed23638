"""The control organisms are what they are said to be: python benchmarks/control_organisms.py --work FOLDER [--seeds 0 1 2] [--write]

For each kind and seed the organism is built into FOLDER/KIND-SEED, unless it is there. Of each:

    scores     the rates of every cell on the test split, from the build
    probes     in every layer a linear classifier of harm (Fisher's, covariance shrunk by a tenth) on the residual stream at the last
               prompt token, fitted on the discover, confirm and train splits of English text, and its AUC on the test split of each cell
    ablation   64 neurons of the fourth to seventh layer of eight whose contribution on the discover split is largest in both English text and Italian
               drawings (the smaller of the two counts) are held at their mean over benign requests, at the last prompt token; harmful
               test requests refused before and after, beside 10 random sets of the same layers. Two tokens are generated
    verdicts   steps find and prove of the main job with their default settings, and what they say of the set (`neuronshield.run.transfer`)

What was measured is kept beside the models. With --write the results go to benchmarks/results/control-*.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_files import spread, write_result
from verdicts import COLUMNS as SAID
from verdicts import said

import neuronshield as ns
from neuronshield.core.threads import leave_busy_cores
from neuronshield.data.grading import is_refusal
from neuronshield.find.last_tokens import at_last
from neuronshield.organism import controls
from neuronshield.organism.control_build import build_control
from neuronshield.prove.controls import random_like
from neuronshield.run.pipeline import step
from neuronshield.run.sections import sections_of

FITTED = ("discover", "confirm", "train")
MIDDLE, SIZE, RANDOM = range(3, 7), 64, 10
CHOSEN_IN = ("en/text", "it/image")
TAUGHT = tuple(f"{x}/{m}" for x, m in controls.TAUGHT)
TRIPLE = "{:.2f} [{:.2f}, {:.2f}]"
Rates = dict[str, float]  # by cell


def prompts_of(kind: str, splits: Sequence[str]) -> ns.PromptSet:
    """The prompts of some splits in every cell."""
    return ns.PromptSet.from_records(controls.records(kind, splits=splits))


def refused(model: ns.Model, prompts: ns.PromptSet, kind: str, *, intervention: ns.Intervention | None = None) -> Rates:
    """The share of harmful prompts that are refused, by cell."""
    harmful = prompts.where(label="harmful")
    refusals, _ = controls.prefixes(kind)
    answers = ns.generate(model, list(harmful), intervention=intervention, max_new_tokens=2, batch_size=256)
    hits: dict[str, list[bool]] = {}
    for prompt, answer in zip(harmful, answers, strict=True):
        hits.setdefault(str(prompt.cell), []).append(is_refusal(answer, refusals[prompt.language]))
    return {cell: float(np.mean(found)) for cell, found in hits.items()}


def direction(x: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """Fisher's discriminant with the covariance within groups shrunk by a tenth to its mean variance."""
    within = (np.cov(x[harmful].T) + np.cov(x[~harmful].T)) / 2
    within += 0.1 * np.trace(within) / len(within) * np.eye(len(within))
    return np.linalg.solve(within, x[harmful].mean(axis=0) - x[~harmful].mean(axis=0))


def auc(scores: np.ndarray, harmful: np.ndarray) -> float:
    """The probability that a harmful request scores higher than a benign one."""
    above = scores[harmful][:, None] - scores[~harmful][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def residuals(model: ns.Model, prompts: ns.PromptSet) -> tuple[np.ndarray, np.ndarray]:
    """The residual stream after each layer at the last prompt token, "prompt layer width", and which prompts are harmful."""
    rows = list(prompts)
    found = at_last(
        model, rows, lambda h, _, last: h[last].float(), width=model.d_model, batch_size=256, site="residual"
    )
    return found.numpy(), np.array([p.label == "harmful" for p in rows])


def probes(model: ns.Model, kind: str) -> dict[str, list[float]]:
    """The AUC of each layer by cell, of probes that were fitted in English text."""
    x, harmful = residuals(model, prompts_of(kind, FITTED).in_cells([ns.Cell.of(TAUGHT[0])]))
    weights = [direction(x[:, layer], harmful) for layer in range(model.n_layers)]
    test = prompts_of(kind, ["test"])
    found = {}
    for cell in test.cells():
        y, labels = residuals(model, test.in_cells([cell]))
        found[str(cell)] = [auc(y[:, layer] @ w, labels) for layer, w in enumerate(weights)]
    return found


def ablation(model: ns.Model, kind: str) -> dict[str, Any]:
    """Refusals of each cell as the model is, with the chosen neurons ablated, and with each random set ablated."""
    discover, test = prompts_of(kind, ["discover"]), prompts_of(kind, ["test"])
    stats = ns.capture(model, discover, batch_size=256, progress=False)
    scores = ns.contrast(stats, method="contribution")
    least = np.minimum(*(np.abs(scores[cell]) for cell in CHOSEN_IN))
    least[[layer for layer in range(model.n_layers) if layer not in MIDDLE]] = -1
    pairs = [divmod(int(i), model.d_mlp) for i in np.argsort(-least, axis=None)[:SIZE]]
    chosen = ns.NeuronSet(pairs, n_layers=model.n_layers, d_mlp=model.d_mlp)

    def without(neurons: ns.NeuronSet) -> Rates:
        found: Rates = {}
        for cell in test.cells():
            mean = ns.Intervention.mean_of(neurons, stats, cell=cell)
            found |= refused(model, test.in_cells([cell]), kind, intervention=mean)
        return found

    return {
        "layers": chosen.per_layer(), "clean": refused(model, test, kind), "chosen": without(chosen),
        "random": [without(random_like(chosen, model, seed=seed)) for seed in range(RANDOM)],
    }  # fmt: skip


def verdicts(model: ns.Model, kind: str) -> dict[str, Any]:
    """What the first two steps of the main job say, and the activity of the set on harmful requests that are answered."""
    prompts = ns.PromptSet.from_records(controls.records(kind))
    with tempfile.TemporaryDirectory() as out:
        for name in ("find", "prove"):
            results = step(name, model, prompts, Path(out) / "run", progress=False)
    return said(sections_of(results))


def measured(kind: str, seed: int, work: Path) -> dict[str, Any]:
    """What is known of one organism, measured where it is not kept."""
    folder, kept = work / f"{kind}-{seed}", work / f"{kind}-{seed}.json"
    if not (folder / "scores.json").exists():
        build_control(kind, folder, seed=seed)
    if not kept.exists():
        refusals, compliances = controls.prefixes(kind)
        model = ns.load(folder, refusals=refusals, compliances=compliances)
        found = {"probes": probes(model, kind), "ablation": ablation(model, kind), "verdicts": verdicts(model, kind)}
        kept.write_text(json.dumps(found), encoding="utf-8")
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return {"kind": kind, "seed": seed, **scores, **json.loads(kept.read_text(encoding="utf-8"))}


def mean_of(rates: Rates, cells: Sequence[str]) -> float:
    """The mean of some cells."""
    return float(np.mean([rates[c] for c in cells]))


def groups(rates: Rates) -> dict[str, list[str]]:
    """The cells by what they share with the taught one: its language, its modality, or neither."""
    language, modality = TAUGHT[0].split("/")
    others = [c.split("/") for c in rates if c not in TAUGHT]
    return {
        "same language": [f"{x}/{m}" for x, m in others if x == language],
        "same modality": [f"{x}/{m}" for x, m in others if m == modality],
        "neither": [f"{x}/{m}" for x, m in others if x != language and m != modality],
    }  # fmt: skip


def rate(unit: dict[str, Any], metric: str, cells: Sequence[str] | None = None) -> float:
    """The mean of a rate on the test split over some cells; over all that were not taught without them."""
    flat = {f"{x}/{m}": row[x][metric] for m, row in unit["test"].items() for x in row}
    return mean_of(flat, cells or [c for c in flat if c not in TAUGHT])


def probe(unit: dict[str, Any], cells: Sequence[str]) -> float:
    """The mean AUC over some cells of the probe of the layer that is best in the taught cell."""
    best = int(np.argmax(unit["probes"][TAUGHT[0]][: max(MIDDLE) + 1]))
    return float(np.mean([unit["probes"][c][best] for c in cells]))


def summary(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of a kind: median, smallest and largest over its seeds."""

    def over(value: Any) -> list[float]:
        return spread([float(value(u)) for u in units])

    names = groups(units[0]["ablation"]["clean"])

    def drop(unit: dict[str, Any], cells: Sequence[str], *, chosen: bool) -> float:
        cut = unit["ablation"]
        after = mean_of(cut["chosen"], cells) if chosen else np.mean([mean_of(r, cells) for r in cut["random"]])
        return mean_of(cut["clean"], cells) - float(after)

    untaught = [c for cells in names.values() for c in cells]
    return {
        "kind": units[0]["kind"], "seeds": len(units),
        "taught": over(lambda u: rate(u, "refusal", TAUGHT)),
        **{f"refused {name}": over(lambda u, c=cells: rate(u, "refusal", c)) for name, cells in names.items()},
        "success": over(lambda u: rate(u, "attack_success")), "over": over(lambda u: rate(u, "over_refusal", [*TAUGHT, *untaught])),
        "over taught": over(lambda u: rate(u, "over_refusal", TAUGHT)),
        "utility": over(lambda u: rate(u, "utility", [*TAUGHT, *untaught])),
        "probe same": over(lambda u: probe(u, TAUGHT)), "probe others": over(lambda u: probe(u, untaught)),
        "chosen taught": over(lambda u: drop(u, TAUGHT, chosen=True)), "random taught": over(lambda u: drop(u, TAUGHT, chosen=False)),
        "chosen others": over(lambda u: drop(u, untaught, chosen=True)), "random others": over(lambda u: drop(u, untaught, chosen=False)),
        "seconds": over(lambda u: u["cpu_seconds"]),
    }  # fmt: skip


COLUMNS = {
    "kind": ("kind", None), "seeds": ("seeds", None), "taught": ("harmful refused, taught cell", TRIPLE),
    "over taught": ("benign refused, taught cell", TRIPLE),
    "refused same language": ("same language, pictures", TRIPLE), "refused same modality": ("other languages, text", TRIPLE),
    "refused neither": ("other languages, pictures", TRIPLE), "success": ("attack success, untaught cells", TRIPLE),
    "over": ("benign refused", TRIPLE), "utility": ("benign answered right", TRIPLE),
    "probe same": ("probe AUC, taught cell", TRIPLE), "probe others": ("probe AUC, other cells", TRIPLE),
    "chosen taught": ("refusals lost, taught cell, chosen", TRIPLE), "random taught": ("refusals lost, taught cell, random", TRIPLE),
    "chosen others": ("refusals lost, other cells, chosen", TRIPLE), "random others": ("refusals lost, other cells, random", TRIPLE),
    "seconds": ("CPU seconds", "{:.0f} [{:.0f}, {:.0f}]"),
}  # fmt: skip


def cell_rows(units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Harmful requests refused in each cell, a row for each kind, seed and modality."""
    return [
        {"organism": f"{u['kind']} {u['seed']}, {m}", **{x: row[x]["refusal"] for x in row}}
        for u in units for m, row in u["test"].items()
    ]  # fmt: skip


def verdict_rows(units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the first two steps of the main job say of each model, beside what is known of it."""
    return [
        {
            "organism": f"{u['kind']} {u['seed']}", "taught": rate(u, "refusal", TAUGHT), "over": rate(u, "over_refusal", TAUGHT),
            "probe": probe(u, [c for c in u["probes"] if c not in TAUGHT]), **{key: u["verdicts"][key] for key in WORDS},
        }
        for u in units
    ]  # fmt: skip


WORDS = ("shared by languages", "shared by modalities", "decision", "activity")
VERDICTS: dict[str, tuple[str, str | None]] = {
    "organism": ("organism and seed", None), "taught": ("harmful refused, taught cell", "{:.2f}"), "over": ("benign refused there", "{:.2f}"),
    "probe": ("probe AUC, other cells", "{:.2f}"), **{key: SAID[key] for key in WORDS},
}  # fmt: skip


def main() -> None:
    """Measures, prints, and writes the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=controls.KINDS, choices=controls.KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    leave_busy_cores()
    given.work.mkdir(parents=True, exist_ok=True)
    units = [measured(kind, seed, given.work) for kind in given.kinds for seed in given.seeds]
    rows = [summary([u for u in units if u["kind"] == kind]) for kind in given.kinds]
    for row in rows:
        print(json.dumps(row))
    if given.write:
        write_result(
            "control-organisms", "The control organisms: median, least and most over seeds", columns=COLUMNS, rows=rows
        )
        languages = {x: (x, "{:.2f}") for x in controls.LANGUAGES}
        write_result(
            "control-cells", "Harmful requests refused by the control organisms, by cell",
            columns={"organism": ("organism", None), **languages}, rows=cell_rows(units),
        )  # fmt: skip
        write_result(
            "control-verdicts", "What find and prove say of the control organisms, by seed", columns=VERDICTS,
            rows=verdict_rows(units),
        )  # fmt: skip


if __name__ == "__main__":
    main()
