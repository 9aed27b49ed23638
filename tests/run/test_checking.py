"""Step check, and its answers graded again without the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import Stop, computed, contents, small_run

import neuronshield as ns
from neuronshield import InputError
from neuronshield.check.judges import PrefixJudge
from neuronshield.core.results import to_json
from neuronshield.run import checking
from neuronshield.run.checking import answer_file, regrade
from neuronshield.run.folder import read_results

pytest_plugins = ["finished_runs"]

JUDGE = PrefixJudge(["sure"], name="wildguard")  # calls refusals what the words call compliance


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> PrefixJudge:
    """The judge that `load_judge("wildguard")` gives."""
    monkeypatch.setattr(checking, "load_judge", lambda name: JUDGE if name == "wildguard" else pytest.fail(name))
    return JUDGE


@pytest.mark.slow
def test_each_condition_is_graded_again_as_it_would_have_been_by_that_judge(
    copied: Path, finished: Path, study: Path, judge: PrefixJudge, forwards: Callable[[], int]
):
    before = ns.open(finished)
    regrade(copied, "wildguard")
    assert forwards() == 0
    run = ns.open(copied)
    model = ns.load(study / "model", refusals=["sorry"], compliances=["sure"])
    prompts = ns.PromptSet([a.prompt for a in before.evaluations["no update"].answers])
    fresh = ns.evaluate(model, prompts, name="no update", judge=judge, max_new_tokens=3, progress=False)
    again = run.evaluations["no update"]
    assert [(a.response, a.outcome, a.refused, a.graded) for a in again.answers] == [
        (a.response, a.outcome, a.refused, a.graded) for a in fresh.answers
    ]
    for cell in fresh.cells():
        assert repr(to_json(run.check.cells["no update"][str(cell)])) == repr(to_json(fresh.cell(cell)))
        assert run.check.cells["no update"][str(cell)].refusal != before.check.cells["no update"][str(cell)].refusal
    assert set(run.answers["judge"]) == {"wildguard"}  # those of the curves too
    points = {p.steps: p for p in run.check.curves["shield"]}
    assert points[0].refusal == fresh.mean("refusal")
    assert run.stale == []
    assert run.proof == before.proof  # of the judge that it was made with
    assert "report.html" in {p.name for p in copied.iterdir()}


@pytest.mark.slow
def test_the_words_again_give_the_first_results_back(copied: Path, judge: PrefixJudge):
    before = computed(copied)
    regrade(copied, "wildguard")
    assert computed(copied) != before
    regrade(copied, None)
    again = computed(copied)
    for found in (before, again):  # it has files of regrading in its list
        found.pop("answers.parquet")
    assert again == before
    assert read_results(copied)["check"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["grading", "moving"])
def test_regrading_that_is_stopped_goes_on(
    copied: Path, judge: PrefixJudge, monkeypatch: pytest.MonkeyPatch, when: str
):
    whole = copied.parent / "whole"
    shutil.copytree(copied, whole)
    regrade(whole, "wildguard")
    graded: list[str] = []
    original, move = checking.regraded, Path.replace

    def counted(evaluation: Any, by: Any) -> Any:
        graded.append(evaluation.name)
        if when == "grading" and len(graded) == 4:
            raise Stop
        return original(evaluation, by)

    def moved(self: Path, target: Path) -> Path:
        if when == "moving" and "regraded" in self.parts and "curves" in self.parts and not self.name.startswith("."):
            raise Stop
        return move(self, target)

    monkeypatch.setattr(checking, "regraded", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", moved)
        with pytest.raises(Stop):
            regrade(copied, "wildguard")
    assert len(graded) == (4 if when == "grading" else 11)
    regrade(copied, "wildguard")
    assert len(graded) == (4 + 8 if when == "grading" else 11 + 7)
    assert computed(copied) == computed(whole)
    assert not (copied / "check" / "regraded").exists()


def test_a_run_is_refused_after_regrading_until_its_judge_is_asked_for(copied: Path, judge: PrefixJudge):
    regrade(copied, "wildguard")
    with pytest.raises(InputError, match=r"was run with other settings \(judge wildguard, now None\)"):
        small_run(copied.parent, copied)


def test_what_cannot_be_graded_again_is_one_line_and_changes_nothing(copied: Path, tmp_path: Path, finished: Path):
    with pytest.raises(InputError, match="holds no run"):
        regrade(tmp_path / "nowhere", None)
    assert not (tmp_path / "nowhere").exists()
    before = contents(copied)
    with pytest.raises(InputError, match="'wildgard' is unknown; did you mean 'wildguard'"):
        regrade(copied, "wildgard")
    left = contents(copied)
    assert {name for name in before if before[name] != left[name]} <= {"manifest.json"}


def test_a_condition_has_one_file():
    assert answer_file("low-rank edit, no training") == "check/answers/low-rank-edit-no-training.json"
