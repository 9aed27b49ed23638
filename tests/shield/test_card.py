"""The card of a saved adapter says what it is, what was proven, and nothing about the machine that made it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import yaml
from masking import neurons

import neuronshield as ns
from neuronshield.core.cards import CARD
from neuronshield.shield.card import adapter_card
from neuronshield.shield.update import masked_update

FAST: dict[str, Any] = {"steps": 2, "allow_unproven": True, "progress": False}


@pytest.fixture(scope="module")
def update(llama: ns.Model) -> ns.Update:
    return masked_update(llama, neurons(), tiny.prompts(), **FAST)


def with_provenance(update: ns.Update, **about: Any) -> ns.Update:
    assert update.neurons is not None
    return replace(update, neurons=ns.NeuronSet(update.neurons, n_layers=3, d_mlp=29, provenance=about))


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def test_its_metadata_is_yaml_that_hubs_read(update: ns.Update):
    _, metadata, text = adapter_card(update).split("---\n", 2)
    about = yaml.safe_load(metadata)
    assert about["base_model"] == "LlamaForCausalLM"
    assert about["library_name"] == "peft"
    assert {"lora", "safety", "base_model:adapter:LlamaForCausalLM"} <= set(about["tags"])
    titles = [
        "Base model",
        "Neurons",
        "What is known about them",
        "Training",
        "Loading",
        "Limits",
        "Responsible use",
        "Licence",
    ]
    assert re.findall("^## (.*)$", text, re.MULTILINE)[:-1] == titles


def test_it_says_what_was_trained_on_what(update: ns.Update):
    card = adapter_card(update)
    assert f"{update.trained:,} numbers" in card
    assert f"| how many | {len(neurons())} of 3 x 29 |" in card
    training = section(card, "Training")
    for cell in ("en/text", "sw/text"):
        n = [len(tiny.prompts().where(label=label).in_cells([ns.Cell.of(cell)])) for label in ("harmful", "benign")]
        assert f"| {cell} | {n[0]} | {n[1]} |" in training
    assert update.taught is not None
    assert f"{update.taught.refusals} harmful prompts were taught a refusal" in training


def test_it_says_whether_the_neurons_were_proven_beside_which_controls(update: ns.Update):
    found = section(adapter_card(update), "What is known about them")
    assert "Not verified" in found
    assert "was not tested" in found
    claims = [
        {"name": "necessity: mean", "effect": [0.61, 0.52, 0.7], "control": "0.12 (matched)", "verdict": "passed"}
    ]
    proven = with_provenance(update, verdict="every claim held", verified_on="h", draws=200, claims=claims)
    found = section(adapter_card(proven), "What is known about them")
    assert found.strip().startswith("**Verified**")
    assert "| necessity: mean | 0.61 \\[0.52, 0.70\\] | 0.12 (matched) | passed |" in found
    assert "beside 200 control sets" in found
    refuted = with_provenance(update, verdict="failed: specificity", draws=200, claims=claims)
    found = section(adapter_card(refuted), "What is known about them")
    assert "**Not verified** when tested on requests that had not selected them: failed: specificity" in found


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a | b\n# title", "`x` [l](http://x) ![i](y)", "'\"\n---\nx: y"]
)
def test_no_name_changes_the_structure_of_the_card(update: ns.Update, hostile: str):
    plain = adapter_card(with_provenance(update, method="sas", cell="en/text", verdict="v"))
    about = {"method": hostile, "cell": hostile, "verdict": hostile}
    renamed = replace(with_provenance(update, **about), model=update.model.replace(id=hostile), form=hostile)
    card = adapter_card(renamed)
    assert len(card.splitlines()) == len(plain.splitlines()) - 2  # no hub takes such a base_model, nor a tag of it
    assert re.findall("^#+ ", card, re.MULTILINE) == re.findall("^#+ ", plain, re.MULTILINE)
    assert set(yaml.safe_load(card.split("---\n")[1])) == {"library_name", "tags"}
    body = re.sub(r"```.*?```|`[^`\n]*`", "", card[card.index("\n# ") :], flags=re.DOTALL)
    assert "<script>" not in body
    assert not re.search(r"(?<!\\)\]\(http", body)


def test_an_adapter_is_saved_with_its_card_and_names_a_folder_without_its_path(tmp_path: Path):
    secret = tmp_path / "alice" / "project"
    tiny.llama().save_pretrained(secret)
    tiny.tokenizer().save_pretrained(secret)
    model = ns.load(secret)
    assert model.id == "project"
    update = masked_update(model, neurons(), tiny.prompts(), **FAST)
    folder, merged = update.save(tmp_path / "adapter"), update.save_merged(tmp_path / "merged")
    for file in [*folder.rglob("*"), *merged.rglob("*")]:
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert (folder / CARD).read_text(encoding="utf-8") == adapter_card(update)
    assert peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path == "project"


def test_an_adapter_without_a_set_has_a_card_too(llama: ns.Model):
    plain = ns.plain_lora(llama, 9 * 49, tiny.prompts(), steps=1, progress=False)
    card = adapter_card(plain)
    assert "was not confined to a set of neurons" in card
    assert "were trained, in all MLPs" in card
