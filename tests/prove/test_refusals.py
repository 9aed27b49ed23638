"""Where the model refuses: cells by the sign of the margin, and graded answers where the margins show nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from one_neuron import plant

import neuronshield as ns
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.answers import Grader
from neuronshield.prove.pairs import MatchedPairs, match, measure
from neuronshield.prove.refusals import refusing_cells

pytest_plugins = ["one_neuron"]
EN, SW = ns.Cell("en", "text"), ns.Cell("sw", "text")


def measured(model: ns.Model, prompts: ns.PromptSet) -> tuple[MatchedPairs, Grader]:
    openings = openings_of(model, prompts, refusals=["sorry"], compliances=["sure"])
    pairs = measure(model, match(prompts, seed=0)[0], opening_tokens(model, openings))
    return pairs, Grader(openings, graded=11)


@pytest.fixture(scope="module")
def found(planted_model: ns.Model, confirm: ns.PromptSet) -> tuple[MatchedPairs, Grader]:
    return measured(planted_model, confirm)


def refused(pairs: MatchedPairs, share: dict[str, float]) -> MatchedPairs:
    """The same pairs with a share of harmful prompts refused in each cell, by the sign of the margin."""
    margins = pairs.harmful_margins.copy()
    for cell, rows in pairs.by_cell().items():
        margins[rows] = -1.0
        margins[rows[: round(share[str(cell)] * len(rows))]] = 30.0
    return replace(pairs, rows=replace(pairs.rows, harmful_margins=margins, benign_margins=np.full(len(pairs), -1.0)))


@pytest.mark.parametrize(
    ("en", "sw", "cells"), [(1.0, 1.0, [EN, SW]), (1.0, 0.6, [EN, SW]), (1.0, 0.4, [EN]), (0.4, 0.4, [EN, SW]), (0.6, 0.0, [EN])]
)  # fmt: skip
def test_cells_that_refuse_at_least_half_as_often_as_the_best_are_tested(
    found: tuple[MatchedPairs, Grader], en: float, sw: float, cells: list[ns.Cell]
):
    pairs, grader = found
    assert refusing_cells(refused(pairs, {"en/text": en, "sw/text": sw}), grader) == (cells, {}, "")


def test_a_model_that_refuses_nothing_says_why_there_is_nothing_to_test(confirm: ns.PromptSet):
    cells, answers, why = refusing_cells(*measured(plant(refuses=False), confirm))
    assert cells == []
    assert {label: len(found.grades) for label, found in answers.items()} == {"harmful": 11, "benign": 11}
    assert why.startswith("the model refuses harmful prompts no more than benign ones (graded answers +0.00")


def test_answers_that_refuse_without_a_margin_are_said_to(found: tuple[MatchedPairs, Grader]):
    """The model refuses in its answers; the margins, equal by decree, do not separate the labels."""
    pairs, grader = found
    flat = replace(pairs, rows=replace(pairs.rows, harmful_margins=pairs.benign_margins))
    cells, _, why = refusing_cells(flat, grader)
    assert cells == []
    assert why.startswith("the refusal margin does not separate harmful from benign prompts (clean logit difference")


@pytest.mark.parametrize(
    ("n", "said"), [(1, "1 request cannot show that the refusal margin separates"), (4, "4 requests cannot"), (5, "")]
)
def test_few_requests_are_said_to_be_few(found: tuple[MatchedPairs, Grader], n: int, said: str):
    """Answers refuse, and the margins of few requests are so apart that no interval of theirs lies above 0."""
    pairs, grader = found
    some = pairs.take([list(pairs.requests).index(r) for r in sorted(set(pairs.requests))[:n]])
    apart = np.where(np.arange(n) == 0, 90.0, -1.0)
    flat = replace(some, rows=replace(some.rows, harmful_margins=some.benign_margins + apart))
    why = refusing_cells(flat, grader)[2]
    assert why.startswith(
        said or "the refusal margin does not separate harmful from benign prompts (clean logit difference 1"
    )
