"""Shards: the pieces in which prompts are captured.

A shard's moments are one set of vectors for each group in it (label, cell and fold). With many prompts a shard should hold one
group only: its result is then as small as it can be, whether it is sent over a network or kept in a journal. `shards_by_group`
gathers the prompts of each group until there are `PROMPTS` of them. What is gathered is bounded: when it is too much, the largest
group goes out as it is. What is left at the end goes out together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..data.prompts import Prompt
from .groups import Group

__all__ = ["PROMPTS", "shards_by_group"]

PROMPTS = 512  # of a shard
HELD = 65_536  # prompts that are gathered at once, at most
HELD_BYTES = 2**28  # and the size of their texts and of the pictures that are in memory

Row = tuple[Prompt, Group]


def shards_by_group(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Shards of prompts, each of one group where there are enough; every prompt is in one shard.

    >>> rows = [(p, Group(p.label, p.language, p.modality, fold=0)) for p in prompts]
    >>> [(len(shard), len({key for _, key in shard})) for shard in shards_by_group(rows)]
    [(60, 4)]

    Args:
        rows: prompts with the group of each; they are read as they are needed.
    """
    held: dict[Group, list[Row]] = {}
    count = size = 0
    for row in rows:
        held.setdefault(row[1], []).append(row)
        count, size = count + 1, size + _bytes(row[0])
        full = row[1] if len(held[row[1]]) >= PROMPTS else None
        if full is None and (count >= HELD or size >= HELD_BYTES):
            full = max(held, key=lambda key: len(held[key]))
        if full is not None:
            shard = held.pop(full)
            count, size = count - len(shard), size - sum(_bytes(prompt) for prompt, _ in shard)
            yield shard
    rest = [row for mine in held.values() for row in mine]
    for start in range(0, len(rest), PROMPTS):
        yield rest[start : start + PROMPTS]


def _bytes(prompt: Prompt) -> int:
    """About the memory that a prompt takes."""
    pictures = sum(
        len(image) if isinstance(image, bytes) else image.width * image.height * 3 if hasattr(image, "width") else 0
        for image in prompt.images
    )
    return 1000 + len(prompt.prompt) + len(prompt.target or "") + pictures
