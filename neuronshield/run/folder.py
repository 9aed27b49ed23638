"""The result folder of the main job: opened, written step by step, read back."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..check.evaluation import Evaluation
from ..core.errors import InputError
from ..core.files import write_text
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..data.prompts import PromptSet
from ..model.load import load
from ..model.model import Model
from ..shield.update import Update
from .plan import Plan, _read_prompts, plan_for

__all__ = ["Job", "check_folder", "load_neurons", "make_staging", "move_in", "open_job", "read_results"]


FORMAT = "neuronshield.results/2"


@dataclass
class Job:
    """A model, its prompts, a folder, and what is known so far."""

    model: Model
    prompts: PromptSet
    out: Path
    plan: Plan
    seed: int = 0
    progress: bool = True
    results: dict[str, Any] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    def save(self) -> None:
        """Write results.json (beside first, then renamed)."""
        text = json.dumps(self.results, ensure_ascii=False, indent=1, allow_nan=False, default=_plain)
        write_text(self.out / "results.json", text)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.results.setdefault("seconds", {})[step] = round(time.perf_counter() - start, 1)


def read_results(folder: Path) -> dict[str, Any]:
    """What an earlier step left in results.json.

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
    """The nearest folder above `out` that exists, if `out` can be written there and is ours to write."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "results.json").is_file():
        raise InputError(f"--out {out}: is not empty and holds no results.json of ours; choose another folder")
    nearest = next(p for p in out.absolute().parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--out {out}: cannot be written ({nearest} is not a writable folder)")
    return nearest


def make_staging(staging: Path, out: Path) -> None:
    try:
        staging.mkdir()
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None


def move_in(staging: Path, out: Path) -> None:
    """The finished folder takes the place of the old one."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(out)
        return
    for item in ("neurons", "adapter", "controls", "report.html", "results.json"):
        old = out / item
        if old.is_dir():
            shutil.rmtree(old)
        (staging / item).replace(old)


def load_neurons(job: Job, name: str, step: str) -> NeuronSet:
    path = job.out / "neurons" / f"{name}.safetensors"
    if not path.exists():
        raise InputError(f"{job.out}: no {name} neurons yet; run 'neuronshield {step}' first")
    return NeuronSet.load(path)


def _plain(value: Any) -> Any:
    """numpy scalars, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def open_job(
    model: str | Model = "organism",
    prompts: str | os.PathLike[str] | PromptSet | None = None,
    out: str | os.PathLike[str] = "neuronshield-out",
    *,
    seed: int = 0,
    progress: bool = True,
) -> Job:
    """Read the prompts, load the model, and take up what an earlier step left in `out`.

    Raises:
        InputError: bad prompts or an unknown model (the prompts are read first, they fail faster).
    """
    read = _read_prompts(model, prompts, seed)
    model = model if isinstance(model, Model) else load(model)
    out = Path(out)
    results = read_results(out) if (out / "results.json").is_file() else {}
    counts = [
        {"cell": str(c), "split": s, "label": label, "n": len(read.where(split=s, label=label).in_cells([c]))}
        for c in read.cells() for s in ("discover", "confirm", "train", "test") for label in ("harmful", "benign")
    ]  # fmt: skip
    results |= {
        "format": FORMAT,
        "model": {**model.provenance(), "n_layers": model.n_layers, "d_mlp": model.d_mlp, "d_model": model.d_model,
                  "n_params": model.n_params},
        "prompts": {"n": len(read), "data": read.hash(), "cells": [str(c) for c in read.cells()], "counts": counts},
        "seed": seed,
        "versions": versions(),
    }  # fmt: skip
    return Job(model, read, out, plan_for(model, read), seed, progress, results)
