"""95 % intervals over clusters of rows: means, ratios, rates, weighted sums of rates, and differences of rates.

Rows of one cluster (translations and picture variants of one request) are not independent; clusters are. Nothing here is
drawn at random, so nothing takes a seed. The measured coverage of every interval is on the page "How the verdict was tested".

**Means and ratios** (`ratio_of_means`). Let T_i and B_i be the sums of numerator and denominator of cluster i, of K. The mean
of T_i - x B_i is 0 at the true ratio x, and its studentised value is compared with Student's t on K - 1 degrees of freedom
(Fieller 1954). Hall's cubic transformation (1992) removes the skewness of the T_i - x B_i from that value.

**Rates** (`clustered_rate`, `weighted_rates`). The upper (lower) limit is where the estimate moves to when a share q of the
clusters is replaced by clusters that only succeed (fail), with q as large as the test at 5 % allows. With one row a cluster this
is Wilson's score interval (1927). With several rows the variance is measured over clusters, and what the replaced clusters add to
it is scaled by its ratio to the variance of clusters whose rows all agree (a design effect). The ratio is shrunk towards 1 with
the weight of one cluster: at 0 of K and K of K clusters the number of clusters counts, not that of rows. The nearer the ratio is
to 1, the nearer the critical value is to the normal one, else to Student's t. Where only 1 or 2 clusters have successes
(failures) the lower (upper) limit is at most (at least) that of Brown, Cai and DasGupta (2001, section 4.1.1).

**Differences of rates** (`weighted_rates` with negative weights) over several rows a cluster have the limits of a mean where at least
`ENOUGH` clusters differ. Else they have limits as rates have, where a cluster moves to the largest (least) difference that it could
have. A difference of two rates with at most one row each in a cluster is U - L, where U sums
what clusters add to it and L what they take from it. U and L have limits as above, combined as Newcombe (1998, method 10) and Zou
and Donner (2008) do. On independent trials it is Newcombe's interval; on pairs only pairs that differ count.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from .errors import InputError
from .statistics import LEVEL, NAN, Interval, codes

__all__ = ["clustered_difference", "clustered_rate", "ratio_of_means", "weighted_rates"]

#: Two-sided normal quantile of the level.
Z = 1.959963984540054
TAIL = (1 - LEVEL) / 2
#: Clusters that must differ before a difference of rates over many rows a cluster is treated as a mean.
ENOUGH = 10
Table = Num[np.ndarray, "part cluster"]


# -- means and ratios -----------------------------------------------------------------------------------------
def ratio_of_means(
    numerator: Float[np.ndarray, " row"],
    denominator: Float[np.ndarray, " row"],
    clusters: Sequence[Hashable],
) -> Interval:
    """mean(numerator) / mean(denominator) with a studentised interval over clusters; infinite if there is one cluster.

    >>> str(ratio_of_means(np.array([1.0, 3.0, 2.0]), np.array([2.0, 2.0, 2.0]), ["a", "b", "c"]))
    '1.00 [-0.24, 2.24]'

    Limits are infinite too where the mean of the denominator cannot be told from 0. With a denominator of 1 everywhere the
    ratio is a mean; if its values are answers (all 0 or 1) it is a `clustered_rate`, and if they are changes of answers
    (all -1, 0 or 1) a difference of rates. Where every cluster has the same ratio, the limits are Wilson's for the share
    of clusters, none of K, whose ratio differs by 1 (or by the ratio itself, if that is larger).

    Args:
        numerator: one value a row.
        denominator: one value for each of the same rows.
        clusters: the cluster of each row.

    Returns:
        The interval; all NaN if there is no row, a value is not finite, or the mean of the denominator is 0.

    Source: Fieller (1954), "Some problems in interval estimation"; Hall (1992), "On the removal of skewness by transformation".
    """
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if not len(top) or not (np.isfinite(top).all() and np.isfinite(bottom).all()) or not bottom.sum():
        return NAN
    where = codes(clusters)
    if (bottom == 1).all() and np.isin(top, (-1, 0, 1)).all():
        if top.min() >= 0 and top.max() > 0:
            return _rate(top, np.ones(len(top)), where)
        gained, lost = (np.bincount(where, sign * top > 0) for sign in (1, -1))
        return weighted_rates(np.stack([gained, lost]), np.stack([np.bincount(where)] * 2), np.array([1.0, -1.0]))
    t, b = np.bincount(where, top), np.bincount(where, bottom)
    value, n = float(t.sum() / b.sum()), len(t)
    if n < 2:
        return Interval(value, float("-inf"), float("inf"))
    rest = t - value * b
    if np.abs(rest).max() <= 1e-12 * max(np.abs(t).max(), abs(value) * np.abs(b).max(), 1e-300):
        half = max(1.0, abs(value)) * Z**2 / (n + Z**2)
        return Interval(value, value - half, value + half)
    return Interval(value, *_fieller(t, b, _critical(rest)))


def _critical(rest: Float[np.ndarray, " cluster"]) -> tuple[float, float]:
    """Lower and upper critical values of the studentised mean: Student's t, transformed back from Hall's g(t)."""
    from scipy.special import stdtrit

    n = len(rest)
    t = float(stdtrit(n - 1, 1 - TAIL))
    spread = float(rest.std())
    if n < 3 or not spread:
        return -t, t
    skewness = float((rest**3).mean()) / spread**3 * float(np.sqrt(n * (n - 1))) / (n - 2)  # adjusted Fisher-Pearson
    a = skewness / float(np.sqrt(n))
    if abs(a) < 1e-9:
        return -t, t
    low, high = (3 / a * (float(np.cbrt(1 + a * (x - a / 6))) - 1) for x in (-t, t))
    return low, high


def _fieller(
    t: Float[np.ndarray, " cluster"], b: Float[np.ndarray, " cluster"], critical: tuple[float, float]
) -> tuple[float, float]:
    """Every x at which the studentised mean of t - x b lies between the critical values."""
    n, sign = len(t), np.sign(b.mean())
    t, b = sign * t, sign * b
    (tt, tb), (_, bb) = np.cov(t, b) / n
    limits = []
    # mean(t) - x mean(b) = c s(x); a larger x has a smaller mean, so the low critical value is the high limit
    for c in critical:
        square = b.mean() ** 2 - c * c * bb
        if square <= 0:
            return float("-inf"), float("inf")
        half = t.mean() * b.mean() - c * c * tb
        root = np.sqrt(max(half**2 - square * (t.mean() ** 2 - c * c * tt), 0.0))
        limits.append(float((half - np.sign(c) * root) / square))
    return limits[1], limits[0]


# -- rates ----------------------------------------------------------------------------------------------------
def clustered_rate(
    successes: Float[np.ndarray, " row"],
    clusters: Sequence[Hashable],
    *,
    trials: Float[np.ndarray, " row"] | None = None,
) -> Interval:
    """The share of trials that succeed, with an interval over clusters; all NaN if there is no trial.

    >>> str(clustered_rate(np.array([1.0, 1.0, 0.0, 1.0]), ["a", "a", "b", "c"]))
    '0.75 [0.13, 0.99]'

    Args:
        successes: 1 or 0 a row, or how many of the row's trials; NaN where it is unknown, which leaves the row out.
        clusters: the cluster of each row.
        trials: trials of each row; one without it.

    Source: Wilson (1927); Brown, Cai and DasGupta (2001), "Interval estimation for a binomial proportion".
    """
    top = np.asarray(successes, dtype=float)
    bottom = np.ones(len(top)) if trials is None else np.asarray(trials, dtype=float)
    known = np.isfinite(top) & (bottom > 0)
    if not known.any():
        return NAN
    return _rate(top[known], bottom[known], codes(np.asarray(clusters, dtype=object)[known].tolist()))


def _rate(
    top: Float[np.ndarray, " row"], bottom: Float[np.ndarray, " row"], where: Int[np.ndarray, " row"]
) -> Interval:
    return weighted_rates(np.bincount(where, top)[None], np.bincount(where, bottom)[None], np.ones(1))


def clustered_difference(
    a: Float[np.ndarray, " row_a"],
    clusters_a: Sequence[Hashable],
    b: Float[np.ndarray, " row_b"],
    clusters_b: Sequence[Hashable],
) -> Interval:
    """The rate of `a` minus the rate of `b`, with an interval over clusters; all NaN if one of them has no trial.

    Clusters that both have are paired; on disjoint clusters the rates are independent.

    >>> str(clustered_difference(np.ones(3), ["p", "q", "r"], np.zeros(3), ["p", "q", "r"]))
    '1.00 [0.21, 1.00]'

    Args:
        a: 1 or 0 a row; NaN where it is unknown, which leaves the row out.
        clusters_a: the cluster of each row of `a`.
        b: the same of the other rate.
        clusters_b: the cluster of each row of `b`.

    Source: Newcombe (1998), "Interval estimation for the difference between independent proportions", method 10; Zou and
    Donner (2008), "Construction of confidence limits about effect measures".
    """
    values = np.concatenate([a, b]).astype(float)
    known = np.isfinite(values)
    where = codes([*clusters_a, *clusters_b])
    mine = np.arange(len(values)) < len(a)
    n = len(values) and int(where.max()) + 1
    rows = [known & mine, known & ~mine]
    successes = np.stack([np.bincount(where[r], values[r], n) for r in rows])
    return weighted_rates(
        successes, np.stack([np.bincount(where[r], minlength=n) for r in rows]), np.array([1.0, -1.0])
    )


def weighted_rates(successes: Table, trials: Table, weights: Float[np.ndarray, " part"]) -> Interval:
    """The sum of weight * rate over parts that share clusters; all NaN if a part has no trial.

    A mean over cells has one part a cell, each with the same weight; a difference has negative weights too.

    >>> before, after, trials = np.array([1.0, 1, 1, 0]), np.array([1.0, 1, 0, 0]), np.ones((2, 4))
    >>> str(weighted_rates(np.stack([after, before]), trials, np.array([1.0, -1.0])))
    '-0.25 [-0.70, 0.29]'

    Args:
        successes: how many of the trials of each part and cluster succeed.
        trials: how many there are, 0 where a part lacks a cluster.
        weights: of each part; not 0.

    Raises:
        InputError: a success that is not a trial, or a weight of 0.
    """
    t, b, w = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float), np.asarray(weights, dtype=float)
    if not (w != 0).all() or not ((t >= 0) & (t <= b)).all():
        raise InputError(
            "weighted_rates: successes must lie between 0 and the trials of their cluster, and no weight is 0"
        )
    used = (b > 0).any(axis=0)
    t, b = t[:, used], b[:, used]
    if not t.size or not (b > 0).any(axis=1).all():
        return NAN
    if (w < 0).all():
        value, low, high = _limits(t, b, -w)[0]
        return Interval(-value, -high, -low)
    if b.max() <= 1 and len(w) == 2 and w[0] * w[1] < 0:
        return _difference(t, b, w)
    return _studentised(t, b, w) or _limits(t, b, w)[0]


def _studentised(t: Table, b: Table, w: Float[np.ndarray, " part"]) -> Interval | None:
    """A difference with the limits of a mean over clusters; None unless `ENOUGH` clusters differ."""
    total = b.sum(axis=1, keepdims=True)
    step = w[:, None] / total
    if (w > 0).all() or (np.abs((step * t).sum(axis=0)) > 1e-12).sum() < ENOUGH:
        return None
    rate = t.sum(axis=1, keepdims=True) / total
    value, error = float((w[:, None] * rate).sum()), (step * (t - rate * b)).sum(axis=0)
    n = len(error)
    size = float(np.sqrt(n / (n - 1) * (error**2).sum()))
    if not size:
        return None
    low, high = _critical(error)
    return Interval(
        value, max(value - high * size, float(w[w < 0].sum())), min(value - low * size, float(w[w > 0].sum()))
    )


def _difference(t: Table, b: Table, w: Float[np.ndarray, " part"]) -> Interval:
    """U - L: what clusters add to the sum and what they take from it, each with its limits."""
    share = w[:, None] * b / b.sum(axis=1, keepdims=True)
    effect = (share * np.divide(t, b, out=np.zeros_like(t), where=b > 0)).sum(axis=0)
    sides: list[tuple[Interval, Float[np.ndarray, " cluster"]]] = []
    for sign in (1, -1):
        part = sign * w > 0
        most = sign * share[part].sum(axis=0)
        reached = np.divide(np.maximum(sign * effect, 0), most, out=np.zeros_like(most), where=most > 0)
        used, rest = most > 0, np.zeros_like(most)
        side, rest[used] = _limits((b[part] * reached)[:, used], b[part][:, used], sign * w[part])
        sides.append((side, rest))
    (up, up_rest), (down, down_rest) = sides
    norm = float(np.sqrt((up_rest**2).sum() * (down_rest**2).sum()))
    correlation = max(-1.0, min(0.0, float((up_rest * down_rest).sum()) / norm)) if norm > 1e-18 else 0.0
    value = float(effect.sum())

    def distance(x: float, y: float) -> float:
        return float(np.sqrt(x * x + y * y - 2 * correlation * x * y))

    low = value - distance(up.value - up.low, down.high - down.value)
    high = value + distance(up.high - up.value, down.value - down.low)
    return Interval(value, max(low, float(w[w < 0].sum())), min(high, float(w[w > 0].sum())))


class _Variances(NamedTuple):
    """Of a weighted sum of rates: measured over clusters, and what it would be if all that each cluster has pointed one way."""

    clusters: float
    alike: float
    effective: float  # number of clusters behind the measured one (Kish)

    @property
    def known(self) -> float:
        """How far the variance follows from the rate alone: 1 with one row a cluster, and where every trial has one outcome."""
        return min(1.0, self.clusters / self.alike) if self.alike > 1e-18 else 1.0

    @property
    def moved(self) -> float:
        """The same, shrunk towards 1 with the weight of one cluster."""
        return (self.known * self.effective + 1) / (self.effective + 1)


def _variances(t: Table, b: Table, *, step: Num[np.ndarray, "part 1"], rest: Table) -> _Variances:
    """Variances of sum(step * t), with rests already multiplied by step."""
    rate = t.sum(axis=1, keepdims=True) / b.sum(axis=1, keepdims=True)
    summed = rest.sum(axis=0)
    measured = float((summed**2).sum())
    alike = float(((np.abs(step) * (t * (1 - rate) + (b - t) * rate)).sum(axis=0) ** 2).sum())
    return _Variances(measured, alike, measured**2 / float((summed**4).sum()) if measured > 1e-18 else 0.0)


def _limits(t: Table, b: Table, w: Float[np.ndarray, " part"]) -> tuple[Interval, Float[np.ndarray, " cluster"]]:
    """The weighted sum of rates with its limits, and what each cluster adds to its error."""
    from scipy.special import stdtrit

    total = b.sum(axis=1, keepdims=True)
    rate, step = t.sum(axis=1, keepdims=True) / total, w[:, None] / total
    value, n = float((w[:, None] * rate).sum()), t.shape[1]
    least, most = float(w[w < 0].sum()), float(w[w > 0].sum())
    rest = step * (t - rate * b)
    found = _variances(t, b, step=step, rest=rest)
    if n < 2 and found.known < 1:
        return Interval(value, least, most), rest.sum(axis=0)
    clusters = (b > 0).sum(axis=1, keepdims=True)  # of each part
    small = 1 + (1 - found.known) / np.maximum(clusters - 1, 1)
    alone = float(((w[:, None] ** 2 * rate * (1 - rate))[clusters == 1]).sum()) if n > 1 else 0.0
    critical = Z**2
    if found.known < 1:
        critical += (float(stdtrit(n - 1, 1 - TAIL)) ** 2 - Z**2) * (1 - found.known)
    error = (np.sqrt(small) * rest).sum(axis=0)
    ends = []
    for sign in (1, -1):
        room = np.where(sign * step > 0, b - t, t)
        moved = np.abs(step * room).sum(axis=0)
        spread = found.moved * float((moved**2).sum())
        ends.append(value + sign * _move(sign * error, moved, spread=spread, critical=critical, alone=alone))
    high, low = ends
    if found.alike > 1e-18 and not least:  # neither edge of a rate
        low, high = min(low, value * _rare(t)), max(high, most - (most - value) * _rare(b - t))
    return Interval(value, max(low, least), min(high, most)), rest.sum(axis=0)


def _move(
    error: Float[np.ndarray, " cluster"],
    room: Float[np.ndarray, " cluster"],
    *,
    spread: float,
    critical: float,
    alone: float,
) -> float:
    """How far the estimate can move: q * sum(room), where (q sum(room))^2 = critical * variance(q).

    variance(q) is that of the estimate once a share q of the clusters went to the end of its room: sum (error + q (room -
    mean room))^2 + q (1 - q) * spread + alone.
    """
    whole = float(room.sum())
    if whole <= 1e-15:
        return 0.0
    centred = room - whole / len(room)
    square = whole**2 - critical * (float((centred**2).sum()) - spread)
    linear = -critical * (2 * float((error * centred).sum()) + spread)
    constant = -critical * (float((error**2).sum()) + alone)
    if square <= 0:
        return whole
    q = (-linear + float(np.sqrt(max(linear**2 - 4 * square * constant, 0.0)))) / (2 * square)
    return min(q, 1.0) * whole


def _rare(t: Table) -> float:
    """With successes in 1 or 2 clusters only, the lower limit over the estimate (Brown, Cai and DasGupta 2001), else 1."""
    from scipy.special import chdtri

    n = int((t > 0).any(axis=0).sum())
    return float(chdtri(2 * n, LEVEL)) / 2 / n if n in (1, 2) else 1.0
