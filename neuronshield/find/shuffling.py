"""Labels in a random order, for selections that find nothing but chance.

A request keeps or swaps its labels by one coin, in every cell and language at once, where a cell has it with both labels. Rows
without a counterpart get the labels of their cell in a random order, which is the same order of requests in every cell. A set that was
itself selected on such labels is one more draw, so its rank among the draws is a valid p-value.

Source: Phipson and Smyth (2010), permutation p-values; Good (2005), "Permutation, parametric and bootstrap tests", chapter 3 (matched
pairs).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.prompts import Cell, Prompt

__all__ = ["shuffled_labels"]

OTHER = {"harmful": "benign", "benign": "harmful"}


def shuffled_labels(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[str]:
    """Labels of the rows after shuffling: one coin a request where a cell has it with both labels, the cell's labels otherwise.

    >>> swapped = shuffled_labels(prompts, np.random.default_rng(0))
    >>> pairs = [(p.pair_id, p.label != label) for p, label in zip(prompts, swapped)]
    >>> len(set(pairs)) == len({p.pair_id for p in prompts})      # all rows of a request or none, in both languages
    True

    A row without a counterpart is dealt one of the labels of such rows of its cell. Requests are dealt in one random order, so that
    a request has the same label in every cell as far as the numbers of each label allow; the numbers stay as they are.

    Args:
        prompts: the rows.
        rng: draws one number a request.
    """
    requests, cells, labels = [p.cluster for p in prompts], [p.cell for p in prompts], [p.label for p in prompts]
    known = sorted(set(requests))
    number = dict(zip(known, rng.random(len(known)), strict=True))
    held: dict[tuple[str, Cell], set[str]] = {}
    for request, cell, label in zip(requests, cells, labels, strict=True):
        held.setdefault((request, cell), set()).add(label)
    shuffled = list(labels)
    alone: dict[Cell, list[int]] = {cell: [] for cell in cells}
    for row, (request, cell, label) in enumerate(zip(requests, cells, labels, strict=True)):
        if len(held[request, cell]) == 1:
            alone[cell].append(row)
        elif number[request] < 0.5:
            shuffled[row] = OTHER[label]
    for rows in alone.values():
        # a harmful row of a swapped request (number below 0.5) belongs among the benign ones, and the other way round
        place = [number[requests[row]] if labels[row] == "benign" else 1 - number[requests[row]] for row in rows]
        n_harmful = sum(labels[row] == "harmful" for row in rows)
        for i, at in enumerate(np.argsort(place, kind="stable")):
            shuffled[rows[at]] = "harmful" if i < n_harmful else "benign"
    return shuffled
