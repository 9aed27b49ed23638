"""Rotary positions that are rescaled by length: a prompt reads the same whatever is beside it or was before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from oracles import TOKENS

import neuronshield as ns
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.generation import generate
from neuronshield.model.intervention import Intervention
from neuronshield.model.rotary import stretched
from neuronshield.model.running import running

KINDS: dict[str, dict[str, Any]] = {
    "dynamic": dict(max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}),
    "longrope": dict(max_position_embeddings=64, rope_parameters={
        "rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0], "rope_theta": 1e4,
        "original_max_position_embeddings": 16}),
}  # fmt: skip


def made(kind: str) -> ns.Model:
    return ns.load(tiny.llama(**KINDS[kind]), processor=tiny.tokenizer())


@pytest.fixture(scope="module")
def prompts() -> list[ns.Prompt]:
    """Of 3 to 40 tokens, on both sides of the 16 positions."""
    words = "how do i make a bomb the cake".split()
    rows = [
        {"id": str(n), "prompt": " ".join(words[i % 8] for i in range(n)), "label": "harmful", "language": "en"}
        for n in (3, 12, 20, 40, 30)
    ]
    return list(ns.PromptSet.from_records(rows))


def fresh(kind: str, prompt: ns.Prompt) -> torch.Tensor:
    """Logits of one prompt by a model that has read nothing before."""
    with torch.no_grad():
        return tiny.llama(**KINDS[kind])(**tiny.tokenizer()(prompt.prompt, return_tensors="pt")).logits[0, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_reads_the_same_beside_longer_ones_and_after_them(kind: str, prompts: list[ns.Prompt]) -> None:
    model = made(kind)
    wanted = torch.stack([fresh(kind, p) for p in prompts])
    for rows in (prompts, prompts[::-1]):
        got = answer_logits(model, rows, batch_size=16)
        torch.testing.assert_close(got, wanted if rows is prompts else wanted.flip(0), rtol=0, atol=1e-4)
    alone = torch.cat([ns.record(made(kind), [p]) for p in prompts])
    torch.testing.assert_close(ns.record(model, prompts, batch_size=16), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_margins_of_many_conditions_are_those_of_single_forwards(kind: str, prompts: list[ns.Prompt]) -> None:
    model = made(kind)
    sets = [ns.NeuronSet([(layer, 3)], n_layers=3, d_mlp=29) for layer in range(3)]
    conditions = [None, *(Intervention(s, "clamp", 5.0) for s in sets)]
    got = margins(model, prompts, conditions, TOKENS, batch_size=16)
    alone = [[float(margins(made(kind), [p], [c], TOKENS)[0, 0]) for p in prompts] for c in conditions]
    np.testing.assert_allclose(got, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_model_s_own_generate(kind: str, prompts: list[ns.Prompt]) -> None:
    wanted = []
    for prompt in prompts:
        encoding = tiny.tokenizer()(prompt.prompt, return_tensors="pt")
        ids = tiny.llama(**KINDS[kind]).generate(**encoding, max_new_tokens=8, do_sample=False)  # type: ignore[misc]
        wanted.append(
            tiny.tokenizer().decode(ids[0, encoding["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    assert generate(made(kind), prompts, max_new_tokens=8, batch_size=16) == wanted


def test_the_module_gets_its_own_frequencies_back(prompts: list[ns.Prompt]) -> None:
    model = made("dynamic")
    with torch.no_grad():
        model.module(torch.ones(1, 30, dtype=torch.long))  # the user's own forward leaves frequencies of 30 positions
    part: Any = model.module.model.rotary_emb  # type: ignore[union-attr]
    theirs, length = part.inv_freq, int(part.max_seq_len_cached)
    with running(model):
        assert not torch.equal(part.inv_freq, theirs)
        assert torch.equal(part.inv_freq, part.original_inv_freq)
    answer_logits(model, prompts, batch_size=16)
    assert part.inv_freq is theirs
    assert int(part.max_seq_len_cached) == length == 30


def test_only_what_is_rescaled_beyond_its_limit_is_stretched(llama: ns.Model) -> None:
    assert [stretched(made(kind).module, n) for kind in KINDS for n in (16, 17)] == [False, True, False, True]
    assert not stretched(llama.module, 10**6)
