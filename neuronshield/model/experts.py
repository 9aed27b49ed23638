"""Mixture-of-experts layers as one gated MLP, so that every neuron of every expert has an index.

A mixture of E experts of d_e neurons gives a token x

    out = sum_e r_e(x) W_down_e a_e(x)        a_e(x) = act(W_gate_e x) * (W_up_e x)

with the routing weight r_e(x) of expert e, which is 0 for all but the few experts that the token is routed to. With

    h = [r_0 a_0 | r_1 a_1 | ...]             [d_mlp], d_mlp = E d_e
    W_down = [W_down_0 | W_down_1 | ...]      [d_model, d_mlp]

this is out = W_down h, the form of a dense MLP. A **neuron** of such a layer is a coordinate of h: neuron i of expert e has the
index e d_e + i, and `divmod(index, d_e)` gives the expert and i back. Its activation contains the routing weight, and the neurons
of experts that a token is not routed to are silent: exactly 0. It owns one row of W_gate_e, one of W_up_e and one column of
W_down_e, 3 d_model numbers, as in a dense MLP. So every score, intervention and update is the same formula as in a dense MLP. An
intervention may also set a silent neuron; the column then acts as if the expert had been chosen, and the routing of the token does
not change in this layer.

A shared expert, which every token passes, comes after the routed ones: its neurons are the last of the layer, and h contains the
factor of its gate where the family has one. Biases of down-projections (GPT-OSS) are added with their routing weights outside h.

transformers keeps the experts of a layer as stacked tensors in one module, without a module whose input is h. Here an experts module
has three projections, `all_gate`, `all_up` and `all_down`. They have no weights of their own; `weight` is gathered from the stacked tensors when
it is read, and written back to them when it is set. Only what is routed is computed, unless a gradient of h is asked for.
`neuronshield.model.mixtures` makes a model of this form at load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from .projection import is_conv1d

__all__ = ["Experts", "Folded", "Projection", "Shared", "matrix", "owners"]


class Shared(NamedTuple):
    """The expert that every token passes: its MLP, and the projection whose sigmoid is its factor, if there is one."""

    mlp: Any
    gate: Any


class Projection(nn.Linear):
    """The gate, up- or down-projection of all experts of a layer, without weights of its own.

    Its `weight`, [out, in], is gathered from the stacked tensors of the experts; setting it writes new stacked tensors.

    Attributes:
        part: "gate", "up" or "down".
    """

    def __init__(self, experts: Experts, part: str, *, d_model: int, d_mlp: int) -> None:
        nn.Module.__init__(self)
        self.part = part
        self.in_features, self.out_features = (d_mlp, d_model) if part == "down" else (d_model, d_mlp)
        self.__dict__["_experts"] = (experts,)  # a tuple, so that it is no submodule
        self.register_parameter("shift", None)

    @property
    def experts(self) -> Any:
        """The experts that it belongs to."""
        return self.__dict__["_experts"][0]

    def owners(self) -> list[tuple[nn.Module, str]]:
        """The modules and names of the parameters that `weight` is gathered from."""
        out = [(self.experts, "down_proj" if self.part == "down" else "gate_up_proj")]
        if self.experts.shared is not None:
            out.append((getattr(self.experts.shared.mlp, f"{self.part}_proj"), "weight"))
        return out

    def view(self, stacked: Tensor) -> Tensor:
        """This part of the stacked tensor, a view: [expert, out, in]."""
        t = stacked.transpose(1, 2) if self.experts.is_transposed else stacked
        if self.part == "down":
            return t
        return self.experts.rows(t, self.part)

    def matrix(self, tensors: Sequence[Tensor]) -> Float[Tensor, "out in"]:
        """Tensors of the shapes of the parameters that `owners` names, as one [out, in]: one row or column a neuron."""
        block = self.view(tensors[0])
        flat = block.permute(1, 0, 2).flatten(1) if self.part == "down" else block.flatten(0, 1)
        return torch.cat([flat, *tensors[1:]], dim=1 if self.part == "down" else 0)

    def acting_weight(self) -> Float[Tensor, "out in"]:
        """The weight that acts, a copy."""
        return self.matrix([getattr(module, name) for module, name in self.owners()])

    def first_rows(self, n: int) -> Float[Tensor, "n in"]:
        """The first rows of a down-projection's weight, without gathering the others.

        Args:
            n: how many.
        """
        stacked, *others = (getattr(module, name)[..., :n, :] for module, name in self.owners())
        if self.experts.is_transposed:
            stacked = self.experts.down_proj[..., :n]
        return self.matrix([stacked, *others])

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in], a copy."""
        return self.acting_weight()

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """[out]; None if there is none. Of a down-projection, what is added to its output whatever the routing is."""
        if self.part == "down":
            return self._parameters["shift"]
        biases = getattr(self.experts, "gate_up_proj_bias", None)
        return None if biases is None else self.experts.rows(biases, self.part).flatten()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._write(value.detach(), requires_grad=value.requires_grad)
        elif name == "bias":
            self.register_parameter("shift", value)
        else:
            super().__setattr__(name, value)

    def _write(self, weight: Tensor, *, requires_grad: bool) -> None:
        """New parameters with this weight in them."""
        n, width = self.experts.n_routed, self.experts.d_expert
        parts = weight.split([n, self.experts.d_mlp - n], dim=1 if self.part == "down" else 0)
        for (module, name), part in zip(self.owners(), parts, strict=False):
            new = getattr(module, name).detach().clone()
            if name == "weight":
                new.copy_(part)
            elif self.part == "down":
                self.view(new).copy_(part.unflatten(1, (-1, width)).transpose(0, 1))
            else:
                self.view(new).copy_(part.unflatten(0, (-1, width)))
            setattr(module, name, nn.Parameter(new, requires_grad=requires_grad))

    def forward(self, x: Tensor, routing: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Of a down-projection, W_down h for h [..., d_mlp]; of the others, W x for the experts that x is routed to, else 0.

        Args:
            x: [..., in].
            routing: [token, expert], 0 where a token is not routed; not for a down-projection.
        """
        out = self._down(x.reshape(-1, x.shape[-1])) if self.part == "down" else self._in(x, routing)
        return out.view(*x.shape[:-1], self.out_features)

    def _in(self, x: Tensor, routing: Tensor | None) -> Tensor:
        experts = self.experts
        if routing is None:
            return functional.linear(x, self.weight, self.bias)
        weight, bias = self.view(experts.gate_up_proj), getattr(experts, "gate_up_proj_bias", None)
        bias = None if bias is None else experts.rows(bias, self.part)

        def part(e: int, rows: Tensor) -> Tensor:
            return functional.linear(x[rows], weight[e], None if bias is None else bias[e])

        out = _scattered(part, routing, width=experts.d_expert, like=x)
        if experts.shared is None:
            return out
        return torch.cat([out, getattr(experts.shared.mlp, f"{self.part}_proj")(x)], dim=1)

    def _down(self, h: Tensor) -> Tensor:
        """W_down h. Experts whose neurons are all 0 at a token are left out, except where a gradient of h is asked for."""
        experts = self.experts
        blocks = h[:, : experts.n_routed].unflatten(1, (experts.n_experts, -1))
        weight = self.view(experts.down_proj)
        wide = torch.promote_types(h.dtype, torch.float32)
        out = torch.zeros(len(h), self.out_features, dtype=wide, device=h.device)
        if torch.is_grad_enabled() and h.requires_grad:
            for e in range(experts.n_experts):
                out = out + functional.linear(blocks[:, e], weight[e]).to(wide)
        else:
            for e, rows in _hits(blocks.ne(0).any(dim=-1)):
                out = out.index_add(0, rows, functional.linear(blocks[rows, e], weight[e]).to(wide))
        if experts.shared is not None:
            out = out + experts.shared.mlp.down_proj(h[:, experts.n_routed :]).to(wide)
        shift = self._parameters["shift"]
        return (out if shift is None else out + shift).to(h.dtype)


class Experts(nn.Module):
    """What is put before a family's own experts class: its forward through `all_gate`, `all_up` and `all_down`.

    Attributes:
        n_experts: routed experts.
        d_expert: neurons of each.
        n_routed: neurons of all of them.
        d_mlp: neurons of the layer, those of a shared expert included.
    """

    n_experts: int
    d_expert: int
    n_routed: int
    d_mlp: int
    is_transposed: bool
    is_concatenated: bool
    all_gate: Any
    all_up: Any
    all_down: Any

    @property
    def shared(self) -> Shared | None:
        """The shared expert, if there is one."""
        return self.__dict__["_shared"][0]  # type: ignore[no-any-return]

    def rows(self, stacked: Tensor, part: str) -> Tensor:
        """The gates or the ups of a tensor that has both on its axis 1, a view."""
        if self.is_concatenated:
            return stacked[:, : self.d_expert] if part == "gate" else stacked[:, self.d_expert :]
        return stacked[:, (0 if part == "gate" else 1) :: 2]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The layer's output, all experts and the shared one together.

        Args:
            hidden_states: [token, d_model].
            top_k_index: the experts of each token, [token, k].
            top_k_weights: their routing weights, [token, k].
        """
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        index, weights = (t.reshape(len(x), -1) for t in (top_k_index, top_k_weights))
        routing = weights.new_zeros(len(x), self.n_experts).scatter_add(1, index, weights)
        out: Tensor = self.all_down(self.neurons(x, routing))
        biases: Any = getattr(self, "down_proj_bias", None)
        if biases is not None:
            out = out + (routing @ biases.to(routing.dtype)).to(out.dtype)
        return out.view_as(hidden_states)

    def neurons(self, x: Tensor, routing: Tensor) -> Float[Tensor, "token d_mlp"]:
        """h of every token.

        Args:
            x: what the layer's experts read, [token, d_model].
            routing: [token, expert], 0 where a token is not routed.
        """
        factor = routing.new_ones(len(x), 1)
        if self.shared is not None and self.shared.gate is not None:
            factor = self.shared.gate(x).sigmoid()
        if all(isinstance(m, Projection) for m in (self.all_gate, self.all_up)):
            h = self._routed(x, routing)
            if self.shared is not None:
                mlp = self.shared.mlp
                h = torch.cat([h, (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * factor).to(x.dtype)], dim=1)
            return h
        gate, up = self.all_gate(x, routing), self.all_up(x, routing)  # an adapter adds to what the projections give
        n = self.n_routed
        h = self._gated(gate[:, :n], up[:, :n]) * routing.repeat_interleave(self.d_expert, dim=1)
        if self.shared is not None:
            h = torch.cat([h, self.shared.mlp.act_fn(gate[:, n:]) * up[:, n:] * factor], dim=1)
        return h.to(x.dtype)

    def _routed(self, x: Tensor, routing: Tensor) -> Tensor:
        """The neurons of the routed experts, each expert on its own tokens."""
        weight: Any = self.gate_up_proj
        biases: Any = getattr(self, "gate_up_proj_bias", None)
        weight = weight.transpose(1, 2) if self.is_transposed else weight

        def part(e: int, rows: Tensor) -> Tensor:
            both = functional.linear(x[rows], weight[e], None if biases is None else biases[e])
            return (self._apply_gate(both) * routing[rows, e, None]).to(x.dtype)  # type: ignore[operator]

        return _scattered(part, routing, width=self.d_expert, like=x)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The family's own act(gate) * up."""
        both = torch.cat([gate, up], dim=-1) if self.is_concatenated else torch.stack([gate, up], dim=-1).flatten(-2)
        return self._apply_gate(both)  # type: ignore[operator,no-any-return]


class Folded(nn.Module):
    """What is put before the class of a shared expert, whose neurons are computed with the routed ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros in place of its output.

        Args:
            x: [..., d_model].
        """
        return torch.zeros_like(x)


def owners(linear: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules and names of the parameters that hold the weight of a projection: one, but for experts.

    >>> [name for _, name in owners(model.linear(0, "mlp.up_proj"))], [name for _, name in owners(moe.linear(0, moe.site.up))]
    (['weight'], ['gate_up_proj'])

    Args:
        linear: the projection. The gate and the up-projection of experts share a parameter.
    """
    return linear.owners() if isinstance(linear, Projection) else [(linear, "weight")]


def matrix(linear: nn.Module, tensors: Sequence[Tensor]) -> Float[Tensor, "out in"]:
    """Tensors of the shapes of the parameters that `owners` names (gradients, say), as the projection's [out, in].

    >>> linear = moe.linear(0, moe.site.up)
    >>> matrix(linear, [getattr(module, name) for module, name in owners(linear)]).shape
    torch.Size([28, 20])

    Args:
        linear: the projection.
        tensors: one for each parameter.
    """
    if isinstance(linear, Projection):
        return linear.matrix(tensors)
    return tensors[0].T if is_conv1d(linear) else tensors[0]


def _hits(hit: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each expert that has a token, with its tokens; `hit` is [token, expert]."""
    experts, tokens = hit.T.nonzero(as_tuple=True)
    counts = experts.bincount(minlength=hit.shape[1]).tolist()
    for e, rows in enumerate(tokens.split(counts)):
        if len(rows):
            yield e, rows


def _scattered(part: Any, routing: Tensor, *, width: int, like: Tensor) -> Float[Tensor, "token d_mlp"]:
    """`part(expert, tokens)`, [n, width], of all routed tokens at their places among zeros."""
    tokens, n = routing.shape
    hits = list(_hits(routing.detach().ne(0)))
    out = like.new_zeros(tokens * n, width)
    if hits:
        places = torch.cat([rows * n + e for e, rows in hits])
        out = out.index_copy(0, places, torch.cat([part(e, rows) for e, rows in hits]))
    return out.view(tokens, n * width)
