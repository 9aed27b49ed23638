"""The loop of every training that is not TRL's: steps, their losses, and what is kept of them.

The loop is deterministic, can be resumed, and stops at the first loss that is not finite. Gradients are clipped to norm 1, and the
learning rate at step t of T is

    lr * (0.1 + 0.45 * (1 + cos(pi * t / T)))        a cosine from lr to a tenth of it

What a step computes is the caller's: a masked update, a full fine-tune, or the update of a system of several models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from ..core.errors import InputError
from ..core.progress import bar
from .checkpoints import read_checkpoint, write_checkpoint
from .objective import Taught

__all__ = ["Run", "Schedule", "descend", "restored", "snapshot_at"]


T = TypeVar("T")


class Schedule(Protocol):
    """What the loop asks of the settings (`TrainingConfig` is one)."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def optimiser(self) -> Callable[..., torch.optim.Optimizer]: ...
    @property
    def checkpoint(self) -> str | os.PathLike[str] | None: ...
    @property
    def snapshots(self) -> Sequence[int]: ...
    @property
    def progress(self) -> bool: ...


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

    def keep(self, parameters: Sequence[nn.Parameter], config: Schedule, *, step: int) -> None:
        """Keep the trained numbers, if this step is one of the snapshots.

        Args:
            parameters: what is trained.
            config: the settings.
            step: how many steps have been taken.
        """
        if step in config.snapshots:
            self.kept[step] = [p.detach().cpu().clone() for p in parameters]


def descend(
    parameters: Sequence[nn.Parameter],
    picks: Sequence[Sequence[int]],
    backward: Callable[[Sequence[int]], float],
    *,
    config: Schedule,
    about: Mapping[str, Any],
) -> Run:
    """The run of one optimiser step for each batch.

    >>> from neuronshield.shield.training import TrainingConfig
    >>> weight = nn.Parameter(torch.tensor([1.0]))
    >>> def backward(rows):
    ...     loss = (weight - sum(rows)).square().sum()
    ...     loss.backward()
    ...     return float(loss.detach())
    >>> descend([weight], [[1, 2], [3]], backward, config=TrainingConfig(steps=2, progress=False), about={}).losses
    [4.0, ...]

    At the first loss or gradient that is not finite the run stops and the last good values are restored.

    Args:
        parameters: what is trained.
        picks: rows of every batch.
        backward: adds the gradients of a batch's loss to the parameters; the loss.
        config: the settings.
        about: provenance of the run, which a checkpoint must agree with.

    Raises:
        InputError: not finite at the first step (nothing was learnt), or a checkpoint of another run.
    """
    checkpoint = Path(config.checkpoint) if config.checkpoint is not None else None
    optimiser = config.optimiser(parameters, lr=config.lr)
    about = {**about, "optimiser": _described(optimiser)}
    run = Run()
    if checkpoint is not None and checkpoint.exists():
        run.losses, run.kept = read_checkpoint(checkpoint, parameters, optimiser=optimiser, about=about)
        if gone := [s for s in config.snapshots if s <= len(run.losses) and s not in run.kept]:
            raise InputError(f"{checkpoint}: has no snapshot of step {gone[0]}; remove it or leave that snapshot out")
    good = _snapshot(parameters)
    with bar(config.steps - len(run.losses), desc="update", unit="step", show=config.progress) as tick:
        for rows in picks[len(run.losses) :]:
            step = len(run.losses)
            for group in optimiser.param_groups:
                group["lr"] = config.lr * (0.1 + 0.45 * (1 + float(np.cos(np.pi * step / config.steps))))
            optimiser.zero_grad(set_to_none=True)
            loss = backward(rows)
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


def snapshot_at(snapshots: Mapping[int, Callable[[], T]], step: int, *, call: str) -> T:
    """What was kept after some steps.

    >>> snapshot_at({2: lambda: "as it was"}, 2, call="Update.at")
    'as it was'

    Args:
        snapshots: what makes it, by number of steps.
        step: one of them.
        call: the method, for the message.

    Raises:
        InputError: a step that was not kept.
    """
    if step not in list(snapshots):
        kept = ", ".join(map(str, snapshots)) or "none"
        raise InputError(f"{call}({step!r:.20}): kept are {kept}; train with snapshots=[...]")
    return snapshots[step]()


def _why(loss: float, norm: float, *, step: int, lr: float) -> str:
    what = f"loss is {loss}" if not np.isfinite(loss) else f"the gradient's norm is {norm}"
    return f"{what} at step {step}; lower lr (was {lr:g})"


def _described(optimiser: torch.optim.Optimizer) -> str:
    """An optimiser's kind and settings; of a class of one's own, the class of torch that it is based on."""
    classes = [c for c in type(optimiser).__mro__ if c.__module__.startswith("torch.optim")]
    kind = type(optimiser) if classes[0] is torch.optim.Optimizer else classes[0]
    settings = {k: v for k, v in sorted(optimiser.defaults.items()) if k != "lr"}
    return f"{kind.__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"


def _finite(parameters: Sequence[nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in parameters)


def _snapshot(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [p.detach().clone() for p in parameters]


def _restore(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(parameters, values, strict=True):
            p.copy_(value)
