"""What tests and doctests share: shape checks in every call, and the names that examples in docstrings use."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent / "tests"))

from jaxtyping import install_import_hook

install_import_hook("neuronshield", "shapes.check")  # array shapes are checked in every call while testing

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns


@pytest.fixture(scope="session")
def example() -> dict[str, Any]:
    """A tiny Llama and a tiny LLaVA, prompts in two languages, and a neuron set: what examples in docstrings use."""
    module, processor = tiny.llava()
    return {
        "ns": ns,
        "np": np,
        "torch": torch,
        "model": ns.load(tiny.llama(), processor=tiny.tokenizer()),
        "vlm": ns.load(module, processor=processor),
        "prompts": tiny.prompts(),
        "neurons": ns.NeuronSet([(0, 3), (1, 5), (2, 7)], n_layers=3, d_mlp=29),
    }


@pytest.fixture(autouse=True)
def _doctest_names(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of examples, and a folder of their own to write to."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
        request.getfixturevalue("doctest_namespace").update(request.getfixturevalue("example"))
