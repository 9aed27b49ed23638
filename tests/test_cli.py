"""The command line, in process: its commands and options, exit statuses, and one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click
import pytest
import torch

import neuronshield as ns
from neuronshield import cli
from neuronshield.core.errors import InputError
from neuronshield.run.settings import Settings

pytest_plugins = ["finished_runs"]

RAY = {"engine", "address", "replicas", "gpus_per_replica"}
COMMON = {"out", "config", "overwrite", "quiet", "verbose", *RAY, *(field.name for field in fields(Settings))}
#: command -> its options and arguments
COMMANDS = {
    "run": COMMON | {"plan"},
    "find": COMMON,
    "prove": COMMON,
    "shield": COMMON,
    "check": COMMON,
    "report": {"out"},
    "explore": {"out", "save"},
    "regrade": {"out", "judge"},
    "answers": {"out", "cell", "condition", "label", "export"},
    "compare": {"runs", "figure"},
    "completion": {"shell"},
    "fetch": {"what", "out", "n", "seed"},
    "doctor": {"model", "dtype", "device", "quantize", "trust_remote_code"},
    "organism": set[str](),
    "protocol": set[str](),
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
    assert set(group.commands["protocol"].commands) == {"modality"}  # type: ignore[attr-defined]


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
        (KeyboardInterrupt(), 130, "neuronshield: interrupted; what is finished is kept, and the same command goes on from there"),
        (cli._Stopped(15), 143, "neuronshield: stopped by SIGTERM; what is finished is kept, and the same command goes on from there"),
        (cli._Stopped(1), 129, "neuronshield: stopped by SIGHUP; what is finished is kept, and the same command goes on from there"),
        (cli._Unprinted(OSError(28, "No space left on device")), 1, "neuronshield: standard output: No space left on device; results are complete"),
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
            ["run", "--k", "3", "--param-fraction", "0.1"],
            "run: k=3 and param_fraction=0.1 are two sizes; give one of them",
        ),
        (["run", "--seed", "-1"], "seed=-1: must be a whole number of at least 0"),
        (["run", "--template-options", "thinking"], "--template-options 'thinking': give NAME=VALUE"),
        (["run", "--config", "gone.toml"], "--config gone.toml: no such file"),
        (["run", "--replicas", "2"], "--replicas is an option of --engine ray"),
        (["answers", "nowhere"], "nowhere: no answers.parquet; run 'neuronshield check' first"),
        (["regrade", "nowhere", "--judge", "words"], "nowhere: holds no run"),
        (["explore", "nowhere"], "nowhere: holds no run"),
        (["compare", "nowhere"], "give two runs or more"),
        (["compare", "nowhere", "there"], "nowhere: holds no run"),
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


# -- on a finished run -------------------------------------------------------------------------------------
Said = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_a_run_that_is_finished_says_what_each_step_found_and_where_the_report_is(said: Said, copied: Path):
    status, out, err = said("run", "--config", str(copied / "run.toml"), "--out", str(copied), "--quiet")
    assert status == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["find", "prove", "shield", "check"]
    assert lines[-1] == str(copied / "report.html")
    assert all(line.endswith("too few") for line in err.splitlines() if line.startswith("neuronshield"))


@pytest.mark.slow
def test_a_step_takes_what_is_not_given_from_the_folder(said: Said, copied: Path, caplog: pytest.LogCaptureFixture):
    status, _, _ = said("prove", "--out", str(copied), "--quiet")
    assert (status, caplog.messages[-1]) == (0, "prove: was done before; --overwrite runs it again")
    status, _, err = said("prove", "--out", str(copied), "--quiet", "--draws", "2")
    assert status == 2
    assert "prove was run with other settings (draws 1, now 2)" in err
    status, _, err = said("check", "--out", str(copied), "--quiet", "--seed", "1")
    assert status == 2
    assert "holds another study" in err


class Full:
    """Standard output that takes a few lines."""

    def __init__(self, error: OSError, lines: int) -> None:
        self.error, self.left = error, lines

    def write(self, text: str) -> int:
        self.left -= text.count("\n")
        if self.left < 0:
            raise self.error
        return len(text)

    def flush(self) -> None:
        if self.left < 0:
            raise self.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [(BrokenPipeError(32, "Broken pipe"), 141, ""),
     (OSError(28, "No space left on device"), 1, "neuronshield: standard output: No space left on device; results are complete")],
)  # fmt: skip
@pytest.mark.parametrize("lines", [0, 2, 4])
def test_a_run_whose_output_cannot_be_printed_goes_on_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    copied: Path,
    error: OSError,
    status: int,
    line: str,
    lines: int,
):
    (copied / "report.html").unlink()
    monkeypatch.setattr(
        "sys.argv", ["neuronshield", "run", "--config", str(copied / "run.toml"), "--out", str(copied), "--quiet"]
    )
    monkeypatch.setattr("sys.stdout", Full(error, lines))
    monkeypatch.setattr("os.dup2", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == status
    assert (copied / "report.html").is_file()
    assert capsys.readouterr().err.splitlines()[-1:] in ([line], []) if line else True


def test_answers_are_printed_so_that_a_terminal_obeys_none_and_exported(said: Said, copied: Path):
    status, out, _ = said("answers", str(copied), "--cell", "sw/text", "--condition", "shield", "--label", "harmful")
    lines = out.splitlines()
    assert status == 0
    assert len(lines) % 3 == 0
    assert lines[0].startswith(("shield | sw/text | harmful | ", "shield, 1 steps | sw/text | harmful | "))
    assert lines[2].startswith("  -> ")
    assert cli._plain("a\x1b[2J\n\u202e <b> لا") == "a\\x1b[2J\\n\\u202e <b> لا"
    status, out, _ = said("answers", str(copied), "--export", str(copied / "a.csv"))
    assert (status, out.strip()) == (0, str(copied / "a.csv"))
    status, _, err = said("answers", str(copied), "--condition", "sheild")
    assert status == 2
    assert "no answers with condition 'sheild'" in err


def test_runs_are_compared_on_the_screen_and_in_a_figure(said: Said, finished: Path, other_seed: Path, tmp_path: Path):
    figure = tmp_path / "compared.html"
    status, out, _ = said("compare", str(finished), str(other_seed), "--figure", str(figure))
    assert status == 0
    assert "candidates, seed-0 and seed-1: " in out
    assert out.splitlines()[-1] == str(figure)
    assert "Plotly.newPlot" in figure.read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(said: Said, shell: str):
    status, out, _ = said("completion", shell)
    assert status == 0
    assert f"_NEURONSHIELD_COMPLETE={shell}_complete" in out
