"""The shape annotations of the package are enforced while testing."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from neuronshield.core.intervals import ratio_of_means
from neuronshield.core.statistics import discoveries


def test_an_array_of_another_shape_than_annotated_is_an_error():
    assert discoveries(np.array([0.01, 0.5])).shape == (2,)
    with pytest.raises(TypeCheckError):
        discoveries(np.array([[0.01, 0.5]]))


def test_axes_of_one_name_must_agree():
    with pytest.raises(TypeCheckError):
        ratio_of_means(np.ones(3), np.ones(5), ["a", "b", "c"])
