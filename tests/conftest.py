"""Models and prompts that several files share; built once a session, never changed by a test."""

from __future__ import annotations

import pytest
import tiny
import torch

import neuronshield as ns

torch.set_num_threads(min(2, torch.get_num_threads()))


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
