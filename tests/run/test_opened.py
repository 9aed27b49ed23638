"""A run, read back: typed results, neuron sets, moments, answers and the adapter are those that the steps computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.run.folder import read_results
from neuronshield.run.opened import Run
from neuronshield.run.sections import CheckSection, FindSection, ShieldSection

pytest_plugins = ["finished_runs"]


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return ns.open(finished)


def test_every_part_is_typed_and_says_what_results_json_says(run: Run, finished: Path):
    r = read_results(finished)
    assert isinstance(run.find, FindSection)
    assert isinstance(run.shield, ShieldSection)
    assert isinstance(run.check, CheckSection)
    assert isinstance(run.proof, ns.Proof)
    assert (run.find.n_neurons, run.find.method, run.prompts.n) == (3, "contribution", 60)
    assert run.proof.to_dict() == r["prove"]
    assert run.check.beats_random_mask == r["check"]["beats_random_mask"]
    assert run.attack.k == r["attack"]["k"]
    assert run.steps == ["find", "prove", "shield", "check"]
    assert (run.stale, run.study.seed, run.settings.k, run.settings.refusals) == ([], 0, 3, ("sorry",))


def test_sets_are_those_that_the_moments_select(run: Run):
    assert run.candidates == run.sets[run.find.anchor]
    assert len(run.candidates) == 3
    assert set(run.verified) <= set(run.candidates)
    assert run.stats.cells == run.scores.cells == run.sets.cells if hasattr(run.sets, "cells") else True
    again = ns.contrast(run.stats, method="contribution").top(k=3)
    assert all(again[cell] == run.sets[cell] for cell in run.find.per_layer)
    counts = [run.sets["en/text"].per_layer().get(i, 0) for i in range(3)]
    assert tuple(counts) == run.find.per_layer["en/text"]


def test_the_adapter_is_the_shield(run: Run, study: Path):
    model = ns.load(study / "model", refusals=["sorry"], compliances=["sure"])
    shield = ns.load_adapter(model, run.adapter)
    prompts = ns.PromptSet([a.prompt for a in run.evaluations["shield"].answers])
    assert [a.response for a in ns.evaluate(shield, prompts, max_new_tokens=3, progress=False).answers] == [
        a.response for a in run.evaluations["shield"].answers
    ]


def test_evaluations_are_by_condition_and_have_the_rates_of_the_results(run: Run):
    assert list(run.evaluations) == list(run.check.cells)
    for name, evaluation in run.evaluations.items():
        for cell, found in evaluation.results().items():
            said = run.check.cells[name][str(cell)]
            assert np.array_equal(found.refusal, said.refusal, equal_nan=True)
    assert len(run.answers) == sum(len(e.answers) for e in run.evaluations.values()) + 4 * len(
        run.evaluations["shield"].answers
    )


def test_a_run_prints_on_a_line_and_shows_what_each_step_found(run: Run):
    assert repr(run) == "Run('model', seed 0, find, prove, shield, check done)"
    assert run._repr_html_().count("<tr>") == 4


def test_a_part_that_is_not_there_names_the_step(copied: Path):
    step = copied / "results.json"
    from neuronshield.run.folder import write_results

    r = read_results(copied)
    write_results(copied, {k: v for k, v in r.items() if k not in ("prove", "shield", "check", "attack")})
    run = ns.open(copied)
    assert run.find.n_neurons == 3
    for name, first in (("proof", "prove"), ("shield", "shield"), ("check", "check"), ("attack", "check"), ("verified", "prove"),
                        ("adapter", "shield"), ("evaluations", "check")):  # fmt: skip
        with pytest.raises(InputError, match=f"no {first} yet; run 'neuronshield {first} --out out' first"):
            getattr(run, name)
    assert step.exists()


def test_what_is_no_run_is_one_line(tmp_path: Path, finished: Path):
    with pytest.raises(InputError, match=r"holds no run \(there is no manifest\.json\); run 'neuronshield run --out "):
        ns.open(tmp_path)
    with pytest.raises(InputError, match="folder must be str or a path, got int"):
        ns.open(3)  # type: ignore[arg-type]
    shutil.copy(finished / "manifest.json", tmp_path)
    damaged = (tmp_path / "manifest.json").read_text().replace('"seed": 0', '"seed": 1')
    (tmp_path / "manifest.json").write_text(damaged)
    with pytest.raises(InputError, match=r"manifest\.json: is damaged"):
        ns.open(str(tmp_path))


def test_a_damaged_part_names_its_file(copied: Path):
    for name in ("find/stats.safetensors", "neurons/candidates.safetensors", "check/answers/shield.json"):
        (copied / name).write_bytes(b"x")
    run = ns.open(copied)
    for part, name in (
        ("stats", "stats.safetensors"),
        ("candidates", "candidates.safetensors"),
        ("evaluations", "shield.json"),
    ):
        with pytest.raises(InputError, match=name):
            getattr(run, part)
    assert tiny.WORDS
