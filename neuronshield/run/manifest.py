"""The manifest of a run folder: what is studied, what each step was computed from, and which files are ours.

A study is a model, its prompts with their splits, and a seed. A step is current while its study, its settings and the results of the
steps before it are those that it was computed from; else it is stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.results import from_json, load_json, save_json, to_json
from ..data.prompts import PromptSet
from ..model.model import Model

__all__ = [
    "BEFORE",
    "STEP_NAMES",
    "Manifest",
    "StepState",
    "Study",
    "digest",
    "read_manifest",
    "study_of",
    "write_manifest",
]

FORMAT = "neuronshield.manifest/1"

#: The steps, each with those whose results it reads.
BEFORE: dict[str, tuple[str, ...]] = {
    "find": (),
    "prove": ("find",),
    "shield": ("find", "prove"),
    "check": ("find", "prove", "shield"),
}
STEP_NAMES = tuple(BEFORE)


@dataclass(frozen=True)
class Study:
    """What is studied. A step refuses the folder of another study.

    Attributes:
        model: name of the model.
        revision: commit, tag or branch on the hub.
        fingerprint: hash of its weights.
        dtype: of its weights.
        template: hash of its chat template and its options.
        data: hash of every column of every prompt, splits included.
        prompts: how many.
        splits: "given", or how they were dealt.
        seed: of every draw.
        answers: prefixes of refusals and compliances that are not the model's own, and the adapter.
    """

    model: str
    revision: str | None
    fingerprint: str
    dtype: str
    template: str | None
    data: str
    prompts: int
    splits: str
    seed: int
    answers: dict[str, Any] = field(default_factory=dict)

    def differs(self, other: Study) -> str:
        """Which fields differ from another study, with both values; empty where none does.

        Args:
            other: the study that is asked for.
        """
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return "; ".join(f"{name} {getattr(self, name)!s:.60}, now {getattr(other, name)!s:.60}" for name in names)


@dataclass(frozen=True)
class StepState:
    """The state of a step.

    Attributes:
        done: it is finished; else it was begun and can be continued.
        settings: that its results depend on.
        inputs: hash of the study and of the result of every step before it.
        output: hash of its result; empty until it is done.
        versions: of the packages that computed it.
        files: what it wrote, relative to the folder; a name that ends in "/" is a folder of finished units.
        checksums: SHA-256 of each file by its name; empty until it is done.
    """

    done: bool
    settings: dict[str, Any]
    inputs: dict[str, str]
    output: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The manifest of a folder.

    Attributes:
        study: what is studied.
        steps: those that were begun.
        files: what belongs to no step.
    """

    study: Study
    steps: dict[str, StepState] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    def inputs(self, step: str) -> dict[str, str]:
        """What a step would be computed from now: the study, and the results of the steps before it that are done.

        Args:
            step: its name.
        """
        found = {name: self.steps[name].output for name in BEFORE[step] if name in self.steps and self.steps[name].done}
        return {"study": digest(self.study), **found}

    def stale(self) -> list[str]:
        """Steps that are done and whose inputs have changed since, and those after them."""
        out: list[str] = []
        for step, state in sorted(self.steps.items(), key=lambda item: STEP_NAMES.index(item[0])):
            if state.done and (state.inputs != self.inputs(step) or set(BEFORE[step]) & set(out)):
                out.append(step)
        return out


def digest(value: Any) -> str:
    """Short hash of what JSON can hold of a value.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True

    Args:
        value: as `to_json` takes it.
    """
    return hashlib.sha256(json.dumps(to_json(value), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def study_of(model: Model, prompts: PromptSet, *, seed: int, dealt: bool, answers: Mapping[str, Any]) -> Study:
    """The study of a model and its prompts.

    >>> study_of(model, prompts, seed=0, dealt=False, answers={}).prompts
    60

    Args:
        model: the model.
        prompts: with splits.
        seed: of every draw.
        dealt: the splits were dealt with the seed; else they were given.
        answers: prefixes and adapter, where they are not the model's own.
    """
    about = model.provenance()
    return Study(
        model=str(about["model"]), revision=about["revision"], fingerprint=str(about["fingerprint"]), dtype=str(about["dtype"]),
        template=None if about["template"] is None else digest(about["template"]), data=prompts.hash(), prompts=len(prompts),
        splits=f"dealt with seed {seed}" if dealt else "given", seed=seed,
        answers={name: to_json(value) for name, value in answers.items() if value},
    )  # fmt: skip


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where it has none.

    Args:
        folder: the run folder.

    Raises:
        InputError: a damaged one, or one of another version.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    found = from_json(Manifest, load_json(path, FORMAT).get("manifest"))
    if unknown := sorted(set(found.steps) - set(STEP_NAMES)):
        raise InputError(f"{path}: unknown step {unknown[0]!r}; choose another --out")
    for name in [*found.files, *(name for state in found.steps.values() for name in state.files)]:
        if (
            not Path(name).parts or Path(name).is_absolute() or ".." in Path(name).parts
        ):  # `--overwrite` removes these files
            raise InputError(f"{path}: {name!r:.60} is no file of this folder; choose another --out")
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, beside and renamed.

    Args:
        folder: the run folder.
        manifest: its new content.
    """
    save_json(folder / "manifest.json", FORMAT, {"manifest": manifest})
