"""The barriers of `neuronshield.shield.guard`: how a state is projected, a ridge logistic regression, and its zero.

Safe states are those of benign and of refused prompts, unsafe ones those of harmful prompts that were answered. There is one
barrier for each slot: a layer, at the last prompt token or at generated tokens. Its loss, over standardised activations z with
weights that sum to 1, is

    sum_s weight_s softplus(-sign_s (w . z_s + b)) + RIDGE / 2 ||w||^2        sign +1 for safe states, -1 for unsafe ones

The zero of h = w . x + b is then placed by the states of *other* requests. At most a given share of the safe prompts is ever below
it, in any slot; where the unsafe prompts all get lower than that, it lies halfway to the nearest of them. h is 1 a quarter of
the way from the zero to the mean of the safe states, so that most of these are above 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import InputError
from ..data.prompts import Prompt
from .transition import Transition

__all__ = ["RIDGE", "TOKENS", "Barrier", "Slot", "barriers", "cuts", "line", "project", "separation_of", "shares"]

#: (layer, which kind of token): 0 the last prompt token, 1 generated tokens.
Slot = tuple[int, int]
TOKENS = ("last prompt token", "generated tokens")
RIDGE = 1e-2  # on standardised activations, against a loss whose weights sum to 1


@dataclass(frozen=True, eq=False)
class Barrier:
    """h(x) = weight . x + bias for the members of one layer at one kind of token.

    >>> Barrier(torch.tensor([1.0, -1.0]), 0.5).heights(torch.tensor([[2.0, 1.0]]))
    tensor([1.5000])

    Attributes:
        weight: w [members of the layer, ascending], float32.
        bias: b.
        transition: what it predicts of the next token.
    """

    weight: Tensor
    bias: float
    transition: Transition = field(default_factory=Transition)

    def heights(self, x: Float[Tensor, "row k"]) -> Float[Tensor, " row"]:
        """h of each row, in float32 or wider.

        Args:
            x: activations of the members.
        """
        wide = x if x.dtype == torch.float64 else x.float()
        return wide @ self.weight.to(wide) + self.bias


def project(
    x: Float[Tensor, "row k"], barrier: Barrier, least: Float[Tensor, " row"]
) -> tuple[Float[Tensor, "row k"], Bool[Tensor, " row"]]:
    """The nearest x' with h(x') >= least, in the dtype of `x`, and which rows had to move.

    >>> barrier, least = Barrier(torch.tensor([2.0, 0.0]), 0.0), torch.tensor([4.0, 4.0])
    >>> new, moved = project(torch.tensor([[3.0, 4.0], [-1.0, 0.0]]), barrier, least)
    >>> new.round(decimals=3).tolist(), moved.tolist()
    ([[3.0, 4.0], [2.0, 0.0]], [False, True])

    Rows that move end beyond the boundary by at most the rounding error of that dtype.

    Args:
        x: activations of the members, one row a state.
        barrier: of these members, on the device of `x`.
        least: the least h of each row; -inf where any will do.

    Source: min ||x' - x||^2 subject to w . x' + b >= least has the solution x' = x + max(0, least - h(x)) w / ||w||^2; Cheng and
    Alonso (2024), "Linearly controlled language generation".
    """
    wide, w, b = x.float(), barrier.weight, barrier.bias
    gap = (least - barrier.heights(x)).clamp(min=0)
    short = gap > 0
    new = wide + (gap / (w @ w))[:, None] * w
    kept, summed = torch.finfo(x.dtype).eps, (len(w) + 4) * torch.finfo(w.dtype).eps
    rounding = kept * (new.abs() @ w.abs()) + summed * (wide.abs() @ w.abs() + abs(b) + least.abs())
    new = wide + ((gap + rounding) / (w @ w))[:, None] * w
    return torch.where(short[:, None], new.to(x.dtype), x), short


def barriers(
    lines: Mapping[Slot, tuple[Tensor, float]],
    states: Mapping[Slot, Sequence[Tensor]],
    prompts: Sequence[Prompt],
    *,
    unsafe: Bool[np.ndarray, " prompt"],
    benign_rate: float,
) -> dict[Slot, Barrier]:
    """The barrier of each slot: at most `benign_rate` of the safe prompts are ever below h = 0.

    Args:
        lines: w and b of each slot, fitted to other requests.
        states: activations of a slot's members, [step, member] for each prompt.
        prompts: the prompts.
        unsafe: harmful and answered.
        benign_rate: the largest share of safe prompts below 0, over all slots and steps together.

    Raises:
        InputError: the states of a slot do not differ.
    """
    share, safe = shares(prompts, unsafe), ~unsafe
    height = {slot: [x.double() @ w + b for x in states[slot]] for slot, (w, b) in lines.items()}
    lowest = np.array([[float(h.min()) if len(h) else np.inf for h in hs] for hs in height.values()])
    at = cuts(lowest[:, safe], benign_rate)
    made = {}
    for ((layer, kind), (w, b)), low, cut in zip(lines.items(), lowest, at, strict=True):
        weighted = [(share[i], float(h.mean())) for i, h in enumerate(height[layer, kind]) if safe[i] and len(h)]
        mean = sum(s * h for s, h in weighted) / max(sum(s for s, _ in weighted), 1e-300)
        nearest = low[unsafe].max(initial=-np.inf, where=np.isfinite(low[unsafe]))
        zero = (cut + nearest) / 2 if -np.inf < nearest < cut else cut
        unit = (mean - zero) / 4
        if not unit > 1e-9:
            raise InputError(
                f"fit_guard: the members in layer {layer} have the same values in safe and unsafe states at the {TOKENS[kind]}; "
                "leave them out"
            )
        made[layer, kind] = Barrier((w / unit).float(), float((b - zero) / unit) + 1e-5)  # rounding must not touch them
    return made


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
    weight = (torch.as_tensor(share) / steps.clamp(min=1)).repeat_interleave(steps)
    weight = weight / weight.sum()
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
    heights: Sequence[Tensor], prompts: Sequence[Prompt], *, unsafe: Bool[np.ndarray, " prompt"]
) -> float:
    """AUC of each prompt's lowest h, averaged over cells; NaN where no cell has both classes.

    Args:
        heights: h of a slot at each step of each prompt, of requests that the barrier was not fitted to.
        prompts: the prompts.
        unsafe: class of each prompt.
    """
    from scipy.stats import mannwhitneyu

    kept = [i for i, h in enumerate(heights) if len(h)]
    lowest, cells = np.array([float(heights[i].min()) for i in kept]), np.array([str(prompts[i].cell) for i in kept])
    out = []
    for cell in dict.fromkeys(cells):
        good, bad = (lowest[(cells == cell) & kind] for kind in (~unsafe[kept], unsafe[kept]))
        if len(good) and len(bad):
            out.append(float(mannwhitneyu(good, bad).statistic) / len(good) / len(bad))
    return float(np.mean(out)) if out else float("nan")
