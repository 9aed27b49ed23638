"""Greedy generation, with an intervention held at every step it names.

Every firing is counted: an intervention that did not fire at every layer, step and token it names is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import nnsight
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from ..data.prompts import Prompt
from .encoding import Batch, batches
from .forward import Edit, check_conditions, edits_for
from .intervention import Intervention
from .model import Model, by_row

__all__ = ["decode", "generate"]

Change = Callable[[int, int, Tensor], Any]


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    intervention: Intervention | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: bool = False,
    desc: str = "answer",
) -> list[str]:
    """Greedy answers, with an intervention held through the prompt (and every step, for "response" and "all").

    >>> generate(model, prompts[:2], max_new_tokens=16)        # doctest: +SKIP
    ['Sure, ...', 'Sorry, ...']

    Raises:
        InputError: an intervention that does not fit the model or the prompts, or that could not fire.
    """
    model.needs_here("generate")
    check_conditions(model, prompts, [intervention], generated=max_new_tokens)
    out = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=desc, unit="prompt", disable=not progress, leave=False) as bar:
        for batch in batches(model, prompts, batch_size=batch_size, side="left"):
            new = _generate_ids(model, prompts, batch, intervention, max_new_tokens)
            for row, text in zip(batch.rows, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                out[row] = text.strip()
            bar.update(len(batch.rows))
    return out


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
    model: Model, prompts: Sequence[Prompt], batch: Batch, intervention: Intervention | None, n: int
) -> Int[Tensor, "batch new"]:
    """New token ids of a batch under an intervention, every firing of which is counted."""
    edits = {} if intervention is None else edits_for(model, prompts, batch, [intervention])[0]
    later = _later(model, prompts, batch, intervention)
    steps = [edits, *[later] * (n - 1)] if later else [edits]

    def change(step: int, layer: int, h: Tensor) -> int:
        return sum(edit.apply(h) for edit in steps[step][layer])

    ids, fired = decode(model, batch, max_new_tokens=n, layers=[list(at) for at in steps], change=change)
    expected = {
        (step, layer): sum(_tokens(edit) for edit in changes)
        for step, at in enumerate(steps[: ids.shape[1]])
        for layer, changes in at.items()
    }
    if fired != expected:
        wrong = sorted(set(expected.items()) ^ set(fired.items()))[:3]
        raise RuntimeError(f"an intervention on {model.id!r} did not fire as named; (step, layer), tokens: {wrong}")
    return ids


def _later(
    model: Model, prompts: Sequence[Prompt], batch: Batch, intervention: Intervention | None
) -> dict[int, list[Edit]]:
    """Edits of each step after the first, when one new token of every row is read."""
    if intervention is None or intervention.positions not in ("response", "all"):
        return {}
    as_last = Intervention(intervention.neurons, intervention.kind, intervention.value, cells=intervention.cells)
    return edits_for(model, prompts, batch, [as_last])[0]


def _tokens(edit: Edit) -> int:
    if edit.where is not None:
        return int(edit.where.sum())
    return edit.stop - edit.start if edit.active is None else int(edit.active.sum())


class quiet_generation(warnings.catch_warnings):
    """Silence generation-length and unreached-step warnings (steps after the last token are expected)."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
