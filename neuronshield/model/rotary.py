"""Rotary positions whose frequencies change with the length of what is read: dynamic NTK and LongRoPE.

Up to a number of positions they are as trained. Beyond it, transformers computes the frequencies of a whole batch from its longest
row, and dynamic ones stay as the longest prompt so far left them. A prompt must not depend on those beside it or before it, so
`running` starts each forward from the frequencies as loaded and puts the module's own back afterwards, and rows of unlike length
beyond that number are read in batches of their own (`stretched`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["parts_of", "start", "stretched"]

STATE = ("inv_freq", "max_seq_len_cached")  # ends of the names of what a forward changes


def stretched(module: nn.Module, tokens: int) -> bool:
    """Whether so many tokens are read with other frequencies than fewer are.

    >>> stretched(model.module, 100_000)
    False

    Args:
        module: the model.
        tokens: of the longest row, those that are generated after it included.
    """
    return any(tokens > limit for m in parts_of(module) if "rope_type" in m.__dict__ for limit in _limits(m))


def parts_of(module: nn.Module) -> list[nn.Module]:
    """A module and all that is in it, each once: `module.modules()` in another order, faster.

    >>> len(parts_of(model.module)) == len(list(model.module.modules()))
    True

    Args:
        module: the module.
    """
    found, left = {module: None}, [module]
    while left:
        for part in left.pop()._modules.values():
            if part is not None and part not in found:
                found[part] = None
                left.append(part)
    return list(found)


def start(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]:
    """Each part of a model whose frequencies change, with the attributes and buffers that it had; they are now as loaded.

    >>> start(model.module)
    []

    Args:
        module: the model.
    """
    kept: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
    for part in parts_of(module):
        if "rope_type" not in part.__dict__ or not any(True for _ in _limits(part)):
            continue
        own, buffers = ({k: v for k, v in held.items() if k.endswith(STATE)} for held in (part.__dict__, part._buffers))
        kept.append((part, own, buffers))
        for name in [k for k in part._buffers if k.endswith("original_inv_freq")]:
            given, now = part._buffers[name], name.replace("original_inv_freq", "inv_freq")
            if given is not None:
                part._buffers[now] = given.clone()  # LongRoPE writes into it
        for name in [k for k in part.__dict__ if k.endswith("max_seq_len_cached")]:
            part.__dict__[name] = part.original_max_seq_len
    return kept


def _limits(part: Any) -> Any:
    """Numbers of positions beyond which this part changes its frequencies, for each kind of layer that has its own."""
    kinds = part.__dict__.get("rope_type")
    for layer, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
        if isinstance(kind, str) and "dynamic" in kind:
            yield part.original_max_seq_len
        elif kind == "longrope":
            given = part.config.rope_parameters
            yield (given if layer is None else given[layer])["original_max_position_embeddings"]
