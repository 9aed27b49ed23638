"""The largest of a ranking: masks of neurons from magnitudes [n_layers, d_mlp].

With a second ranking, what is largest there is taken away: a **set difference**. Every function also returns the magnitude that the
chosen neurons are ranked by, with -inf where a neuron cannot be chosen, so that next ranks follow the same rule.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["Choice", "overall", "per_layer", "places", "top_mask"]

#: Which neurons are chosen, and the magnitude that they are ranked by: -inf where a neuron cannot be chosen.
Choice: TypeAlias = tuple[Bool[np.ndarray, "n_layers d_mlp"], Float[np.ndarray, "n_layers d_mlp"]]


def places(rank: Float[np.ndarray, "n_layers d_mlp"]) -> Int[np.ndarray, "n_layers d_mlp"]:
    """Place of each neuron in its layer, 0 for the largest; ties go to the lower index.

    >>> places(np.array([[1.0, 3.0, 2.0, 3.0]]))
    array([[3, 0, 2, 1]])

    Args:
        rank: magnitudes.
    """
    order = np.argsort(-rank, axis=1, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(rank.shape[1])[None], axis=1)
    return out


def top_mask(rank: Float[np.ndarray, "..."], count: int) -> Bool[np.ndarray, "..."]:
    """Mask of the `count` largest entries above -inf; ties go to the lower (layer, index), so runs repeat.

    >>> top_mask(np.array([[1.0, 3.0], [3.0, -np.inf]]), 1)
    array([[False,  True],
           [False, False]])

    Args:
        rank: magnitudes.
        count: entries, of all axes together.
    """
    mask = np.zeros(rank.size, dtype=bool)
    mask[np.argsort(-rank, axis=None, kind="stable")[:count]] = True
    return mask.reshape(rank.shape) & (rank > -np.inf)


def per_layer(
    rank: Float[np.ndarray, "n_layers d_mlp"],
    against: Float[np.ndarray, "n_layers d_mlp"] | None,
    count: int,
    *,
    less: int | None = None,
) -> Choice:
    """The `count` best of each layer, minus the `less` best of the other ranking.

    >>> rank, against = np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[9.0, 0.0, 0.0, 8.0]])
    >>> per_layer(rank, against, 2)
    (array([[False,  True, False, False]]), array([[-inf,   3.,   2., -inf]]))

    Args:
        rank: magnitudes; -inf for what cannot be chosen.
        against: magnitudes whose largest are taken away; None for no set difference.
        count: neurons of each layer, before the subtraction.
        less: neurons of each layer that are taken away; `count` by default.
    """
    mask = (places(rank) < count) & (rank > -np.inf)
    if against is None:
        return mask, rank
    left = places(against) >= (count if less is None else less)
    return mask & left, np.where(left, rank, -np.inf)


def overall(
    rank: Float[np.ndarray, "n_layers d_mlp"], against: Float[np.ndarray, "n_layers d_mlp"] | None, count: int
) -> Choice:
    """The `count` best of all layers; with a set difference, of the smallest per-layer k that leaves so many.

    A neuron at place a of the one ranking and b of the other is left for every k with a < k <= b, so one pass tells the number
    that is left for all k.

    >>> rank, against = np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[9.0, 0.0, 0.0, 8.0]])
    >>> overall(rank, against, 1)[0]
    array([[False,  True, False, False]])

    Args:
        rank: magnitudes; -inf for what cannot be chosen.
        against: magnitudes whose largest are taken away; None for no set difference.
        count: neurons of all layers together.
    """
    if against is None:
        return top_mask(rank, count), rank
    first, last = places(rank), places(against)
    ever = (first < last) & (rank > -np.inf)
    steps = np.zeros(rank.shape[1] + 2, dtype=int)
    np.add.at(steps, first[ever] + 1, 1)
    np.add.at(steps, last[ever] + 1, -1)
    sizes = np.cumsum(steps)[1:-1]  # for k = 1, 2, ..., d_mlp
    enough = np.flatnonzero(sizes >= count)
    k = int(enough[0] if len(enough) else np.argmax(sizes)) + 1
    mask, rank = per_layer(rank, against, k)
    return top_mask(np.where(mask, rank, -np.inf), count), rank
