"""The adapter: one factor is frozen, the other is trained, and plain PEFT reads it."""

from __future__ import annotations

import copy
from pathlib import Path

import peft
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_half_precision_the_adapter_holds_what_the_merged_weights_hold(
    family: str, dtype: torch.dtype, tmp_path: Path
):
    base = getattr(tiny, family)().to(dtype)
    model = ns.load(base, processor=tiny.tokenizer())
    update = masked_update(model, neurons(), tiny.prompts(), steps=12, lr=2e-2, progress=False)
    folder = update.save(tmp_path / "adapter")
    assert 0 < update.provenance["rounding"] < 0.1
    merged = parameters(update.model)
    by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).merge_and_unload()
    for name, p in by_peft.named_parameters():
        assert torch.equal(p, merged[name]), name
    for name, p in parameters(ns.load_adapter(model, folder)).items():
        assert torch.equal(p, merged[name]), name

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])

    def logits(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        on_top = peft.PeftModel.from_pretrained(copy.deepcopy(base).to(dtype), folder).eval()
        modules = on_top, copy.deepcopy(update.model.module).to(dtype), copy.deepcopy(base).to(dtype)
        with torch.no_grad():
            return tuple(m(input_ids=ids).logits.double() for m in modules)

    (exact, exact_merged, before), (on_top, rounded, _) = logits(torch.float32), logits(dtype)
    change = (exact_merged - before).norm()
    assert (exact - exact_merged).norm() < 1e-4 * change
    # what is left is the rounding of activations, which separates a model from its own exact arithmetic too
    assert (on_top - rounded).norm() < 3 * (rounded - exact_merged).norm()


def test_an_update_that_rounding_takes_away_warns():
    model = ns.load(tiny.llama().bfloat16(), processor=tiny.tokenizer())
    with pytest.warns(
        UserWarning, match=r"masked_update: rounding to bfloat16 changes \d+% of the update; train with more"
    ):
        masked_update(model, neurons(), tiny.prompts(), steps=1, lr=1e-6, allow_unproven=True, progress=False)


def test_in_single_precision_nothing_is_written_back(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=3, lr=2e-2, progress=False)
    assert "rounding" not in update.provenance
    wrapped = update.peft_model.base_model.model.model.layers[0].mlp.down_proj
    delta = wrapped.get_delta_weight("default")
    expected = llama.down_weight(0) + delta
    assert torch.equal(update.model.down_weight(0)[:, [3, 28]], expected[:, [3, 28]])
