"""How many tokens a model can read: its context window, from its config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import InputError
from ..data.prompts import Prompt
from .model import Model

__all__ = ["check_length", "context_window"]


#: Names under which a text config keeps the number of positions.
POSITIONS = ("max_position_embeddings", "n_positions")
#: Kinds of rotary scaling whose `factor` is already in the number of positions.
COUNTED = ("default", "llama3", "longrope", "su", "mrope", "proportional")


def context_window(config: Any) -> int | None:
    """Tokens that a model can read at once; None if its config names no limit.

    >>> context_window(model.module.config)
    2048

    It is `max_position_embeddings` (`n_positions` in GPT-2) of the text config. Rotary positions that are scaled (YaRN, linear,
    dynamic) reach `factor` times as far. A sliding window is no limit: tokens outside it are read by the layers below.

    Args:
        config: a transformers config.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(text, name, None) for name in POSITIONS)
    limit = next((n for n in found if isinstance(n, int) and n > 0), None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    factor = rope.get("factor") if isinstance(rope, dict) else None
    if limit is None or not isinstance(factor, (int, float)) or rope.get("rope_type", rope.get("type")) in COUNTED:
        return limit
    return max(limit, int((rope.get("original_max_position_embeddings") or limit) * factor))


def check_length(model: Model, prompts: Sequence[Prompt], lengths: Sequence[int], *, extra: int = 0) -> None:
    """Raise if a prompt is longer than the model's context window, alone or with what is generated after it.

    >>> check_length(model, prompts[:2], [5, 6], extra=32)

    Args:
        model: the model.
        prompts: the prompts.
        lengths: tokens of each, the pictures' and a given answer's included.
        extra: tokens that are generated after each, at most; the last of them is not read.

    Raises:
        InputError: naming the first prompt that is too long.
    """
    limit = context_window(model.module.config)
    if limit is None:
        return
    read = max(extra - 1, 0)
    for prompt, length in zip(prompts, lengths, strict=True):
        if length + read > limit:
            more = f" and an answer of up to {extra}" if length <= limit else ""
            remedy = "lower max_new_tokens or shorten it" if length <= limit else "shorten it or leave it out"
            raise InputError(
                f"prompt {prompt.id!r}: {length} tokens{more} are more than the {limit} that {model.id!r} can read; {remedy}"
            )
