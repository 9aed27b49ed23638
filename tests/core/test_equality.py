"""Results that hold arrays are equal if every field is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from neuronshield.core.equality import same
from neuronshield.core.statistics import Interval


@dataclass(frozen=True)
class Inner:
    name: str
    effect: Interval
    n: int = 0


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (Inner("x", Interval(0.5, 0.25, float("nan")), 3), True),
        (Inner("x", Interval(0.5, 0.25, 0.0), 3), False),
        (Inner("x", Interval(0.5, 0.25, float("nan")), 4), False),
        ("x", False),
    ],
)
def test_results_are_the_same_if_every_field_is(other: object, equal: bool):
    assert same(Inner("x", Interval(0.5, 0.25, float("nan")), 3), other) is equal


def test_arrays_are_the_same_by_shape_and_value():
    array = np.array([[1.0, np.nan]])
    assert same({"a": [array]}, {"a": (array.copy(),)})
    assert same(torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]))
    assert not same(array, array[0])
    assert not same({"a": array}, {"b": array})
    assert not same(array, None)
    assert same(np.array(["a"]), np.array(["a"]))
