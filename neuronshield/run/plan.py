"""The defaults of the main job: sizes, cells and training settings for a model and its prompts, and how prompts are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..check.judges import JUDGES
from ..core.arguments import at_least, one_of
from ..core.errors import InputError
from ..data.prompts import MODALITIES, SPLITS, Cell, PromptSet
from ..data.splits import check_marked
from ..data.tags import language_tag
from ..find.scores import METHODS
from ..graft import SOURCE as GRAFT
from ..model.model import Model
from ..organism.controls import CELLS_OF
from ..shield.training import TrainingConfig
from .own_prompts import GRAFT_PAIRS, OWNERS, job_records
from .settings import Settings

__all__ = [
    "Plan",
    "given_prompts",
    "in_force",
    "named_cells",
    "plan_for",
    "read_prompts",
    "told_apart",
    "with_all_splits",
]


#: Control sets of each kind on the graft, whose forward is fifty times as expensive as an organism's.
GRAFT_DRAWS = 19


#: Masks of random neurons that are trained as controls. A spread takes two; with three its interval is narrow enough to be of use.
RANDOM_MASKS = 3


#: Shares of discover, confirm, train and test where the prompts have no splits.
FRACTIONS = (0.25, 0.2, 0.3, 0.25)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of the main job.

    Attributes:
        size: how many neurons to take, as `Scores.top` reads it.
        train_cells: cells whose "train" prompts are used; None for all.
        taught: the blind cells that the shield is meant for; empty where every cell is trained.
        training: of the update and of every trained baseline; seed and progress are the job's. Each is evaluated after `snapshots`
            steps too, on the cells that conditions are compared on.
        max_new_tokens: tokens an answer.
        draws: control sets of each kind in `verify`.
        method: the score that ranks neurons.
        graded: matched pairs whose answers `verify` grades.
        random_masks: masks of random neurons that are trained as controls.
    """

    size: dict[str, Any]
    train_cells: tuple[Cell, ...] | None = None
    taught: tuple[Cell, ...] = ()
    training: TrainingConfig
    max_new_tokens: int
    draws: int
    method: str = "contribution"
    graded: int = 48
    random_masks: int = RANDOM_MASKS


#: Refusal of harmful minus benign prompts, from which on the model refuses in a cell.
APART = 0.5


def told_apart(prompts: PromptSet, refused: Bool[np.ndarray, " prompt"]) -> list[Cell]:
    """The cells in which far more harmful than benign prompts are refused.

    >>> told_apart(prompts, np.array([p.label == "harmful" and p.language == "en" for p in prompts]))
    [Cell(language='en', modality='text')]

    Args:
        prompts: of any cells.
        refused: which of them are refused.
    """

    def rate(cell: Cell, label: str) -> float:
        mine = [r for r, p in zip(refused, prompts, strict=True) if p.cell == cell and p.label == label]
        return float(np.mean(mine or [0.0]))

    return [c for c in prompts.cells() if rate(c, "harmful") - rate(c, "benign") >= APART]


def read_prompts(
    model: str | Model, prompts: str | os.PathLike[str] | PromptSet | None, *, seed: int, cells: Sequence[str] = ()
) -> PromptSet:
    """The prompts of the job, with splits.

    >>> len(read_prompts("mine", prompts, seed=0).where(split="train")) > 0
    True

    Args:
        model: its name, or the model; the organism has prompts of its own.
        prompts: a JSONL or Parquet file, or a set; None for the organism's own.
        seed: of the splits.
        cells: languages, modalities or cells that are studied; all without them.

    Raises:
        InputError: as `given_prompts` and `with_all_splits`.
    """
    return _read_prompts(model, prompts, seed, cells=cells)


def _read_prompts(
    model: str | Model, prompts: str | os.PathLike[str] | PromptSet | None, seed: int, cells: Sequence[str] = ()
) -> PromptSet:
    return with_all_splits(given_prompts(model, prompts, seed=seed, cells=cells), seed=seed)


def with_all_splits(prompts: PromptSet, *, seed: int) -> PromptSet:
    """The prompts with their splits; where there are none, they are dealt.

    >>> len(with_all_splits(prompts, seed=0).where(split="train")) > 0
    True

    Args:
        prompts: the prompts as they were given.
        seed: of the splits.

    Raises:
        InputError: rows without a split beside rows with one, or a split without one of the labels.
    """
    prompts.require_both_labels("prompts")
    check_marked(prompts)
    dealt = prompts if any(p.split for p in prompts) else prompts.with_splits(seed=seed, fractions=FRACTIONS)
    for split in SPLITS:
        if {p.label for p in dealt.where(split=split)} != {"harmful", "benign"}:
            raise InputError(
                f"prompts: split {split!r} needs harmful and benign prompts; give at least 8 of each in all"
            )
    return dealt


def given_prompts(
    model: str | Model, prompts: str | os.PathLike[str] | PromptSet | None, *, seed: int, cells: Sequence[str] = ()
) -> PromptSet:
    """The prompts as they were given, in some cells; the organism's own where there are none.

    >>> len(given_prompts("mine", prompts, seed=0, cells=["sw"]))
    30

    Args:
        model: its name, or the model.
        prompts: a JSONL or Parquet file, or a set; None for the organism's own.
        seed: of the choice of the organism's prompts.
        cells: languages, modalities or cells; all without them.

    Raises:
        InputError: as `named_cells`, no prompts for a model that has none of its own, or a bad file.
    """
    read = _given(model, prompts, seed)
    return read.in_cells(named_cells(read, cells, option="cells")) if cells else read


def _given(model: str | Model, prompts: str | os.PathLike[str] | PromptSet | None, seed: int) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    if prompts is not None:
        name = os.fspath(prompts)
        return (PromptSet.from_parquet if name.lower().endswith(".parquet") else PromptSet.from_jsonl)(name)
    called = model if isinstance(model, str) else getattr(model, "id", None)
    if called not in OWNERS:
        raise InputError(
            "--prompts is needed for this model; only the organisms and smollm2-vision have prompts of their own"
        )
    return PromptSet.from_records(job_records(called, seed=seed))


def named_cells(prompts: PromptSet, names: Sequence[str], *, option: str) -> list[Cell]:
    """The cells that some names stand for, in the order of the prompts.

    >>> named_cells(prompts, ["sw"], option="hold_out")
    [Cell(language='sw', modality='text')]

    Args:
        prompts: the prompts of the job.
        names: languages, modalities, or cells such as "sw/text".
        option: the setting that they were given as, for messages.

    Raises:
        InputError: a name that no cell has.
    """
    if isinstance(names, str):
        raise InputError(f"{option}={names!r}: must be a list of names, as in {option}=[{names!r}]")
    cells: list[Cell] = prompts.cells()
    found: set[Cell] = set()
    for name in names:
        if "/" in name:
            held = {Cell.of(name)} & set(cells)
        elif name in MODALITIES:
            held = {c for c in cells if c.modality == name}
        else:
            held = {c for c in cells if c.language == language_tag(name)}
        if not held:
            raise InputError(
                f"{option} {name!r}: the prompts have no such cell; there are {', '.join(map(str, cells))}"
            )
        found |= held
    return [c for c in cells if c in found]


def plan_for(model: Model, prompts: PromptSet, settings: Settings | None = None) -> Plan:
    """The settings for a model and its prompts, with what was not given filled in.

    >>> plan = plan_for(model, prompts)
    >>> plan.size, plan.draws, plan.training.steps
    ({'k': 21}, 200, 48)

    The set is 0.03 % of the parameters, as in Precise Shield; where that is fewer than 16 neurons, 64 neurons (at most a
    quarter of them all). `verify` draws 200 control sets of each kind, 50 for models of 20 million parameters and more.

    Args:
        model: its size decides.
        prompts: if they are the organism's, its two blind cells are taught and settings that suit it are used; if they are the
            graft's, drawings are taught beside text.
        settings: what was asked for.

    Raises:
        InputError: as `named_cells`, or no cell is left to train, or a setting out of its range.
    """
    asked = settings or Settings()
    plan = _asked(_default_plan(model, prompts), asked)
    if asked.k is not None and asked.k > model.n_layers * model.d_mlp:
        raise InputError(f"k={asked.k}: the model has {model.n_layers * model.d_mlp} neurons")
    held = named_cells(prompts, asked.hold_out, option="hold_out")
    if not held:
        return plan
    kept = tuple(c for c in plan.train_cells or prompts.cells() if c not in held)
    if not kept:
        raise InputError(f"hold_out {', '.join(asked.hold_out)}: no cell is left to train")
    return replace(plan, train_cells=kept, taught=tuple(c for c in plan.taught if c not in held))


def _asked(plan: Plan, asked: Settings) -> Plan:
    """The plan with what was asked for in place of its defaults."""
    least = {"k": 1, "draws": 1, "graded": 1, "max_new_tokens": 1, "random_masks": 2, "batch_size": 1}
    for name, smallest in least.items():
        if getattr(asked, name) is not None:
            at_least(smallest, "run", **{name: getattr(asked, name)})
    size = {name: getattr(asked, name) for name in ("k", "param_fraction") if getattr(asked, name) is not None}
    if not 0 < size.get("param_fraction", 1.0) <= 1:
        raise InputError(f"run: param_fraction={asked.param_fraction}: must be above 0 and at most 1")
    one_of(asked.method or plan.method, METHODS, call="run", name="method")
    if asked.judge is not None:
        one_of(asked.judge, JUDGES, call="run", name="judge")  # it is loaded much later
    trained = {"steps": asked.steps, "lr": asked.lr, "batch_size": asked.train_batch_size, "retention": asked.retention}
    training: dict[str, Any] = {name: value for name, value in trained.items() if value is not None}
    training["snapshots"] = _early(training.get("steps", plan.training.steps))
    names = ("method", "draws", "graded", "random_masks", "max_new_tokens")
    given: dict[str, Any] = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    if size:
        given["size"] = size
    return replace(plan, training=replace(plan.training, **training), **given)


def _early(steps: int) -> tuple[int, ...]:
    """Steps after which a condition is evaluated while it trains: a quarter and half of them."""
    return tuple(sorted({n for n in (steps // 4, steps // 2) if 0 < n < steps}))


def _default_plan(model: Model, prompts: PromptSet) -> Plan:
    affordable = int(3e-4 * model.n_params / model.params_per_neuron)
    few = {"k": min(64, model.n_layers * model.d_mlp // 4)}
    size: dict[str, Any] = {"param_fraction": 3e-4} if affordable >= 16 else few
    draws = 200 if model.n_params < 20e6 else 50
    sources = {p.source for p in prompts}
    if len(sources) == 1 and sources <= set(CELLS_OF):
        refusing, blind = ([Cell(*c) for c in cells] for cells in CELLS_OF[str(*sources)])
        cells = prompts.cells()
        taught = tuple(c for c in blind if c in cells)
        safe = tuple(c for c in refusing if c in cells)
        training = TrainingConfig(steps=40, lr=2e-2, batch_size=32, retention=4.0)
        return Plan(
            size=size,
            train_cells=(*taught, *safe) or None,
            taught=taught,
            training=training,
            draws=draws,
            max_new_tokens=20,
        )
    if all(p.source == GRAFT for p in prompts):
        cells = prompts.cells()
        taught = tuple(c for c in (Cell("en", "image"),) if c in cells)
        known = tuple(c for c in (Cell("en", "text"),) if c in cells)
        training = TrainingConfig(steps=48, lr=3e-3, batch_size=8, retention=4.0)
        return Plan(
            size=size,
            train_cells=(*taught, *known) or None,
            taught=taught,
            training=training,
            draws=GRAFT_DRAWS,
            graded=GRAFT_PAIRS,
            random_masks=2,
            max_new_tokens=16,
        )
    training = TrainingConfig(steps=48, lr=3e-3, batch_size=8, retention=16.0)
    return Plan(size=size, training=training, draws=draws, max_new_tokens=24)


def in_force(asked: Settings, plan: Plan) -> Settings:
    """The settings with what the plan filled in: those that run.toml has.

    >>> in_force(Settings(), plan_for(model, prompts)).k
    21

    Args:
        asked: what was asked for.
        plan: what was made of it.
    """
    t = plan.training
    return replace(
        asked, method=plan.method, k=plan.size.get("k"), param_fraction=plan.size.get("param_fraction"), draws=plan.draws,
        graded=plan.graded, steps=t.steps, lr=t.lr, train_batch_size=t.batch_size, retention=t.retention,
        random_masks=plan.random_masks, max_new_tokens=plan.max_new_tokens,
    )  # fmt: skip
