"""Loading a TransformerLens bridge: its transformers model comes back out, on the same weights."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoTokenizer

import neuronshield as ns
from neuronshield.model.forward import answer_logits


def booted(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A bridge, a copy of the model as it was before the bridge rewired it, and the processor."""
    from transformer_lens.model_bridge import TransformerBridge

    module: Any
    processor: Any = tiny.tokenizer()
    processor.save_pretrained(folder)
    if name == "llava":
        module, processor = tiny.llava()
        processor.save_pretrained(folder)
    else:
        module = getattr(tiny, name)()
    module.config.architectures = [type(module).__name__]
    before = copy.deepcopy(module)
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("something is installed"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), hf_model=module, tokenizer=tokenizer), before, processor


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_a_bridge_loads_as_the_model_it_wraps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, before, processor = booted(name, tmp_path, monkeypatch)
    model, plain = ns.load(bridge), ns.load(before, processor=processor)
    assert type(model.module) is type(before)
    assert [n for n, _ in model.module.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert (model.n_params, model.fingerprint, model.layers_path) == (
        plain.n_params,
        plain.fingerprint,
        plain.layers_path,
    )
    assert model.takes_images == (name == "llava")
    rows = list(tiny.prompts(pictures=name == "llava"))[::9]
    torch.testing.assert_close(answer_logits(model, rows), answer_logits(plain, rows), rtol=1e-4, atol=1e-4)
    assert ns.generate(model, rows[:3], max_new_tokens=4) == ns.generate(plain, rows[:3], max_new_tokens=4)


def test_its_weights_are_the_bridges_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, *_ = booted("llama", tmp_path, monkeypatch)
    model, ids = ns.load(bridge), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        was = bridge(ids)
        model.module.model.layers[1].mlp.down_proj.weight.mul_(2)  # type: ignore[union-attr,index]
        now = bridge(ids)
        torch.testing.assert_close(model.module(ids).logits, now, rtol=1e-4, atol=1e-4)
    assert (now - was).abs().max() > 1e-2


def test_a_bridge_whose_weights_were_processed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, *_ = booted("gpt2", tmp_path, monkeypatch)
    bridge.enable_compatibility_mode()
    with pytest.raises(ns.InputError, match="compatibility mode, which changes weights"):
        ns.load(bridge)


def test_the_model_reads_what_was_written_and_no_token_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronshield.model.encoding import collate

    bridge, *_ = booted("llama", tmp_path, monkeypatch)
    assert bridge.tokenizer("make cake")["input_ids"][0] == tiny.WORDS.index("<bos>")
    batch = collate(ns.load(bridge), list(tiny.prompts())[:1])
    assert batch.encoding["input_ids"].tolist() == [tiny.tokenizer()(tiny.prompts()[0].prompt)["input_ids"]]
    bridge.tokenizer.name_or_path = str(tmp_path / "gone")
    with pytest.raises(ns.InputError, match=r"its tokenizer cannot be read again from .*gone.*pass processor="):
        ns.load(bridge)
    assert ns.load(bridge, processor=tiny.tokenizer()).n_layers == 3
