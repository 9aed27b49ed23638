"""Trained baselines of the masked update: the same data, steps and loss, without the chosen neurons.

    plain_lora     an ordinary LoRA on the MLPs with the same number of trained numbers: does the mask matter?
    full_update    every MLP weight of the language backbone: what does unrestricted training reach, and what does it cost?

A third baseline, a mask of random neurons, is `masked_update` with `random_like(neurons, model, seed=...)`. Baselines without
training are in `neuronshield.shield.edits`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from torch import Tensor, nn

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..model.experts import owners
from ..model.families import PARTS
from ..model.model import Model
from .adapter import attach, places, shared_copy, with_module
from .training import TrainingConfig, TrainingOptions, fit, training_config
from .update import Update, about_run, finished, taught, train_adapter

__all__ = ["full_update", "plain_lora"]


def plain_lora(
    model: Model,
    budget: int,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> Update:
    """An update by an ordinary LoRA on the MLPs with about `budget` trained numbers.

    >>> update = ns.plain_lora(model, 1000, prompts, steps=1, progress=False)
    >>> update.trained            # 9 projections x rank 2 x (20 + 29)
    882

    The rank is the largest that fits on all MLP projections. If rank 1 is above the budget, as many evenly spaced projections
    as fit get rank 1, and at least one of them, with a warning if that is above the budget.

    Args:
        model: the model; it is not changed.
        budget: trained numbers, normally `masked_update(...).trained`.
        prompts: those of split "train" are used, all of them if none is so marked.
        refusals: refusal prefixes; the model's own without them (see `masked_update`).
        compliances: compliance prefixes, the same.
        config: training settings; the defaults of `TrainingConfig` without them.
        **changes: fields of `TrainingConfig` for this call; `objective` can be "supervised" only.

    Raises:
        InputError: swapped arguments, a budget above that of the full rank, packed weights, only one label, or an unknown
            keyword.
    """
    call = "plain_lora(model, budget, prompts)"
    settings = _settings("plain_lora", config, changes)
    require(model, Model, call=call, name="model")
    require(budget, int, call=call, name="budget", hint="the number of trained numbers, such as update.trained")
    at_least(1, "plain_lora", budget=budget)
    require(prompts, PromptSet, call=call, name="prompts")
    model.needs_weights("plain_lora")
    where = places(model, None, PARTS)
    cost = model.d_model + model.d_mlp
    rank = budget // (cost * len(where))
    whole = min(model.d_model, model.d_mlp)
    if rank > whole:
        raise InputError(
            f"plain_lora: budget={budget} is above {whole * cost * len(where)}, at which the LoRA has the full rank {whole} "
            f"of every MLP projection; use at most that, or full_update"
        )
    if rank < 1:
        count = max(1, round(budget / cost))
        where = [where[i] for i in np.unique(np.linspace(0, len(where) - 1, count).round().astype(int))]
        rank = 1
    adapter = attach(model, where, rank, hot=False, seed=settings.seed)
    if budget < cost:
        warnings.warn(
            f"plain_lora: budget={budget} is below one projection of rank 1; {adapter.trained} numbers are trained",
            stacklevel=2,
        )
    return train_adapter(
        adapter, None, prompts, config=settings, refusals=refusals, compliances=compliances,
        form=f"plain LoRA of rank {rank} on {len(where)} projections", facts={"train": "plain LoRA"},
    )  # fmt: skip


def full_update(
    model: Model,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> Update:
    """An update of every MLP weight of the language backbone, without a mask.

    >>> update = ns.full_update(model, prompts, steps=1, lr=1e-4, progress=False)
    >>> update.trained            # 3 layers x 3 projections x 20 x 29
    5220

    Args:
        model: the model; it is not changed.
        prompts: those of split "train" are used, all of them if none is so marked.
        refusals: refusal prefixes; the model's own without them (see `masked_update`).
        compliances: compliance prefixes, the same.
        config: training settings. The default learning rate suits k neurons; use a smaller one here (1e-4).
        **changes: fields of `TrainingConfig` for this call; `objective` can be "supervised" only.

    Raises:
        InputError: swapped arguments, packed weights, only one label, or an unknown keyword.
    """
    call = "full_update(model, prompts)"
    settings = _settings("full_update", config, changes)
    require(model, Model, call=call, name="model")
    require(prompts, PromptSet, call=call, name="prompts")
    model.needs_weights("full_update")
    rows = prompts.for_step("train")
    data = taught(model, rows, config=settings, refusals=refusals, compliances=compliances)
    about = about_run(model, rows, config=settings, facts={"train": "full"})
    module = shared_copy(model.module)
    held = [owner for place in places(model, None, PARTS) for owner in owners(module.get_submodule(place.name))]
    parameters = []
    for part, name in dict.fromkeys(held):
        setattr(part, name, nn.Parameter(getattr(part, name).detach().clone()))
        parameters.append(getattr(part, name))
    run = fit(model, module, parameters=parameters, data=data, config=settings, about=about)
    for p in parameters:
        p.requires_grad_(False)
    trained = sum(p.numel() for p in parameters)
    names = {id(p): name for name, p in module.named_parameters(remove_duplicate=False)}

    def at(values: Sequence[Tensor]) -> Model:
        other = shared_copy(module)
        for p, value in zip(parameters, values, strict=True):
            place, _, name = names[id(p)].rpartition(".")
            setattr(other.get_submodule(place), name, nn.Parameter(value.to(p.device), requires_grad=False))
        return with_module(model, other)

    return finished(
        with_module(model, module), run, at=at, trained=trained, about=about, form="full fine-tune of the MLPs"
    )


def _settings(call: str, config: TrainingConfig | None, changes: TrainingOptions) -> TrainingConfig:
    return training_config(
        call, config, changes, objectives=("supervised",), also=("refusals", "compliances", "config")
    )
