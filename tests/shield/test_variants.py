"""The row-masked LoRA and the frozen set keep to their own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from masking import LR, MEMBERS, double, masks, neurons, one_batch, parameters

import neuronshield as ns
from neuronshield.check.attacks import prune
from neuronshield.shield.loading import load_adapter
from neuronshield.shield.variants import frozen_set_update, masked_lora


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
@pytest.mark.parametrize("train", ["rows", "rest"])
def test_each_variant_keeps_to_its_own_weights(family: str, train: str, tmp_path: Path):
    model = double(family)
    before = parameters(model)
    common: dict[str, Any] = {"steps": 3, "lr": LR, "batch_size": 2, "rank": 2, "progress": False}
    if train == "rows":
        update = masked_lora(model, neurons(), one_batch(model), allow_unproven=True, **common)
    else:
        update = frozen_set_update(model, neurons(), one_batch(model), **common)
    after = parameters(update.model)
    loaded = parameters(load_adapter(model, update.save(tmp_path / "adapter")))
    changed = 0
    for name, mask in masks(model, MEMBERS).items():
        mlp = ".mlp." in name and name.endswith("weight") and "vision" not in name
        down = "down_proj" in name or "c_proj" in name
        free = (mask & torch.tensor(not down)) if train == "rows" else (~mask & torch.tensor(mlp))
        assert torch.equal(before[name].view(torch.int64)[~free], after[name].view(torch.int64)[~free]), name
        assert torch.equal(after[name], loaded[name]), name
        changed += int((after[name] != before[name])[free].sum()) / max(int(free.sum()), 1) > 0.9
    assert changed == {"rows": 4 if family != "gpt2" else 2, "rest": 9 if family != "gpt2" else 6}[train]
    learnt = sum(int((p.grad != 0).sum()) if p.grad is not None else 0 for p in update.peft_model.parameters())
    assert learnt == 0
    projections = 1 if family == "gpt2" else 2
    if train == "rows":
        assert update.trained == projections * (3 * 2 + 2 * 2 * 20)
    else:
        whole = 3 * (projections + 1)
        assert update.trained == whole * 2 * (20 + 29) - (projections + 1) * 2 * 3


def test_zeroed_neurons_are_zero_while_the_rest_learns(llama: ns.Model):
    common: dict[str, Any] = {"steps": 4, "lr": LR, "rank": 2, "progress": False}
    silent = frozen_set_update(llama, neurons(), tiny.prompts(), zeroed=True, **common)
    loud = frozen_set_update(llama, neurons(), tiny.prompts(), **common)
    pruned = ns.load(prune(llama, neurons()).module, processor=llama.processor)
    expected = frozen_set_update(pruned, neurons(), tiny.prompts(), **common)
    assert silent.losses == pytest.approx(expected.losses, abs=1e-5)
    assert silent.losses != pytest.approx(loud.losses, abs=1e-4)


def test_a_masked_lora_warns_of_an_unproven_set_and_a_frozen_set_does_not(
    llama: ns.Model, recwarn: pytest.WarningsRecorder
):
    common: dict[str, Any] = {"steps": 1, "rank": 2, "progress": False}
    with pytest.warns(UserWarning, match="masked_lora: 3 neurons were not proven"):
        masked_lora(llama, neurons(), tiny.prompts(), **common)
    recwarn.clear()
    frozen_set_update(llama, neurons(), tiny.prompts(), **common)
    assert not [w for w in recwarn if "proven" in str(w.message)]
    with pytest.raises(
        ns.InputError, match=r"masked_lora: 3 neurons are 172 trained numbers, .* over the budget of 0.100%"
    ):
        masked_lora(llama, neurons(), tiny.prompts(), budget=1e-3, **common)
