r"""Probe scores of neurons: which neurons tell two groups of prompts apart.

Per layer a logistic regression is fitted on the standardised values of all its neurons at the last prompt token, group against
group,

    minimise  sum log(1 + exp(-y f(x))) + ridge / 2 |w|^2,      f(x) = w x + b,      y = +1 or -1.

The score of a neuron is sign(w) |d|, d its effect size (Cohen). A **candidate** has a score whose z, over the neurons of its layer,
is beyond 3, and a weight and an effect size of one sign.

What the paper's text leaves open, as chosen here: ridge = 1 on standardised values (scikit-learn's default), no penalty on b, z over the
neurons of one layer and site, and "signs must agree" read as sign(w) = sign(d).

The regression is solved in the space that the prompts span, exactly: with K = X X^T = U S U^T, w = X^T U S^(-1/2) v, whatever the
number of neurons.

Source: "Do VLMs share safety neurons across modalities?" (2026), arXiv 2608.30750.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

__all__ = ["THRESHOLD", "candidates", "logistic", "probe_scores"]

#: |z| of a candidate.
THRESHOLD = 3.0
RIDGE = 1.0
STEPS = 100  # of Newton's method; it takes about ten
Layers: TypeAlias = Float[np.ndarray, "n_layers width"]


def logistic(
    values: Float[np.ndarray, "prompt width"], positive: Bool[np.ndarray, " prompt"], *, ridge: float = RIDGE
) -> tuple[Float[np.ndarray, " width"], float]:
    """Weights and intercept of a logistic regression with a ridge penalty.

    >>> values = np.array([[0.0, 1.0], [0.0, -1.0], [2.0, 1.0], [2.0, -1.0]])
    >>> weights, intercept = logistic(values, np.array([False, False, True, True]))
    >>> bool(weights[0] > 0), round(abs(float(weights[1])), 6)
    (True, 0.0)

    Args:
        values: one row a prompt.
        positive: the group of each prompt.
        ridge: penalty on the squared norm of the weights, above 0.
    """
    x = np.asarray(values, dtype=float)
    spread, basis = np.linalg.eigh(x @ x.T)
    kept = spread > max(float(spread[-1]), 0.0) * 1e-12
    root = np.sqrt(spread[kept])
    z = np.column_stack([basis[:, kept] * root, np.ones(len(x))])  # prompts in the space that they span, and 1 for b
    penalty = np.append(np.full(int(kept.sum()), ridge), 0.0)
    target, v = positive.astype(float), np.zeros(z.shape[1])

    def loss(v: Float[np.ndarray, " kept"]) -> float:
        f = z @ v
        return float(np.logaddexp(0.0, f).sum() - target @ f + 0.5 * penalty @ v**2)

    now = loss(v)
    for _ in range(STEPS):
        p = expit(z @ v)
        slope = z.T @ (p - target) + penalty * v
        step = np.linalg.solve((z.T * (p * (1 - p))) @ z + np.diag(penalty + 1e-12), slope)
        size = 1.0
        while (after := loss(v - size * step)) > now and size > 1e-8:  # Newton's step may overshoot
            size /= 2
        v, before, now = v - size * step, now, after
        if before - now <= 1e-12 * max(1.0, abs(now)):
            break
    return x.T @ (basis[:, kept] * (v[:-1] / root)).sum(axis=1), float(v[-1])


def probe_scores(
    harmful: Float[np.ndarray, "harmful n_layers width"], benign: Float[np.ndarray, "benign n_layers width"]
) -> tuple[Layers, Layers]:
    """sign(w) |d| of every neuron, and d, the effect size of harmful minus benign prompts.

    >>> rng = np.random.default_rng(0)
    >>> harmful, benign = rng.normal(size=(20, 2, 7)), rng.normal(size=(20, 2, 7))
    >>> harmful[:, 1, 3] += 4
    >>> scores, d = probe_scores(harmful, benign)
    >>> np.unravel_index(np.abs(scores).argmax(), scores.shape)
    (np.int64(1), np.int64(3))

    Args:
        harmful: values of every neuron on prompts of one group, two or more.
        benign: the same of the other group.
    """
    n = len(harmful) + len(benign)
    scores, effects = np.zeros(harmful.shape[1:]), np.zeros(harmful.shape[1:])
    group = np.arange(n) < len(harmful)
    for layer in range(harmful.shape[1]):
        x = np.concatenate([harmful[:, layer], benign[:, layer]]).astype(float)
        within = np.concatenate([x[group] - x[group].mean(axis=0), x[~group] - x[~group].mean(axis=0)])
        pooled = np.sqrt((within**2).sum(axis=0) / max(n - 2, 1))
        difference = x[group].mean(axis=0) - x[~group].mean(axis=0)
        d = np.divide(difference, pooled, out=np.zeros_like(pooled), where=pooled > 0)
        whole = x.std(axis=0)
        weights, _ = logistic(np.divide(x - x.mean(axis=0), whole, out=np.zeros_like(x), where=whole > 0), group)
        scores[layer], effects[layer] = np.sign(weights) * np.abs(d), d
    return scores, effects


def candidates(scores: Layers, effects: Layers, *, threshold: float = THRESHOLD) -> Bool[np.ndarray, "n_layers width"]:
    """Mask of the neurons whose score is beyond a threshold within its layer, and whose weight and effect size have one sign.

    >>> scores = np.zeros((1, 40))
    >>> scores[0, 5], scores[0, 6] = 9.0, -8.0
    >>> np.flatnonzero(candidates(scores, np.abs(scores)))
    array([5])

    Args:
        scores: sign(w) |d|.
        effects: d.
        threshold: of |z|.
    """
    spread = scores.std(axis=1, keepdims=True)
    centred = scores - scores.mean(axis=1, keepdims=True)
    z = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    found: Bool[np.ndarray, "n_layers width"] = (np.abs(z) > threshold) & (np.sign(scores) == np.sign(effects))
    return found
