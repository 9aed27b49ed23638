"""The settings of a run: one dataclass, whose fields are the options of the command line and the keys of run.toml.

A field that is None (or empty) is filled in for the model and its prompts (`neuronshield.run.plan`). run.toml has the settings in
force, with what was filled in, so that `neuronshield run --config out/run.toml` repeats a run.
"""

from __future__ import annotations

import getpass
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..core.arguments import unknown_keywords
from ..core.errors import InputError
from ..core.files import write_text
from ..model.hub import SHIPPED

__all__ = ["PATHS", "Settings", "read_settings", "run_file", "settings_of", "write_settings"]

#: Settings that may name a file or a folder.
PATHS = ("model", "adapter", "prompts")

#: Two ways to say how many candidates there are.
SIZES = ("k", "param_fraction")


def _option(text: str, default: Any = None) -> Any:
    """A setting, with the help text of its option."""
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is to do. A setting that is not given has the default of the model and its prompts.

    >>> Settings(method="effect_size", k=64).draws is None
    True

    The help text of each option says what it is; `neuronshield run --help` lists them.
    """

    # -- the model
    model: str = _option("organism, smollm2, a folder or a hub id.", "organism")
    revision: str | None = _option("Commit, tag or branch on the hub.")
    dtype: str | None = _option("float32, bfloat16 or float16.")
    device: str | None = _option("cpu, cuda or cuda:1.")
    device_map: str | None = _option("auto spreads the model over GPUs.")
    quantize: str | None = _option("4bit or 8bit, through bitsandbytes: to find and prove in, not to train.")
    adapter: str | None = _option("Folder of an adapter that is merged into the model.")
    trust_remote_code: bool = _option("Run code that the checkpoint brings.", False)
    template_options: Mapping[str, Any] = _option(
        "Option of the chat template, as NAME=VALUE (VALUE as JSON or text).", {}
    )
    # -- the prompts, and how answers are read
    prompts: str | None = _option("JSONL or Parquet file; the organism has its own.")
    cells: tuple[str, ...] = _option(
        "Language, modality or cell (sw, image, sw/text) that is studied; all without it.", ()
    )
    hold_out: tuple[str, ...] = _option("Language, modality or cell that is not trained.", ())
    refusals: tuple[str, ...] = _option("Refusal prefix, in place of the model's own.", ())
    compliances: tuple[str, ...] = _option("Compliance prefix, in place of the model's own.", ())
    judge: str | None = _option(
        "Judge of answers: a name of ns.judges, such as wildguard; without it answers are graded by words."
    )
    max_new_tokens: int | None = _option("Tokens an answer, in step check.")
    batch_size: int | None = _option("Prompts a forward.")
    seed: int = _option("Seed of every random draw.", 0)
    # -- find
    method: str | None = _option("Score that ranks neurons, such as contribution or effect_size.")
    k: int | None = _option("Candidates: how many neurons.")
    param_fraction: float | None = _option("Candidates: their share of the parameters, in place of k.")
    # -- prove
    draws: int | None = _option("Control sets of each kind that is drawn.")
    graded: int | None = _option("Matched pairs whose answers are generated and graded.")
    # -- shield
    steps: int | None = _option("Optimiser steps of the update and of every trained control.")
    lr: float | None = _option("Learning rate of the first step.")
    train_batch_size: int | None = _option("Prompts a training step.")
    retention: float | None = _option("Weight of the KL term that keeps benign answers as they were.")
    random_masks: int | None = _option("Masks of random neurons that are trained as controls.")


def settings_of(call: str, settings: Settings | None, changes: Mapping[str, Any]) -> Settings:
    """Settings with some of them changed; every value has the type of its field.

    >>> settings_of("run", None, {"k": 64}).k
    64
    >>> settings_of("run", None, {"seeds": 1})
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: run: seeds= is unknown; did you mean 'seed'? use one of model, revision, dtype, ...

    Args:
        call: the function, for messages.
        settings: to start from; the defaults without them.
        changes: fields of `Settings`.

    Raises:
        InputError: an unknown field, a value of another type, or two sizes.
    """
    known = {f.name: f for f in fields(Settings)}
    if unknown := [name for name in changes if name not in known]:
        unknown_keywords(unknown, list(known), call)
    given = {name: _value(call, name, value) for name, value in changes.items()}
    if any(given.get(name) is not None for name in SIZES):  # one size takes the place of the other
        given = {**dict.fromkeys(SIZES), **given}
    made = replace(settings or Settings(), **given)
    if made.k is not None and made.param_fraction is not None:
        raise InputError(
            f"{call}: k={made.k} and param_fraction={made.param_fraction:g} are two sizes; give one of them"
        )
    if made.seed < 0:
        raise InputError(f"{call}: seed={made.seed}: must be a whole number of at least 0")
    return made


def _value(call: str, name: str, value: Any) -> Any:
    """A value in the type of its field."""
    kind = str(Settings.__annotations__[name])
    if kind.startswith("tuple"):
        if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{call}: {name}={value!r:.60}: must be a list of texts, such as [{value!r:.20}]")
        return tuple(value)
    if kind.startswith("Mapping"):
        if not isinstance(value, Mapping):
            raise InputError(f"{call}: {name}={value!r:.60}: must be a table of options")
        return dict(value)
    if value is None and kind.endswith("| None"):
        return None
    wanted = kind.split(" |", maxsplit=1)[0]
    if wanted == "str" and isinstance(value, os.PathLike):
        return os.fspath(value)
    if wanted == "float" and type(value) is int:
        return float(value)
    if type(value).__name__ != wanted:
        what = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}[wanted]
        raise InputError(f"{call}: {name}={value!r:.60}: must be {what}")
    return value


# -- run.toml -------------------------------------------------------------------------------------------------
def run_file(folder: str | os.PathLike[str]) -> Path | None:
    """The run.toml of a run folder; None where there is none.

    >>> run_file("nowhere") is None
    True

    Args:
        folder: the run folder.
    """
    path = Path(folder) / "run.toml"
    return path if path.is_file() else None


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a TOML file has, by name.

    >>> read_settings(write_settings("run.toml", Settings(k=64)))["k"]
    64

    Args:
        path: the file. `prompts` and `adapter` in it are relative to its folder, and so is a `model` that begins with ./ or ../

    Raises:
        InputError: no such file, not TOML, an unknown setting, or a value of another type.
    """
    path = Path(path)
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: not a TOML file ({str(error).splitlines()[0]:.100})") from None
    made = settings_of(f"--config {path}", None, told)
    given = {name: getattr(made, name) for name in told}
    for name in PATHS:
        value = given.get(name)
        if isinstance(value, str) and (name != "model" or value.startswith(("./", "../"))):
            given[name] = os.path.normpath(path.parent / value)
    return given


def write_settings(path: str | os.PathLike[str], settings: Settings) -> Path:
    """Path of the TOML file that settings were written to.

    No artefact holds an absolute path or a user name: a path is written relative to the file's folder, or as its last component where
    the relative path has the name of the user in it.

    >>> "k = 64" in write_settings("run.toml", Settings(k=64)).read_text()
    True

    Args:
        path: the file.
        settings: those in force.
    """
    import tomli_w

    path = Path(path)
    told = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    for name in PATHS:
        if isinstance(told[name], str):
            told[name] = _kept_path(told[name], path.parent)
    kept = {
        name: list(v) if isinstance(v, tuple) else v for name, v in told.items() if v is not None and v not in ({}, ())
    }
    head = "# Settings of a run; neuronshield run --config FILE repeats it.\n"
    return write_text(path, head + tomli_w.dumps(kept))


def _kept_path(value: str, folder: Path) -> str:
    """How a path is written into a file of a folder: relative to it; a name that is no path as it is."""
    if value in SHIPPED or not Path(value).exists():
        return value
    place = Path(os.path.abspath(value))  # noqa: PTH100  # links stay links: what reads the file joins names, too
    try:
        relative = Path(os.path.relpath(place, folder.absolute()))
        users = {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, ValueError, RuntimeError):  # a process without a user, or another drive
        return place.name
    if users & set(relative.parts):
        return place.name
    return relative.as_posix() if relative.parts[0] == ".." else f"./{relative.as_posix()}"
