"""Rows of a proof."""

from __future__ import annotations

import numpy as np

from neuronshield.core.statistics import Interval
from neuronshield.prove.tables import Claim, SizePoint, Spread


def test_a_spread_is_mean_smallest_and_largest():
    assert Spread.of(np.array([3.0, -1.0, 4.0])) == (2.0, -1.0, 4.0)
    assert Spread.of(np.array([])) is None


def test_the_strongest_control_is_the_largest_of_all_kinds():
    claim = Claim(
        "x", Interval(1, 0, 2), "failed", {"random": [0.1, 0.3], "matched": [0.2], "general": []}, {"a": 0.1, "b": 0.4}
    )
    assert claim.strongest_control == ("random", 0.3)
    assert claim.worst_p == 0.4
    assert Claim.untested("x").strongest_control is None
    assert Claim.untested("x").worst_p is None


def test_a_row_prints_its_numbers_rounded():
    assert repr(SizePoint(4, Interval(0.12345, 0.1, 0.2), None)) == "SizePoint(size=4, effect=0.12 [0.10, 0.20])"
