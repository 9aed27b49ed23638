"""Equality of results that hold arrays, where `==` of the fields has no single truth value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["same"]


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal field by field: what `==` means for results that hold arrays.

    Arrays and tensors are equal if their shapes and values are, NaN is equal to NaN, and a list to a tuple of the same items.

    >>> same({"x": np.array([1.0, np.nan])}, {"x": np.array([1.0, np.nan])}), same([1, 2], (1, 3))
    (True, False)

    Args:
        a: a dataclass, mapping, sequence, array or plain value.
        b: the other one.
    """
    a, b = (v.detach().float().cpu().numpy() if hasattr(v, "detach") else v for v in (a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        both = np.asarray(a), np.asarray(b)
        return bool(np.array_equal(*both, equal_nan=all(array.dtype.kind == "f" for array in both)))
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return type(a) is type(b) and all(
            _same_part(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)
        )
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same_part(a[key], b[key]) for key in a)
    if all(isinstance(v, Sequence) and not isinstance(v, (str, bytes)) for v in (a, b)):
        return len(a) == len(b) and all(_same_part(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and np.isnan(a) and np.isnan(b))


def _same_part(a: Any, b: Any) -> bool:
    """`same`, but a dataclass that says itself what is equal is asked."""
    params = getattr(type(a), "__dataclass_params__", None)
    return bool(a == b) if params and not params.eq and "__eq__" in vars(type(a)) else same(a, b)
