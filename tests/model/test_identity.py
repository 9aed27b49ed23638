"""The identity of a model changes with whatever changes its answers, and with nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import neuronshield as ns
from neuronshield.model.identity import digests, identity


def changed(model: ns.Model, name: str) -> ns.Model:
    """The model after one number of a tensor was changed."""
    with torch.no_grad():
        model.module.get_parameter(name).view(-1)[3] += 0.5
    return model


def with_token(model: ns.Model) -> ns.Model:
    """The model after its tokenizer got another word."""
    model.tokenizer.add_tokens(["neu"])
    return model


CHANGES: dict[str, Callable[[ns.Model], ns.Model]] = {
    "attention": lambda m: changed(m, "model.layers.1.self_attn.q_proj.weight"),
    "last rows of W_down": lambda m: changed(m, "model.layers.2.mlp.down_proj.weight"),
    "norm": lambda m: changed(m, "model.norm.weight"),
    "dtype": lambda m: m.replace(module=m.module.to(torch.bfloat16)),
    "tokenizer": with_token,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_answers_changes_the_identity(kind: str):
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    before = identity(model)
    assert identity(CHANGES[kind](model)) != before


def test_the_name_and_earlier_calls_change_nothing(llama: ns.Model):
    before = identity(llama)
    llama.tokenizer(["how do i", "how"], padding=True, truncation=True, max_length=4)
    assert identity(llama.replace(id="another", info={"note": 1})) == before
    again = ns.load(copy.deepcopy(llama.module), processor=tiny.tokenizer())
    assert identity(again) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
def test_the_sums_are_those_of_whole_numbers(dtype: torch.dtype):
    module = nn.Module()
    values = torch.arange(-5, 8).to(dtype)
    module.register_buffer("x", values)
    data = values.view(torch.uint8).numpy().tobytes()
    numbers = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype=np.int32).tolist()
    plain, weighted = sum(numbers) % 2**64, sum(i * n for i, n in enumerate(numbers, 1)) % 2**64
    assert digests(module)["x"].split()[-2:] == [f"{plain:x}", f"{weighted:x}"]


def test_two_numbers_that_change_places_change_the_digest():
    one, other = nn.Module(), nn.Module()
    one.register_buffer("x", torch.tensor([1.0, 2.0]))
    other.register_buffer("x", torch.tensor([2.0, 1.0]))
    assert digests(one) != digests(other)
