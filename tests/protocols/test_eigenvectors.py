"""Generalised eigenvectors against a restatement, and how many directions are needed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh, sqrtm

from neuronshield.core.statistics import Interval
from neuronshield.protocols.eigenvectors import eigenvectors, needed_of
from neuronshield.protocols.tables import DirectionPoint, Spread


@pytest.fixture(scope="module")
def streams() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(13, 13))
    harmful, benign = rng.normal(size=(41, 13)) @ mix, rng.normal(size=(37, 13)) @ mix
    return harmful + 3 * mix[2], benign


def matrices(harmful: np.ndarray, benign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second moment of harmful prompts about the benign mean, and shrunken benign covariance."""
    apart, spread = harmful - benign.mean(axis=0), np.cov(benign.T, bias=True)
    return apart.T @ apart / len(apart), 0.9 * spread + 0.1 * np.trace(spread) / 13 * np.eye(13)


def test_they_are_those_of_scipy(streams: tuple[np.ndarray, np.ndarray]):
    _, vectors = eigh(*matrices(*streams))
    expected = vectors[:, ::-1].T[:5]
    found = eigenvectors(*streams, k=5)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), 1, atol=1e-9)


def test_they_are_ordinary_eigenvectors_once_benign_prompts_are_whitened(streams: tuple[np.ndarray, np.ndarray]):
    a, b = matrices(*streams)
    root = np.linalg.inv(np.real(sqrtm(b)))
    values, whitened = np.linalg.eigh(root @ a @ root)
    expected = (root @ whitened[:, ::-1]).T[:3]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((eigenvectors(*streams, k=3) * expected).sum(axis=1)), 1, atol=1e-7)
    assert values[-1] > values[-2]


def test_a_shift_of_the_mean_is_the_first_direction_where_benign_prompts_vary_alike():
    rng = np.random.default_rng(1)
    shift = np.array([0, 0, 5.0, 0, 0, 0, 5.0])
    found = eigenvectors(rng.normal(size=(300, 7)) + shift, rng.normal(size=(300, 7)), k=1)[0]
    assert abs(found @ shift) / np.linalg.norm(shift) > 0.95


def point(k: int, fall: float, *, p: float = 0.05) -> DirectionPoint:
    about = Interval(fall, fall - 0.1, fall + 0.1)
    return DirectionPoint("text", "text", 1, k, about, about, Spread(0, 0, 0, 19), p)


def test_needed_is_the_fewest_that_reach_nine_tenths_of_the_largest_fall():
    assert needed_of([point(1, 0.5), point(2, 0.91), point(5, 1.0), point(10, 0.95)]) == 2


def test_what_random_directions_do_as_well_needs_no_direction():
    assert needed_of([point(1, 0.5), point(2, 0.95, p=0.2), point(5, 1.0)]) is None
    assert needed_of([point(1, -0.5)]) is None
    assert needed_of([]) is None
