"""Intervals against numbers worked out by hand and against slow resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neuronshield.core.statistics import (
    Interval,
    bootstrap,
    cluster_means,
    difference,
    discoveries,
    equivalent,
    holm,
    p_value,
    positive,
    rate,
    ratio_of_means,
)

Z = 1.959963984540054


def wilson(k: int, n: int) -> tuple[float, float]:
    """(p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), written out."""
    p = k / n
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 7), (9, 10), (10, 10), (81, 263)])
def test_a_rate_has_wilsons_interval(k: int, n: int):
    got = rate(k, n)
    assert got.value == k / n
    assert (got.low, got.high) == pytest.approx(wilson(k, n), abs=1e-9)
    assert 0 <= got.low <= got.value <= got.high <= 1


def test_a_rate_agrees_with_newcombes_published_example():
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I: 81/263, method 3
    got = rate(81, 263)
    assert (round(got.low, 4), round(got.high, 4)) == (0.2553, 0.3662)


def test_a_rate_of_nothing_is_nan():
    assert all(math.isnan(v) for v in rate(0, 0))


def test_a_difference_agrees_with_newcombes_published_example():
    # Newcombe (1998), Interval estimation for the difference between independent proportions, table II,
    # method 10: 56/70 - 48/80 = 0.20, 95 % interval 0.0524 to 0.3339
    got = difference(rate(56, 70), rate(48, 80))
    assert got.value == pytest.approx(0.2)
    assert (round(got.low, 4), round(got.high, 4)) == (0.0524, 0.3339)


def test_a_difference_is_antisymmetric():
    a, b = rate(9, 10), rate(3, 29)
    there, back = difference(a, b), difference(b, a)
    assert tuple(there) == pytest.approx((-back.value, -back.high, -back.low))


def test_p_is_never_zero_and_counts_ties_against_us():
    assert p_value(5.0, np.array([1.0, 2.0, 3.0])) == 1 / 4
    assert p_value(2.0, np.array([1.0, 2.0, 3.0])) == 3 / 4
    assert p_value(0.0, np.array([1.0, 2.0, 3.0])) == 1.0


def clustered() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """23 rows in 7 clusters of unequal size; rows of a cluster are alike."""
    rng = np.random.default_rng(0)
    clusters = [f"c{i}" for i in [0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5, 5, 6, 6, 6]]
    level = rng.normal(1, 1, 7)
    top = np.array([level[int(c[1])] for c in clusters]) + rng.normal(0, 0.1, 23)
    return top, rng.uniform(1, 2, 23), clusters


def test_the_cluster_bootstrap_agrees_with_copying_rows():
    top, bottom, clusters = clustered()
    names = sorted(set(clusters))
    rows = {c: [i for i, d in enumerate(clusters) if d == c] for c in names}
    rng = np.random.default_rng(1)
    slow = []
    for _ in range(4000):
        picked = [i for c in rng.choice(names, len(names)) for i in rows[c]]
        slow.append(top[picked].mean() / bottom[picked].mean())
    low, high = np.quantile(slow, [0.025, 0.975])
    got = ratio_of_means(top, bottom, clusters, seed=2)
    assert got.value == pytest.approx(top.mean() / bottom.mean(), rel=1e-12)
    width = high - low
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.06 * width)
    # trap: resampling rows instead of clusters gives an interval about half as wide
    single = ratio_of_means(top, bottom, [str(i) for i in range(23)], seed=2)
    assert (single.high - single.low) < 0.75 * width


def test_bootstrap_gives_the_estimate_first_and_names_its_columns():
    interval, names = bootstrap(lambda w: w @ np.array([2.0, 3.0, 5.0]), ["b", "a", "b", "c"], draws=50)
    assert names == ["b", "a", "c"]
    assert interval.value == 10.0
    assert interval.low <= 10.0 <= interval.high


def test_bootstrap_repeats_with_its_seed_only():
    top, bottom, clusters = clustered()
    assert ratio_of_means(top, bottom, clusters, seed=3) == ratio_of_means(top, bottom, clusters, seed=3)
    assert ratio_of_means(top, bottom, clusters, seed=3) != ratio_of_means(top, bottom, clusters, seed=4)


def test_one_cluster_says_nothing_about_spread():
    interval, _ = bootstrap(lambda w: w @ np.array([4.0]), ["a", "a"])
    assert interval == Interval(4.0, float("-inf"), float("inf"))


# -- tests over requests -----------------------------------------------------------------------------------
CLUSTERS = ["a", "a", "b", "c", "c", "c"]
VALUES = np.array([1.0, 3.0, 5.0, 0.0, 1.0, 2.0])


def test_a_cluster_counts_once():
    assert cluster_means(VALUES, CLUSTERS).tolist() == [2.0, 5.0, 1.0]


def test_positive_is_students_t_over_clusters_written_out():
    means = np.array([2.0, 5.0, 1.0])
    t = means.mean() / (means.std(ddof=1) / math.sqrt(3))
    # one-sided tail of Student's t with 2 degrees of freedom, in closed form
    assert positive(VALUES, CLUSTERS) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert positive(-VALUES, CLUSTERS) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)))


def test_repeating_a_request_does_not_make_it_more_certain():
    assert positive(np.tile(VALUES, 5), CLUSTERS * 5) == pytest.approx(positive(VALUES, CLUSTERS))


def test_nothing_at_all_is_no_effect_and_a_constant_one_is():
    assert positive(np.zeros(5), list("abcde")) == 1.0
    assert positive(np.full(5, 0.2), list("abcde")) == 0.0
    assert positive(np.array([3.0]), ["a"]) == 1.0


def test_equivalence_is_two_one_sided_tests():
    x = np.array([0.02, -0.01, 0.03, 0.00, 0.01, -0.02])
    names = list("abcdef")
    low, high = positive(x + 0.05, names), positive(0.05 - x, names)
    assert equivalent(x, names, 0.05) == pytest.approx(max(low, high))
    assert equivalent(x, names, 0.05) < 0.05 < equivalent(x, names, 0.01)
    assert equivalent(x + 1, names, 0.05) > 0.99
    assert equivalent(np.zeros(4), list("abcd"), 0.1) == 0.0
    assert equivalent(np.ones(4), list("abcd"), 0.1) == 1.0
    assert equivalent(np.zeros(1), ["a"], 0.1) == 1.0  # one request proves nothing


def test_holm_steps_down():
    p = [0.04, 0.01, 0.03]
    assert holm(p) == pytest.approx([0.06, 0.03, 0.06])  # 3 x .01; 2 x .03; then never smaller
    assert holm([]) == []


def test_discoveries_are_benjamini_and_hochbergs():
    p = np.array([0.001, 0.04, 0.03, 0.8])
    by_hand = [0.004, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.8]  # made monotone from the largest down
    assert discoveries(p).tolist() == pytest.approx(by_hand)
    assert len(discoveries(np.array([]))) == 0
