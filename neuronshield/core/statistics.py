"""Tests over clusters, corrections, the least data each test needs, and rates of independent trials; other intervals are in `intervals`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "Interval",
    "at_most",
    "cluster_means",
    "codes",
    "difference",
    "discoveries",
    "equivalent",
    "finite",
    "holm",
    "least_draws",
    "least_requests",
    "p_value",
    "positive",
    "rate",
]


LEVEL = 0.95
#: No p-value is below this: the smallest normal number.
LEAST = float(np.finfo(float).tiny)


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.value != self.value:  # NaN
            return "n/a"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


#: An interval of nothing.
NAN = Interval(float("nan"), float("nan"), float("nan"))


def finite(interval: Interval) -> list[float | None]:
    """Value, low and high as JSON can hold them: None where one is NaN or infinite.

    >>> finite(Interval(0.5, float("-inf"), 1.0))
    [0.5, None, 1.0]

    Args:
        interval: the interval.
    """
    return [float(v) if np.isfinite(v) else None for v in interval]


def rate(successes: int, n: int) -> Interval:
    """A proportion with Wilson's interval; all NaN if n is 0.

    >>> str(rate(9, 10))
    '0.90 [0.60, 0.98]'

    Args:
        successes: trials that succeeded.
        n: trials.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    if not n:
        return NAN
    ci = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, float(ci.low), float(ci.high))


def difference(a: Interval, b: Interval) -> Interval:
    """a - b of two independent proportions, with Newcombe's hybrid score interval.

    >>> str(difference(rate(9, 10), rate(3, 10)))
    '0.60 [0.17, 0.81]'

    Args:
        a: a proportion with Wilson's interval, as `rate` returns it.
        b: another one.

    Source: Newcombe (1998), "Interval estimation for the difference between independent proportions", method 10.
    """
    d = a.value - b.value
    return Interval(
        d,
        d - float(np.hypot(a.value - a.low, b.high - b.value)),
        d + float(np.hypot(a.high - a.value, b.value - b.low)),
    )


def codes(clusters: Sequence[Hashable]) -> Int[np.ndarray, " row"]:
    """The number of each row's cluster, from 0, in order of first appearance.

    >>> codes(["b", "a", "b"]).tolist()
    [0, 1, 0]

    Args:
        clusters: the cluster of each row.
    """
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(c, len(index)) for c in clusters], dtype=int)


def p_value(observed: float, controls: Float[np.ndarray, " draw"]) -> float:
    """(1 + #{control >= observed}) / (1 + controls): never 0, valid for any number of draws. What is NaN counts against the claim.

    >>> p_value(5.0, np.array([1.0, 2.0, 6.0]))
    0.5

    Args:
        observed: the value under test.
        controls: one value a control draw.

    Source: Phipson and Smyth (2010), "Permutation p-values should never be zero".
    """
    return (1 + int((~(np.asarray(controls) < observed)).sum())) / (1 + len(controls))


def cluster_means(values: Float[np.ndarray, " row"], clusters: Sequence[Hashable]) -> Float[np.ndarray, " cluster"]:
    """One mean a cluster: the independent observations.

    >>> cluster_means(np.array([1.0, 3.0, 5.0]), ["a", "a", "b"]).tolist()
    [2.0, 5.0]

    Args:
        values: one value a row.
        clusters: the cluster of each row.
    """
    where = codes(clusters)
    return np.bincount(where, values) / np.bincount(where)


def positive(values: Float[np.ndarray, " row"], clusters: Sequence[Hashable]) -> float:
    """p of "the mean is above 0", one-sided, over clusters; 1 where a value is not finite.

    Changes of answers (all values -1, 0 or 1) have the exact sign-flip test over clusters, with one row a cluster McNemar's exact
    test. Other values have Student's t-test, and p is never below 1 / 2^n, the least p of a sign-flip test of the n clusters that
    are not 0. So p is never 0, and fewer than 5 clusters cannot show anything at 5 % (`least_requests`).

    >>> round(positive(np.arange(1.0, 9.0), list("abcdefgh")), 4)
    0.0039
    >>> positive(np.ones(5), list("abcde")) == 1 / 2**5
    True

    Args:
        values: one value a row.
        clusters: the cluster of each row.

    Source: Fisher (1935), "The design of experiments", section 21; McNemar (1947), "Note on the sampling error of the
    difference between correlated proportions or percentages".
    """
    values = np.asarray(values, dtype=float)
    if not len(values) or not np.isfinite(values).all():
        return 1.0
    if np.isin(values, (-1, 0, 1)).all():
        return _sign_flips(np.bincount(codes(clusters), values))
    means = cluster_means(values, clusters)
    largest = float(np.abs(means).max())
    least = _power(0.5, int((np.abs(means) > 1e-12 * max(1.0, largest)).sum()))
    if np.ptp(means) <= 1e-12 * max(1.0, largest):
        return least if means[0] > 1e-9 else 1.0
    return max(least, _student(means, 0.0))


def _student(means: Float[np.ndarray, " cluster"], at: float) -> float:
    """p of "the mean is above `at`" by Student's t-test."""
    from scipy.special import stdtr

    n = len(means)
    return float(stdtr(n - 1, (at - means.mean()) / np.sqrt(means.var(ddof=1) / n)))


def _sign_flips(sums: Float[np.ndarray, " cluster"]) -> float:
    """P(sum of the clusters >= that observed) if each whole number had its sign by chance, counted exactly."""
    sizes = np.abs(sums).astype(int)
    chance = np.ones(1)  # of each sum over the clusters whose sign is plus
    for size in sizes[sizes > 0]:
        longer = np.zeros(len(chance) + size)
        longer[: len(chance)] += chance / 2
        longer[size:] += chance / 2
        chance = longer
    return min(1.0, max(float(chance[int(sums[sums > 0].sum()) :].sum()), LEAST))


def equivalent(values: Float[np.ndarray, " row"], clusters: Sequence[Hashable], limit: float) -> float:
    """p of "the mean lies outside +-limit": a small p means equivalent to 0 within the limit; 1 where a value is not finite.

    Two one-sided tests over clusters. p is never below (1 - limit / jump)^n: the chance that none of n clusters shows it if a
    mean at the limit comes from a few clusters that differ by `jump`, which is 1 (or twice the limit, if that is larger). On
    clusters without any change this is exact for answers: "unchanged within 0.10" needs 29 of them (`least_requests`). For changes
    of answers (all values -1, 0 or 1) the one-sided tests are score tests, whose variance is that at the limit; for other values
    they are t-tests. For changes of answers, and clusters that are all the same, the bound has limit - |mean| for the limit.

    >>> equivalent(np.array([0.1, -0.1, 0.05, 0.0] * 3), list("abcdefghijkl"), limit=1.0) < 0.01
    True
    >>> equivalent(np.zeros(28), [str(i) for i in range(28)], limit=0.1) < 0.05
    False

    Args:
        values: one value a row.
        clusters: the cluster of each row.
        limit: largest mean that counts as none, in the units of the values, above 0.

    Source: Schuirmann (1987), two one-sided tests (TOST); Tango (1998), "Equivalence test and confidence interval for the difference
    in proportions for the paired-sample design", for score tests; Clopper and Pearson (1934) for the exact bound.
    """
    values = np.asarray(values, dtype=float)
    n = len(set(clusters))
    if n < 2 or not np.isfinite(values).all():
        return 1.0
    answers = bool(np.isin(values, (-1, 0, 1)).all())
    means = cluster_means(values, clusters)
    mean = float(values.mean() if answers else means.mean())
    if abs(mean) >= limit:
        return 1.0
    constant = bool(np.ptp(means) <= 1e-12)
    least = _power(1 - (limit - abs(mean) * (answers or constant)) / max(1.0, 2 * limit), n)
    if constant:
        return least
    if answers:
        return max(least, *(_at_limit(sign * values, clusters, limit) for sign in (1, -1)))
    return max(least, _student(means, -limit), _student(-means, -limit))


def at_most(values: Float[np.ndarray, " row"], clusters: Sequence[Hashable], limit: float) -> float:
    """p of "the mean is at least the limit": a small p means that answers change by less than the limit in one direction.

    The upper side of `equivalent` for changes of answers; a fall, however large, is below the limit. It needs as many clusters
    (`least_requests` with the limit).

    >>> at_most(np.zeros(19), [str(i) for i in range(19)], limit=0.15) <= 0.05
    True
    >>> at_most(-np.ones(19), [str(i) for i in range(19)], limit=0.15) <= 0.05
    True

    Args:
        values: changes of answers, -1, 0 or 1, one a row.
        clusters: the cluster of each row.
        limit: largest mean that counts as no rise, above 0.

    Source: as `equivalent`.
    """
    values = np.asarray(values, dtype=float)
    n, mean = len(set(clusters)), float(values.mean()) if len(values) else float("nan")
    if n < 2 or not np.isin(values, (-1, 0, 1)).all() or mean >= limit:
        return 1.0
    least = _power(1 - (limit - max(mean, 0.0)) / max(1.0, 2 * limit), n)
    constant = bool(np.ptp(cluster_means(values, clusters)) <= 1e-12)
    return least if constant else max(least, _at_limit(values, clusters, limit))


def _at_limit(values: Float[np.ndarray, " row"], clusters: Sequence[Hashable], limit: float) -> float:
    """p of "the mean of these changes of answers is at least the limit", with the variance at the limit.

    There a share of the clusters has gone to 1 in every row; see `intervals` for the variance.
    """
    from scipy.special import stdtr

    where = codes(clusters)
    sums, rows = np.bincount(where, values), np.bincount(where)
    n, mean = len(rows), float(values.mean())
    if limit >= 1:
        return LEAST
    share = (limit - mean) / (1 - mean)
    room = (rows - sums) / rows.sum()
    error = (sums - mean * rows) / rows.sum() + share * (room - room.mean())
    variance = n / (n - 1) * float((error**2).sum()) + share * (1 - share) * float((room**2).sum())
    return float(stdtr(n - 1, (mean - limit) / np.sqrt(variance)))


def _power(base: float, n: int) -> float:
    """base^n, above 0."""
    return max(base**n, LEAST)


def least_requests(*, alpha: float, limit: float | None = None) -> int:
    """The fewest clusters (independent requests) with which a claim can pass at all, from its own test.

    With fewer than this the outcome of the test is known beforehand, so the claim is neither passed nor failed.

    >>> least_requests(alpha=0.05), least_requests(alpha=0.05, limit=0.10), least_requests(alpha=0.05, limit=0.25)
    (5, 29, 11)

    Args:
        alpha: level of the test, between 0 and 1.
        limit: of `equivalent`; without it the claim is that a mean is `positive`.
    """
    return _least(0.5 if limit is None else 1 - limit / max(1.0, 2 * limit), alpha)


def least_draws(*, alpha: float) -> int:
    """The fewest control sets with which `p_value` can be at most alpha.

    >>> least_draws(alpha=0.05)
    19

    Args:
        alpha: level of the test, between 0 and 1.
    """
    n = max(0, int(1 / alpha) - 2)
    while 1 / (1 + n) > alpha:
        n += 1
    return n


def _least(base: float, alpha: float) -> int:
    """The smallest n of base^n <= alpha."""
    n = 1
    while base**n > alpha:
        n += 1
    return n


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for testing several claims: controls the chance of one or more false claims.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]

    Args:
        p: one p-value a claim.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    given = np.asarray(p, dtype=float)
    order = np.argsort(given, kind="stable")
    out = np.empty(len(given))
    out[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1.0)
    return [float(v) for v in out]


def discoveries(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q-values: p adjusted to control the false discovery rate.

    >>> discoveries(np.array([0.01, 0.04])).tolist()
    [0.02, 0.04]

    Args:
        p: one p-value a test.

    Source: Benjamini and Hochberg (1995), "Controlling the false discovery rate".
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p)) if len(p) else np.asarray(p)
