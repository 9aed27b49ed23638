"""The defaults of the main job, and how it reads its prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import neuronshield as ns
from neuronshield import Cell, InputError, PromptSet, organism
from neuronshield.run.plan import in_force, named_cells, plan_for, read_prompts
from neuronshield.run.settings import Settings
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
    assert plan_for(llama, prompts, Settings(hold_out=("image",))).train_cells == text
    assert plan_for(llama, prompts, Settings(hold_out=("image", "SW"))).train_cells == text[:1]
    assert plan_for(llama, prompts, Settings(hold_out=("sw/image",))).train_cells == (*text, Cell("en", "image"))
    assert named_cells(prompts, ["Swahili"], option="hold_out") == [Cell("sw", "text"), Cell("sw", "image")]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("fr",), "hold_out 'fr': the prompts have no such cell; there are en/text, sw/text"),
        (("en/image",), "hold_out 'en/image': the prompts have no such cell"),
        (("typographic",), "hold_out 'typographic': the prompts have no such cell"),
        (("en", "sw"), "hold_out en, sw: no cell is left to train"),
    ],
)
def test_what_cannot_be_held_out_is_one_line(llama: ns.Model, names: tuple[str, ...], said: str):
    with pytest.raises(InputError, match=said):
        plan_for(llama, tiny.prompts(), Settings(hold_out=names))


def test_names_of_cells_are_a_list():
    with pytest.raises(InputError, match=r"cells='sw': must be a list of names, as in cells=\['sw'\]"):
        named_cells(tiny.prompts(), "sw", option="cells")


def test_a_study_of_some_cells_reads_no_others():
    read = read_prompts("mine", tiny.prompts(), seed=3, cells=["sw"])
    assert read.cells() == [Cell("sw", "text")]
    assert len(read) == 30
    with pytest.raises(InputError, match="cells 'fr': the prompts have no such cell; there are en/text, sw/text"):
        read_prompts("mine", tiny.prompts(), seed=3, cells=["fr"])


def test_what_is_asked_for_takes_the_place_of_every_default(llama: ns.Model):
    asked = Settings(
        method="effect_size", k=5, draws=7, graded=11, steps=13, lr=0.5, train_batch_size=3, retention=2.0, random_masks=4, max_new_tokens=6,
    )  # fmt: skip
    plan = plan_for(llama, tiny.prompts(), asked)
    assert (plan.method, plan.size, plan.draws, plan.graded, plan.random_masks, plan.max_new_tokens) == (
        "effect_size",
        {"k": 5},
        7,
        11,
        4,
        6,
    )
    assert plan.training == TrainingConfig(steps=13, lr=0.5, batch_size=3, retention=2.0, snapshots=(3, 6))
    assert in_force(asked, plan) == asked
    assert plan_for(llama, tiny.prompts(), Settings(param_fraction=0.01)).size == {"param_fraction": 0.01}
    assert plan_for(llama, tiny.prompts(), Settings(steps=1)).training.snapshots == ()


def test_what_is_in_force_gives_the_same_plan_again(llama: ns.Model):
    plan = plan_for(llama, tiny.prompts(), Settings(hold_out=("sw",)))
    told = in_force(Settings(hold_out=("sw",)), plan)
    assert (told.k, told.steps, told.lr, told.draws, told.max_new_tokens) == (21, 48, 3e-3, 200, 24)
    assert plan_for(llama, tiny.prompts(), told) == plan


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(k=0), "k=0: must be a whole number of at least 1"),
        (Settings(k=88), "k=88: the model has 87 neurons"),
        (Settings(param_fraction=0.0), "param_fraction=0.0: must be above 0 and at most 1"),
        (Settings(param_fraction=float("nan")), "param_fraction=nan: must be above 0"),
        (Settings(random_masks=1), "random_masks=1: must be a whole number of at least 2"),
        (Settings(draws=0), "draws=0"),
        (Settings(batch_size=0), "batch_size=0"),
        (Settings(steps=0), "steps=0"),
        (Settings(lr=-1.0), "lr=-1"),
        (Settings(method="contribtion"), "did you mean 'contribution'"),
        (Settings(judge="wildgard"), "judge='wildgard' is unknown; did you mean 'wildguard'"),
    ],
)
def test_a_setting_out_of_its_range_is_one_line_before_the_first_step(llama: ns.Model, settings: Settings, said: str):
    with pytest.raises(InputError, match=said):
        plan_for(llama, tiny.prompts(), settings)


@pytest.mark.slow
def test_the_cells_of_the_organism_that_are_taught_can_be_held_out(organism_model: ns.Model):
    prompts = read_prompts("organism", None, seed=0)
    plan = plan_for(organism_model, prompts, Settings(hold_out=("sw",)))
    assert plan.taught == (Cell("en", "image"),)
    assert Cell("sw", "text") not in (plan.train_cells or ())
