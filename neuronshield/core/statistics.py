"""Statistics that several steps share; tests, corrections and Wilson's interval are those of scipy and statsmodels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = [
    "Interval",
    "bootstrap",
    "cluster_means",
    "difference",
    "discoveries",
    "equivalent",
    "finite",
    "holm",
    "p_value",
    "positive",
    "rate",
    "ratio_of_means",
]


LEVEL = 0.95


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


def bootstrap(
    statistic: Callable[[Float[np.ndarray, "draw cluster"]], Float[np.ndarray, " draw"]],
    clusters: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Interval, list[str]]:
    """Percentile interval of a statistic under resampling of whole clusters, and the distinct clusters.

    The clusters that are returned are in the order of the columns of the weights.

    >>> interval, names = bootstrap(lambda weights: weights @ np.array([2.0, 3.0]), ["a", "b", "a"], draws=100)
    >>> interval.value, names
    (5.0, ['a', 'b'])

    Args:
        statistic: takes weights [draw, cluster], how often each distinct cluster was drawn, and returns one value a draw.
            The first draw is all ones: the estimate itself.
        clusters: the cluster of each row.
        draws: resamplings.
        seed: of the resampling.
    """
    distinct = list(dict.fromkeys(clusters))
    n = len(distinct)
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), size=draws)])
    with np.errstate(invalid="ignore", divide="ignore"):
        values = statistic(weights)
    tail = (1 - LEVEL) / 2
    spread = values[1:][np.isfinite(values[1:])]
    if n < 2 or not len(spread):
        return Interval(float(values[0]), float("-inf"), float("inf")), distinct
    low, high = np.quantile(spread, [tail, 1 - tail])
    return Interval(float(values[0]), float(low), float(high)), distinct


def ratio_of_means(
    numerator: Float[np.ndarray, " row"],
    denominator: Float[np.ndarray, " row"],
    clusters: Sequence[str],
    *,
    seed: int = 0,
) -> Interval:
    """mean(numerator) / mean(denominator) with a percentile interval; clusters are resampled together.

    >>> ratio_of_means(np.array([1.0, 3.0]), np.array([2.0, 2.0]), ["a", "b"]).value
    1.0

    Args:
        numerator: one value a row.
        denominator: one value for each of the same rows.
        clusters: the cluster of each row.
        seed: of the resampling.
    """
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[c] for c in clusters])
    top = np.bincount(where, numerator, len(index))
    bottom = np.bincount(where, denominator, len(index))
    return bootstrap(lambda w: (w @ top) / (w @ bottom), clusters, seed=seed)[0]


def p_value(observed: float, controls: Float[np.ndarray, " draw"]) -> float:
    """(1 + #{control >= observed}) / (1 + controls): never 0, valid for any number of draws.

    >>> p_value(5.0, np.array([1.0, 2.0, 6.0]))
    0.5

    Args:
        observed: the value under test.
        controls: one value a control draw.

    Source: Phipson and Smyth (2010), "Permutation p-values should never be zero".
    """
    controls = np.asarray(controls)
    return (1 + int((controls >= observed).sum())) / (1 + len(controls))


def cluster_means(values: Float[np.ndarray, " row"], clusters: Sequence[str]) -> Float[np.ndarray, " cluster"]:
    """One mean a cluster: the independent observations.

    >>> cluster_means(np.array([1.0, 3.0, 5.0]), ["a", "a", "b"]).tolist()
    [2.0, 5.0]

    Args:
        values: one value a row.
        clusters: the cluster of each row.
    """
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[c] for c in clusters])
    return np.bincount(where, values, len(index)) / np.bincount(where, minlength=len(index))


def positive(values: Float[np.ndarray, " row"], clusters: Sequence[str]) -> float:
    """p of "the mean is above 0": a one-sided t-test over clusters (1 where every value is 0).

    >>> round(positive(np.array([1.0, 2.0, 3.0]), ["a", "b", "c"]), 3)
    0.037

    Args:
        values: one value a row.
        clusters: the cluster of each row.
    """
    from scipy.stats import ttest_1samp

    means = cluster_means(values, clusters)
    if len(means) < 2 or np.ptp(means) <= 1e-12 * max(1.0, float(np.abs(means).max())):
        return 0.0 if len(means) > 1 and means[0] > 1e-9 else 1.0
    return float(ttest_1samp(means, 0.0, alternative="greater").pvalue)


def equivalent(values: Float[np.ndarray, " row"], clusters: Sequence[str], limit: float) -> float:
    """p of "the mean lies outside +-limit": a small p means equivalent to 0 within the limit.

    >>> equivalent(np.array([0.1, -0.1, 0.05]), ["a", "b", "c"], limit=1.0) < 0.01
    True

    Args:
        values: one value a row.
        clusters: the cluster of each row.
        limit: largest mean that counts as none, in the units of the values.

    Source: Schuirmann (1987), two one-sided tests (TOST); statsmodels' implementation, over clusters.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    means = cluster_means(values, clusters)
    if len(means) < 2:
        return 1.0
    if np.ptp(means) <= 1e-12:
        return 0.0 if abs(float(means[0])) < limit else 1.0
    return float(DescrStatsW(means).ttost_mean(-limit, limit)[0])


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for testing several claims: controls the chance of one or more false claims.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]

    Args:
        p: one p-value a claim.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    from statsmodels.stats.multitest import multipletests

    return [float(v) for v in multipletests(list(p), method="holm")[1]] if len(p) else []


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
