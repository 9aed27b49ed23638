"""A run in progress: the model, its prompts, the plan, the folder, and the results so far."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..check.evaluation import evaluate
from ..check.judges import load_judge
from ..core.errors import InputError
from ..core.files import replacing
from ..core.journal import Journal
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..core.results import from_json, to_json
from ..data.columns import LABELS, SPLITS
from ..data.judging import Judge
from ..data.pictures import image_bytes
from ..data.prompts import PromptSet
from ..model.answers import check_targets
from ..model.encoding import check_prompts
from ..model.engine import Engine, InProcess
from ..model.model import Model
from ..shield.loading import load
from .folder import RunFolder, write_results
from .manifest import Study, study_of
from .plan import Plan, given_prompts, in_force, plan_for, with_all_splits
from .sections import Count, PromptSummary
from .settings import Settings, write_settings

__all__ = ["IN_PYTHON", "Job", "Opened", "load_neurons", "load_options", "open_job"]

T = TypeVar("T")

#: Files of a run that belong to no step.
HEAD = ("run.toml", "run.log", "prompts.parquet", "results.json", "report.html")

#: What run.toml says of prompts that were not read from a file.
IN_PYTHON = "given in Python"

#: Settings that say how a named model is loaded.
LOADED = ("revision", "dtype", "device", "device_map", "quantize", "adapter", "trust_remote_code", "template_options",
          "refusals", "compliances")  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """What a run is about, before its folder is touched.

    Attributes:
        model: the model.
        prompts: with splits.
        plan: the settings, filled in.
        settings: those asked for, with the model and the prompts.
        study: the identity of the study.
    """

    model: Model
    prompts: PromptSet
    plan: Plan
    settings: Settings
    study: Study

    @property
    def taught(self) -> PromptSet:
        """The prompts that are trained on."""
        rows = self.prompts.for_step("train")
        return rows.in_cells(self.plan.train_cells) if self.plan.train_cells else rows


def open_job(
    model: str | os.PathLike[str] | Model, prompts: str | os.PathLike[str] | PromptSet | None, settings: Settings
) -> Opened:
    """The model and the prompts of a run, read and checked.

    >>> open_job(model, prompts, Settings()).study.prompts
    60

    Args:
        model: "organism", "smollm2", a folder, a hub id, or a model.
        prompts: a JSONL or Parquet file, or a set; None for the organism's own.
        settings: what was asked for.

    Raises:
        InputError: bad prompts or an unknown model (the prompts are read first, they fail faster), settings that do not fit them, or
            a prompt of any step that the model cannot read whole.
    """
    wanted = load_options(settings)
    if isinstance(model, Model) and wanted:
        name = next(iter(wanted))
        raise InputError(
            f"run(model, {name}=...): {name}= says how to load a model, and this one is loaded; give its name"
        )
    named: str | Model = model if isinstance(model, Model) else os.fspath(model)
    given_rows = given_prompts(named, prompts, seed=settings.seed, cells=settings.cells)
    read = with_all_splits(given_rows, seed=settings.seed)
    loaded = model if isinstance(model, Model) else load(model, **wanted)
    settings = replace(
        settings, model=loaded.id if isinstance(model, Model) else os.fspath(model), prompts=_named(prompts)
    )
    plan = plan_for(loaded, read, settings)
    check_prompts(loaded, read, extra=plan.max_new_tokens)
    check_targets(loaded, read.where(split=["discover", "train"]))  # no other step reads them
    dealt = not any(p.split for p in given_rows)
    answers = {k: v for k, v in wanted.items() if k in ("refusals", "compliances", "quantize")}
    if settings.adapter:
        answers["adapter"] = Path(settings.adapter).name
    study = study_of(loaded, read, seed=settings.seed, dealt=dealt, answers=answers)
    return Opened(loaded, read, plan=plan, settings=settings, study=study)


def load_options(settings: Settings) -> dict[str, Any]:
    """How the model of a run is loaded: the options of `load` that the settings have.

    >>> load_options(Settings(dtype="bfloat16"))
    {'dtype': 'bfloat16'}

    Args:
        settings: of the run.
    """
    given = {name: getattr(settings, name) for name in LOADED}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items() if v not in (None, False, (), {})}


def _named(prompts: str | os.PathLike[str] | PromptSet | None) -> str | None:
    """The prompts as a setting: a set that is no file cannot be read from a configuration file."""
    if isinstance(prompts, PromptSet):
        return IN_PYTHON
    return None if prompts is None else os.fspath(prompts)


@dataclass
class Job:
    """A run in progress.

    Attributes:
        about: the model, its prompts and the plan.
        folder: the run folder, locked.
        progress: show progress.
        computed_on: the engine of the expensive loops.
        results: what results.json holds.
        sections: of the step that runs; it adds them with `put`.
    """

    about: Opened
    folder: RunFolder
    progress: bool = True
    computed_on: Engine = field(default_factory=InProcess)
    results: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    _judge: Judge | None = None

    @property
    def model(self) -> Model:
        """The model."""
        return self.about.model

    @property
    def prompts(self) -> PromptSet:
        """The prompts, with splits."""
        return self.about.prompts

    @property
    def plan(self) -> Plan:
        """The settings, filled in."""
        return self.about.plan

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self.about.settings.seed

    @property
    def out(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    def write_head(self) -> None:
        """Write what describes the run: run.toml, the prompts, and results.json with the steps that are done."""
        settings = in_force(self.about.settings, self.plan)
        self.folder.own(*HEAD)
        write_settings(self.out / "run.toml", settings)
        if not (self.out / "prompts.parquet").exists():
            _write_prompts(self.prompts, self.out / "prompts.parquet")
        self.load()

    def load(self) -> None:
        """Read the results of the steps that are done, and write results.json."""
        model = self.model
        sizes = {name: getattr(model, name) for name in ("n_layers", "d_mlp", "d_model", "n_params")}
        self.results = {
            "model": to_json({**model.provenance(), **sizes}), "prompts": to_json(_summary(self.prompts)), "seed": self.seed,
            "versions": versions(), "settings": _told(in_force(self.about.settings, self.plan)),
            "stale": self.folder.manifest.stale(), "seconds": {},
        }  # fmt: skip
        for step in self.folder.done():
            found = self.folder.result(step)
            self.results |= found["sections"]
            self.results["seconds"][step] = found["seconds"]
        write_results(self.out, self.results)

    def put(self, name: str, section: Any) -> None:
        """Add a section to the result of the step that runs.

        Args:
            name: of the section.
            section: a dataclass of `neuronshield.run.sections`, or what JSON can hold.
        """
        self.sections[name] = self.results[name] = to_json(section)

    def get(self, name: str, kind: type[T]) -> T:
        """A section that a step left, in this process or an earlier one.

        Args:
            name: of the section, which is the step's.
            kind: its dataclass.

        Raises:
            InputError: the step has not been run.
        """
        if name not in self.results:
            raise InputError(f"{self.out}: no {name} yet; run 'neuronshield {name}' first")
        return from_json(kind, self.results[name])

    @property
    def batch(self) -> dict[str, Any]:
        """The batch size, for functions that have a default of their own."""
        size = self.about.settings.batch_size
        return {} if size is None else {"batch_size": size}

    def engine(self, step: str) -> Engine:
        """Where a step computes, with the journal of its finished units.

        Args:
            step: its name.
        """
        self.folder.own(f"{step}/journal/", step=step)
        return self.computed_on.with_journal(Journal(self.out / step / "journal"))

    @property
    def judge(self) -> Judge | None:
        """The judge of answers, loaded when it is first asked for."""
        name = self.about.settings.judge
        if name is not None and self._judge is None:
            self._judge = load_judge(name)
        return self._judge

    def evaluated(
        self, make: Callable[[], Model], name: str, file: str, *, step: str, prompts: PromptSet | None = None
    ) -> None:
        """Evaluate a condition, unless its file is there already; only then is its model made.

        Args:
            make: gives the model of the condition.
            name: of the condition.
            file: relative to the folder.
            step: whose file it is.
            prompts: those of the run without any.
        """
        path = self.out / file
        if not path.exists():
            self.folder.own(file, step=step)
            evaluate(
                make(), self.prompts if prompts is None else prompts, name=name, judge=self.judge,
                max_new_tokens=self.plan.max_new_tokens, seed=self.seed, engine=self.engine(step), progress=self.progress, **self.batch,
            ).save(path)  # fmt: skip


def load_neurons(job: Job, name: str) -> NeuronSet:
    """A neuron set that an earlier step left.

    Args:
        job: the run.
        name: "candidates" or "verified".

    Raises:
        InputError: a damaged file.
    """
    return NeuronSet.load(job.out / "neurons" / f"{name}.safetensors")


def _told(settings: Settings) -> dict[str, Any]:
    """Settings as results.json has them: without paths, which run.toml has."""
    told = {f.name: to_json(getattr(settings, f.name)) for f in fields(Settings)}
    return {
        k: v for k, v in told.items() if v not in (None, [], {}, False) and k not in ("model", "adapter", "prompts")
    }


def _write_prompts(prompts: PromptSet, path: Path) -> None:
    """Write the rows as they were read, each picture as its hash."""
    frame = prompts.to_frame()
    frame["request"] = [p.cluster for p in prompts]
    frame["expect"] = [list(p.expect or ()) for p in prompts]
    frame["images"] = [[hashlib.sha256(image_bytes(i)).hexdigest()[:16] for i in p.images] for p in prompts]
    with replacing(path) as partial:
        frame.to_parquet(partial, index=False)


def _summary(prompts: PromptSet) -> PromptSummary:
    counts = [
        Count(cell=str(c), split=s, label=label, n=len(prompts.where(split=s, label=label).in_cells([c])))
        for c in prompts.cells() for s in SPLITS for label in LABELS
    ]  # fmt: skip
    return PromptSummary(
        n=len(prompts), data=prompts.hash(), cells=tuple(map(str, prompts.cells())), counts=tuple(counts)
    )
