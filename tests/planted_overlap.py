"""Moments of two cells with a known share of true neurons in common, from simulated activations."""

from __future__ import annotations

import numpy as np

from neuronshield import Stats
from neuronshield.find.folds import FOLDS
from neuronshield.find.running import Group, Moments, by_group

LAYERS, WIDTH, TRUE = 4, 500, 64
NEURONS = LAYERS * WIDTH


def planted(seed: int, *, shared: float, d: float, n: int, fresh: int = 0) -> Stats:
    """Moments of en/text and sw/text: n matched requests, of which either label moves a neuron by 0.7 of its noise in both cells.

    Args:
        seed: of the neurons: their scale (log-normal), their mean, and which are true.
        shared: share of the 64 true neurons of a cell that are true in the other cell.
        d: shift of a true neuron on harmful prompts, in standard deviations of its own noise.
        n: requests of each label in each cell.
        fresh: another sample of requests from the same cells.
    """
    model, rng = np.random.default_rng(seed), np.random.default_rng([seed, fresh, n])
    scale, base = model.lognormal(0, 0.5, NEURONS), model.normal(0, 1, NEURONS)
    order, both = model.permutation(NEURONS), round(shared * TRUE)
    true = {"en": order[:TRUE], "sw": np.r_[order[:both], order[TRUE : 2 * TRUE - both]]}
    topic = 0.7 * rng.normal(size=(2, n, NEURONS))
    fold = np.arange(n) % FOLDS
    groups: dict[Group, Moments] = {}
    for language, neurons in true.items():
        for label, common in zip(("harmful", "benign"), topic, strict=True):
            h = common + rng.normal(size=(n, NEURONS))
            if label == "harmful":
                h[:, neurons] += d
            h = ((h + base) * scale).reshape(n, LAYERS, WIDTH)
            parts = by_group(h, fold, None)
            groups |= {Group(label, language, "text", i): part for i, part in enumerate(parts)}
    ones = np.ones((LAYERS, WIDTH))
    return Stats(groups, ones, ones, "last_prompt", 10**6, 10)


def reached(a: Stats, b: Stats, method: str) -> float:
    """Share of neurons in common of the 64 best of en/text in two samples."""
    from neuronshield import contrast

    one, other = (contrast(stats, method).top(k=TRUE)["en/text"] for stats in (a, b))
    return len(one & other) / TRUE


def unrelated(shared: float) -> float:
    """The value of `Overlap.shared` for a share of neurons in common: 0 for sets that were drawn independently."""
    return (shared - TRUE / NEURONS) / (1 - TRUE / NEURONS)
