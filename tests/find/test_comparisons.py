"""Reliability and interval of a share of neurons in common, from selections that were drawn with known probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from neuronshield.find.comparisons import Shared, counts, interval_of, jaccards, mean_of, reliabilities, shares
from neuronshield.find.folds import SPLITS
from neuronshield.find.parts import CellParts

K, N = 64, 100_000


def drawn(rng: np.random.Generator, chance: float) -> np.ndarray:
    """64 neurons: each of the first 64 with a probability, and others that no other selection has."""
    true = np.flatnonzero(rng.random(K) < chance)
    return np.sort(np.r_[true, rng.integers(K, N, K - len(true))])


@pytest.mark.parametrize(("u", "v"), [(2.3, 1.6), (4.4, 1.6), (1.0, 0.5), (0.0, 0.8)])
def test_reliability_of_the_whole_follows_from_that_of_halves_and_quarters(u: float, v: float):
    rng = np.random.default_rng(0)
    chance = {m: float(norm.cdf(u * np.sqrt(m) - v)) for m in (0.25, 0.5, 1.0)}
    found = []
    for _ in range(20):
        quarters = []
        for i, split in enumerate(SPLITS):
            inner = SPLITS[(i + 1) % 7][0]
            quarters += [
                (part, 0.25, drawn(rng, chance[0.25])) for half in split for part in (half & inner, half - inner)
            ]
        halves = [(drawn(rng, chance[0.5]), drawn(rng, chance[0.5])) for _ in SPLITS]
        nothing: list[None] = [None] * 7
        part = CellParts(drawn(rng, chance[1.0]), halves, nothing, nothing, quarters, nothing, [None] * 35)  # type: ignore[arg-type]
        found += [float(x) for x in reliabilities([part])]
    assert np.mean(found) == pytest.approx(chance[1.0] ** 2, abs=0.02)


def test_shares_and_jaccard_indices_are_those_of_sets():
    rng = np.random.default_rng(1)
    sets = [np.unique(rng.integers(0, 50, n)) for n in (5, 17, 30, 1)]
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            both, either = len({*a} & {*b}), len({*a} | {*b})
            assert counts(sets, sets)[i, j] == both
            assert jaccards(sets)[i, j] == pytest.approx(both / either)
            assert shares(sets, sets)[i, j] == pytest.approx(both / np.sqrt(len(a) * len(b)))
    assert np.isnan(shares([sets[0], None], sets)[1]).all()
    assert np.isnan(jaccards([np.array([], dtype=int)])[0, 0])


def rows(estimate: float, without: list[float]) -> np.ndarray:
    return np.stack([np.full((2, 2), x) for x in (estimate, *without)])


def test_the_interval_is_every_ratio_that_the_folds_do_not_refute():
    rng = np.random.default_rng(2)
    excess, attainable = 0.2 + 0.01 * rng.normal(size=8), 0.4 + 0.01 * rng.normal(size=8)
    value, low, high = (
        x[0, 1] for x in interval_of(Shared(rows(0.2, [*excess]), rows(0.4, [*attainable])), np.full((2, 2), 64.0))
    )
    assert value == pytest.approx(0.5)
    for ratio in (low, high):  # at the ends, excess - ratio * attainable is just t standard errors from 0
        each = excess - ratio * attainable
        error = np.sqrt(7 / 8 * ((each - each.mean()) ** 2).sum() + (0.5 / 64) ** 2)
        assert abs(0.2 - ratio * 0.4) == pytest.approx(t.ppf(0.975, 7) * error)
    assert low < value < high


@pytest.mark.parametrize(
    ("excess", "attainable", "spread"),
    [(0.02, 0.04, 0.0), (0.2, 0.4, 0.1), (0.2, 0.0, 0.0), (0.2, float("nan"), 0.0)],
    ids=["little is attainable", "the folds differ", "nothing is attainable", "unknown"],
)
def test_too_few_requests_to_tell_is_not_a_number(excess: float, attainable: float, spread: float):
    noise = spread * np.array([1, -1] * 4)
    found = interval_of(
        Shared(rows(excess, [*excess + noise]), rows(attainable, [*attainable + noise])), np.full((2, 2), 64.0)
    )
    assert all(np.isnan(x[0, 1]) for x in found)


def test_folds_that_all_agree_leave_an_interval_of_one_neuron():
    one, two = rows(0.2, [0.2] * 8), rows(0.4, [0.4] * 8)
    value, low, high = (x[0, 1] for x in interval_of(Shared(one, two), np.full((2, 2), 64.0)))
    assert value == pytest.approx(0.5)
    assert high - low == pytest.approx(2 * t.ppf(0.975, 7) * 0.5 / 64 / 0.4)


def test_a_cell_shares_everything_with_itself_without_an_interval():
    value, low, high = interval_of(Shared(rows(0.2, [0.2] * 8), rows(0.4, [0.4] * 8)), np.full((2, 2), 64.0))
    assert np.diag(value).tolist() == [1, 1]
    assert np.isnan(np.diag(low)).all()
    assert np.isnan(np.diag(high)).all()


def test_missing_values_are_left_out_of_a_mean():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    np.testing.assert_array_equal(mean_of(values), [2, 4, np.nan])
