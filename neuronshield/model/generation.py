"""Greedy generation, with an intervention held at every step it names.

Every firing is counted: an intervention that did not fire at every layer, step and token it names is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.prompts import Prompt
from .encoding import Batch, batches
from .forward import Edit, check_conditions, edits_for
from .intervention import Intervention
from .model import Model, by_row

__all__ = ["generate"]


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
            ids = _generate_ids(model, prompts, batch, intervention, max_new_tokens)
            new = ids[:, batch.encoding["input_ids"].shape[1] :]
            for row, text in zip(batch.rows, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                out[row] = text.strip()
            bar.update(len(batch.rows))
    return out


def _generate_ids(
    model: Model, prompts: Sequence[Prompt], batch: Batch, intervention: Intervention | None, n: int
) -> Tensor:
    encoding = {k: v for k, v in batch.encoding.items() if k != "position_ids"}
    tokenizer = model.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    options = {"max_new_tokens": n, "do_sample": False, "num_beams": 1, "pad_token_id": pad if pad is not None else 0}
    answers: list[Tensor] = []

    def run(**kwargs: Any) -> Tensor:
        answers.append(model.module.generate(**kwargs))  # type: ignore[operator]
        return answers[0]

    edits = {} if intervention is None else edits_for(model, prompts, batch, [intervention])[0]
    later = _later(model, prompts, batch, intervention)
    if not edits and not later:
        with torch.no_grad(), quiet_generation():
            return run(**encoding, **options)
    steps = [edits, *[later] * (n - 1)] if later else [edits]
    envoys = model.envoys
    with torch.no_grad(), quiet_generation(), model.traced.trace(fn=run, **encoding, **options) as tracer:
        fired = nnsight.save({})
        for step in tracer.iter[: len(steps)]:
            for layer, changes in steps[step].items():
                h = envoys[layer].input.clone()
                fired[step, layer] = sum(edit.apply(by_row(h, len(batch.rows))) for edit in changes)
                envoys[layer].input = h
    done = answers[0].shape[1] - batch.encoding["input_ids"].shape[1]
    expected = {
        (s, layer): sum(_tokens(e) for e in changes)
        for s, at in enumerate(steps[:done]) for layer, changes in at.items()
    }  # fmt: skip
    if dict(fired) != expected:
        missing = sorted(set(expected.items()) ^ set(dict(fired).items()))[:3]
        raise RuntimeError(f"an intervention on {model.id!r} did not fire as named; (step, layer), tokens: {missing}")
    return answers[0]


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
