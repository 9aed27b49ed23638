"""Sizes as numbers: what is no whole number is never rounded to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from neuronshield import InputError
from neuronshield.find.set_sizes import named_size, size_of


@pytest.mark.parametrize("value", [5, np.int32(5), np.array(5), torch.tensor(5)])
def test_whole_numbers_of_every_library_are_taken(value: Any):
    got = size_of("top", "k", value)
    assert (got, type(got)) == (5, int)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.float16(0.25)])
def test_parts_of_every_library_are_taken(value: Any):
    got = size_of("top", "fraction", value)
    assert (got, type(got)) == (0.25, float)
    assert size_of("top", "param_fraction", 1) == 1.0


@pytest.mark.parametrize(
    "value", [5.0, 5.7, np.array(5.7), torch.tensor(5.7), np.array([1, 2]), True, np.bool_(True), "5", [5], float("nan"), None]
)  # fmt: skip
@pytest.mark.parametrize("name", ["k", "per_layer"])
def test_a_number_of_neurons_that_is_not_whole_is_refused(name: str, value: Any):
    with pytest.raises(InputError, match=rf"top\({name}=.*: give a whole number of neurons"):
        size_of("top", name, value)


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), "0.1", 0.1 + 0j, float("nan"), float("inf"), 10**400, [0.1], None]
)
def test_a_part_that_is_no_number_is_refused(value: Any):
    with pytest.raises(InputError, match=r"top\(fraction=.*: give a number, such as 0.01"):
        size_of("top", "fraction", value)


def test_exactly_one_size_is_given():
    assert named_size("top()", {"k": None, "per_layer": 3}) == ("per_layer", 3)
    for sizes in ({"k": None, "per_layer": None}, {"k": 1, "per_layer": 3}):
        with pytest.raises(InputError, match=r"top\(\): give exactly one of k, per_layer \(got [02]\)"):
            named_size("top()", sizes)
