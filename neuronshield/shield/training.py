"""How every update is trained: one settings object, and one loop.

`TrainingConfig` holds what all trainers share. Every trainer takes it as `config=`, or takes the same fields as keywords,
which change fields of the config for that call.

A step is one batch (cut into `accumulate` parts, which changes memory and nothing else). The steps are taken by
`neuronshield.shield.descent`.

A checkpoint is one safetensors file (`neuronshield.shield.checkpoints`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Real
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from ..core.arguments import at_least, one_of, require, unknown_keywords
from ..core.errors import InputError
from ..model.answers import Example
from ..model.model import Model
from ..model.running import recording, running
from .descent import Run, descend
from .objective import deal, step_loss, taught_in

__all__ = ["ADAMW", "OBJECTIVES", "TrainingConfig", "TrainingOptions", "checkpointing", "fit", "training_config"]


#: The default optimiser. Any other is called the same way: `optimiser(parameters, lr=lr)`.
ADAMW = partial(torch.optim.AdamW, weight_decay=0.0)


OBJECTIVES = ("supervised", "preference")


#: Other names of the objectives.
MEANT = {"dpo": "preference", "sft": "supervised", "cross-entropy": "supervised"}


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingConfig:
    """How to train; every trainer takes the same settings and has the same defaults.

    >>> config = TrainingConfig(steps=40, lr=2e-2)
    >>> config.steps, config.batch_size, config.objective
    (40, 16, 'supervised')

    Args:
        steps: optimiser steps, at least 1.
        lr: learning rate of the first step; it falls to a tenth by a cosine.
        batch_size: prompts a step, at least 2: half harmful, half benign, cells dealt evenly.
        retention: weight of the KL term that keeps benign answers as they were. A larger weight gives fewer refused benign
            requests, and fewer refused harmful ones.
        objective: "supervised" (cross-entropy and KL), or "preference" (DPO, through TRL; `masked_update` and `masked_lora`
            only).
        texts: generic sentences of any language, every token of which is retained too.
        optimiser: called as `optimiser(parameters, lr=lr)`. Weight decay acts on the trained factor, that is on the change of
            the weights.
        accumulate: parts that a batch is cut into; memory falls, the update does not change.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        checkpoint: a file that is written after every step. If it exists, the run continues from it.
        snapshots: steps after which the trained numbers are kept, so that `Update.at` has the model as it was then.
        seed: of the order of the prompts and of the start of random factors.
        progress: show a progress bar.

    Raises:
        InputError: a value outside its range.
    """

    steps: int = 60
    lr: float = 3e-3
    batch_size: int = 16
    retention: float = 4.0
    objective: str = "supervised"
    texts: Sequence[str] = ()
    optimiser: Callable[..., torch.optim.Optimizer] = ADAMW
    accumulate: int = 1
    gradient_checkpointing: bool = False
    checkpoint: str | os.PathLike[str] | None = None
    snapshots: Sequence[int] = ()
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        call = "TrainingConfig"
        at_least(1, call, steps=self.steps, accumulate=self.accumulate)
        at_least(2, call, batch_size=self.batch_size)
        at_least(0, call, seed=self.seed)
        for name in ("lr", "retention"):
            value, least = getattr(self, name), "above" if name == "lr" else "of at least"
            number = float(value) if isinstance(value, Real) else float("nan")
            if not np.isfinite(number) or number < 0 or (name == "lr" and number == 0):
                raise InputError(f"{call}: {name}={value!r}: must be a finite number {least} zero")
        if meant := MEANT.get(str(self.objective).lower()):
            names = ", ".join(OBJECTIVES)
            raise InputError(
                f"{call}: objective={self.objective!r} is unknown; use one of {names}; did you mean {meant!r}?"
            )
        one_of(self.objective, OBJECTIVES, call=call, name="objective")
        if not callable(self.optimiser):
            hint = "pass a class of torch.optim, such as torch.optim.Adam"
            raise InputError(
                f"{call}: optimiser={self.optimiser!r:.60}: must be called as optimiser(parameters, lr=lr); {hint}"
            )
        if isinstance(self.texts, str):
            raise InputError(f"{call}: texts must be a list of sentences, got str {self.texts[:40]!r}")
        self._check_snapshots(call)

    def _check_snapshots(self, call: str) -> None:
        require(self.snapshots, Iterable, call=call, name="snapshots", hint="steps, such as [10, 20]")
        for step in self.snapshots:
            at_least(1, call, snapshots=step)
            if step > self.steps:
                raise InputError(f"{call}: snapshots={list(self.snapshots)!r:.60}: there are {self.steps} steps")

    def __repr__(self) -> str:
        """The fields that differ from the defaults."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r:.40}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        text = f"TrainingConfig({', '.join(changed)})"
        return text if len(text) <= 120 else f"{text[:115]}...)"


class TrainingOptions(TypedDict, total=False):
    """The fields of `TrainingConfig`, as the keywords of every trainer."""

    steps: int
    lr: float
    batch_size: int
    retention: float
    objective: str
    texts: Sequence[str]
    optimiser: Callable[..., torch.optim.Optimizer]
    accumulate: int
    gradient_checkpointing: bool
    checkpoint: str | os.PathLike[str] | None
    snapshots: Sequence[int]
    seed: int
    progress: bool


def training_config(
    call: str,
    config: TrainingConfig | None,
    changes: Mapping[str, Any],
    *,
    objectives: Collection[str] = OBJECTIVES,
    also: Sequence[str] = (),
) -> TrainingConfig:
    """The settings of one call: `config` (the defaults without one), with the fields that the keywords change.

    >>> training_config("masked_update", TrainingConfig(lr=1e-2), {"steps": 5}).lr
    0.01
    >>> training_config("masked_update", None, {"stps": 5})
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: masked_update: stps= is unknown; did you mean 'steps'? use one of steps, lr, ...

    Args:
        call: the trainer, for messages.
        config: settings given as an object.
        changes: settings given as keywords.
        objectives: those that the trainer has.
        also: the trainer's own keywords, which the message about an unknown one lists too.

    Raises:
        InputError: an unknown keyword, a value outside its range, or an objective that this trainer does not have.
    """
    known = [f.name for f in fields(TrainingConfig)]
    if unknown := [name for name in changes if name not in known]:
        unknown_keywords(unknown, [*known, *also], call)
    if config is not None:
        require(config, TrainingConfig, call=call, name="config")
    settings = replace(config or TrainingConfig(), **changes)
    one_of(settings.objective, objectives, call=call, name="objective")
    return settings


def fit(
    model: Model,
    trained: nn.Module,
    *,
    parameters: Sequence[nn.Parameter],
    data: Sequence[Example],
    config: TrainingConfig,
    about: Mapping[str, Any],
    held: AbstractContextManager[Any] | None = None,
) -> Run:
    """Train `parameters` of `trained` on `data`; the losses.

    Args:
        model: the untouched model, which encodes the prompts and gives the answers to retain.
        trained: the module whose forward is trained; it shares the base weights of `model`.
        parameters: what is trained.
        data: prompts with their answers.
        config: the settings.
        about: provenance of the run, which a checkpoint must agree with.
        held: entered for every forward of `trained`.

    Raises:
        InputError: not finite at the first step (nothing was learnt), or a checkpoint of another run.
    """
    picks = deal(data, config.batch_size, steps=config.steps, seed=config.seed)
    with checkpointing(model, trained, config.gradient_checkpointing):
        run = descend(
            parameters, picks, lambda rows: _backward(model, trained, [data[i] for i in rows], config=config, held=held),
            config=config, about={**about, "taught": _hash(data)},
        )  # fmt: skip
    run.taught = taught_in(data, picks[: len(run.losses)])
    return run


def _backward(
    model: Model,
    trained: nn.Module,
    chosen: list[Example],
    *,
    config: TrainingConfig,
    held: AbstractContextManager[Any] | None,
) -> float:
    """Gradients of the batch's mean loss, in `accumulate` parts; the loss."""
    total = 0.0
    for part in np.array_split(np.arange(len(chosen)), config.accumulate):
        if not len(part):
            continue
        share = len(part) / len(chosen)
        with running(model, rows=len(part)), recording("training"):
            for loss in step_loss(model, trained, [chosen[i] for i in part], retention=config.retention, held=held):
                (loss * share).backward()
                total += float(loss.detach()) * share
    return total


def _hash(data: Sequence[Example]) -> str:
    """Short hash of what is taught: every prompt's text with its answer, in order."""
    told = [(e.prompt.id, e.prompt.label, e.prompt.prompt, e.response, e.keep, e.generic) for e in data]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@contextmanager
def checkpointing(model: Model, trained: nn.Module, on: bool) -> Iterator[None]:
    """A context in which activations are recomputed in the backward pass.

    Only decoder layers are in training mode, so dropout stays off.

    >>> with checkpointing(model, model.module, False):
    ...     model.module.is_gradient_checkpointing
    False

    Args:
        model: the untouched model.
        trained: the module that is trained.
        on: whether; nothing is changed without it.

    Raises:
        InputError: the model does not support it.
    """
    if not on:
        yield
        return
    outer: Any = trained
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer  # under PEFT's wrapper
    layers = list(inner.get_submodule(model.layers_path))
    if not all(hasattr(layer, "gradient_checkpointing") for layer in layers):
        raise InputError(f"gradient_checkpointing: {model.id!r} does not support it")
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        inner.gradient_checkpointing_disable()
