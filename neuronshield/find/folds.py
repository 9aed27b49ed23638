"""Folds: parts of the requests whose moments are kept apart, so that selections from different requests can be compared.

A request is in the same fold in every cell and with both labels. Two selections from different folds share no request.

`SPLITS` halves the eight folds in seven ways. Any two folds are in different halves in four of the seven, so each fold is
compared with every other one equally often (a balanced set of half-samples, from a Hadamard matrix of order 8).

Source: McCarthy (1969), "Pseudo-replication: half samples", section 5; balanced half-samples from Plackett and Burman (1946).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..data.prompts import Prompt

__all__ = ["FOLDS", "SPLITS", "fold_of", "folds_of"]

FOLDS = 8

#: Seven ways to halve the folds: row i is in the first half where bit pattern `split` and i have an even number of bits in common.
SPLITS: tuple[tuple[frozenset[int], frozenset[int]], ...] = tuple(
    (
        frozenset(i for i in range(FOLDS) if (i & split).bit_count() % 2 == 0),
        frozenset(i for i in range(FOLDS) if (i & split).bit_count() % 2 == 1),
    )
    for split in range(1, FOLDS)
)


def folds_of(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """The fold of every prompt, 0 to 7: the same for all prompts of one request, in any order of the prompts.

    Requests that are present in the same cells with the same labels are shuffled and dealt in turn, so that the folds of a
    label in a cell differ by as few requests as can be. Fewer than eight requests fill fewer folds.

    >>> folds_of(prompts, seed=0)[:3]
    [4, 4, 3]

    Args:
        prompts: the rows.
        seed: of the shuffle.
    """
    where: dict[str, set[tuple[str, str]]] = {}
    for p in prompts:
        where.setdefault(p.cluster, set()).add((str(p.cell), p.label))

    def place(request: str) -> tuple[list[tuple[str, str]], bytes]:
        return sorted(where[request]), hashlib.sha256(f"{seed}:{request}".encode()).digest()

    fold = {request: i % FOLDS for i, request in enumerate(sorted(where, key=place))}
    return [fold[p.cluster] for p in prompts]


def fold_of(prompt: Prompt, seed: int) -> int:
    """The fold of a prompt of a stream, 0 to 7: by a hash of its request's name, since the other requests are not known.

    >>> fold_of(prompts[0], seed=0) == fold_of(prompts[1], seed=0)      # a matched pair
    True

    Args:
        prompt: the prompt.
        seed: of the hash.
    """
    return hashlib.sha256(f"{seed}:{prompt.cluster}".encode()).digest()[0] % FOLDS
