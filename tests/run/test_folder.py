"""The run folder: what may be written where, what is left alone, who may write, and what is removed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuronshield import InputError
from neuronshield.core.files import beside
from neuronshield.core.folders import replacing_folder
from neuronshield.core.results import save_json
from neuronshield.run.folder import FORMAT, check_folder, open_folder, read_results, remove_file, write_results
from neuronshield.run.log import logged
from neuronshield.run.manifest import FORMAT as MANIFEST_FORMAT
from neuronshield.run.manifest import StepState, Study, read_manifest

STUDY = Study(
    model="toy", revision=None, fingerprint="f00d", dtype="float32", template=None, data="cafe", prompts=60,
    splits="dealt with seed 0", seed=0,
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "find": {"k": 3},
    "prove": {"draws": 1},
    "shield": {"steps": 2},
    "check": {"judge": None},
}


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def finish(out: Path, *steps: str, value: int = 1, study: Study = STUDY, overwrite: bool = False) -> None:
    """Run steps that leave one number and one file each."""
    with open_folder(out, study, overwrite=overwrite) as folder:
        for step in steps:
            folder.needed(step)
            if folder.begin(step, SETTINGS[step], again=overwrite):
                folder.own(f"{step}/unit.json", step=step)
                write(out / step, unit_json="{}")
                folder.finish(step, {step: value}, seconds=0.0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with a run of all steps, and with notes of its owner."""
    finish(tmp_path / "out", *SETTINGS)
    write(tmp_path / "out" / "find", notes_txt="mine")
    write(tmp_path / "out", results_txt="mine")
    return tmp_path / "out"


# -- where a run may be written ----------------------------------------------------------------------------
def test_a_folder_that_is_new_or_empty_or_holds_a_run_may_be_written(tmp_path: Path, out: Path):
    assert check_folder(tmp_path / "a" / "b") == tmp_path
    assert check_folder(write(tmp_path / "empty")) == tmp_path / "empty"
    assert check_folder(out) == out


def test_a_file_or_a_folder_with_something_else_may_not(tmp_path: Path):
    write(tmp_path / "mine", notes_txt="x", results_json='{"lm_eval": 1}')
    with pytest.raises(
        InputError, match=r"mine: is not empty and holds no manifest\.json of neuronshield.*another folder"
    ):
        check_folder(tmp_path / "mine")
    with pytest.raises(InputError, match=r"notes\.txt: is a file; choose a folder"):
        check_folder(tmp_path / "mine" / "notes.txt")
    with pytest.raises(InputError, match="cannot be written"):
        check_folder(tmp_path / "mine" / "notes.txt" / "out")
    assert names(tmp_path / "mine") == ["notes.txt", "results.json"]


@pytest.mark.parametrize(
    "text", ["{}", '{"name": "my web app", "icons": []}', "[]", "nothing", '{"format": "neuronshield.manifest/0"}']
)
def test_a_folder_with_the_manifest_of_another_program_is_refused_and_left_as_it_was(tmp_path: Path, text: str):
    write(tmp_path / "app", manifest_json=text, index_html="<p>")
    with pytest.raises(InputError, match=r"manifest\.json"), open_folder(tmp_path / "app", STUDY, overwrite=True):
        pytest.fail("opened")
    assert names(tmp_path / "app") == ["index.html", "manifest.json"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # of the superuser nothing is read-only
    with pytest.raises(InputError, match=r"cannot be written .* is not a writable folder"):
        check_folder(tmp_path / "out")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("no second file system")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def test_a_link_to_a_folder_on_another_file_system_is_written_like_any(tmp_path: Path, elsewhere: Path):
    (tmp_path / "out").symlink_to(elsewhere)
    finish(tmp_path / "out", "find")
    finish(tmp_path / "out", "find", value=2, overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert json.loads((elsewhere / "find" / "result.json").read_text())["sections"] == {"find": 2}


# -- who may write -----------------------------------------------------------------------------------------
def hold(out: Path, ready: Any) -> None:
    """Begin a run and never end it."""
    with open_folder(out, STUDY):
        ready.set()
        time.sleep(60)


def test_a_second_process_is_refused_until_the_first_one_ends_however_it_ends(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    writer = fork.Process(target=hold, args=(tmp_path / "out", ready))
    writer.start()
    try:
        assert ready.wait(20)
        before = names(tmp_path)
        with pytest.raises(
            InputError, match="out: another run is writing there; wait for it, or choose another folder"
        ):
            finish(tmp_path / "out", "find")
        assert names(tmp_path) == before
    finally:
        writer.kill()  # SIGKILL
        writer.join()
    finish(tmp_path / "out", "find")


def test_a_folder_that_was_removed_and_made_again_is_not_written_by_two(tmp_path: Path):
    with open_folder(tmp_path / "out", STUDY):
        (tmp_path / "out" / ".lock").unlink()
        with open_folder(tmp_path / "out", STUDY) as second:  # a lock of its own
            assert second.manifest.study == STUDY


# -- one study a folder ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "value"),
    [("fingerprint", "beef"), ("data", "d00d"), ("splits", "given"), ("seed", 1), ("answers", {"refusals": ["no"]}), ("template", "t"),
     ("dtype", "bfloat16"), ("revision", "main")],
)  # fmt: skip
def test_another_study_is_refused_by_the_field_that_differs_and_starts_again_if_asked(
    out: Path, field: str, value: Any
):
    other = replace(STUDY, **{field: value})
    before = names(out)
    with pytest.raises(InputError, match=rf"out: holds another study \({field} .*, now .*\); .*--overwrite"):
        finish(out, "find", study=other)
    assert names(out) == before
    finish(out, "find", study=other, overwrite=True)
    manifest = read_manifest(out)
    assert manifest is not None
    assert (manifest.study, list(manifest.steps)) == (other, ["find"])
    assert names(out) == [
        ".lock",
        "find",
        "find/notes.txt",
        "find/result.json",
        "find/unit.json",
        "manifest.json",
        "results.txt",
    ]


def test_a_step_needs_those_before_it_done_and_current(tmp_path: Path):
    with pytest.raises(InputError, match="no find yet; run 'neuronshield find' first"):
        finish(tmp_path / "out", "prove")
    finish(tmp_path / "out", "find", "prove")
    finish(tmp_path / "out", "find", value=2, overwrite=True)
    with pytest.raises(InputError, match=r"prove is stale .*; run 'neuronshield prove' first"):
        finish(tmp_path / "out", "shield")
    finish(tmp_path / "out", "prove", "shield")


def test_a_step_that_is_run_again_with_another_result_makes_later_ones_stale(out: Path):
    finish(out, "find", value=2, overwrite=True)
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.stale() == ["prove", "shield", "check"]
    finish(out, "find", overwrite=True)  # the first result again
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.stale() == []


def test_a_step_that_was_run_with_other_settings_is_refused_with_both(out: Path):
    asked = {**SETTINGS, "shield": {"steps": 9}}
    with open_folder(out, STUDY) as folder:
        with pytest.raises(
            InputError, match=r"shield was run with other settings \(steps 2, now 9\); give the same.*run\.toml"
        ):
            folder.agree(asked)
        folder.agree(asked, free=["shield"])
        folder.agree(SETTINGS)
        assert not folder.begin("shield", SETTINGS["shield"])
        assert folder.begin("shield", asked["shield"])
    finish(out, "find", value=2, overwrite=True)
    with open_folder(out, STUDY) as folder:
        folder.agree({**SETTINGS, "check": {"judge": "wildguard"}})  # it is stale


def test_a_step_that_was_begun_goes_on_and_one_that_is_done_is_not_run(out: Path):
    with open_folder(out, STUDY) as folder:
        assert folder.begin("check", SETTINGS["check"], again=True)
        folder.own("check/unit.json", step="check")
        write(out / "check", unit_json="half")
    with open_folder(out, STUDY) as folder:
        assert folder.begin("check", SETTINGS["check"])
        assert folder.begin("check", SETTINGS["check"], again=True)  # so that the same command goes on
        assert (out / "check" / "unit.json").read_text() == "half"
        assert not folder.begin("find", SETTINGS["find"])


# -- what is removed ---------------------------------------------------------------------------------------
def test_only_files_of_the_manifest_are_removed(out: Path):
    write(out / "adapter", mine_bin="x")
    with open_folder(out, STUDY) as folder:
        folder.remove()
    assert names(out) == [".lock", "adapter", "adapter/mine.bin", "find", "find/notes.txt", "results.txt"]


def test_a_file_of_somebody_else_in_an_adapter_of_ours_is_found_before_anything_is_removed(out: Path):
    def fill(folder: Path) -> None:
        write(folder, weights_bin="w")

    with open_folder(out, STUDY) as folder:
        folder.own("adapter/", step="shield")
        replacing_folder(out / "adapter", fill)
        write(out / "adapter", notes_txt="mine")
        before = names(out)
        with pytest.raises(InputError, match=r"adapter: holds 'notes\.txt', which neuronshield did not write"):
            folder.begin("shield", SETTINGS["shield"], again=True)
        assert names(out) == before
        (out / "adapter" / "notes.txt").unlink()
        assert folder.begin("shield", SETTINGS["shield"], again=True)
    assert not (out / "adapter").exists()


def test_finished_units_are_removed_and_notes_beside_them_are_not(tmp_path: Path):
    write(tmp_path / "find" / "journal" / "0a", a_safetensors="u", b_txt="mine")
    write(tmp_path / "find" / "journal" / "1b", a_safetensors="u")
    remove_file(tmp_path, "find/journal/")
    assert names(tmp_path / "find") == ["journal", "journal/0a", "journal/0a/b.txt"]


def test_what_a_killed_process_left_half_written_is_removed_and_hidden_files_of_others_are_not(out: Path):
    left = [beside(out / "results.json"), beside(out / "find" / "unit.json"), beside(out / "check" / "x.json", "old")]
    for path in left:
        path.write_text("ha")
    kept = [out / ".gitignore", out / "find" / ".cache.partial", beside(write(out / "other-run") / "results.json")]
    for path in kept:
        path.write_text("mine")
    finish(out, "find")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("name", ["../precious/", "/etc/", "neurons/../../precious/", ".", "./", ""])
def test_a_manifest_that_names_files_outside_the_folder_is_refused(tmp_path: Path, name: str):
    write(tmp_path / "precious", thesis_json="x")
    finish(tmp_path / "out", "find")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    state = replace(manifest.steps["find"], files=(name,))
    save_json(
        tmp_path / "out" / "manifest.json", MANIFEST_FORMAT, {"manifest": replace(manifest, steps={"find": state})}
    )
    with pytest.raises(InputError, match="is no file of this folder"):
        finish(tmp_path / "out", "find", study=replace(STUDY, seed=1), overwrite=True)
    assert names(tmp_path / "precious") == ["thesis.json"]


# -- nothing half-done -------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [InputError("bad prompts"), KeyboardInterrupt(), MemoryError()])
def test_an_error_before_anything_is_finished_leaves_nothing(tmp_path: Path, error: BaseException):
    def fail(out: Path) -> None:
        with open_folder(out, STUDY) as folder:
            folder.own("run.toml", "results.json")
            write(out, run_toml="", results_json="")
            raise error

    with pytest.raises(type(error)):
        fail(tmp_path / "a" / "b" / "out")
    assert names(tmp_path) == []
    write(tmp_path / "mine")
    with pytest.raises(type(error)):
        fail(tmp_path / "mine")
    assert names(tmp_path) == ["mine"]


def test_an_error_after_a_unit_is_finished_leaves_it(tmp_path: Path):
    def fail() -> None:
        with open_folder(tmp_path / "out", STUDY) as folder:
            folder.begin("find", SETTINGS["find"])
            folder.own("find/journal/", step="find")
            write(tmp_path / "out" / "find" / "journal", a_json="unit")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "out" / "find" / "journal" / "a.json").read_text() == "unit"
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.steps == {"find": StepState(False, {"k": 3}, manifest.inputs("find"), versions=manifest.steps["find"].versions,
                                                files=("find/result.json", "find/journal/"))}  # fmt: skip


def test_what_is_logged_is_kept_and_the_logger_is_left_as_it_was(tmp_path: Path):
    logger = logging.getLogger("neuronshield")
    before = (logger.level, list(logger.handlers))
    with open_folder(tmp_path / "out", STUDY):
        logger.info("capture of 60 prompts")
    assert "INFO capture of 60 prompts" in (tmp_path / "out" / "run.log").read_text()
    assert (logger.level, list(logger.handlers)) == before


def test_a_full_disk_does_not_print_a_traceback_for_every_line_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with logged(full):
        logging.getLogger("neuronshield").info("x")
    assert capsys.readouterr().err == ""


# -- results -----------------------------------------------------------------------------------------------
def test_the_result_of_a_step_that_was_changed_by_hand_is_refused(out: Path):
    path = out / "find" / "result.json"
    with open_folder(out, STUDY) as folder:
        assert folder.result("find")["sections"] == {"find": 1}
        save_json(path, "neuronshield.step/1", {"sections": {"find": 2}, "seconds": 0.0})
        with pytest.raises(
            InputError, match=r"find/result\.json: not the result that manifest\.json names; .*find --overwrite"
        ):
            folder.result("find")
        path.write_text(path.read_text().replace("2", "3"))
        with pytest.raises(InputError, match="damaged"):
            folder.result("find")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"no results\.json; run 'neuronshield run' first"),
        ("{nope", r"results\.json"),
        ("[]", r"results\.json"),
        ('{"format": "neuronshield.results/2"}', r"results\.json"),
        (f'{{"format": "{FORMAT}", "seed": 3}}', "damaged"),
    ],
)
def test_results_that_cannot_be_read_are_refused(text: str | None, said: str, tmp_path: Path):
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_results(tmp_path)


def test_what_json_cannot_hold_leaves_the_old_results(tmp_path: Path):
    write_results(tmp_path, {"seed": 3})
    with pytest.raises(TypeError):
        write_results(tmp_path, {"seed": object()})
    assert read_results(tmp_path) == {"format": FORMAT, "seed": 3}
    assert names(tmp_path) == ["results.json"]
