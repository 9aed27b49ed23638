"""Splits: dealing requests to them, and refusing a set in which one request is in two.

A request that is in "train" and in "test" makes what was trained look like what transfers. Rows are of one request if they share
a `pair_id`, or if they ask the same words: with the same pictures, or one of them without a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError
from .columns import SPLITS

if TYPE_CHECKING:
    from .rows import Prompt

__all__ = ["check_leaks", "check_marked", "deal"]


def check_leaks(prompts: Sequence[Prompt]) -> None:
    """Raise if one request is in two splits.

    >>> check_leaks(prompts)

    Args:
        prompts: the rows.

    Raises:
        InputError: naming two rows of one request, and their splits.
    """
    if len({p.split for p in prompts} - {None}) < 2:
        return
    for one, other, shared in _shared(p for p in prompts if p.split is not None):
        if one.split != other.split:
            raise InputError(
                f"prompts {one.id!r:.60} (split {one.split!r}) and {other.id!r:.60} (split {other.split!r}) have the same "
                f"{shared}: one request must be in one split; deal whole requests with prompts.with_splits()"
            )


def check_marked(prompts: Sequence[Prompt]) -> None:
    """Raise if some rows have a split and others have none.

    >>> check_marked(prompts)

    Args:
        prompts: the rows.

    Raises:
        InputError: naming the first row without a split.
    """
    bare = [p for p in prompts if p.split is None]
    if bare and len(bare) < len(prompts):
        raise InputError(
            f"prompts: {len(bare)} of {len(prompts)} have no split (first: id {bare[0].id!r:.60}) and the others have; no step "
            "would use them: give every row a split or none, or call prompts.with_splits()"
        )


def no_rows(prompts: Sequence[Prompt], split: str) -> InputError:
    """The error of a step that has no rows of its own among rows with splits.

    >>> print(no_rows([], "test"))
    prompts: none of split 'test'; there are none at all

    Args:
        prompts: the rows.
        split: that the step takes.
    """
    if not prompts:
        return InputError(f"prompts: none of split {split!r}; there are none at all")
    have = ", ".join(
        f"{sum(p.split == s for p in prompts)} {s!r}" for s in SPLITS if any(p.split == s for p in prompts)
    )
    return InputError(
        f"prompts: none of split {split!r}; there are {have}. Rows of another split are not taken instead: mark those that "
        f"this step may use: rows.marked({split!r})"
    )


def deal(prompts: Iterable[Prompt], *, seed: int, fractions: Sequence[float]) -> dict[str, str]:
    """The split of every cluster: each mix of labels is shuffled and dealt separately; clusters of one request stay together.

    >>> list(deal(prompts[:2], seed=0, fractions=(0, 0, 0, 1)).values())
    ['test']

    Args:
        prompts: the rows.
        seed: of the shuffle.
        fractions: relative sizes of the splits, in the order of `SPLITS`.
    """
    rows = list(prompts)
    request = _requests(rows)
    kinds: dict[str, set[str]] = {}
    for p in rows:
        kinds.setdefault(request[p.cluster], set()).add(p.label)
    rng = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    for kind in (["benign"], ["harmful"], ["benign", "harmful"]):
        requests = sorted(name for name, labels in kinds.items() if sorted(labels) == kind)
        rng.shuffle(requests)
        edges = np.round(np.cumsum(fractions) / sum(fractions) * len(requests)).astype(int)
        for i, name in enumerate(requests):
            split_of[name] = SPLITS[int(np.searchsorted(edges, i, side="right"))]
    return {cluster: split_of[name] for cluster, name in request.items()}


def _requests(rows: Sequence[Prompt]) -> dict[str, str]:
    """The request of every cluster: the first name, in order, of the clusters that share their words or a pair."""
    parent = {p.cluster: p.cluster for p in rows}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other, _ in _shared(rows):
        first, second = sorted((root(one.cluster), root(other.cluster)))
        parent[second] = first
    return {name: root(name) for name in parent}


def _shared(prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, Prompt, str]]:
    """Pairs of rows that connect all rows of one request, with what they share."""
    pairs: dict[str, Prompt] = {}
    texts: dict[str, list[Prompt]] = {}
    for p in prompts:
        if p.pair_id is not None:
            yield pairs.setdefault(p.pair_id, p), p, "pair_id"
        texts.setdefault(p.request_text, []).append(p)
    for request_text, rows in texts.items():
        if len(rows) == 1:
            continue
        bare = next((p for p in rows if not p.images), None) if request_text else None
        if bare is not None:
            yield from ((bare, p, "text") for p in rows)
            continue
        seen: dict[str, Prompt] = {}
        for p in rows:
            yield seen.setdefault(p.pictures_hash, p), p, "text and pictures"
