"""Each claim passes only if every one of its conditions holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from one_neuron import ASK, DECOY, TRUTH, claim, set_of

import neuronshield as ns
from neuronshield.core.statistics import Interval
from neuronshield.data.grading import Grade
from neuronshield.prove.answer_claims import measure_utility
from neuronshield.prove.claims import effects_by_cell, measure_effect, measure_specificity
from neuronshield.prove.controls import Controls
from neuronshield.prove.tables import TOO_FEW

pytest_plugins = ["one_neuron"]

RANDOM = Controls({"random": [set_of(DECOY)] * 30})


def exact(half_width: float) -> Any:
    """Pairs whose effects are plain means, with an interval of a given half width."""
    return SimpleNamespace(
        normalised_effect=lambda c: Interval(
            float(c.mean()), float(c.mean()) - half_width, float(c.mean()) + half_width
        ),
        normalised_effects=lambda c: c.mean(axis=1),
        requests=np.array([f"r{i}" for i in range(8)], dtype=object),
    )


def beside(value: float, *controls: float) -> np.ndarray:
    """Changes [set, pair] of a set and its controls, the same on every pair."""
    return np.repeat([[value], *([c] for c in controls)], 8, axis=1)


def noisy(mean: float, spread: float, n: int = 12) -> Any:
    """Pairs of one cell with a clean logit difference of 1, and a change of margin that varies over requests."""
    change = mean + spread * np.where(np.arange(n) % 2, 1.0, -1.0)
    requests = np.array([f"r{i}" for i in range(n)], dtype=object)
    rows = SimpleNamespace(cells=np.array(["en/text"] * n, dtype=object))
    pairs = SimpleNamespace(requests=requests, rows=rows, differences=np.ones(n), seed=0)
    from neuronshield.prove.pairs import MatchedPairs

    pairs.normalised_effect = lambda c, which=slice(None): MatchedPairs.normalised_effect(pairs, c, which)  # type: ignore[arg-type]
    pairs.normalised_effects = lambda c: MatchedPairs.normalised_effects(pairs, c)  # type: ignore[arg-type]
    pairs.by_cell = lambda: MatchedPairs.by_cell(pairs)  # type: ignore[arg-type]
    return pairs, change


# -- necessity and sufficiency: every condition by itself -------------------------------------------------------
def test_an_effect_that_meets_every_condition_passes():
    found = measure_effect(exact(0.05), "x", change=beside(0.5, *[0.0] * 30), controls=RANDOM)
    assert (found.verdict, found.note) == ("passed", "")
    assert found.p == {"random": pytest.approx(1 / 31)}
    assert found.strongest_control == ("random", 0.0)


def test_an_effect_whose_interval_includes_zero_fails_though_it_is_large():
    found = measure_effect(exact(0.6), "x", change=beside(0.5, *[0.0] * 30), controls=RANDOM)
    assert (found.verdict, found.note) == ("failed", "interval does not exclude 0")


@pytest.mark.parametrize(("spread", "verdict"), [(0.1, "passed"), (3.0, "failed")])
def test_the_interval_of_real_pairs_decides(spread: float, verdict: str):
    """The same mean effect, with requests that agree and with requests that do not."""
    pairs, change = noisy(0.5, spread)
    changes = np.vstack([change, np.full((30, len(change)), -1.0)])
    assert measure_effect(pairs, "x", change=changes, controls=RANDOM).verdict == verdict
    assert effects_by_cell(pairs, changes, RANDOM)["en/text"].verdict == verdict


def test_an_effect_that_is_certain_but_small_fails():
    found = measure_effect(exact(0.01), "x", change=beside(0.09, *[0.0] * 30), controls=RANDOM)
    assert (found.verdict, found.note) == ("failed", "effect below 0.1")


@pytest.mark.parametrize(("stronger", "verdict"), [(0, "passed"), (1, "failed"), (2, "failed")])
def test_control_draws_that_reach_the_effect_are_counted(stronger: int, verdict: str):
    """30 draws: one that is as strong gives p = 2/31 = 0.065."""
    reached = [0.6] * stronger + [0.0] * (30 - stronger)
    found = measure_effect(exact(0.01), "x", change=beside(0.5, *reached), controls=RANDOM)
    assert found.p["random"] == pytest.approx((1 + stronger) / 31)
    assert found.verdict == verdict


def test_a_single_control_must_be_exceeded_by_the_interval_not_by_the_estimate():
    """0.5 against 0.45: the estimate is larger, the interval of the paired difference includes 0."""
    controls = Controls(RANDOM.drawn, {"next rank": set_of(DECOY)})
    change = beside(0.5, *[0.0] * 30, 0.45)
    assert measure_effect(exact(0.04), "x", change=change, controls=controls).verdict == "passed"
    wide = measure_effect(exact(0.06), "x", change=change, controls=controls)
    assert wide.over["next rank"].value == pytest.approx(0.05)
    assert (wide.verdict, wide.note) == ("failed", "does not exceed: next rank")


def test_a_claim_without_drawn_controls_fails():
    found = measure_effect(exact(0.01), "x", change=beside(0.5), controls=Controls({}))
    assert (found.verdict, found.note) == ("failed", "no other neurons to draw controls from")


def test_specificity_is_judged_by_the_worst_ablation():
    pairs, _ = noisy(0.0, 0.0)
    steady = np.random.default_rng(0).normal(0, 0.01, (3, 12))
    assert measure_specificity(pairs, steady).verdict == "passed"
    steady[1] -= 0.5
    found = measure_specificity(pairs, steady)
    assert found.verdict == "failed"
    assert found.effect.value == pytest.approx(-0.5, abs=0.02)
    assert "under mean ablation" in found.note


# -- as verify reports them -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("spoilt", "verdict"), [(0, "passed"), (1, "passed"), (12, "failed")])
def test_utility_fails_when_too_many_benign_answers_go_wrong(spoilt: int, verdict: str):
    requests = np.array([f"request {i}" for i in range(48)], dtype=object)
    before = [Grade(False, True)] * 48
    after = [Grade(False, i >= spoilt) for i in range(48)]
    found = measure_utility(before, after, requests=requests)
    assert found.verdict == verdict
    assert found.effect.value == pytest.approx(-spoilt / 48)


def test_one_control_that_does_more_is_enough_to_fail():
    """Single sets count as much as drawn ones."""
    pairs = exact(0.01)
    controls = Controls({"random": [set_of(DECOY)] * 30}, {"next rank": set_of(DECOY)})
    for reached, verdict in ((0.4, "passed"), (0.6, "failed")):
        change = np.zeros((32, 4))
        change[0], change[-1] = 0.5, reached
        found = measure_effect(pairs, "necessity: mean", change=change, controls=controls)
        assert found.verdict == verdict
        assert found.note == ("" if verdict == "passed" else "does not exceed: next rank")


@pytest.mark.slow
def test_cells_are_reported_one_by_one(truth: ns.Proof):
    assert {str(c) for c in truth.cells} == {"en/text", "sw/text"}
    for row in truth.cells.values():
        assert row.n_pairs == 15
        assert row.effect.value > 0.85 > row.strongest_control
        assert row.p_holm == pytest.approx(2 / 201)  # two cells are claimed
        assert row.verdict == "passed"


@pytest.mark.slow
def test_a_cell_that_passes_alone_may_fail_as_one_of_several(planted_model: ns.Model, confirm: ns.PromptSet):
    """24 draws: p = 1/25 = 0.04 in each cell, which Holm's correction over several cells takes above 0.05."""
    proof = ns.verify(planted_model, set_of(TRUTH), confirm, draws=24, **ASK)
    assert len(proof.cells) > 1
    for row in proof.cells.values():
        assert row.p == pytest.approx(0.04)
        assert (row.p_holm <= 0.05) == (row.verdict == "passed")
    assert "failed" in {row.verdict for row in proof.cells.values()}


@pytest.mark.slow
def test_too_few_draws_can_never_pass_and_the_claim_says_why(planted_model: ns.Model, confirm: ns.PromptSet):
    proof = ns.verify(planted_model, set_of(TRUTH), confirm, draws=4, **ASK)
    assert not proof.passed
    assert "with 4 draws p cannot fall below 0.20" in claim(proof, "necessity: mean").note


@pytest.mark.slow
def test_utility_is_graded_where_prompts_say_what_is_right(planted_model: ns.Model):
    rows = tiny.records(split="confirm")
    for row in rows:
        row["expect"] = ["sure"]
    prompts = ns.PromptSet.from_records(rows)
    proof = ns.verify(planted_model, set_of(TRUTH), prompts, draws=25, **ASK)
    utility = claim(proof, "utility")
    assert utility.effect.value == 0
    assert utility.effect.low < 0 < utility.effect.high
    assert utility.p == {"TOST": pytest.approx(0.9**15)}
    assert utility.verdict == TOO_FEW
    assert "15 requests cannot show this, 29 can" in utility.note
    assert (proof.passed, proof.word) == (False, TOO_FEW)
    assert proof.reason.startswith(f"not shown to cause refusals; {TOO_FEW}: utility")


@pytest.mark.parametrize(("n", "verdict"), [(4, TOO_FEW), (5, "passed")])
def test_an_effect_of_fewer_requests_than_its_test_needs_is_neither_passed_nor_failed(n: int, verdict: str):
    pairs, change = noisy(0.5, 0.01, n)
    found = measure_effect(pairs, "x", change=np.vstack([change, np.zeros((30, n))]), controls=RANDOM)
    assert found.verdict == verdict
    assert ("4 requests cannot show this, 5 can" in found.note) == (n == 4)


@pytest.mark.parametrize(("n", "verdict"), [(10, TOO_FEW), (11, "passed")])
def test_specificity_needs_as_many_requests_as_an_equivalence_test(n: int, verdict: str):
    pairs, change = noisy(0.0, 0.01, n)
    assert measure_specificity(pairs, np.stack([change] * 3)).verdict == verdict
