"""Adapters of mixtures of experts: written for plain PEFT, read back bit for bit, and bound to their set."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mixtures import SPECS, Spec, by_family, neuron_set, one_batch

import neuronshield as ns
from neuronshield.shield.unmasked import plain_lora
from neuronshield.shield.variants import frozen_set_update, masked_lora

TRAINERS: dict[str, Any] = {
    "masked": lambda model, neurons, **kw: ns.masked_update(model, neurons, one_batch(), allow_unproven=True, **kw),
    "up and down": lambda model, neurons, **kw: ns.masked_update(
        model, neurons, one_batch(), parts=("up", "down"), allow_unproven=True, **kw
    ),
    "row-masked": lambda model, neurons, **kw: masked_lora(
        model, neurons, one_batch(), rank=2, allow_unproven=True, **kw
    ),
    "frozen set": lambda model, neurons, **kw: frozen_set_update(model, neurons, one_batch(), rank=2, **kw),
    "plain": lambda model, _, **kw: plain_lora(model, 2000, one_batch(), **kw),
}


@pytest.mark.parametrize("trainer", ["masked", *(pytest.param(t, marks=pytest.mark.slow) for t in list(TRAINERS)[1:])])
@by_family
def test_a_saved_adapter_gives_the_same_logits_under_plain_peft_and_here(
    spec: Spec, trainer: str, tmp_path: Path
) -> None:
    from peft import PeftModel

    module = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    update = TRAINERS[trainer](model, neuron_set(spec), steps=2, lr=0.05, batch_size=2, progress=False)
    update.save(tmp_path / "adapter")
    ids = torch.randint(3, 38, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        here, base = update.model.module(ids).logits, model.module(ids).logits
        there = PeftModel.from_pretrained(copy.deepcopy(module), str(tmp_path / "adapter"))(ids).logits
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    assert (here - base).abs().max() > 1e-3
    back = ns.load_adapter(model, tmp_path / "adapter")
    for name, p in update.model.module.named_parameters():
        if trainer in ("plain", "frozen set"):  # a product of two factors, whose last bit depends on the processor
            torch.testing.assert_close(dict(back.module.named_parameters())[name], p, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(dict(back.module.named_parameters())[name], p), name


@by_family
def test_in_half_precision_the_saved_adapter_is_read_back_bit_for_bit(spec: Spec, tmp_path: Path) -> None:
    model = spec.load(torch.bfloat16)
    update = ns.masked_update(
        model, neuron_set(spec), one_batch(), steps=2, lr=0.05, batch_size=2, allow_unproven=True, progress=False
    )
    back = ns.load_adapter(model, update.save(tmp_path / "adapter"))
    for (name, p), q in zip(update.model.module.named_parameters(), back.module.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_an_adapter_that_changes_more_than_its_set_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from neuronshield.core.folders import list_files

    spec = SPECS[0]
    model = spec.load()
    update = ns.masked_update(
        model, neuron_set(spec), one_batch(), steps=1, lr=0.05, batch_size=2, allow_unproven=True, progress=False
    )
    folder = update.save(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for tensor in tensors.values():
        tensor += 0.1
    save_file(tensors, file, metadata={"format": "pt"})
    list_files(folder)
    with pytest.raises(ns.InputError, match=r"changes weights of .*outside its set"):
        ns.load_adapter(model, folder)


@by_family
def test_an_adapter_that_peft_made_on_the_experts_is_merged(spec: Spec, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    module = spec.build()
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    config = LoraConfig(r=3, lora_alpha=6, target_parameters=parameters, target_modules=["q_proj"])
    peft_model: Any = get_peft_model(copy.deepcopy(module), config).eval()
    for name, p in peft_model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.2)
    peft_model.save_pretrained(tmp_path)
    back = ns.load_adapter(ns.load(module, processor=tiny.tokenizer()), tmp_path)
    ids = torch.randint(3, 38, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(back.module(ids).logits, peft_model(ids).logits, rtol=1e-4, atol=1e-4)
        assert (back.module(ids).logits - module(ids).logits).abs().max() > 0.1
    with pytest.raises(ns.InputError, match=r"mixture-of-experts.*an adapter lies on them; merge it first"):
        ns.load(peft_model, processor=tiny.tokenizer())
