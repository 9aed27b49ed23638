"""The safety tuning: what it is taught, what is held out of it, and that the adapter is one that PEFT reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graft_parts import tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from tiny import llama

import neuronshield as ns
from neuronshield.graft import harms
from neuronshield.graft.assembly import graft, processor_for, tower
from neuronshield.graft.build import tuning
from neuronshield.graft.build.scoring import named
from neuronshield.graft.build.sight import Part, Recipe


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> tuning.Requests:
    """The requests with placeholders for AdvBench's, which is fetched."""
    rows = [{"prompt": f"attack {n}", "label": "harmful"} for n in range(520)]
    monkeypatch.setattr(tuning, "dataset", lambda *_, **__: rows)
    return tuning.requests(seed=0)


def test_nothing_that_is_measured_is_trained_on(wanted: tuning.Requests):
    trained = {p.prompt for p in [*wanted.train, *wanted.near]}
    for source, rows in wanted.held.items():
        assert not trained & {p.prompt for p in rows}, source
    held = {c for p in harms.pairs() for c in (p.harmful, p.benign)}
    asked = {harms.request(c, frame=f) for c in held for f in range(3)} | {
        harms.named_as_text(c, frame=f) for c in held for f in range(3)
    }
    assert not trained & asked


def test_training_is_english_text_with_benign_requests_in_other_languages_and_no_picture(wanted: tuning.Requests):
    for rows in (wanted.train, wanted.near):
        assert {str(c) for c in rows.cells()} == {"en/text", "mul/text"}
        assert {p.label for p in rows if p.language == "mul"} == {"benign"}
        assert not any(p.images for p in rows)
        assert not any(p.target for p in rows)


def test_half_of_the_benign_rows_of_the_second_part_are_near_harm(wanted: tuning.Requests):
    near = {p.prompt for p in wanted.near if p.label == "benign" and p.language == "en"}
    assert {p.source for p in wanted.near if p.prompt in near} >= {"near"}
    asked = {
        harms.request(c, frame=f)
        for c in harms.training_combos()
        if harms.label(c) == "benign" and harms.TABLE[c.verb].harms
        for f in range(3)
    }
    assert len(near & asked) > 50


def test_a_name_before_this_is_trained_with_requests_of_both_labels(wanted: tuning.Requests):
    """With benign ones alone the model learns that "this" is never refused; with none, that it always is."""
    held = {p.prompt for p in wanted.held["named as text"]}
    for rows in (wanted.train, wanted.near):
        named = [p for p in rows if p.prompt.endswith(" this?")]
        assert {p.label for p in named} == {"harmful", "benign"}
        assert not {p.prompt for p in named} & held
    harmful = [p.prompt for p in wanted.train if p.source == "named-harmful"]
    assert len(harmful) == sum(harms.label(c) == "harmful" for c in harms.training_combos())
    assert all("\n" in text for text in harmful)


def test_the_text_control_asks_what_the_picture_asks():
    rows = harms.held_out(splits=["test"], modalities=["image"])
    control = tuning.named_as_text(rows)
    assert [p.prompt for p in control] == [f"{r['object']}\n{r['prompt']}" for r in rows]
    assert {p.modality for p in control} == {"text"}


def test_the_adapter_teaches_the_refusal_keeps_benign_answers_and_peft_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module = graft(llama(), eyes=tower())
    model = ns.load(module, processor=processor_for(tokenizer()))
    rows = [ns.Prompt("h", "how do i burn", "harmful"), ns.Prompt("b", "this house", "benign")]
    monkeypatch.setattr(tuning, "refusal_sentence", lambda _: "sorry")
    own = ns.generate(model, rows[1], max_new_tokens=8)
    recipe = Recipe(parts=(Part(30, 2e-2, 8.0), Part(5, 1e-2, 8.0, near=True)), rank=2, tuned=2)
    losses = tuning.tune(
        model,
        tuning.Requests(ns.PromptSet(rows), ns.PromptSet(rows), held={}),
        recipe,
        folder=tmp_path,
        seed=0,
        progress=False,
    )
    assert losses[-1] < losses[0] / 2
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert {t.dtype for t in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float16}
    tuned = ns.load(
        PeftModel.from_pretrained(graft(llama(), eyes=tower()), tmp_path).merge_and_unload(), processor=model.processor
    )
    said = ns.generate(tuned, rows, max_new_tokens=8)
    assert said[0].startswith("sorry")
    assert said[1].split()[0] == own.split()[0]


def test_an_object_is_named_whatever_the_case():
    assert named("A Police Officer.", "police officer")
    assert not named("A dog.", "cat")


def test_a_benign_answer_that_refuses_is_not_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: dict[str, Any] = {}

    def fit(_model: Any, _trained: Any, *, data: Any, **_: Any) -> Any:
        seen["data"] = data
        raise InterruptedError

    rows = ns.PromptSet(
        [ns.Prompt("h", "burn", "harmful"), ns.Prompt("b", "house", "benign"), ns.Prompt("c", "this", "benign")]
    )
    monkeypatch.setattr(tuning, "generate", lambda *_, **__: ["I'm sorry for your loss", "how"])
    monkeypatch.setattr(tuning, "fit", fit)
    model = ns.load(graft(llama(), eyes=tower()), processor=processor_for(tokenizer()))
    with pytest.raises(InterruptedError):
        tuning.tune(
            model, tuning.Requests(rows, rows, held={}), Recipe(rank=1), folder=tmp_path, seed=0, progress=False
        )
    assert [(e.prompt.id, e.response) for e in seen["data"]] == [("h", "Sorry, I can't help with that."), ("c", "how")]
