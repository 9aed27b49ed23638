"""The probability of leaving a safe set within K tokens, from a barrier whose expected value falls by little at a step.

S_0, S_1, ... are levels in [0, 1], one a token; S_k is 0 exactly where the state is outside the safe set. F_k is what is known
at token k, and tau the first k >= 1 with S_k = 0.

**Theorem** (the bound that Cosner et al. (2023) obtain from Ville's inequality, for a barrier of at most 1, with a shortfall).
Let alpha be in (0, 1], c_k >= 0, and for every k < min(tau, K)

    E[S_{k+1} | F_k] >= alpha S_k - c_k                                                            (1)

    =>   P(tau <= K | F_0) <= 1 - alpha^K S_0 + sum_{k < K} alpha^(K-1-k) c_k                       (2)

*Proof.* Let p_k = E[S_k; tau > k]. Since S_{k+1} = 0 where tau = k + 1, p_{k+1} = E[S_{k+1}; tau > k] >= alpha p_k - c_k by (1).
So p_K >= alpha^K S_0 - sum alpha^(K-1-k) c_k, and P(tau > K) >= p_K because S_K <= 1.

The proof uses (1) only through E[alpha S_k - S_{k+1}; tau > k] <= c_k. So (2) holds *on average* over a population of prompts,
with E[S_0] in place of S_0, if the *mean* shortfall over that population is at most c_k; it holds for one start only if (1)
holds for that start. An answer that ends stays where it is. One c is used for all steps after the first, the mean over these:
that is enough where the mean shortfall does not grow from step to step, since the weights in (2) do (Chebyshev's sum inequality).

**The shortfall is estimated**, so its upper confidence limit is used. With y = S_{k+1} - alpha S_k at the i-th of N observed
steps, mu_i its mean given what came before, and yhat_i the mean of the earlier y (at most 1 - alpha), for every lambda in [0, 1)

    mean mu  >=  mean y - (log(1 / delta) + (-log(1 - lambda) - lambda) sum_i (y_i - yhat_i)^2) / (lambda N)        (3)

with probability 1 - delta: the exponential of the difference is a nonnegative supermartingale, because
exp(lambda x - psi x^2) <= 1 + lambda x for x >= -1. Steps of one answer need not be independent. The best of several lambda is
taken, each with its share of delta. The limit never goes below the margin of (3), so that no bound is 0.

Sources: Cosner, Culbertson, Taylor, Ames (2023), "Robust safety under stochastic uncertainty with discrete-time control barrier
functions"; Kushner (1967), "Stochastic stability and control"; (3): Fan, Grama, Liu (2015), Howard et al. (2021), theorem 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["CONFIDENCE", "Shortfall", "exit_bound", "exited", "followed", "shortfall", "shortfalls"]

CONFIDENCE = (
    0.95  # of the four shortfalls (two labels, first and later steps) that a bound for K tokens is made of, together
)
LAMBDAS = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Shortfall:
    """How far the next level falls short of alpha times this one, on average over observed steps.

    Attributes:
        mean: mean of alpha S_k - S_{k+1}; NaN without steps.
        upper: its upper confidence limit, above 0; alpha, the largest possible value, without steps.
        steps: how many steps were observed.
    """

    mean: float
    upper: float
    steps: int


def shortfall(
    now: Float[np.ndarray, " step"], after: Float[np.ndarray, " step"], *, alpha: float, delta: float
) -> Shortfall:
    """The mean shortfall of some steps and its upper limit, formula (3) of the module.

    >>> shortfall(np.ones(1000), np.ones(1000), alpha=1.0, delta=0.05)
    Shortfall(mean=0.0, upper=0.005..., steps=1000)

    Args:
        now: S_k of each step, in the order in which they were observed.
        after: S_{k+1} of each step.
        alpha: factor that the level may fall by at a step.
        delta: probability that the limit is below the true mean.
    """
    y = np.asarray(after, dtype=float) - alpha * np.asarray(now, dtype=float)
    if not len(y):
        return Shortfall(float("nan"), alpha, 0)
    earlier = np.concatenate([[0.0], np.cumsum(y)[:-1] / np.arange(1, len(y))]) if len(y) > 1 else np.zeros(1)
    spread = float(((y - np.minimum(earlier, 1 - alpha)) ** 2).sum())
    each = np.log(len(LAMBDAS) / delta)
    margin = min((each + (-np.log(1 - x) - x) * spread) / x for x in LAMBDAS) / len(y)
    mean = 0.0 - float(y.mean())
    return Shortfall(mean, float(min(alpha, max(mean, 0.0) + margin)), len(y))


def exit_bound(tokens: int, *, alpha: float, start: float, first: float, later: float) -> float:
    """The largest probability of leaving the safe set within so many tokens, formula (2) of the module; 1 says nothing.

    >>> round(exit_bound(10, alpha=0.99, start=1.0, first=0.0, later=0.0), 4)      # 1 - 0.99 ** 10
    0.0956

    Args:
        tokens: K, at least 1.
        alpha: factor that the level may fall by at a step.
        start: S_0, in [0, 1].
        first: c_0.
        later: c_k of the other steps.
    """
    kept = alpha * start - first
    for _ in range(tokens - 1):
        kept = alpha * kept - later
    return float(min(1.0, max(0.0, 1.0 - kept)))


def followed(levels: Sequence[Float[np.ndarray, " _"]], tokens: int) -> Float[np.ndarray, "answer token"]:
    """Levels of tokens 0 to `tokens` of each answer: 0 once it has left the safe set, and as they were once it has ended.

    >>> followed([np.array([1.0, 0.5, 0.0, 0.7]), np.array([0.8, 0.9])], 3).tolist()
    [[1.0, 0.5, 0.0, 0.0], [0.8, 0.9, 0.9, 0.9]]

    Args:
        levels: S_0, S_1, ... of each answer, as long as the answer.
        tokens: K.
    """
    out = np.zeros((len(levels), tokens + 1))
    for row, s in zip(out, levels, strict=True):
        row[: len(s)] = s[: tokens + 1]
        row[len(s) :] = s[-1]
        left = np.flatnonzero(row[1:] <= 0)
        if len(left):
            row[left[0] + 1 :] = 0.0
    return out


def exited(levels: Sequence[Float[np.ndarray, " _"]], tokens: int) -> Bool[np.ndarray, " answer"]:
    """Whether each answer has left the safe set at one of the tokens 1 to `tokens`.

    >>> exited([np.array([1.0, 0.5, 0.0]), np.array([0.0, 1.0])], 2).tolist()      # where it starts does not count
    [True, False]

    Args:
        levels: S_0, S_1, ... of each answer, as long as the answer.
        tokens: K.
    """
    return np.asarray((followed(levels, tokens)[:, 1:] <= 0).any(axis=1))


def shortfalls(levels: Float[np.ndarray, "answer token"], tokens: int, *, alpha: float) -> tuple[Shortfall, Shortfall]:
    """The shortfall at the first step and at the other steps until token `tokens`, each at its share of the confidence.

    >>> first, later = shortfalls(np.ones((100, 21)), 5, alpha=1.0)
    >>> first.steps, later.steps
    (100, 400)

    Args:
        levels: what `followed` gives, of one label; at least `tokens` + 1 columns.
        tokens: K.
        alpha: factor that the level may fall by at a step.
    """
    share = (1 - CONFIDENCE) / 4
    first, later = ((levels[:, a:b].ravel(), levels[:, a + 1 : b + 1].ravel()) for a, b in ((0, 1), (1, tokens)))
    return shortfall(*first, alpha=alpha, delta=share), shortfall(*later, alpha=alpha, delta=share)
