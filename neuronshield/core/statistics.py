"""The few statistics the steps share; tests, corrections and Wilson's interval are scipy's and statsmodels'."""

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
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


#: An interval of nothing.
NAN = Interval(float("nan"), float("nan"), float("nan"))


def finite(interval: Interval) -> list[float | None]:
    """An interval for JSON, which has no NaN or infinity: null stands for both."""
    return [float(v) if np.isfinite(v) else None for v in interval]


def rate(successes: int, n: int) -> Interval:
    """A proportion with Wilson's interval (Wilson 1927); all NaN if n is 0.

    >>> str(rate(9, 10))
    '0.90 [0.60, 0.98]'
    """
    from scipy.stats import binomtest

    if not n:
        return NAN
    ci = binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return Interval(successes / n, float(ci.low), float(ci.high))


def difference(a: Interval, b: Interval) -> Interval:
    """a - b of two proportions with Newcombe's hybrid score interval (Newcombe 1998, method 10)."""
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
    """Percentile interval of a statistic under resampling of whole clusters.

    `statistic` receives one row of cluster weights a draw (how often each distinct cluster was drawn, the
    first row being all ones: the estimate itself), so weighted sums replace copying data.

    Returns:
        The interval, and the distinct clusters in the order of the weights' columns.
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
    """mean(numerator) / mean(denominator), both over the same rows, clusters resampled together."""
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[c] for c in clusters])
    top = np.bincount(where, numerator, len(index))
    bottom = np.bincount(where, denominator, len(index))
    return bootstrap(lambda w: (w @ top) / (w @ bottom), clusters, seed=seed)[0]


def p_value(observed: float, controls: Float[np.ndarray, " draw"]) -> float:
    """(1 + #{control >= observed}) / (1 + controls): never 0, valid for any number of draws.

    Source: Phipson and Smyth (2010), "Permutation p-values should never be zero".
    """
    controls = np.asarray(controls)
    return (1 + int((controls >= observed).sum())) / (1 + len(controls))


def cluster_means(values: Float[np.ndarray, " row"], clusters: Sequence[str]) -> Float[np.ndarray, " cluster"]:
    """One mean a cluster: the independent observations.

    >>> cluster_means(np.array([1.0, 3.0, 5.0]), ["a", "a", "b"]).tolist()
    [2.0, 5.0]
    """
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[c] for c in clusters])
    return np.bincount(where, values, len(index)) / np.bincount(where, minlength=len(index))


def positive(values: Float[np.ndarray, " row"], clusters: Sequence[str]) -> float:
    """p of "the mean is above 0": a one-sided t-test over clusters (1 where nothing varies and nothing is there)."""
    from scipy.stats import ttest_1samp

    means = cluster_means(values, clusters)
    if len(means) < 2 or np.ptp(means) <= 1e-12 * max(1.0, float(np.abs(means).max())):
        return 0.0 if len(means) > 1 and means[0] > 1e-9 else 1.0
    return float(ttest_1samp(means, 0.0, alternative="greater").pvalue)


def equivalent(values: Float[np.ndarray, " row"], clusters: Sequence[str], limit: float) -> float:
    """p of "the mean lies outside +-limit": small means equivalent to 0 within the limit.

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
    """p adjusted for being several claims (Holm 1979): the chance of even one false claim stays below alpha.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    from statsmodels.stats.multitest import multipletests

    return [float(v) for v in multipletests(list(p), method="holm")[1]] if len(p) else []


def discoveries(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q: p adjusted for the share of false discoveries (Benjamini and Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p)) if len(p) else np.asarray(p)
