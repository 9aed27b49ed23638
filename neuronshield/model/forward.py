"""Forward passes under interventions, applied through nnsight.

`margins` measures many conditions on the same prompts, as many at once as fit. What no condition changes is computed once
per batch and reused: the layers below the first one touched (their residual is kept), and, where only the last prompt token
is touched, all tokens before it (attention is causal; their key-value cache is kept). Both shortcuts are checked against a
full forward on every batch and dropped where they disagree.

Every firing is counted: an intervention that did not fire at every layer and token it names is an error, never a null
effect.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from .encoding import PER_TOKEN, Batch, batches
from .intervention import Intervention
from .model import Model, by_row
from .prefixes import OpeningTokens, margin

__all__ = ["answer_logits", "margins", "prepare", "read_layers"]


STACKED_ROWS = 256  # rows of one forward when conditions share it


STACKED_BYTES = 2**26  # and the most their copies of the cache may take: beyond, copying costs more than it saves


def read_layers(model: Model, batch: Batch, fn: Callable[[int, Tensor, Any], Tensor]) -> list[Tensor | None]:
    """What `fn` gives for every layer in one traced forward that stops after the last layer; None for idle layers.

    >>> from neuronshield.model.encoding import collate
    >>> batch = collate(model, prompts[:2])
    >>> [h.shape for h in read_layers(model, batch, lambda layer, h, envoy: h[:, -1])]
    [torch.Size([2, 29]), torch.Size([2, 29]), torch.Size([2, 29])]

    Args:
        model: the model.
        batch: what it reads.
        fn: called inside the trace as `fn(layer, h, envoy)` for each layer that runs, in order: h is the layer's neurons
            [batch, pos, d_mlp] on that layer's device, `envoy` nnsight's name of its down-projection (`envoy.output`).
    """
    envoys, idle, rows = model.envoys, model.idle(batch.encoding), len(batch.rows)
    with torch.no_grad(), model.traced.trace(**batch.encoding, **model.there) as tracer:
        kept = nnsight.save([])
        for layer, envoy in enumerate(envoys):
            if layer in idle:
                kept.append(None)
            else:
                kept.append(fn(layer, by_row(envoy.input, rows), envoy))
        tracer.stop()
    return list(kept)


# -- one batch --------------------------------------------------------------------------------------------
class Edit(NamedTuple):
    """One condition's change of one layer: rows `start`.. of the forward, at `where` (None: the last position)."""

    scale: bool
    start: int
    stop: int
    indices: Tensor
    new: Tensor | float
    where: Tensor | None
    active: Tensor | None

    def apply(self, h: Tensor) -> int:
        """Change `h` [rows, pos, d_mlp] in place; how many tokens were touched."""
        mine, indices = h[self.start : self.stop], self.indices.to(h.device)  # layers may be on different devices
        if self.where is None:
            old = mine[:, -1, indices]
            new = old * self.new if self.scale else torch.as_tensor(self.new, dtype=h.dtype, device=h.device)
            if self.active is not None:
                new = torch.where(self.active[:, None].to(h.device), new, old)
            mine[:, -1, indices] = new
            return len(mine) if self.active is None else int(self.active.sum())
        old = mine[:, :, indices]
        if self.scale:
            new = old * self.new
        else:
            new = torch.as_tensor(self.new, dtype=h.dtype, device=h.device)
            new = new[:, None, :] if new.ndim == 2 else new
        mine[:, :, indices] = torch.where(self.where[..., None].to(h.device), new, old)
        return int(self.where.sum())


def _active(prompts: Sequence[Prompt], rows: list[int], condition: Intervention, device: Any) -> Tensor | None:
    """Which rows are of the cells it names; None for all of them."""
    if condition.cells is None:
        return None
    return torch.tensor([prompts[row].cell in condition.cells for row in rows], device=device)


def edits_for(
    model: Model, prompts: Sequence[Prompt], batch: Batch, conditions: Sequence[Intervention | None]
) -> tuple[dict[int, list[Edit]], dict[int, int]]:
    """Edits by layer for conditions stacked in one forward, and how many tokens each layer must see touched."""
    edits: dict[int, list[Edit]] = {}
    expected: dict[int, int] = {}
    n, idle = len(batch.rows), model.idle(batch.encoding)
    for i, part in enumerate(conditions):
        if part is None:
            continue
        active = _active(prompts, batch.rows, part, model.device)
        where = _where(prompts, batch, part, active)
        tokens = int(where.sum()) if where is not None else n if active is None else int(active.sum())
        if not tokens:
            continue
        for layer, members in part.neurons.by_layer().items():
            if layer in idle:
                continue
            new = part.new(layer, members, batch.rows)
            new = new.to(model.device) if isinstance(new, torch.Tensor) else new
            indices = torch.tensor(members, device=model.device)
            edit = Edit(part.kind == "scale", i * n, (i + 1) * n, indices, new, where, active)
            edits.setdefault(layer, []).append(edit)
            expected[layer] = expected.get(layer, 0) + tokens
    return dict(sorted(edits.items())), expected


def _where(prompts: Sequence[Prompt], batch: Batch, condition: Intervention, active: Tensor | None) -> Tensor | None:
    """Tokens of the prompt that it touches, [batch, pos]; None for the last one."""
    if condition.positions == "last_prompt":
        return None
    where = batch.roles["prompt" if condition.positions == "all" else condition.positions]
    touched = where.any(dim=1) if active is None else where.any(dim=1) | ~active
    if condition.positions != "response" and not bool(touched.all()):
        row = batch.rows[int((~touched).int().argmax())]
        raise InputError(
            f"positions={condition.positions!r}: prompt {prompts[row].id!r} has no such token; name the cells that have, "
            "with cells=[...]"
        )
    return where if active is None else where & active[:, None]


@dataclass
class _Shared:
    """What the conditions of a batch share: the encoding they still have to run, and what was already run."""

    encoding: dict[str, Any]
    cache: Any = None  # of all tokens but the last
    residual: dict[int, Tensor] | None = None  # layer -> what it reads, clean


Prepared = list[tuple[Batch, _Shared]]


def prepare(model: Model, prompts: Sequence[Prompt], *, batch_size: int) -> Prepared | None:
    """What all conditions that touch the last prompt token share, for many calls of `margins` on the same prompts.

    None where the model cannot go on from the tokens before it.
    """
    out = []
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        shared = _share(model, prompts, batch, range(model.n_layers), last_only=True)
        if shared.cache is None:
            return None
        out.append((batch, shared))
    return out


def _logits(
    model: Model,
    prompts: Sequence[Prompt],
    batch: Batch,
    conditions: Sequence[Intervention | None],
    shared: _Shared,
    keep: Sequence[int] = (),
) -> tuple[Float[Tensor, "condition batch vocab"], dict[int, Tensor]]:
    """First-answer-token logits of a left-padded batch under each condition, in one forward.

    `keep` asks for the residual that those layers read, which later calls reuse through `shared.residual`.
    """
    n, times = len(batch.rows), len(conditions)
    encoding = {k: _stack(v, times, n) for k, v in shared.encoding.items()}
    if shared.cache is not None:
        encoding["use_cache"] = True
    elif model.forward_takes("use_cache"):
        encoding["use_cache"] = False
    if model.forward_takes("logits_to_keep"):
        encoding["logits_to_keep"] = 1
    edits, expected = edits_for(model, prompts, batch, conditions)
    first = min(edits, default=0)
    known = shared.residual.get(first) if shared.residual is not None and edits else None
    entry = None if known is None else _stack(known, times, n)
    if shared.cache is not None:
        encoding["past_key_values"] = _fresh(shared.cache, times, first if entry is not None else 0)
    layers, envoys = model.layer_envoys, model.envoys
    idle = model.idle(batch.encoding)
    skipped = [i for i in range(first) if i not in idle] if entry is not None else []
    with torch.no_grad(), model.traced.trace(**encoding, **model.there) as tracer:
        fired, kept = nnsight.save({}), nnsight.save({})
        for below in skipped:
            layers[below].skip(entry)
        for layer in sorted({*edits, *keep}):
            if layer in keep:
                kept[layer] = layers[layer].input
            if layer in edits:
                h = envoys[layer].input.clone()
                fired[layer] = sum(edit.apply(by_row(h, n * times)) for edit in edits[layer])
                envoys[layer].input = h
        result = tracer.result.save()
    if dict(fired) != expected:
        raise RuntimeError(f"an intervention on {model.id!r} fired {dict(fired)} times by layer, not {expected}")
    return result.logits[:, -1].detach().unflatten(0, (times, n)), dict(kept)


def _stack(value: Any, times: int, n: int) -> Any:
    """One copy of the batch a condition; pictures, which may have rows of their own, follow."""
    if times == 1 or not isinstance(value, torch.Tensor):
        return value
    return value.repeat(times, *[1] * (value.ndim - 1))


def _fresh(cache: Any, times: int, first: int) -> Any:
    """A cache to write to, for layers from `first` on; the old one's tensors are shared until they are replaced."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if times > 1:
        for layer in new.layers[first:]:
            if layer.is_initialized:
                layer.keys, layer.values = (x.repeat(times, 1, 1, 1) for x in (layer.keys, layer.values))
    return new


def _share(model: Model, prompts: Sequence[Prompt], batch: Batch, layers: Sequence[int], *, last_only: bool) -> _Shared:
    """Run once what no condition changes; each shortcut only where it reproduces the full forward.

    `layers` are those that a condition may touch first; with `last_only` nothing before the last token is touched.
    """
    out = _Shared(dict(batch.encoding))
    idle = model.idle(batch.encoding)
    firsts = [layer for layer in layers if layer and layer not in idle]
    full, kept = _logits(model, prompts, batch, [None], out, () if last_only else firsts)
    step = _last_token_step(model, batch) if last_only else None
    if step is not None:
        try:
            short, kept = _logits(model, prompts, batch, [None], step, firsts)
            out = step if _same(model, full, short) else out
        except (RuntimeError, ValueError, TypeError):
            pass
    if last_only and out.cache is None:
        return out
    if not firsts:
        return out
    trial = _Shared(out.encoding, out.cache, {k: v.clone() for k, v in kept.items()})
    touch = Intervention(NeuronSet([(firsts[-1], 0)]), "scale", 1.0)
    try:
        again, _ = _logits(model, prompts, batch, [touch], trial)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError):
        return out
    return trial if _same(model, full, again) else out


def _same(model: Model, a: Tensor, b: Tensor) -> bool:
    loose = next(model.module.parameters()).dtype != torch.float32
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=0.25 if loose else 1e-3)


def _last_token_step(model: Model, batch: Batch) -> _Shared | None:
    """All tokens but the last run once; None where the model cannot go on from there."""
    width = batch.encoding["input_ids"].shape[1]
    if width < 2 or model.remote or not model.forward_takes("past_key_values") or "position_ids" not in batch.encoding:
        return None
    first = {k: v[:, :-1] if k in PER_TOKEN else v for k, v in batch.encoding.items()}
    last = {k: v[:, -1:] for k, v in batch.encoding.items() if k in PER_TOKEN}
    last["attention_mask"] = batch.encoding["attention_mask"]
    from transformers import DynamicCache

    try:
        with torch.no_grad():
            cache = model.module(**first, use_cache=True).past_key_values
    except (RuntimeError, ValueError, TypeError):
        return None
    return _Shared(last, cache) if isinstance(cache, DynamicCache) else None


def _chunks(conditions: Sequence[Intervention | None], n: int, shared: _Shared) -> list[list[int]]:
    """Conditions that go through one forward together: as many as fit, with the same first layer."""
    size = 0
    if shared.cache is not None:
        size = sum(x.numel() * x.element_size() for a in shared.cache.layers for x in (a.keys, a.values))
    limit = max(1, min(STACKED_ROWS // n, STACKED_BYTES // max(size, 1)))
    if any(k not in PER_TOKEN for k in shared.encoding):  # pictures: rows may not line up with prompts
        limit = 1
    by_first: dict[int, list[int]] = {}
    for i, c in enumerate(conditions):
        by_first.setdefault(-1 if c is None else min(c.neurons.by_layer()), []).append(i)
    return [group[at : at + limit] for group in by_first.values() for at in range(0, len(group), limit)]


class _Norms:
    """The norms of the residual stream at the last position: remembered in the first run, held there in later ones."""

    def __init__(self, model: Model) -> None:
        owner = model.module.get_submodule(model.layers_path.rpartition(".")[0])
        layers = model.module.get_submodule(model.layers_path)
        inside = [m for layer in layers for m in layer.children()]  # type: ignore[attr-defined]
        self.modules = [m for m in (*inside, *owner.children()) if _is_norm(m, model.d_model)]
        self.clean: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> None:
        self.handles = [m.register_forward_hook(self._hook, with_kwargs=True) for m in self.modules]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Tensor | None:
        x = (args[0] if args else next(iter(kwargs.values())))[:, -1].float()
        centred = isinstance(module, torch.nn.LayerNorm)
        mean = x.mean(dim=-1, keepdim=True) if centred else torch.zeros_like(x[:, :1])
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
        size = ((x - mean).pow(2).mean(dim=-1, keepdim=True) + epsilon).sqrt()
        if id(module) not in self.clean:
            self.clean[id(module)] = mean, size
            return None
        times = len(x) // len(self.clean[id(module)][0])
        mean0, size0 = (v.repeat(times, 1) for v in self.clean[id(module)])
        weight, bias = (getattr(module, name, None) if centred else None for name in ("weight", "bias"))
        bias = 0.0 if bias is None else bias
        shift = 0.0 if weight is None else weight * (mean - mean0) / size0
        out = out.clone()
        out[:, -1] = ((out[:, -1] - bias) * size / size0 + shift + bias).to(out.dtype)
        return out


def _is_norm(module: torch.nn.Module, d_model: int) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and (weight is None or tuple(weight.shape) == (d_model,))


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
    """Refusal margin at the first answer token of every prompt under every condition (None: clean).

    >>> margins(model, prompts, [None, Intervention(neurons, "zero")], tokens).shape   # doctest: +SKIP
    (2, 48)

    With `frozen`, every norm of the residual stream keeps the mean and scale of the clean run at the last prompt token.
    Removing anything loud makes norms rescale what is left, and so moves the margin; frozen, only what is read moves it.
    `prepared` reuses what `prepare` made of the same prompts.

    Raises:
        InputError: a condition that does not fit the model or the prompts, or touches generated tokens only.
    """
    check_conditions(model, prompts, conditions)
    out = np.empty((len(conditions), len(prompts)))
    with tqdm(total=len(prompts) * len(conditions), desc=desc, unit="run", disable=not progress, leave=False) as bar:
        for batch, shared in prepared or _shares(model, prompts, conditions, batch_size):
            kinds = [tokens[prompts[row].language] for row in batch.rows]
            norms = _Norms(model)
            if frozen:
                with norms:
                    _logits(model, prompts, batch, [None], shared)
            for chunk in _chunks(conditions, len(batch.rows), shared):
                with norms if frozen else nullcontext():
                    logits, _ = _logits(model, prompts, batch, [conditions[i] for i in chunk], shared)
                read = margin(logits.flatten(0, 1), kinds * len(chunk))
                out[np.ix_(chunk, batch.rows)] = read.reshape(len(chunk), -1).numpy()
                bar.update(len(batch.rows) * len(chunk))
    return out


def _shares(
    model: Model, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None], batch_size: int
) -> Iterator[tuple[Batch, _Shared]]:
    """Batches, with what is worth sharing for these conditions."""
    last_only = all(c is None or c.positions == "last_prompt" for c in conditions)
    layers = sorted({min(c.neurons.by_layer()) for c in conditions if c is not None})
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        few = len(conditions) < 3
        yield (
            batch,
            _Shared(dict(batch.encoding)) if few else _share(model, prompts, batch, layers, last_only=last_only),
        )


def check_conditions(
    model: Model, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None], generated: int = 0
) -> None:
    """Raise unless every condition fits the model and the prompts and can fire (each neuron set is looked at once)."""
    present = [c for c in conditions if c is not None]
    for neurons in {id(c.neurons): c.neurons for c in present}.values():
        neurons.check_model(model)
    for condition in present:
        condition.check(model, prompts)
        if condition.positions == "response" and not generated:
            raise InputError("positions='response': this is read before the first answer token; use generate")
        if condition.positions == "response" and generated < 2:
            raise InputError("positions='response' needs max_new_tokens of 2 or more: the last token is never read")


def answer_logits(
    model: Model, prompts: Sequence[Prompt], intervention: Intervention | None = None, *, batch_size: int = 32
) -> Float[Tensor, "prompt vocab"]:
    """Logits of the first answer token of every prompt, clean or under one intervention (float32)."""
    check_conditions(model, prompts, [intervention])
    parts: dict[int, Tensor] = {}
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        logits, _ = _logits(model, prompts, batch, [intervention], _Shared(dict(batch.encoding)))
        parts |= dict(zip(batch.rows, logits[0].float().cpu(), strict=True))
    return torch.stack([parts[i] for i in range(len(prompts))])
