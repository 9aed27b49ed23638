"""A pushed update is loaded by its name: the base model and the adapter that the repository holds, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from local_hub import OWNER, Hub
from masking import LR, neurons, parameters

import neuronshield as ns
from neuronshield.shield.card import adapter_card

pytest_plugins = ["local_hub"]

FAST: dict[str, Any] = {"steps": 2, "lr": LR, "allow_unproven": True, "progress": False}


def same(left: ns.Model, right: ns.Model) -> bool:
    pairs = zip(parameters(left).items(), parameters(right).items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture
def base(hub: Hub, tmp_path: Path) -> ns.Model:
    """A model that the hub has as "somebody/base"."""
    tiny.llama().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    hub.add("somebody/base", tmp_path / "base")
    return ns.load("somebody/base")


@pytest.fixture
def update(base: ns.Model) -> ns.Update:
    return ns.masked_update(base, neurons(), tiny.prompts(), **FAST)


def test_a_pushed_update_is_loaded_by_its_name(hub: Hub, base: ns.Model, update: ns.Update):
    done = update.push_to_hub("me/shield", private=False, token=OWNER)
    files = hub.repositories["me/shield"].files
    assert set(files) == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "neurons.safetensors", "neuronshield.json",
    }  # fmt: skip
    assert files["README.md"].decode() == adapter_card(update)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "somebody/base"
    for again in (
        ns.load("me/shield"),
        ns.load("me/shield", revision=done.revision),
        ns.load("somebody/base", adapter="me/shield"),
        ns.load_adapter(base, "me/shield"),
    ):
        assert same(again, update.model)
        assert not same(again, base)
        assert again.provenance()["shielded"]
    assert ns.NeuronSet.from_hub("me/shield") == update.neurons


def test_the_base_is_loaded_at_the_revision_that_the_adapter_was_trained_on(hub: Hub, base: ns.Model, tmp_path: Path):
    old = hub.repositories["somebody/base"].commits[0][0]
    trained_on = ns.load("somebody/base", revision=old)
    pushed = ns.masked_update(trained_on, neurons(), tiny.prompts(), **FAST)
    pushed.push_to_hub("me/shield", private=False, token=OWNER)
    tiny.llama(seed=5).save_pretrained(tmp_path / "other")
    files = {
        **hub.repositories["somebody/base"].files,
        "model.safetensors": (tmp_path / "other" / "model.safetensors").read_bytes(),
    }
    hub.repositories["somebody/base"].commit(files)
    assert not same(ns.load("somebody/base"), base)
    assert same(ns.load("me/shield"), pushed.model)


def test_without_the_hub_it_is_loaded_from_the_cache(hub: Hub, update: ns.Update, monkeypatch: pytest.MonkeyPatch):
    update.push_to_hub("me/shield", private=False, token=OWNER)
    ns.load("me/shield")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert same(ns.load("me/shield"), update.model)
    assert len(hub.requests) == asked
    with pytest.raises(
        ns.InputError, match=r"cannot load model 'me/other': it is not in the cache, and HF_HUB_OFFLINE"
    ):
        ns.load("me/other")


def test_a_private_adapter_needs_the_login_of_its_owner(hub: Hub, update: ns.Update, monkeypatch: pytest.MonkeyPatch):
    update.push_to_hub("me/shield", token=OWNER)
    with pytest.raises(ns.InputError, match="me/shield") as caught:
        ns.load("me/shield")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    assert same(ns.load("me/shield"), update.model)


def test_a_plain_lora_takes_the_place_of_a_masked_update(hub: Hub, base: ns.Model, update: ns.Update):
    update.push_to_hub("me/shield", private=False, token=OWNER)
    plain = ns.plain_lora(base, 9 * 49, tiny.prompts(), steps=1, progress=False)
    plain.push_to_hub("me/shield", private=False, token=OWNER)
    assert "neurons.safetensors" not in hub.repositories["me/shield"].files
    torch.testing.assert_close(ns.load("me/shield").down_weight(1), plain.model.down_weight(1))
    with pytest.raises(ns.InputError, match=r"the repository has no neurons\.safetensors"):
        ns.NeuronSet.from_hub("me/shield")


def test_the_name_of_a_model_is_still_a_model(hub: Hub, base: ns.Model, tmp_path: Path):
    assert not base.provenance().get("shielded")
    (tmp_path / "base" / "adapter_config.json").write_text("{}")  # beside config.json, as transformers takes it
    hub.add("somebody/both", tmp_path / "base")
    with pytest.raises(ns.InputError, match="somebody/both"):
        ns.load("somebody/both", revision="none")


# -- what goes wrong --------------------------------------------------------------------------------------
def test_a_base_model_without_a_hub_id_is_loaded_by_the_user(hub: Hub, llama: ns.Model):
    local = ns.masked_update(llama, neurons(), tiny.prompts(), **FAST)
    local.push_to_hub("me/shield", private=False, token=OWNER)
    said = r"load\('me/shield'\): its base model 'LlamaForCausalLM' has no hub id; load that model yourself, with adapter='me/shield'"
    with pytest.raises(ns.InputError, match=said):
        ns.load("me/shield")
    assert same(ns.load(tiny.llama(), processor=tiny.tokenizer(), adapter="me/shield"), local.model)


@pytest.mark.parametrize("name", ["/etc", "../secret", "~/model", "a/b/c", "", 3, None])
def test_a_repository_cannot_name_a_folder_of_this_machine(hub: Hub, update: ns.Update, name: Any):
    update.push_to_hub("me/shield", private=False, token=OWNER)
    files = hub.repositories["me/shield"].files
    files["adapter_config.json"] = json.dumps(
        {**json.loads(files["adapter_config.json"]), "base_model_name_or_path": name}
    ).encode()
    with pytest.raises(
        ns.InputError, match=r"has no hub id; load that model yourself|names no base model; load it yourself"
    ):
        ns.load("me/shield")


def test_a_changed_file_of_the_hub_is_refused(hub: Hub, update: ns.Update):
    update.push_to_hub("me/shield", private=False, token=OWNER)
    files = hub.repositories["me/shield"].files
    files["adapter_config.json"] += b" "
    with pytest.raises(ns.InputError, match=r"adapter_config\.json: is not the file that was saved in this folder"):
        ns.load("me/shield")


def test_an_update_without_an_adapter_is_not_pushed(hub: Hub, update: ns.Update):
    with pytest.raises(ns.InputError, match=r"me/shield: a .* has no adapter; use save_merged\(\)"):
        replace(update, peft_model=None).push_to_hub("me/shield", token=OWNER)
    assert not any(method == "POST" for method, *_ in hub.requests)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing/more"])
def test_a_missing_repository_is_one_line(hub: Hub, name: str, llama: ns.Model):
    with pytest.raises(ns.InputError, match=name) as caught:
        ns.load(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ns.InputError, match=r"the hub has no such repository|no adapter here"):
        ns.load_adapter(llama, name)
