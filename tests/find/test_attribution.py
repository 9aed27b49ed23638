"""Attribution patching against finite differences, and against exact ablation where it is exact."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import planted
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.find.attribution import gradients
from neuronshield.model.forward import margins
from neuronshield.model.intervention import Intervention
from neuronshield.model.prefixes import OpeningTokens

WORD = {w: i for i, w in enumerate(tiny.WORDS)}
TOKENS = {x: OpeningTokens([WORD["sorry"], WORD["no"]], [WORD["sure"]]) for x in ("en", "sw")}
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"]}


@pytest.mark.parametrize("ablated", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_gradients_equal_finite_differences(request: pytest.FixtureRequest, name: str, ablated: bool):
    model: ns.Model = request.getfixturevalue(name)
    prompts = list(tiny.prompts(pictures=name == "llava"))[:: 13 if name == "llava" else 7]
    cut = Intervention(ns.NeuronSet([(0, 3), (1, 5)]), "clamp", 0.5) if ablated else None
    slope, act = gradients(model, prompts, TOKENS, condition=cut, batch_size=4)
    if not ablated:
        torch.testing.assert_close(act, ns.record(model, prompts), rtol=1e-4, atol=1e-4)
    also = list(cast(ns.NeuronSet, cut.neurons)) if cut else []
    for layer, index in [(0, 2), (1, 11), (2, 7)]:
        step, sides = 1e-2, []
        for sign in (1, -1):
            value = act.clone()
            value[:, layer, index] += sign * step
            held = ns.NeuronSet([(layer, index), *also])
            sides.append(margins(model, prompts, [Intervention(held, "patch", value)], TOKENS)[0])
        np.testing.assert_allclose((sides[0] - sides[1]) / (2 * step), slope[:, layer, index], rtol=2e-2, atol=2e-3)


def test_causes_come_first_anti_refusal_neurons_last_and_decoys_get_nothing():
    model = planted.build("llama", 0, balanced=True, n_backups=0)
    scores = ns.attribution(model.model, planted.prompts(), **ASK)
    value = scores.values[0]
    difference = planted.check(model)["clean_logit_difference"]
    order = [tuple(map(int, np.unravel_index(i, value.shape))) for i in np.argsort(-value, axis=None)]
    assert set(order[: len(model.causal)]) == model.causal
    assert set(order[-len(model.anti_refusal) :]) == model.anti_refusal
    exact = planted.check(model)["causal"]
    for address, effect in exact.items():  # the planted circuit is nearly linear
        assert value[address] / difference == pytest.approx(effect, rel=0.3)
    assert max(abs(value[a]) for a in model.decoys) < min(value[a] for a in model.causal) / 10


def test_scores_are_signed_per_cell_and_remember_what_they_saw(llama: ns.Model):
    prompts = tiny.prompts()
    scores = ns.attribution(llama, prompts, **ASK)
    assert scores.values.shape == (2, 3, 29)
    assert [str(c) for c in scores.cells] == ["en/text", "sw/text"]
    assert (scores.values < 0).any()
    assert scores.provenance["seen"] == sorted({p.cluster for p in prompts})
    chosen = scores.top(k=4)[scores.cells[0]]
    assert chosen.provenance["method"] == "attribution"
    with pytest.raises(ns.InputError, match="were seen when the neurons were selected"):
        ns.verify(llama, chosen, prompts, **ASK)


def test_the_difference_is_that_of_the_matched_prompts(llama: ns.Model):
    rows = tiny.prompts()
    scores = ns.attribution(llama, rows, refusals=["sorry"], compliances=["sure"])
    assert scores.difference is not None
    for cell, got in zip(scores.cells, scores.difference, strict=True):
        pairs = [(h, b) for h, b in rows.for_step("discover").pairs() if h.cell == cell]
        harmful, benign = (ns.record(llama, side).double().numpy() for side in zip(*pairs, strict=True))
        np.testing.assert_allclose(got, (harmful - benign).mean(axis=0), rtol=1e-4, atol=1e-6)
    neurons = scores.top(k=9, sign="benign")["en/text"]
    assert max(scores.difference[0][at] for at in neurons) < 0


def test_prompts_without_matched_pairs_are_refused(llama: ns.Model):
    rows = [{k: v for k, v in row.items() if k != "pair_id"} for row in tiny.records()]
    with pytest.raises(
        ns.InputError, match="no harmful prompt has a matched benign prompt; give both the same pair_id"
    ):
        ns.attribution(llama, ns.PromptSet.from_records(rows), **ASK)


def test_frozen_weights_are_no_hindrance():
    module = tiny.llama()
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = list(tiny.prompts())[:4]
    free, _ = gradients(model, prompts, TOKENS)
    module.requires_grad_(False)
    frozen, _ = gradients(model, prompts, TOKENS)
    torch.testing.assert_close(free, frozen)


def test_a_backward_pass_leaves_nothing_on_the_model():
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    model.module.lm_head.weight.requires_grad_(False)
    asked = [p.requires_grad for p in model.module.parameters()]
    ns.attribution(model, tiny.prompts(), **ASK)
    assert [p.requires_grad for p in model.module.parameters()] == asked
    assert all(p.grad is None for p in model.module.parameters())
