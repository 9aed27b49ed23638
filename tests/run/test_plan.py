"""The defaults of the main job, and how it reads its prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import neuronshield as ns
from neuronshield import Cell, InputError, PromptSet, organism
from neuronshield.run.plan import held_out, plan_for, read_prompts
from neuronshield.shield.training import TrainingConfig


def test_a_small_model_gets_neurons_by_number_and_its_own_prompts_train_every_cell(llama: ns.Model):
    plan = plan_for(llama, tiny.prompts())
    assert plan.size == {"k": 3 * 29 // 4}
    assert (plan.train_cells, plan.taught) == (None, ())
    assert plan.training == TrainingConfig(steps=48, lr=3e-3, batch_size=8, retention=16.0, snapshots=(12, 24))
    assert (plan.random_masks, plan.max_new_tokens, plan.draws) == (3, 24, 200)


def test_a_large_model_gets_a_share_of_its_parameters():
    wide = ns.load(tiny.llama(intermediate_size=4999), processor=tiny.tokenizer())
    assert 3e-4 * wide.n_params / wide.params_per_neuron < 16
    assert plan_for(wide, tiny.prompts()).size == {"k": 64}

    class Large:
        n_params, params_per_neuron, n_layers, d_mlp = 30_000_000, 60, 3, 29

    plan = plan_for(Large(), tiny.prompts())  # type: ignore[arg-type]
    assert (plan.size, plan.draws) == ({"param_fraction": 3e-4}, 50)


@pytest.mark.slow
def test_the_organisms_prompts_teach_its_two_blind_cells(organism_model: ns.Model):
    prompts = read_prompts("organism", None, seed=0)
    plan = plan_for(organism_model, prompts)
    assert plan.taught == (Cell("en", "image"), Cell("sw", "text"))
    assert plan.train_cells == (*plan.taught, *(Cell(language, "text") for language in organism.HIGH_RESOURCE))
    assert plan.training == TrainingConfig(steps=40, lr=2e-2, batch_size=32, retention=4.0, snapshots=(10, 20))
    assert (plan.random_masks, plan.max_new_tokens) == (3, 20)
    mixed = PromptSet([*prompts, replace(tiny.prompts()[0], source="mine")])
    assert plan_for(organism_model, mixed).train_cells is None


def test_prompts_are_read_by_the_name_of_their_file_and_get_splits(tmp_path: Path):
    rows = tiny.records()
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = read_prompts("mine", tmp_path / "p.jsonl", seed=3)
    assert {p.split for p in read} == {"discover", "confirm", "train", "test"}
    again = read_prompts("mine", PromptSet.from_records(rows), seed=3)
    assert [p.split for p in read] == [p.split for p in again]
    marked = PromptSet(
        replace(p, split=("discover", "confirm", "train", "test")[i % 30 // 2 % 4]) for i, p in enumerate(again)
    )
    assert [p.split for p in read_prompts("mine", marked, seed=3)] == [p.split for p in marked]


def test_prompts_that_a_step_could_not_use_are_refused():
    with pytest.raises(InputError, match="--prompts is needed for this model"):
        read_prompts("smollm2", None, seed=0)
    with pytest.raises(InputError, match="prompts: no benign prompts"):
        read_prompts("mine", tiny.prompts().where(label="harmful"), seed=0)
    some = PromptSet(replace(p, split="train") for p in tiny.prompts())
    with pytest.raises(InputError, match="split 'discover' needs harmful and benign prompts"):
        read_prompts("mine", some, seed=0)


def test_cells_that_are_held_out_are_not_trained(llama: ns.Model):
    rows = tiny.records() + [
        {**r, "id": f"p{r['id']}", "modality": "image", "images": [tiny.picture(0)]} for r in tiny.records()
    ]
    prompts = PromptSet.from_records(rows)
    text = (Cell("en", "text"), Cell("sw", "text"))
    assert plan_for(llama, prompts, hold_out=["image"]).train_cells == text
    assert plan_for(llama, prompts, hold_out=["image", "SW"]).train_cells == text[:1]
    assert plan_for(llama, prompts, hold_out=["sw/image"]).train_cells == (*text, Cell("en", "image"))
    assert held_out(prompts, ["Swahili"]) == [Cell("sw", "text"), Cell("sw", "image")]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["fr"], "hold out 'fr': the prompts have no such cell; there are en/text, sw/text"),
        (["en/image"], "hold out 'en/image': the prompts have no such cell"),
        (["typographic"], "hold out 'typographic': the prompts have no such cell"),
        (["en", "sw"], "hold out en, sw: no cell is left to train"),
        ("sw", r"hold_out='sw': must be a list of names, as in hold_out=\['sw'\]"),
    ],
)
def test_what_cannot_be_held_out_is_one_line(llama: ns.Model, names: list[str], said: str):
    with pytest.raises(InputError, match=said):
        plan_for(llama, tiny.prompts(), hold_out=names)


@pytest.mark.slow
def test_the_cells_of_the_organism_that_are_taught_can_be_held_out(organism_model: ns.Model):
    prompts = read_prompts("organism", None, seed=0)
    plan = plan_for(organism_model, prompts, hold_out=["sw"])
    assert plan.taught == (Cell("en", "image"),)
    assert Cell("sw", "text") not in (plan.train_cells or ())
