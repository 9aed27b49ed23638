"""Intervals over clusters against published examples, scipy, restatements, and their coverage under simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import skew, ttest_1samp
from scipy.stats import t as t_of

from neuronshield.core.errors import InputError
from neuronshield.core.intervals import clustered_difference, clustered_rate, ratio_of_means, weighted_rates
from neuronshield.core.statistics import Interval, difference, rate


def names(n: int, stem: str = "") -> list[str]:
    return [f"{stem}{i}" for i in range(n)]


def answers(k: int, n: int) -> np.ndarray:
    """k ones and n - k zeros."""
    return (np.arange(n) < k).astype(float)


# -- rates ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("k", "n"), [(0, 10), (0, 48), (3, 8), (9, 17), (10, 10), (45, 48), (81, 263)])
def test_a_rate_of_single_rows_is_wilsons(k: int, n: int):
    assert tuple(clustered_rate(answers(k, n), names(n))) == pytest.approx(tuple(rate(k, n)), abs=1e-9)


def test_one_or_two_successes_reach_down_to_the_limit_of_brown_cai_and_dasgupta():
    # their section 4.1.1: -log(0.95) / n for one success
    assert clustered_rate(answers(1, 8), names(8)).low == pytest.approx(-math.log(0.95) / 8)
    assert clustered_rate(answers(7, 8), names(8)).high == pytest.approx(1 + math.log(0.95) / 8)
    # for two, half the 5 % point of chi-square with 4 degrees of freedom: exp(-x) (1 + x) = 0.95
    x = clustered_rate(answers(2, 20), names(20)).low * 20
    assert math.exp(-x) * (1 + x) == pytest.approx(0.95)
    assert clustered_rate(answers(1, 8), names(8)).high == pytest.approx(rate(1, 8).high)


def test_at_the_edges_clusters_count_and_not_rows():
    for value in (0.0, 1.0):
        got = clustered_rate(np.full(48, value), names(8) * 6)
        assert tuple(got) == pytest.approx(tuple(rate(int(value * 8), 8)), abs=1e-9)
        assert got.low < got.high


def test_rows_that_are_alike_are_one_trial_and_rows_that_are_independent_are_many():
    alike = clustered_rate(np.repeat(answers(20, 48), 6), [c for c in names(48) for _ in range(6)])
    single = clustered_rate(answers(20, 48), names(48))
    assert alike.high - alike.low == pytest.approx(single.high - single.low, rel=0.05)
    rng = np.random.default_rng(0)
    independent = clustered_rate((rng.random(288) < 20 / 48).astype(float), [c for c in names(48) for _ in range(6)])
    many = rate(120, 288)
    assert independent.high - independent.low == pytest.approx(many.high - many.low, rel=0.15)
    # trap: Wilson's interval of rows that are alike is less than half as wide
    assert (rate(120, 288).high - rate(120, 288).low) < 0.5 * (alike.high - alike.low)


def test_many_clusters_have_the_interval_of_the_linearised_ratio():
    rng = np.random.default_rng(1)
    n, sizes = 900, rng.integers(1, 8, 900)
    top = rng.binomial(sizes, rng.beta(2, 3, n)).astype(float)
    value = top.sum() / sizes.sum()
    error = math.sqrt(((top - value * sizes) ** 2).sum() * n / (n - 1)) / sizes.sum()
    got = clustered_rate(top, names(n), trials=sizes.astype(float))
    assert got.value == pytest.approx(value)
    assert (got.low, got.high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.05 * error)


def test_trials_are_rows_counted_together():
    rows = np.array([1.0, 0, 1, 1, 0, 0, 1, 1, 0])
    together = clustered_rate(np.array([2.0, 1.0, 2.0]), list("abc"), trials=np.array([3.0, 3.0, 3.0]))
    assert tuple(together) == pytest.approx(tuple(clustered_rate(rows, list("aaabbbccc"))))


def test_unknown_answers_are_left_out():
    known = clustered_rate(np.array([1.0, 0.0, 1.0]), list("abc"))
    assert clustered_rate(np.array([1.0, math.nan, 0.0, 1.0, math.nan]), list("aabcd")) == known
    assert all(math.isnan(v) for v in clustered_rate(np.array([math.nan]), ["a"]))
    assert all(math.isnan(v) for v in clustered_rate(np.array([]), []))


def test_one_cluster_says_nothing_of_a_rate_but_that_it_is_no_edge():
    assert clustered_rate(np.array([1.0, 0.0, 0.0]), list("aaa")) == Interval(1 / 3, 0.0, 1.0)
    one = clustered_rate(np.ones(3), list("aaa"))
    assert one.high == 1.0
    assert one.low == pytest.approx(rate(1, 1).low)


# -- differences ----------------------------------------------------------------------------------------------
def test_a_difference_on_disjoint_clusters_is_newcombes():
    got = clustered_difference(answers(56, 70), names(70, "a"), answers(48, 80), names(80, "b"))
    assert tuple(got) == pytest.approx(tuple(difference(rate(56, 70), rate(48, 80))), abs=1e-9)
    assert (round(got.low, 4), round(got.high, 4)) == (0.0524, 0.3339)


def test_a_difference_is_antisymmetric():
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 30)) < np.array([[0.7], [0.4]])).astype(float)
    there = clustered_difference(a, names(10) * 3, b, names(15) * 2)
    back = clustered_difference(b, names(15) * 2, a, names(10) * 3)
    assert tuple(there) == pytest.approx((-back.value, -back.high, -back.low))


def test_pairs_that_agree_make_a_difference_narrow_but_never_a_point():
    before = answers(24, 48)
    after = before.copy()
    same = clustered_difference(after, names(48), before, names(48))
    assert same.value == 0
    assert (same.low, same.high) == pytest.approx((-rate(0, 48).high, rate(0, 48).high))
    after[:8] = 0
    paired = clustered_difference(after, names(48), before, names(48))
    apart = clustered_difference(after, names(48, "a"), before, names(48, "b"))
    assert paired.high < 0 < apart.high
    assert paired.value == apart.value == pytest.approx(-8 / 48)


def test_paired_differences_are_near_tangos():
    # Tango (1998), score interval of a paired difference, solved below: b = 12 gained, c = 2 lost, n = 50
    gained, lost, n = 12, 2, 50

    def score(delta: float) -> float:
        a = 2 * n
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        p = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
        return (gained - lost - n * delta) / math.sqrt(n * (2 * p + delta * (1 - delta)))

    grid = np.linspace(-0.5, 0.9, 14001)
    inside = [d for d in grid if abs(score(d)) < 1.959964]
    before = np.repeat([0.0, 1.0, 0.0, 1.0], [gained, lost, 18, 18])
    after = np.repeat([1.0, 0.0, 0.0, 1.0], [gained, lost, 18, 18])
    got = clustered_difference(after, names(n), before, names(n))
    assert (got.low, got.high) == pytest.approx((inside[0], inside[-1]), abs=0.02)


def test_a_mean_over_cells_that_share_requests_is_wider_than_that_of_other_requests():
    rng = np.random.default_rng(3)
    chance = np.where(np.arange(40) < 20, 0.9, 0.2)
    t = (rng.random((5, 40)) < chance).astype(float)
    shared = weighted_rates(t, np.ones((5, 40)), np.full(5, 0.2))
    apart_t, apart_b = np.zeros((5, 200)), np.zeros((5, 200))
    for i in range(5):
        apart_t[i, 40 * i : 40 * i + 40], apart_b[i, 40 * i : 40 * i + 40] = t[i], 1
    apart = weighted_rates(apart_t, apart_b, np.full(5, 0.2))
    assert shared.value == apart.value == pytest.approx(t.mean())
    assert (shared.high - shared.low) > 1.5 * (apart.high - apart.low)


def test_a_negative_weight_turns_an_interval_around():
    t, b = np.array([[1.0, 0.0, 2.0]]), np.array([[1.0, 1.0, 2.0]])
    one, other = weighted_rates(t, b, np.array([0.5])), weighted_rates(t, b, np.array([-0.5]))
    assert tuple(other) == (-one.value, -one.high, -one.low)


def test_a_difference_over_many_cells_is_studentised():
    """Every request gains in some of its 30 cells, so no request shows a loss; that does not widen the interval."""
    rng = np.random.default_rng(8)
    before, after = (rng.random((2, 30, 48)) < np.array([0.2, 0.8])[:, None, None]).astype(float)
    gained = (after - before).mean(axis=0)
    assert gained.min() > 0
    weights = np.repeat([1 / 30, -1 / 30], 30)
    got = weighted_rates(np.concatenate([after, before]), np.ones((60, 48)), weights)
    low, high = ttest_1samp(gained, 0).confidence_interval(0.95)
    assert tuple(got) == pytest.approx((gained.mean(), low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize(("changed", "wide"), [(9, True), (10, False)])
def test_a_difference_is_studentised_where_ten_requests_differ(changed: int, wide: bool):
    before, after = np.zeros((2, 4, 32))
    after[0, :changed] = 1
    got = weighted_rates(np.concatenate([after, before]), np.ones((8, 32)), np.repeat([0.25, -0.25], 4))
    t = ttest_1samp((after - before).mean(axis=0), 0).confidence_interval(0.95)
    assert (got.high - got.low > 1.5 * (t.high - t.low)) == wide
    assert got.low < got.value < got.high


def test_a_part_without_trials_has_no_rate():
    t, b = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    assert all(math.isnan(v) for v in weighted_rates(t, b, np.array([0.5, 0.5])))
    assert all(math.isnan(v) for v in clustered_difference(np.ones(2), ["a", "b"], np.full(2, math.nan), ["a", "b"]))


def test_more_successes_than_trials_are_refused():
    with pytest.raises(InputError, match="between 0 and the trials"):
        weighted_rates(np.array([[2.0]]), np.array([[1.0]]), np.array([1.0]))


# -- means and ratios -----------------------------------------------------------------------------------------
def test_a_symmetric_mean_is_students():
    x = np.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0]) + 2
    got = ratio_of_means(x, np.ones(6), names(6))
    assert tuple(got) == pytest.approx((2.0, *ttest_1samp(x, 0).confidence_interval(0.95)))
    scaled = ratio_of_means(3 * x, np.full(6, 1.5), names(6))
    assert tuple(scaled) == pytest.approx(tuple(2 * v for v in got))


def test_a_skewed_mean_is_students_after_halls_transformation():
    x = np.random.default_rng(4).exponential(1, 11)
    got = ratio_of_means(x, np.ones(11), names(11))
    a = skew(x, bias=False) / math.sqrt(11)
    for limit, sign in ((got.low, 1), (got.high, -1)):
        t = (x.mean() - limit) / (x.std(ddof=1) / math.sqrt(11))
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(sign * t_of.ppf(0.975, 10))
    student = ttest_1samp(x, 0).confidence_interval(0.95)
    assert got.high > student.high  # the long tail


def test_a_ratio_is_fiellers():
    # at each limit the studentised mean of top - limit * bottom is the critical value, whatever the skewness
    rng = np.random.default_rng(5)
    bottom = rng.normal(4, 1, 12)
    top = 0.5 * bottom + np.tile([1.0, -1.0], 6)
    got = ratio_of_means(top, bottom, names(12))
    assert got.value == pytest.approx(top.mean() / bottom.mean())
    rest = top - got.value * bottom
    a = skew(rest, bias=False) / math.sqrt(12)
    for limit, sign in ((got.low, 1), (got.high, -1)):
        z = top - limit * bottom
        t = z.mean() / (z.std(ddof=1) / math.sqrt(12))
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(sign * t_of.ppf(0.975, 11))
    turned = ratio_of_means(-top, -bottom, names(12))
    assert tuple(turned) == pytest.approx(tuple(got))
    minus = ratio_of_means(-top, bottom, names(12))
    assert tuple(minus) == pytest.approx((-got.value, -got.high, -got.low))


def test_a_denominator_that_may_be_0_has_no_finite_limits():
    bottom = np.array([1.0, -1.1, 0.9, -1.0, 0.5])
    got = ratio_of_means(np.arange(5.0), bottom, names(5))
    assert (got.low, got.high) == (-math.inf, math.inf)
    assert all(math.isnan(v) for v in ratio_of_means(np.ones(2), np.array([1.0, -1.0]), names(2)))


def test_rows_of_a_cluster_are_one_observation():
    rng = np.random.default_rng(6)
    top, bottom = rng.normal(1, 1, 9), rng.uniform(1, 2, 9)
    once = ratio_of_means(top, bottom, names(9))
    assert tuple(ratio_of_means(np.tile(top, 4), np.tile(bottom, 4), names(9) * 4)) == pytest.approx(tuple(once))
    # trap: rows as if they were independent
    single = ratio_of_means(np.tile(top, 4), np.tile(bottom, 4), names(36))
    assert (single.high - single.low) < 0.6 * (once.high - once.low)


def test_one_cluster_says_nothing_about_spread():
    assert ratio_of_means(np.array([4.0, 5.0]), np.ones(2), ["a", "a"]) == Interval(4.5, -math.inf, math.inf)


def test_a_constant_has_the_width_of_a_share_of_clusters_that_none_showed():
    half = rate(0, 8).high
    assert tuple(ratio_of_means(np.full(8, 0.3), np.ones(8), names(8))) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert tuple(ratio_of_means(np.full(8, 6.0), np.full(8, 2.0), names(8))) == pytest.approx(
        (3.0, 3 - 3 * half, 3 + 3 * half)
    )
    nothing = ratio_of_means(np.zeros(48), np.ones(48), names(48))
    assert tuple(nothing) == pytest.approx((0.0, -rate(0, 48).high, rate(0, 48).high))


def test_a_mean_of_answers_is_a_rate_and_one_of_changes_a_difference():
    assert ratio_of_means(answers(3, 20), np.ones(20), names(20)) == clustered_rate(answers(3, 20), names(20))
    before, after = answers(12, 30), np.roll(answers(12, 30), 2)
    changed = ratio_of_means(after - before, np.ones(30), names(30))
    assert tuple(changed) == pytest.approx(tuple(clustered_difference(after, names(30), before, names(30))))


def test_what_is_not_finite_has_no_interval():
    assert all(math.isnan(v) for v in ratio_of_means(np.array([1.0, math.nan]), np.ones(2), names(2)))
    assert all(math.isnan(v) for v in ratio_of_means(np.array([1.0, math.inf]), np.ones(2), names(2)))
    assert all(math.isnan(v) for v in ratio_of_means(np.array([]), np.array([]), []))


def test_no_interval_of_any_trials_has_zero_width():
    rng = np.random.default_rng(7)
    for _ in range(60):
        n, rows = int(rng.integers(1, 9)), int(rng.integers(1, 4))
        clusters = names(n) * rows
        values = rng.choice([0.0, 1.0], n * rows, p=[(p := rng.choice([0.0, 0.1, 0.5, 1.0])), 1 - p])
        both = clustered_difference(values, clusters, rng.permutation(values), clusters)
        for got in (clustered_rate(values, clusters), both, ratio_of_means(values, np.ones(len(values)), clusters)):
            assert got.low < got.high
            assert got.low <= got.value <= got.high


# -- coverage -------------------------------------------------------------------------------------------------
def sizes_of(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> np.ndarray:
    return rng.choice(sizes, n)


def covers_mean(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> bool:
    """Normal clusters, intra-cluster correlation 0.8."""
    m = sizes_of(rng, n, sizes)
    values = np.repeat(rng.normal(0.3, 0.2, n), m) + rng.normal(0, 0.1, m.sum())
    got = ratio_of_means(values, np.ones(len(values)), np.repeat(names(n), m).tolist())
    return got.low <= 0.3 <= got.high


def covers_ratio(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> bool:
    """A skewed share of a skewed denominator."""
    m = sizes_of(rng, n, sizes)
    bottom = np.repeat(rng.gamma(2, 3, n), m) * rng.uniform(0.8, 1.2, m.sum())
    top = bottom * np.repeat(rng.beta(2, 4, n), m)
    got = ratio_of_means(top, bottom, np.repeat(names(n), m).tolist())
    return got.low <= 1 / 3 <= got.high


def covers_rate(rng: np.random.Generator, n: int, sizes: Sequence[int], chance: float = 0.3) -> bool:
    """Beta-binomial clusters, intra-cluster correlation 0.5."""
    m = sizes_of(rng, n, sizes)
    values = rng.random(m.sum()) < np.repeat(rng.beta(chance, 1 - chance, n), m)
    got = clustered_rate(values.astype(float), np.repeat(names(n), m).tolist())
    return got.low <= chance <= got.high


def covers_difference(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> bool:
    """Before and after on the same clusters; half of the answers change from 1 to 0 and a third from 0 to 1."""
    m = sizes_of(rng, n, sizes)
    before = rng.random(m.sum()) < np.repeat(rng.beta(0.5, 0.5, n), m)
    after = np.where(before, rng.random(m.sum()) >= 0.5, rng.random(m.sum()) < 1 / 3)
    clusters = np.repeat(names(n), m).tolist()
    got = clustered_difference(after.astype(float), clusters, before.astype(float), clusters)
    return got.low <= 0.5 / 3 - 0.25 <= got.high


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4,), (1, 2, 3, 4, 5, 6)], ids=["equal", "unequal"])
@pytest.mark.parametrize("n", [8, 16, 48])
@pytest.mark.parametrize("covers", [covers_mean, covers_ratio, covers_rate, covers_difference])
def test_95_percent_intervals_cover_92_to_97_percent(covers, n: int, sizes: tuple[int, ...]):
    rng = np.random.default_rng(11)
    draws = 1000
    found = sum(covers(rng, n, sizes) for _ in range(draws)) / draws
    noise = 2 * math.sqrt(0.95 * 0.05 / draws)
    most = (
        0.97 if n > 20 else 0.985 if covers is not covers_difference else 1.0
    )  # few answers are too discrete for less
    assert 0.92 - noise <= found <= most + noise


def test_coverage_of_a_small_simulation():
    # trap: Wilson's interval of the rows, as if they were independent, covers about 0.7
    rng = np.random.default_rng(12)
    assert sum(covers_rate(rng, 16, (6,)) for _ in range(60)) >= 53
