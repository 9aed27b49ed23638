"""Whether a model may read a batch that is padded on the left.

Attention masks padding out. A recurrent or convolutional layer carries a state from token to token, and padding before the first
token changes it unless the layer masks padding too. Padding on the right comes after every token that is read, and changes nothing.
"""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .model import Model
from .running import running

__all__ = ["pads_on_the_left"]

#: Classes of layers that carry a state: torch's own convolution is `Conv1d`, GPT-2's linear layer `Conv1D`.
STATEFUL = re.compile(
    r"Conv1d|ShortConv|Mamba|SSM|Recurrent|Rglru|Delta|LinearAttention|Lightning|Rwkv|RWKV|Retention|LSTM|GRU"
)

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def pads_on_the_left(model: Model) -> bool:
    """Whether padding on the left changes nothing, tried once for a model with recurrent layers; if not, batches are not padded.

    >>> pads_on_the_left(model)
    True

    Args:
        model: the model.
    """
    if model.remote:
        return True
    if model.module not in _known:
        layers = model.module.get_submodule(model.layers_path)
        stateful = any(STATEFUL.search(type(m).__name__) for m in layers.modules())
        _known[model.module] = not stateful or _tried(model)
    return _known[model.module]


def _tried(model: Model) -> bool:
    """Whether a short prompt has the same logits beside a long one as by itself, and at the tokens generated after it."""
    n = model.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
    ids = (torch.arange(11, device=model.device) * 7 + 3) % n
    real = (torch.arange(11, device=ids.device) >= 8).long()
    for read in (_logits, _generated):
        short, padded = read(model, ids[8:], real[8:]), read(model, ids, real)
        size = max(1.0, float(short.abs().max()))
        exact = short.dtype in (torch.float32, torch.float64)
        if float((short - padded).abs().max()) > (1e-3 * size if exact else max(0.25, 0.02 * size)):
            return False
    return True


def _logits(model: Model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    given: dict[str, Any] = {"input_ids": ids[None], "attention_mask": mask[None]}
    if model.forward_takes("use_cache"):
        given["use_cache"] = False
    with running(model, rows=1, width=len(ids)), torch.no_grad():
        return model.module(**given).logits[0, -1]


def _generated(model: Model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits [step, vocab] of two greedy steps, the second of which reads one token and what is kept of the others."""
    from transformers import GenerationConfig

    options = GenerationConfig(
        min_new_tokens=2, max_new_tokens=2, do_sample=False, num_beams=1, num_return_sequences=1, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    with running(model, rows=1, width=len(ids)), torch.no_grad():
        out: Any = model.module.generate(input_ids=ids[None], attention_mask=mask[None], generation_config=options)  # type: ignore[operator]
    return torch.cat(out.logits)
