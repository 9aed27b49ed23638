"""The result folder of the main job: opened, written step by step, read back."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..check.evaluation import Evaluation
from ..core.errors import InputError
from ..core.files import write_text
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..core.results import from_json, to_json
from ..data.columns import LABELS, SPLITS
from ..data.prompts import PromptSet
from ..model.answers import check_targets
from ..model.encoding import check_prompts
from ..model.model import Model
from ..shield.loading import load
from ..shield.update import Update
from .plan import Plan, plan_for, read_prompts
from .sections import Count, PromptSummary

__all__ = ["FORMAT", "Job", "check_folder", "load_neurons", "make_staging", "move_in", "open_job", "read_results"]


FORMAT = "neuronshield.results/5"


#: What the job writes into its folder.
WRITTEN = ("neurons", "adapter", "controls", "curves", "report.html", "results.json")


T = TypeVar("T")


@dataclass
class Job:
    """A run of the main job: the model, its prompts, the folder, and the results of the steps done so far.

    Attributes:
        model: the model.
        prompts: with splits.
        out: the folder.
        plan: the settings.
        seed: of every draw.
        progress: show progress bars.
        results: what results.json holds; a step adds its section with `put`.
        updates: conditions that were trained in this process, by name.
        evaluations: conditions that were evaluated in this process, by name.
    """

    model: Model
    prompts: PromptSet
    out: Path
    plan: Plan
    seed: int = 0
    progress: bool = True
    results: dict[str, Any] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    def put(self, name: str, section: Any) -> None:
        """Add a section to the results.

        Args:
            name: of the section.
            section: a dataclass of `neuronshield.run.sections`, or what JSON can hold.
        """
        self.results[name] = to_json(section)

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

    def save(self) -> None:
        """Write results.json (beside first, then renamed)."""
        text = json.dumps(to_json(self.results), ensure_ascii=False, indent=1, allow_nan=False)
        write_text(self.out / "results.json", text)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """A context that adds its seconds to the results.

        Args:
            step: what it is recorded as.
        """
        start = time.perf_counter()
        yield
        self.results.setdefault("seconds", {})[step] = round(time.perf_counter() - start, 1)


def read_results(folder: Path) -> dict[str, Any]:
    """What results.json in a folder holds.

    Args:
        folder: the result folder.

    Raises:
        InputError: it is missing, not JSON, or not of this version.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no results.json; run 'neuronshield run' first") from None
    except ValueError:
        raise InputError(f"{path}: not JSON; remove it or choose another --out") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise InputError(f"{path}: not written by this version; choose another --out")
    return results


def check_folder(out: Path) -> Path:
    """The nearest existing folder above `out`, if `out` can be written there and holds nothing but results of this program.

    Args:
        out: the result folder; it need not exist.

    Raises:
        InputError: it is a file, holds something else, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "results.json").is_file():
        raise InputError(f"--out {out}: is not empty and holds no results.json of neuronshield; choose another folder")
    nearest = next(p for p in out.absolute().parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--out {out}: cannot be written ({nearest} is not a writable folder)")
    return nearest


def make_staging(staging: Path, out: Path) -> None:
    """Make the folder that a run works in until it is done.

    Args:
        staging: the folder to make.
        out: the folder it will become, for the message.

    Raises:
        InputError: it cannot be made.
    """
    try:
        staging.mkdir()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None


def move_in(staging: Path, out: Path) -> None:
    """Move what a finished run wrote to its place; other files there are left alone.

    Args:
        staging: where the run worked.
        out: the result folder.
    """
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(out)
        return
    for item in WRITTEN:
        old = out / item
        if old.is_dir():
            shutil.rmtree(old)
        (staging / item).replace(old)


def load_neurons(job: Job, name: str, step: str) -> NeuronSet:
    """A neuron set that an earlier step left.

    Args:
        job: the run.
        name: "candidates" or "verified".
        step: the step that writes it, for the message.

    Raises:
        InputError: the step has not been run.
    """
    path = job.out / "neurons" / f"{name}.safetensors"
    if not path.exists():
        raise InputError(f"{job.out}: no {name} neurons yet; run 'neuronshield {step}' first")
    return NeuronSet.load(path)


def open_job(
    model: str | Model = "organism",
    prompts: str | os.PathLike[str] | PromptSet | None = None,
    out: str | os.PathLike[str] = "neuronshield-out",
    *,
    hold_out: Sequence[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> Job:
    """A job on a folder, with the results that earlier steps left there.

    Args:
        model: "organism", "smollm2", a folder, a hub id, or a model.
        prompts: a JSONL or Parquet file, or a set; None for the organism's own.
        out: the result folder.
        hold_out: languages, modalities or cells that are not trained.
        seed: of every draw.
        progress: show progress bars.

    Raises:
        InputError: bad prompts or an unknown model (the prompts are read first, they fail faster), or a prompt of any step that
            the model cannot read whole.
    """
    read = read_prompts(model, prompts, seed=seed)
    model = model if isinstance(model, Model) else load(model)
    out = Path(out)
    plan = plan_for(model, read, hold_out=hold_out)
    check_prompts(model, read, extra=plan.max_new_tokens)
    check_targets(model, read.where(split=["discover", "train"]))  # no other step reads them
    job = Job(model, read, out, plan=plan, seed=seed, progress=progress)
    job.results = read_results(out) if (out / "results.json").is_file() else {}
    sizes = {name: getattr(model, name) for name in ("n_layers", "d_mlp", "d_model", "n_params")}
    job.put("format", FORMAT)
    job.put("model", {**model.provenance(), **sizes})
    job.put("prompts", _summary(read))
    job.put("seed", seed)
    job.put("versions", versions())
    return job


def _summary(prompts: PromptSet) -> PromptSummary:
    counts = [
        Count(cell=str(c), split=s, label=label, n=len(prompts.where(split=s, label=label).in_cells([c])))
        for c in prompts.cells() for s in SPLITS for label in LABELS
    ]  # fmt: skip
    return PromptSummary(
        n=len(prompts), data=prompts.hash(), cells=tuple(map(str, prompts.cells())), counts=tuple(counts)
    )
