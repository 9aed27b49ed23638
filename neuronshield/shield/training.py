"""How every update is trained: one settings object, and one loop.

`TrainingConfig` holds what all trainers share. Every trainer takes it as `config=`, or takes the same fields as keywords,
which change fields of the config for that call.

The loop is deterministic, can be resumed, and stops at the first loss that is not finite. A step is one batch (cut into
`accumulate` parts, which changes memory and nothing else). Gradients are clipped to norm 1, and the learning rate at step t
of T is

    lr * (0.1 + 0.45 * (1 + cos(pi * t / T)))        a cosine from lr to a tenth of it

A checkpoint is one safetensors file (`neuronshield.shield.checkpoints`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from ..core.arguments import at_least, one_of, require, unknown_keywords
from ..core.errors import InputError
from ..core.progress import bar
from ..model.answers import Example
from ..model.model import Model
from ..model.running import recording, running
from .checkpoints import read_checkpoint, write_checkpoint
from .objective import Taught, deal, step_loss, taught_in

__all__ = ["ADAMW", "OBJECTIVES", "Run", "TrainingConfig", "TrainingOptions", "fit", "restored", "training_config"]


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


@dataclass
class Run:
    """The course of a training run.

    Attributes:
        losses: of every step.
        stopped: why it stopped early; None if it did not.
        taught: what its steps did with the prompts.
        kept: the trained numbers after each step of `snapshots`, on the CPU.
    """

    losses: list[float] = field(default_factory=list)
    stopped: str | None = None
    taught: Taught = field(default_factory=Taught)
    kept: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def keep(self, parameters: Sequence[nn.Parameter], config: TrainingConfig, *, step: int) -> None:
        """Keep the trained numbers, if this step is one of the snapshots.

        Args:
            parameters: what is trained.
            config: the settings.
            step: how many steps have been taken.
        """
        if step in config.snapshots:
            self.kept[step] = [p.detach().cpu().clone() for p in parameters]


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

    At the first loss or gradient that is not finite the run stops and the last good values are restored.

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
    checkpoint = Path(config.checkpoint) if config.checkpoint is not None else None
    optimiser = config.optimiser(parameters, lr=config.lr)
    about = {**about, "optimiser": _described(optimiser), "taught": _hash(data)}
    run = Run()
    if checkpoint is not None and checkpoint.exists():
        run.losses, run.kept = read_checkpoint(checkpoint, parameters, optimiser=optimiser, about=about)
        if gone := [s for s in config.snapshots if s <= len(run.losses) and s not in run.kept]:
            raise InputError(f"{checkpoint}: has no snapshot of step {gone[0]}; remove it or leave that snapshot out")
    picks = deal(data, config.batch_size, steps=config.steps, seed=config.seed)
    good = _snapshot(parameters)
    left = config.steps - len(run.losses)
    with (
        _checkpointing(model, trained, config.gradient_checkpointing),
        bar(left, desc="update", unit="step", show=config.progress) as tick,
    ):
        for rows in picks[len(run.losses) :]:
            step = len(run.losses)
            for group in optimiser.param_groups:
                group["lr"] = config.lr * (0.1 + 0.45 * (1 + float(np.cos(np.pi * step / config.steps))))
            optimiser.zero_grad(set_to_none=True)
            loss = _backward(model, trained, [data[i] for i in rows], config=config, held=held)
            norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
            if not (np.isfinite(loss) and np.isfinite(norm)):
                _restore(parameters, good)
                run.stopped = _why(loss, norm, step=step, lr=config.lr)
                if step == 0:
                    raise InputError(f"training: {run.stopped}")
                break
            good = _snapshot(parameters)
            optimiser.step()
            run.losses.append(loss)
            tick(1)
            run.keep(parameters, config, step=len(run.losses))
            if checkpoint is not None and _finite(parameters):  # otherwise the last good state stays
                write_checkpoint(
                    checkpoint, parameters, optimiser=optimiser, losses=run.losses, kept=run.kept, about=about
                )
    optimiser.zero_grad(set_to_none=True)
    if run.stopped is None and not _finite(parameters):
        _restore(parameters, good)
        run.stopped = f"a weight is not finite after step {len(run.losses) - 1}; lower lr (was {config.lr:g})"
    run.taught = taught_in(data, picks[: len(run.losses)])
    return run


def restored(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    """A context in which the parameters have other values.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> with restored([weight], [torch.ones(2)]):
    ...     inside = weight.tolist()
    >>> inside, weight.tolist()
    ([1.0, 1.0], [0.0, 0.0])

    Args:
        parameters: what is trained.
        values: of each, on any device.
    """

    @contextmanager
    def inside() -> Iterator[None]:
        own = _snapshot(parameters)
        _restore(parameters, values)
        try:
            yield
        finally:
            _restore(parameters, own)

    return inside()


def _why(loss: float, norm: float, *, step: int, lr: float) -> str:
    what = f"loss is {loss}" if not np.isfinite(loss) else f"the gradient's norm is {norm}"
    return f"{what} at step {step}; lower lr (was {lr:g})"


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


def _described(optimiser: torch.optim.Optimizer) -> str:
    """An optimiser's kind and settings; of a class of one's own, the class of torch that it is based on."""
    classes = [c for c in type(optimiser).__mro__ if c.__module__.startswith("torch.optim")]
    kind = type(optimiser) if classes[0] is torch.optim.Optimizer else classes[0]
    settings = {k: v for k, v in sorted(optimiser.defaults.items()) if k != "lr"}
    return f"{kind.__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"


def _hash(data: Sequence[Example]) -> str:
    """Short hash of what is taught: every prompt's text with its answer, in order."""
    told = [(e.prompt.id, e.prompt.label, e.prompt.prompt, e.response, e.keep, e.generic) for e in data]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _finite(parameters: Sequence[nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in parameters)


def _snapshot(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)


@contextmanager
def _checkpointing(model: Model, trained: nn.Module, on: bool) -> Iterator[None]:
    """Recompute activations in the backward pass; only decoder layers are in training mode, so dropout stays off."""
    if not on:
        yield
        return
    inner: Any = getattr(trained, "base_model", trained)
    inner = getattr(inner, "model", inner)
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
