"""Greedy generation, with an intervention held at every step that it names.

`decode` is the one generation loop: it calls back at every decoding step and layer that it is told to. `generate` uses it to hold
an `Intervention`. Every firing is counted: an intervention that did not fire at every layer, step and token it names is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import nnsight
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from ..core.arguments import at_least
from ..data.prompts import Prompt
from .edits import Edit, check_conditions, edits_for
from .encoding import Batch, as_prompts, batches
from .families import by_row
from .intervention import Intervention, require_intervention
from .model import Model

__all__ = ["decode", "generate"]

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
        InputError: no model or no prompts, or an intervention that does not fit the model or the prompts, or that could not
            fire.
        RuntimeError: an intervention that did not fire at every layer, step and token it names.
    """
    rows = as_prompts(model, prompts, call="generate")
    at_least(1, "generate", max_new_tokens=max_new_tokens, batch_size=batch_size)
    require_intervention(intervention, "generate")
    model.needs_here("generate")
    check_conditions(model, rows, [intervention], generated=max_new_tokens)
    out = [""] * len(rows)
    with tqdm(total=len(rows), desc=desc, unit="prompt", disable=not progress, leave=False) as bar:
        for batch in batches(model, rows, batch_size=batch_size, side="left"):
            new = _generate_ids(model, rows, batch, intervention=intervention, n=max_new_tokens)
            for row, text in zip(batch.rows, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                out[row] = text.strip()
            bar.update(len(batch.rows))
    return out[0] if isinstance(prompts, (str, Prompt)) else out


def decode(
    model: Model,
    batch: Batch,
    *,
    max_new_tokens: int,
    layers: Sequence[Collection[int]] = (),
    change: Change | None = None,
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
            returns is kept.

    Raises:
        RuntimeError: `change` was not called at a (step, layer) that it should have been called at.
    """
    encoding = {k: v for k, v in batch.encoding.items() if k != "position_ids"}
    pad = next((i for i in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id) if i is not None), 0)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": pad}
    width, rows, idle = batch.encoding["input_ids"].shape[1], len(batch.rows), model.idle(batch.encoding)
    steps = [sorted(set(at) - set(idle)) for at in layers[:max_new_tokens]]
    answers: list[Tensor] = []

    def run(**kwargs: Any) -> Tensor:
        answers.append(model.module.generate(**kwargs))  # type: ignore[operator]
        return answers[0]

    if change is None or not any(steps):
        with torch.no_grad(), quiet_generation():
            return run(**encoding, **options)[:, width:], {}
    envoys = model.envoys
    with torch.no_grad(), quiet_generation(), model.traced.trace(fn=run, **encoding, **options) as tracer:
        seen = nnsight.save({})
        for step in tracer.iter[: len(steps)]:
            for layer in steps[step]:
                h = envoys[layer].input.clone()
                seen[step, layer] = change(step, layer, by_row(h, rows))
                envoys[layer].input = h
    new = answers[0][:, width:]
    missing = {(step, layer) for step, at in enumerate(steps[: new.shape[1]]) for layer in at} ^ set(seen)
    if missing:
        raise RuntimeError(f"{model.id!r} did not run at every (step, layer) of a generation: {sorted(missing)[:3]}")
    return new, dict(seen)


def _generate_ids(
    model: Model, prompts: Sequence[Prompt], batch: Batch, *, intervention: Intervention | None, n: int
) -> Int[Tensor, "batch new"]:
    """New token ids of a batch under an intervention, every firing of which is counted."""
    edits, _ = edits_for(model, prompts, batch, conditions=[intervention])
    later = _later(model, prompts, batch, intervention=intervention)
    steps = [edits, *[later] * (n - 1)] if later else [edits]

    def change(step: int, layer: int, h: Tensor) -> int:
        return sum(edit.apply(h) for edit in steps[step][layer])

    ids, fired = decode(model, batch, max_new_tokens=n, layers=[list(at) for at in steps], change=change)
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
