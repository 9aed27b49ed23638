"""A job: the model and the prompts are read and checked before the folder is touched; its settings can be read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.core.results import from_json
from neuronshield.data.prompts import PromptSet
from neuronshield.model.answers import examples
from neuronshield.run.folder import open_folder, read_results
from neuronshield.run.job import Job, load_neurons, open_job
from neuronshield.run.sections import AttackSection, PromptSummary
from neuronshield.run.settings import Settings, read_settings

pytest_plugins = ["finished_runs"]


def test_what_a_run_is_about_is_known_before_its_folder(study: Path):
    about = open_job(study / "model", study / "prompts.jsonl", Settings(seed=3, refusals=("no",)))
    assert (about.study.seed, about.study.splits, about.study.prompts) == (3, "dealt with seed 3", 60)
    assert about.study.answers == {"refusals": ["no"]}
    assert (about.settings.model, about.settings.prompts) == (str(study / "model"), str(study / "prompts.jsonl"))
    given = open_job(study / "model", PromptSet(about.prompts), Settings(seed=3))
    assert given.study.splits == "given"


def test_objects_of_python_are_named_so_that_their_settings_repeat_nothing_else(llama: ns.Model):
    about = open_job(llama, tiny.prompts(), Settings())
    assert about.settings.model == llama.id != "organism"
    assert about.settings.prompts == "given in Python"


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "float32"}, {"trust_remote_code": True}, {"refusals": ("no",)}, {"template_options": {"a": 1}}],
)
def test_load_options_of_a_model_that_is_loaded_are_refused(llama: ns.Model, changes: dict[str, Any]):
    with pytest.raises(InputError, match=f"{next(iter(changes))}= says how to load a model, and this one is loaded"):
        open_job(llama, tiny.prompts(), Settings(**changes))


def test_a_job_says_what_it_is_of_and_takes_up_what_earlier_steps_left(llama: ns.Model, tmp_path: Path):
    about = open_job(llama, tiny.prompts(), Settings(seed=3, batch_size=7))
    section = AttackSection(k=7, cells=("en/text",), means={})
    with open_folder(tmp_path / "out", about.study) as folder:
        first = Job(about, folder, progress=False)
        first.write_head()
        with pytest.raises(InputError, match="no attack yet; run 'neuronshield attack' first"):
            first.get("attack", AttackSection)
        folder.begin("find", {})
        first.put("attack", section)
        folder.finish("find", first.sections, seconds=1.5)
    r: dict[str, Any] = read_results(tmp_path / "out")
    assert (r["seed"], r["model"]["n_layers"], r["model"]["d_mlp"], r["settings"]["batch_size"]) == (3, 3, 29, 7)
    assert r["model"]["fingerprint"] == llama.fingerprint
    summary = from_json(PromptSummary, r["prompts"])
    assert (summary.n, summary.cells) == (60, ("en/text", "sw/text"))
    assert sum(c.n for c in summary.counts) == 60
    assert {c.split for c in summary.counts if c.n} == {"discover", "confirm", "train", "test"}
    with open_folder(tmp_path / "out", about.study) as folder:
        second = Job(about, folder, progress=False)
        second.load()
        assert second.get("attack", AttackSection) == section
        assert second.results["seconds"] == {"find": 1.5}
        assert second.batch == {"batch_size": 7}
    assert read_settings(tmp_path / "out" / "run.toml")["batch_size"] == 7


def test_pictures_are_kept_by_their_hash(tmp_path: Path):
    import pandas as pd

    module, processor = tiny.llava()
    about = open_job(ns.load(module, processor=processor), tiny.prompts(pictures=True), Settings())
    with open_folder(tmp_path / "out", about.study) as folder:
        Job(about, folder).write_head()
    rows = pd.read_parquet(tmp_path / "out" / "prompts.parquet")
    images = {i for row in rows["images"] for i in row}
    assert len(rows) == 120
    assert len(images) == 30  # the pictures of both languages are the same
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in images)


def test_a_set_that_is_not_there_names_the_file(llama: ns.Model, tmp_path: Path):
    about = open_job(llama, tiny.prompts(), Settings())
    with open_folder(tmp_path / "out", about.study) as folder:
        job = Job(about, folder, progress=False)
        with pytest.raises(InputError, match=r"candidates\.safetensors: no such file"):
            load_neurons(job, "candidates")
        ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29).save(tmp_path / "out" / "neurons" / "candidates.safetensors")
        assert list(load_neurons(job, "candidates")) == [(0, 3)]


@pytest.mark.parametrize(
    ("target", "says"),
    [("sure <image>", "its answer contains '<image>'"), ("sure " * 3000, "tokens are more than the 2048")],
    ids=["a picture's token", "too long"],
)
def test_an_answer_that_cannot_be_read_is_found_before_the_first_forward(target: str, says: str):
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor)
    module.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    split = {"0": "discover", "1": "confirm", "2": "train", "3": "test", "4": "train"}
    rows = [{**row, "split": split[row["pair_id"][0]]} for row in tiny.records()]
    bad = next(row for row in rows if row["split"] == "train")
    open_job(model, ns.PromptSet.from_records(rows), Settings())
    bad["target"] = target
    with pytest.raises(InputError, match=f"prompt '{bad['id']}': .*{says}"):
        open_job(model, ns.PromptSet.from_records(rows), Settings())
    with pytest.raises(InputError, match=f"prompt '{bad['id']}': .*{says}"):  # and before the model answers the others
        examples(model, ns.PromptSet.from_records([{**row, "target": None} if row is not bad else row for row in rows]))
