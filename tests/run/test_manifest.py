"""The manifest: what a study is, what a step was computed from, and which steps are stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.core.results import save_json
from neuronshield.run.manifest import (
    BEFORE,
    FORMAT,
    STEP_NAMES,
    Manifest,
    StepState,
    digest,
    read_manifest,
    study_of,
    write_manifest,
)


def whole(study: object = "toy") -> Manifest:
    """Every step done, each computed from those before it."""
    made = Manifest(study)  # type: ignore[arg-type]
    for step in STEP_NAMES:
        state = StepState(True, {}, made.inputs(step), output=f"result of {step}")
        made = replace(made, steps={**made.steps, step: state})
    return made


def test_the_study_is_the_model_its_prompts_with_their_splits_and_the_seed(llama: ns.Model):
    prompts = tiny.prompts()
    study = study_of(llama, prompts, seed=3, dealt=True, answers={"refusals": ("no",), "compliances": ()})
    assert (study.fingerprint, study.data, study.prompts) == (llama.fingerprint, prompts.hash(), 60)
    assert (study.seed, study.splits, study.answers) == (3, "dealt with seed 3", {"refusals": ["no"]})
    other = tiny.prompts(split="train")
    again = study_of(ns.load(tiny.llama(seed=1), processor=tiny.tokenizer()), other, seed=3, dealt=False, answers={})
    said = study.differs(again)
    assert [part.split()[0] for part in said.split("; ")] == ["fingerprint", "data", "splits", "answers"]
    assert f"data {prompts.hash()}, now {other.hash()}" in said
    assert study.differs(study) == ""


def test_every_column_of_a_prompt_is_in_the_study(llama: ns.Model):
    def study(**columns: object) -> str:
        return study_of(llama, tiny.prompts(**columns), seed=0, dealt=True, answers={}).data

    assert len({study(), study(category="x"), study(source="x"), study(expect=["x"]), study(target="x")}) == 5


def test_a_step_is_stale_where_one_before_it_has_another_result_and_so_are_those_after_it():
    made = whole()
    assert made.stale() == []
    for i, step in enumerate(STEP_NAMES):
        again = replace(made, steps={**made.steps, step: replace(made.steps[step], output="another result")})
        assert again.stale() == list(STEP_NAMES[i + 1 :])
        assert all(step in BEFORE[later] for later in again.stale())


def test_a_step_is_stale_where_one_before_it_is_gone_or_the_study_is_another():
    made = whole()
    gone = replace(made, steps={name: s for name, s in made.steps.items() if name != "prove"})
    assert gone.stale() == ["shield", "check"]
    assert replace(made, study="other").stale() == list(STEP_NAMES)  # type: ignore[arg-type]


def test_a_step_that_is_not_done_is_not_stale_and_gives_no_input():
    made = whole()
    begun = replace(made, steps={**made.steps, "prove": replace(made.steps["prove"], done=False, output="")})
    assert begun.stale() == ["shield", "check"]
    assert set(begun.inputs("check")) == {"study", "find", "shield"}


def test_a_manifest_is_read_back(llama: ns.Model, tmp_path: Path):
    made = whole(study_of(llama, tiny.prompts(), seed=0, dealt=True, answers={}))
    write_manifest(tmp_path, made)
    assert read_manifest(tmp_path) == made
    assert read_manifest(tmp_path / "nowhere") is None


def test_a_damaged_manifest_or_one_with_an_unknown_step_is_one_line(llama: ns.Model, tmp_path: Path):
    made = whole(study_of(llama, tiny.prompts(), seed=0, dealt=True, answers={}))
    write_manifest(tmp_path, replace(made, steps={"train": made.steps["find"]}))
    with pytest.raises(InputError, match=r"manifest\.json: unknown step 'train'"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, made)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("float32", "float16"))
    with pytest.raises(InputError, match=r"manifest\.json: is damaged"):
        read_manifest(tmp_path)
    save_json(path, FORMAT, {"manifest": {"study": {}}})
    with pytest.raises(InputError, match="missing"):
        read_manifest(tmp_path)


def test_a_digest_tells_values_apart_and_not_orders_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
    assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})
