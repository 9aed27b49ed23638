"""Sizes of a set, as a user names them: k=64, per_layer=8, fraction=0.01 or param_fraction=3e-4."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.errors import InputError

__all__ = ["named_size", "size_of"]


def named_size(call: str, sizes: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and value of the one size that is given.

    >>> named_size("top()", {"k": 64, "per_layer": None})
    ('k', 64)

    Args:
        call: the function, for the message.
        sizes: by name; None for those that are not given.

    Raises:
        InputError: none or several.
    """
    given = {name: size for name, size in sizes.items() if size is not None}
    if len(given) != 1:
        raise InputError(f"{call}: give exactly one of {', '.join(sizes)} (got {len(given)})")
    ((name, value),) = given.items()
    return name, value


def size_of(call: str, name: str, value: Any) -> int | float:
    """A size as Python's own number: whole for `k` and `per_layer`, else a part.

    >>> size_of("top", "k", np.int64(64)), size_of("top", "fraction", np.float32(0.5))
    (64, 0.5)

    Args:
        call: the function, for the message.
        name: one of the sizes of `Scores.top`.
        value: what was given.

    Raises:
        InputError: no number, or one that is not whole where neurons are counted.
    """
    whole = name in ("k", "per_layer")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        if whole:
            return operator.index(value)
        if isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value):
            return float(value)
        raise TypeError
    except (TypeError, OverflowError):
        wanted = "a whole number of neurons" if whole else "a number, such as 0.01"
        raise InputError(f"{call}({name}={value!r:.40}): give {wanted}") from None
