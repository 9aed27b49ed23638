"""What the conditions of a batch share: which shortcuts a model allows, and how a run goes on from what is kept.

Two shortcuts save work when many conditions read the same prompts:

    prefix    where a condition touches the last prompt token only, all tokens before it are run once; their keys and values
              are kept (attention is causal)
    layers    the layers below the first one that a condition touches are run once; the residual stream after them is kept

A prefix is reused only from a plain `DynamicCache`: one pair of key and value tensors for every attention layer, which a step
extends with new tensors and never writes to. Recurrent, convolutional and hybrid layers, sliding windows, and layers that share
the keys and values of others keep something else, so that their models run in full; so do prompts that are so long that rotary
positions are rescaled by length, which changes the keys of all tokens. Layers are left out only where
the residual stream is all that a layer hands on, [row, pos, d_model].

`forward.margins` compares what a shortcut gives with a full forward of single prompts, for every batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from .encoding import PER_TOKEN, Batch
from .model import Model
from .rotary import stretched
from .running import running

__all__ = [
    "Shared",
    "agree",
    "forward_options",
    "keeps_cache",
    "last_token_step",
    "may_skip_layers",
    "reusable",
    "stack",
    "takes_cache",
]

RECHECK = 16  # calls of `margins` after which a shortcut is compared again
TROUBLE = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)


@dataclass
class Shared:
    """What the conditions of a batch share.

    Attributes:
        encoding: what they still have to run.
        cache: keys and values of all tokens but the last; None where every token is run.
        residual: {layer: what it reads in a clean run}.
        compared: {first layer: the call in which a condition of it was last compared with a full forward}.
        calls: how often `margins` used it.
    """

    encoding: dict[str, Any]
    cache: Any = None
    residual: dict[int, Tensor] = field(default_factory=dict)
    compared: dict[int, int] = field(default_factory=dict)
    calls: int = 0

    @property
    def shortcut(self) -> bool:
        """Whether anything is left out."""
        return self.cache is not None or bool(self.residual)

    def due(self, first: int) -> bool:
        """Whether a condition of a first layer is to be compared with a full forward: at once, and now and then.

        >>> shared = Shared({}, residual={1: torch.zeros(2, 5, 20)}, calls=1)
        >>> shared.due(1), shared.due(1)
        (True, False)

        Args:
            first: the layer.
        """
        if not self.shortcut or self.calls - self.compared.get(first, -RECHECK) < RECHECK:
            return False
        self.compared[first] = self.calls
        return True

    def drop(self, batch: Batch) -> None:
        """Leave nothing out from now on.

        Args:
            batch: the batch that it is of.
        """
        self.encoding, self.cache, self.residual = dict(batch.encoding), None, {}


def keeps_cache(model: Model) -> bool:
    """Whether each step of a generation is known to read one token: a class with a plain cache that can be told to use it.

    >>> keeps_cache(model)
    True

    Args:
        model: the model.
    """
    return takes_cache(model) and model.forward_takes("use_cache")


def takes_cache(model: Model) -> bool:
    """Whether the model is of a class of transformers that takes its plain cache.

    >>> takes_cache(model)
    True

    Args:
        model: the model.
    """
    module: Any = model.module
    module = module.get_base_model() if hasattr(module, "get_base_model") else module
    plain = getattr(module, "_supports_default_dynamic_cache", lambda: False)
    return type(module).__module__.startswith("transformers.") and model.forward_takes("past_key_values") and plain()


def reusable(cache: Any, *, n_layers: int, idle: list[int]) -> bool:
    """Whether a run may go on from a cache many times: one plain pair of key and value tensors for every layer.

    >>> from transformers import DynamicCache
    >>> ids = torch.ones(1, 4, dtype=torch.long)
    >>> cache = model.module(ids, use_cache=True).past_key_values
    >>> reusable(cache, n_layers=3, idle=[]), reusable(cache, n_layers=4, idle=[]), reusable(None, n_layers=3, idle=[])
    (True, False, False)

    Args:
        cache: what a forward returned.
        n_layers: decoder layers of the model.
        idle: layers that did not run, whose keys and values are missing.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if type(cache) is not DynamicCache or len(cache.layers) != n_layers:
        return False
    if getattr(cache, "offloading", False):
        return False
    for i, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer:
            return False
        if layer.is_initialized:
            pair = (layer.keys, layer.values)
            if not all(isinstance(x, Tensor) and x.ndim == 4 for x in pair):
                return False
        elif i not in idle:
            return False
    return True


def last_token_step(model: Model, batch: Batch) -> Shared | None:
    """All tokens but the last run once; None where the model cannot go on from there.

    >>> from neuronshield.model.encoding import collate
    >>> last_token_step(model, collate(model, prompts[:2], side="left")).encoding["input_ids"].shape
    torch.Size([2, 1])

    Args:
        model: the model.
        batch: prompts, padded on the left.
    """
    width = batch.encoding["input_ids"].shape[1]
    if width < 2 or model.remote or not model.forward_takes("past_key_values") or "position_ids" not in batch.encoding:
        return None
    if stretched(model.module, width):
        return None
    first = {k: v[:, :-1] if k in PER_TOKEN else v for k, v in batch.encoding.items()}
    last = {k: v[:, -1:] for k, v in batch.encoding.items() if k in PER_TOKEN}
    last["attention_mask"] = batch.encoding["attention_mask"]
    options = model.last_logits()
    try:
        with running(model, rows=len(batch.rows), width=width, traced=False), torch.no_grad():
            cache = getattr(model.module(**first, use_cache=True, **options), "past_key_values", None)
    except TROUBLE:
        return None
    known = reusable(cache, n_layers=model.n_layers, idle=model.idle(batch.encoding))
    return Shared(last, cache) if known else None


def may_skip_layers(model: Model, kept: dict[int, Tensor], rows: int) -> bool:
    """Whether the layers below a layer may be left out: the residual stream is all that they hand on.

    >>> may_skip_layers(model, {1: torch.zeros(2, 5, 20)}, rows=2), may_skip_layers(model, {1: torch.zeros(4, 2, 5, 20)}, rows=2)
    (True, False)

    Args:
        model: the model.
        kept: {layer: what it reads}.
        rows: rows of the batch.
    """
    config = model.module.config.get_text_config()  # type: ignore[union-attr,operator]
    if getattr(config, "num_kv_shared_layers", 0):  # upper layers read the keys and values of lower ones
        return False
    return all(isinstance(x, Tensor) and x.ndim == 3 and x.shape[::2] == (rows, model.d_model) for x in kept.values())


def forward_options(model: Model, shared: Shared, times: int, *, first: int) -> dict[str, Any]:
    """What a forward is given: the encoding once a condition, and a copy of the cache for layers from `first` on.

    >>> shared = Shared({"input_ids": torch.ones(2, 5, dtype=torch.long)})
    >>> forward_options(model, shared, 3, first=0)["input_ids"].shape
    torch.Size([6, 5])

    Args:
        model: the model.
        shared: what the conditions share.
        times: how many conditions.
        first: the first layer that runs.
    """
    encoding = {k: stack(v, times) for k, v in shared.encoding.items()}
    if shared.cache is not None:
        encoding |= {"use_cache": True, "past_key_values": _fresh(shared.cache, times, first)}
    elif model.forward_takes("use_cache"):
        encoding["use_cache"] = False
    return encoding | model.last_logits()


def stack(value: Any, times: int) -> Any:
    """One copy of a tensor of the batch for each condition; pictures, which may have rows of their own, follow.

    >>> stack(torch.ones(2, 5), 3).shape
    torch.Size([6, 5])

    Args:
        value: a tensor whose first axis is the batch; anything else is returned as it is.
        times: how many conditions.
    """
    if times == 1 or not isinstance(value, torch.Tensor):
        return value
    return repeat(value, "row ... -> (times row) ...", times=times)


def _fresh(cache: Any, times: int, first: int) -> Any:
    """A cache to extend, for layers from `first` on; the old one's tensors are shared until they are replaced."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    if times > 1:
        for layer in new.layers[first:]:
            if layer.is_initialized:
                layer.keys, layer.values = (stack(x, times) for x in (layer.keys, layer.values))
    return new


def agree(model: Model, a: Tensor, b: Tensor) -> bool:
    """Whether two runs gave the same logits, as far as the weights' dtype can tell.

    >>> agree(model, torch.ones(2, 38), torch.ones(2, 38) + 1e-5), agree(model, torch.ones(2, 38), torch.ones(2, 38) + 1e-3)
    (True, False)

    Args:
        model: its weights' dtype counts: within 2e-4 of the largest logit in float32, within 2 % in a shorter one.
        a: logits.
        b: logits, of the same shape.
    """
    exact = next(model.module.parameters()).dtype in (torch.float32, torch.float64)
    a, b = a.float(), b.float()
    known = a.isfinite() & b.isfinite()
    if not torch.equal(a[~known], b[~known]) or not known.any():
        return False
    size = max(1.0, float(a[known].abs().max()))
    return float((a - b)[known].abs().max()) <= (2e-4 * size if exact else max(0.25, 0.02 * size))
