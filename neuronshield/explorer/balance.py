"""A small sample of prompts for looking at: as many of each cell, the same requests in every cell where that is possible."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.arguments import at_least
from ..data.prompts import Cell, Prompt, PromptSet

__all__ = ["balanced"]

Pair = tuple[Prompt, ...]


def balanced(prompts: Sequence[Prompt], n: int = 48) -> PromptSet:
    """About n prompts, as many of each cell, harmful before benign, and at least one of each label that a cell has.

    Requests that occur in many cells come first, and of these the ones that come first in the prompts. A cell takes matched pairs as far
    as it has them, and then its other prompts.

    >>> [p.id for p in balanced(prompts, 4)]
    ['en-text-0-0-harmful', 'en-text-0-0-benign', 'sw-text-0-0-harmful', 'sw-text-0-0-benign']

    Args:
        prompts: all of them.
        n: prompts, at least two of each cell.

    Raises:
        InputError: `n` is below 1.
    """
    at_least(1, "balanced", n=n)
    cells: dict[Cell, list[Prompt]] = {}
    for prompt in prompts:
        cells.setdefault(prompt.cell, []).append(prompt)
    pairs = {cell: _pairs(rows) for cell, rows in cells.items()}
    order = list(dict.fromkeys(p.pair_id for p in prompts if p.pair_id is not None))
    spread = {name: sum(name in found for found in pairs.values()) for name in order}
    order.sort(key=lambda name: -spread[name])
    each = max(1, n // (2 * max(len(cells), 1)))
    return PromptSet(p for cell, rows in cells.items() for p in _of_cell(rows, pairs[cell], order=order, each=each))


def _pairs(rows: Sequence[Prompt]) -> dict[str, Pair]:
    """The matched pairs of a cell by name: its first harmful and its first benign prompt."""
    sides: dict[str, dict[str, Prompt]] = {}
    for prompt in rows:
        if prompt.pair_id is not None:
            sides.setdefault(prompt.pair_id, {}).setdefault(prompt.label, prompt)
    return {name: (found["harmful"], found["benign"]) for name, found in sides.items() if len(found) == 2}


def _of_cell(rows: Sequence[Prompt], pairs: dict[str, Pair], *, order: Sequence[str], each: int) -> list[Prompt]:
    out = [p for name in order if name in pairs for p in pairs[name]][: 2 * each]
    taken = {p.id for p in out}
    for label in ("harmful", "benign"):
        missing = each - sum(p.label == label for p in out)
        out += [p for p in rows if p.label == label and p.id not in taken][:missing]
    return out
