"""Greedy generation, with an intervention held at every step that it names.

**Greedy means argmax.** A checkpoint's `generation_config` may ask for penalties, forced or suppressed tokens, a least length,
beams, sampling or another form of the result. None of it is used: the configuration is `settings`' own, and of the checkpoint's
only the tokens that end an answer.

`decode` is the one generation loop: it calls back at every decoding step and layer that it is told to. A model that keeps no
cache reads the whole sequence again at each step; what was changed at earlier steps is then changed again. `generate` uses
`decode` to hold an `Intervention`. Every firing is counted: an intervention that did not fire at every layer, step and token it
names is an error, and so are logits that are not finite.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, overload

import nnsight
import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..core.arguments import at_least
from ..core.errors import InputError
from ..core.progress import bar
from ..data.prompts import Prompt
from .drafts import confirmed, remember
from .edits import Edit, check_conditions, edits_for, site_of
from .encoding import Batch, as_prompts, batches, check_prompts
from .families import by_row
from .intervention import Intervention, require_intervention
from .model import Model
from .places import place_of
from .rotary import stretched
from .running import not_finite, running
from .shortcuts import keeps_cache
from .thoughts import decoded
from .tokens import filler

__all__ = ["decode", "generate", "settings"]

Change = Callable[[int, int, Tensor], Any]


@overload
def generate(  # type: ignore[overload-overlap]
    model: Model,
    prompts: str | Prompt,
    *,
    intervention: Intervention | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: bool = False,
    desc: str = "answer",
) -> str: ...
@overload
def generate(
    model: Model,
    prompts: Iterable[str | Prompt],
    *,
    intervention: Intervention | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: bool = False,
    desc: str = "answer",
) -> list[str]: ...
def generate(
    model: Model,
    prompts: str | Prompt | Iterable[str | Prompt],
    *,
    intervention: Intervention | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: bool = False,
    desc: str = "answer",
) -> str | list[str]:
    """Greedy answers: a list, or one string for one prompt.

    >>> generate(model, "how do i bake bread", max_new_tokens=3)
    '...'
    >>> len(generate(model, prompts[:4], intervention=ns.Intervention(neurons, "zero", positions="all"), max_new_tokens=3))
    4

    Args:
        model: the model.
        prompts: a `PromptSet`, a sequence of prompts or strings, or one of either.
        intervention: what is changed: at the prompt, and for the positions "response" and "all" at every generated token that
            is read again; None for nothing.
        max_new_tokens: tokens an answer, at most.
        batch_size: prompts a batch.
        progress: show a progress bar.
        desc: its label.

    Raises:
        InputError: no model or no prompts, an intervention that does not fit the model or the prompts or that could not
            fire, logits that are not finite, or too little memory.
        RuntimeError: an intervention that did not fire at every layer, step and token it names.
    """
    rows = as_prompts(model, prompts, call="generate")
    at_least(1, "generate", max_new_tokens=max_new_tokens, batch_size=batch_size)
    require_intervention(intervention, "generate")
    model.needs_here("generate")
    check_conditions(model, rows, [intervention], generated=max_new_tokens)
    check_prompts(model, rows, extra=max_new_tokens)
    settings: dict[str, Any] = {"intervention": intervention, "max_new_tokens": max_new_tokens}
    with bar(len(rows), desc=desc, unit="answer", show=progress) as tick:
        ids = confirmed(
            model, rows, lambda row: _answers(model, rows, [row], tick=None, batch_size=1, **settings)[row],
            ends=_ends(model), batch_size=batch_size, **settings,
        )  # fmt: skip
        tick(len(ids))
        left = [row for row in range(len(rows)) if row not in ids]
        ids |= _answers(model, rows, left, tick=tick, batch_size=batch_size, **settings)
    out = [text.strip() for text in decoded(model.tokenizer, [list(ids[row]) for row in range(len(rows))])]
    return out[0] if isinstance(prompts, (str, Prompt)) else out


def _answers(
    model: Model,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    *,
    intervention: Intervention | None,
    max_new_tokens: int,
    batch_size: int,
    tick: Callable[[int], None] | None,
) -> dict[int, tuple[int, ...]]:
    """Token ids of the answers to some rows, each with the token that ended it; they are kept as drafts."""
    out: dict[int, tuple[int, ...]] = {}
    ends, some = _ends(model), [prompts[row] for row in rows]
    for batch in batches(model, some, batch_size=batch_size, side="left", extra=max_new_tokens):
        batch = replace(batch, rows=[rows[i] for i in batch.rows])
        new = _generate_ids(model, prompts, batch, intervention=intervention, n=max_new_tokens)
        for row, ids in zip(batch.rows, new.tolist(), strict=True):
            end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            out[row] = tuple(ids[: end + 1])
            remember(model, prompts[row], out[row])
        if tick is not None:
            tick(len(batch.rows))
    return out


def settings(model: Model, max_new_tokens: int) -> dict[str, Any]:
    """How answers are generated, as artefacts record it: greedy, at most so many tokens, ended by these token ids.

    >>> settings(model, 32)
    {'greedy': True, 'max_new_tokens': 32, 'eos_token_ids': [2]}

    Args:
        model: the model; its checkpoint says which tokens end an answer.
        max_new_tokens: tokens an answer, at most.
    """
    return {"greedy": True, "max_new_tokens": max_new_tokens, "eos_token_ids": _ends(model)}


def _ends(model: Model) -> list[int]:
    given = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    return [] if given is None else [int(i) for i in torch.as_tensor(given).flatten()]


def decode(
    model: Model,
    batch: Batch,
    *,
    max_new_tokens: int,
    layers: Sequence[Collection[int]] = (),
    change: Change | None = None,
    site: str = "neuron",
) -> tuple[Int[Tensor, "batch new"], dict[tuple[int, int], Any]]:
    """Greedy token ids of a left-padded batch, and what `change` returned at every (step, layer).

    >>> from neuronshield.model.encoding import collate
    >>> batch = collate(model, prompts[:2], side="left")
    >>> ids, kept = decode(model, batch, max_new_tokens=3, layers=[[0, 2]], change=lambda step, layer, h: h[:, -1].norm(dim=-1))
    >>> ids.shape, list(kept)
    (torch.Size([2, 3]), [(0, 0), (0, 2)])

    Args:
        model: the model.
        batch: prompts, padded on the left.
        max_new_tokens: tokens to generate at most; a batch ends when all its rows have ended.
        layers: the layers at which `change` is called, for each decoding step from the first; step 0 reads the prompt, step
            s the s-th generated token. Steps after the end of the list run untouched, idle layers are left out.
        change: called inside the trace as `change(step, layer, h)`, with h [batch, pos, d_mlp] a copy of the layer's
            neurons that it may write to (pos is the prompt's length at step 0, then 1) and that takes their place. What it
            returns is kept. Without a cache it is called again for the tokens of earlier steps, which are read again, and what
            it returns then is not kept.
        site: what is read and changed instead of neurons (see `places`).

    Raises:
        InputError: logits that are not finite, too little memory, or a site that the model does not have.
        RuntimeError: `change` was not called at a (step, layer) that it should have been called at.
    """
    from transformers import LogitsProcessorList

    encoding = {k: v for k, v in batch.encoding.items() if k != "position_ids"}
    encoding |= {
        k: v for k, v in model.last_logits().items() if isinstance(v, Tensor)
    }  # of a number `generate` sees to itself
    rows, width = batch.encoding["input_ids"].shape
    idle, checked = model.idle(batch.encoding), _Finite(width, _ends(model))
    options = {"generation_config": _greedy(model, max_new_tokens), "logits_processor": LogitsProcessorList([checked])}
    calls = _Calls([sorted(set(at) - set(idle)) for at in layers[:max_new_tokens]], change, width=width)
    answers: list[Tensor] = []

    def run(**kwargs: Any) -> Tensor:
        answers.append(model.module.generate(**kwargs, **options))  # type: ignore[operator]
        return answers[0]

    with (
        running(model, rows=rows, width=width),
        _own_config(model.module, options),
        torch.no_grad(),
        quiet_generation(),
    ):
        if change is None or not any(calls.steps):
            run(**encoding)
            return _checked(model, batch, answers[0][:, width:], checked=checked), {}
        again = not keeps_cache(model) or stretched(model.module, width + max_new_tokens)  # Phi-3 drops its cache there
        visits, place = calls.visits(max_new_tokens, cached=not again), place_of(model, site)
        envoys = place.envoys(model)
        with model.traced.trace(fn=run, **encoding) as tracer:
            seen = nnsight.save({})
            for step in tracer.iter[: len(visits)]:
                for layer in visits[step]:
                    h = place.read(envoys[layer]).clone()
                    seen[step, layer] = calls.at(step, layer, by_row(h, rows))
                    place.write(envoys[layer], h)
    new = _checked(model, batch, answers[0][:, width:], checked=checked)
    n = new.shape[1]
    missing = {(step, layer) for step, at in enumerate(visits[:n]) for layer in at} - set(seen)
    if missing:
        raise RuntimeError(f"{model.id!r} did not run at every (step, layer) of a generation: {sorted(missing)[:3]}")
    due = {(step, layer) for step, at in enumerate(calls.steps[:n]) for layer in at}
    return new, {key: value for key, value in seen.items() if key in due}


class _Calls:
    """Which layers call back at which step, with and without a cache."""

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


def _greedy(model: Model, n: int) -> Any:
    """A configuration of nothing but argmax, the number of tokens, and the ids that end and pad answers."""
    from transformers import GenerationConfig

    theirs, ends = getattr(model.module, "generation_config", None), _ends(model)
    pad = filler(model, model.tokenizer.pad_token_id, model.tokenizer.eos_token_id)
    return GenerationConfig(
        max_new_tokens=n, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad,
        bos_token_id=getattr(theirs, "bos_token_id", None),
        use_cache=keeps_cache(model) or getattr(theirs, "use_cache", None) is not False,
    )  # fmt: skip


@contextmanager
def _own_config(module: nn.Module, options: dict[str, Any]) -> Iterator[None]:
    """`generation_config` of the module, and of modules in it, replaced: transformers fills what is unset from there."""
    kept = [(m, m.__dict__["generation_config"]) for m in module.modules() if "generation_config" in m.__dict__]
    try:
        for m, _ in kept:
            m.generation_config = options["generation_config"]
        yield
    finally:
        for m, theirs in kept:
            m.generation_config = theirs


class _Finite:
    """A logits processor that changes nothing and remembers which rows had logits that are not finite before they ended."""

    def __init__(self, width: int, ends: list[int]) -> None:
        self.width, self.ends = width, ends
        self.wrong: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.width :]
        ended = torch.isin(new, torch.tensor(self.ends, device=new.device, dtype=new.dtype)).any(dim=1)
        wrong = ~scores.amax(dim=-1).isfinite() & ~ended.to(scores.device)
        self.wrong = wrong if self.wrong is None else self.wrong | wrong
        return scores


def _checked(model: Model, batch: Batch, new: Tensor, *, checked: _Finite) -> Tensor:
    """The new tokens, if they were all decided by finite logits."""
    if checked.wrong is not None and bool(checked.wrong.any()):
        row = int(checked.wrong.int().argmax())
        raise InputError(not_finite(model, batch.ids[row] if batch.ids else f"row {row}"))
    return new


def _generate_ids(
    model: Model, prompts: Sequence[Prompt], batch: Batch, *, intervention: Intervention | None, n: int
) -> Int[Tensor, "batch new"]:
    """New token ids of a batch under an intervention, every firing of which is counted."""
    edits, _ = edits_for(model, prompts, batch, conditions=[intervention])
    later = _later(model, prompts, batch, intervention=intervention)
    steps = [edits, *[later] * (n - 1)] if later else [edits]

    def change(step: int, layer: int, h: Tensor) -> int:
        return sum(edit.apply(h) for edit in steps[step][layer])

    layers, site = [list(at) for at in steps], site_of([intervention])
    ids, fired = decode(model, batch, max_new_tokens=n, layers=layers, change=change, site=site)
    expected = {
        (step, layer): sum(edit.tokens for edit in changes)
        for step, at in enumerate(steps[: ids.shape[1]])
        for layer, changes in at.items()
    }
    if fired != expected:
        wrong = sorted(set(expected.items()) ^ set(fired.items()))[:3]
        raise RuntimeError(f"an intervention on {model.id!r} did not fire as named; (step, layer), tokens: {wrong}")
    return ids


def _later(
    model: Model, prompts: Sequence[Prompt], batch: Batch, *, intervention: Intervention | None
) -> dict[int, list[Edit]]:
    """Edits of each step after the first, when one new token of every row is read."""
    if intervention is None or intervention.positions not in ("response", "all"):
        return {}
    as_last = replace(intervention, positions="last_prompt")
    return edits_for(model, prompts, batch, conditions=[as_last])[0]


class quiet_generation(warnings.catch_warnings):
    """A context without warnings of generation length and of steps that were not reached (answers may end early)."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
