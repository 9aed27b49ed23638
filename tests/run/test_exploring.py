"""`ns.explore` of a run shows what its steps found, reads the file that step check left, and refuses another model's run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import tiny
from finished_runs import small_step

import neuronshield as ns
from neuronshield import InputError
from neuronshield.explorer.page import document
from neuronshield.explorer.view import AS_IT_IS
from neuronshield.run.checking import regrade
from neuronshield.run.exploring import run_view, write_explorer
from neuronshield.run.job import IN_PYTHON
from neuronshield.run.manifest import read_manifest
from neuronshield.run.view_files import SHIELDED, VIEW, saved_view

pytest_plugins = ["finished_runs"]


def test_a_finished_run_opens_without_its_model(copied: Path, forwards: Callable[[], int]):
    (copied.parent / "model").unlink()
    explorer = ns.explore(copied)
    assert forwards() == 0
    run = ns.open(copied)
    assert explorer.neurons == (run.verified if len(run.verified) else run.candidates)
    assert {(n.layer, n.index) for n in explorer.view.neurons} == set(run.candidates | run.proof.backups)


def test_numbers_are_those_of_the_proof_the_moments_and_the_overlap(finished: Path):
    view, run = ns.explore(finished).view, ns.open(finished)
    members = {m.neuron: m for m in run.proof.members}
    for n in view.neurons:
        member = members.get((n.layer, n.index))
        assert (n.effect is None) == (member is None)
        if member is not None and n.effect is not None:
            assert n.effect == pytest.approx(member.alone, nan_ok=True)
            assert n.status == (
                "anti-refusal" if member.role == "anti-refusal" else "verified" if member.verified else "candidate"
            )
        for cell, difference in n.differences.items():
            means = [run.stats.moments(label, cell).mean[n.layer, n.index] for label in ("harmful", "benign")]
            assert difference == pytest.approx(means[0] - means[1])
    assert run.find.overlap is not None
    (pair,) = view.shared
    assert set(pair.cells) == {"en/text", "sw/text"}
    assert set(pair.neurons) == set(run.sets["en/text"] & run.sets["sw/text"])
    value = run.find.overlap["shared"][0][1]
    assert (
        pair.overlap is None
        if value is None
        else pair.overlap is not None and pair.overlap.value == pytest.approx(value)
    )


def test_prompts_are_test_prompts_with_the_answers_of_the_run(finished: Path):
    view = ns.explore(finished).view
    rows = pd.read_parquet(finished / "prompts.parquet").set_index("id")
    assert {rows.loc[p.id, "split"] for p in view.prompts} == {"test"}
    answers = pd.read_parquet(finished / "answers.parquet")
    answers = answers[answers["steps"].isna()].set_index(["condition", "prompt_id"])
    for p in view.prompts:
        for name, condition in ((AS_IT_IS, "no update"), (SHIELDED, "shield")):
            row = answers.loc[condition, p.id]
            assert (p.answers[name].text, p.answers[name].outcome or "unknown") == (row["response"], row["outcome"])


def test_the_view_of_the_file_is_the_one_that_is_made_again(finished: Path, study: Path):
    model = ns.load(study / "model", refusals=["sorry"], compliances=["sure"])
    rows = ns.PromptSet.from_jsonl(study / "prompts.jsonl")
    split = pd.read_parquet(finished / "prompts.parquet").set_index("id")["split"].to_dict()
    dealt = ns.PromptSet(replace(p, split=split[p.id]) for p in rows)
    made = run_view(ns.open(finished), model, dealt)
    assert document(made) == document(saved_view(finished) or made)


def test_before_step_check_the_view_is_made_from_the_steps_that_are_done(study: Path, tmp_path: Path):
    small_step("find", study, tmp_path / "out")
    explorer = ns.explore(tmp_path / "out", progress=False)
    assert {n.status for n in explorer.view.neurons} == {"candidate"}
    assert not any(n.effect is None for n in explorer.view.neurons) or explorer.view.notes
    assert SHIELDED not in explorer.view.conditions


def test_answers_that_are_graded_again_are_shown_as_they_are_graded_now(copied: Path):
    table = pd.read_parquet(copied / "answers.parquet")
    table["outcome"] = "incoherent"
    table.to_parquet(copied / "answers.parquet", index=False)
    view = saved_view(copied)
    assert view is not None
    assert {p.answers[AS_IT_IS].outcome for p in view.prompts} == {"incoherent"}
    regrade(copied, None)
    again = saved_view(copied)
    assert again is not None
    assert {p.answers[AS_IT_IS].outcome for p in again.prompts} != {"incoherent"}


def test_the_report_holds_the_explorer_and_the_file_is_one_of_the_run(finished: Path):
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert text.count("<iframe") == 1
    manifest = read_manifest(finished)
    assert manifest is not None
    assert VIEW in manifest.steps["check"].files


def test_the_page_is_written_into_the_run_folder_and_removed_with_it(copied: Path, study: Path):
    path = write_explorer(copied)
    assert path == copied / "explorer.html"
    assert path.read_text(encoding="utf-8") == document(ns.explore(copied).view)
    manifest = read_manifest(copied)
    assert manifest is not None
    assert "explorer.html" in manifest.files
    elsewhere = write_explorer(copied, copied.parent / "a.html")
    assert elsewhere.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_a_run_of_other_weights_is_refused_when_its_model_is_asked_for(copied: Path, tmp_path: Path):
    (tmp_path / "model").unlink()
    tiny.llama(seed=7).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    toml = copied / "run.toml"
    settings = toml.read_text(encoding="utf-8")
    line = next(row for row in settings.splitlines() if row.startswith("model ="))
    toml.write_text(settings.replace(line, f"model = {json.dumps(str(tmp_path / 'model'))}"), encoding="utf-8")
    explorer = ns.explore(copied)
    with pytest.raises(InputError, match="other weights"):
        _ = explorer.model
    (copied / VIEW).unlink()
    with pytest.raises(InputError, match="another study"):
        ns.explore(copied)


def test_a_damaged_view_is_said_by_its_name(copied: Path):
    (copied / VIEW).write_bytes(b"no")
    with pytest.raises(InputError, match=r"view\.safetensors"):
        ns.explore(copied)


def test_wrong_calls_get_one_line(llama: ns.Model, tmp_path: Path, finished: Path):
    neurons = ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29)
    for arguments, says in (
        ((tmp_path / "nothing",), "holds no run"),
        (("organism", neurons, tiny.prompts()), r"ns\.load"),
        ((llama, tiny.prompts(), neurons), "neurons must be"),
        ((llama, neurons), "no prompts"),
        ((llama, neurons, []), "no prompts"),
        ((3,), "model must be"),
    ):
        with pytest.raises(InputError, match=says) as error:
            ns.explore(*arguments)  # type: ignore[arg-type]
        assert len(str(error.value).splitlines()) == 1


def test_a_run_whose_prompts_were_given_in_python_says_how_to_go_on(copied: Path):
    (copied / VIEW).unlink()
    toml = copied / "run.toml"
    settings = toml.read_text(encoding="utf-8")
    line = next(row for row in settings.splitlines() if row.startswith("prompts ="))
    toml.write_text(settings.replace(line, f'prompts = "{IN_PYTHON}"'), encoding="utf-8")
    with pytest.raises(InputError, match=r"explore\(model, run.candidates, prompts"):
        ns.explore(copied)
