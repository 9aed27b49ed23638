"""Step shield: each condition is a unit of its own, kept as what it is and read back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import neuronshield as ns
from neuronshield.run.conditions import BASE, CLAMP, LORA, LOW_RANK, SHIELD, random_mask
from neuronshield.run.folder import open_folder
from neuronshield.run.job import Job, open_job
from neuronshield.run.settings import read_settings, settings_of
from neuronshield.run.shielding import curve_files, file_name, model_of, trained_neurons

pytest_plugins = ["finished_runs"]

TRAINED = [SHIELD, random_mask(1), random_mask(2), LORA]


def test_every_condition_has_its_unit_its_adapter_and_its_curve(finished: Path):
    section = ns.open(finished).shield
    assert list(section.conditions) == [SHIELD, random_mask(1), random_mask(2), LORA, CLAMP, LOW_RANK]
    for name, trained in section.conditions.items():
        unit = json.loads((finished / "shield" / f"{file_name(name)}.json").read_text())["unit"]
        assert unit["trained"]["form"] == trained.form
        assert len(trained.losses) == (2 if name in TRAINED else 0)
        assert sorted(curve_files(finished, name)) == ([1] if name in TRAINED else [])
        assert not (finished / "shield" / f"{file_name(name)}.safetensors").exists()  # the checkpoint of its training
    adapters = {p.parent.relative_to(finished).as_posix() for p in finished.rglob("adapter_config.json")}
    assert adapters == {"adapter", *(f"controls/{file_name(name)}" for name in [*TRAINED[1:], LOW_RANK])}


def test_masks_of_random_neurons_have_as_many_as_the_shield_and_are_not_the_same(finished: Path):
    sets = [
        ns.NeuronSet.load(finished / folder / "neurons.safetensors")
        for folder in ("adapter", "controls/random-mask-1", "controls/random-mask-2")
    ]
    assert [len(s) for s in sets] == [3] * 3
    assert len({frozenset(s) for s in sets}) == 3


def test_the_model_of_a_condition_is_read_back(copied: Path):
    told = settings_of("run", None, read_settings(copied / "run.toml"))
    about = open_job(told.model, told.prompts, told)
    run = ns.open(copied)
    with open_folder(copied, about.study) as folder:
        job = Job(about, folder, progress=False)
        assert trained_neurons(job) == run.candidates  # none was verified
        assert model_of(job, BASE) is about.model
        for name in (CLAMP, LOW_RANK):
            prompts = ns.PromptSet([a.prompt for a in run.evaluations[name].answers])
            found = ns.evaluate(model_of(job, name), prompts, max_new_tokens=3, progress=False)
            assert [a.response for a in found.answers] == [a.response for a in run.evaluations[name].answers]


@pytest.mark.parametrize(
    ("name", "file"), [("shield", "shield"), ("random mask 12", "random-mask-12"), (CLAMP, "clamp-no-training")]
)
def test_a_condition_has_a_name_that_a_file_can_have(name: str, file: str):
    assert file_name(name) == file
