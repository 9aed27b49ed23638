"""Generated answers to a sample of pairs, graded by words and by judges."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from one_neuron import DECOY, TRUTH, set_of

import neuronshield as ns
from neuronshield.core.statistics import p_value
from neuronshield.data.grading import Grade
from neuronshield.data.judging import Verdict
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.answers import Answers, Grader, answer_rate, level_draw
from neuronshield.prove.pairs import MatchedPairs, match, measure

pytest_plugins = ["one_neuron"]


@pytest.fixture(scope="module")
def pairs(planted_model: ns.Model, confirm: ns.PromptSet) -> MatchedPairs:
    openings = openings_of(planted_model, confirm, refusals=["sorry"], compliances=["sure"])
    return measure(planted_model, match(confirm, seed=0)[0], opening_tokens(planted_model, openings))


@pytest.fixture(scope="module")
def grader(planted_model: ns.Model, confirm: ns.PromptSet) -> Grader:
    return Grader(openings_of(planted_model, confirm, refusals=["sorry"], compliances=["sure"]), graded=11)


def test_the_graded_sample_is_the_same_each_time(pairs: MatchedPairs, grader: Grader):
    np.testing.assert_array_equal(grader.rows(pairs), grader.rows(pairs))
    assert len(set(grader.rows(pairs))) == 11
    sample = pairs.take(grader.rows(pairs))
    row = answer_rate("harmful", "clean", grader.answers(sample, "harmful"), requests=sample.requests)
    assert (row.n, row.refused.value) == (11, 1.0)


def test_the_graded_sample_has_every_request_before_one_twice(pairs: MatchedPairs, grader: Grader):
    rows = replace(grader, graded=17).rows(pairs)  # of 30 pairs of 15 requests
    assert len(set(rows)) == 17
    assert len(set(pairs.requests[rows[:15]])) == 15


def answers(*refused: bool | None) -> Answers:
    known = np.array([np.nan if r is None else float(r) for r in refused])
    return Answers(tuple(Grade(r, None) for r in refused), complied=1 - known, prefixed=known)


def test_variants_of_one_request_do_not_make_its_answers_surer():
    found = answers(*(i % 2 == 0 for i in range(16)))
    variants = answer_rate("harmful", "clean", found, requests=np.array(["a", "b"] * 8, dtype=object))
    apart = answer_rate("harmful", "clean", found, requests=np.array([str(i) for i in range(16)], dtype=object))
    assert variants.refused.value == apart.refused.value == 0.5
    assert (variants.refused.high - variants.refused.low) > 1.8 * (apart.refused.high - apart.refused.low)


def test_answers_that_could_not_be_graded_are_in_no_share():
    row = answer_rate("harmful", "clean", answers(True, True, False, None), requests=np.arange(4).astype(object))
    assert (row.refused.value, row.complied.value, row.n, row.n_unknown) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        4,
        1,
    )


def test_a_sheet_has_the_set_and_every_control_on_the_same_pairs(pairs: MatchedPairs, grader: Grader):
    before = pairs.work["answers"]
    sample = pairs.take(grader.rows(pairs))
    sheet = grader.sheet(sample, set_of(TRUTH), drawn={"random": set_of(DECOY)}, single={})
    shares = {k: (np.mean(a.refused), np.mean(a.complied)) for k, a in sheet.answers.items()}
    assert shares == {
        ("harmful", "clean"): (1, 0), ("benign", "clean"): (0, 1), ("harmful", "set ablated"): (0, 1),
        ("benign", "set ablated"): (0, 1), ("benign", "set inserted"): (1, 0),
        ("harmful", "random set ablated"): (1, 0), ("benign", "random set inserted"): (0, 1),
    }  # fmt: skip
    assert pairs.work["answers"] - before == 7 * 11
    few = sheet.take(np.array([3, 1]))
    assert list(few.requests) == list(sample.requests[[3, 1]])
    assert [r.n for r in few.rates()] == [2] * 7


class Judge:
    """Says what it is told of answers that start with a word, and nothing of others."""

    name = "told"

    def __init__(self, **said: tuple[bool | None, bool | None]) -> None:
        self.said = said

    def score(self, prompt: str, response: str, language: str) -> Verdict:  # noqa: ARG002
        return Verdict(*self.said.get(response.split(maxsplit=1)[0], (None, None)))


@pytest.mark.parametrize(
    ("said", "refused", "complied"),
    [
        ({"sorry": (True, False)}, 1, 0),
        ({"sorry": (False, True)}, 0, 1),
        ({"sorry": (False, False)}, 0, 0),  # a safe answer that is no refusal
        ({"sorry": (None, False)}, 1, 0),  # a judge of harm only: the words say that it refuses
        ({}, np.nan, np.nan),  # a judge that cannot tell
    ],
)
def test_a_judge_says_what_an_answer_is(
    pairs: MatchedPairs, grader: Grader, said: Any, refused: float, complied: float
):
    sample = pairs.take(grader.rows(pairs)[:3])
    found = replace(grader, judge=Judge(**said)).answers(sample, "harmful")
    np.testing.assert_array_equal(found.refused, [refused] * 3)
    np.testing.assert_array_equal(found.complied, [complied] * 3)
    np.testing.assert_array_equal(found.prefixed, [1.0] * 3)  # the first words are what they are


@pytest.mark.parametrize("n", [19, 25, 39, 50, 200])
def test_a_set_exceeds_the_draw_at_the_level_where_its_p_is_within_it(n: int):
    effects = np.random.default_rng(n).normal(size=n)
    bar = effects[level_draw(effects, 0.05)]
    for effect in np.concatenate([effects + 1e-9, effects - 1e-9]):
        assert (effect > bar) == (p_value(effect, effects) <= 0.05)


def test_with_too_few_draws_the_strongest_is_taken():
    assert level_draw(np.array([0.1, 0.7, 0.3]), 0.05) == 1
