"""The main job: what a run leaves, how it goes on where it was stopped, and what it refuses."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
from finished_runs import FORWARDS, QUIET, SMALL, Stop, computed, contents, counting, small_run, small_step

import neuronshield as ns
from neuronshield import InputError, organism
from neuronshield.model.answers import examples
from neuronshield.run import pipeline
from neuronshield.run.manifest import read_manifest
from neuronshield.run.pipeline import run, step

pytest_plugins = ["finished_runs"]

MADE = {"neuronshield.run.shielding": ("masked_update", "plain_lora", "clamp_edit", "low_rank_edit")}


# -- a finished run ----------------------------------------------------------------------------------------
def test_a_run_leaves_what_the_docs_promise_and_nothing_beside_its_folder(finished: Path, study: Path):
    assert {p.name for p in study.iterdir()} <= {"model", "prompts.jsonl", "seed-0", "seed-1"}
    assert sorted(p.name for p in finished.iterdir()) == [
        ".lock", "adapter", "answers.parquet", "check", "controls", "find", "manifest.json", "neurons", "prompts.parquet", "prove",
        "report.html", "results.json", "run.log", "run.toml", "shield",
    ]  # fmt: skip
    assert not list(finished.rglob("*.partial"))
    assert not list(finished.rglob("journal"))
    manifest = read_manifest(finished)
    assert manifest is not None
    assert all(state.done for state in manifest.steps.values())
    assert manifest.stale() == []


def test_every_file_of_a_run_is_in_its_manifest(finished: Path):
    manifest = read_manifest(finished)
    assert manifest is not None
    ours = [*manifest.files, *(name for state in manifest.steps.values() for name in state.files)]
    for name in contents(finished):
        assert name in (".lock", "manifest.json") or any(
            name == own or (own.endswith("/") and name.startswith(own)) for own in ours
        ), name


def test_results_hold_every_step_every_condition_and_every_cell(finished: Path):
    r: dict[str, Any] = json.loads((finished / "results.json").read_text(encoding="utf-8"))
    assert r["format"] == "neuronshield.results/6"
    assert {"find", "prove", "shield", "check", "attack"} <= set(r)
    cells = {"en/text", "sw/text"}
    assert set(r["prompts"]["cells"]) == cells
    conditions = r["check"]["cells"]
    trained = ["shield", "random mask 1", "random mask 2", "plain LoRA"]
    assert set(conditions) == {"no update", *trained, "clamp, no training", "low-rank edit, no training"}
    assert all(set(c) == cells for c in conditions.values())
    assert {c: [p["steps"] for p in curve] for c, curve in r["check"]["curves"].items()} == {
        c: [0, 1, 2] for c in trained
    }
    assert (r["stale"], r["settings"]["k"], r["settings"]["draws"]) == ([], 3, 1)
    assert set(r["seconds"]) == {"find", "prove", "shield", "check"}


def test_the_rows_as_read_are_kept_with_their_splits_and_without_their_pictures(finished: Path, study: Path):
    import pandas as pd

    rows = pd.read_parquet(finished / "prompts.parquet")
    read = pipeline.open_job(study / "model", study / "prompts.jsonl", ns_settings())
    assert rows["id"].tolist() == [p.id for p in read.prompts]
    assert rows["split"].tolist() == [p.split for p in read.prompts]
    assert rows["request"].nunique() == 15


def ns_settings() -> Any:
    from neuronshield.run.settings import settings_of

    return settings_of("run", None, SMALL)


def test_no_file_holds_an_absolute_path_or_the_name_of_a_user(finished: Path, study: Path):
    told = {str(study), str(study.parent), str(Path.home()), str(Path.cwd())}
    for name, data in contents(finished).items():
        assert not [t for t in told if t.encode() in data and len(t) > 1], name
    user = getpass.getuser()
    assert user not in (finished / "run.toml").read_text().replace("prompts", "")


def test_the_adapter_loads_with_plain_peft_and_answers_as_the_update_did(finished: Path, study: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(study / "model")
    wrapped = PeftModel.from_pretrained(base, finished / "adapter").merge_and_unload()
    model = ns.load(wrapped, processor=tiny.tokenizer())
    shield = ns.open(finished).evaluations["shield"]
    prompts = ns.PromptSet([a.prompt for a in shield.answers])
    mine = ns.evaluate(model, prompts, refusals=["sorry"], compliances=["sure"], max_new_tokens=3, progress=False)
    assert [a.response for a in mine.answers] == [a.response for a in shield.answers]


def test_the_same_call_again_computes_nothing(copied: Path, study: Path, forwards: Callable[[], int]):
    before = computed(copied)
    told: list[str] = []
    results = small_run(copied.parent, copied, tell=told.append)
    assert forwards() == 0
    assert computed(copied) == before
    assert [line.split()[0] for line in told] == ["find", "prove", "shield", "check"]
    assert results["check"]


# -- stopped, and run again --------------------------------------------------------------------------------
#: Forwards of a step after which the process ends, the first time and the second time.
STOPS = {"find": [1], "prove": [40, 30], "shield": [12, 8], "check": [6, 4]}


@pytest.mark.slow
def test_a_run_that_is_stopped_in_every_step_comes_to_the_results_of_one_that_was_not(
    finished: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stops, now, taken = {name: list(after) for name, after in STOPS.items()}, {"step": "", "n": 0}, []

    def begin(name: str, do: Callable[[Any], None]) -> Callable[[Any], None]:
        def begun(job: Any) -> None:
            now.update(step=name, n=0)
            do(job)

        return begun

    def stop() -> bool:
        now["n"] += 1  # type: ignore[operator]
        left = stops.get(str(now["step"]), [])
        return bool(left) and now["n"] > left[0] and left.pop(0) > 0

    monkeypatch.setattr(pipeline, "STEPS", {name: begin(name, do) for name, do in pipeline.STEPS.items()})
    for _ in range(1 + sum(map(len, STOPS.values()))):
        with counting(stop) as count, suppress(Stop):
            small_run(study, tmp_path / "out")
        taken.append(count[0])
    assert not any(stops.values())
    unit = 9  # forwards of the largest unit, and of what is read before the first one of a step
    assert sum(taken) <= FORWARDS["seed-0"] + unit * (len(taken) - 1), taken
    mine, other = computed(tmp_path / "out"), computed(finished)
    assert set(mine) == set(other)
    for name in ("manifest.json", "run.toml"):  # the settings lead to the model from another place
        mine.pop(name), other.pop(name)
    assert {name for name in mine if mine[name] != other[name]} == set()


@pytest.mark.slow
def test_a_condition_that_is_trained_is_not_trained_again(
    copied: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from neuronshield.run import shielding

    made: list[str] = []

    def counted(name: str, original: Callable[..., Any], last: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == 3 and last:
                raise Stop
            return original(*args, **options)

        return call

    def watch(patch: pytest.MonkeyPatch, *, stop: bool) -> None:
        for name in MADE["neuronshield.run.shielding"]:
            patch.setattr(shielding, name, counted(name, getattr(shielding, name), "third" if stop else ""))

    before = computed(copied)
    with monkeypatch.context() as patch:
        watch(patch, stop=True)
        with pytest.raises(Stop):
            small_step("shield", copied.parent, copied, overwrite=True)
    assert made == ["masked_update"] * 3
    made.clear()
    watch(monkeypatch, stop=False)
    small_run(copied.parent, copied)
    assert made[:4] == [
        "masked_update",
        "plain_lora",
        "clamp_edit",
        "low_rank_edit",
    ]  # the third mask, and what comes after it
    assert computed(copied) == before


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_its_finished_units_and_another_goes_on(
    finished: Path, study: Path, tmp_path: Path
):
    options = [
        f"--{k.replace('_', '-')}" + f"={w}" for k, v in SMALL.items() for w in (v if isinstance(v, list) else [v])
    ]
    command = [sys.executable, "-m", "neuronshield.cli", "run", "--model", str(study / "model"), "--prompts",
               str(study / "prompts.jsonl"), "--out", str(tmp_path / "out"), "--quiet", *options]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for number, reached in ((signal.SIGKILL, "prove/journal"), (signal.SIGTERM, "shield/shield.json")):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        for _ in range(1200):
            if (tmp_path / "out" / reached).exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 143)
        assert (tmp_path / "out" / reached).exists()
        if number == signal.SIGTERM:
            last = errors.strip().splitlines()[-1]
            assert (
                last
                == "neuronshield: stopped by SIGTERM; what is finished is kept, and the same command goes on from there"
            )
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    mine, other = (
        json.loads((tmp_path / "out" / "results.json").read_text()),
        json.loads((finished / "results.json").read_text()),
    )
    for results in (mine, other):
        del results["sha256"], results["seconds"]
    assert mine == other


# -- settings, studies and steps ---------------------------------------------------------------------------
@pytest.mark.slow
def test_steps_that_are_run_one_by_one_leave_what_a_run_leaves(finished: Path, study: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no find yet; run 'neuronshield find' first"):
        small_step("prove", study, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    small_step("find", study, tmp_path / "out")
    step(
        "prove", study / "model", study / "prompts.jsonl", tmp_path / "out", **QUIET
    )  # other settings are those of run.toml
    mine, other = computed(tmp_path / "out"), computed(finished)
    same = [name for name in other if name.startswith(("find/", "prove/", "neurons/"))]
    assert {name: mine[name] for name in same} == {name: other[name] for name in same}


def test_run_toml_repeats_the_run(copied: Path, finished: Path, tmp_path: Path, forwards: Callable[[], int]):
    from neuronshield.run.settings import read_settings, settings_of

    told = settings_of("run", None, read_settings(copied / "run.toml"))
    assert (told.k, told.draws, told.refusals, told.seed) == (3, 1, ("sorry",), 0)
    results = run(out=copied, settings=told, progress=False)  # of the same study: nothing is left to do
    assert forwards() == 0
    assert results["settings"] == json.loads((finished / "results.json").read_text())["settings"]
    assert (copied / "run.toml").read_text() == (finished / "run.toml").read_text()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "data .*; splits .*; seed 0, now 1"),
        ({"refusals": ["no"]}, "answers"),
        ({"cells": ["sw"]}, "data"),
    ],
)
def test_another_study_in_the_same_folder_is_refused_by_its_field(
    copied: Path, study: Path, changes: dict[str, Any], field: str
):
    before = contents(copied)
    with pytest.raises(InputError, match=f"out: holds another study .*{field}"):
        small_run(study, copied, **changes)
    with pytest.raises(InputError, match="holds another study"):
        small_step("check", study, copied, **changes)
    assert contents(copied) == before


def test_another_model_or_other_prompts_in_the_same_folder_are_refused(copied: Path, study: Path, llama: ns.Model):
    rows = tiny.records()
    rows[3] = {**rows[3], "target": "sure thing"}
    (copied.parent / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"holds another study \(data "):
        run(study / "model", copied.parent / "other.jsonl", copied, **QUIET, **SMALL)
    with pytest.raises(InputError, match=r"holds another study \(.*fingerprint "):
        run(
            llama,
            study / "prompts.jsonl",
            copied,
            **QUIET,
            **{k: v for k, v in SMALL.items() if k not in ("refusals", "compliances")},
        )


def test_other_settings_are_refused_before_anything_is_written(copied: Path, study: Path):
    before = contents(copied)
    with pytest.raises(
        InputError, match=r"out: shield was run with other settings \(steps 2, now 4\); .*shield --overwrite"
    ):
        small_run(study, copied, steps=4)
    with pytest.raises(InputError, match=r"out: find was run with other settings \(size \{'k': 3\}, now \{'k': 4\}\)"):
        small_step("check", study, copied, k=4)
    assert contents(copied) == before


@pytest.mark.slow
def test_a_step_that_is_run_again_makes_later_ones_stale_everywhere(copied: Path, study: Path):
    notes = copied / "adapter" / ".." / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(InputError, match=r"prove was run with other settings \(draws 1, now 2\)"):
        small_step("prove", study, copied, draws=2)
    results = small_step("prove", study, copied, draws=2, overwrite=True)
    assert results["stale"] == ["shield", "check"]
    assert ns.open(copied).stale == ["shield", "check"]
    assert "stale: shield, check" in repr(ns.open(copied))
    page = pipeline.write_report(copied).read_text(encoding="utf-8")
    assert "<b>Stale: shield and check.</b>" in page
    assert ns.open(copied).settings.draws == 2
    assert notes.read_text() == "mine"
    with pytest.raises(InputError, match="shield is stale"):
        small_step("check", study, copied, draws=2)


def test_a_step_that_is_done_is_not_run_again_and_says_so(
    copied: Path, study: Path, forwards: Callable[[], int], caplog: pytest.LogCaptureFixture
):
    small_step("find", study, copied)
    assert forwards() == 0
    assert "find: was done before; --overwrite runs it again" in caplog.text


def test_overwrite_of_a_run_keeps_what_has_the_same_settings(
    copied: Path, study: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[str] = []

    def find(job: Any) -> None:
        begun.append("find")

    def later(job: Any) -> None:
        raise Stop

    monkeypatch.setattr(pipeline, "STEPS", {"find": find, "prove": later, "shield": later, "check": later})
    with pytest.raises(Stop):
        small_run(study, copied, draws=2, overwrite=True)  # of prove
    assert begun == []
    with pytest.raises(Stop):
        small_run(study, copied, draws=2, overwrite=True)  # the same command goes on
    manifest = read_manifest(copied)
    assert manifest is not None
    assert (manifest.steps["find"].done, manifest.steps["prove"].done) == (True, False)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("neurons/candidates.safetensors", "find"),
        ("adapter/adapter_model.safetensors", "shield"),
        ("check/answers/shield.json", "check"),
    ],
)
def test_a_file_of_a_step_that_was_changed_is_found_before_anything_is_computed(
    copied: Path, study: Path, name: str, first: str, forwards: Callable[[], int]
):
    file = copied / name
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(
        InputError, match=f"{file.name}: is not the file that step {first} wrote; .*neuronshield {first} --overwrite"
    ):
        small_run(study, copied)
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name}: is gone"):
        small_step("check", study, copied)
    assert forwards() == 0


# -- bad input ---------------------------------------------------------------------------------------------
def test_bad_input_leaves_nothing_and_keeps_a_folder_that_was_there(study: Path, tmp_path: Path, llama: ns.Model):
    (tmp_path / "mine").mkdir()
    bad = tiny.records(languages=("en",))
    bad[5]["label"] = "evil"
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    for prompts, changes, said in (
        (tmp_path / "bad.jsonl", {}, r"bad\.jsonl:6"),
        (study / "prompts.jsonl", {"k": 10**6}, "the model has 87 neurons"),
        (study / "prompts.jsonl", {"judge": "wildgard"}, "did you mean 'wildguard'"),
        (study / "prompts.jsonl", {"hold_out": ["fr"]}, "no such cell"),
        (study / "prompts.jsonl", {"random_masks": 1}, "at least 2"),
        (study / "prompts.jsonl", {"dtype": "float32"}, "is loaded"),
    ):
        for out in (tmp_path / "mine", tmp_path / "a" / "out"):
            with pytest.raises(InputError, match=said):
                run(llama, prompts, out, **QUIET, **changes)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bad.jsonl", "mine"]


def test_a_step_that_fails_before_a_unit_is_finished_leaves_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline, "capture", fail)
    with pytest.raises(MemoryError):
        small_run(study, tmp_path / "a" / "out")
    assert not list(tmp_path.iterdir())


def test_a_language_without_a_refusal_to_teach_is_found_before_the_first_forward(tmp_path: Path):
    # trap: the third of four steps stops, hours later
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    model.module.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    rows = [{**row, "target": None} for row in tiny.records(languages=("sw",))]
    dutch = ns.PromptSet.from_records([{**row, "language": "nl"} for row in rows])
    with pytest.raises(InputError, match="no refusal to teach in language 'nl'"):
        run(model, dutch, tmp_path / "out", progress=False)
    with pytest.raises(InputError, match="no refusal to teach in language 'nl'"):
        examples(model, dutch)  # and before the model answers the benign ones
    assert not list(tmp_path.iterdir())


def test_what_each_claim_has_and_needs_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, llama: ns.Model
):
    def stop(job: Any) -> None:
        raise InterruptedError("first step")

    monkeypatch.setattr(pipeline, "STEPS", {"find": stop})
    prompts = tiny.prompts().with_splits()
    with caplog.at_level("INFO", "neuronshield"), pytest.raises(InterruptedError):
        run(llama, prompts, tmp_path / "out", progress=False)
    n = len({p.pair_id for p in prompts.where(split="confirm")})
    assert caplog.messages[0] == f"necessity: zero of the set: {n} requests, needs 5: too few"
    assert caplog.messages[-1] == "find"
    assert len(caplog.messages) == 20


def test_the_report_draws_transfer_only_where_a_cell_was_held_out(finished: Path, other_seed: Path):
    held = ns.open(other_seed)
    assert (held.shield.train_cells, held.check.compared_on) == (("en/text",), "untrained")
    for run_folder in (finished, other_seed):
        page = (run_folder / "report.html").read_text(encoding="utf-8")
        assert ("every other cell is zero-shot" in page) == (run_folder == other_seed)
        assert ("this run does not ask whether safety transfers" in page) != (run_folder == other_seed)


# -- the organism, from outside ----------------------------------------------------------------------------
@pytest.mark.slow
def test_the_command_line_runs_the_organism_on_prompts_with_pictures(tmp_path: Path):
    rows = organism.records(languages=["en", "sw"], modalities=["text", "image"], max_pairs=6)
    (tmp_path / "images").mkdir()
    with (tmp_path / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            names = []
            for image in row.pop("images"):
                names.append(f"images/{row['id']}.png")
                image.save(tmp_path / names[-1])
            file.write(json.dumps({**row, "images": names}, ensure_ascii=False) + "\n")
    command = [sys.executable, "-m", "neuronshield.cli", "run", "--prompts", str(tmp_path / "prompts.jsonl"), "--out",
               str(tmp_path / "out"), "--quiet", "--draws=2", "--steps=4", "--graded=4", "--random-masks=2"]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].endswith("report.html")
    said = process.stderr.splitlines()  # of six requests a cell, most claims cannot be told; --quiet leaves warnings
    assert all(line.startswith("neuronshield: ") and line.endswith("too few") for line in said), process.stderr
    r = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(r["check"]["cells"]["shield"]) == {"en/text", "en/image", "sw/text", "sw/image"}
    # every benign prompt of the organism has a target: the KL term acts on nothing
    assert (r["shield"]["retention"], r["shield"]["prompts"]["held"]) == (None, 0)
    assert r["shield"]["prompts"]["targets"] > 0
