"""The bound, against processes whose exit probability is known: exactly by recursion, or by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuronshield.shield.exits import Shortfall, exit_bound, exited, followed, shortfall, shortfalls

#: Levels of a Markov chain whose state 0 is outside the safe set.
LEVELS = np.array([0.0, 0.3, 0.7, 1.0, 1.0])


def chain(rng: np.random.Generator, stay: float) -> np.ndarray:
    """A random transition matrix that moves by one state at most more often than not, and returns towards the top."""
    p = rng.dirichlet(np.full(5, 0.3), size=5) * (1 - stay)
    p[np.arange(5), np.minimum(np.arange(5) + 1, 4)] += stay
    return p


def exit_within(p: np.ndarray, start: int, tokens: int) -> float:
    """P(tau <= K), by the exact recursion on the safe states alone."""
    alive = np.eye(5)[start]
    for _ in range(tokens):
        alive = alive @ p
        alive[0] = 0.0
    return float(1 - alive.sum())


@pytest.mark.parametrize("stay", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_holds_for_a_markov_chain_whose_exit_probability_is_known(seed: int, stay: float):
    """With the exact largest shortfall of any safe state, from every start, at every horizon."""
    p = chain(np.random.default_rng(seed), stay)
    for alpha in (1.0, 0.9):
        c = max(0.0, float((alpha * LEVELS - p @ LEVELS)[1:].max()))
        for start in range(1, 5):
            for tokens in (1, 5, 10, 20):
                bound = exit_bound(tokens, alpha=alpha, start=LEVELS[start], first=c, later=c)
                assert bound >= exit_within(p, start, tokens) - 1e-12


def test_the_bound_is_attained_where_the_level_only_says_inside_or_outside():
    """Two states, S = 1 inside: with alpha = 1 - hazard and no shortfall the bound is the probability itself."""
    for hazard in (0.01, 0.2):
        for tokens in (1, 5, 20):
            bound = exit_bound(tokens, alpha=1 - hazard, start=1.0, first=0.0, later=0.0)
            assert bound == pytest.approx(1 - (1 - hazard) ** tokens)


def test_it_is_the_closed_form_with_another_shortfall_at_the_first_step():
    for tokens in (1, 2, 7):
        rest = sum(0.98**i * 0.003 for i in range(tokens - 1))
        expected = 1 - (0.98 ** (tokens - 1) * (0.98 * 0.9 - 0.05) - rest)
        assert exit_bound(tokens, alpha=0.98, start=0.9, first=0.05, later=0.003) == pytest.approx(expected)


def test_it_says_nothing_where_it_must():
    assert exit_bound(5, alpha=1.0, start=0.0, first=0.0, later=0.0) == 1  # starts at the edge
    assert exit_bound(5, alpha=0.99, start=1.0, first=0.99, later=0.99) == 1  # nothing was observed
    assert exit_bound(1000, alpha=0.99, start=1.0, first=0.0, later=0.001) > 0.999
    assert shortfall(np.zeros(0), np.zeros(0), alpha=0.9, delta=0.05).upper == 0.9


def test_a_calibrated_bound_holds_for_chains_of_answers_that_end():
    """Two hundred calibrations, each from 150 answers that end at random: the bound is too low no more often than it may be."""
    p = chain(np.random.default_rng(1), 0.95)
    alive = 0.8  # an answer goes on with this probability at each token
    rng, low = np.random.default_rng(5), 0
    exact = np.eye(5)[4]
    for _ in range(10):
        exact = np.append(0.0, (alive * exact @ p + (1 - alive) * exact)[1:])
    for _ in range(200):
        answers = []
        for _ in range(150):
            states = [4]
            while len(states) <= 10 and rng.random() < alive:
                states.append(int(rng.choice(5, p=p[states[-1]])))
            answers.append(LEVELS[states])
        first, later = shortfalls(followed(answers, 10), 10, alpha=1.0)
        low += exit_bound(10, alpha=1.0, start=1.0, first=first.upper, later=later.upper) < 1 - exact.sum() - 1e-12
    assert low <= 10


def heights(rng: np.random.Generator, n: int, tokens: int, start: float) -> np.ndarray:
    """A linear-Gaussian process, h' = 1.5 + 0.6 (h - 1.5) + noise, [run, token]."""
    h = np.full((n, tokens + 1), start)
    for k in range(tokens):
        h[:, k + 1] = 1.5 + 0.6 * (h[:, k] - 1.5) + rng.normal(0, 0.35, n)
    return h


@pytest.mark.parametrize("start", [0.8, 1.5])
def test_a_calibrated_bound_holds_for_a_linear_gaussian_process(start: float):
    """From 300 answers the bound is calibrated as a guard's is; 200 000 others tell how often they really leave."""
    rng = np.random.default_rng(3)
    first, later = shortfalls(followed(list(heights(rng, 300, 20, start).clip(0, 1)), 20), 20, alpha=0.995)
    real = heights(np.random.default_rng(4), 200_000, 20, start)[:, 1:] <= 0
    for tokens in (5, 10, 20):
        bound = exit_bound(tokens, alpha=0.995, start=min(start, 1.0), first=first.upper, later=later.upper)
        assert real[:, :tokens].any(axis=1).mean() <= bound
        if start == 1.5:
            assert bound < 0.4  # and it says something


@pytest.mark.parametrize("alpha", [1.0, 0.9])
@pytest.mark.parametrize("n", [5, 60, 400])
def test_the_upper_limit_is_below_the_mean_no_more_often_than_it_may(n: int, alpha: float):
    """Two kinds of answers: steps of one are alike, so they are far from independent, but each knows its own conditional mean."""
    rng = np.random.default_rng(n)
    missed = 0
    for _ in range(300):
        hazard = rng.choice([0.02, 0.3], size=n)  # the conditional mean differs from step to step
        after = (rng.random(n) > hazard).astype(float)
        missed += shortfall(np.ones(n), after, alpha=alpha, delta=0.1).upper < alpha - (1 - hazard).mean() - 1e-12
    assert missed <= 30 + 3 * np.sqrt(27)


def test_the_limit_tightens_with_steps_and_is_never_zero():
    ones = [shortfall(np.ones(n), np.ones(n), alpha=1.0, delta=0.0125).upper for n in (1, 10, 100, 10_000)]
    assert ones == sorted(ones, reverse=True)
    assert 0 < ones[-1] < 0.001
    assert 0.9 < ones[0] <= 1
    rising = shortfall(np.full(50, 0.5), np.ones(50), alpha=1.0, delta=0.0125)  # it only ever gets better
    assert rising.mean == -0.5
    assert rising.upper > 0
    assert exit_bound(1, alpha=1.0, start=1.0, first=rising.upper, later=rising.upper) > 0


def test_one_observed_step_is_told_from_none():
    assert isinstance(shortfall(np.ones(1), np.zeros(1), alpha=1.0, delta=0.05), Shortfall)
    assert shortfall(np.ones(1), np.zeros(1), alpha=1.0, delta=0.05) == Shortfall(1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("levels", "tokens", "left"),
    [
        ([1.0, 1.0, 0.0], 1, False),
        ([1.0, 1.0, 0.0], 2, True),
        ([0.0, 1.0, 1.0], 5, False),  # where it starts does not count
        ([0.5], 5, False),  # an answer of one step
        ([1.0, 0.0, 1.0], 9, True),  # it does not matter that it came back
    ],
)
def test_an_exit_is_a_level_of_zero_after_the_start(levels: list[float], tokens: int, left: Any):
    assert exited([np.array(levels)], tokens).tolist() == [left]
