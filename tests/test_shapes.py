"""The shape annotations of the package are enforced while testing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import shapes
from jaxtyping import Float

from neuronshield.core.intervals import ratio_of_means
from neuronshield.core.statistics import discoveries
from neuronshield.find.comparisons import Shared


def test_an_array_of_another_shape_than_annotated_is_an_error():
    assert discoveries(np.array([0.01, 0.5])).shape == (2,)
    with pytest.raises(TypeError):
        discoveries(np.array([[0.01, 0.5]]))


def test_axes_of_one_name_must_agree():
    with pytest.raises(TypeError):
        ratio_of_means(np.ones(3), np.ones(5), ["a", "b", "c"])


def test_fields_of_a_result_must_agree():
    assert Shared(np.ones((9, 2, 2)), np.ones((9, 2, 2))).excess.shape == (9, 2, 2)
    with pytest.raises(TypeError):
        Shared(np.ones((9, 2, 2)), np.ones((9, 3, 3)))


@shapes.check
@dataclass
class One:
    x: Float[np.ndarray, " n"]


@shapes.check
@dataclass
class Other:
    x: Float[np.ndarray, " n"]


@pytest.mark.parametrize("held", [One, Other])
def test_each_of_two_classes_with_the_same_fields_is_checked(held: Any):
    with pytest.raises(TypeError):
        held(np.ones((2, 2)))


def test_what_is_returned_is_checked():
    @shapes.check
    def halved(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return x[::2]

    assert halved(np.ones(1)).shape == (1,)
    with pytest.raises(TypeError):
        halved(np.ones(4))


def test_arguments_of_a_generator_are_checked_when_it_is_called():
    @shapes.check
    def rows(x: Float[np.ndarray, "row column"]) -> Iterator[Float[np.ndarray, " column"]]:
        yield from x

    assert [row.tolist() for row in rows(np.ones((2, 1)))] == [[1.0], [1.0]]
    with pytest.raises(TypeError):
        rows(np.ones(2))
