"""Preference training is DPO with a gradient mask, on text and on pictures."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import masking as u
import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.shield.dpo import BETA
from neuronshield.shield.objective import Taught
from neuronshield.shield.update import masked_update

pytest.importorskip("trl")
STEPS, LR, SEED = 4, 3e-2, 1


def logp(module: Any, model: ns.Model, prompt: ns.Prompt, answer: str) -> torch.Tensor:
    """Log probability of the answer and its end, from one unpadded forward."""
    encoding, n = tiny.encode(model, prompt, answer)
    ids = encoding["input_ids"][0]
    return module(**encoding).logits[0, n - 1 : -1].log_softmax(-1).gather(1, ids[n:, None]).sum()


def dpo(model: ns.Model, prompts: ns.PromptSet, refusal: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Rafailov et al., eq. 7, by hand on the full weights with gradients masked."""
    module = copy.deepcopy(model.module).train(False)
    keep = u.masks(model, u.MEMBERS)
    named = {n: p for n, p in module.named_parameters() if keep[n].any()}
    for p in module.parameters():
        p.requires_grad_(False)
    for p in named.values():
        p.requires_grad_(True)
    optimiser = torch.optim.AdamW(list(named.values()), lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = LR * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS)))
        total = 0.0
        for prompt in prompts:
            said = model.tokenizer.decode(tiny.own_answer(model, prompt), skip_special_tokens=True)
            best, worst = (prompt.target, said) if prompt.label == "harmful" else (prompt.target or said, refusal)
            assert best is not None
            with torch.no_grad():
                base = logp(model.module, model, prompt, best) - logp(model.module, model, prompt, worst)
            ahead = logp(module, model, prompt, best) - logp(module, model, prompt, worst) - base
            loss = -torch.nn.functional.logsigmoid(BETA * ahead) / len(prompts)
            loss.backward()
            total += float(loss.detach())
        for name, p in named.items():
            assert p.grad is not None
            p.grad[~keep[name]] = 0.0
        torch.nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total)
    return losses, {n: p.detach() for n, p in module.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_preference_is_dpo_under_a_gradient_mask(family: str):
    if family == "llava":
        module, processor = tiny.llava(seed=SEED)  # one that does not answer with image tokens
        model = ns.load(module, processor=processor)
    else:
        model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    prompts = u.one_batch(model)
    prompts = ns.PromptSet(replace(p, target=p.target if p.label == "harmful" else None) for p in prompts)
    update = masked_update(
        model, u.neurons(), prompts, steps=STEPS, objective="preference", lr=LR, batch_size=2, refusals=["sorry no"],
        progress=False,
    )  # fmt: skip
    losses, weights = dpo(model, prompts, "sorry no")
    assert update.losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert update.losses == pytest.approx(losses, abs=2e-3)
    assert update.losses[-1] < np.log(2) - 0.01
    after, before = u.parameters(update.model), u.parameters(model)
    for name, mask in u.masks(model, u.MEMBERS).items():
        assert torch.equal(before[name][~mask], after[name][~mask]), name
        torch.testing.assert_close(after[name], weights[name], rtol=0, atol=5e-3)


@pytest.mark.slow
def test_mixed_text_and_pictures_learn_and_the_adapter_is_left_alone():
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor)
    update = masked_update(
        model, u.neurons(), tiny.prompts(pictures=True), steps=10, objective="preference", lr=LR, batch_size=4,
        progress=False,
    )  # fmt: skip
    assert np.mean(update.losses[-3:]) < np.mean(update.losses[:3]) - 0.02
    assert list(update.peft_model.peft_config) == ["default"]
    learns = {n for n, p in update.peft_model.named_parameters() if p.requires_grad}
    assert len(learns) == 6
    assert all(("lora_B" in n) == ("down_proj" in n) for n in learns)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"texts": ["here"]}, "texts= has no use"),
        ({"checkpoint": "x.safetensors"}, "checkpoint= has no use"),
        ({"accumulate": 5}, "must divide a batch of 16"),
    ],
)
def test_settings_without_a_use_are_refused(llama: ns.Model, options: dict[str, Any], said: str):
    with pytest.raises(ns.InputError, match=said):
        masked_update(llama, u.neurons(), tiny.prompts(), steps=1, objective="preference", progress=False, **options)


@pytest.mark.slow
def test_preference_training_says_that_nothing_was_held_by_kl_and_keeps_snapshots():
    model = u.double("llama")
    update = masked_update(
        model, u.neurons(), tiny.prompts(), objective="preference", steps=3, lr=LR, batch_size=4, snapshots=[1, 3],
        allow_unproven=True, progress=False,
    )  # fmt: skip
    assert update.taught == Taught(refusals=6, preferred=6)
    assert update.retention is None
    early, last, end = (u.parameters(m) for m in (update.at(1), update.at(3), update.model))
    assert any(not torch.equal(early[n], end[n]) for n in end)
    assert all(torch.equal(last[n], end[n]) for n in end)
