"""What a model is, as a hash of all that decides what it computes.

`Model.fingerprint` reads a sample of the MLP weights, which is enough to name a checkpoint in an artefact. A result that is
used again in place of a computation needs more: any weight, the chat template or the tokenizer may have changed. `digests`
therefore reads every tensor. It adds the tensor's bytes as whole numbers, once plain and once weighted by their position, so that
the sums are the same on every device and in every order. A pass over the weights at memory speed is all it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.provenance import versions
from .model import Model

__all__ = ["digests", "identity", "tensors"]

CHUNK = 2**22  # whole numbers that are added at once


def identity(model: Model, known: Mapping[str, str] | None = None) -> str:
    """Hash of a model's weights, template, tokenizer and versions: equal where every result must be.

    >>> identity(model) == identity(model.replace(id="another name"))
    True

    Args:
        model: the model.
        known: `digests` of its module, where they were computed already.
    """
    found = digests(model.module) if known is None else known
    template = model.template
    told = [
        model.fingerprint, sorted(found.items()), model.layers_path, list(model.site),
        None if template is None else template.facts(), _tokenizer(model.tokenizer), _pictures(model.processor), versions(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode()).hexdigest()[:32]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a module's state by name, detached; what is not a tensor (states of packed weights) is left out.

    >>> len(tensors(model.module))
    30

    Args:
        module: a torch module.
    """
    return {name: value.detach() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def digests(module: nn.Module) -> dict[str, str]:
    """Type, shape and two sums of every tensor of a module, by name.

    >>> digests(model.module)["model.norm.weight"]
    'float32 (20,) ...'

    Args:
        module: a torch module; tensors that are elsewhere (offloaded by accelerate) count with their shape only.
    """
    with torch.no_grad():
        return {name: _digest(value) for name, value in tensors(module).items()}


def _digest(tensor: Tensor) -> str:
    told = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.is_meta or not tensor.numel():
        return told
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    if rest := -len(data) % 4:
        data = torch.cat([data, data.new_zeros(rest)])
    numbers, plain, weighted = data.view(torch.int32), 0, 0
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK].long()
        plain += int(part.sum())
        weighted += int((part * torch.arange(start + 1, start + 1 + len(part), device=part.device)).sum())
    return f"{told} {plain % 2**64:x} {weighted % 2**64:x}"


def _tokenizer(tokenizer: Any) -> str:
    """Hash of what a tokenizer does with text, as far as it says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        told = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:  # how the last call padded and cut is no part of what a tokenizer is
        kept = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
        told = json.dumps(kept, sort_keys=True)
    ends = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")]
    return hashlib.sha256(f"{type(tokenizer).__name__} {ends} {told}".encode()).hexdigest()


def _pictures(processor: Any) -> dict[str, Any] | None:
    """The settings of a processor's preparation of pictures; None if it takes none."""
    found = getattr(processor, "image_processor", None)
    return None if found is None else found.to_dict()
