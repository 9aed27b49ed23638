"""What is said of a protocol, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from neuronshield.core.statistics import Interval
from neuronshield.protocols.tables import Side
from neuronshield.protocols.verdicts import NONE, ONE_WAY, SEPARATE, SHARED, TOO_FEW, Fall, acts, verdict_of

BIG, SMALL, NOTHING = Interval(2.0, 1.8, 2.2), Interval(0.1, 0.05, 0.15), Interval(0.0, -0.1, 0.1)
WIDE = Interval(0.5, -1.0, 2.0)


def falls(source: str, own: Interval, cross: Interval, *, verdicts: tuple[str, str]) -> list[Fall]:
    other = "image" if source == "text" else "text"
    return [Fall(source, source, own, verdicts[0]), Fall(source, other, cross, verdicts[1])]


def side(difference: Interval) -> Side:
    return Side("image", ("en/image",), 0, 20, 20, 20, 20, 20, 20, difference, Interval(0.5, 0.3, 0.7))


@pytest.mark.parametrize(
    ("text", "image", "word"),
    [
        ((BIG, BIG, "passed"), (BIG, BIG, "passed"), SHARED),
        ((BIG, NOTHING, "failed"), (BIG, NOTHING, "failed"), SEPARATE),
        ((BIG, BIG, "passed"), (BIG, NOTHING, "failed"), ONE_WAY),
        ((BIG, SMALL, "passed"), (BIG, SMALL, "passed"), SEPARATE),  # acts there, with a twentieth of its fall
        ((BIG, WIDE, "failed"), (BIG, WIDE, "failed"), TOO_FEW),  # nothing is shown either way
        ((BIG, BIG, "passed"), (BIG, WIDE, "failed"), TOO_FEW),
    ],
)
def test_the_word_follows_from_what_acts_where(
    text: tuple[Interval, Interval, str], image: tuple[Interval, Interval, str], word: str
):
    found = [
        f
        for name, (own, cross, told) in (("text", text), ("image", image))
        for f in falls(name, own, cross, verdicts=("passed", told))
    ]
    assert verdict_of(found, [], missing={})[0] == word


def test_no_set_that_acts_in_its_own_modality_is_none_found():
    found = falls("text", NOTHING, NOTHING, verdicts=("failed", "failed"))
    word, reason = verdict_of(found, [], missing={"image": "no candidate"})
    assert word == NONE
    assert "image: no candidate" in reason


def test_too_few_labelled_answers_are_no_finding():
    word, reason = verdict_of([], [], missing={"text": "too few: 3 harmful prompts refused", "image": "no candidate"})
    assert word == TOO_FEW
    assert "3 harmful prompts refused" in reason


def test_a_set_of_one_modality_alone_can_transfer():
    found = falls("text", BIG, BIG, verdicts=("passed", "passed"))
    assert verdict_of(found, [], missing={"image": "too few: 2 harmful prompts refused"})[0] == SHARED


def test_separate_says_where_the_other_modality_is_not_refused():
    found = falls("text", BIG, NOTHING, verdicts=("passed", "failed"))
    word, reason = verdict_of(found, [side(NOTHING)], missing={})
    assert word == SEPARATE
    assert "the model does not refuse image" in reason
    assert "does not refuse" not in verdict_of(found, [side(BIG)], missing={})[1]


def test_an_effect_passes_above_zero_and_above_every_kind_of_control():
    enough: dict[str, Any] = {"n_requests": 20, "draws": 19, "difference": 4.0}
    assert acts(BIG, [0.05, 0.05], **enough) == "passed"
    assert acts(BIG, [0.05, 0.1], **enough) == "failed"
    assert acts(NOTHING, [0.05, 0.05], **enough) == "failed"


def test_four_requests_or_eighteen_draws_are_too_few():
    assert acts(BIG, [0.05], n_requests=4, draws=99, difference=4.0) == TOO_FEW
    assert acts(BIG, [0.05], n_requests=20, draws=18, difference=4.0) == TOO_FEW


def test_a_fall_of_less_than_a_tenth_of_the_clean_difference_is_none():
    assert acts(SMALL, [0.05], n_requests=20, draws=19, difference=0.9) == "passed"
    assert acts(SMALL, [0.05], n_requests=20, draws=19, difference=1.1) == "failed"


def test_no_refusal_rests_on_the_set_of_a_modality_that_is_not_refused():
    """Its set may move the margin, and that of text as well."""
    found = falls("image", BIG, BIG, verdicts=("passed", "passed"))
    assert verdict_of(found, [], missing={})[0] == SHARED
    word, reason = verdict_of(found, [side(NOTHING)], missing={})
    assert word == NONE
    assert "the model does not refuse image" in reason
