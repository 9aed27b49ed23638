"""How many neurons two cells share beyond noise, from their selections from parts of the requests (`parts`).

**Why parts.** Two cells that are measured on the same requests share noise: a request that happens to raise a neuron raises it
in every language. And a selection from n requests does not find all neurons that a selection from other requests would. Both
are measured by selecting again from parts of the requests (`folds`). For two selections A and B

    s(A, B) = |A & B| / sqrt(|A| |B|)

is the share of neurons in common. With the halves 0 and 1 of a split, averaged over all splits and over both orders:

    cross          s(a in half 0, b in half 1): cells a and b on different requests
    reliability    s(a in half 0, a in half 1): cell a on different requests
    noise          s of the neurons that pass the same thresholds when labels are swapped in half of each half, so that no
                   difference between the labels is left; plus what sets without any relation share
    shared         (cross - noise) / (sqrt(reliability_a reliability_b) - noise)

`shared` is 1 for two cells with the same neurons and 0 for two with unrelated ones, whatever the number of requests, since
numerator and denominator are measured at the same number and no request is in both selections (a correction for attenuation).

**Reliability of all requests.** A neuron whose score is normal around its signal is selected from a share m of the requests with
probability P(m) = Phi(u sqrt(m) - v), and from two samples of that size with probability P(m)^2. u and v are fitted to the
reliability of halves and of quarters; P(1)^2 is the reliability of two samples as large as the whole.

**Permutation null.** The labels of half of the folds are swapped, the same in all cells, and the whole selection is run again.
Requests stay shared between the cells, and what they share by their topics is kept; the difference between the labels is not.

Source: Spearman (1904), "The proof and measurement of association between two things" (attenuation); Brown (1910) and Spearman
(1910) for longer tests, here with a normal ogive in place of their linear model; Tukey (1958) for the jackknife.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.stats import norm
from scipy.stats import t as student

from .folds import FOLDS, SPLITS
from .parts import CellParts, Ids

__all__ = ["Shared", "counts", "interval_of", "jaccards", "mean_of", "reliabilities", "shared_of", "shares", "sizes"]

Square: TypeAlias = Float[np.ndarray, "_ _"]


def counts(a: Sequence[Ids | None], b: Sequence[Ids | None]) -> Square:
    """Neurons that every selection of a has in common with every one of b; NaN where there is no selection.

    >>> counts([np.array([1, 4])], [np.array([4, 6]), None]).tolist()
    [[1.0, nan]]

    Args:
        a: flat indices of members.
        b: the same.
    """
    known = np.unique(np.concatenate([x for x in (*a, *b) if x is not None] or [np.array([], dtype=int)]))

    def members(sets: Sequence[Ids | None]) -> Float[np.ndarray, "_ _"]:
        out = np.zeros((len(sets), len(known)))
        for i, x in enumerate(sets):
            if x is None:
                out[i] = np.nan
            else:
                out[i, np.searchsorted(known, x)] = 1
        return out

    found = members(a) @ members(b).T if len(known) else np.zeros((len(a), len(b)))
    empty = np.array([x is None for x in a])[:, None] | np.array([x is None for x in b])[None, :]
    return np.where(empty, np.nan, found)


def sizes(sets: Sequence[Ids | None]) -> Float[np.ndarray, " _"]:
    """Members of each selection; NaN where there is none.

    >>> sizes([np.array([1, 4]), None]).tolist()
    [2.0, nan]

    Args:
        sets: flat indices of members.
    """
    return np.array([np.nan if x is None else len(x) for x in sets], dtype=float)


def jaccards(sets: Sequence[Ids | None]) -> Square:
    """Jaccard index of every two selections; NaN where one is missing or both are empty.

    >>> jaccards([np.array([1, 4]), np.array([4, 6, 8])])[0, 1].item()
    0.25

    Args:
        sets: flat indices of members.
    """
    both, n = counts(sets, sets), sizes(sets)
    union = n[:, None] + n[None, :] - both
    return np.divide(both, union, out=np.full_like(both, np.nan), where=union > 0)


def shares(a: Sequence[Ids | None], b: Sequence[Ids | None], *, of: Square | None = None) -> Square:
    """|a & b| / sqrt(|a| |b|) of every selection of a with every one of b.

    >>> shares([np.array([1, 4])], [np.array([4, 6])]).tolist()
    [[0.5]]

    Args:
        a: flat indices of members.
        b: the same.
        of: another denominator; None for that of the selections themselves.
    """
    scale = np.sqrt(np.outer(sizes(a), sizes(b))) if of is None else of
    both = counts(a, b)
    return np.divide(both, scale, out=np.full_like(both, np.nan), where=scale > 0)


@dataclass(frozen=True)
class Shared:
    """What two cells share beyond noise, and what they would share if they had the same neurons.

    Row 0 is the estimate, row 1 + i the estimate without fold i (NaN where neither cell has requests in it).

    Attributes:
        excess: cross minus noise.
        attainable: geometric mean of the two cells' reliability minus noise.
    """

    excess: Float[np.ndarray, "replicate cell cell"]
    attainable: Float[np.ndarray, "replicate cell cell"]


def shared_of(parts: Sequence[CellParts], n_neurons: int) -> Shared:
    """The corrected share of neurons of every two cells, as numerator and denominator (see the module).

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> from neuronshield.find.parts import Rule, parts_of
    >>> rule = Rule(stats, "contribution", {"k": 8})
    >>> shared_of([parts_of(stats, cell, rule) for cell in stats.cells()], 87).excess.shape
    (9, 2, 2)

    Args:
        parts: of every cell.
        n_neurons: neurons of the model.
    """
    cross: list[list[Square]] = [[] for _ in range(1 + FOLDS)]
    noise: list[Square] = []
    for i, split in enumerate(SPLITS):
        zero, one = ([_side(p.halves[i], side) for p in parts] for side in (0, 1))
        cross[0].append(_both_orders(shares(zero, one)))
        noise.append(_both_orders(_noise(parts, i, halves=(zero, one), n_neurons=n_neurons)))
        for fold in range(FOLDS):
            side = 0 if fold in split[0] else 1
            less = [_without(p, i, side=side, fold=fold) for p in parts]
            found = shares(less, one) if side == 0 else shares(zero, less)
            cross[1 + fold].append(_both_orders(found))
    level = mean_of(np.stack(noise))
    means = np.stack([mean_of(np.stack(values)) for values in cross])
    own = np.maximum(np.diagonal(means - level, axis1=1, axis2=2), 0)
    excess, attainable = means - level, np.sqrt(own[:, :, None] * own[:, None, :])
    there = np.array([[_has(p, fold) for p in parts] for fold in range(FOLDS)])
    empty = ~(there[:, :, None] | there[:, None, :])
    for array in (excess, attainable):
        array[1:][empty] = np.nan
    return Shared(excess=excess, attainable=attainable)


def _noise(
    parts: Sequence[CellParts], i: int, *, halves: tuple[list[Ids | None], list[Ids | None]], n_neurons: int
) -> Square:
    """Share of neurons in common by noise alone, in halves of split i: those that pass with swapped labels, and chance."""
    scale = np.sqrt(np.outer(sizes(halves[0]), sizes(halves[1])))
    zero, one = ([_side(p.noise[i], side) for p in parts] for side in (0, 1))
    passing = np.outer(np.minimum(sizes(zero), sizes(halves[0])), np.minimum(sizes(one), sizes(halves[1])))
    chance = np.divide(scale**2 - passing, n_neurons * scale, out=np.full_like(scale, np.nan), where=scale > 0)
    return shares(zero, one, of=scale) + chance


def _side(two: tuple[Ids, Ids] | None, side: int) -> Ids | None:
    return None if two is None else two[side]


def _both_orders(matrix: Square) -> Square:
    return (matrix + matrix.T) / 2


def mean_of(values: Float[np.ndarray, " value *any"]) -> Float[np.ndarray, "*any"]:
    """Mean over the first axis without the missing values; NaN where all are missing.

    >>> mean_of(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [2.0, nan]

    Args:
        values: any number of axes.
    """
    known = np.isfinite(values)
    total, n = np.where(known, values, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _without(part: CellParts, i: int, *, side: int, fold: int) -> Ids | None:
    """A half of split i without a fold."""
    halves, left = part.halves[i], part.left_out[i]
    return None if halves is None or left is None else left[side].get(fold, halves[side])


def _has(part: CellParts, fold: int) -> bool:
    """Whether a cell has requests in a fold."""
    return any(fold in side for left in part.left_out if left is not None for side in left)


ATTAINABLE = 0.05  # reliability minus noise, below which `shared` is not computed


def interval_of(shared: Shared, size: Square) -> tuple[Square, Square, Square]:
    """The share of neurons in common, and the ends of its 95 % interval; NaN where there are too few requests to tell.

    The interval is Fieller's for a ratio, with the jackknife over folds and Student's t, and never narrower than one neuron. There
    are too few requests if the interval is longer than 1, the distance of unrelated from same neurons, or if less than 0.05 is
    attainable. A cell shares 1 with itself, by definition and without an interval.

    >>> rows = np.stack([np.full((2, 2), x) for x in (0.2, *[0.19, 0.21] * 4)])
    >>> value, low, high = interval_of(Shared(rows, np.full((9, 2, 2), 0.4)), np.full((2, 2), 64.0))
    >>> round(value[0, 1].item(), 2), bool(low[0, 1] < 0.5 < high[0, 1])
    (0.5, True)

    Args:
        shared: estimate and estimates without a fold.
        size: neurons a set.

    Source: Fieller (1954), "Some problems in interval estimation".
    """
    top, bottom = shared.excess[0], shared.attainable[0]
    n = np.isfinite(shared.excess[1:] + shared.attainable[1:]).sum(axis=0)
    t2 = np.where(n > 1, student.ppf(0.975, np.maximum(n - 1, 1)) ** 2, np.nan)
    neuron = np.divide(0.5, size, out=np.full_like(size, np.nan), where=size > 0)
    a = bottom**2 - t2 * _jackknife(shared.attainable, shared.attainable)
    b = top * bottom - t2 * _jackknife(shared.excess, shared.attainable)
    c = top**2 - t2 * (_jackknife(shared.excess, shared.excess) + neuron**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        value, low, high = top / bottom, (b - root) / a, (b + root) / a
        told = (a > 0) & (bottom > ATTAINABLE) & (high - low <= 1)
    value, low, high = (np.where(told, x, np.nan) for x in (value, low, high))
    for x, own in ((value, 1.0), (low, np.nan), (high, np.nan)):
        np.fill_diagonal(x, np.where(np.diag(bottom) > ATTAINABLE, own, np.nan))
    return value, low, high


def _jackknife(x: Float[np.ndarray, "row cell cell"], y: Float[np.ndarray, "row cell cell"]) -> Square:
    """Covariance of two estimates, from rows 1, 2, ... without one fold each; NaN with fewer than two."""
    known = np.isfinite(x[1:] + y[1:])
    n = known.sum(axis=0)
    one, other = (np.where(known, values[1:], np.nan) for values in (x, y))
    products = (one - mean_of(one)) * (other - mean_of(other))
    return np.where(n > 1, mean_of(products) * (n - 1), np.nan)


def reliabilities(parts: Sequence[CellParts]) -> Float[np.ndarray, " cell"]:
    """Share of neurons in common of two selections from samples as large as a cell's own (see the module); NaN if unknown.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> from neuronshield.find.parts import Rule, parts_of
    >>> rule = Rule(stats, "contribution", {"k": 8})
    >>> reliabilities([parts_of(stats, cell, rule) for cell in stats.cells()]).shape
    (2,)

    Args:
        parts: of every cell.
    """
    return np.array([_reliability(part) for part in parts])


def _reliability(part: CellParts) -> float:
    halves = [float(shares([two[0]], [two[1]])[0, 0]) for two in part.halves if two is not None]
    between = shares(*[[ids for _, _, ids in part.quarters]] * 2) if part.quarters else np.zeros((0, 0))
    pairs = [(i, j) for i, j in combinations(range(len(between)), 2) if not part.quarters[i][0] & part.quarters[j][0]]
    quarters = [float(between[i, j]) for i, j in pairs]
    sizes_of = [share for i, j in pairs for share in (part.quarters[i][1], part.quarters[j][1])]
    if not halves or not pairs or not len(part.whole) or np.mean(sizes_of) > 0.4:
        return float("nan")
    edge = 0.5 / len(part.whole)
    high, low = (float(norm.ppf(np.sqrt(np.clip(np.nanmean(x), edge, 1 - edge)))) for x in (halves, quarters))
    slope = max((high - low) / (np.sqrt(0.5) - np.sqrt(np.mean(sizes_of))), 0.0)
    return float(norm.cdf(high + slope * (1 - np.sqrt(0.5))) ** 2)
