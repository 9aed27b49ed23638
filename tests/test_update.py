"""The masked update is gradient masking, step for step, and touches nothing outside its mask."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import peft
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.update import load_adapter, masked_update, plain_lora

MEMBERS = [(0, 3), (0, 28), (2, 7)]
STEPS, LR = 6, 1e-2


def neurons(pairs: list[tuple[int, int]] = MEMBERS) -> ns.NeuronSet:
    return ns.NeuronSet(pairs, n_layers=3, d_mlp=29)


def double(family: str) -> ns.Model:
    """The same tiny model in float64; pictures where the family takes them."""
    if family == "llava":
        module, processor = tiny.llava()
        return ns.load(module.double(), processor=processor)
    return ns.load(getattr(tiny, family)().double(), processor=tiny.tokenizer())


def one_batch(model: ns.Model) -> ns.PromptSet:
    """One harmful and one benign prompt: every batch of two must be just these, so no sampler is trusted."""
    rows = tiny.records(pictures=type(model.module).__name__.startswith("Llava"), languages=("en",))
    harmful = next(r for r in rows if r["label"] == "harmful" and r.get("images", True))
    benign = next(r for r in rows[::-1] if r["label"] == "benign")
    return ns.PromptSet.from_records([harmful, benign])


def parameters(model: ns.Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def masks(model: ns.Model, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Which weights belong to the neurons, by the written-out names of each family."""
    out = {}
    for name, p in model.module.named_parameters():
        mask = torch.zeros_like(p, dtype=torch.bool)
        for layer, index in pairs:
            if f"layers.{layer}.mlp." in name and "vision" not in name:
                mask[(slice(None), index) if "down_proj" in name else index] = True
            if f"h.{layer}.mlp." in name and name.endswith("weight"):  # Conv1D stores the transpose
                mask[index if "c_proj" in name else (slice(None), index)] = True
        out[name] = mask
    return out


def reference(model: ns.Model, prompts: ns.PromptSet, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Adam on the full weights with gradients masked: every prompt alone and unpadded, written from the definition."""
    module = copy.deepcopy(model.module).train(False)
    keep = masks(model, pairs)
    named = {n: p for n, p in module.named_parameters() if keep[n].any()}
    for p in module.parameters():
        p.requires_grad_(False)
    for p in named.values():
        p.requires_grad_(True)
    optimiser = torch.optim.AdamW(list(named.values()), lr=LR, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = LR * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS)))
        for prompt in prompts:
            encoding, n = tiny.encode(model, prompt, prompt.target)
            ids = encoding["input_ids"][0]
            logits = module(**encoding).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[n - 1 : -1], ids[n:])
            (loss / len(prompts)).backward()
        for name, p in named.items():
            assert p.grad is not None
            p.grad[~keep[name]] = 0.0
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return {n: p.detach() for n, p in module.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_training_a_frozen_one_hot_lora_is_training_under_a_gradient_mask(family: str):
    model = double(family)
    before, prompts = parameters(model), one_batch(model)
    update = masked_update(model, neurons(), prompts, steps=STEPS, lr=LR, batch_size=2, progress=False)
    after, expected = parameters(update.model), reference(model, prompts, MEMBERS)
    assert list(after) == list(before)
    moved = max(float((after[n] - before[n]).abs().max()) for n in after)
    assert moved > 1e-3
    for name in after:
        torch.testing.assert_close(after[name], expected[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_every_weight_outside_the_mask_keeps_its_bits_and_the_base_model_all_of_them(family: str):
    model = double(family)
    for p in model.module.parameters():  # -0.0 + 0.0 would be 0.0
        p.data.view(-1)[::3] = -0.0
    before = parameters(model)
    update = masked_update(model, neurons(), one_batch(model), steps=2, lr=LR, batch_size=2, progress=False)
    after, base = parameters(update.model), parameters(model)
    for name, mask in masks(model, MEMBERS).items():
        old = before[name].view(torch.int64)
        assert torch.equal(old[~mask], after[name].view(torch.int64)[~mask]), name
        assert torch.equal(old, base[name].view(torch.int64)), name


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


def test_plain_peft_loads_the_adapter_and_computes_the_same(llama: ns.Model, tmp_path: Path):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=4, lr=LR, progress=False)
    update.save(tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(llama.module), tmp_path / "adapter").eval()
    mine = load_adapter(llama, tmp_path / "adapter").module
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = update.model.module(ids).logits
        assert not torch.allclose(expected, llama.module(ids).logits, atol=1e-3)
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine(ids).logits, expected, rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_the_loss_falls_and_the_seed_decides(llama: ns.Model):
    def losses(seed: int) -> list[float]:
        return masked_update(llama, neurons(), tiny.prompts(), steps=25, lr=3e-2, seed=seed, progress=False).losses

    first = losses(0)
    assert np.mean(first[-5:]) < np.mean(first[:5]) - 0.1
    assert first == losses(0)
    assert first != losses(1)


def test_a_loss_that_is_not_finite_stops_with_its_step():
    broken = tiny.llama()
    broken.lm_head.weight.data[0, 0] = float("nan")
    model = ns.load(broken, processor=tiny.tokenizer())
    with pytest.raises(ns.InputError, match="loss is nan at step 0"):
        masked_update(model, neurons(), tiny.prompts(), steps=3, progress=False)


def test_plain_lora_stays_within_its_budget_and_trains_as_much_as_fits(llama: ns.Model):
    per_rank = 9 * (20 + 29)
    update = plain_lora(llama, 2 * per_rank + 5, tiny.prompts(), steps=1, progress=False)
    assert update.trained == 2 * per_rank
    learns = sum(p.numel() for p in update.peft_model.parameters() if p.requires_grad)
    assert learns == update.trained


@pytest.mark.parametrize(
    ("pairs", "options", "said"),
    [
        ([], {}, "the neuron set is empty"),
        ([(3, 0)], {}, "does not exist"),
        ([(0, 29)], {}, "does not exist"),
        (MEMBERS, {"objective": "dpo"}, "objective='dpo' is unknown"),
    ],
)
def test_what_cannot_be_trained_is_said(
    llama: ns.Model, pairs: list[tuple[int, int]], options: dict[str, str], said: str
):
    with pytest.raises(ns.InputError, match=said):
        masked_update(llama, ns.NeuronSet(pairs), tiny.prompts(), steps=1, progress=False, **options)  # type: ignore[arg-type]


def test_an_adapter_that_is_not_there_is_said(llama: ns.Model, tmp_path: Path):
    with pytest.raises(ns.InputError, match="no adapter here"):
        load_adapter(llama, tmp_path)
