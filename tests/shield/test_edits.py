"""The training-free baselines do what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.shield.edits import RIDGE, clamp_edit, low_rank_edit
from neuronshield.shield.loading import load_adapter

MEMBERS = [(0, 3), (0, 28), (2, 7)]
SET = ns.NeuronSet(MEMBERS, n_layers=3, d_mlp=29)


def model_of(family: str) -> ns.Model:
    if family == "llava":
        module, processor = tiny.llava()
        return ns.load(module, processor=processor)
    return ns.load(getattr(tiny, family)(), processor=tiny.tokenizer())


def last_tokens(model: ns.Model, prompts: ns.PromptSet) -> np.ndarray:
    """[prompt, layer, neuron], by plain hooks, one unpadded prompt at a time."""
    rows = []
    for p in prompts:
        h, _, n = tiny.activations(model, p)
        rows.append(h[n - 1])
    return np.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_clamping_is_holding_the_set_at_its_harmful_mean_at_every_token(family: str):
    model = model_of(family)
    prompts = tiny.prompts(pictures=family == "llava")
    edited = clamp_edit(model, SET, prompts).model
    mean = last_tokens(model, prompts.where(label="harmful")).mean(axis=0)

    def hold(layer: int, h: torch.Tensor) -> torch.Tensor | None:
        own = SET.by_layer().get(layer)
        if own is None:
            return None
        h = h.clone()
        h[..., own] = torch.tensor(mean[layer, own], dtype=h.dtype)
        return h

    for prompt in (prompts[0], prompts[-1]):
        encoding, _ = tiny.encode(model, prompt)
        with torch.no_grad():
            got, clean = edited.module(**encoding).logits, model.module(**encoding).logits
            with tiny.hooked(tiny.downs(model), hold):
                expected = model.module(**encoding).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        assert (got - clean).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_low_rank_edit_is_ridge_regression_along_the_margin_s_gradient(family: str):
    model = model_of(family)
    prompts = tiny.prompts(languages=("en",))
    options = {"refusals": ["sorry"], "compliances": ["sure"]}
    update = low_rank_edit(model, SET, prompts, **options)
    x = last_tokens(model, prompts)
    harmful = np.array([p.label == "harmful" for p in prompts])
    weight = np.where(harmful, 1 / harmful.sum(), 1 / (~harmful).sum())
    strength = update.provenance["strength"]
    lengths = []
    for layer, own in SET.by_layer().items():
        change = (update.model.down_weight(layer) - model.down_weight(layer)).detach().double().numpy()
        assert np.abs(np.delete(change, own, axis=1)).max() == 0
        inputs = x[:, layer][:, own]
        ridge = RIDGE * np.mean(np.diag(inputs.T @ np.diag(weight) @ inputs))
        stacked = np.vstack([np.sqrt(weight)[:, None] * inputs, np.sqrt(ridge) * np.eye(len(own))])
        target = np.concatenate([np.sqrt(weight) * harmful, np.zeros(len(own))])
        reader = np.linalg.lstsq(stacked, target, rcond=None)[0]
        along = change[:, own] @ np.linalg.pinv(reader[None, :])
        np.testing.assert_allclose(
            along @ reader[None, :], change[:, own], atol=1e-6 * strength
        )  # rank one, that reader
        lengths.append(np.linalg.norm(along))
    assert max(lengths) <= strength * 1.0001

    def margin(m: ns.Model) -> float:
        ids = m.tokenizer.convert_tokens_to_ids(["sorry", "sure"])
        total = 0.0
        for p in prompts.where(label="harmful"):
            encoding, n = tiny.encode(m, p)
            with torch.no_grad():
                logits = m.module(**encoding).logits[0, n - 1]
            total += float(logits[ids[0]] - logits[ids[1]])
        return total

    assert margin(update.model) > margin(model)


def test_the_low_rank_edit_is_an_adapter_too(llama: ns.Model, tmp_path_factory: pytest.TempPathFactory):
    update = low_rank_edit(llama, SET, tiny.prompts(), refusals=["sorry"], compliances=["sure"])
    assert update.trained == 3 * 20
    loaded = load_adapter(llama, update.save(tmp_path_factory.mktemp("edit") / "adapter"))
    for a, b in zip(update.model.module.parameters(), loaded.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_bias_edit_is_not_written_where_it_would_be_lost(llama: ns.Model, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("bias")
    with pytest.raises(ns.InputError, match="a bias that this family's checkpoints do not have"):
        clamp_edit(llama, SET, tiny.prompts()).save_merged(folder / "merged")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("edit", [clamp_edit, low_rank_edit])
def test_what_cannot_be_edited_is_said(llama: ns.Model, edit: object):
    assert callable(edit)
    with pytest.raises(ns.InputError, match="the neuron set is empty"):
        edit(llama, ns.NeuronSet([]), tiny.prompts())
    with pytest.raises(ns.InputError, match="no benign prompts"):
        edit(llama, SET, tiny.prompts().where(label="harmful"))
    with pytest.raises(ns.InputError, match="does not exist"):
        edit(llama, ns.NeuronSet([(3, 0)]), tiny.prompts())


def test_a_closed_form_leaves_no_gradients_behind():
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    low_rank_edit(model, SET, tiny.prompts(), refusals=["sorry"], compliances=["sure"])
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())
