"""What greedy decoding is made of: its configuration, the calls at each step, and the check of its logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .encoding import Batch
from .model import Model
from .running import not_finite
from .shortcuts import keeps_cache
from .tokens import filler

__all__ = ["Calls", "Change", "Finite", "checked_ids", "ends_of", "greedy", "own_config", "quiet_generation"]

#: Called as change(step, layer, h).
Change = Callable[[int, int, Tensor], Any]


def ends_of(model: Model) -> list[int]:
    """Ids of the tokens that end an answer, as the checkpoint says.

    >>> ends_of(model)
    [2]

    Args:
        model: the model.
    """
    given = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    return [] if given is None else [int(i) for i in torch.as_tensor(given).flatten()]


def greedy(model: Model, n: int) -> Any:
    """A configuration of nothing but argmax, the number of tokens, and the ids that end and pad answers.

    >>> greedy(model, 3).num_beams
    1

    Args:
        model: the model.
        n: tokens an answer, at most.
    """
    from transformers import GenerationConfig

    theirs, ends = getattr(model.module, "generation_config", None), ends_of(model)
    pad = filler(model, model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    return GenerationConfig(
        max_new_tokens=n, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad,
        bos_token_id=getattr(theirs, "bos_token_id", None),
        use_cache=keeps_cache(model) or getattr(theirs, "use_cache", None) is not False,
    )  # fmt: skip


@contextmanager
def own_config(module: nn.Module, options: dict[str, Any]) -> Iterator[None]:
    """`generation_config` of the module, and of modules in it, replaced: transformers fills what is unset from there.

    >>> with own_config(model.module, {"generation_config": greedy(model, 3)}):
    ...     model.module.generation_config.max_new_tokens
    3

    Args:
        module: the model's.
        options: of `generate`, with its configuration.
    """
    kept = [(m, m.__dict__["generation_config"]) for m in module.modules() if "generation_config" in m.__dict__]
    try:
        for m, _ in kept:
            m.generation_config = options["generation_config"]
        yield
    finally:
        for m, theirs in kept:
            m.generation_config = theirs


class Calls:
    """Which layers call back at which step, with and without a cache.

    Args:
        steps: the layers of each step.
        change: what is called there.
        width: tokens of the prompt.
    """

    def __init__(self, steps: list[list[int]], change: Change | None, *, width: int) -> None:
        self.steps, self.change, self.width = steps, change, width

    def visits(self, n: int, *, cached: bool) -> list[list[int]]:
        """Layers that are read at each step: without a cache, those of all steps until then."""
        if cached:
            return self.steps
        return [sorted({layer for at in self.steps[: step + 1] for layer in at}) for step in range(n)]

    def at(self, step: int, layer: int, h: Tensor) -> Any:
        """What `change` returned for the newest tokens; those of earlier steps are changed again where they are read again."""
        tokens, out = h.shape[1], None
        if step and tokens not in (1, self.width + step):
            raise RuntimeError(f"step {step} of a generation read {tokens} tokens, not 1 or {self.width + step}")
        again = step > 0 and tokens > 1
        for s in range(0 if again else step, step + 1):
            if s < len(self.steps) and layer in self.steps[s] and self.change is not None:
                start = self.width + s - 1
                part = h if not again else h[:, : self.width] if s == 0 else h[:, start : start + 1]
                out = self.change(s, layer, part)
        return out


class Finite:
    """A logits processor that changes nothing and remembers which rows had logits that are not finite before they ended.

    Args:
        width: tokens of the prompt.
        ends: ids that end an answer.
        seen: called with the logits of each step.
    """

    def __init__(self, width: int, ends: list[int], seen: Callable[[Tensor], None] | None = None) -> None:
        self.width, self.ends, self.seen = width, ends, seen
        self.wrong: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.width :]
        ended = torch.isin(new, torch.tensor(self.ends, device=new.device, dtype=new.dtype)).any(dim=1)
        wrong = ~scores.amax(dim=-1).isfinite() & ~ended.to(scores.device)
        self.wrong = wrong if self.wrong is None else self.wrong | wrong
        if self.seen is not None:
            self.seen(scores)
        return scores


def checked_ids(model: Model, batch: Batch | None, new: Tensor, *, checked: Finite) -> Tensor:
    """The new tokens, if they were all decided by finite logits.

    >>> checked_ids(model, None, torch.tensor([[3, 2]]), checked=Finite(4, [2]))
    tensor([[3, 2]])

    Args:
        model: the model.
        batch: the prompts.
        new: token ids of their answers.
        checked: what saw the logits.

    Raises:
        InputError: logits that are not finite.
    """
    if checked.wrong is not None and bool(checked.wrong.any()):
        row = int(checked.wrong.int().argmax())
        raise InputError(not_finite(model, batch.ids[row] if batch is not None and batch.ids else f"row {row}"))
    return new


class quiet_generation(warnings.catch_warnings):
    """A context without warnings of generation length and of steps that were not reached (answers may end early)."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
