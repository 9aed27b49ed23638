"""Fitting the barriers of `guard`: a ridge logistic regression per layer, and where its zero is put."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import InputError
from ..data.prompts import Prompt
from ..find.moments import half_of

__all__ = ["RIDGE", "barriers", "cuts", "line", "separation_of", "shares"]


RIDGE = 1e-2  # on standardised activations, against a loss whose weights sum to 1


def barriers(
    kept: dict[int, list[Tensor]], prompts: Sequence[Prompt], unsafe: Bool[np.ndarray, " prompt"], benign_rate: float
) -> tuple[dict[int, Tensor], dict[int, float]]:
    """w and b of each layer: h is 0 where at most `benign_rate` of the safe prompts are ever lower, 1 at their mean."""
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
            raise InputError(f"fit_guard: the members in layer {layer} do not tell the states apart; leave them out")
        weights[layer], bias[layer] = (w / unit).float(), float((b - cut) / unit) + 1e-5  # rounding must not touch them
    return weights, bias


def shares(prompts: Sequence[Prompt], unsafe: Bool[np.ndarray, " prompt"]) -> Float[np.ndarray, " prompt"]:
    """What each prompt counts: half for either class, in it the same for every cell, and in that for every prompt."""
    group = [(bool(bad), p.cell) for p, bad in zip(prompts, unsafe, strict=True)]
    cells = [len({cell for kind, cell in group if kind is bad}) for bad in (False, True)]
    return np.array([0.5 / cells[bad] / group.count((bad, cell)) for bad, cell in group])


def line(
    states: Sequence[Tensor], unsafe: Bool[np.ndarray, " prompt"], share: Float[np.ndarray, " prompt"]
) -> tuple[Float[Tensor, " k"], float]:
    """Ridge logistic regression of safe (h > 0) against unsafe, standardised and folded back to raw units, float64."""
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
    """The highest cuts, at the same rank in every layer, below which at most `rate` of the prompts ever come."""
    ranks = lowest.argsort(axis=1).argsort(axis=1).min(axis=0)
    return np.sort(lowest, axis=1)[:, np.sort(ranks)[int(rate * lowest.shape[1])]]


def separation_of(
    states: Sequence[Tensor], prompts: Sequence[Prompt], unsafe: Bool[np.ndarray, " prompt"], seed: int
) -> float:
    """AUC of each prompt's lowest h, fitted on half of the requests, over pairs of a cell in the other; NaN if there are none."""
    from scipy.stats import mannwhitneyu

    half = np.array([half_of(p, seed) for p in prompts])
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
