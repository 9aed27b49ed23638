"""The command line, in process: its commands and options, exit statuses, and one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch

import neuronshield as ns
from neuronshield import cli
from neuronshield.core.errors import InputError

COMMON = {"model", "prompts", "out", "hold_out", "seed", "quiet"}
#: command -> its options and arguments
COMMANDS = {
    "run": COMMON,
    "find": COMMON,
    "prove": COMMON,
    "shield": COMMON,
    "check": COMMON,
    "report": {"out"},
    "fetch": {"what", "out", "n", "seed"},
    "doctor": {"model", "dtype", "device", "quantize", "trust_remote_code"},
    "organism": set[str](),
}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line with some arguments: exit status, standard output, standard error."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["neuronshield", *args])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


def test_every_command_has_the_options_that_the_docs_name():
    group = cli.cli
    assert set(group.commands) == set(COMMANDS)
    for name, options in COMMANDS.items():
        assert {p.name for p in group.commands[name].params} == options, name
    assert set(group.commands["organism"].commands) == {"build"}  # type: ignore[attr-defined]


def test_help_lists_every_command_with_one_sentence(said: Callable[..., tuple[int, str, str]]):
    status, out, err = said("--help")
    assert (status, err) == (0, "")
    for name, command in cli.cli.commands.items():
        assert name in out
        assert command.get_short_help_str(200).endswith("."), name
    status, out, _ = said("find", "-h")
    assert status == 0
    assert all(f"--{option.replace('_', '-')}" in out for option in COMMON)


def test_the_version_is_the_packages(said: Callable[..., tuple[int, str, str]]):
    status, out, _ = said("--version")
    assert status == 0
    assert ns.__version__ in out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("prompts.jsonl:7: no label"), 2, "neuronshield: prompts.jsonl:7: no label"),
        (click.UsageError("no such option"), 2, "neuronshield: no such option"),
        (KeyboardInterrupt(), 130, "neuronshield: interrupted; no partial results are left"),
        (OSError(28, "No space left on device", "out/results.json"), 2,
         "neuronshield: out/results.json: No space left on device"),
        *((error, 2, "neuronshield: out of memory; give fewer or shorter prompts, or a smaller model or one in bfloat16") for error in (
            MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_with_its_exit_status(
    said: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    line: str,
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    assert said("run") == (status, "", line + "\n")


def test_a_bug_is_no_bad_input(said: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(OSError):  # noqa: PT011
        said("run")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["report", "--out", "nowhere"], "nowhere: no results.json; run 'neuronshield run' first"),
        (["fetch", "advbench"], "fetch advbench: --out FILE is needed"),
        (["fetch", "everything"], "everything"),
        (["prove", "--prompts", "gone.jsonl"], "gone.jsonl"),
        (["shield", "--seed", "x"], "not a valid integer"),
        (["find", "--lang", "en"], "No such option"),
        (
            ["doctor", "organism", "--device", "gpu"],
            "load: device='gpu' is not available; use 'cpu', 'cuda' or 'cuda:1'",
        ),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    said: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    line: str,
):
    monkeypatch.chdir(tmp_path)
    status, out, err = said(*args)
    assert (status, out) == (2, "")
    assert err.startswith("neuronshield: ")
    assert err.count("\n") == 1
    assert line in err
    assert not any(tmp_path.iterdir())


def test_a_data_set_is_written_as_json_lines(
    said: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{"id": "a", "prompt": "cómo", "label": "benign"}, {"id": "b", "prompt": "how", "label": "harmful"}]
    asked: list[object] = []

    def dataset(what: str, **options: object) -> list[dict[str, str]]:
        asked.append((what, options))
        return rows

    monkeypatch.setattr("neuronshield.data.fetch.dataset", dataset)
    file = tmp_path / "advbench.jsonl"
    assert said("fetch", "advbench", "--out", str(file), "-n", "5", "--seed", "3")[0] == 0
    assert asked == [("advbench", {"n": 5, "seed": 3})]
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == rows
    assert [p.name for p in tmp_path.iterdir()] == ["advbench.jsonl"]
