"""TransformerLens bridges: taking the transformers model out of one again.

A `TransformerBridge` rewires its transformers model in place: every module is wrapped in a component with hooks, reachable as
`_original_component`. `unwrapped` builds the same class from the same config and gives it the very same parameters and
buffers, so that both act on one set of weights.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError

__all__ = ["is_bridge", "unwrapped"]

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
