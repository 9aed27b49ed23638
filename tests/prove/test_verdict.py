"""A proof prints, draws, explains itself, and can be saved and read back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from one_neuron import ASK, DECOY, set_of

import neuronshield as ns
from neuronshield.core.results import load_json, save_json
from neuronshield.core.statistics import NAN, Interval
from neuronshield.prove.answer_claims import ANSWER_CLAIMS
from neuronshield.prove.claims import MARGIN_CLAIMS
from neuronshield.prove.tables import ANSWERS, TOO_FEW, Claim, Retest, Wording
from neuronshield.prove.verdict import FORMAT, reason_of

pytest_plugins = ["one_neuron"]


def test_a_proof_prints_as_a_table_with_its_strongest_control(truth: ns.Proof):
    frame = truth.to_frame()
    assert list(frame["claim"]) == [*MARGIN_CLAIMS, *ANSWER_CLAIMS]
    row = frame.iloc[1]
    assert row["strongest_control"] == max(v for values in truth.claims[1].controls.values() for v in values)
    assert row["strongest_control"] in truth.claims[1].controls[row["kind"]]
    assert str(truth).startswith("PASSED: ablating the set makes answers to harmful prompts comply")
    assert "<b>Passed.</b>" in truth._repr_html_()


def test_the_figure_shows_every_control(truth: ns.Proof):
    drawn = {t.name: len(t.x) for t in truth.figure().data}
    assert drawn == {"random": 1002, "matched": 1002, "permuted (contribution)": 1002, "next rank (contribution)": 7,
                     "general": 7, "language": 7, "the set": 10}  # fmt: skip


@pytest.mark.parametrize("what", ["dose_response", "size", "cross_cell"])
def test_experiments_have_figures(truth: ns.Proof, what: str):
    assert truth.figure(what).data
    with pytest.raises(ns.InputError, match="figure: what='pie' is unknown; use one of claims"):
        truth.figure("pie")


def test_a_verified_set_remembers_what_it_was_confirmed_on(truth: ns.Proof, confirm: ns.PromptSet):
    assert truth.verified.provenance["verified_on"] == confirm.hash()
    assert truth.verified.provenance["seen"] == sorted({p.cluster for p in confirm})


# -- shown ------------------------------------------------------------------------------------------------------
def test_representations_fit_a_line_and_a_screen(truth: ns.Proof):
    tables = [t for t in vars(truth.experiments).values() if isinstance(t, tuple)]
    shown = [truth, *truth.claims, *truth.members, *truth.cells.values(), truth.experiments, *truth.answers]
    shown += [truth.experiments.minimal, *(row for table in tables for row in table)]
    assert max(len(repr(x)) for x in shown) <= 120
    assert not any("\n" in repr(x) for x in shown)
    assert truth._repr_html_().count("<tr") <= 11


def test_rows_make_a_frame(truth: ns.Proof):
    frame = pd.DataFrame(truth.experiments.dose_response)
    assert list(frame["alpha"]) == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_proof_cannot_be_changed(truth: ns.Proof):
    with pytest.raises(FrozenInstanceError):
        truth.passed = False  # type: ignore[misc]


# -- the reason is made from the facts ----------------------------------------------------------------------------
PASSED, FAILED = (Claim(f"claim {v}", Interval(0.5, 0.4, 0.6), v) for v in ("passed", "failed"))


def retest(*claims: Claim, passed: bool, n_backups: int = 0) -> Retest:
    return Retest(claims, n_members=3, n_backups=n_backups, n_chosen_on=16, n_requests=32, passed=passed)


def test_the_reason_of_a_set_that_passed_by_its_members():
    said = reason_of([PASSED, Claim.untested("utility")], retest=retest(PASSED, passed=True, n_backups=2), n_backups=1)
    assert said.startswith(
        "ablating the set makes answers to harmful prompts comply, inserting it makes the model refuse"
    )
    assert (
        "3 members together with 2 backups, chosen on 16 requests and tested as a set on the other 32, passed" in said
    )
    assert "the whole set is verified" not in said
    assert said.endswith("self-repair: 1 backup neuron outside the set")


@pytest.mark.parametrize("found", [None, retest(FAILED, passed=False)])
def test_the_reason_says_where_the_whole_set_is_verified_and_its_members_are_not(found: Retest | None):
    said = reason_of([PASSED], retest=found)
    assert said.endswith("so the whole set is verified, tested on all requests")


def test_the_reason_of_a_set_that_failed_names_the_claims():
    assert reason_of([PASSED, FAILED]) == "not shown to cause refusals; failed: claim failed"


def test_the_reason_tells_what_became_of_the_members():
    few = Claim("specificity", NAN, TOO_FEW)
    said = reason_of([FAILED], retest=retest(FAILED, few, passed=False))
    assert "3 members, chosen on 16 requests and tested as a set on the other 32, did not pass: claim failed; " in said
    assert said.endswith(f"{TOO_FEW}: specificity")


def test_the_reason_says_what_answers_did():
    note = "refusals fall by 0.90, harmful compliance rises by 0.00; not shown: harmful compliance rises"
    claim = Claim("refusals: necessity", Interval(0.0, -0.1, 0.1), "failed", note=note, measure=ANSWERS)
    assert f"failed: refusals: necessity; refusals: necessity: {note}" in reason_of([PASSED, claim])


# -- the word -----------------------------------------------------------------------------------------------------
JUDGED = Claim("refusals: necessity", Interval(0.9, 0.8, 1.0), "passed", measure=ANSWERS)


def wording(judged: float, keyword: float, *, only: bool) -> Wording:
    judged_by, keyword_by, more = (Interval(v, v - 0.1, v + 0.1) for v in (judged, keyword, keyword - judged))
    return Wording(judged_by, keyword_by, more, only_wording=only)


@pytest.mark.parametrize(
    ("claims", "found", "word"),
    [
        ([PASSED, JUDGED], wording(0.9, 0.9, only=False), "passed"),
        ([PASSED, JUDGED, Claim.untested("utility")], None, "passed"),  # nothing says what is right
        ([PASSED, Claim.untested("refusals: necessity", "no grader")], None, "passed on the margin only"),
        ([PASSED, FAILED], wording(0.0, 0.9, only=True), "controls the wording of refusals, not refusal"),
        ([PASSED, FAILED], wording(0.4, 0.9, only=False), "no"),
        ([PASSED, FAILED], None, "no"),
        ([PASSED, replace(PASSED, verdict=TOO_FEW)], None, TOO_FEW),
        ([Claim.untested("necessity: zero")], None, "not tested"),
    ],
)
def test_the_word_of_a_proof(truth: ns.Proof, claims: list[Claim], found: Wording | None, word: str):
    passed = word.startswith("passed")
    proof = replace(truth, claims=tuple(claims), wording=found, passed=passed)
    assert proof.word == word
    assert str(proof).startswith(word.upper())
    assert word in repr(proof)


def test_a_proof_prints_judged_and_keyword_change_and_their_ratio(truth: ns.Proof):
    proof = replace(truth, wording=wording(0.2, 0.8, only=False))
    said = "refusals of harmful prompts fall by 0.20 [0.10, 0.30] as judged, by 0.80 [0.70, 0.90] by refusal prefixes; ratio 0.25"
    assert said in str(proof)
    assert said in proof._repr_html_()
    assert "ratio n/a" in str(replace(truth, wording=wording(0.0, 0.0, only=False)))


# -- kept -------------------------------------------------------------------------------------------------------
def test_a_saved_proof_reads_back_equal(truth: ns.Proof, tmp_path: Path):
    again = ns.Proof.load(truth.save(tmp_path / "a" / "proof.json"))
    assert again == truth
    assert str(again) == str(truth)
    assert (again.claims[:9], again.wording, again.retest.n_requests, again.cost, again.members, again.cells, again.experiments, again.answers, again.controls, again.rule) == (
        truth.claims[:9], truth.wording, truth.retest.n_requests, truth.cost, truth.members, truth.cells, truth.experiments, truth.answers, truth.controls, truth.rule,
    )  # fmt: skip
    for name in ("neurons", "verified", "candidates", "anti_refusal", "backups"):
        mine, other = getattr(again, name), getattr(truth, name)
        assert (mine, mine.n_layers, mine.d_mlp, mine.provenance) == (
            other,
            other.n_layers,
            other.d_mlp,
            other.provenance,
        )
    assert again != replace(truth, passed=False)


def test_a_proof_with_a_retest_and_unbounded_effects_reads_back_equal(truth: ns.Proof, tmp_path: Path):
    wide = Claim("x", Interval(0.3, -np.inf, np.inf), "failed", {"random": [0.1]}, {"random": 0.5}, {"general": NAN})
    proof = replace(truth, passed=False, claims=(wide,), retest=retest(wide, passed=False))
    assert ns.Proof.load(proof.save(tmp_path / "p.json")) == proof


@pytest.mark.slow
def test_a_failed_proof_reads_back_equal(planted_model: ns.Model, confirm: ns.PromptSet, tmp_path: Path):
    proof = ns.verify(planted_model, set_of(DECOY), confirm, draws=2, **ASK)
    assert ns.Proof.load(proof.save(tmp_path / "p.json")) == proof


def changed(**fields: Any) -> Any:
    return lambda d: d | fields


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            changed(format="neuronshield.Proof/0"),
            "holds neuronshield.Proof/0, written by an older version",
        ),
        (changed(passed="yes"), "expected bool, got 'yes'"),
        (changed(extra=1), "'extra' is missing or unknown"),
        (changed(verified=[[0, 1]]), "expected an object, got list"),
        (changed(claims=[{"name": "a"}]), "'effect' is missing"),
        (lambda d: {k: v for k, v in d.items() if k != "members"}, "'members' is missing or unknown"),
        (lambda _: [], "not a file of neuronshield.Proof/5"),
    ],
)
def test_a_file_that_is_no_proof_is_one_line(truth: ns.Proof, tmp_path: Path, spoil: Any, said: str):
    path = truth.save(tmp_path / "p.json")
    spoilt = spoil(load_json(path, FORMAT))
    if isinstance(spoilt, dict):
        save_json(path, spoilt.pop("format", FORMAT), spoilt)
    else:
        path.write_text(json.dumps(spoilt))
    with pytest.raises(ns.InputError, match=said) as caught:
        ns.Proof.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path):
    with pytest.raises(ns.InputError, match="no such file"):
        ns.Proof.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ns.InputError, match=r"not a file of neuronshield\.Proof/5 \(Expecting"):
        ns.Proof.load(tmp_path / "bad.json")
