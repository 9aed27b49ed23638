"""The training loop of every update: deterministic, resumable, and stopped by the first loss that is not finite.

A step is one batch (in `accumulate` parts, which changes memory and nothing else), gradients clipped to norm 1, and
a learning rate that falls by a cosine to a tenth. What is kept for a resumed run is one safetensors file, written
beside and renamed: trained factors, the optimiser's own tensors, losses, and what run it is of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..core.errors import InputError
from ..core.files import replacing
from ..model.answers import Example
from ..model.model import Model
from .objective import deal, step_loss

__all__ = ["ADAMW", "Options", "Run", "fit"]


logger = logging.getLogger("neuronshield")


#: The default optimiser. Any other is called the same way: `optimiser(parameters, lr=lr)`.
ADAMW = partial(torch.optim.AdamW, weight_decay=0.0)


@dataclass(frozen=True)
class Options:
    """How to train; every update and every control takes the same (see `masked_update`)."""

    steps: int
    lr: float
    batch_size: int
    retention: float
    optimiser: Callable[..., torch.optim.Optimizer]
    accumulate: int
    gradient_checkpointing: bool
    checkpoint: Path | None
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: must be at least {least}")
        if not (np.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr={self.lr}: must be above zero")


@dataclass
class Run:
    """What came of it: the loss of every step, and why it stopped early, if it did."""

    losses: list[float] = field(default_factory=list)
    stopped: str | None = None


def fit(
    model: Model,
    trained: nn.Module,
    parameters: Sequence[nn.Parameter],
    data: Sequence[Example],
    options: Options,
    *,
    about: dict[str, Any],
    held: AbstractContextManager[Any] | None = None,
) -> Run:
    """Train `parameters` of `trained` on `data`.

    Stops at the first loss or gradient that is not finite and puts back the last good numbers.

    Raises:
        InputError: not finite at the first step (nothing was learnt), or a checkpoint of another run.
    """
    optimiser = options.optimiser(parameters, lr=options.lr)
    run = Run()
    if options.checkpoint is not None and options.checkpoint.exists():
        _resume(options.checkpoint, parameters, optimiser, run, about)
    picks = deal(data, options.batch_size, options.steps, options.seed)
    good = _snapshot(parameters)
    with _checkpointing(model, trained, options.gradient_checkpointing):
        bar = tqdm(picks[len(run.losses) :], desc="update", unit="step", disable=not options.progress, leave=False)
        for rows in bar:
            step = len(run.losses)
            for group in optimiser.param_groups:
                group["lr"] = options.lr * (0.1 + 0.45 * (1 + float(np.cos(np.pi * step / options.steps))))
            optimiser.zero_grad(set_to_none=True)
            loss = _backward(model, trained, [data[i] for i in rows], options, held)
            norm = float(nn.utils.clip_grad_norm_(parameters, 1.0))
            if not (np.isfinite(loss) and np.isfinite(norm)):
                _restore(parameters, good)
                run.stopped = _why(loss, norm, step, options.lr)
                if step == 0:
                    raise InputError(f"masked_update: {run.stopped}")
                break
            good = _snapshot(parameters)
            optimiser.step()
            run.losses.append(loss)
            if options.checkpoint is not None:
                _keep(options.checkpoint, parameters, optimiser, run, about)
    optimiser.zero_grad(set_to_none=True)
    if run.stopped is None and not all(bool(torch.isfinite(p).all()) for p in parameters):
        _restore(parameters, good)
        run.stopped = f"a weight is not finite after step {len(run.losses) - 1}; lower lr (was {options.lr:g})"
    return run


def _why(loss: float, norm: float, step: int, lr: float) -> str:
    what = f"loss is {loss}" if not np.isfinite(loss) else f"the gradient's norm is {norm}"
    return f"{what} at step {step}; lower lr (was {lr:g})"


def _backward(
    model: Model, trained: nn.Module, chosen: list[Example], options: Options, held: AbstractContextManager[Any] | None
) -> float:
    """Gradients of the batch's mean loss, in `accumulate` parts; the loss."""
    total = 0.0
    for part in np.array_split(np.arange(len(chosen)), options.accumulate):
        if not len(part):
            continue
        share = len(part) / len(chosen)
        for loss in step_loss(model, trained, [chosen[i] for i in part], options.retention, held):
            (loss * share).backward()
            total += float(loss.detach()) * share
    return total


def _snapshot(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)


@contextmanager
def _checkpointing(model: Model, trained: nn.Module, on: bool) -> Iterator[None]:
    """Recompute activations in the backward pass; only decoder layers are put in training mode, so no dropout wakes."""
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


# -- a run that can be taken up again ---------------------------------------------------------------------
def _keep(
    path: Path, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, run: Run, about: dict[str, Any]
) -> None:
    from safetensors.torch import save_file

    tensors = {f"p.{i}": p.detach().contiguous() for i, p in enumerate(parameters)}
    plain: dict[str, Any] = {}
    for i, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"s.{i}.{name}"] = value.contiguous()
            else:
                plain[f"s.{i}.{name}"] = value
    meta = {"format": "neuronshield.training/1", "about": about, "losses": run.losses, "plain": plain}
    with replacing(path) as partial_path:
        save_file(tensors, partial_path, metadata={"neuronshield": json.dumps(meta, sort_keys=True)})


def _resume(
    path: Path, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer, run: Run, about: dict[str, Any]
) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["neuronshield"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a training checkpoint of ours ({error}); remove it or name another") from None
    told = json.loads(json.dumps(about))
    if differ := sorted(k for k in {*told, *meta["about"]} if told.get(k) != meta["about"].get(k)):
        raise InputError(f"{path}: is of another run ({', '.join(differ)} differ); remove it or name another")
    _restore(parameters, [tensors[f"p.{i}"] for i in range(len(parameters))])
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *meta["plain"].items()]:
        kind, number, *name = key.split(".", 2)
        if kind == "s":
            state.setdefault(int(number), {})[name[0]] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    run.losses = list(meta["losses"])
    logger.info("resumed %s at step %d", path, len(run.losses))
