"""Interventions: which neurons, what they become, where; applied by one interpreter.

An `Intervention` is data. Its `kind` says how to read its `value`:

    zero       h_i <- 0
    mean       h_i <- a mean over other prompts         value [n_layers, d_mlp], or one row a prompt
    resample   h_i <- what it was on an unrelated prompt  value [prompt, n_layers, d_mlp]
    patch      h_i <- what it was on the matched twin     value [prompt, n_layers, d_mlp]

`margins` measures many conditions on the same prompts. Where every condition touches the last prompt
token only, the tokens before it cannot change (attention is causal), so they are run once per batch and
each condition costs a one-token forward on their key-value cache. That shortcut is checked against a full
forward on every batch and dropped where the two disagree.

An intervention that did not fire on every layer it names is an error, never a null effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import nnsight
import numpy as np
import torch
from tqdm.auto import tqdm

from .collate import Batch, batches
from .errors import InputError
from .grade import OpeningTokens, margin
from .models import Model
from .neurons import NeuronSet
from .prompts import Prompt

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Intervention", "generate", "margins"]


@dataclass(frozen=True, eq=False)
class Intervention:
    """Which neurons, what, where.

    >>> Intervention(neurons, "mean", benign_mean)             # doctest: +SKIP

    Attributes:
        neurons: the set that is changed.
        kind: "zero", "mean", "resample" or "patch".
        value: None for "zero", otherwise [n_layers, d_mlp] or [prompt, n_layers, d_mlp] (float32).
        positions: "last_prompt", or "all" prompt tokens and every generated one.

    Raises:
        InputError: an empty set, an unknown kind, or a value that is missing or of the wrong shape.
    """

    neurons: NeuronSet
    kind: Literal["zero", "mean", "resample", "patch"]
    value: Float[Tensor, "*prompt n_layers d_mlp"] | None = None
    positions: Literal["last_prompt", "all"] = "last_prompt"

    def __post_init__(self) -> None:
        if not len(self.neurons):
            raise InputError("an intervention on an empty neuron set does nothing; pass at least one neuron")
        if self.kind not in ("zero", "mean", "resample", "patch"):
            raise InputError(f"kind={self.kind!r} is unknown; use zero, mean, resample or patch")
        if self.positions not in ("last_prompt", "all"):
            raise InputError(f"positions={self.positions!r} is unknown; use 'last_prompt' or 'all'")
        if (self.value is None) != (self.kind == "zero"):
            raise InputError(f"kind={self.kind!r} {'takes no' if self.kind == 'zero' else 'needs a'} value")

    def check(self, model: Model, n_prompts: int) -> None:
        """Raise unless it fits this model and this many prompts."""
        for layer, index in self.neurons:
            if layer >= model.n_layers or index >= model.d_mlp:
                raise InputError(
                    f"neuron ({layer}, {index}) does not exist in {model.id!r} "
                    f"({model.n_layers} layers x {model.d_mlp}); was the set made for another model?"
                )
        if self.value is not None:
            shape, neurons = tuple(self.value.shape), (model.n_layers, model.d_mlp)
            if shape not in (neurons, (n_prompts, *neurons)):
                raise InputError(f"value has shape {shape}; expected {neurons} or {(n_prompts, *neurons)}")

    def edits(self, rows: list[int], device: torch.device) -> list[tuple[int, Tensor, Tensor]]:
        """(layer, indices [k], new values [batch or 1, k]) for the prompts in `rows`, layers ascending."""
        out = []
        for layer, members in self.neurons.by_layer().items():
            if self.value is None:
                new = torch.zeros(1, len(members))
            elif self.value.ndim == 2:
                new = self.value[layer, members][None]
            else:
                new = self.value[rows][:, layer, members]
            out.append((layer, torch.tensor(members, device=device), new.to(device)))
        return out


def _changed(h: Tensor, indices: Tensor, new: Tensor, where: Tensor | None) -> Tensor:
    """`h` with the chosen coordinates replaced at its last position, or wherever `where` [batch, pos] is true."""
    out = h.clone()
    new = new.to(h.dtype)
    if where is None:
        out[:, -1, indices] = new
    else:
        out[:, :, indices] = torch.where(where[..., None], new[:, None, :], h[:, :, indices])
    return out


def margins(
    model: Model,
    prompts: Sequence[Prompt],
    conditions: Sequence[Intervention | None],
    tokens: dict[str, OpeningTokens],
    *,
    batch_size: int = 32,
    progress: bool = False,
    desc: str = "ablate",
) -> Float[np.ndarray, "condition prompt"]:
    """Refusal margin at the first answer token of every prompt under every condition (None: clean).

    >>> margins(model, prompts, [None, Intervention(neurons, "zero")], tokens).shape   # doctest: +SKIP
    (2, 48)
    """
    for condition in conditions:
        if condition is not None:
            condition.check(model, len(prompts))
    out = np.empty((len(conditions), len(prompts)))
    only_last = all(c is None or c.positions == "last_prompt" for c in conditions)
    with tqdm(total=len(prompts) * len(conditions), desc=desc, unit="run", disable=not progress, leave=False) as bar:
        for batch in batches(model, prompts, batch_size=batch_size, side="left"):
            kinds = [tokens[prompts[row].language] for row in batch.rows]
            step = _last_token_step(model, batch) if only_last and len(conditions) > 2 else None
            for i, condition in enumerate(conditions):
                out[i, batch.rows] = margin(_logits(model, batch, condition, step), kinds).numpy()
                bar.update(len(batch.rows))
    return out


@dataclass
class _Step:
    """A forward over the last token only, on the cache of those before it."""

    encoding: dict[str, Any]
    cache: Any


def _last_token_step(model: Model, batch: Batch) -> _Step | None:
    """Run all tokens but the last once; None where that does not reproduce the full forward."""
    width = batch.encoding["input_ids"].shape[1]
    if width < 2 or "past_key_values" not in _forward_names(model):
        return None
    first = {k: v[:, :-1] if k in _PER_TOKEN else v for k, v in batch.encoding.items()}
    last = {k: v[:, -1:] for k, v in batch.encoding.items() if k in _PER_TOKEN}
    last["attention_mask"] = batch.encoding["attention_mask"]
    if "position_ids" not in last:
        return None
    try:
        with torch.no_grad():
            cache = model.module(**first, use_cache=True).past_key_values
            if not hasattr(cache, "crop"):
                return None
            step = _Step(last, cache)
            full = _logits(model, batch, None, None).float()
            short = _logits(model, batch, None, step).float()
    except (RuntimeError, ValueError, TypeError):
        return None
    loose = next(model.module.parameters()).dtype != torch.float32
    return step if torch.allclose(full, short, rtol=1e-3, atol=0.25 if loose else 1e-3) else None


_PER_TOKEN = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")


def _forward_names(model: Model) -> set[str]:
    return {name for name in ("past_key_values", "logits_to_keep") if model.forward_takes(name)}


def _logits(
    model: Model, batch: Batch, condition: Intervention | None, step: _Step | None
) -> Float[Tensor, "batch vocab"]:
    """First-answer-token logits of a left-padded batch under a condition."""
    encoding: dict[str, Any] = dict(batch.encoding if step is None else step.encoding)
    if step is not None:
        encoding |= {"past_key_values": step.cache, "use_cache": True}
    if "logits_to_keep" in _forward_names(model):
        encoding["logits_to_keep"] = 1
    edits = condition.edits(batch.rows, model.device) if condition is not None else []
    where = batch.roles["prompt"] if condition is not None and condition.positions == "all" else None
    envoys = [model.envoys[layer] for layer, _, _ in edits]
    with torch.no_grad(), model.traced.trace(**encoding) as tracer:
        fired = nnsight.save([])
        for envoy, (_, indices, new) in zip(envoys, edits, strict=True):
            envoy.input = _changed(envoy.input, indices, new, where)
            fired.append(True)
        result = tracer.result.save()
    if step is not None:
        step.cache.crop(-1)  # forget the token this condition added
    if len(fired) != len(edits):
        raise RuntimeError(f"intervention fired on {len(fired)} of {len(edits)} layers of {model.id!r}")
    return result.logits[:, -1]


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
    """Greedy answers, with an intervention held through the prompt (and every step, if "all").

    >>> generate(model, prompts[:2], max_new_tokens=16)        # doctest: +SKIP
    ['Sure, ...', 'Sorry, ...']
    """
    if intervention is not None:
        intervention.check(model, len(prompts))
    out = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=desc, unit="prompt", disable=not progress, leave=False) as bar:
        for batch in batches(model, prompts, batch_size=batch_size, side="left"):
            ids = _generate_ids(model, batch, intervention, max_new_tokens)
            new = ids[:, batch.encoding["input_ids"].shape[1] :]
            for row, text in zip(batch.rows, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                out[row] = text.strip()
            bar.update(len(batch.rows))
    return out


def _generate_ids(model: Model, batch: Batch, intervention: Intervention | None, n: int) -> Tensor:
    encoding = {k: v for k, v in batch.encoding.items() if k != "position_ids"}
    tokenizer = model.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    options = {"max_new_tokens": n, "do_sample": False, "num_beams": 1, "pad_token_id": pad if pad is not None else 0}
    answers: list[Tensor] = []

    def run(**kwargs: Any) -> Tensor:
        answers.append(model.module.generate(**kwargs))  # type: ignore[operator]
        return answers[0]

    if intervention is None:
        with torch.no_grad(), _quiet():
            return run(**encoding, **options)
    edits = intervention.edits(batch.rows, model.device)
    envoys = [model.envoys[layer] for layer, _, _ in edits]
    everywhere = intervention.positions == "all"
    where = batch.roles["prompt"] if everywhere else None
    with torch.no_grad(), _quiet(), model.traced.trace(fn=run, **encoding, **options) as tracer:
        fired = nnsight.save([])
        for step in tracer.iter[: n if everywhere else 1]:
            for envoy, (_, indices, new) in zip(envoys, edits, strict=True):
                h = envoy.input
                here = where if where is None or h.shape[1] == where.shape[1] else torch.ones_like(where[:, :1])
                envoy.input = _changed(h, indices, new, here)
                fired.append(step)
    steps = answers[0].shape[1] - batch.encoding["input_ids"].shape[1] if everywhere else 1
    if len(fired) < len(edits) * min(steps, n):
        raise RuntimeError(f"intervention fired {len(fired)} times, not {len(edits)} layers x {steps} steps")
    return answers[0]


class _quiet(warnings.catch_warnings):
    """Silence generation-length and unreached-step warnings (steps after the last token are expected)."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
