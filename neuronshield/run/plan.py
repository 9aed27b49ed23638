"""The defaults of the main job: sizes, cells and training settings for a model and its prompts, and how prompts are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import InputError
from ..data.prompts import MODALITIES, SPLITS, Cell, PromptSet
from ..data.splits import check_marked
from ..data.tags import language_tag
from ..model.model import Model
from ..shield.training import TrainingConfig

__all__ = ["Plan", "held_out", "plan_for", "read_prompts"]


#: Matched pairs a cell and split of the organism's own prompts. Those of "test" that are left are confirmed on as well, so that of 48
#: requests one third chooses members and 32 test them: the claim of utility takes 29.
ORGANISM_PAIRS = 32


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
        random_masks: masks of random neurons that are trained as controls.
        max_new_tokens: tokens an answer.
        draws: control sets of each kind in `verify`.
    """

    size: dict[str, Any]
    train_cells: tuple[Cell, ...] | None = None
    taught: tuple[Cell, ...] = ()
    training: TrainingConfig
    random_masks: int
    max_new_tokens: int
    draws: int


def read_prompts(model: str | Model, prompts: str | os.PathLike[str] | PromptSet | None, *, seed: int) -> PromptSet:
    """The prompts of the job, with splits.

    >>> len(read_prompts("mine", prompts, seed=0).where(split="train")) > 0
    True

    Args:
        model: its name, or the model; the organism has prompts of its own.
        prompts: a JSONL or Parquet file, or a set; None for the organism's own.
        seed: of the splits.

    Raises:
        InputError: no prompts for a model that has none of its own, a bad file, rows without a split beside rows with one, or a
            split without one of the labels.
    """
    read = _read_prompts(model, prompts, seed)
    read.require_both_labels("prompts")
    check_marked(read)
    if not any(p.split for p in read):
        read = read.with_splits(seed=seed, fractions=FRACTIONS)
    for split in SPLITS:
        if {p.label for p in read.where(split=split)} != {"harmful", "benign"}:
            raise InputError(
                f"prompts: split {split!r} needs harmful and benign prompts; give at least 8 of each in all"
            )
    return read


def _read_prompts(model: str | Model, prompts: str | os.PathLike[str] | PromptSet | None, seed: int) -> PromptSet:
    """The prompts as they were given; the organism's own where there are none."""
    if isinstance(prompts, PromptSet):
        return prompts
    if prompts is not None:
        name = os.fspath(prompts)
        return (PromptSet.from_parquet if name.lower().endswith(".parquet") else PromptSet.from_jsonl)(name)
    if model != "organism" and getattr(model, "id", None) != "organism":
        raise InputError("--prompts is needed for this model; only the organism has prompts of its own")
    from ..organism import records

    rows = records(max_pairs=ORGANISM_PAIRS, seed=seed)
    used = {row["pair_id"] for row in rows}
    more = [{**row, "split": "confirm"} for row in records(splits=["test"], seed=seed) if row["pair_id"] not in used]
    return PromptSet.from_records([*rows, *more])


def held_out(prompts: PromptSet, names: Sequence[str]) -> list[Cell]:
    """The cells that are kept from training, in the order of the prompts.

    >>> held_out(prompts, ["sw"])
    [Cell(language='sw', modality='text')]

    Args:
        prompts: the prompts of the job.
        names: languages, modalities, or cells such as "sw/text".

    Raises:
        InputError: a name that no cell has.
    """
    if isinstance(names, str):
        raise InputError(f"hold_out={names!r}: must be a list of names, as in hold_out=[{names!r}]")
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
                f"hold out {name!r}: the prompts have no such cell; there are {', '.join(map(str, cells))}"
            )
        found |= held
    return [c for c in cells if c in found]


def plan_for(model: Model, prompts: PromptSet, *, hold_out: Sequence[str] = ()) -> Plan:
    """The settings for a model and its prompts.

    >>> plan = plan_for(model, prompts)
    >>> plan.size, plan.draws, plan.training.steps
    ({'k': 21}, 200, 48)

    The set is 0.03 % of the parameters, as in Precise Shield; where that is fewer than 16 neurons, 64 neurons (at most a
    quarter of them all). `verify` draws 200 control sets of each kind, 50 for models of 20 million parameters and more.

    Args:
        model: its size decides.
        prompts: if they are the organism's, its two blind cells are taught and settings that suit it are used.
        hold_out: languages, modalities or cells that are not trained, so that "does safety transfer to them?" is asked.

    Raises:
        InputError: as `held_out`, or no cell is left to train.
    """
    plan = _plan(model, prompts)
    held = held_out(prompts, hold_out)
    if not held:
        return plan
    kept = tuple(c for c in plan.train_cells or prompts.cells() if c not in held)
    if not kept:
        raise InputError(f"hold out {', '.join(hold_out)}: no cell is left to train")
    return replace(plan, train_cells=kept, taught=tuple(c for c in plan.taught if c not in held))


def _plan(model: Model, prompts: PromptSet) -> Plan:
    affordable = int(3e-4 * model.n_params / model.params_per_neuron)
    few = {"k": min(64, model.n_layers * model.d_mlp // 4)}
    size: dict[str, Any] = {"param_fraction": 3e-4} if affordable >= 16 else few
    draws = 200 if model.n_params < 20e6 else 50
    if all(p.source == "organism" for p in prompts):
        from ..organism import HIGH_RESOURCE

        taught = (Cell("en", "image"), Cell("sw", "text"))
        safe = tuple(Cell(language, "text") for language in HIGH_RESOURCE)
        training = TrainingConfig(steps=40, lr=2e-2, batch_size=32, retention=4.0, snapshots=(10, 20))
        return Plan(
            size=size, train_cells=(*taught, *safe), taught=taught, training=training, random_masks=RANDOM_MASKS,
            max_new_tokens=20, draws=draws,
        )  # fmt: skip
    training = TrainingConfig(steps=48, lr=3e-3, batch_size=8, retention=16.0, snapshots=(12, 24))
    return Plan(size=size, training=training, random_masks=RANDOM_MASKS, max_new_tokens=24, draws=draws)
