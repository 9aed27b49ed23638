"""Forward passes under interventions, applied through nnsight.

`margins` measures many conditions on the same prompts, as many at once as fit. What no condition changes is computed once
per batch and reused, where the model allows it (see `shortcuts`). Shortcuts are compared with full forwards on every batch: the
clean run when they are made, and then a condition of each first layer, on one prompt by itself. They are dropped where they
disagree.

Every firing is counted: an intervention that did not fire at every layer and token it names is an error, never a null
effect. Logits that are NaN or infinite are an error too; a model may mask tokens with -inf, but not all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, overload

import nnsight
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import at_least
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.progress import bar
from ..data.prompts import Prompt
from .edits import check_conditions, edits_for, site_of
from .encoding import PER_TOKEN, Batch, as_prompts, batches, collate
from .families import by_row
from .intervention import Intervention, require_intervention
from .model import Model
from .norms import FrozenNorms
from .places import place_of
from .prefixes import OpeningTokens, margin
from .running import not_finite, running
from .shortcuts import TROUBLE, Shared, agree, forward_options, last_token_step, may_skip_layers, stack

__all__ = ["answer_logits", "margins", "prepare", "read_layers"]

STACKED_ROWS = 256  # rows of one forward when conditions share it
STACKED_TOKENS = 2**14  # and its tokens where prompts are run in full
STACKED_BYTES = 2**26  # and the most their copies of the cache may take: beyond, copying costs more than it saves


# -- reading ----------------------------------------------------------------------------------------------
def read_layers(
    model: Model, batch: Batch, fn: Callable[[int, Tensor, Any], Tensor], *, site: str = "neuron"
) -> list[Tensor | None]:
    """What `fn` gives for every layer in one traced forward that stops after the last layer; None for idle layers.

    >>> from neuronshield.model.encoding import collate
    >>> batch = collate(model, prompts[:2])
    >>> [h.shape for h in read_layers(model, batch, lambda layer, h, envoy: h[:, -1])]
    [torch.Size([2, 29]), torch.Size([2, 29]), torch.Size([2, 29])]

    Args:
        model: the model.
        batch: what it reads.
        fn: called inside the trace as `fn(layer, h, envoy)` for each layer that runs, in order: h is what the layer has at the site,
            such as its neurons [batch, pos, d_mlp], on that layer's device, `envoy` nnsight's name of the module there: of neurons
            the down-projection (`envoy.output`).
        site: "neuron", "gate", "up", "attention" or "residual" (see `places`).

    Raises:
        InputError: the model has no such site, or too little memory.
    """
    place, idle, rows = place_of(model, site), model.idle(batch.encoding), len(batch.rows)
    envoys = place.envoys(model)
    width = batch.encoding["input_ids"].shape[1]
    with (
        running(model, rows=rows, width=width),
        torch.no_grad(),
        model.traced.trace(**batch.encoding, **model.there) as tracer,
    ):
        kept = nnsight.save([])
        for layer, envoy in enumerate(envoys):
            if layer in idle:
                kept.append(None)
            else:
                kept.append(fn(layer, by_row(place.read(envoy), rows), envoy))
        tracer.stop()
    return list(kept)


@overload
def answer_logits(  # type: ignore[overload-overlap]
    model: Model, prompts: str | Prompt, intervention: Intervention | None = None, *, batch_size: int = 32
) -> Float[Tensor, " vocab"]: ...
@overload
def answer_logits(
    model: Model, prompts: Iterable[str | Prompt], intervention: Intervention | None = None, *, batch_size: int = 32
) -> Float[Tensor, "prompt vocab"]: ...
def answer_logits(
    model: Model,
    prompts: str | Prompt | Iterable[str | Prompt],
    intervention: Intervention | None = None,
    *,
    batch_size: int = 32,
) -> Float[Tensor, "*prompt vocab"]:
    """Logits of the first answer token of every prompt, clean or under one intervention, float32: [prompt, vocab].

    >>> answer_logits(model, prompts[:4], ns.Intervention(neurons, "zero")).shape
    torch.Size([4, 38])
    >>> answer_logits(model, "how do i bake bread").shape
    torch.Size([38])

    Args:
        model: the model.
        prompts: a `PromptSet`, a sequence of prompts or strings, or one of either, whose logits are then [vocab].
        intervention: what is changed; None for nothing.
        batch_size: prompts a forward.

    Raises:
        InputError: no prompts, an intervention that does not fit the model or the prompts or that could not fire, logits that
            are not finite, or too little memory.
    """
    rows = as_prompts(model, prompts, call="answer_logits")
    at_least(1, "answer_logits", batch_size=batch_size)
    require_intervention(intervention, "answer_logits")
    if not rows:
        raise InputError("answer_logits: no prompts")
    check_conditions(model, rows, [intervention])
    parts: dict[int, Tensor] = {}
    for batch in batches(model, rows, batch_size=batch_size, side="left"):
        logits, _ = _logits(model, rows, batch, conditions=[intervention], shared=Shared(dict(batch.encoding)))
        parts |= dict(zip(batch.rows, logits[0].float().cpu(), strict=True))
    return parts[0] if isinstance(prompts, (str, Prompt)) else torch.stack([parts[i] for i in range(len(rows))])


# -- one batch --------------------------------------------------------------------------------------------
Prepared = list[tuple[Batch, Shared]]


def prepare(model: Model, prompts: Sequence[Prompt], *, batch_size: int) -> Prepared | None:
    """What all conditions that touch the last prompt token share, for many calls of `margins` on the same prompts.

    None where the model cannot go on from the tokens before it.

    >>> len(prepare(model, prompts[:6], batch_size=4))
    2

    Args:
        model: the model.
        prompts: the prompts of those calls.
        batch_size: prompts a forward.
    """
    out = []
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        shared = _share(model, prompts, batch, layers=range(model.n_layers), last_only=True)
        if shared.cache is None:
            return None
        out.append((batch, shared))
    return out


def _logits(
    model: Model,
    prompts: Sequence[Prompt],
    batch: Batch,
    *,
    conditions: Sequence[Intervention | None],
    shared: Shared,
    keep: Sequence[int] = (),
) -> tuple[Float[Tensor, "condition batch vocab"], dict[int, Tensor]]:
    """First-answer-token logits of a left-padded batch under each condition, in one forward.

    `keep` asks for the residual that those layers read, which later calls reuse through `shared.residual`.
    """
    n, times = len(batch.rows), len(conditions)
    edits, expected = edits_for(model, prompts, batch, conditions=conditions)
    place, first = place_of(model, site_of(conditions)), min(edits, default=0)
    known = shared.residual.get(first) if edits else None
    entry = None if known is None else stack(known, times)
    encoding = forward_options(model, shared, times, first=first if entry is not None else 0)
    layers, envoys, idle = model.layer_envoys, place.envoys(model), model.idle(batch.encoding)
    skipped = [i for i in range(first) if i not in idle] if entry is not None else []
    rows, width = encoding["input_ids"].shape
    with (
        running(model, rows=rows, width=width),
        torch.no_grad(),
        model.traced.trace(**encoding, **model.there) as tracer,
    ):
        fired, kept = nnsight.save({}), nnsight.save({})
        for below in skipped:
            layers[below].skip(entry)
        for layer in sorted({*edits, *keep}):
            if layer in keep:
                kept[layer] = layers[layer].input
            if layer in edits:
                h = place.read(envoys[layer]).clone()
                fired[layer] = sum(edit.apply(by_row(h, n * times)) for edit in edits[layer])
                place.write(envoys[layer], h)
        result = tracer.result.save()
    if dict(fired) != expected:
        raise RuntimeError(f"an intervention on {model.id!r} fired {dict(fired)} times by layer, not {expected}")
    last = rearrange(result.logits[:, -1].detach(), "(condition batch) vocab -> condition batch vocab", condition=times)
    _check_finite(model, prompts, batch, logits=last, conditions=conditions)
    return last, dict(kept)


def _check_finite(
    model: Model, prompts: Sequence[Prompt], batch: Batch, *, logits: Tensor, conditions: Sequence[Intervention | None]
) -> None:
    """Raise if a row of logits has a NaN or +inf, or nothing but -inf (its largest entry is then not finite)."""
    wrong = ~logits.amax(dim=-1).isfinite()
    if bool(wrong.any()):
        condition, row = wrong.nonzero()[0].tolist()
        what = "" if conditions[condition] is None else f" under {conditions[condition]!r}"
        raise InputError(not_finite(model, prompts[batch.rows[row]].id, what=what))


def _share(model: Model, prompts: Sequence[Prompt], batch: Batch, *, layers: Sequence[int], last_only: bool) -> Shared:
    """Run once what no condition changes; each shortcut only where it reproduces the full forward.

    `layers` are those that a condition may touch first; with `last_only` nothing before the last token is touched.
    """
    out = Shared(dict(batch.encoding))
    idle = model.idle(batch.encoding)
    firsts = [layer for layer in layers if layer and layer not in idle]
    full, kept = _logits(model, prompts, batch, conditions=[None], shared=out, keep=() if last_only else firsts)
    step = last_token_step(model, batch) if last_only else None
    if step is not None:
        try:
            short, kept = _logits(model, prompts, batch, conditions=[None], shared=step, keep=firsts)
            out = step if agree(model, full, short) else out
        except TROUBLE:
            pass
    if last_only and out.cache is None:
        return out
    if not firsts or not may_skip_layers(model, kept, len(batch.rows)):
        return out
    trial = Shared(out.encoding, out.cache, {k: v.clone() for k, v in kept.items()})
    touch = Intervention(NeuronSet([(firsts[-1], 0)]), "scale", 1.0)
    try:
        again, _ = _logits(model, prompts, batch, conditions=[touch], shared=trial)
    except TROUBLE:
        return out
    return trial if agree(model, full, again) else out


def _chunks(conditions: Sequence[Intervention | None], batch: Batch, shared: Shared) -> list[list[int]]:
    """Conditions that go through one forward together: as many as fit, with the same first layer and at the same site."""
    n, width = batch.encoding["input_ids"].shape
    limit = min(STACKED_ROWS // n, STACKED_TOKENS // (n * width))
    if shared.cache is not None:
        run = [layer for layer in shared.cache.layers if layer.is_initialized]  # idle layers keep nothing
        size = sum(x.numel() * x.element_size() for layer in run for x in (layer.keys, layer.values))
        limit = min(STACKED_ROWS // n, STACKED_BYTES // max(size, 1))
    if any(k not in PER_TOKEN for k in shared.encoding):  # pictures: rows may not line up with prompts
        limit = 1
    by_first: dict[tuple[int, str], list[int]] = {}
    for i, c in enumerate(conditions):
        by_first.setdefault((_first_layer(c), site_of([c])), []).append(i)
    limit = max(limit, 1)
    return [group[at : at + limit] for group in by_first.values() for at in range(0, len(group), limit)]


def _first_layer(condition: Intervention | None) -> int:
    """The lowest layer that it touches; -1 for a clean run."""
    return -1 if condition is None else min(condition.neurons.by_layer())


# -- many prompts -----------------------------------------------------------------------------------------
def margins(
    model: Model,
    prompts: Sequence[Prompt],
    conditions: Sequence[Intervention | None],
    tokens: dict[str, OpeningTokens],
    *,
    batch_size: int = 32,
    frozen: bool = False,
    prepared: Prepared | None = None,
    progress: bool = False,
    desc: str = "ablate",
) -> Float[np.ndarray, "condition prompt"]:
    """Refusal margin at the first answer token of every prompt under every condition.

    >>> from neuronshield.model.prefixes import opening_tokens, openings_of
    >>> openings = openings_of(model, prompts, refusals=["sorry", "no"], compliances=["sure"])
    >>> tokens = opening_tokens(model, openings)
    >>> margins(model, prompts[:5], [None, ns.Intervention(neurons, "zero")], tokens).shape
    (2, 5)

    Args:
        model: the model.
        prompts: the prompts.
        conditions: interventions; None for a clean run.
        tokens: first-token ids by language, from `opening_tokens`.
        batch_size: prompts a forward.
        frozen: every norm of the residual stream keeps the mean and scale of the clean run at the last prompt token (see
            `norms`).
        prepared: what `prepare` made of the same prompts.
        progress: show a progress bar.
        desc: its label.

    Raises:
        InputError: a condition that does not fit the model or the prompts, or touches generated tokens only; logits that are
            not finite; too little memory.
        RuntimeError: a condition that did not fire at every layer and token it names.
    """
    prompts = as_prompts(model, prompts, call="margins")
    at_least(1, "margins", batch_size=batch_size)
    check_conditions(model, prompts, conditions)
    out = np.empty((len(conditions), len(prompts)))
    with bar(len(prompts) * len(conditions), desc=desc, unit="run", show=progress) as tick:
        for batch, shared in prepared or _shares(model, prompts, conditions, batch_size=batch_size):
            kinds = [tokens[prompts[row].language] for row in batch.rows]
            for chunk, logits in _runs(model, prompts, batch, conditions=conditions, shared=shared, frozen=frozen):
                flat = rearrange(logits, "condition batch vocab -> (condition batch) vocab")
                read = rearrange(margin(flat, kinds * len(chunk)).numpy(), "(c batch) -> c batch", c=len(chunk))
                if not np.isfinite(read).all():
                    row = batch.rows[int(np.argwhere(~np.isfinite(read))[0][1])]
                    raise InputError(
                        f"prompt {prompts[row].id!r}: {model.id!r} masks the first tokens of all refusal or all compliance "
                        "prefixes; pass other refusals=[...] or compliances=[...]"
                    )
                out[np.ix_(chunk, batch.rows)] = read
                tick(len(batch.rows) * len(chunk))
    return out


def _runs(
    model: Model,
    prompts: Sequence[Prompt],
    batch: Batch,
    *,
    conditions: Sequence[Intervention | None],
    shared: Shared,
    frozen: bool,
) -> Iterator[tuple[list[int], Float[Tensor, "condition batch vocab"]]]:
    """Numbers of the conditions that were run together, and their logits; a shortcut that gives others is dropped."""
    hold: Any = nullcontext()
    if frozen:
        hold = FrozenNorms(model, mean=True).hooks
        with running(model), hold:
            _logits(model, prompts, batch, conditions=[None], shared=shared)
    shared.calls += 1
    for chunk in _chunks(conditions, batch, shared):
        chosen = [conditions[i] for i in chunk]
        with running(model), hold:
            logits, _ = _logits(model, prompts, batch, conditions=chosen, shared=shared)
        first = _first_layer(chosen[0])
        if first >= 0 and shared.due(first):
            c, at = shared.calls % len(chosen), (first + shared.calls) % len(batch.rows)
            alone = _alone(model, prompts, batch.rows[at], condition=chosen[c], frozen=frozen)
            if not agree(model, alone, logits[c, at]):
                shared.drop(batch)
                parts = []
                for condition in chosen:
                    with running(model), hold:
                        parts.append(_logits(model, prompts, batch, conditions=[condition], shared=shared)[0])
                logits = torch.cat(parts)
        yield chunk, logits


def _alone(
    model: Model, prompts: Sequence[Prompt], row: int, *, condition: Intervention | None, frozen: bool
) -> Float[Tensor, " vocab"]:
    """Logits of one prompt by itself, unpadded, in a full forward under one condition."""
    batch = collate(model, [prompts[row]], side="left", rows=[row])
    hold: Any = FrozenNorms(model, mean=True).hooks if frozen else nullcontext()
    for each in [None, condition] if frozen else [condition]:  # frozen norms remember the clean run
        with running(model), hold:
            logits, _ = _logits(model, prompts, batch, conditions=[each], shared=Shared(dict(batch.encoding)))
    return logits[0, 0]


def _shares(
    model: Model, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None], *, batch_size: int
) -> Iterator[tuple[Batch, Shared]]:
    """Batches, with what is worth sharing for these conditions."""
    last_only = all(c is None or c.positions == "last_prompt" for c in conditions)
    layers = sorted({min(c.neurons.by_layer()) for c in conditions if c is not None})
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        if len(conditions) < 3:
            yield batch, Shared(dict(batch.encoding))
        else:
            yield batch, _share(model, prompts, batch, layers=layers, last_only=last_only)
