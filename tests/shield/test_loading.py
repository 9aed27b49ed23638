"""A saved adapter is read back by this package and by plain PEFT."""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from masking import LR, neurons
from safetensors.torch import load_file, save_file

import neuronshield as ns
from neuronshield.shield.loading import load_adapter
from neuronshield.shield.update import masked_update


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


def test_an_adapter_that_is_not_there_is_said(llama: ns.Model, tmp_path: Path):
    with pytest.raises(ns.InputError, match="no adapter here"):
        load_adapter(llama, tmp_path)


def test_a_full_disk_leaves_the_old_adapter(llama: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    update.save(tmp_path / "adapter")
    old = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def full(folder: Path, **_: Any) -> None:
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(update.peft_model, "save_pretrained", full)
    with pytest.raises(ns.InputError, match=r"adapter: cannot be written \(No space left on device\)"):
        update.save(tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == old


def other(seed: int = 0, **changes: int) -> ns.Model:
    return ns.load(tiny.llama(seed, **changes), processor=tiny.tokenizer())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda: other(seed=9),
            r"was trained on 'LlamaForCausalLM' with weights \w+; .* load the model that the adapter",
        ),
        (
            lambda: other(intermediate_size=31),
            "is of a model of 3 layers x 29 neurons; 'LlamaForCausalLM' has 3 x 31: load",
        ),
        (
            lambda: other(num_hidden_layers=5),
            "is of a model of 3 layers x 29 neurons; 'LlamaForCausalLM' has 5 x 29: load",
        ),
    ],
)
def test_a_masked_adapter_of_another_model_is_refused(llama: ns.Model, tmp_path: Path, model: Any, said: str):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, allow_unproven=True, progress=False)
    with pytest.raises(ns.InputError, match=said):
        load_adapter(model(), update.save(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"intermediate_size": 31}, "the adapter does not fit"),
        ({"num_hidden_layers": 2}, r"6 of its 18 tensors have no place in the model, such as '.*layers\.2\."),
    ],
)
def test_a_plain_lora_of_another_structure_is_refused(llama: ns.Model, tmp_path: Path, sizes: Any, said: str):
    folder = ns.plain_lora(llama, 9 * 49, tiny.prompts(), steps=1, progress=False).save(tmp_path / "adapter")
    with pytest.raises(ns.InputError, match=said):
        load_adapter(other(**sizes), folder)


def test_a_plain_lora_that_lacks_a_factor_is_refused(llama: ns.Model, tmp_path: Path):
    folder = ns.plain_lora(llama, 9 * 49, tiny.prompts(), steps=1, progress=False).save(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ns.InputError, match="the adapter does not fit 'LlamaForCausalLM'"):
        load_adapter(llama, folder)


@pytest.mark.parametrize("folder", [None, 3])
def test_a_folder_of_another_type_is_one_line(llama: ns.Model, folder: Any):
    with pytest.raises(ns.InputError, match=r"folder must be str or a path, got .*; pass the folder that update.save"):
        load_adapter(llama, folder)
