"""The result folder: what may be written where, what is left alone, and what is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.core.results import from_json
from neuronshield.model.answers import examples
from neuronshield.run.folder import (
    FORMAT,
    Job,
    check_folder,
    load_neurons,
    make_staging,
    move_in,
    open_job,
    read_results,
)  # fmt: skip
from neuronshield.run.sections import AttackSection, PromptSummary


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_folder_that_is_new_or_empty_or_has_results_may_be_written(tmp_path: Path):
    assert check_folder(tmp_path / "a" / "b") == tmp_path
    assert check_folder(write(tmp_path / "empty")) == tmp_path
    assert check_folder(write(tmp_path / "old", results_json="{}")) == tmp_path


def test_a_file_or_a_folder_with_something_else_may_not(tmp_path: Path):
    write(tmp_path / "mine", notes_txt="x")
    with pytest.raises(InputError, match=r"mine: is not empty and holds no results\.json of neuronshield"):
        check_folder(tmp_path / "mine")
    with pytest.raises(InputError, match=r"notes\.txt: is a file; choose a folder"):
        check_folder(tmp_path / "mine" / "notes.txt")
    with pytest.raises(InputError, match="cannot be written"):
        check_folder(tmp_path / "mine" / "notes.txt" / "out")


def test_moving_in_replaces_what_a_run_writes_and_nothing_else(tmp_path: Path):
    names = ("neurons", "adapter", "controls", "curves")
    old = write(tmp_path / "out", results_json="old", report_html="old", notes_txt="mine")
    new = write(tmp_path / "new", results_json="new", report_html="new")
    for name in names:
        write(old / name, old_txt="x")
        write(new / name, new_txt="x")
    move_in(new, old)
    assert sorted(p.name for p in old.iterdir()) == [
        "adapter",
        "controls",
        "curves",
        "neurons",
        "notes.txt",
        "report.html",
        "results.json",
    ]
    assert (old / "results.json").read_text() == "new"
    assert (old / "notes.txt").read_text() == "mine"
    assert all([p.name for p in (old / name).iterdir()] == ["new.txt"] for name in names)
    fresh = write(tmp_path / "fresh", results_json="new")
    move_in(fresh, tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "results.json").read_text() == "new"
    assert not fresh.exists()


def test_a_staging_folder_that_is_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="--out out: cannot be written"):
        make_staging(tmp_path, Path("out"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no results.json; run 'neuronshield run' first"),
        ("{nope", "not JSON; remove it"),
        ("[]", "not written by this version"),
        ('{"format": "neuronshield.results/2"}', "not written by this version"),
    ],
)
def test_results_that_cannot_be_read_are_refused(text: str | None, said: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_results(tmp_path)


def job(model: ns.Model, out: Path) -> Job:
    return open_job(model, tiny.prompts(), out, seed=3, progress=False)


def test_a_job_says_what_it_is_of_and_takes_up_what_earlier_steps_left(llama: ns.Model, tmp_path: Path):
    first = job(llama, tmp_path)
    with pytest.raises(InputError, match="no attack yet; run 'neuronshield attack' first"):
        first.get("attack", AttackSection)
    section = AttackSection(k=7, cells=("en/text",), means={})
    with first.timed("attack"):
        first.put("attack", section)
    first.save()
    r: dict[str, Any] = read_results(tmp_path)
    assert (r["format"], r["seed"], r["model"]["n_layers"], r["model"]["d_mlp"]) == (FORMAT, 3, 3, 29)
    assert r["model"]["fingerprint"] == llama.fingerprint
    summary = from_json(PromptSummary, r["prompts"])
    assert (summary.n, summary.cells) == (60, ("en/text", "sw/text"))
    assert sum(c.n for c in summary.counts) == 60
    assert {c.split for c in summary.counts if c.n} == {"discover", "confirm", "train", "test"}
    assert set(r["seconds"]) == {"attack"}
    second = job(llama, tmp_path)
    assert second.get("attack", AttackSection) == section
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_set_that_no_step_has_written_names_the_step(llama: ns.Model, tmp_path: Path):
    with pytest.raises(InputError, match="no candidates neurons yet; run 'neuronshield find' first"):
        load_neurons(job(llama, tmp_path), "candidates", "find")
    ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29).save(tmp_path / "neurons" / "candidates.safetensors")
    assert list(load_neurons(job(llama, tmp_path), "candidates", "find")) == [(0, 3)]


def test_what_json_cannot_hold_leaves_the_old_results(llama: ns.Model, tmp_path: Path):
    first = job(llama, tmp_path)
    first.save()
    before = json.loads((tmp_path / "results.json").read_text())
    first.results["odd"] = object()
    with pytest.raises(TypeError):
        first.save()
    assert json.loads((tmp_path / "results.json").read_text()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("target", "says"),
    [("sure <image>", "its answer contains '<image>'"), ("sure " * 3000, "tokens are more than the 2048")],
    ids=["a picture's token", "too long"],
)
def test_an_answer_that_cannot_be_read_is_found_before_the_first_forward(target: str, says: str, tmp_path: Path):
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor)
    module.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    split = {"0": "discover", "1": "confirm", "2": "train", "3": "test", "4": "train"}
    rows = [{**row, "split": split[row["pair_id"][0]]} for row in tiny.records()]
    bad = next(row for row in rows if row["split"] == "train")
    open_job(model, ns.PromptSet.from_records(rows), tmp_path, progress=False)
    bad["target"] = target
    with pytest.raises(InputError, match=f"prompt '{bad['id']}': .*{says}"):
        open_job(model, ns.PromptSet.from_records(rows), tmp_path, progress=False)
    with pytest.raises(InputError, match=f"prompt '{bad['id']}': .*{says}"):  # and before the model answers the others
        examples(model, ns.PromptSet.from_records([{**row, "target": None} if row is not bad else row for row in rows]))
