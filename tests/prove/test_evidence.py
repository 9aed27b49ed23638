"""What is measured of a set, and the part of it on requests that did not choose its members."""

from __future__ import annotations

import numpy as np
import pytest
from one_neuron import TRUTH, set_of

import neuronshield as ns
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.answers import Grader
from neuronshield.prove.controls import Controls
from neuronshield.prove.evidence import Evidence, measure_evidence
from neuronshield.prove.pairs import match, measure

pytest_plugins = ["one_neuron"]


@pytest.fixture(scope="module")
def evidence(planted_model: ns.Model, confirm: ns.PromptSet) -> Evidence:
    openings = openings_of(planted_model, confirm, refusals=["sorry"], compliances=["sure"])
    pairs = measure(planted_model, match(confirm, seed=0)[0], opening_tokens(planted_model, openings))
    neurons = set_of(TRUTH)
    drawn = [ns.random_like(neurons, planted_model, seed=i) for i in range(3)]
    grader = Grader(openings, graded=20)
    controls = Controls({"random": drawn}, {"general": drawn[0]})
    return measure_evidence(pairs, neurons, controls, grader=grader, sample=grader.rows(pairs))


def test_the_part_of_some_requests_is_what_measuring_them_gives(evidence: Evidence):
    _, testing = evidence.pairs.split()
    part = evidence.of_requests(testing)
    rows = np.flatnonzero(np.isin(evidence.pairs.requests, testing.requests))
    np.testing.assert_array_equal(part.pairs.requests, testing.requests)
    for name, change in evidence.margins.changes.items():
        np.testing.assert_array_equal(part.margins.changes[name], change[:, rows])
    again = evidence.pairs.take(rows)
    assert [again.requests[i] for i in part.sample] == list(part.sheet.requests)
    assert set(part.sheet.requests) <= set(testing.requests)
    answered = [i for i in evidence.sample if i in rows]
    assert [int(rows[i]) for i in part.sample] == answered
    assert len(part.sheet.answers["harmful", "clean"].grades) == len(answered)


def test_of_each_drawn_kind_the_draw_at_the_level_answers(evidence: Evidence):
    kinds = {condition for _, condition in evidence.sheet.answers}
    assert {"random set ablated", "general set inserted"} <= kinds
    assert (evidence.sheet.drawn, evidence.sheet.single) == (("random",), ("general",))


def test_every_claim_is_measured_on_the_margin_or_on_answers(evidence: Evidence):
    assert [c.measure for c in evidence.claims()] == ["margin"] * 6 + ["answers"] * 4
