"""TransformerLens bridges: taking the transformers model and its processor out of one again.

A `TransformerBridge` rewires its transformers model in place: every module is wrapped in a component with hooks, reachable as
`_original_component`. `unwrapped` builds the same class from the same config and gives it the very same parameters and
buffers, so that both act on one set of weights. A bridge also makes its tokenizer put a beginning-of-sequence token before every
text; `processor_of` reads the checkpoint's own tokenizer again, so that the model reads what was written.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError

__all__ = ["is_bridge", "processor_of", "unwrapped"]

WRAPPED = "_original_component."


def is_bridge(value: Any) -> bool:
    """Whether a value is a TransformerLens bridge (TransformerLens is not imported to find out).

    >>> is_bridge(model.module)
    False

    Args:
        value: anything.
    """
    return any(cls.__name__ == "TransformerBridge" for cls in type(value).__mro__)


def unwrapped(bridge: Any) -> nn.Module:
    """The transformers model of a bridge, without the bridge's components, on the same parameters and buffers.

    >>> from neuronshield.run.bridge import bridge_of
    >>> type(unwrapped(bridge_of(model))).__name__
    'LlamaForCausalLM'

    Args:
        bridge: a `TransformerBridge` that is not in compatibility mode.

    Raises:
        InputError: a bridge whose weights were processed, or that lacks a weight of its class.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise InputError(
            "load(bridge): the bridge is in compatibility mode, which changes weights; pass it before "
            "enable_compatibility_mode()"
        )
    original = bridge.original_model
    config = copy.deepcopy(original.config)
    with torch.device("meta"):
        plain: nn.Module = type(original)(config)
    for kind, here, there in (
        (
            "parameter",
            plain.named_parameters(remove_duplicate=False),
            original.named_parameters(remove_duplicate=False),
        ),
        ("buffer", plain.named_buffers(remove_duplicate=False), original.named_buffers(remove_duplicate=False)),
    ):
        given = {name.replace(WRAPPED, ""): tensor for name, tensor in there}
        for name, empty in list(here):
            if name not in given or given[name].shape != empty.shape:
                raise InputError(f"load(bridge): {type(original).__name__} in the bridge has no {kind} {name!r}")
            owner, _, leaf = name.rpartition(".")
            table = (
                plain.get_submodule(owner)._parameters if kind == "parameter" else plain.get_submodule(owner)._buffers
            )
            table[leaf] = given[name]  # type: ignore[assignment]
    plain.generation_config = getattr(original, "generation_config", None)  # type: ignore[assignment]
    return plain.eval()


def processor_of(bridge: Any) -> Any:
    """The processor of a bridge's model; for a text model, the checkpoint's tokenizer as it was before the bridge.

    >>> from neuronshield.run.bridge import bridge_of
    >>> type(processor_of(bridge_of(vlm))).__name__
    'LlavaProcessor'

    Args:
        bridge: a `TransformerBridge`.

    Raises:
        InputError: the tokenizer cannot be read again where the bridge's came from.
    """
    from transformers import AutoTokenizer

    processor = getattr(bridge, "processor", None)
    if processor is not None:
        return processor
    source = getattr(bridge.tokenizer, "name_or_path", "")
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(
            f"load(bridge): its tokenizer cannot be read again from {source!r}; pass processor= (a tokenizer or processor)"
        ) from error
