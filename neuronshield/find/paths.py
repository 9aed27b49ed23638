"""The direct path from a down-projection to the logits: what the residual stream carries there unchanged.

The path from a layer's output to the logits is the same for every layer: the residual stream carries it to the last layer
unchanged. So it is taken in two parts, from the logits back to the output of the last layer, and within each layer from its output back to its
down-projection. Each layer's output is cut from the graph, which therefore never holds more than one layer.

Norms (the final one, and one behind the MLP where the family has it) are held at their scale on one prompt, softcaps at their slope
there. Along this path everything is then linear, and is what the model itself applies:

    backward    the slope of any weighted sum of logits along the output of each down-projection (`DirectPath.slopes`)
    forward     the change of every logit for a change of the output of one down-projection (`DirectPath.logits_of`)

The forward direction is the derivative of the backward one by its weights, which it is linear in.

Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits" (direct paths to the logits).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.prompts import Prompt
from ..model.encoding import batches
from ..model.hooks import hooked
from ..model.model import Model
from ..model.norms import FrozenNorms
from ..model.running import running

__all__ = ["DirectPath", "direct_path"]


@dataclass(frozen=True, eq=False)
class DirectPath:
    """The direct path of one model on one prompt. Made by `direct_path`.

    Attributes:
        logits: at the last position, with their graph.
        written: output of the down-projection of each layer that runs.
        ends: output of each layer, in the graph of its own layer and in that of the logits.
    """

    logits: Float[Tensor, " vocab"]
    written: dict[int, Tensor]
    ends: dict[int, tuple[Tensor, Tensor]]
    _maps: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def last(self) -> Tensor:
        """Output of the last layer, in the graph of the logits."""
        return self.ends[max(self.ends)][1]

    def slopes(self, weights: Float[Tensor, " vocab"]) -> dict[int, Float[Tensor, " d_model"]]:
        """Slope of the weighted sum of logits along the output of each layer's down-projection at the last position.

        Args:
            weights: of the logits.
        """
        (end,) = torch.autograd.grad(self.logits, self.last, weights.to(self.logits), retain_graph=True)
        slopes = {
            layer: torch.autograd.grad(self.ends[layer][0], out, end.to(self.ends[layer][0].device), retain_graph=True)[
                0
            ]
            for layer, out in self.written.items()
        }
        return {layer: slope.reshape(-1, slope.shape[-1]).float().sum(dim=0) for layer, slope in slopes.items()}

    def logits_of(self, layer: int, change: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
        """The change of every logit for a change of the output of a layer's down-projection at the last position, first order.

        Args:
            layer: one that runs.
            change: of the output, such as a column of W_down for one unit of a neuron's activation.
        """
        out = self.written[layer]
        tangent = torch.zeros_like(out)
        tangent.reshape(-1, out.shape[-1])[-1] = change.to(out)
        step = self._along(layer, self.ends[layer][0], out, tangent=tangent)
        return self._along(-1, self.logits, self.last, tangent=step)

    def _along(self, key: int, y: Tensor, x: Tensor, *, tangent: Tensor) -> Tensor:
        """The change of y for a change of x: the derivative of the backward direction by its weights."""
        with torch.enable_grad():
            if key not in self._maps:
                weights = torch.zeros_like(y, requires_grad=True)
                self._maps[key] = weights, torch.autograd.grad(y, x, weights, create_graph=True)[0]
            weights, back = self._maps[key]
            return torch.autograd.grad(back, weights, tangent.to(back), retain_graph=True)[0].detach()


@contextmanager
def direct_path(model: Model, prompt: Prompt) -> Iterator[DirectPath]:
    """A context with the direct path of a model, whose norms are held at their scale on a prompt.

    >>> with direct_path(model, prompts[0]) as path:
    ...     column = path.logits_of(1, model.down_weight(1)[:, 5])
    ...     slope = path.slopes(torch.eye(38)[7])[1]
    >>> column.shape, torch.allclose(column[7], slope @ model.down_weight(1)[:, 5], atol=1e-5)
    (torch.Size([38]), True)

    Args:
        model: the model, loaded here.
        prompt: read twice: once for the norms, once for the graph.
    """
    (batch,) = batches(model, [prompt], batch_size=1, side="left")
    downs = {layer: model.linear(layer, model.site.down) for layer in range(model.n_layers)}
    layers = {layer: model.module.get_submodule(f"{model.layers_path}.{layer}") for layer in range(model.n_layers)}
    written: dict[int, Tensor] = {}
    ends: dict[int, tuple[Tensor, Tensor]] = {}

    def leaf(layer: int, _: Tensor, out: Tensor) -> Tensor:
        written[layer] = out.detach().requires_grad_()
        return written[layer].clone()  # a family may add to it in place

    def cut(layer: int, _: Tensor, out: Any) -> Tensor | None:
        if not isinstance(out, Tensor):  # a layer that returns more than its output stays in the graph
            ends[layer] = out[0], out[0]
            return None
        ends[layer] = out, out.detach().requires_grad_()
        return ends[layer][1].clone()

    norms = FrozenNorms(model)
    given = {**batch.encoding, **model.last_logits()}
    width = int(batch.encoding["input_ids"].shape[1])
    with running(model, rows=1, width=width), model.frozen(), norms.hooks:
        with torch.no_grad():
            model.module(**given)
        with torch.enable_grad(), hooked(downs, after=leaf), hooked(layers, after=cut):
            logits = model.module(**given).logits[0, -1].float()
        yield DirectPath(logits, written, ends)
