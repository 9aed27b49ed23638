"""Tests, corrections and rates of independent trials against numbers worked out by hand and against scipy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from scipy.stats import t as t_of

from neuronshield.core.statistics import (
    at_most,
    cluster_means,
    codes,
    difference,
    discoveries,
    equivalent,
    holm,
    least_draws,
    least_requests,
    p_value,
    positive,
    rate,
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


# -- tests over requests -----------------------------------------------------------------------------------
CLUSTERS = ["a", "a", "b", "c", "c", "c"]
VALUES = np.array([1.0, 3.0, 5.0, 0.0, 1.0, 2.0])


def test_clusters_are_numbered_in_order_of_appearance():
    assert codes(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_a_cluster_counts_once():
    assert cluster_means(VALUES, CLUSTERS).tolist() == [2.0, 5.0, 1.0]


def test_positive_is_students_t_over_clusters_written_out():
    rows, names = np.append(VALUES, [2.5, 0.5, 3.0]), [*CLUSTERS, "d", "e", "f"]
    means = np.array([2.0, 5.0, 1.0, 2.5, 0.5, 3.0])
    t = means.mean() / (means.std(ddof=1) / math.sqrt(6))
    assert positive(rows, names) == pytest.approx(max(1 / 2**6, t_of.sf(t, 5)))
    noisy = np.append(rows, [-1.0, -2.0])
    means = np.append(means, [-1.0, -2.0])
    t = means.mean() / (means.std(ddof=1) / math.sqrt(8))
    assert positive(noisy, [*names, "g", "h"]) == pytest.approx(t_of.sf(t, 7))
    assert positive(-noisy, [*names, "g", "h"]) == pytest.approx(t_of.cdf(t, 7))


def test_repeating_a_request_does_not_make_it_more_certain():
    assert positive(np.tile(VALUES, 5), CLUSTERS * 5) == pytest.approx(positive(VALUES, CLUSTERS))


def test_nothing_at_all_is_no_effect_and_a_constant_one_has_the_exact_chance_of_all_signs_alike():
    assert positive(np.zeros(5), list("abcde")) == 1.0
    assert positive(np.full(5, 0.2), list("abcde")) == 1 / 2**5
    assert positive(np.full(5, -0.2), list("abcde")) == 1.0
    assert positive(np.array([3.0]), ["a"]) == 1 / 2
    assert positive(np.full(4000, 0.3), [str(i) for i in range(4000)]) > 0


def test_positive_is_never_surer_than_the_signs_of_all_clusters_allow():
    nearly = 0.2 + 1e-6 * np.arange(4)
    assert positive(nearly, list("abcd")) == 1 / 2**4
    some = np.array([0.0, 0.0, 0.0, 0.31, 0.3, 0.32])  # 3 clusters that are not 0
    assert positive(some, list("abcdef")) >= 1 / 2**3


@pytest.mark.parametrize(("gained", "lost", "same"), [(5, 0, 20), (6, 1, 3), (3, 3, 0), (0, 4, 4)])
def test_positive_on_changes_of_answers_is_mcnemars_exact_test(gained: int, lost: int, same: int):
    values = np.repeat([1.0, -1.0, 0.0], [gained, lost, same])
    names = [str(i) for i in range(len(values))]
    assert positive(values, names) == pytest.approx(binomtest(gained, gained + lost, alternative="greater").pvalue)


def test_positive_on_changes_of_answers_flips_whole_clusters():
    values, names = np.array([1, 1, 1, 1, 0, -1, -1, 0]).astype(float), list("aaabbbcc")
    sums = np.array([3, 0, -1])
    flipped = [(np.array(signs) * np.abs(sums)).sum() for signs in itertools.product([1, -1], repeat=3)]
    assert positive(values, names) == np.mean(np.array(flipped) >= sums.sum())


def test_equivalence_is_two_one_sided_tests():
    x = np.tile([0.02, -0.01, 0.03, 0.005, 0.01, -0.02], 5) * 4
    names = [str(i) for i in range(30)]
    expected = max(ttest_1samp(x, -0.04, alternative="greater").pvalue, ttest_1samp(x, 0.04, alternative="less").pvalue)
    assert equivalent(x, names, 0.04) == pytest.approx(max(expected, (1 - 0.04) ** 30))
    wide = np.linspace(-1.5, 1.6, 30)
    expected = max(
        ttest_1samp(wide, -0.5, alternative="greater").pvalue, ttest_1samp(wide, 0.5, alternative="less").pvalue
    )
    assert equivalent(wide, names, 0.5) == pytest.approx(expected)
    assert equivalent(x + 1, names, 0.05) == 1.0


def test_equivalence_of_what_did_not_change_is_the_chance_of_missing_every_change():
    assert equivalent(np.zeros(28), [str(i) for i in range(28)], 0.1) == pytest.approx(0.9**28)
    assert equivalent(np.zeros(4), list("abcd"), 0.1) == pytest.approx(binomtest(0, 4, 0.1, alternative="less").pvalue)
    assert equivalent(np.full(40, 0.05), [str(i) for i in range(40)], 0.1) == pytest.approx(0.95**40)
    assert equivalent(np.ones(4), list("abcd"), 0.1) == 1.0
    assert equivalent(np.zeros(1), ["a"], 0.1) == 1.0  # one request proves nothing
    assert 0 < equivalent(np.zeros(9000), [str(i) for i in range(9000)], 3.0) < 1e-200


def test_rows_of_a_request_that_did_not_change_do_not_add_requests():
    names = [str(i) for i in range(7)]
    assert equivalent(np.zeros(28), names * 4, 0.1) == equivalent(np.zeros(7), names, 0.1)


def test_one_changed_answer_of_29_is_not_equivalence_within_ten_points():
    values = np.zeros(29)
    values[3] = 1.0
    names = [str(i) for i in range(29)]
    assert equivalent(values, names, 0.1) > 0.05  # a t-test says 0.03
    assert ttest_1samp(values, 0.1, alternative="less").pvalue < 0.05


def test_changes_of_answers_are_tested_with_the_variance_at_the_limit():
    values = np.repeat([1.0, -1.0, 0.0], [3, 4, 93])
    names = [str(i) for i in range(100)]
    mean, limit = -0.01, 0.1
    p = []
    for m, up in ((mean, 3), (-mean, 4)):
        share = (limit - m) / (1 - m)
        down = 7 - up
        moved = {1: up + share * (100 - up), 0: (1 - share) * (100 - 7), -1: (1 - share) * down}  # a share went to 1
        variance = sum(k * (v - limit) ** 2 for v, k in moved.items()) / 100
        p.append(t_of.cdf((m - limit) / math.sqrt(variance / 100), 99))
    assert equivalent(values, names, limit) == pytest.approx(max(p), rel=0.03)


@pytest.mark.parametrize("n", [19, 48])
def test_at_most_passes_as_often_as_its_level_says_at_the_limit(n: int):
    """True rise of 20 points, the limit."""
    rng = np.random.default_rng(n)
    passed = [at_most((rng.random(n) < 0.2).astype(float), range(n), 0.2) <= 0.05 for _ in range(1500)]
    assert 0.005 <= np.mean(passed) <= 0.065


def test_at_most_needs_as_many_clusters_as_equivalence_and_takes_any_fall():
    least = least_requests(alpha=0.05, limit=0.2)
    for values in (0.0, -1.0):
        for n, passes in ((least - 1, False), (least, True)):
            assert (at_most(np.full(n, values), range(n), 0.2) <= 0.05) == passes
    assert at_most(np.ones(50), range(50), 0.2) == at_most(np.full(50, 0.5), range(50), 0.2) == 1.0
    assert at_most(np.array([]), [], 0.2) == at_most(np.array([np.nan] * 30), range(30), 0.2) == 1.0


def test_at_most_is_the_upper_side_of_equivalence():
    values = np.array([1.0, 0, 0, 1, 0, 0, 0, -1, 0, 0] * 5)
    assert at_most(values, range(50), 0.3) <= equivalent(values, range(50), 0.3) < 0.05


def test_what_is_not_finite_shows_nothing():
    values = np.array([0.1, math.nan, 0.2, 0.1, 0.1, 0.1, 0.1])
    assert positive(values, list("abcdefg")) == 1.0
    assert equivalent(values, list("abcdefg"), 0.5) == 1.0
    assert p_value(math.nan, np.array([1.0, 2.0, 3.0])) == 1.0
    assert p_value(5.0, np.array([1.0, math.nan, 3.0])) == 2 / 4


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("limit", [None, 0.02, 0.1, 0.25, 0.8])
def test_least_requests_is_where_the_test_can_first_pass(alpha: float, limit: float | None):
    n = least_requests(alpha=alpha, limit=limit)
    best = [
        positive(np.ones(k), [str(i) for i in range(k)])
        if limit is None
        else equivalent(np.zeros(k), [str(i) for i in range(k)], limit)
        for k in (n - 1, n)
    ]
    assert best[1] <= alpha < best[0]


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.01, 0.03])
def test_least_draws_is_where_p_can_first_pass(alpha: float):
    n = least_draws(alpha=alpha)
    assert p_value(1.0, np.zeros(n)) <= alpha < p_value(1.0, np.zeros(n - 1))


def size_of(test: Callable[[np.ndarray, list[str]], float], chances: Sequence[float], *, n: int, rows: int) -> float:
    """How often a test at 5 % passes on changes of answers (+1, -1, 0) of n requests; rows of a request are alike."""
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(n) for _ in range(rows)]
    passed = 0
    for _ in range(400):
        each = rng.dirichlet(np.array(chances) * 2 + 1e-9, n) if rows > 1 else np.tile(chances, (n, 1))
        values = np.concatenate([rng.choice([1.0, -1.0, 0.0], rows, p=p / p.sum()) for p in each])
        passed += test(values, names) <= 0.05
    return passed / 400


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("n", [16, 29, 48])
def test_no_test_passes_more_often_than_its_level_says(n: int, rows: int):
    for changed in ((0.1, 0.0), (0.13, 0.03)):  # the mean change is the limit
        chances = (*changed, 1 - sum(changed))
        assert size_of(lambda v, c: equivalent(v, c, 0.1), chances, n=n, rows=rows) <= 0.08
    for change in (0.05, 0.3):  # as many gained as lost
        assert size_of(positive, (change, change, 1 - 2 * change), n=n, rows=rows) <= 0.08


def test_holm_steps_down():
    p = [0.04, 0.01, 0.03]
    assert holm(p) == pytest.approx([0.06, 0.03, 0.06])  # 3 x .01; 2 x .03; then never smaller
    assert holm([]) == []


@pytest.mark.slow
def test_holm_and_equivalence_agree_with_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.weightstats import DescrStatsW

    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        p = rng.random(n).round(2)  # with ties
        assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1].tolist(), rel=1e-12)
    for n, mean in ((9, 0.0), (23, 0.12), (40, -0.31)):
        values = rng.normal(mean, 0.5, n)
        names = [str(i) for i in range(n)]
        assert equivalent(values, names, 0.5) == pytest.approx(DescrStatsW(values).ttost_mean(-0.5, 0.5)[0], rel=1e-12)
        assert positive(values, names) == pytest.approx(
            max(0.5**n, ttest_1samp(values, 0.0, alternative="greater").pvalue), rel=1e-12
        )


def test_discoveries_are_benjamini_and_hochbergs():
    p = np.array([0.001, 0.04, 0.03, 0.8])
    by_hand = [0.004, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.8]  # made monotone from the largest down
    assert discoveries(p).tolist() == pytest.approx(by_hand)
    assert len(discoveries(np.array([]))) == 0
