"""Reading weights: the shape of a projection, however its family stores it."""

from __future__ import annotations

from torch import nn


def is_conv1d(linear: nn.Module) -> bool:
    return type(linear).__name__ == "Conv1D"


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a projection: (d_model, d_mlp) of a down-projection."""
    if hasattr(linear, "in_features"):  # the weight itself may be packed
        return linear.out_features, linear.in_features  # type: ignore[return-value]
    rows, columns = linear.weight.shape  # type: ignore[union-attr,misc]
    return (columns, rows) if is_conv1d(linear) else (rows, columns)
