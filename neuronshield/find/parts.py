"""Selections of one cell from all of its requests and from parts of them: halves, quarters, and folds with swapped labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from ..core.neurons import NeuronSet
from ..data.prompts import Cell
from .folds import FOLDS, SPLITS
from .groups import Stats
from .running import Moments, merged
from .scores import score_pairs
from .selection import chosen

__all__ = ["SWAPS", "CellParts", "Ids", "Rule", "parts_of"]

NOWHERE = Cell("und", "text")  # the name of a selection from parts of a cell
LABELS = ("harmful", "benign")
LEAST = 0.25  # of a label's tokens in either half; a split that leaves less is not used

#: All ways to choose half of the folds, of which labels are swapped; the complement gives the same difference.
SWAPS: tuple[frozenset[int], ...] = tuple(
    frozenset({0, *rest}) for rest in combinations(range(1, FOLDS), FOLDS // 2 - 1)
)

#: Flat indices (layer x d_mlp + index) of the members of a selection, sorted.
Ids: TypeAlias = Int[np.ndarray, " _"]
Layers: TypeAlias = Float[np.ndarray, "n_layers d_mlp"]


@dataclass(frozen=True)
class Rule:
    """How neurons are selected from two moments.

    Attributes:
        stats: gives the norms of W_down.
        method: a name from `METHODS`.
        size: one size of `Scores.top`, by name.
        without: neurons that are taken out of every set; None for none.
    """

    stats: Stats
    method: str
    size: Mapping[str, Any]
    without: NeuronSet | None = None

    def select(self, harmful: Moments, benign: Moments) -> tuple[Ids, Layers]:
        """Flat indices of the chosen neurons, and the magnitude that all neurons are ranked by.

        Args:
            harmful: moments that stand for harmful prompts.
            benign: moments that stand for benign prompts.
        """
        scores = score_pairs(self.stats, [NOWHERE], pairs=[(harmful, benign)], method=self.method)
        mask, rank = chosen(scores, NOWHERE, size=self.size)
        return self._ids(mask), rank

    def passing(self, rank: Layers, *, of: tuple[Ids, Layers]) -> Ids:
        """Flat indices of the neurons of a ranking that pass the thresholds of another selection.

        Args:
            rank: magnitudes.
            of: the selection: its members and its ranking.
        """
        members, ranked = of
        cut = np.full(len(rank), np.inf)
        chosen = ranked.ravel()[members]
        layer = members // rank.shape[1]
        np.minimum.at(cut, layer, chosen)
        if "per_layer" not in self.size:
            cut[:] = cut.min(initial=np.inf)
        return self._ids(rank >= cut[:, None])

    def _ids(self, mask: Bool[np.ndarray, "n_layers d_mlp"]) -> Ids:
        if self.without is not None:
            mask = mask.copy()
            for layer, index in self.without:
                mask[layer, index] = False
        return np.flatnonzero(mask)


@dataclass(frozen=True)
class CellParts:
    """Selections of one cell from parts of its requests; None where a part has too few.

    Attributes:
        whole: from all requests.
        halves: of each split, from its two halves.
        noise: of each split and half, the neurons that pass the thresholds of `halves` with swapped labels.
        left_out: of each split and half, by fold, the selection without that fold; folds without requests are not listed.
        quarters: (folds, share of all tokens, selection).
        benign: of each split, benign prompts of one half against benign prompts of the other.
        permuted: of each of `SWAPS`, from all requests with labels swapped in its folds.
    """

    whole: Ids
    halves: list[tuple[Ids, Ids] | None]
    noise: list[tuple[Ids, Ids] | None]
    left_out: list[tuple[dict[int, Ids | None], dict[int, Ids | None]] | None]
    quarters: list[tuple[frozenset[int], float, Ids]]
    benign: list[Ids | None]
    permuted: list[Ids | None]


class _Folds:
    """Moments of one cell by label and fold."""

    def __init__(self, stats: Stats, cell: Cell) -> None:
        self.parts = {(g.label, g.fold): m for g, m in stats.groups.items() if g.cell == cell}
        self.total = {label: sum(m.n for (one, _), m in self.parts.items() if one == label) for label in LABELS}

    def of(self, label: str, folds: Iterable[int]) -> list[Moments]:
        return [self.parts[label, fold] for fold in sorted(folds) if (label, fold) in self.parts]

    def pair(self, straight: Iterable[int], swapped: Iterable[int] = ()) -> tuple[Moments, Moments]:
        """(harmful, benign) moments of some folds, and of others with the labels swapped."""
        straight, swapped = set(straight), set(swapped)
        harmful = self.of("harmful", straight) + self.of("benign", swapped)
        benign = self.of("benign", straight) + self.of("harmful", swapped)
        return merged(harmful), merged(benign)

    def even(self, one: Iterable[int], other: Iterable[int]) -> bool:
        """Whether two groups of folds have about as many tokens of either label."""
        for label in LABELS:
            n, m = (sum(part.n for part in self.of(label, folds)) for folds in (one, other))
            if n + m == 0 or min(n, m) < LEAST * (n + m):
                return False
        return True

    def share(self, folds: Iterable[int]) -> float:
        """Share of all tokens, the mean over the labels."""
        return float(np.mean([sum(m.n for m in self.of(label, folds)) / self.total[label] for label in LABELS]))


def parts_of(stats: Stats, cell: Cell, rule: Rule) -> CellParts:
    """The selections of a cell from all of its requests and from parts of them.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> rule = Rule(stats, "contribution", {"k": 8})
    >>> parts = parts_of(stats, ns.Cell("en", "text"), rule)
    >>> len(parts.whole), len(parts.halves), len(parts.permuted)
    (8, 7, 35)

    Args:
        stats: moments by fold.
        cell: one with both labels.
        rule: of the selection.
    """
    folds = _Folds(stats, cell)
    everything = range(FOLDS)
    halves: list[tuple[Ids, Ids] | None] = []
    noise: list[tuple[Ids, Ids] | None] = []
    left_out: list[tuple[dict[int, Ids | None], dict[int, Ids | None]] | None] = []
    benign: list[Ids | None] = []
    quarters = []
    for i, split in enumerate(SPLITS):
        if not folds.even(*split):
            for made in (halves, noise, left_out, benign):
                made.append(None)  # type: ignore[attr-defined]
            continue
        inner = SPLITS[(i + 1) % len(SPLITS)][0]
        found = [rule.select(*folds.pair(half)) for half in split]
        halves.append((found[0][0], found[1][0]))
        pieces = [(half & inner, half - inner) for half in split]
        quarters += [
            (p, folds.share(p), rule.select(*folds.pair(p))[0]) for two in pieces for p in two if _both(folds, p)
        ]
        nulls = [
            rule.passing(rule.select(*folds.pair(*two))[1], of=real) if folds.even(*two) else None
            for two, real in zip(pieces, found, strict=True)
        ]
        noise.append(None if nulls[0] is None or nulls[1] is None else (nulls[0], nulls[1]))
        left_out.append((_left_out(folds, rule, split[0]), _left_out(folds, rule, split[1])))
        benign.append(rule.select(*(merged(folds.of("benign", half)) for half in split))[0])
    return CellParts(
        whole=rule.select(*folds.pair(everything))[0],
        halves=halves,
        noise=noise,
        left_out=left_out,
        quarters=quarters,
        benign=benign,
        permuted=[
            rule.select(*folds.pair(set(everything) - swap, swap))[0]
            if folds.even(swap, set(everything) - swap)
            else None
            for swap in SWAPS
        ],
    )


def _both(folds: _Folds, part: Iterable[int]) -> bool:
    part = list(part)
    return all(folds.of(label, part) for label in LABELS)


def _left_out(folds: _Folds, rule: Rule, half: frozenset[int]) -> dict[int, Ids | None]:
    """Selections of a half without each of its folds that has requests; None where too little is left."""
    present = [fold for fold in sorted(half) if any((label, fold) in folds.parts for label in LABELS)]
    rests = {fold: half - {fold} for fold in present}
    return {fold: rule.select(*folds.pair(rest))[0] if _both(folds, rest) else None for fold, rest in rests.items()}
