"""Frozen norms: what nothing reads has no effect, and the last norm equals the formula."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
from oracles import TOKENS, margin_by_hand, some

import neuronshield as ns
from neuronshield.model.forward import margins
from neuronshield.model.intervention import Intervention
from neuronshield.model.norms import FrozenNorms


def test_with_norms_frozen_what_nothing_reads_has_no_effect_at_all() -> None:
    module = tiny.llama(seed=3)
    with torch.no_grad():  # neuron (0, 5) writes, loudly, where nothing reads
        for layer in module.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.gate_proj,
                           layer.mlp.up_proj, module.lm_head):  # fmt: skip
                linear.weight[:, 19] = 0
        module.model.layers[0].mlp.down_proj.weight[:, 5] = 0
        module.model.layers[0].mlp.down_proj.weight[19, 5] = 40
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = some("llama")
    conditions = [
        None,
        Intervention(ns.NeuronSet([(0, 5)]), "clamp", 1.0),
        Intervention(ns.NeuronSet([(0, 6)]), "clamp", 1.0),
    ]
    free, frozen = (margins(model, prompts, conditions, TOKENS, frozen=f) for f in (False, True))
    assert np.abs(free[1] - free[0]).max() > 0.05
    np.testing.assert_allclose(frozen[1], frozen[0], atol=1e-5)
    assert np.abs(frozen[2] - frozen[0]).max() > 1e-3
    np.testing.assert_allclose(frozen[0], free[0], atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_frozen_norms_equal_the_same_by_hand(request: pytest.FixtureRequest, name: str) -> None:
    """The last layer's neuron, with the final norm's mean and scale of the clean run."""
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    got = margins(
        model, prompts, [Intervention(ns.NeuronSet([(2, 7)]), "clamp", 4.0)], TOKENS, batch_size=4, frozen=True
    )[0]
    down = tiny.downs(model)[2]
    norm = model.module.model.norm if name == "llama" else model.module.transformer.ln_f
    column = down.weight[:, 7] if name == "llama" else down.weight[7]
    for margin, prompt in zip(got, prompts, strict=True):
        encoding, _ = tiny.encode(model, prompt)
        seen: dict[str, torch.Tensor] = {}
        handles = [norm.register_forward_pre_hook(lambda _, a, s=seen: s.update(x=a[0][0, -1])),
                   down.register_forward_pre_hook(lambda _, a, s=seen: s.update(h=a[0][0, -1, 7]))]  # fmt: skip
        with torch.no_grad():
            model.module(**encoding)
            for handle in handles:
                handle.remove()
            x, moved = seen["x"], seen["x"] + (4.0 - seen["h"]) * column
            if name == "llama":
                out = norm.weight * moved / (x.pow(2).mean() + norm.variance_epsilon).sqrt()
            else:
                out = norm.weight * (moved - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() + norm.bias
            logits = model.module.lm_head(out).double()
        assert margin == pytest.approx(margin_by_hand(logits), rel=2e-3, abs=2e-4)


def test_norms_of_a_family_that_flattens_its_batch_are_frozen_too() -> None:
    """OPT: by hand for a neuron of the last layer, which only the final norm reads."""
    model = next(f for f in families.FAMILIES if f.name == "OPT").load()
    prompts, change = families.prompts(pictures=False), Intervention(ns.NeuronSet([(2, 7)]), "clamp", 4.0)
    free = margins(model, prompts, [None], TOKENS, batch_size=4)[0]
    clean, got = margins(model, prompts, [None, change], TOKENS, batch_size=4, frozen=True)
    np.testing.assert_allclose(clean, free, atol=1e-5)
    module: Any = model.module
    down, norm = module.model.decoder.layers[2].fc2, module.model.decoder.final_layer_norm
    for margin, prompt in zip(got, prompts, strict=True):
        seen: dict[str, torch.Tensor] = {}
        handles = [
            norm.register_forward_pre_hook(lambda _, a, s=seen: s.update(x=a[0].reshape(-1, 20)[-1])),
            down.register_forward_pre_hook(lambda _, a, s=seen: s.update(h=a[0].reshape(-1, 29)[-1, 7])),
        ]
        with torch.no_grad():
            module(**families.encode(model, prompt))
            for handle in handles:
                handle.remove()
            x, moved = seen["x"], seen["x"] + (4.0 - seen["h"]) * down.weight[:, 7]
            out = norm.weight * (moved - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() + norm.bias
            logits = module.lm_head(out).double()
        assert margin == pytest.approx(margin_by_hand(logits), rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_a_held_norm_of_any_family_is_linear_and_reads_what_it_reads_when_it_is_free(family: families.Family) -> None:
    model = family.load()
    norms = FrozenNorms(model)
    torch.manual_seed(0)
    for module in norms.modules:
        hold = FrozenNorms(model)
        hold.modules[:] = [module]
        hold.hooks.modules = {0: module}
        x, u = torch.randn(1, 4, model.d_model) + 3, torch.randn(1, 4, model.d_model)
        flat = torch.ones(1, 4, model.d_model)
        with torch.no_grad():
            free, shifted = module(x)[:, -1], module(x + flat)[:, -1]
            with hold.hooks:
                held = [module(x + step)[:, -1] for step in (0 * u, 0 * u, u, 2 * u, flat)]
        torch.testing.assert_close(held[0], free)
        torch.testing.assert_close(held[1], free, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(held[3] - held[1], 2 * (held[2] - held[1]), rtol=1e-3, atol=1e-4)
        assert torch.allclose(held[4], free, atol=1e-4) == torch.allclose(shifted, free, atol=1e-4)
