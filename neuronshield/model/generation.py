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

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import nnsight
import torch
from jaxtyping import Int
from torch import Tensor

from ..core.arguments import at_least
from ..core.progress import bar
from ..data.prompts import Prompt
from .decoding import Calls, Change, Finite, checked_ids, ends_of, greedy, own_config, quiet_generation
from .drafts import confirmed, remember
from .edits import Edit, check_conditions, edits_for, site_of
from .encoding import Batch, as_prompts, batches, check_prompts
from .families import by_row
from .intervention import Intervention, require_intervention
from .likelihoods import Likelihoods, Step
from .model import Model
from .places import place_of
from .rotary import stretched
from .running import running
from .shortcuts import keeps_cache
from .thoughts import decoded

__all__ = ["Completion", "complete", "decode", "generate", "settings"]


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
    out = complete(
        model,
        rows,
        intervention=intervention,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        desc=desc,
    )
    return out[0].text if isinstance(prompts, (str, Prompt)) else [found.text for found in out]


@dataclass(frozen=True)
class Completion:
    """A greedy answer with its tokens.

    Attributes:
        text: the answer, without special tokens and without white space at its ends.
        ids: its token ids, with the token that ended it.
        ended: whether a token ended it; else it has as many tokens as it may have.
        steps: with log-probabilities, those of each of its tokens.
    """

    text: str
    ids: tuple[int, ...]
    ended: bool
    steps: tuple[Step, ...] | None = None


def complete(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    intervention: Intervention | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    logprobs: int | None = None,
    progress: bool = False,
    desc: str = "answer",
) -> list[Completion]:
    """The answers that `generate` gives, with their tokens.

    >>> found = complete(model, prompts[:2], max_new_tokens=3, logprobs=2)
    >>> [(len(c.ids), c.ended, len(c.steps), len(c.steps[0].top)) for c in found]
    [(3, False, 3, 2), (3, False, 3, 2)]

    Args:
        model: the model.
        prompts: the prompts.
        intervention: as for `generate`.
        max_new_tokens: tokens an answer, at most.
        batch_size: prompts a batch.
        logprobs: how many of the likeliest tokens of each step are kept, with their log-probabilities; 0 for that of the answer's own
            token only, None for none.
        progress: show a progress bar.
        desc: its label.

    Raises:
        InputError: as `generate`.
        RuntimeError: as `generate`.
    """
    require_intervention(intervention, "generate")
    model.needs_here("generate")
    check_conditions(model, prompts, [intervention], generated=max_new_tokens)
    check_prompts(model, prompts, extra=max_new_tokens)
    options: dict[str, Any] = {"intervention": intervention, "max_new_tokens": max_new_tokens}
    kept: dict[int, tuple[Step, ...]] = {}
    ends, ids = ends_of(model), dict[int, tuple[int, ...]]()
    with bar(len(prompts), desc=desc, unit="answer", show=progress) as tick:
        if logprobs is None:
            ids = confirmed(
                model, prompts, lambda row: _answers(model, prompts, [row], tick=None, batch_size=1, **options)[row],
                ends=ends, batch_size=batch_size, **options,
            )  # fmt: skip
        tick(len(ids))
        left = [row for row in range(len(prompts)) if row not in ids]
        watch = None if logprobs is None else (logprobs, kept)
        ids |= _answers(model, prompts, left, tick=tick, batch_size=batch_size, watch=watch, **options)
    texts = decoded(model.tokenizer, [list(ids[row]) for row in range(len(prompts))])
    return [
        Completion(text.strip(), ids[row], ended=bool(ids[row]) and ids[row][-1] in ends, steps=kept.get(row))
        for row, text in enumerate(texts)
    ]


def _answers(
    model: Model,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    *,
    intervention: Intervention | None,
    max_new_tokens: int,
    batch_size: int,
    tick: Callable[[int], None] | None,
    watch: tuple[int, dict[int, tuple[Step, ...]]] | None = None,
) -> dict[int, tuple[int, ...]]:
    """Token ids of the answers to some rows, each with the token that ended it; they are kept as drafts.

    With `watch`, a number of likeliest tokens and a dict, the log-probabilities of each answer are put into the dict.
    """
    out: dict[int, tuple[int, ...]] = {}
    ends, some = ends_of(model), [prompts[row] for row in rows]
    for batch in batches(model, some, batch_size=batch_size, side="left", extra=max_new_tokens):
        batch = replace(batch, rows=[rows[i] for i in batch.rows])
        seen = None if watch is None else Likelihoods(watch[0])
        new = _generate_ids(model, prompts, batch, intervention=intervention, n=max_new_tokens, on_logits=seen)
        for i, (row, ids) in enumerate(zip(batch.rows, new.tolist(), strict=True)):
            end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
            out[row] = tuple(ids[: end + 1])
            remember(model, prompts[row], out[row])
            if watch is not None and seen is not None:
                watch[1][row] = seen.steps(i, out[row])
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
    return {"greedy": True, "max_new_tokens": max_new_tokens, "eos_token_ids": ends_of(model)}


def decode(
    model: Model,
    batch: Batch,
    *,
    max_new_tokens: int,
    layers: Sequence[Collection[int]] = (),
    change: Change | None = None,
    site: str = "neuron",
    on_logits: Callable[[Tensor], None] | None = None,
    choose: Callable[[Tensor, Tensor], Tensor] | None = None,
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
        on_logits: called at each step with the logits that decide its tokens, [batch, vocab].
        choose: called at each step with all tokens so far, [batch, pos], and the logits; what it returns instead of the logits has
            the next token of each row as its argmax.

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
    idle, checked = model.idle(batch.encoding), Finite(width, ends_of(model), on_logits)
    processors = LogitsProcessorList([checked, *([choose] if choose is not None else [])])
    options = {"generation_config": greedy(model, max_new_tokens), "logits_processor": processors}
    calls = Calls([sorted(set(at) - set(idle)) for at in layers[:max_new_tokens]], change, width=width)
    answers: list[Tensor] = []

    def run(**kwargs: Any) -> Tensor:
        answers.append(model.module.generate(**kwargs, **options))  # type: ignore[operator]
        return answers[0]

    with (
        running(model, rows=rows, width=width),
        own_config(model.module, options),
        torch.no_grad(),
        quiet_generation(),
    ):
        if change is None or not any(calls.steps):
            run(**encoding)
            return checked_ids(model, batch, answers[0][:, width:], checked=checked), {}
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
    new = checked_ids(model, batch, answers[0][:, width:], checked=checked)
    n = new.shape[1]
    missing = {(step, layer) for step, at in enumerate(visits[:n]) for layer in at} - set(seen)
    if missing:
        raise RuntimeError(f"{model.id!r} did not run at every (step, layer) of a generation: {sorted(missing)[:3]}")
    due = {(step, layer) for step, at in enumerate(calls.steps[:n]) for layer in at}
    return new, {key: value for key, value in seen.items() if key in due}


def _generate_ids(
    model: Model,
    prompts: Sequence[Prompt],
    batch: Batch,
    *,
    intervention: Intervention | None,
    n: int,
    on_logits: Callable[[Tensor], None] | None,
) -> Int[Tensor, "batch new"]:
    """New token ids of a batch under an intervention, every firing of which is counted."""
    edits, _ = edits_for(model, prompts, batch, conditions=[intervention])
    later = _later(model, prompts, batch, intervention=intervention)
    steps = [edits, *[later] * (n - 1)] if later else [edits]

    def change(step: int, layer: int, h: Tensor) -> int:
        return sum(edit.apply(h) for edit in steps[step][layer])

    layers, site = [list(at) for at in steps], site_of([intervention])
    ids, fired = decode(model, batch, max_new_tokens=n, layers=layers, change=change, site=site, on_logits=on_logits)
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
