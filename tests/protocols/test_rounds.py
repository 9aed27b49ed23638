"""The behavioural protocol's statistics: control neurons, z, and discoveries against a plain restatement."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest

from neuronshield.protocols.rounds import control_neurons, discovered, z_scores


def benjamini_hochberg(p: list[float], rate: float) -> list[bool]:
    """The step-up procedure as the paper states it: reject the k smallest, k the largest with p_(k) <= k / m * rate."""
    ordered = sorted(p)
    most = max((k for k in range(1, len(p) + 1) if ordered[k - 1] <= k / len(p) * rate), default=0)
    return [value <= ordered[most - 1] if most else False for value in p]


@pytest.mark.parametrize("seed", range(20))
def test_discoveries_are_those_of_the_step_up_procedure(seed: int):
    rng = np.random.default_rng(seed)
    z = np.concatenate([rng.normal(size=40), rng.normal(2.5, 1, size=12)])
    p = [1 - NormalDist().cdf(float(value)) for value in z]
    expected = [ok and value > 0 for ok, value in zip(benjamini_hochberg(p, 0.05), z, strict=True)]
    assert discovered(z).tolist() == expected


def test_no_candidate_is_no_discovery():
    assert discovered(np.zeros(0)).tolist() == []


def test_an_infinite_z_is_a_discovery_and_a_fall_below_the_controls_is_none():
    assert discovered(np.array([np.inf, -np.inf])).tolist() == [True, False]


def test_z_is_against_the_spread_of_the_controls():
    controls = np.array([1.0, 2.0, 3.0, 6.0])
    np.testing.assert_allclose(z_scores(np.array([3.0, 5.0]), controls), [0.0, 2 / controls.std(ddof=1)])


def test_controls_without_spread_leave_only_what_is_above_them():
    assert z_scores(np.array([0.1, 0.0, -1.0]), np.zeros(5)).tolist() == [np.inf, 0.0, 0.0]


def test_controls_are_outside_the_candidates_and_in_proportion_to_their_layers():
    mask = np.zeros((4, 100), dtype=bool)
    mask[0, :3], mask[2, :1] = True, True
    drawn = control_neurons(mask, [(0, 50)], n=40, rng=np.random.default_rng(0))
    assert Counter(layer for layer, _ in drawn) == {0: 30, 2: 10}
    assert len(set(drawn)) == 40
    assert not any(mask[at] for at in drawn)
    assert (0, 50) not in drawn


def test_a_layer_gives_no_more_controls_than_it_has():
    mask = np.zeros((1, 10), dtype=bool)
    mask[0, :4] = True
    assert len(control_neurons(mask, [], n=300, rng=np.random.default_rng(0))) == 6
    assert control_neurons(np.zeros((2, 5), dtype=bool), [], n=300, rng=np.random.default_rng(0)) == []
