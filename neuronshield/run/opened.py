"""Finished runs, read back: `ns.open("out")` gives typed results, neuron sets, moments, answers and the adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from ..check.evaluation import Evaluation
from ..core.arguments import require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import from_json
from ..find.cells import CellSets
from ..find.groups import Stats
from ..find.scores import contrast
from ..find.selection import Scores
from ..prove.verdict import Proof
from .answer_files import read_answers
from .folder import read_results
from .headlines import headlines
from .manifest import STEP_NAMES, Manifest, Study, read_manifest
from .sections import AttackSection, CheckSection, FindSection, PromptSummary, ShieldSection
from .settings import Settings, read_settings, settings_of

__all__ = ["Run", "open_run"]


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run folder, read back; every part is read when it is first used.

    >>> run = ns.open("out")                                                    # doctest: +SKIP
    >>> run.find.n_neurons, run.proof.word, len(run.verified)                   # doctest: +SKIP
    (64, 'passed', 64)

    Attributes:
        folder: the run folder.
        manifest: its study and its steps.
    """

    folder: Path
    manifest: Manifest

    @property
    def study(self) -> Study:
        """What was studied: model, prompts, splits, seed."""
        return self.manifest.study

    @property
    def steps(self) -> list[str]:
        """The steps that are done, in order."""
        return [name for name in STEP_NAMES if name in self.manifest.steps and self.manifest.steps[name].done]

    @property
    def stale(self) -> list[str]:
        """Steps whose inputs have changed since they were run."""
        return self.manifest.stale()

    @cached_property
    def results(self) -> dict[str, Any]:
        """What results.json holds."""
        return read_results(self.folder)

    @cached_property
    def settings(self) -> Settings:
        """The settings in force, as run.toml has them."""
        return settings_of("open", None, read_settings(self.folder / "run.toml"))

    def _section(self, name: str, kind: Callable[..., Any]) -> Any:
        if name not in self.results:
            step = "check" if name == "attack" else name
            raise InputError(f"{self.folder}: no {step} yet; run 'neuronshield {step} --out {self.folder.name}' first")
        return from_json(kind, self.results[name])  # type: ignore[arg-type]

    @cached_property
    def prompts(self) -> PromptSummary:
        """How many prompts there are, by cell, split and label."""
        return self._section("prompts", PromptSummary)  # type: ignore[no-any-return]

    @cached_property
    def find(self) -> FindSection:
        """What step find found."""
        return self._section("find", FindSection)  # type: ignore[no-any-return]

    @cached_property
    def proof(self) -> Proof:
        """What step prove found."""
        return Proof.from_dict(self._section("prove", dict))

    @cached_property
    def shield(self) -> ShieldSection:
        """What step shield trained."""
        return self._section("shield", ShieldSection)  # type: ignore[no-any-return]

    @cached_property
    def check(self) -> CheckSection:
        """What step check found."""
        return self._section("check", CheckSection)  # type: ignore[no-any-return]

    @cached_property
    def attack(self) -> AttackSection:
        """The shield after white-box attacks."""
        return self._section("attack", AttackSection)  # type: ignore[no-any-return]

    # -- neurons ----------------------------------------------------------------------------------------
    @cached_property
    def stats(self) -> Stats:
        """The moments that step find captured."""
        _ = self.find
        return Stats.load(self.folder / "find" / "stats.safetensors")

    @cached_property
    def scores(self) -> Scores:
        """The score of every neuron in every cell."""
        return contrast(self.stats, method=self.find.method)

    @cached_property
    def sets(self) -> CellSets:
        """The best neurons of every cell."""
        return self.scores.top(**self.find.size)

    @cached_property
    def candidates(self) -> NeuronSet:
        """The neurons that step prove tested."""
        _ = self.find
        return NeuronSet.load(self.folder / "neurons" / "candidates.safetensors")

    @cached_property
    def verified(self) -> NeuronSet:
        """The neurons that passed; possibly none."""
        _ = self.proof
        return NeuronSet.load(self.folder / "neurons" / "verified.safetensors")

    @property
    def adapter(self) -> Path:
        """The folder of the shield's adapter: `ns.load_adapter(model, run.adapter)`."""
        _ = self.shield
        return self.folder / "adapter"

    # -- answers ----------------------------------------------------------------------------------------
    @cached_property
    def answers(self) -> pd.DataFrame:
        """Every answer to the test prompts, one row each (`neuronshield.run.answer_files`)."""
        return read_answers(self.folder)

    @cached_property
    def evaluations(self) -> dict[str, Evaluation]:
        """The evaluation of every condition, by its name, without pictures."""
        _ = self.check
        found = [Evaluation.load(f) for f in (self.folder / "check" / "answers").glob("*.json")]
        by_name = {e.name: e for e in found}
        return {name: by_name[name] for name in self.check.cells}

    def __repr__(self) -> str:
        stale = f", stale: {', '.join(self.stale)}" if self.stale else ""
        return f"Run({self.study.model!r}, seed {self.study.seed}, {', '.join(self.steps) or 'no step'} done{stale})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(n)}</td><td>{escape(t)}</td></tr>" for n, _, t in headlines(self.results))
        return f"<p><b>{escape(repr(self))}</b></p><table>{rows}</table>"


def open_run(folder: str | os.PathLike[str]) -> Run:
    """A run folder, read back. This is `ns.open`.

    Args:
        folder: the run folder.

    Raises:
        InputError: no run there, or a damaged or older manifest.
    """
    require(folder, (str, os.PathLike), call="open(folder)", name="folder")
    path = Path(folder)
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(
            f"{path}: holds no run (there is no manifest.json); run 'neuronshield run --out {path.name}' first"
        )
    return Run(path, manifest)
