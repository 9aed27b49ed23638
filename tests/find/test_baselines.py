"""SNIP and the change score, restated with plain autograd and hooks on one prompt at a time."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import Cell, InputError, figures

NAMES = ("llama", "gpt2", "llava")


def some(pictures: bool, n: int = 6) -> ns.PromptSet:
    return ns.PromptSet(list(tiny.prompts(pictures=pictures))[:: 19 if pictures else 7][:n])


def snip_by_hand(model: ns.Model, prompts: ns.PromptSet, label: str, cell: Cell) -> np.ndarray:
    """For each neuron the sum over its own weights of the mean over prompts of |W dL/dW|."""
    parts = {"gate_proj": 0, "up_proj": 0, "c_fc": 1, "down_proj": 1, "c_proj": 0}  # axis that counts neurons
    names = {n: p for n, p in model.module.named_parameters()
             if ".mlp." in n and "vision" not in n and n.endswith("weight")}  # fmt: skip
    total = np.zeros((3, 29))
    rows = [p for p in prompts if p.label == label and p.cell == cell]
    for prompt in rows:
        assert prompt.target is not None
        encoding, n = tiny.encode(model, prompt, prompt.target)
        for p in names.values():
            p.requires_grad_(True)
        with torch.enable_grad():
            logits = model.module(**encoding).logits[0, n - 1 : -1].double()
            loss = torch.nn.functional.cross_entropy(logits, encoding["input_ids"][0, n:])
            grads = torch.autograd.grad(loss, list(names.values()))
        for (name, weight), grad in zip(names.items(), grads, strict=True):
            layer = int(name.split(".layers." if ".layers." in name else ".h.")[1].split(".")[0])
            axis = parts[name.split(".")[-2]]
            total[layer] += (weight * grad).abs().sum(dim=1 - axis).detach().double().numpy() / len(rows)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_snip_is_its_formula(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name == "llava")
    asked = [p.requires_grad for p in model.module.parameters()]
    scores = ns.baselines.snip(model, prompts, progress=False)
    assert scores.against is not None
    assert scores.method == "snip"
    assert [p.requires_grad for p in model.module.parameters()] == asked
    assert all(p.grad is None for p in model.module.parameters())
    for i, cell in enumerate(scores.cells):
        np.testing.assert_allclose(
            scores.values[i], snip_by_hand(model, prompts, "harmful", cell), rtol=2e-3, atol=1e-6
        )
        np.testing.assert_allclose(
            scores.against[i], snip_by_hand(model, prompts, "benign", cell), rtol=2e-3, atol=1e-6
        )


def test_snip_of_a_fused_projection_is_that_of_the_two_it_fuses():
    llama = ns.load(tiny.llama(), processor=tiny.tokenizer())
    family = next(f for f in families.FAMILIES if f.name == "Phi-3")
    module, _ = family.build()
    source: Any = llama.module
    with torch.no_grad():
        for mine, theirs in zip(module.model.layers, source.model.layers, strict=True):
            mine.mlp.gate_up_proj.weight.copy_(torch.cat([theirs.mlp.gate_proj.weight, theirs.mlp.up_proj.weight]))
            mine.mlp.down_proj.weight.copy_(theirs.mlp.down_proj.weight)
            qkv = [getattr(theirs.self_attn, f"{x}_proj").weight for x in "qkv"]
            if mine.self_attn.qkv_proj.weight.shape == torch.cat(qkv).shape:
                mine.self_attn.qkv_proj.weight.copy_(torch.cat(qkv))
    phi = ns.load(module, processor=tiny.tokenizer())
    prompts = some(False)
    scores = ns.baselines.snip(phi, prompts, progress=False)
    total = np.zeros((3, 29))
    rows = [p for p in prompts if p.label == "harmful" and p.cell == scores.cells[0]]
    for prompt in rows:
        encoding, n = tiny.encode(phi, prompt, prompt.target)
        weights = [
            w for layer in phi.module.model.layers for w in (layer.mlp.gate_up_proj.weight, layer.mlp.down_proj.weight)
        ]
        for w in weights:
            w.requires_grad_(True)
        with torch.enable_grad():
            logits = phi.module(**encoding).logits[0, n - 1 : -1]
            grads = torch.autograd.grad(
                torch.nn.functional.cross_entropy(logits, encoding["input_ids"][0, n:]), weights
            )
        for layer in range(3):
            up, down = (weights[2 * layer + j] * grads[2 * layer + j] for j in (0, 1))
            for i in range(29):
                own = up[i].detach().abs().sum() + up[29 + i].abs().sum() + down[:, i].abs().sum()
                total[layer, i] += float(own) / len(rows)
        for w in weights:
            w.requires_grad_(False)
    np.testing.assert_allclose(scores.values[0], total, rtol=2e-3, atol=1e-6)


def test_snip_needs_both_labels_in_a_cell(llama: ns.Model):
    with pytest.raises(InputError, match="snip: no benign prompts"):
        ns.baselines.snip(llama, some(False).where(label="harmful"), progress=False)


# -- change score -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_the_change_score_is_the_rms_over_what_the_first_model_says(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    changed = {"llama": tiny.llama, "gpt2": tiny.gpt2}.get(name)
    module = changed(1) if changed else tiny.llava(1)[0]
    other = ns.load(module, processor=model.processor)
    prompts = some(name == "llava")
    scores = ns.baselines.change_score(model, other, prompts, max_new_tokens=5, batch_size=4, progress=False)
    answers = ns.generate(model, prompts, max_new_tokens=5)
    for i, cell in enumerate(scores.cells):
        square, n = np.zeros((3, 29)), 0
        for prompt, answer in zip(prompts, answers, strict=True):
            if prompt.cell != cell:
                continue
            a, _, start = tiny.activations(model, prompt, answer)
            b, _, _ = tiny.activations(other, prompt, answer)
            difference = (a - b)[start - 1 : -1]  # from the last prompt token to the token before the end of sequence
            square += (difference**2).sum(axis=0)
            n += len(difference)
        np.testing.assert_allclose(scores.values[i], np.sqrt(square / n), rtol=1e-3, atol=1e-5)


def test_a_model_has_not_changed_against_itself_and_a_planted_change_is_found(llama: ns.Model):
    prompts = some(False)
    assert (ns.baselines.change_score(llama, llama, prompts, progress=False).values == 0).all()
    neurons = ns.NeuronSet([(1, 3), (2, 7)], n_layers=3, d_mlp=29)
    update = ns.masked_update(
        llama, neurons, prompts, parts=("gate", "up"), steps=3, lr=0.3, allow_unproven=True, progress=False
    )
    scores = ns.baselines.change_score(update.model, llama, prompts, progress=False)
    for value in scores.values:
        assert (value[0] == 0).all()
        assert np.unravel_index(np.argmax(np.where(np.arange(3)[:, None] == 1, value, 0)), value.shape) == (1, 3)
        assert {tuple(x) for x in np.argwhere(value[:2] > 0)} == {(1, 3)}  # layer 2 reads it


def test_models_that_cannot_be_compared_are_refused(llama: ns.Model, gpt2: ns.Model):
    wide = ns.load(tiny.llama(intermediate_size=31), processor=tiny.tokenizer())
    cast: Any = tiny.llama()
    half = ns.load(cast.to(torch.bfloat16), processor=tiny.tokenizer())
    with pytest.raises(InputError, match=r"different shapes, \(3, 29, 20\) and \(3, 31, 20\)"):
        ns.baselines.change_score(llama, wide, some(False), progress=False)
    with pytest.raises(InputError, match="models in float32 and bfloat16; load both in one dtype"):
        ns.baselines.change_score(llama, half, some(False), progress=False)


def test_the_figure_of_scores_shows_overlap_and_the_effect_of_one_neuron():
    names = ["a", "b"]
    shared = np.array([[1.0, 0.25], [0.25, 1.0]])
    effects = {"a": [0.5, 0.4, 0.7], "b": [0.1, 0.0, 0.2]}
    figure = figures.methods(names, shared, effects=effects, sizes={"a": 10, "b": 5})
    heat, dots = figure.data
    assert np.isnan(heat.z[0][0])
    assert heat.z[0][1] == 0.25
    np.testing.assert_allclose(dots.x, [0.05, 0.02])
    np.testing.assert_allclose(dots.error_x.array, [0.02, 0.02])
    np.testing.assert_allclose(dots.error_x.arrayminus, [0.01, 0.02])
