"""What a barrier predicts of its value at the next token, and the smallest raise that makes the prediction high enough.

For one layer, with h the height of the barrier as the model computes it, u >= 0 the amount by which a guard raises it there, and
h+ the height that the model computes at the next token:

    h+ = intercept + slope h + gain u + residual                                                   (1)

The coefficients are those of least squares over generations in which u is drawn at random at every step, so `gain` is the average
effect of a raise and not a correlation: what a prompt is about has no influence on u. A gain that is not shown to be positive
(one-sided 95 % limit, clustered by request) is 0: there is nothing to steer with. The residual is observed on other requests,
with the guard at work. `bias` is the lower limit of the 95 % interval of its mean, `spread` its standard deviation.

With level S = min(h, 1) inside the safe set (h > 0), and min(margin, 1) where a state outside is brought back to the margin, the
guard asks for

    h + u >= margin   where h <= 0                                                                 (2)
    E[h+ | h, u] = intercept + slope h + gain u + bias >= alpha S                                   (3)

Both bound u from below, so the smallest raise is the larger of the two bounds. That of (3) is at most `reach`, the largest raise
that was tried: beyond it (1) is extrapolation. Where it would have to be larger, or the gain is 0, (3) stays unmet.

Sources: Yang et al. (2025), SHIELD: the residual of the dynamics is learned and the barrier is enforced in expectation; Ljung
(1999), "System identification": excitation that is independent of the state.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.intervals import ratio_of_means
from ..core.statistics import codes

__all__ = ["Transition", "fitted", "needed", "settled"]

LEAST = 8  # requests, for a fit of three coefficients and their errors
SIDED = 1.645  # standard errors below an estimate, for its one-sided 95 % limit
SLACK = 1e-5  # of rounding, in units of h


@dataclass(frozen=True)
class Transition:
    """The next height of a barrier, given this one and a raise: formula (1) of the module. As it stands: it stays where it is.

    Attributes:
        intercept: the next height where this one is 0.
        slope: by how much the next height rises with this one.
        gain: by how much the next height rises with a raise, at least 0.
        reach: the largest raise for the sake of the next height.
        bias: lower limit of the mean residual on held-out generations.
        spread: standard deviation of that residual; NaN where there was none.
    """

    intercept: float = 0.0
    slope: float = 1.0
    gain: float = 0.0
    reach: float = 0.0
    bias: float = 0.0
    spread: float = float("nan")

    def ahead(self, h: Float[Tensor, " row"], raised: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The expected next height, the bias included.

        Args:
            h: heights before the raise.
            raised: by how much they were raised.
        """
        return self.intercept + self.slope * h + self.gain * raised + self.bias


def fitted(
    h: Float[np.ndarray, " step"],
    raised: Float[np.ndarray, " step"],
    after: Float[np.ndarray, " step"],
    *,
    requests: Sequence[Hashable],
    reach: float,
) -> Transition:
    """The transition by least squares; with fewer than eight requests, one that stays where it is.

    Args:
        h: heights.
        raised: random raises.
        after: heights at the next token.
        requests: the request of each step.
        reach: the largest raise that was tried.
    """
    groups = codes(requests) if len(requests) else np.zeros(0, dtype=int)
    if len(np.unique(groups)) < LEAST:
        return Transition()
    x = np.stack([np.ones(len(h)), h, raised], axis=1)
    inverse = np.linalg.pinv(x.T @ x)
    beta = inverse @ x.T @ after
    scores = np.zeros((groups.max() + 1, 3))
    np.add.at(scores, groups, x * (after - x @ beta)[:, None])
    n = len(scores)
    error = np.sqrt((inverse @ (scores.T @ scores) @ inverse)[2, 2] * n / (n - 1))
    gain = float(beta[2]) if beta[2] - SIDED * error > 0 else 0.0
    return Transition(float(beta[0]), float(beta[1]), gain, reach=reach)


def settled(
    transition: Transition, residuals: Float[np.ndarray, " step"], *, requests: Sequence[Hashable]
) -> Transition:
    """The transition with the mean of its residual, as a lower limit, and its spread; as it is with less than eight requests.

    Args:
        transition: without bias.
        residuals: measured minus predicted heights on requests that had no part in the fit.
        requests: the request of each.
    """
    if len(set(requests)) < LEAST:
        return transition
    ones = np.ones(len(residuals))
    mean = ratio_of_means(np.asarray(residuals, dtype=float), ones, requests)
    return replace(transition, bias=mean.low, spread=float(np.std(residuals)))


def needed(
    h: Float[Tensor, " row"], transition: Transition, *, alpha: float, margin: float
) -> tuple[Float[Tensor, " row"], Bool[Tensor, " row"]]:
    """The least height of each state, -inf where nothing has to change, and where (3) stays unmet all the same.

    >>> least, unmet = needed(torch.tensor([2.0, -1.0]), Transition(slope=0.5, gain=1.0, reach=9.0), alpha=1.0, margin=1.0)
    >>> least.tolist(), unmet.tolist()      # the second is raised by 2 to get to the margin, which is enough for the next token
    ([-inf, 1.0], [False, False])

    Args:
        h: heights as the model computed them.
        transition: of this layer at this kind of token.
        alpha: factor that the level may fall by at a step.
        margin: height that a state outside the safe set is brought back to.
    """
    inside = h > 0
    target = alpha * torch.where(inside, h, margin).clamp(max=1.0)
    gap = target - transition.ahead(h, torch.zeros_like(h))
    back = torch.where(inside, 0.0, margin - h)
    ahead = (gap / transition.gain).clamp(0.0, transition.reach) if transition.gain > 0 else torch.zeros_like(h)
    raised = torch.maximum(back, ahead)
    unmet = transition.ahead(h, raised) < target - SLACK
    return torch.where(raised > 0, h + raised, -torch.inf), unmet
