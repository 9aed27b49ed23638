"""Finished runs of the tiny Llama with a planted neuron, made once a session and changed by no test; `copied` is one to change.

PYTEST_DONT_REWRITE (a plugin of the tests that use it, without assertions of its own)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import tiny
from one_neuron import plant
from transformers import LlamaForCausalLM

from neuronshield.run.pipeline import run, step

#: As little of everything as a run takes.
SMALL: dict[str, Any] = {
    "draws": 1, "graded": 2, "steps": 2, "random_masks": 2, "k": 3, "max_new_tokens": 3, "batch_size": 64,
    "refusals": ["sorry"], "compliances": ["sure"],
}  # fmt: skip
QUIET: dict[str, Any] = {"progress": False}
#: How many forwards a finished run took.
FORWARDS: dict[str, int] = {}


def small_run(study: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A small run of the study."""
    return run(study / "model", study / "prompts.jsonl", out, **{**QUIET, **SMALL, **changes})


def small_step(name: str, study: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """One step of a small run of the study."""
    return step(name, study / "model", study / "prompts.jsonl", out, **{**QUIET, **SMALL, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def timeless(value: Any) -> Any:
    """What JSON holds, without how long anything took, and without checksums of files in which that stands."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "sha256", "files", "checksums")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def computed(folder: Path) -> dict[str, Any]:
    """Every file of a run but its log, its page (which is made from results.json) and its lock, without times."""
    left_out = {"run.log", "report.html", ".lock"}
    return {
        name: timeless(json.loads(data)) if name.endswith(".json") else data
        for name, data in contents(folder).items() if name not in left_out
    }  # fmt: skip


@contextmanager
def counting(stop: Callable[[], bool] = lambda: False) -> Iterator[list[int]]:
    """A list whose first number is how many forwards there were; `stop` is asked before each of them."""
    count, read = [0], LlamaForCausalLM.forward

    @wraps(read)  # what it takes decides how the model is called
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if stop():
            raise Stop
        count[0] += 1
        return read(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", counted)
        yield count


class Stop(BaseException):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and prompts.jsonl."""
    folder = tmp_path_factory.mktemp("study")
    plant().module.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.records()), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(study: Path) -> Path:
    """The folder of a run that was never disturbed."""
    with counting() as count:
        small_run(study, study / "seed-0")
    FORWARDS["seed-0"] = count[0]
    return study / "seed-0"


@pytest.fixture(scope="session")
def other_seed(study: Path, finished: Path) -> Path:
    """The same with another seed, which deals other splits, and Swahili held out."""
    small_run(study, study / "seed-1", seed=1, hold_out=["sw"])
    return study / "seed-1"


@pytest.fixture
def copied(finished: Path, study: Path, tmp_path: Path) -> Path:
    """A copy of the finished run; its settings lead to the same model and prompts from there."""
    for name in ("model", "prompts.jsonl"):
        (tmp_path / name).symlink_to(study / name)
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def forwards() -> Iterator[Callable[[], int]]:
    """How often a model has read a batch since the test began."""
    with counting() as count:
        yield lambda: count[0]
