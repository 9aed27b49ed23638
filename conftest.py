"""What tests and doctests share: shape checks in every call, and models built once a session and changed by no test."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent / "tests"))

import shapes

shapes.install()  # array shapes are checked in every call while testing

import numpy as np
import pytest
import tiny
import torch
import views

import neuronshield as ns

torch.set_num_threads(1)  # the models are tiny: a second thread costs more than it gives


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks are slow tests. The file that takes longest comes first: a worker that began it last would be waited for."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker("slow")


@pytest.fixture(scope="session")
def llama() -> ns.Model:
    return ns.load(tiny.llama(), processor=tiny.tokenizer())


@pytest.fixture(scope="session")
def gpt2() -> ns.Model:
    return ns.load(tiny.gpt2(), processor=tiny.tokenizer())


@pytest.fixture(scope="session")
def llava() -> ns.Model:
    module, processor = tiny.llava()
    return ns.load(module, processor=processor)


@pytest.fixture(scope="session")
def organism_model() -> ns.Model:
    return ns.load("organism")


@pytest.fixture(scope="session")
def example() -> dict[str, Any]:
    """A tiny Llama, LLaVA and Mixtral, prompts in two languages, and a neuron set: what examples in docstrings use."""
    module, processor = tiny.llava()
    return {
        "ns": ns,
        "np": np,
        "torch": torch,
        "model": ns.load(tiny.llama(), processor=tiny.tokenizer()),
        "vlm": ns.load(module, processor=processor),
        "moe": ns.load(tiny.mixtral(), processor=tiny.tokenizer()),
        "prompts": tiny.prompts(),
        "view": views.sample(),
        "neurons": ns.NeuronSet([(0, 3), (1, 5), (2, 7)], n_layers=3, d_mlp=29),
    }


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of examples, and a folder of their own to write to."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
        request.getfixturevalue("doctest_namespace").update(request.getfixturevalue("example"))
