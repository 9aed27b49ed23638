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
