"""Fitting a barrier: the regression against a general optimiser, its weights and thresholds by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import neuronshield as ns
from neuronshield.shield import barrier


def test_the_line_is_the_minimum_of_the_penalised_loss():
    rng = np.random.default_rng(0)
    lengths = [2, 3, 5, 7, 11, 13]
    unsafe = np.array([True, False, True, False, False, True])
    states = [torch.tensor(rng.normal(size=(n, 3)) * [1, 10, 0.1] + 5 + bad) for n, bad in zip(lengths, unsafe)]
    share = np.array([0.3, 0.1, 0.1, 0.2, 0.2, 0.1])
    w, b = barrier.line(states, unsafe, share)
    x = np.concatenate(states)
    owner = np.repeat(range(6), lengths)
    scale = x.std(axis=0, ddof=1)

    def loss(theta: np.ndarray) -> float:
        h = x @ theta[:3] + theta[3]
        each = (share / lengths)[owner] * np.logaddexp(0, np.where(unsafe[owner], h, -h))
        return each.sum() + barrier.RIDGE / 2 * ((theta[:3] * scale) ** 2).sum()

    best = minimize(loss, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 40000})
    assert loss(np.append(w, b)) <= best.fun + 1e-9
    np.testing.assert_allclose(np.append(w, b), best.x, rtol=1e-2, atol=1e-2)


def test_classes_weigh_half_and_cells_and_prompts_the_same_in_them():
    rows = [("en", "harmful")] * 3 + [("sw", "harmful")] * 1 + [("en", "benign")] * 5 + [("sw", "benign")] * 2
    prompts = [ns.Prompt(str(i), "x", label, language=language) for i, (language, label) in enumerate(rows)]
    unsafe = np.array([label == "harmful" for _, label in rows])
    want = [1 / 12] * 3 + [1 / 4] + [1 / 20] * 5 + [1 / 8] * 2
    np.testing.assert_allclose(barrier.shares(prompts, unsafe), want)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.2])
def test_cuts_touch_as_many_prompts_as_they_may_and_no_more(rate: float):
    lowest = np.random.default_rng(3).normal(size=(3, 211))
    cuts = barrier.cuts(lowest, rate)
    touched = (lowest < cuts[:, None]).any(axis=0).sum()
    assert touched <= rate * 211
    ranks = np.array([np.searchsorted(np.sort(row), cut) for row, cut in zip(lowest, cuts, strict=True)])
    assert len(set(ranks.tolist())) == 1
    higher = np.sort(lowest, axis=1)[:, ranks[0] + 1]
    assert (lowest < higher[:, None]).any(axis=0).sum() > rate * 211
