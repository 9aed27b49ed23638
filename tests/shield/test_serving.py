"""A saved adapter keeps to the rules of inference servers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import tiny
import torch
from masking import LR, parameters
from safetensors.torch import load_file

import neuronshield as ns
from neuronshield.shield.update import masked_update


def test_the_adapter_is_what_servers_take(llama: ns.Model, tmp_path: Path):
    """The rules of vLLM's PEFTHelper and LoRA loader, restated."""
    many = ns.NeuronSet([(0, i) for i in range(11)] + [(2, 7)])
    update = masked_update(llama, many, tiny.prompts(), steps=4, lr=LR, progress=False)
    folder = update.save(tmp_path / "adapter")
    about = json.loads((folder / "adapter_config.json").read_text())
    assert about["r"] == 16  # one of 1, 8, 16, 32, 64, 128, 256, 320, 512, not below 11
    assert about["lora_alpha"] == about["r"]
    assert about["bias"] == "none"
    assert not about["use_dora"]
    assert not about["modules_to_save"]
    assert not about["rank_pattern"]
    assert not about["alpha_pattern"]
    tensors = load_file(folder / "adapter_model.safetensors")
    sizes = {"gate_proj": (20, 29), "up_proj": (20, 29), "down_proj": (29, 20)}
    for name, tensor in tensors.items():
        parts = name.split(".")
        assert parts[:2] == ["base_model", "model"]
        assert parts[-2:] in (["lora_A", "weight"], ["lora_B", "weight"])
        wide, out = sizes[parts[-3]]
        assert tensor.shape == ((16, wide) if parts[-2] == "lora_A" else (out, 16))
    assert len(tensors) == 12
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(llama.module), folder).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, update.model.module(ids).logits, rtol=1e-4, atol=1e-4)


def test_what_is_too_large_for_a_server_is_merged(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    wide = ns.load(tiny.llama(intermediate_size=521), processor=tiny.tokenizer())
    update = masked_update(
        wide, ns.NeuronSet([(1, i) for i in range(521)]), tiny.prompts(), steps=1, lr=LR, progress=False
    )
    update.save(tmp_path / "adapter")
    assert "above what servers take (512)" in caplog.text
    merged = ns.load(update.save_merged(tmp_path / "merged"))
    for a, b in zip(parameters(update.model).values(), parameters(merged).values(), strict=True):
        assert torch.equal(a, b)
