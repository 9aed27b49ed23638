"""What a barrier predicts of the next token: recovered from processes that are known, and never from correlation alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from neuronshield.shield.transition import Transition, fitted, needed, settled

N = 4000


def process(seed: int, effect: float, n: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Heights that depend on a hidden property of the request, which the next height depends on too; raises do not."""
    rng = np.random.default_rng(seed)
    requests = np.arange(n) // 20
    hidden = rng.normal(size=n // 20)[requests]
    h = hidden + rng.normal(0, 0.3, n)
    raised = np.where(rng.random(n) < 0.5, 0.0, rng.uniform(0, 4, n))
    return h, raised, 0.4 + 0.9 * hidden + effect * raised + rng.normal(0, 0.5, n), requests.tolist()


@pytest.mark.parametrize("effect", [0.6, 0.1])
def test_the_gain_is_the_effect_of_a_raise_and_not_the_correlation_of_heights(effect: float):
    h, raised, after, requests = process(0, effect)
    got = fitted(h, raised, after, requests=requests, reach=4.0)
    x = np.stack([np.ones(N), h, raised], axis=1)
    np.testing.assert_allclose(
        [got.intercept, got.slope, got.gain], np.linalg.lstsq(x, after, rcond=None)[0], atol=1e-8
    )
    assert got.gain == pytest.approx(effect, abs=0.05)
    assert got.slope > 0.7  # that of heights, which a raise does not have
    assert got.reach == 4.0


def test_a_gain_that_is_not_shown_is_none():
    shown = [fitted(*process(seed, 0.0)[:3], requests=process(seed, 0.0)[3], reach=4.0).gain > 0 for seed in range(60)]
    assert sum(shown) <= 9  # one in twenty by chance
    assert all(
        fitted(*process(seed, -0.5)[:3], requests=process(seed, 0.0)[3], reach=4.0).gain == 0 for seed in range(3)
    )


def test_too_few_requests_predict_that_it_stays_where_it_is():
    h, raised, after, _ = process(0, 0.6, 80)
    few = [i % 7 for i in range(80)]
    assert fitted(h, raised, after, requests=few, reach=4.0).gain == 0
    assert fitted(h, raised, after, requests=few, reach=4.0).slope == 1
    same = Transition(0.1, 0.2, 0.3, 4.0)
    assert settled(same, after, requests=few) == same
    assert fitted(h[:0], raised[:0], after[:0], requests=[], reach=4.0).slope == 1


def test_the_residual_is_a_lower_limit_of_its_mean_with_its_spread():
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(200):
        requests = np.arange(300) // 10
        residuals = -0.2 + rng.normal(0, 0.4, 30)[requests] + rng.normal(0, 0.3, 300)
        got = settled(Transition(gain=0.5, reach=2.0), residuals, requests=requests.tolist())
        below += got.bias < -0.2
        assert got.spread == pytest.approx(np.std(residuals))
        assert dataclasses.replace(got, bias=0.0) == Transition(gain=0.5, reach=2.0, spread=got.spread)
    assert below >= 0.93 * 200


def test_after_the_change_the_next_height_is_expected_to_be_high_enough_or_said_to_be_too_low():
    rng = np.random.default_rng(2)
    h = torch.tensor(rng.normal(1, 2, 5000)).float()
    for t in (Transition(-0.4, 0.6, 0.5, 1.5, -0.1), Transition(-0.4, 0.6, 0.0, 1.5, -0.1), Transition()):
        for margin in (0.0, 1.0, 3.0):
            least, unmet = needed(h, t, alpha=0.97, margin=margin)
            up = (least - h).clamp(min=0)
            target = 0.97 * torch.where(h > 0, h, margin).clamp(max=1)
            met = t.ahead(h, up) >= target - 1e-5
            assert torch.equal(~met, unmet)
            assert bool(((h > 0) | (h + up >= margin - 1e-6)).all())
            assert not bool((up[unmet & (h > 0)] < (t.reach if t.gain else 0.0) - 1e-5).any())
            idle = (h > 0) & (t.ahead(h, torch.zeros_like(h)) >= target)
            assert bool((least[idle] == -torch.inf).all())
