"""Loading mixtures of experts: the structure is copied, the weights are shared, and what is no single MLP is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import builders
import pytest
import tiny
import torch
import transformers
from families import CHECKS, Family, mixture
from mixtures import SPECS, Spec, by_family, rows

import neuronshield as ns
from neuronshield.model.mixtures import restored


@by_family
def test_the_users_module_keeps_its_structure_and_shares_every_weight(spec: Spec) -> None:
    module = spec.build()
    before = {name: (type(m), sorted(m.__dict__)) for name, m in module.named_modules()}
    model = ns.load(module, processor=tiny.tokenizer())
    ns.record(model, rows()[:2])
    assert {name: (type(m), sorted(m.__dict__)) for name, m in module.named_modules()} == before
    theirs, ours = dict(module.named_parameters()), dict(model.module.named_parameters())
    assert list(theirs) == list(ours)
    assert all(theirs[name] is ours[name] for name in theirs)
    assert list(module.state_dict()) == list(model.module.state_dict())
    assert model.n_params == sum(p.numel() for p in module.parameters())


#: Beside the families of the table, which tests/model/test_families.py checks in the same way.
MORE = (
    Family("Qwen3.5-MoE", "", builders.qwen("3.5-moe"), 4, d_mlp=43),
    mixture("Qwen3-Next", "", "Qwen3Next", 43, shared_expert_intermediate_size=11, **builders.HYBRID),
    mixture("Cohere 2 MoE", "", "Cohere2Moe"),
    mixture("Aria (text)", "", "AriaText", 48, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=2),
)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", MORE, ids=lambda f: f.name)
def test_another_family_is(family: Family, check: str) -> None:
    CHECKS[check](family)


def test_a_module_in_training_mode_with_a_noisy_router_is_compared_in_eval_mode_and_keeps_its_mode() -> None:
    module: Any = SPECS[0].build(router_jitter_noise=0.5).train()
    ns.load(module, processor=tiny.tokenizer())
    assert all(m.training for m in module.modules())


def test_a_model_that_was_loaded_is_loaded_again_as_it_is() -> None:
    model = SPECS[0].load()
    again = ns.load(model.module, processor=tiny.tokenizer())
    assert again.module is model.module
    assert (again.site, again.fingerprint) == (model.site, model.fingerprint)


def test_the_familys_own_forward_comes_back() -> None:
    for spec in SPECS:
        module = spec.build()
        model = ns.load(module, processor=tiny.tokenizer())
        own = restored(copy.deepcopy(model.module))
        assert [(n, type(m)) for n, m in own.named_modules()] == [(n, type(m)) for n, m in module.named_modules()]
        ids = torch.randint(3, 38, (2, 7), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.equal(own(ids).logits, module(ids).logits)


def test_experts_behind_the_hooks_of_accelerate_are_read_too() -> None:
    accelerate = pytest.importorskip("accelerate")
    for spec in SPECS[:3]:
        plain = spec.build()
        hooked = accelerate.dispatch_model(
            copy.deepcopy(plain), device_map={"": "cpu"}, force_hooks=True, main_device="cpu"
        )
        there = ns.load(hooked, processor=tiny.tokenizer())
        here = ns.load(plain, processor=tiny.tokenizer())
        torch.testing.assert_close(ns.record(there, rows()[:2]), ns.record(here, rows()[:2]))


def llama4() -> torch.nn.Module:
    return transformers.Llama4ForCausalLM(
        transformers.Llama4TextConfig(
            vocab_size=38, hidden_size=20, intermediate_size=8, intermediate_size_mlp=8, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=10, num_local_experts=2, pad_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (llama4, r"Llama4ForCausalLM: layer 0 .*mixture-of-experts.*their forward is not one that is known"),
        (lambda: SPECS[1].build(mlp_only_layers=[1]), r"Qwen3MoeForCausalLM: layer 1 .*is dense.*mixture-of-experts"),
    ],
    ids=["Llama 4 weighs what experts read", "dense layers among the mixtures"],
)
def test_a_mixture_that_is_no_single_mlp_is_refused_by_name(build: Any, says: str) -> None:
    with pytest.raises(ns.InputError, match=says):
        ns.load(build(), processor=tiny.tokenizer())


def test_a_family_that_does_more_with_its_experts_is_refused_by_the_comparison_at_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module: Any = SPECS[0].build()
    block = type(module.model.layers[0].mlp)
    own = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: 1.5 * own(self, x))
    with pytest.raises(ns.InputError, match="differs from the output of the experts alone"):
        ns.load(module, processor=tiny.tokenizer())
    monkeypatch.setattr(block, "forward", own)
    experts = type(module.model.layers[0].mlp.experts)
    theirs = experts.forward
    monkeypatch.setattr(experts, "forward", lambda self, x, i, w: theirs(self, x, i, w**2))
    with pytest.raises(ns.InputError, match="differs from the family's own forward"):
        ns.load(module, processor=tiny.tokenizer())
