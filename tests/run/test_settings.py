"""Settings: one dataclass is the options of the command line and the keys of run.toml, and comes back as it was written."""

from __future__ import annotations

import getpass
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest

from neuronshield import InputError
from neuronshield.cli import cli
from neuronshield.run.settings import Settings, read_settings, run_file, settings_of, write_settings

STEPS = ("run", "find", "prove", "shield", "check")
#: Every field with a value that is not its default.
ALL = Settings(
    model="org/model", revision="main", dtype="bfloat16", device="cuda:1", device_map="auto", quantize="4bit", adapter="adapter",
    trust_remote_code=True, template_options={"enable_thinking": False, "n": 3}, prompts="p.jsonl", cells=("en", "sw/text"),
    hold_out=("sw",), refusals=("I \"can't\"", "لا"), compliances=("Sure\n",), judge="wildguard", max_new_tokens=3, batch_size=5, seed=7,
    method="effect_size", param_fraction=3e-4, draws=11, graded=13, steps=17, lr=1e-3, train_batch_size=19, retention=0.0, random_masks=23,
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_every_setting_is_an_option_of_the_same_name_with_a_sentence_of_help(step: str):
    options = {p.name: p for p in cli.commands[step].params if isinstance(p, click.Option)}
    parent = click.Context(cli, **cli.context_settings)  # click keeps the help option of the first context
    given = cli.commands[step].make_context(step, [], parent=parent).params
    for field in fields(Settings):
        option = options[field.name]
        assert option.opts == [f"--{field.name.replace('_', '-')}"]
        assert given[field.name] in (None, ()), "what is not given is not a setting"
        assert (option.help or "").startswith(field.metadata["help"])
        assert field.metadata["help"].endswith(".")


def test_settings_come_back_from_their_file_as_they_were(tmp_path: Path):
    assert all(getattr(ALL, f.name) != getattr(Settings(), f.name) for f in fields(Settings) if f.name != "k")
    path = write_settings(tmp_path / "run.toml", replace(ALL, adapter=None, prompts=None))
    assert settings_of("run", None, read_settings(path)) == replace(ALL, adapter=None, prompts=None)
    assert settings_of("run", None, read_settings(write_settings(path, Settings()))) == Settings()
    assert tomllib.loads(path.read_text())["model"] == "organism"
    assert run_file(tmp_path) == path
    assert run_file(tmp_path / "nowhere") is None


def test_a_setting_changes_and_the_others_stay():
    assert settings_of("run", ALL, {"seed": 8}) == replace(ALL, seed=8)
    assert settings_of("run", None, {"hold_out": ["sw"], "lr": 1, "model": Path("a/b")}) == Settings(
        hold_out=("sw",), lr=1.0, model="a/b"
    )


def test_one_size_takes_the_place_of_the_other():
    assert settings_of("run", Settings(k=64), {"param_fraction": 0.1}) == Settings(param_fraction=0.1)
    assert settings_of("run", Settings(param_fraction=0.1), {"k": 64}) == Settings(k=64)
    assert settings_of("run", Settings(k=64), {"seed": 1}).k == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 1}, "seeds= is unknown; did you mean 'seed'"),
        ({"k": 64, "param_fraction": 0.1}, "k=64 and param_fraction=0.1 are two sizes; give one of them"),
        ({"k": "64"}, "k='64': must be a whole number"),
        ({"k": 64.0}, "k=64.0: must be a whole number"),
        ({"seed": True}, "seed=True: must be a whole number"),
        ({"seed": -1}, "seed=-1: must be a whole number of at least 0"),
        ({"lr": "fast"}, "lr='fast': must be a number"),
        ({"trust_remote_code": "yes"}, "trust_remote_code='yes': must be true or false"),
        ({"hold_out": "sw"}, r"hold_out='sw': must be a list of texts, such as \["),
        ({"refusals": [1]}, r"refusals=\[1\]: must be a list of texts"),
        ({"template_options": ["a"]}, r"template_options=\['a'\]: must be a table"),
        ({"model": None}, "model=None: must be a text"),
    ],
)
def test_what_is_no_setting_is_one_line_from_python_and_from_a_file(changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(InputError, match=f"^run: {said}"):
        settings_of("run", None, changes)
    if None not in changes.values():
        import tomli_w

        (tmp_path / "run.toml").write_text(tomli_w.dumps(changes))
        with pytest.raises(InputError, match=rf"^--config .*run\.toml: {said}"):
            read_settings(tmp_path / "run.toml")


@pytest.mark.parametrize("text", ["k = ", "k: 3", "\xff", "[" * 5000, "a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_one_line(text: str, tmp_path: Path):
    (tmp_path / "run.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"^--config .*run\.toml: not a TOML file") as caught:
        read_settings(tmp_path / "run.toml")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_is_a_folder_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"run\.toml: no such file"):
        read_settings(tmp_path / "run.toml")
    with pytest.raises(InputError, match="not a TOML file"):
        read_settings(tmp_path)


# -- paths -------------------------------------------------------------------------------------------------
def test_paths_are_written_relative_to_the_file_and_lead_back_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("models/toy", "adapters/a", "runs/out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "p.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    named = Settings(model="models/toy", adapter=str(tmp_path / "adapters" / "a"), prompts="runs/p.jsonl")
    path = write_settings("runs/out/run.toml", named)
    told = tomllib.loads(path.read_text())
    assert (told["model"], told["adapter"], told["prompts"]) == ("../../models/toy", "../../adapters/a", "../p.jsonl")
    monkeypatch.chdir(tmp_path / "models")
    read = read_settings("../runs/out/run.toml")
    for name in ("model", "adapter", "prompts"):
        assert (tmp_path / getattr(named, name)).samefile(read[name])


def test_a_name_that_is_no_path_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "organism").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("organism", "org/model"):
        path = write_settings(tmp_path / "run.toml", Settings(model=name))
        assert read_settings(path)["model"] == name
    (tmp_path / "mine.toml").write_text('prompts = "data/p.jsonl"\nmodel = "org/model"')
    assert read_settings("mine.toml") == {"prompts": "data/p.jsonl", "model": "org/model"}
    monkeypatch.chdir("/")
    assert read_settings(tmp_path / "mine.toml")["prompts"] == str(tmp_path / "data" / "p.jsonl")


def test_the_name_of_the_user_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    home = tmp_path / "alice" / "secret"
    home.mkdir(parents=True)
    path = write_settings(tmp_path / "out" / "run.toml", Settings(model=str(home)))
    assert "alice" not in path.read_text()
    assert tomllib.loads(path.read_text())["model"] == "secret"
