"""Thoughts of reasoning models: which prompts end inside one, and decoding that keeps the tokens around them.

Some tokenizers mark a thought by special tokens ([THINK] of Magistral, the channels of gpt-oss). Decoding without special tokens
would run the thought into the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.prompts import Prompt
from ..data.thoughts import is_thought_token, opens_thought
from .encoding import render
from .model import Model

__all__ = ["decoded", "in_thought"]


def in_thought(model: Model, prompts: Sequence[Prompt]) -> list[bool]:
    """For each prompt, whether what the model reads ends inside a thought that its chat template opened.

    >>> in_thought(model, prompts[:2])
    [False, False]

    Args:
        model: the model, whose chat template is used.
        prompts: the prompts.

    Raises:
        InputError: the chat template fails on a prompt.
    """
    if model.template is None:
        return [opens_thought(p.prompt) for p in prompts]
    return [opens_thought(text) for text, _ in render(model, prompts)]


def decoded(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """The text of each row without special tokens, those that mark a thought excepted.

    >>> decoded(model.tokenizer, [[2, 2], [2]])
    ['', '']

    Args:
        tokenizer: the model's.
        ids: token ids of each row.
    """
    if not ids:  # of which some tokenizers make one text
        return []
    special = _special(tokenizer)
    kept = frozenset(i for i, token in special.items() if is_thought_token(token))
    if not kept or not any(i in kept for row in ids for i in row):
        return list(tokenizer.batch_decode(ids, skip_special_tokens=True))
    rows = [[i for i in row if i in kept or i not in special] for row in ids]
    return list(tokenizer.batch_decode(rows, skip_special_tokens=False))


def _special(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of the special tokens, added ones included."""
    found = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {int(i): str(t) for i, t in found.items()} | {int(i): t.content for i, t in added.items() if t.special}
