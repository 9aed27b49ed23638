"""Moments that cannot be true, or do not fit together, are refused before a score is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError
from neuronshield.find.groups import Group, Moments, Stats

L, D = 3, 29


def made(*, change: Any = None) -> Stats:
    """Hand-made moments of two cells, 8 requests a label."""
    rng, groups = np.random.default_rng(0), {}
    for language in ("en", "sw"):
        for label in ("harmful", "benign"):
            h = rng.normal(size=(8, L, D))
            if change is not None and (language, label) == ("sw", "harmful"):
                h[3, 1, 7] = change
            for fold in range(2):
                groups[Group(label, language, "text", fold)] = moments_of(h[fold::2])
    return Stats(groups, np.ones((L, D)), np.ones((L, D)), "last_prompt", 10_000, 60)


def moments_of(h: np.ndarray) -> Moments:
    with np.errstate(invalid="ignore"):
        return Moments.of(h)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_moments_that_are_not_finite_are_refused_by_every_score_and_rule(value: float):
    """A NaN would otherwise take the whole layer out of a score that is normalised within it."""
    stats = made(change=value)
    assert np.isfinite(stats.moments("harmful", "en/text").mean).all()
    said = r"harmful prompts of sw/text: the moments of neuron \(1, 7\) are not finite"
    options: dict[str, dict[str, Any]] = {
        "safeneuron": {"tau": 1.0}, "precise_shield": {"rho": 0.2}, "ss_neurons": {"p": 0.2}, "significance": {"q": 0.1},
        "set_difference": {"p": 0.2, "q": 0.1}, "global_difference": {"p": 0.2, "q": 0.1}, "mean_difference": {"k": 3},
    }  # fmt: skip
    for rule, given in options.items():
        with pytest.raises(InputError, match=said):
            ns.select(rule, stats, **given)
    for method in ns.scores.METHODS:
        with pytest.raises(InputError, match=said):
            ns.contrast(stats, method)
    with pytest.raises(InputError, match=said):
        ns.overlap(stats, k=3)


def test_norms_and_moments_of_other_shapes_are_refused():
    stats = made()
    with pytest.raises(
        InputError, match=r"Stats: mean of \('harmful', 'en', 'text', 0\) has shape \(3, 29\), but down_norms \(2, 29\)"
    ):
        Stats(stats.groups, np.ones((2, D)), np.ones((2, D)), "last_prompt", 10_000, 60)
    with pytest.raises(InputError, match="norms of W_down that are not finite"):
        Stats(stats.groups, np.full((L, D), np.nan), np.ones((L, D)), "last_prompt", 10_000, 60)


def test_activations_of_any_library_and_precision_are_read():
    prompts, stats = tiny.prompts()[:8], made()
    h = torch.randn(8, L, D)
    want = Stats.of(h, prompts, like=stats)
    assert want == Stats.of(h.numpy(), prompts, like=stats) == Stats.of(h.clone().requires_grad_(), prompts, like=stats)
    rounded = Stats.of(h.bfloat16(), prompts, like=stats)
    assert rounded == Stats.of(h.bfloat16().float(), prompts, like=stats)


def test_what_does_not_fit_the_prompts_is_refused():
    prompts, stats, h = tiny.prompts()[:8], made(), np.zeros((8, L, D))
    with pytest.raises(InputError, match="every row of prompts must be Prompt, got str"):
        Stats.of(h, ["make a cake"] * 8, like=stats)  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"like must be Stats, got NoneType; capture makes them"):
        Stats.of(h, prompts, like=None)  # type: ignore[arg-type]
