"""The adapter: one factor is frozen, the other is trained, and plain PEFT reads it."""

from __future__ import annotations

import pytest
import tiny
import torch
from masking import MEMBERS, masks, neurons, parameters

import neuronshield as ns
from neuronshield.shield.update import masked_update


def test_set_adapter_cannot_unfreeze_the_one_hot_factor(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    held = {n: p for n, p in update.peft_model.named_parameters() if ("lora_A" if "down_proj" in n else "lora_B") in n}
    held = {n: p for n, p in held.items() if "lora" in n}
    before = {n: p.detach().clone() for n, p in held.items()}
    update.peft_model.set_adapter("default")
    for p in held.values():
        p.requires_grad = True
        p.requires_grad_(True)
    optimiser = torch.optim.SGD([p for p in update.peft_model.parameters() if p.requires_grad], lr=1.0)
    update.peft_model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimiser.step()
    assert len(held) == 6
    for name, p in held.items():
        assert not p.requires_grad
        assert p.grad is None
        assert torch.equal(p, before[name])


def test_what_is_counted_is_what_is_trained(llama: ns.Model, gpt2: ns.Model):
    for model, matrices in ((llama, 3), (gpt2, 2)):
        update = masked_update(model, neurons(), tiny.prompts(), steps=1, progress=False)
        assert update.trained == len(MEMBERS) * matrices * 20
        total = sum(p.numel() for p in model.module.parameters())
        assert update.param_fraction == pytest.approx(update.trained / total)


def test_only_one_factor_of_each_pair_learns(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    learns = {n for n, p in update.peft_model.named_parameters() if p.requires_grad}
    assert learns
    assert all(("lora_B" in n) == ("down_proj" in n) for n in learns)


def test_half_precision_weights_are_trained_by_single_precision_factors():
    model = ns.load(tiny.llama().bfloat16(), processor=tiny.tokenizer())
    before = parameters(model)
    update = masked_update(model, neurons(), tiny.prompts(), steps=3, lr=3e-2, progress=False)
    assert {p.dtype for p in update.peft_model.parameters() if p.requires_grad} == {torch.float32}
    after = parameters(update.model)
    assert all(p.dtype == torch.bfloat16 for p in after.values())
    for name, mask in masks(model, MEMBERS).items():
        assert torch.equal(before[name].view(torch.int16)[~mask], after[name].view(torch.int16)[~mask]), name
        assert not mask.any() or (before[name] != after[name])[mask].float().mean() > 0.5
