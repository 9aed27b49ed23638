"""Shortcuts are used only on caches that are known to be safe, and dropped where they give other logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
import transformers
from oracles import TOKENS, WORD, some

import neuronshield as ns
from neuronshield.model import forward, shortcuts
from neuronshield.model.encoding import collate
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.intervention import Intervention
from neuronshield.model.shortcuts import Shared, last_token_step, may_skip_layers, reusable

hf: Any = transformers
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
FORWARD = ("feed_forward.down_proj", "feed_forward.up_proj", "feed_forward.gate_proj")
SLIDING = dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=4)
#: Models whose layers keep something else than one pair of keys and values: config, its changes, site.
UNSAFE: dict[str, tuple[str, dict[str, Any], Any]] = {
    "Qwen3_5ForCausalLM": ("Qwen3_5TextConfig", LINEAR | {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}, None),
    "OlmoHybridForCausalLM": ("OlmoHybridConfig", LINEAR | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}, None),
    "Lfm2ForCausalLM": ("Lfm2Config", dict(layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False),
                        ("feed_forward.w2", "feed_forward.w3", "feed_forward.w1")),
    "FalconH1ForCausalLM": ("FalconH1Config", dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8), FORWARD),
    "BambaForCausalLM": ("BambaConfig", dict(attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=10, mamba_d_state=8, mamba_n_groups=1), FORWARD),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", SLIDING, None),
    "Gemma3nForCausalLM": ("Gemma3nTextConfig", dict(
        num_kv_shared_layers=1, layer_types=["sliding_attention", "full_attention", "full_attention"], hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64, laurel_rank=4, activation_sparsity_pattern=[0.0] * 3), None),
    "RecurrentGemmaForCausalLM": ("RecurrentGemmaConfig", dict(
        block_types=["recurrent", "recurrent", "attention"], lru_width=20, attention_window_size=16, intermediate_size=58),
        ("mlp_block.down_proj", "mlp_block.up_proj", "mlp_block.gate_proj")),
}  # fmt: skip


SLOW = ["FalconH1ForCausalLM", "BambaForCausalLM", "OlmoHybridForCausalLM", "Gemma3nForCausalLM", "Qwen3_5ForCausalLM"]


def made(name: str) -> ns.Model:
    config, changes, site = UNSAFE[name]
    torch.manual_seed(0)
    module = getattr(hf, name)(getattr(hf, config)(**families.sizes(**changes))).eval()
    for p in module.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return ns.load(module, processor=families.tokenizer(), site=site)


def conditions(model: ns.Model) -> list[Intervention | None]:
    neurons = [ns.NeuronSet([(layer, i)], n_layers=3, d_mlp=model.d_mlp) for layer in (0, 1, 2) for i in (3, 7)]
    return [None, *(Intervention(n, "clamp", 5.0) for n in neurons)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in UNSAFE])
def test_models_that_keep_something_else_run_in_full_and_give_the_margins_of_single_forwards(name: str) -> None:
    model, prompts = made(name), list(some("llama"))[::2]
    batch = collate(model, prompts[:3], side="left")
    assert last_token_step(model, batch) is None
    got = margins(model, prompts, conditions(model), TOKENS, batch_size=16)
    want = []
    for condition in conditions(model):
        logits = torch.cat([answer_logits(model, [p], condition) for p in prompts]).double()
        refusal = logits[:, [WORD["sorry"], WORD["no"]]].logsumexp(dim=1)
        want.append((refusal - logits[:, WORD["sure"]]).numpy())
    np.testing.assert_allclose(got, np.stack(want), rtol=0, atol=1e-4)
    assert np.abs(got[1:] - got[0]).max(axis=1).min() > 1e-3  # every condition does something


def caches(model: ns.Model) -> Iterator[tuple[str, Any]]:
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        QuantizedCache,
        StaticCache,
    )

    module: Any = model.module
    ids = torch.ones(1, 4, dtype=torch.long)

    def plain() -> Any:
        return module(ids, use_cache=True).past_key_values

    class Mine(DynamicLayer):
        pass

    class Grown(DynamicCache):
        pass

    yield "static", StaticCache(config=module.config, max_cache_len=8)
    yield "quantized", object.__new__(QuantizedCache)
    yield "legacy", tuple((layer.keys, layer.values) for layer in plain().layers)
    yield "none", None
    for name, kind in (("sliding", DynamicSlidingWindowLayer), ("a layer's subclass", Mine)):
        cache = plain()
        cache.layers[1] = object.__new__(kind)
        cache.layers[1].__dict__.update(plain().layers[1].__dict__)
        yield name, cache
    cache = Grown()
    cache.layers = plain().layers
    yield "a subclass", cache
    cache = plain()
    del cache.layers[2]
    yield "fewer layers", cache
    cache = plain()
    cache.layers[1].is_initialized = False
    yield "a layer that did not run", cache
    cache = plain()
    cache.layers[1].keys = cache.layers[1].keys[0]
    yield "keys of another form", cache


def test_only_a_plain_dynamic_cache_is_reused(llama: ns.Model) -> None:
    module: Any = llama.module
    assert reusable(module(torch.ones(1, 4, dtype=torch.long), use_cache=True).past_key_values, n_layers=3, idle=[])
    assert [name for name, cache in caches(llama) if reusable(cache, n_layers=3, idle=[])] == []


def test_layers_are_not_left_out_where_upper_ones_read_keys_of_lower_ones(llama: ns.Model, monkeypatch: Any) -> None:
    kept = {1: torch.zeros(2, 5, 20)}
    assert may_skip_layers(llama, kept, 2)
    assert not may_skip_layers(llama, {1: torch.zeros(4, 2, 5, 20)}, 2)
    assert not may_skip_layers(llama, {1: torch.zeros(10, 20)}, 2)
    monkeypatch.setattr(llama.module.config, "num_kv_shared_layers", 1, raising=False)
    assert not may_skip_layers(llama, kept, 2)


@pytest.mark.parametrize("shortcut", ["prefix", "layers"])
def test_a_shortcut_that_changes_only_what_conditions_do_is_found_and_dropped(
    llama: ns.Model, monkeypatch: pytest.MonkeyPatch, shortcut: str
) -> None:
    """The clean run agrees, as where a model goes on from a cache that interventions should have changed."""
    prompts, some_conditions = list(some("llama")), conditions(llama)
    want = np.concatenate([margins(llama, prompts, [c], TOKENS, batch_size=4) for c in some_conditions])
    options, dropped = forward.forward_options, list[int]()

    def wrong(model: ns.Model, shared: Shared, times: int, *, first: int) -> dict[str, Any]:
        out = options(model, shared, times, first=first)
        stained = shared.cache is not None if shortcut == "prefix" else bool(shared.residual)
        if stained and shared.calls:  # not while it is made
            out["attention_mask"] = out["attention_mask"].clone()
            out["attention_mask"][:, -2] = 0
        return out

    drop = Shared.drop

    def count(self: Shared, batch: Any) -> None:
        dropped.append(1)
        drop(self, batch)

    monkeypatch.setattr(forward, "forward_options", wrong)
    monkeypatch.setattr(Shared, "drop", count)
    got = margins(llama, prompts, some_conditions, TOKENS, batch_size=4)
    np.testing.assert_allclose(got[1:], want[1:], atol=1e-4)
    assert len(dropped) == 3  # one a batch


def test_a_shortcut_is_compared_for_each_first_layer_and_again_later(
    llama: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, alone = list[int](), forward._alone

    def count(*args: Any, condition: Intervention, **kwargs: Any) -> Any:
        compared.append(min(condition.neurons.by_layer()))
        return alone(*args, condition=condition, **kwargs)

    monkeypatch.setattr(forward, "_alone", count)
    monkeypatch.setattr(shortcuts, "RECHECK", 4)
    prompts = list(some("llama"))[:4]
    prepared = forward.prepare(llama, prompts, batch_size=4)
    seen = []
    for _ in range(2 * 4 + 1):
        margins(llama, prompts, conditions(llama), TOKENS, prepared=prepared)
        seen.append(sorted(compared))
        compared.clear()
    assert [i for i, layers in enumerate(seen) if layers == [0, 1, 2]] == [0, 4, 8]
    assert all(not layers for i, layers in enumerate(seen) if i % 4)


def test_prompts_run_in_full_share_a_forward_only_as_far_as_memory_allows(
    llama: ns.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    handle = tiny.downs(llama)[2].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    prompts = list(some("llama"))[:4]
    everywhere = [Intervention(ns.NeuronSet([(2, i)]), "zero", None, "prompt") for i in range(10)]
    want = margins(llama, prompts, everywhere, TOKENS)
    assert max(rows) == 40
    rows.clear()
    width = collate(llama, prompts, side="left").encoding["input_ids"].shape[1]
    monkeypatch.setattr(forward, "STACKED_TOKENS", 2 * 4 * width)
    np.testing.assert_allclose(margins(llama, prompts, everywhere, TOKENS), want, atol=1e-5)
    handle.remove()
    assert max(rows) == 8
