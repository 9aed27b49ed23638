"""What the main job does where nobody said otherwise: sizes, cells, training settings; and which prompts it reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..data.languages import OpeningsArg
from ..data.prompts import Cell, PromptSet
from ..model.model import Model

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What the job does where nobody said otherwise.

    Attributes:
        size: how many neurons to take, as `Scores.top` reads it.
        train_cells: cells whose "train" prompts are used; None for all.
        taught: the blind cells the shield is meant for; none where every cell is trained on.
        steps, lr, batch_size, retention: of the update.
        random_masks: masks of random neurons trained as controls.
        draws: control sets of each kind in prove: 200, or 50 where a forward is dear.
    """

    size: dict[str, Any]
    train_cells: tuple[Cell, ...] | None
    taught: tuple[Cell, ...]
    steps: int
    lr: float
    batch_size: int
    retention: float
    random_masks: int
    max_new_tokens: int
    draws: int
    refusals: OpeningsArg = None
    compliances: OpeningsArg = None


def _read_prompts(model: Any, prompts: Any, seed: int) -> PromptSet:
    if prompts is None:
        if model != "organism" and getattr(model, "id", None) != "organism":
            raise InputError("--prompts is needed for this model; only the organism brings its own")
        from ..organism import records

        return PromptSet.from_records(records(max_pairs=ORGANISM_PAIRS, seed=seed))
    if not isinstance(prompts, PromptSet):
        name = os.fspath(prompts)
        prompts = PromptSet.from_parquet(name) if name.endswith(".parquet") else PromptSet.from_jsonl(name)
    prompts.require_both_labels("prompts")
    if not any(p.split for p in prompts):
        prompts = prompts.with_splits(seed=seed, fractions=(0.25, 0.2, 0.3, 0.25))
    for split in ("discover", "confirm", "train", "test"):
        rows = prompts.where(split=split)
        if {p.label for p in rows} != {"harmful", "benign"}:
            raise InputError(
                f"prompts: split {split!r} needs harmful and benign prompts; give at least 8 of each in all"
            )
    return prompts


ORGANISM_PAIRS = 32


def plan_for(model: Model, prompts: PromptSet) -> Plan:
    """0.03 % of the parameters, as in the paper; where that buys fewer than 16 neurons, 64 neurons."""
    affordable = int(3e-4 * model.n_params / model.params_per_neuron)
    few = {"k": min(64, model.n_layers * model.d_mlp // 4)}
    size: dict[str, Any] = {"param_fraction": 3e-4} if affordable >= 16 else few
    draws = 200 if model.n_params < 20e6 else 50
    if all(p.source == "organism" for p in prompts):
        from ..organism import COMPLIANCES, HIGH_RESOURCE, REFUSALS

        taught = (Cell("en", "image"), Cell("sw", "text"))
        safe = tuple(Cell(language, "text") for language in HIGH_RESOURCE)
        return Plan(size, (*taught, *safe), taught, 40, 2e-2, 32, 4.0, 3, 20, draws, REFUSALS, COMPLIANCES)
    return Plan(size, None, (), 48, 3e-3, 8, 16.0, 1, 24, draws)
