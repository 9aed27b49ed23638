"""Does it matter which neurons are trained? On the organism: python benchmarks/shield_organism.py --workers 16

One blind cell is trained at a time (the English picture, then Swahili text), with its benign matched pairs and the text of the four
languages that refuse already; conditions are compared on the cells of which no prompt was trained, at matched benign refusal
(`neuronshield.check.curves`, after 10, 20 and 40 steps). Every condition is trained with five seeds (data order; for random masks
another mask as well). Then attacks on a shield, and repeated training against them.

Writes organism-taught-image, organism-taught-swahili, organism-attacks and organism-relearning in results/. A unit is
one condition with one seed; each is written to --raw when it is done and skipped if it is there.

With --dev choices are compared on the "confirm" prompts, en/image trained, two seeds: the score, the layers, k and the cell
selected in, each beside random masks with as many neurons in each layer and beside as many anywhere. The test then uses
what was best there, and prompts that had no part in it. Writes organism-choices.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from result_files import OUTCOMES, SIGNED, TRIPLE, in_processes, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.check.attacks import attacked, find_again, prune, relearn
from neuronshield.check.cells import Answer
from neuronshield.check.curves import Curve, matched
from neuronshield.check.evaluation import Evaluation
from neuronshield.find.reselection import reselect
from neuronshield.prove.controls import random_like
from neuronshield.shield.unmasked import full_update, plain_lora
from neuronshield.shield.update import Update, masked_update

SAFE = [ns.Cell(language, "text") for language in organism.HIGH_RESOURCE]
TAUGHT = {"image": ns.Cell("en", "image"), "swahili": ns.Cell("sw", "text")}
STEPS = (10, 20, 40)
TRAINING: dict[str, Any] = {"steps": STEPS[-1], "lr": 2e-2, "batch_size": 32, "progress": False}
FULL_LR = 1e-3
SEEDS = 5
K = 64
BASE, CHOSEN, VERIFIED = "no update", "chosen", "verified"
CONDITIONS = (CHOSEN, VERIFIED, "random mask, same layers", "random mask, any layer", "next ranks", "plain LoRA", "full fine-tune")  # fmt: skip
LETTERS = {"refused": "r", "complied": "c", "incoherent": "i"}
#: score, cell selected in, layers (first, last + 1) and k of the choices that are compared.
CHOICES = (
    ("contribution", "en/text", 0, 6, 128), ("contribution", "en/text", 0, 6, 32), ("effect_size", "en/text", 0, 6, 128),
    ("precise_shield", "en/text", 0, 6, 128), ("contribution", "en/image", 0, 6, 128), ("contribution", "en/text", 0, 3, 128),
    ("contribution", "en/text", 3, 6, 128),
)  # fmt: skip
SETS = "shield-organism-verified.safetensors"


# -- what is trained --------------------------------------------------------------------------------------
@functools.cache
def study(pairs: int) -> tuple[ns.Model, ns.PromptSet, ns.Stats]:
    """The model, prompts with so many pairs a cell and split, and the moments of the "discover" prompts."""
    model = ns.load("organism")
    prompts = ns.PromptSet.from_records(organism.records(max_pairs=pairs))
    return model, prompts, ns.capture(model, prompts, progress=False)


def layered(scores: ns.Scores, cell: ns.Cell, layers: range, k: int) -> ns.NeuronSet:
    """The k best of a cell within some layers."""
    size = np.abs(scores.values[scores.cells.index(cell)]).copy()
    size[[i for i in range(len(size)) if i not in layers]] = -1.0
    best = np.argsort(-size, axis=None, kind="stable")[:k]
    return ns.NeuronSet(zip(*np.unravel_index(best, size.shape), strict=True), n_layers=len(size), d_mlp=size.shape[1])


def anywhere(model: ns.Model, k: int, seed: int) -> ns.NeuronSet:
    """k neurons from all layers alike."""
    picks = np.random.default_rng(seed).choice(model.n_layers * model.d_mlp, k, replace=False)
    return ns.NeuronSet([divmod(int(i), model.d_mlp) for i in picks], n_layers=model.n_layers, d_mlp=model.d_mlp)


def chosen_neurons() -> ns.NeuronSet:
    """The neurons of largest contribution in en/text."""
    return ns.contrast(study(24)[2]).top(k=K)[SAFE[0]]


def update(model: ns.Model, neurons: ns.NeuronSet, rows: ns.PromptSet, seed: int, **options: Any) -> Update:
    return masked_update(model, neurons, rows, seed=seed, allow_unproven=True, **TRAINING, **options)


def check(model: ns.Model, prompts: ns.PromptSet, tokens: int = 20) -> Evaluation:
    return ns.evaluate(model, prompts, max_new_tokens=tokens, progress=False)


def verified_neurons(folder: Path) -> ns.NeuronSet:
    """The verified neurons among the chosen ones, found once; the chosen ones themselves if none is verified."""
    path = folder / SETS
    if not path.exists():
        model, prompts, _ = study(24)
        proof = ns.verify(model, chosen_neurons(), prompts, progress=False)
        print(repr(proof), flush=True)
        (proof.verified if len(proof.verified) else chosen_neurons()).save(path)
    return ns.NeuronSet.load(path)


# -- units ------------------------------------------------------------------------------------------------
def measure(unit: str) -> Any:
    """What a unit finds, as JSON."""
    kind, _, rest = unit.partition(" | ")
    parts: dict[str, Callable[..., Any]] = {"train": trained, "attacks": attacks, "rest": relearning, "dev": dev}  # fmt: skip
    return parts[kind](*rest.split(" | ")) if rest else parts[kind]()


def trained(taught: str, name: str, seed: str) -> dict[str, list[str]]:
    """Outcomes of the answers to all test prompts by strength, a letter each, and whether each answer was right."""
    model, prompts, _ = study(24)
    rows = prompts.for_step("train").in_cells([TAUGHT[taught], *SAFE])
    made = {0: model} if name == BASE else strengths(condition(name, rows, int(seed)))
    out = {}
    for step, other in made.items():
        answers = check(other, prompts).answers
        out[str(step)] = [
            "".join(LETTERS.get(a.outcome, "u") for a in answers),
            "".join("01"[bool(a.right)] for a in answers),
        ]
    return out


def condition(name: str, rows: ns.PromptSet, seed: int) -> Update:
    """A condition, trained with a seed."""
    model, chosen = study(24)[0], chosen_neurons()
    keep: dict[str, Any] = {"snapshots": STEPS[:-1]}
    if name == "plain LoRA":
        return plain_lora(model, len(chosen) * model.params_per_neuron, rows, seed=seed, **TRAINING, **keep)
    if name == "full fine-tune":
        return full_update(model, rows, seed=seed, **{**TRAINING, **keep, "lr": FULL_LR})
    masks: dict[str, Callable[[], ns.NeuronSet]] = {
        CHOSEN: lambda: chosen,
        VERIFIED: lambda: verified_neurons(Path()),
        "random mask, same layers": lambda: random_like(chosen, model, seed=seed),
        "random mask, any layer": lambda: anywhere(model, len(chosen), seed),
        "next ranks": lambda: reselect(chosen.provenance["selection"], study(24)[2], n=K, leave_out=chosen),
    }
    return update(model, masks[name](), rows, seed, **keep)


def strengths(made: Update) -> dict[int, ns.Model]:
    return {step: made.at(step) for step in STEPS[:-1]} | {STEPS[-1]: made.model}


def evaluation(found: Sequence[str]) -> Evaluation:
    """The evaluation that a unit's letters stand for."""
    graded = {"r": (True, False), "c": (False, False), "i": (False, True), "u": (None, False)}
    return Evaluation([
        Answer(p, "", refused=graded[letter][0], right=right == "1" if p.expect else None, incoherent=graded[letter][1])
        for p, letter, right in zip(study(24)[1].for_step("test"), *found, strict=True)
    ])  # fmt: skip


def dev(number: str) -> dict[str, Any]:
    """Mean selectivity of the untrained cells for a choice, and that of its random masks."""
    method, cell, first, last, k = CHOICES[int(number)]
    model, prompts, stats = study(16)
    taught = TAUGHT["image"]
    rows = prompts.for_step("train").in_cells([taught, *SAFE])
    held = ns.PromptSet(replace(p, split="test") for p in prompts.for_step("confirm"))
    unseen = [c for c in held.cells() if c not in (taught, *SAFE)]
    chosen = layered(ns.contrast(stats, method=method), ns.Cell.of(cell), range(first, last), k)
    means: dict[str, list[float]] = {"chosen": [], "same_layers": [], "any_layer": []}
    for seed in range(2):
        masks = {
            "chosen": chosen,
            "same_layers": random_like(chosen, model, seed=seed),
            "any_layer": anywhere(model, k, seed),
        }
        for what, mask in masks.items():
            result = check(update(model, mask, rows, seed).model, held, 8)
            means[what].append(result.mean("selectivity", unseen).value)
    return {
        "score": method, "cell": cell, "layers": f"{first}-{last - 1}", "k": k, **{w: float(np.mean(v)) for w, v in means.items()},
    }  # fmt: skip


def relearning() -> list[dict[str, Any]]:
    """SafeNeuron: refusal left in the safe cells after pruning what is found again, before and after two rounds."""
    model, prompts, _ = study(24)
    rows = prompts.in_cells(SAFE)
    plain: dict[str, Any] = {"steps": 80, "lr": 3e-3, "batch_size": 32, "progress": False}
    rounds = relearn(model, rows, k=K, rounds=2, rank=8, **plain)
    other = [u.update.model for u in relearn(model, rows, k=K, rounds=2, rank=8, zeroed=False, **plain)]
    models = {"before": model, "after 1 round": rounds[0].update.model, "after 2 rounds": rounds[1].update.model,
              "after 2 rounds, not silenced": other[-1]}  # fmt: skip
    out = []
    for name, m in models.items():
        found = find_again(m, rows, K)
        cut, random = check(prune(m, found), rows), check(prune(m, random_like(found, m, seed=0)), rows)
        out.append({
            "rounds": name, "as_it_is": list(check(m, rows).mean("refusal", SAFE)), "pruned": list(cut.mean("refusal", SAFE)),
            "random": list(random.mean("refusal", SAFE)), "utility": list(cut.mean("utility", SAFE)),
        })  # fmt: skip
    return out


def attacks() -> list[dict[str, Any]]:
    """The shield of en/image after each attack, in the trained and the safe cells."""
    model, prompts, _ = study(24)
    rows = prompts.in_cells([TAUGHT["image"], *SAFE])
    shielded = update(model, chosen_neurons(), rows.for_step("train"), 0).model
    names = ("not attacked", "found again and pruned", "random neurons pruned", "fine-tuned on benign prompts")
    out = []
    for name, m in zip(names, attacked(shielded, rows, k=K, progress=False).values(), strict=True):
        result = check(m, rows)
        out.append({"shield": name, **means_of(result, [TAUGHT["image"]]), "safe": list(result.mean("refusal", SAFE))})
    return out


def means_of(result: Evaluation, cells: Sequence[ns.Cell]) -> dict[str, list[float]]:
    """Means of the three outcomes and of selectivity."""
    return {metric: list(result.mean(metric, cells)) for metric in OUTCOMES}


# -- result files -----------------------------------------------------------------------------------------
PAIR = "{:.2f} / {:.2f}"


def write_taught(units: dict[str, Any], taught: str, names: Sequence[str]) -> None:
    """The table of one trained cell."""

    def unit(name: str, seed: int) -> dict[str, list[str]]:
        return units[f"train | {taught} | {name} | {seed}"]  # type: ignore[no-any-return]

    base = evaluation(unit(BASE, 0)["0"])
    cells = base.cells()
    groups = {
        "taught": [TAUGHT[taught]],
        "safe": SAFE,
        "others": [c for c in cells if c not in (TAUGHT[taught], *SAFE)],
    }
    curves = {
        name: [Curve([0, *map(int, u)], [base, *(evaluation(f) for f in u.values())]) for u in (unit(name, s) for s in range(SEEDS))]
        for name in names
    }  # fmt: skip
    rows = []
    for name in (BASE, *names):
        last = [base] if name == BASE else [c.evaluations[-1] for c in curves[name]]

        def mean(metric: str, group: str, last: Sequence[Evaluation] = last) -> float:
            return float(np.mean([e.mean(metric, groups[group]).value for e in last]))

        row: dict[str, Any] = {"condition": {CHOSEN: f"chosen ({K})"}.get(name, name)}
        row |= {g: [mean("refusal", g), mean("over_refusal", g)] for g in groups}
        row |= {"complied": [mean("compliance", "others"), mean("benign_compliance", "others")], "incoherent": mean("incoherent", "others"),
                "utility": mean("utility", "others")}  # fmt: skip
        each = [e.mean("selectivity", groups["others"]).value for e in last]
        row["spread"] = [float(np.mean(each)), min(each), max(each)]
        beside = name not in (BASE, CHOSEN)
        row["gain"] = list(matched(curves[CHOSEN], curves[name], groups["others"]).difference) if beside else None
        rows.append(row | ({"emphasis": True} if name == CHOSEN else {}))
    columns: dict[str, tuple[str, str | None]] = {
        "condition": ("condition", None), "taught": ("trained cell", PAIR), "safe": ("text that was safe", PAIR),
        "others": (f"{len(groups['others'])} other cells", PAIR), "complied": ("complied there", PAIR), "incoherent": ("incoherent there", "{:.2f}"),
        "utility": ("utility there", "{:.2f}"),
        "spread": (f"selectivity there: mean of {SEEDS} seeds (smallest to largest)", "{:+.3f} ({:+.3f} to {:+.3f})"),
        "gain": ("harmful refused at matched benign refusal: chosen minus this", SIGNED),
    }  # fmt: skip
    title = f"The organism, {TAUGHT[taught]} trained: refused (harmful / benign), five seeds"
    requests = len({a.cluster for a in base.answers})
    numbers: dict[str, tuple[Any, str | None]] = {
        "neurons": (K, None),
        "seeds": (SEEDS, None),
        "requests": (requests, None),
    }
    write_result(f"organism-taught-{taught}", title, columns=columns, rows=rows, numbers=numbers)


def write_others(units: dict[str, Any]) -> None:
    """The tables of attacks and relearning."""
    columns: dict[str, tuple[str, str | None]] = {
        "shield": ("shield of en/image", None), **{k: (f"trained cell: {t}", f) for k, (t, f) in OUTCOMES.items()},
        "safe": ("safe text: harmful refused", TRIPLE),
    }  # fmt: skip
    write_result("organism-attacks", "The shield of en/image under attack", columns=columns, rows=units["attacks"])
    columns = {
        "rounds": ("model", None), "as_it_is": ("not attacked", TRIPLE), "pruned": (f"{K} neurons found again and pruned", TRIPLE),
        "random": (f"{K} random neurons pruned", TRIPLE), "utility": ("benign answered right after pruning", TRIPLE),
    }  # fmt: skip
    title = "Refusal of harmful requests in the safe cells when neurons are frozen and the other MLP weights learn safety again"
    write_result("organism-relearning", title, columns=columns, rows=units["rest"])


def write_choices(units: dict[str, Any]) -> None:
    """The table of --dev."""
    columns: dict[str, tuple[str, str | None]] = {
        "score": ("score", None), "cell": ("selected in", None), "layers": ("layers", None), "k": ("k", "{:d}"),
        "chosen": ("chosen", "{:+.3f}"), "same_layers": ("random, same layers", "{:+.3f}"), "any_layer": ("random, any layer", "{:+.3f}"),
    }  # fmt: skip
    title = "The organism, en/image trained: selectivity of the 25 untrained cells, by the choice of neurons"
    numbers: dict[str, tuple[Any, str | None]] = {"requests": (16, None), "seeds": (2, None)}
    write_result("organism-choices", title, columns=columns, rows=list(units.values()), numbers=numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="compare choices on the confirm split")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--raw", type=Path, default=Path("shield-organism.jsonl"), help="finished units, one a line")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.dev:
        write_choices(
            in_processes(measure, [f"dev | {i}" for i in range(len(CHOICES))], workers=args.workers, raw=args.raw)
        )
        return
    some = set(verified_neurons(Path())) < set(chosen_neurons())
    names = [name for name in CONDITIONS if name != VERIFIED or some]
    units = [f"train | {taught} | {name} | {seed}" for taught in TAUGHT for name in names for seed in range(SEEDS)]
    units += [f"train | {taught} | {BASE} | 0" for taught in TAUGHT]
    found = in_processes(measure, ["rest", "attacks", *units], workers=args.workers, raw=args.raw)
    for taught in TAUGHT:
        write_taught(found, taught, names)
    write_others(found)


if __name__ == "__main__":
    main()
