"""TransformerLens as a second, independent implementation of reading and ablating neurons.

Its bridge wraps a transformers model in components with hooks; `blocks.{l}.mlp.hook_post` is what this package calls a neuron. The
bridge here is made over a copy of the module's structure that shares the weights, so the model that is checked stays as it is.

Nothing is installed: when TransformerLens boots a vision-language model it asks for torchvision and, where that is missing, runs
`pip install torchvision`, which may replace torch. No process can be started while a bridge is made here.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from ..model.encoding import collate
from ..model.model import Model
from ..shield.adapter import shared_copy
from ..shield.stacked import has_experts

__all__ = ["BridgeMissing", "bridge_of", "by_bridge"]


class BridgeMissing(Exception):
    """TransformerLens cannot be used for this model here; the message says why."""


def bridge_of(model: Model) -> Any:
    """A `TransformerBridge` on the model's own weights.

    >>> bridge_of(model).cfg.d_mlp
    29

    Args:
        model: a model whose weights are here and not packed.

    Raises:
        BridgeMissing: TransformerLens has no adapter for the family or no hook at its neurons, needs a package that is not
            installed, or fails.
    """
    if model.remote or model.quantized is not None:
        raise BridgeMissing(f"not tried: the weights are {model.quantized or 'elsewhere'}")
    if has_experts(model):
        raise BridgeMissing("not tried: TransformerLens has no hook at the neurons of experts")
    with tempfile.TemporaryDirectory() as folder, _contained():
        try:
            from transformer_lens.model_bridge import TransformerBridge
            from transformers import AutoTokenizer

            module: Any = shared_copy(model.module)
            module.config.architectures = [type(module).__name__]  # what the adapter is chosen by
            model.tokenizer.save_pretrained(folder)  # a bridge asks its tokenizer where it came from
            bridge = TransformerBridge.boot_transformers(
                folder, hf_model=module, tokenizer=AutoTokenizer.from_pretrained(folder), dtype=module.dtype
            )
        except Exception as error:  # whatever it says is the reason
            raise BridgeMissing(_reason(error)) from error
    bridge.processor = model.processor
    return bridge


def by_bridge(
    bridge: Any, model: Model, prompts: Sequence[Prompt], *, zeroed: NeuronSet
) -> tuple[Float[Tensor, "prompt n_layers d_mlp"], Float[Tensor, "prompt vocab"]]:
    """Every neuron at the last token of each prompt, and the answer-token logits with some neurons at zero, by a bridge.

    >>> h, logits = by_bridge(bridge_of(model), model, prompts[:2], zeroed=neurons)
    >>> h.shape, logits.shape
    (torch.Size([2, 3, 29]), torch.Size([2, 38]))

    Args:
        bridge: what `bridge_of` returned.
        model: the model that it was made of.
        prompts: the prompts, each run by itself.
        zeroed: neurons that are zero at every position for the logits.

    Raises:
        BridgeMissing: the bridge cannot run the prompts, or its hooks do not fire.
    """
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.n_layers)]
    neurons, logits = [], []
    for prompt in prompts:
        encoding = dict(collate(model, [prompt]).encoding)
        encoding.pop("position_ids", None)
        ids, idle = encoding.pop("input_ids"), model.idle(encoding)
        seen: dict[int, Tensor] = {i: torch.zeros(model.d_mlp, dtype=torch.float32) for i in idle}
        try:
            with torch.no_grad(), bridge.hooks(fwd_hooks=[(name, _keep(seen)) for name in names]):
                bridge(ids, **encoding)
            with torch.no_grad(), bridge.hooks(fwd_hooks=zeroed.to_transformer_lens()):
                logits.append(bridge(ids, **encoding)[0, -1].float().cpu())
        except Exception as error:
            raise BridgeMissing(_reason(error)) from error
        if len(seen) < model.n_layers:
            raise BridgeMissing(f"its hook_post fired in {len(seen)} of {model.n_layers} layers")
        neurons.append(torch.stack([seen[i] for i in range(model.n_layers)]))
    return torch.stack(neurons), torch.stack(logits)


def _keep(seen: dict[int, Tensor]) -> Callable[..., None]:
    def keep(activation: Tensor, hook: Any) -> None:
        seen[int(hook.name.split(".")[1])] = activation.reshape(-1, activation.shape[-1])[-1].float().cpu()

    return keep


@contextmanager
def _contained() -> Iterator[None]:
    """No process is started inside, and TransformerLens's changes of warnings and of transformers' logging are undone."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no process is started here")

    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        with warnings.catch_warnings(), mock.patch.object(subprocess, "Popen", refuse):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "orchvision" in text:
        return f"not tried: TransformerLens {version('transformer-lens')} needs torchvision for this family"
    if "upported architecture" in text:
        return f"not tried: TransformerLens {version('transformer-lens')} has no adapter for this family"
    return f"not tried: TransformerLens {version('transformer-lens')} fails on it ({text[:120]})"
