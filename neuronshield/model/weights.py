"""Reading the MLP weights of a model: counts, the columns that neurons write, their norms, a fingerprint.

Neuron i of a layer owns row i of W_up (and of W_gate, where there is one) and column i of W_down. Families store a projection
in one of two ways: `Linear` as [out, in], GPT-2's `Conv1D` as [in, out]. Packed weights (bitsandbytes) are unpacked to be
read. Everything here is read from the weights that act in the forward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .families import Site

__all__ = [
    "count_params",
    "down_norms",
    "down_weight",
    "dtype_name",
    "fingerprint",
    "is_conv1d",
    "out_in",
    "packing",
    "params_per_neuron",
]

SAMPLED_ROWS = 4  # rows of each W_down that the fingerprint reads
PACKED = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}


class Addressed(Protocol):
    """What is asked of a model here (`Model` is one)."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def site(self) -> Site: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    def linear(self, layer: int, name: str) -> nn.Module: ...


# -- one projection ---------------------------------------------------------------------------------------
def is_conv1d(linear: nn.Module) -> bool:
    """Whether a projection stores its weight transposed, [in, out], as GPT-2 does.

    >>> is_conv1d(torch.nn.Linear(3, 5))
    False

    Args:
        linear: the projection.
    """
    return type(linear).__name__ == "Conv1D"


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a projection: (d_model, d_mlp) of a down-projection.

    >>> out_in(torch.nn.Linear(3, 5))
    (5, 3)

    Args:
        linear: the projection, packed or not.
    """
    if hasattr(linear, "in_features"):  # the weight itself may be packed
        return linear.out_features, linear.in_features  # type: ignore[return-value]
    rows, columns = linear.weight.shape  # type: ignore[union-attr,misc]
    return (columns, rows) if is_conv1d(linear) else (rows, columns)


# -- one model --------------------------------------------------------------------------------------------
def packing(model: Addressed) -> str | None:
    """ "nf4" or "int8" if the MLP weights are packed; None if each is a number of its own.

    >>> packing(model) is None
    True

    Args:
        model: the model.
    """
    return PACKED.get(type(model.linear(0, model.site.down)).__name__)


def dtype_name(model: Addressed) -> str:
    """Name of the weights' dtype: a torch dtype's, "nf4" or "int8".

    >>> dtype_name(model)
    'float32'

    Args:
        model: the model.
    """
    return packing(model) or str(next(model.module.parameters()).dtype).removeprefix("torch.")


def count_params(model: Addressed) -> int:
    """Number of all parameters: tied ones once, packed ones as many as they unpack to.

    >>> count_params(model) == sum(p.numel() for p in model.module.parameters())
    True

    Args:
        model: the model.
    """
    count = getattr(model.module, "num_parameters", None) if packing(model) else None
    return int(count()) if count is not None else sum(p.numel() for p in model.module.parameters())


def params_per_neuron(model: Addressed) -> int:
    """Weights that one neuron owns: its gate and up rows (and their biases) and its down column.

    >>> params_per_neuron(model) == 3 * model.d_model           # gated, no biases
    True

    Args:
        model: the model.
    """
    total = model.d_model
    for name in (model.site.up, model.site.gate):
        if name is not None:
            total += model.d_model + (getattr(model.linear(0, name), "bias", None) is not None)
    return total


def down_weight(model: Addressed, layer: int) -> Float[Tensor, "d_model d_mlp"]:
    """W_down of a layer, one column a neuron, whichever way the family stores it.

    >>> down_weight(model, 1).shape
    torch.Size([20, 29])

    Args:
        model: the model.
        layer: the layer, from 0.
    """
    linear: Any = model.linear(layer, model.site.down)
    if packing(model) is not None:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(linear.weight, getattr(linear, "state", None))  # type: ignore[no-any-return]
    weight: Tensor = linear.weight
    return weight.T if is_conv1d(linear) else weight


def down_norms(model: Addressed, order: int = 2) -> Float[Tensor, "n_layers d_mlp"]:
    """c_i = ||W_down[:, i]|| of every neuron, float64 on the CPU.

    >>> down_norms(model).shape
    torch.Size([3, 29])

    Args:
        model: the model.
        order: 2 or 1, the order of the norm.
    """
    norms = [down_weight(model, layer).detach().double().norm(order, dim=0).cpu() for layer in range(model.n_layers)]
    return torch.stack(norms)


def fingerprint(model: Addressed, samples: Sequence[Tensor] | None = None) -> str:
    """Short hash of the shape and of a sample of the MLP weights: tells two checkpoints apart.

    >>> len(fingerprint(model))
    16

    Args:
        model: the model.
        samples: the first `SAMPLED_ROWS` rows of each W_down, for weights that are not here; default reads them.
    """
    digest = hashlib.sha256(f"{model.n_layers},{model.d_mlp},{model.d_model},{count_params(model)}".encode())
    for layer in range(model.n_layers):
        sample = down_weight(model, layer)[:SAMPLED_ROWS] if samples is None else samples[layer]
        digest.update(sample.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
