"""Probe scores: the regression against its own optimality conditions, scores against a plain restatement."""

from __future__ import annotations

import numpy as np
import pytest

from neuronshield.protocols.probes import candidates, logistic, probe_scores

RNG = np.random.default_rng(0)


def grouped(n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of n prompts, and which are of the first group: neuron 2 is larger there, neuron 3 smaller."""
    positive = np.arange(n) < n // 2
    values = RNG.normal(size=(n, width))
    values[positive, 2] += 2
    values[positive, 3] -= 2
    return values, positive


@pytest.mark.parametrize(("n", "width"), [(60, 7), (22, 113)])
@pytest.mark.parametrize("ridge", [0.1, 1.0, 30.0])
def test_no_step_improves_the_regression(n: int, width: int, ridge: float):
    values, positive = grouped(n, width)
    weights, intercept = logistic(values, positive, ridge=ridge)
    p = 1 / (1 + np.exp(-(values @ weights + intercept)))
    assert np.abs(values.T @ (p - positive) + ridge * weights).max() < 1e-6  # the gradient in all of the weights
    assert abs((p - positive).sum()) < 1e-6


def test_the_regression_is_that_of_a_general_optimiser():
    from scipy.optimize import minimize

    values, positive = grouped(40, 11)
    sign = np.where(positive, 1.0, -1.0)

    def loss(v: np.ndarray) -> float:
        return float(np.log1p(np.exp(-sign * (values @ v[:-1] + v[-1]))).sum() + 0.5 * (v[:-1] ** 2).sum())

    found = minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-7}).x
    weights, intercept = logistic(values, positive)
    np.testing.assert_allclose([*weights, intercept], found, atol=1e-4)


def test_the_regression_is_scikit_learns():
    linear = pytest.importorskip("sklearn.linear_model")
    values, positive = grouped(40, 11)
    theirs = linear.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(values, positive)
    weights, intercept = logistic(values, positive)
    np.testing.assert_allclose(weights, theirs.coef_[0], atol=1e-4)
    assert intercept == pytest.approx(float(theirs.intercept_[0]), abs=1e-4)


def test_groups_that_a_line_separates_have_finite_weights():
    values = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    weights, intercept = logistic(values, values[:, 0] > 0)
    assert 0 < weights[0] < 10
    assert intercept == pytest.approx(0, abs=1e-9)


def test_scores_have_the_sign_of_the_probe_and_the_size_of_cohens_d():
    values, positive = grouped(50, 9)
    harmful, benign = values[positive][:, None], values[~positive][:, None]
    scores, d = probe_scores(harmful, benign)
    pooled = np.sqrt((harmful[:, 0].var(axis=0, ddof=1) + benign[:, 0].var(axis=0, ddof=1)) / 2)  # groups of one size
    np.testing.assert_allclose(d[0], (harmful[:, 0].mean(axis=0) - benign[:, 0].mean(axis=0)) / pooled)
    np.testing.assert_allclose(np.abs(scores), np.abs(d))
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    assert (np.sign(scores[0]) == np.sign(logistic(standard, positive)[0])).all()
    assert scores[0, 2] > 0 > scores[0, 3]


def test_a_neuron_that_never_varies_has_no_score():
    values, positive = grouped(20, 5)
    values[:, 1] = 3.0
    scores, d = probe_scores(values[positive][:, None], values[~positive][:, None])
    assert scores[0, 1] == d[0, 1] == 0


def test_candidates_are_beyond_three_deviations_of_their_own_layer():
    scores = np.random.default_rng(1).normal(size=(3, 200))
    scores[1] *= 100
    scores[0, 5], scores[2, 7] = 9.0, -9.0
    mask = candidates(scores, scores)
    expected = np.abs(scores - scores.mean(axis=1, keepdims=True)) > 3 * scores.std(axis=1, keepdims=True)
    assert (mask == expected).all()
    assert mask[0, 5]
    assert mask[2, 7]


def test_a_weight_against_its_effect_size_makes_no_candidate():
    scores = np.zeros((1, 40))
    scores[0, 5] = 9.0
    assert candidates(scores, scores)[0, 5]
    assert not candidates(scores, -scores).any()
