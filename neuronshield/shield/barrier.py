"""The barriers of `neuronshield.shield.guard`: how a state is projected, a ridge logistic regression per layer, and its zero.

Safe states are those of benign and of refused prompts, unsafe ones those of harmful prompts that were answered. The loss of a
layer, over standardised activations z with weights that sum to 1, is

    sum_s weight_s softplus(-sign_s (w . z_s + b)) + RIDGE / 2 ||w||^2        sign +1 for safe states, -1 for unsafe ones

The zero of h = w . x + b is then moved so that at most a given share of the safe prompts is ever below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import InputError
from ..data.prompts import Prompt
from ..find.folds import folds_of

__all__ = ["RIDGE", "barriers", "cuts", "line", "project", "separation_of", "shares"]


RIDGE = 1e-2  # on standardised activations, against a loss whose weights sum to 1


def project(
    x: Float[Tensor, "row k"], w: Float[Tensor, " k"], b: float, margin: float = 0.0
) -> tuple[Float[Tensor, "row k"], Bool[Tensor, " row"]]:
    """The nearest x' with w . x' + b >= margin, in the dtype of `x`, and which rows had to move.

    >>> new, moved = project(torch.tensor([[3.0, 4.0], [-1.0, 0.0]]), torch.tensor([2.0, 0.0]), 0.0, margin=4.0)
    >>> new.round(decimals=3).tolist(), moved.tolist()
    ([[3.0, 4.0], [2.0, 0.0]], [False, True])

    Rows that move end beyond the boundary by at most the rounding error of that dtype.

    Args:
        x: activations of the members, one row a state.
        w: normal of the half-space.
        b: offset of the half-space.
        margin: the least value of w . x + b.

    Source: the formula of `neuronshield.shield.guard`.
    """
    wide, size = x.float(), w.abs()
    gap = margin - b - wide @ w
    short = gap > 0
    new = wide + (gap / (w @ w))[:, None] * w
    kept, summed = torch.finfo(x.dtype).eps, (len(w) + 4) * torch.finfo(w.dtype).eps
    gap = gap + kept * (new.abs() @ size) + summed * (wide.abs() @ size + abs(b) + abs(margin))
    new = wide + (gap / (w @ w))[:, None] * w
    return torch.where(short[:, None], new.to(x.dtype), x), short


def barriers(
    kept: dict[int, list[Tensor]], prompts: Sequence[Prompt], *, unsafe: Bool[np.ndarray, " prompt"], benign_rate: float
) -> tuple[dict[int, Tensor], dict[int, float]]:
    """w and b of each layer: at most `benign_rate` of the safe prompts are ever below h = 0, and h is 1 at their mean.

    Args:
        kept: activations of a layer's members, [step, member] for each prompt.
        prompts: the prompts.
        unsafe: harmful and answered.
        benign_rate: the largest share of safe prompts below 0, over all layers and steps together.

    Raises:
        InputError: the states of a layer do not differ.
    """
    share = shares(prompts, unsafe)
    lines = {layer: line(states, unsafe, share) for layer, states in kept.items()}
    height = {layer: [x.double() @ w + b for x in kept[layer]] for layer, (w, b) in lines.items()}
    lowest = np.array([[float(h.min()) for h in hs] for hs in height.values()])
    at = cuts(lowest[:, ~unsafe], benign_rate)
    weights, bias = {}, {}
    for (layer, (w, b)), cut in zip(lines.items(), at, strict=True):
        mean = 2 * sum(s * float(h.mean()) for s, h, bad in zip(share, height[layer], unsafe, strict=True) if not bad)
        unit = mean - cut
        if not unit > 1e-9:
            raise InputError(
                f"fit_guard: the members in layer {layer} have the same values in safe and unsafe states; leave them out"
            )
        weights[layer], bias[layer] = (w / unit).float(), float((b - cut) / unit) + 1e-5  # rounding must not touch them
    return weights, bias


def shares(prompts: Sequence[Prompt], unsafe: Bool[np.ndarray, " prompt"]) -> Float[np.ndarray, " prompt"]:
    """The weight of each prompt: half for either class, within it the same for every cell, within that for every prompt."""
    group = [(bool(bad), p.cell) for p, bad in zip(prompts, unsafe, strict=True)]
    cells = [len({cell for kind, cell in group if kind is bad}) for bad in (False, True)]
    return np.array([0.5 / cells[bad] / group.count((bad, cell)) for bad, cell in group])


def line(
    states: Sequence[Tensor], unsafe: Bool[np.ndarray, " prompt"], share: Float[np.ndarray, " prompt"]
) -> tuple[Float[Tensor, " k"], float]:
    """w and b of a ridge logistic regression of safe (h > 0) against unsafe states, in raw units, float64.

    Args:
        states: activations, [step, k] for each prompt.
        unsafe: class of each prompt.
        share: weight of each prompt; its steps share it equally.
    """
    x = torch.cat(list(states)).double()
    steps = torch.tensor([len(s) for s in states])
    weight = (torch.as_tensor(share) / steps).repeat_interleave(steps)
    sign = (1 - 2 * torch.as_tensor(unsafe).double()).repeat_interleave(steps)
    centre, scale = x.mean(dim=0), x.std(dim=0)
    scale = torch.where(scale > 1e-9, scale, 1.0)
    z = (x - centre) / scale
    theta = torch.zeros(z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    exact: dict[str, Any] = {"max_iter": 500, "tolerance_grad": 1e-9, "tolerance_change": 0.0}
    solver = torch.optim.LBFGS([theta], **exact, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        height = z @ theta[:-1] + theta[-1]
        value = weight @ torch.nn.functional.softplus(-sign * height) + RIDGE / 2 * theta[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    w = theta.detach()[:-1] / scale
    return w, float(theta.detach()[-1] - centre @ w)


def cuts(lowest: Float[np.ndarray, "layer prompt"], rate: float) -> Float[np.ndarray, " layer"]:
    """The highest thresholds, at the same rank in every layer, with at most `rate` of the prompts below one of them.

    Args:
        lowest: each prompt's lowest value in each layer.
        rate: share of the prompts.
    """
    ranks = lowest.argsort(axis=1).argsort(axis=1).min(axis=0)
    return np.sort(lowest, axis=1)[:, np.sort(ranks)[int(rate * lowest.shape[1])]]


def separation_of(
    states: Sequence[Tensor], prompts: Sequence[Prompt], *, unsafe: Bool[np.ndarray, " prompt"], seed: int
) -> float:
    """Held-out AUC of each prompt's lowest h, averaged over cells; NaN where no cell has both classes.

    Args:
        states: activations of a layer's members, [step, k] for each prompt.
        prompts: the prompts; requests are halved: those of even folds (`folds_of`), and those of odd ones.
        unsafe: class of each prompt.
        seed: of the halves: one is fitted on, the other is measured.
    """
    from scipy.stats import mannwhitneyu

    half = np.array(folds_of(prompts, seed)) % 2
    first, cells = [i for i, h in enumerate(half) if h == 0], np.array([str(p.cell) for p in prompts])
    if len(set(unsafe[first])) < 2:
        return float("nan")
    w, b = line([states[i] for i in first], unsafe[first], shares([prompts[i] for i in first], unsafe[first]))
    lowest = np.array([float((x.double() @ w + b).min()) for x in states])
    out = []
    for cell in dict.fromkeys(cells):
        good, bad = (lowest[(cells == cell) & (half == 1) & kind] for kind in (~unsafe, unsafe))
        if len(good) and len(bad):
            out.append(float(mannwhitneyu(good, bad).statistic) / len(good) / len(bad))
    return float(np.mean(out)) if out else float("nan")
