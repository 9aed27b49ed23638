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
from neuronshield.core.statistics import NAN, Interval
from neuronshield.prove.claims import NECESSITY
from neuronshield.prove.tables import Claim, Retest
from neuronshield.prove.verdict import reason_of

pytest_plugins = ["one_neuron"]


def test_a_proof_prints_as_a_table_with_its_strongest_control(truth: ns.Proof):
    frame = truth.to_frame()
    assert list(frame["claim"]) == [*NECESSITY, "sufficiency: patch", "specificity", "utility"]
    row = frame.iloc[1]
    assert row["strongest_control"] == max(v for values in truth.claims[1].controls.values() for v in values)
    assert row["strongest_control"] in truth.claims[1].controls[row["kind"]]
    assert str(truth).startswith("PASSED: ablating the set lowers the refusal margin")
    assert "<b>Passed.</b>" in truth._repr_html_()


def test_the_figure_shows_every_control(truth: ns.Proof):
    drawn = {t.name: len(t.x) for t in truth.figure().data}
    assert drawn == {"random": 1000, "matched": 1000, "permuted": 1000, "next rank": 5, "general": 5, "language": 5,
                     "the set": 7}  # fmt: skip


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
    assert truth._repr_html_().count("<tr") <= 10


def test_rows_make_a_frame(truth: ns.Proof):
    frame = pd.DataFrame(truth.experiments.dose_response)
    assert list(frame["alpha"]) == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_a_proof_cannot_be_changed(truth: ns.Proof):
    with pytest.raises(FrozenInstanceError):
        truth.passed = False  # type: ignore[misc]


# -- the reason is made from the facts ----------------------------------------------------------------------------
PASSED, FAILED = (Claim(f"claim {v}", Interval(0.5, 0.4, 0.6), v) for v in ("passed", "failed"))


def retest(*claims: Claim, passed: bool, n_backups: int = 0, n_excluded: int = 0) -> Retest:
    return Retest(claims, n_members=3, n_backups=n_backups, n_excluded=n_excluded, passed=passed)


def test_the_reason_of_a_set_that_passed():
    said = reason_of([PASSED, Claim.untested("utility")], retest=None, n_backups=1)
    assert said.startswith("ablating the set lowers the refusal margin, inserting it raises it")
    assert said.endswith("self-repair: 1 backup neuron outside the set")


def test_the_reason_of_a_set_that_failed_names_the_claims():
    assert reason_of([PASSED, FAILED], retest=None, n_backups=0) == "not shown to cause refusals; failed: claim failed"


def test_the_reason_tells_what_became_of_the_members():
    said = reason_of([FAILED], retest=retest(PASSED, FAILED, passed=True, n_backups=2, n_excluded=4), n_backups=0)
    for part in ("3 of its members together with 2 backups", "selected on half of the requests, lower the refusal margin",
                 "without 4 other neurons that also lower it", "without these claims: claim failed"):  # fmt: skip
        assert part in said
    said = reason_of([FAILED], retest=retest(FAILED, passed=False), n_backups=0)
    assert "the 3 members that lower the margin one by one or in a group: claim failed" in said


# -- kept -------------------------------------------------------------------------------------------------------
def test_a_saved_proof_reads_back_equal(truth: ns.Proof, tmp_path: Path):
    again = ns.Proof.load(truth.save(tmp_path / "a" / "proof.json"))
    assert again == truth
    assert str(again) == str(truth)
    assert (again.claims[:6], again.members, again.cells, again.experiments, again.answers, again.controls, again.rule) == (
        truth.claims[:6], truth.members, truth.cells, truth.experiments, truth.answers, truth.controls, truth.rule,
    )  # fmt: skip
    for name in ("neurons", "verified", "anti_refusal", "backups"):
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
            "holds neuronshield.Proof/0, expected neuronshield.Proof/2; write it again",
        ),
        (changed(passed="yes"), "expected bool, got 'yes'"),
        (changed(extra=1), "'extra' is missing or unknown"),
        (changed(verified=[[0, 1]]), "not a neuron set"),
        (changed(claims=[{"name": "a"}]), "'effect' is missing"),
        (lambda d: {k: v for k, v in d.items() if k != "members"}, "'members' is missing or unknown"),
        (lambda _: [], "not a file of neuronshield.Proof/2"),
    ],
)
def test_a_file_that_is_no_proof_is_one_line(truth: ns.Proof, tmp_path: Path, spoil: Any, said: str):
    path = truth.save(tmp_path / "p.json")
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(ns.InputError, match=said) as caught:
        ns.Proof.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path):
    with pytest.raises(ns.InputError, match="no such file"):
        ns.Proof.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ns.InputError, match=r"not a file of neuronshield\.Proof/2 \(Expecting"):
        ns.Proof.load(tmp_path / "bad.json")
