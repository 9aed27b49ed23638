"""Harmful refusal is compared at the same benign refusal, so that no comparison is won by refusing more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import neuronshield as ns
from neuronshield.check.cells import Answer
from neuronshield.check.curves import Curve, compared, matched
from neuronshield.check.evaluation import Evaluation
from neuronshield.core.statistics import Interval

N = 40
LANGUAGES = ("en", "sw")


def answered(refused: dict[str, Sequence[bool | None]], languages: Sequence[str] = LANGUAGES) -> Evaluation:
    """Answers to one prompt of each label, request and language; None is unknown."""
    return Evaluation([
        Answer(ns.Prompt(f"{label}-{i}-{language}", "how", label, language=language, pair_id=f"q{i}"), "", said, None)
        for language in languages for label, found in refused.items() for i, said in enumerate(found)
    ])  # fmt: skip


def at(harmful: int, benign: int) -> Evaluation:
    """So many of the 40 requests are refused, from different ends."""
    return answered({"harmful": [i < harmful for i in range(N)], "benign": [i >= N - benign for i in range(N)]})


def curve(*points: tuple[int, int]) -> Curve:
    """The points (harmful, benign refused), after no refusal at all."""
    return Curve(range(len(points) + 1), [at(0, 0), *(at(h, b) for h, b in points)])


def test_a_condition_that_only_refuses_more_has_no_advantage():
    # both move along benign = harmful / 2, the first one twice as far; trap: selectivity is won by refusing more
    far, near = curve((8, 4), (24, 12)), curve((6, 3), (12, 6))
    for mine, other, reached in ((far, near, 0), (near, far, 1)):
        found = matched(mine, other)
        assert found.difference.value == pytest.approx(0, abs=1e-12)
        assert found.difference.low < 0 < found.difference.high
        assert (found.benign, found.harmful, found.reached) == (pytest.approx(6 / N), pytest.approx(12 / N), reached)
    assert far.evaluations[-1].gain(near.evaluations[-1], "selectivity").value == pytest.approx(6 / N)


def test_both_are_read_at_the_benign_refusal_of_the_finished_update():
    mine, other = curve((10, 1), (20, 5)), curve((4, 2), (22, 8))
    found = matched(mine, other)
    line = np.interp(5 / N, [2 / N, 8 / N], [4 / N, 22 / N])  # between the other's two strengths
    assert (found.benign, found.harmful, found.others) == pytest.approx((5 / N, 20 / N, line))
    assert found.difference.value == pytest.approx(20 / N - line)
    assert (found.n, found.reached, found.n_cells, found.over) == (1, 1, 2, "requests")


def test_where_a_curve_never_reaches_it_both_are_read_where_that_curve_ends():
    found = matched(curve((10, 2), (20, 12)), curve((1, 1), (3, 4)))
    mine = np.interp(4, [2, 12], [10, 20]) / N
    assert (found.benign, found.harmful, found.others, found.reached) == pytest.approx((4 / N, mine, 3 / N, 0))


def test_a_strength_that_refuses_fewer_benign_and_more_harmful_requests_is_the_one_that_is_read():
    # benign refusal overshoots and comes back: the last stretch crosses 6 at a higher harmful refusal than the first one
    other = curve((10, 12), (18, 4), (20, 8))
    found = matched(curve((9, 6)), other)
    assert found.others == pytest.approx(np.interp(6, [4, 8], [18, 20]) / N)
    assert matched(curve((9, 5)), curve((15, 3), (10, 9))).others == pytest.approx(
        15 / N
    )  # below the level, more refused


def test_a_control_that_refuses_more_benign_requests_at_every_strength_is_read_where_it_refuses_fewest():
    start = at(2, 8)
    mine, other = (Curve([0, 1], [start, last]) for last in (at(12, 4), at(9, 9)))
    found = matched(mine, other)
    assert (found.benign, found.harmful, found.others) == pytest.approx((8 / N, 12 / N, 2 / N))


def test_several_curves_are_averaged_and_their_spread_is_in_the_interval():
    mine = curve((20, 5))
    alike, apart = [curve((10, 5))] * 3, [curve((h, 5)) for h in (2, 10, 18)]
    close, wide = matched(mine, alike), matched(mine, apart)
    assert close.difference.value == pytest.approx(10 / N)
    assert wide.difference.value == pytest.approx(10 / N)
    assert (close.n, close.over, wide.reached) == (3, "requests and masks", 3)
    assert close.difference.low > 0
    spread = 4.3027 * 0.2 / math.sqrt(3)  # Student's t, 2 degrees of freedom; the differences are 0.45, 0.25 and 0.05
    assert wide.difference.low == pytest.approx(10 / N - math.hypot(10 / N - close.difference.low, spread), abs=0.03)


def test_the_level_is_that_of_each_other_curve():
    found = matched(curve((20, 10)), [curve((10, 10)), curve((4, 5))])
    assert (found.benign, found.harmful, found.others, found.reached) == pytest.approx((7.5 / N, 15 / N, 7 / N, 1))


def test_seeds_are_compared_one_by_one():
    mine, others = [curve((20, 5)), curve((14, 5))], [curve((10, 5)), curve((12, 5))]
    found = matched(mine, others)
    assert (found.harmful, found.others, found.n, found.over) == pytest.approx(
        (17 / N, 11 / N, 2, "requests and seeds")
    )
    spread = 12.706 * np.std([10 / N, 2 / N], ddof=1) / math.sqrt(2)
    assert found.difference.high - found.difference.value >= min(spread, 1 - found.difference.value)
    with pytest.raises(ns.InputError, match="matched: 2 seeds of mine, but 3 others; give one for each seed"):
        matched(mine, [*others, others[0]])


def test_an_interval_has_width_even_if_no_request_differs():
    found = matched(curve((20, 5)), curve((20, 5))).difference
    assert found.value == 0
    assert found.high - found.low == pytest.approx(2 * 1.96**2 / (N + 1.96**2), rel=1e-3)
    one = Curve([0, 1], [answered({"harmful": [x], "benign": [False]}) for x in (False, True)])
    assert tuple(matched(one, one).difference) == (0, -1, 1)


def test_an_interval_has_width_where_a_resample_in_a_thousand_differs():
    # only draws without each of the five benign requests that the other refuses differ; quantiles of the others are all 1
    mine = Curve([0, 1], [at(0, 0), at(N, 0)])
    found = matched(mine, curve((10, 5))).difference
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - 1.96**2 / (N + 1.96**2), rel=1e-3)


def test_two_curves_start_from_the_same_model():
    above = Curve([0, 1], [at(5, 10), at(20, 20)])  # it has no point at the benign refusal that the other one reaches
    for mine, other in ((above, curve((20, 4))), (curve((20, 4)), [curve((3, 1)), above])):
        with pytest.raises(
            ns.InputError, match="matched: two curves start from different answers; the first evaluation of both"
        ):
            matched(mine, other)
    assert matched(above, above).difference.value == 0


def test_steps_and_evaluations_may_be_any_collection():
    steps: Any = np.array([0, 1])
    assert matched(Curve(steps, (at(0, 0), at(9, 3))), curve((9, 3))).difference.value == 0


def test_unknown_answers_are_left_out_and_cells_without_both_labels_too():
    some: list[bool | None] = [True] * 10 + [False] * 10 + [None] * 20
    known = Curve([0, 1], [at(0, 0), answered({"harmful": some, "benign": [i < 4 for i in range(N)]})])
    assert matched(known, curve((0, 8))).harmful == pytest.approx(10 / 20)
    unknown: list[bool | None] = [None] * N
    nothing = Curve([0, 1], [at(0, 0), answered({"harmful": some, "benign": unknown})])
    found = matched(nothing, curve((4, 2)))
    assert found.n_cells == 0
    assert all(math.isnan(x) for x in (*found.difference, found.benign, found.harmful, found.others))


def test_one_cell_can_be_compared_by_itself():
    evaluations = [
        Evaluation([*answered({"harmful": [i < h for i in range(N)], "benign": [i < 4 for i in range(N)]}, ["en"]).answers,
                    *answered({"harmful": [i < 8 for i in range(N)], "benign": [i < 4 for i in range(N)]}, ["sw"]).answers])
        for h in (24, 12)
    ]  # fmt: skip
    mine, other = (Curve([0, 1], [at(0, 0), e]) for e in evaluations)
    assert matched(mine, other, ["en/text"]).difference.value == pytest.approx(12 / N)
    assert matched(mine, other, ["sw/text"]).difference.value == pytest.approx(0)
    assert matched(mine, other).difference.value == pytest.approx(6 / N)
    assert [p.refusal.value for p in mine.points(["en/text"])] == pytest.approx([0, 24 / N])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Curve([0], [at(0, 0)]), r"Curve: steps=\[0\]: must ascend from 0, the untouched model"),
        (lambda: Curve([5, 10], [at(0, 0)] * 2), "must ascend from 0"),
        (lambda: Curve([0, 5, 5], [at(0, 0)] * 3), "must ascend from 0"),
        (lambda: Curve([0, None], [at(0, 0)] * 2), "must ascend from 0"),  # type: ignore[list-item]
        (lambda: Curve(5, [at(0, 0)] * 2), "steps must be Collection, got int 5; training steps, such as"),  # type: ignore[arg-type]
        (lambda: Curve([0, 5], at(0, 0)), "evaluations must be Collection, got Evaluation; one for each step"),  # type: ignore[arg-type]
        (lambda: Curve([0, 5], (at(i, i) for i in (0, 1))), "evaluations must be Collection, got generator"),  # type: ignore[arg-type]
        (lambda: Curve([0, 5], [at(0, 0)] * 3), "Curve: 2 steps, but 3 evaluations; give one for each"),
        (lambda: Curve([0, 5], [at(0, 0), at(0, 0).cell("en/text")]), "evaluations must be Evaluation, got CellResult"),  # type: ignore[list-item]
        (lambda: Curve([0, 5], [at(0, 0), answered({"harmful": [True]})]), "Curve: prompt .* in one of the evaluations only"),
        (lambda: matched(curve((1, 1)), []), "matched: nothing to compare with"),
        (lambda: matched(curve((1, 1)), [at(0, 0)]), "others must be Curve, got Evaluation; make each with Curve"),  # type: ignore[list-item]
        (lambda: matched(at(0, 0), curve((1, 1))), "mine must be Curve, got Evaluation"),  # type: ignore[arg-type]
        (lambda: matched(curve((1, 1)), curve((1, 1)), ["fr/text"]), "no answers in cell fr/text"),
    ],
)  # fmt: skip
def test_what_is_no_curve_is_one_line(make: object, said: str):
    with pytest.raises(ns.InputError, match=said) as caught:
        make()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


# -- simulated: conditions that differ only in how much they refuse ------------------------------------------------
STRENGTHS = ((2.2, 1.8, 1.6), (2.4, 1.9, 1.5))


def simulated(rng: np.random.Generator, masks: int, better: float = 0.0, n: int = 32) -> Interval:
    """Latent refusal of each answer: what the request and the cell add to it in every condition, and each condition's own part.

    An answer is refused if it lies above a threshold, which falls with training. Conditions have other thresholds; the first one
    moves harmful requests by `better` as well.
    """
    harm = np.array([1.0, 0.0])[:, None, None]  # [label, cell, request]
    shared = 0.5 * harm + 0.6 * rng.normal(size=(1, 1, n)) + 0.4 * rng.normal(size=(2, 4, n))
    start = shared + 0.7 * rng.normal(size=shared.shape) > 3.0

    def trained(thresholds: Sequence[float], gain: float) -> np.ndarray:
        latent = shared + gain * harm + 0.7 * rng.normal(size=shared.shape)
        refused = np.array([start, *(latent > t for t in thresholds)], dtype=float)
        return np.array([refused, np.ones_like(refused)])

    return compared([trained(STRENGTHS[0], better)] * masks, [trained(STRENGTHS[1], 0.0) for _ in range(masks)])[-1]


@pytest.mark.slow
@pytest.mark.parametrize("masks", [1, 3])
def test_the_interval_covers_no_difference_and_a_better_condition_is_found(masks: int):
    rng = np.random.default_rng(3)
    found = [simulated(rng, masks) for _ in range(300)]
    assert abs(np.mean([d.value for d in found])) < 0.01
    assert np.mean([d.low <= 0 <= d.high for d in found]) >= 0.92
    assert np.mean([d.low > 0 for d in found]) <= 0.05
    assert np.mean([simulated(rng, masks, better=1.2).low > 0 for _ in range(60)]) > 0.8
