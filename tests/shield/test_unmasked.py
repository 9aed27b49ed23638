"""The trained baselines change what they say they change."""

from __future__ import annotations

import pytest
import tiny
import torch
from masking import parameters

import neuronshield as ns
from neuronshield.shield.unmasked import full_update, plain_lora


def test_full_update_moves_every_mlp_weight_and_nothing_else(llama: ns.Model):
    before = parameters(llama)
    update = full_update(llama, tiny.prompts(), steps=2, lr=1e-3, progress=False)
    after = parameters(update.model)
    for name in after:
        assert torch.equal(before[name], after[name]) == (".mlp." not in name), name
        assert torch.equal(before[name], parameters(llama)[name])
    assert update.trained == sum(p.numel() for n, p in after.items() if ".mlp." in n)
    with pytest.raises(ns.InputError, match="has no adapter"):
        update.save("nowhere")


def test_plain_lora_stays_within_its_budget_and_trains_as_much_as_fits(llama: ns.Model):
    per_rank = 9 * (20 + 29)
    update = plain_lora(llama, 2 * per_rank + 5, tiny.prompts(), steps=1, progress=False)
    assert update.trained == 2 * per_rank
    learns = sum(p.numel() for p in update.peft_model.parameters() if p.requires_grad)
    assert learns == update.trained


def test_plain_lora_says_what_it_trains_where_the_budget_is_below_one_projection(llama: ns.Model):
    with pytest.warns(UserWarning, match="budget=7 is below one projection of rank 1; 49 numbers are trained"):
        assert plain_lora(llama, 7, tiny.prompts(), steps=1, progress=False).trained == 49


def test_recomputing_activations_changes_nothing_and_the_module_is_left_as_it_was(llama: ns.Model):
    plain, again = (
        full_update(llama, tiny.prompts(), steps=2, lr=1e-3, gradient_checkpointing=on, progress=False)
        for on in (False, True)
    )
    assert again.losses == pytest.approx(plain.losses, abs=1e-6)
    assert not again.model.module.is_gradient_checkpointing
