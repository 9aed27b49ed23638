"""Whether a set is shared by cells, whether training transferred, and whether the set carries the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from planted_results import proof, results

from neuronshield.core.statistics import Interval
from neuronshield.prove.tables import Activity, CrossCellEffect, Experiments, Spread
from neuronshield.run.sections import Sections, sections_of
from neuronshield.run.transfer import transfer, transfer_section

QUIET = Spread(0.0, -0.02, 0.02)


def crossing(
    source: str, target: str, value: float, *, width: float = 0.05, activity: float = 0.8, spread: float = 0.05
) -> CrossCellEffect:
    return CrossCellEffect(
        source, target, n=20, effect=Interval(value, value - width, value + width), random=QUIET,
        activity=Interval(activity, activity - spread, activity + spread),
    )  # fmt: skip


def told(
    rows: Sequence[CrossCellEffect] = (), *, activity: Interval | None = None, gain: Interval | None = None
) -> dict[str, str]:
    answered = (
        ()
        if activity is None
        else (Activity("harmful", "answered", n=40, activity=activity, effect=activity, random=None),)
    )
    found: Sections = sections_of(results())
    assert found.check is not None
    check = found.check if gain is None else replace(found.check, gains_in_selectivity={"over no update": gain})
    experiments = Experiments(cross_cell=tuple(rows), recognition=answered)
    shown = replace(found, prove=replace(proof([]), experiments=experiments), check=check if gain else None)
    return {a.question: a.word for a in transfer(shown)}


def test_a_set_that_acts_in_most_other_languages_and_in_no_other_modality_is_shared_by_languages_only():
    rows = [
        crossing("en/text", "en/text", 0.8),
        crossing("en/text", "sw/text", 0.5),
        crossing("en/text", "th/text", 0.3),
    ]
    rows += [
        crossing("en/text", "ar/text", 0.02),
        crossing("en/text", "en/image", 0.01),
        crossing("en/text", "sw/image", 0.9),
    ]
    assert told(rows) == {"shared by languages": "shared", "shared by modalities": "separate"}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (crossing("en/text", "en/image", 0.3), "shared"),
        (crossing("en/text", "en/image", 0.08), "separate"),  # below a tenth of the clean logit difference
        (crossing("en/text", "en/image", 0.3, width=0.4), "too few requests to tell"),  # may be nothing, may be much
        (
            replace(crossing("en/text", "en/image", 0.3), random=Spread(0.1, 0.0, 0.31)),
            "separate",
        ),  # a random set does as much
        (replace(crossing("en/text", "en/image", 0.3), random=None), "shared"),
        (
            crossing("en/text", "en/image", 0.8, activity=0.0),
            "separate",
        ),  # it acts where it is written, and never responds
        (crossing("en/text", "en/image", 0.8, activity=0.08), "separate"),
        (crossing("en/text", "en/image", 0.8, activity=0.12), "separate"),  # a tenth, but not by the whole interval
        (crossing("en/text", "en/image", 0.8, activity=0.2), "shared"),
        (crossing("en/text", "en/image", 0.8, activity=0.5, spread=0.6), "too few requests to tell"),
    ],
)
def test_an_effect_in_another_cell_is_above_zero_a_tenth_and_beyond_random_sets(row: CrossCellEffect, word: str):
    assert told([crossing("en/text", "en/text", 0.8), row]) == {"shared by modalities": word}


def test_some_of_many_cells_are_shared_in_part():
    rows = [crossing("en/text", f"{x}/text", v) for x, v in (("en", 0.8), ("sw", 0.5), ("th", 0.0), ("ar", 0.0))]
    assert told(rows) == {"shared by languages": "shared in part"}


def test_a_set_that_does_not_act_in_its_own_cell_is_not_asked_about_others():
    rows = [crossing("en/text", "en/text", 0.8, width=0.9), crossing("en/text", "sw/text", 0.5)]
    assert told(rows) == {"shared by languages": "not tested"}


@pytest.mark.parametrize(
    ("activity", "word"),
    [
        (Interval(0.8, 0.7, 0.9), "carries the decision"),
        (Interval(0.2, 0.1, 0.3), "active where the model refuses"),
        (Interval(0.5, 0.4, 0.6), "too few requests to tell"),
    ],
)
def test_activity_on_harmful_requests_that_are_answered_tells_decision_from_refusal(activity: Interval, word: str):
    assert told(activity=activity) == {"decision": word}


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        (Interval(0.3, 0.2, 0.4), "transfers"),
        (Interval(0.02, -0.03, 0.07), "does not transfer"),
        (Interval(0.05, 0.02, 0.08), "does not transfer"),  # above zero, and shown to be less than a tenth
        (Interval(0.09, -0.1, 0.3), "too few requests to tell"),
        (Interval(0.09, 0.01, 0.17), "too few requests to tell"),
        (Interval(float("nan"), float("nan"), float("nan")), "too few requests to tell"),
    ],
)
def test_a_gain_in_untrained_cells_transfers_if_it_is_shown_and_is_a_tenth(gain: Interval, word: str):
    assert told(gain=gain) == {"transfer": word}


def test_the_section_has_a_row_for_every_answer_and_what_was_measured():
    answers = transfer(sections_of(results()))
    html = transfer_section(answers)
    assert html.count("<tr") == 1 + len(answers)
    assert all(a.word in html and a.reason.replace("<", "&lt;") in html for a in answers)
