"""The sections of results.json: what the steps of the main job found, as frozen dataclasses.

`neuronshield.core.results.to_json` writes them and `from_json` reads them back, so the fields below are the schema. Rates are
[value, low, high] with a 95 % interval; null stands for what is undefined. Conditions are named in
`neuronshield.run.conditions`, cells are "language/modality". The section of `prove` is `Proof.to_dict()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..check.cells import METRICS, CellResult
from ..check.curves import Matched, Point
from ..check.evaluation import Evaluation
from ..core.errors import InputError
from ..core.results import from_json
from ..core.statistics import Interval
from ..data.prompts import Cell
from ..prove.verdict import Proof
from ..shield.objective import Taught
from .conditions import BASE, LORA, RANDOM_MASKS, SHIELD, over

__all__ = [
    "AttackSection", "CheckSection", "Count", "FindSection", "Means", "ModelFacts", "OverlapTable", "PromptSummary", "Sections",
    "ShieldSection", "ShownAnswer", "TopNeuron", "Trained", "means", "sections_of",
]  # fmt: skip


#: One row and one column for each cell; NaN where undefined.
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Count:
    """How many prompts a cell has in a split with a label."""

    cell: str
    split: str
    label: str
    n: int


@dataclass(frozen=True)
class PromptSummary:
    """The prompts of the job.

    Attributes:
        n: how many.
        data: their hash.
        cells: in order of first appearance.
        counts: by cell, split and label.
    """

    n: int
    data: str
    cells: tuple[str, ...]
    counts: tuple[Count, ...]


@dataclass(frozen=True)
class TopNeuron:
    """One of the best neurons of a cell; ranks count from 1."""

    cell: str
    rank: int
    layer: int
    index: int
    score: float


@dataclass(frozen=True)
class FindSection:
    """Step find: the candidates, and what cells share.

    Attributes:
        method: the score.
        size: the size asked for, as `Scores.top` reads it.
        n_neurons: candidates.
        param_fraction: their share of the parameters.
        anchor: the cell whose best neurons are the candidates.
        refusing_cells: cells in which the model refuses already.
        per_layer: how many of each cell's best neurons every layer has.
        top: the ten best neurons of every cell.
        overlap: `Overlap.to_dict()`; None with one cell.
    """

    method: str
    size: dict[str, Any]
    n_neurons: int
    param_fraction: float
    anchor: str
    refusing_cells: tuple[str, ...]
    per_layer: dict[str, tuple[int, ...]]
    top: tuple[TopNeuron, ...]
    overlap: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trained:
    """One trained or edited condition.

    Attributes:
        form: what changes, in words.
        trained: how many numbers could change.
        param_fraction: their share of the parameters.
        losses: of every step; empty without training.
        stopped: why training ended early; None if it did not.
    """

    form: str
    trained: int
    param_fraction: float
    losses: tuple[float, ...]
    stopped: str | None


@dataclass(frozen=True)
class ShieldSection:
    """Step shield: what was trained on what.

    Attributes:
        neurons: size of the set.
        proven: the set has passed `verify`; if not, the candidates were trained.
        train_cells: cells of the training prompts.
        taught: the blind cells that the shield is meant for; empty where every cell is trained.
        prompts: what the steps did with how many training prompts.
        steps: optimiser steps.
        lr: learning rate of the first step.
        retention: weight of the KL term; None where no prompt was held by it.
        conditions: every condition that changes the model, by name.
    """

    neurons: int
    proven: bool
    train_cells: tuple[str, ...]
    taught: tuple[str, ...]
    prompts: Taught
    steps: int
    lr: float
    retention: float | None
    conditions: dict[str, Trained]


@dataclass(frozen=True)
class Means:
    """Means of the rates over the cells of a group that have them; the intervals are over requests.

    Attributes:
        refusal: harmful prompts refused.
        compliance: harmful prompts complied with.
        attack_success: harmful prompts answered as asked.
        over_refusal: benign prompts refused.
        benign_compliance: benign prompts complied with.
        selectivity: refusal - over_refusal.
        utility: benign prompts answered right.
        incoherent: prompts whose answer is empty, blank or degenerate.
        n_cells: how many cells each mean is over.
    """

    refusal: Interval
    compliance: Interval
    attack_success: Interval
    over_refusal: Interval
    benign_compliance: Interval
    selectivity: Interval
    utility: Interval
    incoherent: Interval
    n_cells: dict[str, int]


@dataclass(frozen=True)
class ShownAnswer:
    """One prompt with its answers before and after the shield."""

    cell: str
    label: str
    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class CheckSection:
    """Step check: every condition on the test prompts.

    Attributes:
        cells: by condition and cell.
        means: by condition and group of cells ("all", "trained", "untrained").
        compared_on: the group that conditions are compared on: "untrained" if there is one, else "all".
        curves: refusal of harmful and benign prompts after more and more steps, by condition that was trained.
        matched: harmful refused at matched benign refusal, the shield beside "over random masks" and "over plain LoRA".
        matched_cells: the same in every cell of the group.
        beats_random_mask: at matched benign refusal the difference to the random masks, of which there are at least two, has an
            interval above zero.
        gains_in_selectivity: selectivity of the shield at the end of training minus that of a baseline: "over no update", "over random
            masks", "over plain LoRA". Conditions that refuse more differ in it too.
        best_random_mask: the random mask of highest selectivity.
        examples: a few answers, spread over the cells.
    """

    cells: dict[str, dict[str, CellResult]]
    means: dict[str, dict[str, Means]]
    compared_on: str
    curves: dict[str, tuple[Point, ...]]
    matched: dict[str, Matched]
    matched_cells: dict[str, dict[str, Matched]]
    beats_random_mask: bool
    gains_in_selectivity: dict[str, Interval]
    best_random_mask: str
    examples: tuple[ShownAnswer, ...]


@dataclass(frozen=True)
class AttackSection:
    """The shield after white-box attacks, in the cells where it raised refusal.

    Attributes:
        k: neurons pruned.
        cells: where refusal rose by at least 0.1.
        means: over these cells, by attack; empty without such a cell.
    """

    k: int
    cells: tuple[str, ...]
    means: dict[str, Means]


@dataclass(frozen=True)
class OverlapTable:
    """`Overlap.to_dict()`: a row and a column for each cell in every measure."""

    cells: tuple[str, ...]
    method: str
    jaccard: Matrix
    coefficient: Matrix
    benign_null: Matrix
    permutation_null: Matrix
    p: Matrix
    reliability: Matrix
    shared: Matrix
    shared_low: Matrix
    shared_high: Matrix
    pairs: Matrix
    along: dict[str, OverlapTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.cells)
        for name in (f.name for f in fields(self) if f.type == "Matrix"):
            if [len(row) for row in getattr(self, name)] != [n] * n:
                raise InputError(f"overlap: {name!r} has not {n} rows and columns")


@dataclass(frozen=True)
class ModelFacts:
    """What is said of the model.

    Attributes:
        model: its id.
        fingerprint: of its weights.
        dtype: of its weights.
        n_layers: layers of the language backbone.
        d_mlp: neurons a layer.
        n_params: parameters.
    """

    model: str
    fingerprint: str
    dtype: str
    n_layers: int
    d_mlp: int
    n_params: int


@dataclass(frozen=True)
class Sections:
    """results.json, read back; a step that was not run is None.

    Attributes:
        model: the model.
        prompts: the prompts of the job.
        seed: of every draw.
        versions: of the packages.
        seconds: that each step took.
        stale: steps whose inputs have changed since they were run.
        find: step find.
        prove: step prove.
        shield: step shield.
        check: step check.
        attack: the attacks of step check.
    """

    model: ModelFacts
    prompts: PromptSummary
    seed: int
    versions: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    find: FindSection | None = None
    prove: Proof | None = None
    shield: ShieldSection | None = None
    check: CheckSection | None = None
    attack: AttackSection | None = None


#: Parts that every results.json has.
HEAD = ("model", "prompts", "seed", "versions")
#: The type of every part that is read as it is.
PARTS: dict[str, Any] = {
    "prompts": PromptSummary, "seed": int, "versions": dict[str, str], "seconds": dict[str, float], "stale": tuple[str, ...],
    "find": FindSection, "shield": ShieldSection, "check": CheckSection, "attack": AttackSection,
}  # fmt: skip


def _check_names(results: Mapping[str, Any]) -> None:
    """Raise unless step check has the conditions and the cells that are compared."""
    check, cells = results["check"], set(results["prompts"]["cells"])
    group, best = check["compared_on"], check["best_random_mask"]
    wanted: dict[str, tuple[Any, tuple[str, ...]]] = {
        "cells": (check["cells"], (BASE, SHIELD, LORA, best)),
        "means": (check["means"], tuple(check["cells"])),
        "curves": (check["curves"], (SHIELD,)),
        "matched": (check["matched"], (over(RANDOM_MASKS), over(LORA))),
        "conditions of shield": (results["shield"]["conditions"], (SHIELD,)),
        **{f"means of {name}": (found, (group,)) for name, found in check["means"].items()},
        **{f"cells of {name}": (found, tuple(check["cells"].get(BASE, ()))) for name, found in check["cells"].items()},
    }
    for name, (found, keys) in wanted.items():
        if lacks := [key for key in keys if key not in found]:
            raise InputError(f"{name}: {lacks[0]!r:.60} is missing")
    if odd := sorted({cell for found in check["cells"].values() for cell in found} - cells):
        raise InputError(f"cells: {odd[0]!r:.60} is no cell of the prompts")


def sections_of(results: Mapping[str, Any]) -> Sections:
    """What results.json holds, every part with the fields and the types that it must have; no check of a shield that is gone.

    >>> sections_of({"model": {"model": "m"}})
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: results.json: model: ModelFacts: field 'fingerprint' is missing; run the step again

    Args:
        results: what results.json holds.

    Raises:
        InputError: a missing, unknown or ill-typed field.
    """
    part = "model"
    found: dict[str, Any] = {}
    try:
        about = from_json(dict[str, Any], results.get("model"))
        known = {f.name: about[f.name] for f in fields(ModelFacts) if f.name in about}
        found["model"] = from_json(ModelFacts, known)
        for part, kind in PARTS.items():
            if part in results or part in HEAD:
                found[part] = from_json(kind, results.get(part))
        part = "prove"
        if part in results:
            found[part] = Proof.from_dict(results[part])
        part = "find"
        if results.get(part, {}).get("overlap") is not None:
            from_json(OverlapTable, results[part]["overlap"])
        part = "check"
        if "shield" not in results:  # it is being trained again: what was checked is of another shield
            found = {name: section for name, section in found.items() if name not in (part, "attack")}
        elif part in results:
            if "attack" not in results:
                raise InputError("section 'attack' is missing")
            _check_names(results)
    except InputError as error:
        raise InputError(f"results.json: {part}: {error}; run the step again") from None
    return Sections(**found)


def means(evaluation: Evaluation, cells: Iterable[Cell]) -> Means:
    """Every rate's mean over some cells.

    Args:
        evaluation: graded answers.
        cells: which cells; those without a rate are left out of its mean.
    """
    group = list(cells)
    rates = {metric: evaluation.mean(metric, group) for metric in METRICS}
    return Means(**rates, n_cells={metric: len(evaluation.cells_with(metric, group)) for metric in METRICS})
