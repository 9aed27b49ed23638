"""The options of `neuronshield run` and its steps, made from `Settings`, so that both have the same names."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any

import click

from ..core.errors import InputError
from .settings import Settings, read_settings, settings_of

__all__ = ["engine_of_command", "run_options", "settings_of_command"]


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `run` and its steps share: those of a run, and one for each of its settings.

    >>> command = run_options(click.Command("run"))
    >>> sorted(option.name for option in command.params)[:4]
    ['adapter', 'address', 'batch_size', 'cells']

    Args:
        command: the command.
    """
    options = [
        click.option("--out", default="neuronshield-out", show_default=True, type=click.Path(), help="Run folder."),
        click.option("--config", type=click.Path(), help="TOML file with settings; options override it."),
        click.option("--overwrite", is_flag=True, help="Start again where the folder holds something else."),
        click.option("--quiet", is_flag=True, help="Print what each step found, and warnings; no progress."),
        click.option("-v", "--verbose", is_flag=True, help="Print everything that is logged."),
        *(_setting(field) for field in fields(Settings)),
        click.option(
            "--engine", type=click.Choice(["ray"]), help="Compute on a Ray cluster; results do not depend on it."
        ),
        click.option("--address", help="Ray cluster: auto, local, or an address such as 10.0.0.1:6379."),
        click.option("--replicas", type=click.INT, help="Ray: copies of the model."),
        click.option("--gpus-per-replica", type=click.FLOAT, help="Ray: GPUs of a copy."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _setting(field: Any) -> Callable[..., Any]:
    """The option of a setting."""
    name, kind, text = f"--{field.name.replace('_', '-')}", str(field.type), field.metadata["help"]
    if kind == "bool":
        return click.option(name, is_flag=True, default=None, help=text)
    if kind.startswith(("tuple", "Mapping")):
        value = (
            "NAME=VALUE" if kind.startswith("Mapping") else "NAME" if field.name in ("cells", "hold_out") else "TEXT"
        )
        return click.option(
            name, multiple=True, default=None, metavar=value, help=f"{text} May be given several times."
        )
    types = {"int": click.INT, "float": click.FLOAT, "str": click.STRING}
    shown = f" Default: {field.default}." if field.default is not None else ""
    return click.option(name, type=types[kind.partition(" |")[0]], help=text + shown)


def engine_of_command(given: dict[str, Any]) -> AbstractContextManager[Any]:
    """The engine of a command, ended with it; its options are taken out of those given.

    Args:
        given: options by name; changed in place.

    Raises:
        InputError: an option of Ray without it, or no cluster.
    """
    name, options = given.pop("engine"), {k: given.pop(k) for k in ("address", "replicas", "gpus_per_replica")}
    if name is None:
        if wrong := next((k for k, v in options.items() if v is not None), None):
            raise InputError(f"--{wrong.replace('_', '-')} is an option of --engine ray; give that too")
        return nullcontext()
    from ..model.ray_engine import RayEngine

    return RayEngine(options.pop("address"), **options)


def settings_of_command(given: dict[str, Any], config: str | None) -> Settings:
    """The settings of a command: those of --config, changed by the options that were given.

    >>> settings_of_command({"k": 64, "seed": None}, None).k
    64

    Args:
        given: options by name; None and () are not given.
        config: a TOML file.

    Raises:
        InputError: a wrong setting, or a model that cannot be had.
    """
    from ..model.hub import found, is_hub_id

    told = {name: value for name, value in given.items() if value not in (None, ())}
    if "template_options" in told:
        told["template_options"] = dict(map(_named, told["template_options"]))
    asked = settings_of("run", settings_of(f"--config {config}", None, read_settings(config)) if config else None, told)
    if is_hub_id(asked.model):  # said before torch is imported
        found(asked.model, revision=asked.revision)
    return asked


def _named(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON or as text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InputError(f"--template-options {text!r}: give NAME=VALUE, such as enable_thinking=false")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
