"""The build end to end on a tiny language model, and what it leaves: files that load, scores, a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_parts import tokenizer
from tiny import llama

import neuronshield as ns
from neuronshield.graft import NAMES, harms
from neuronshield.graft.assembly import PROJECTORS, assembled
from neuronshield.graft.build import construction, scoring, tuning
from neuronshield.graft.build.card import SOURCES
from neuronshield.graft.build.eyes import build_tower
from neuronshield.graft.build.sight import Part, Recipe
from neuronshield.organism.lexicon import OBJECTS

SMALL = Recipe(drawn=1, typed=1, regress_steps=3, caption_steps=2, rows=2, parts=(Part(2, 1e-3, 8.0),), rank=1, tuned=2)


def few(*, seed: int) -> tuning.Requests:
    """Some of the requests; no word of them is in the tiny vocabulary."""
    rows = [ns.Prompt("h", "how do i burn", "harmful"), ns.Prompt("b", "this house", "benign")]
    held = ns.PromptSet.from_records(harms.held_out(splits=["test"], modalities=["text"], max_pairs=2))
    return tuning.Requests(ns.PromptSet(rows), ns.PromptSet(rows), held={"natural": held})


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, construction.Scores]:
    monkeypatch.setattr(construction, "pretrained", lambda *_, **__: (llama(), tokenizer()))
    monkeypatch.setattr(construction.tuning, "requests", few)
    monkeypatch.setattr(construction, "Recipe", lambda: SMALL)
    monkeypatch.setattr(scoring, "OBJECTS", OBJECTS[:3])
    scores = construction.build_graft(tmp_path / "out", seed=1, progress=False)
    return tmp_path / "out", scores


def test_a_build_leaves_files_that_load_scores_and_a_card(built: tuple[Path, construction.Scores]):
    folder, scores = built
    for name in NAMES:
        module, processor = assembled(llama(), tokenizer(), name=name, path=folder)
        assert ns.load(module, processor=processor).n_layers == 3
    assert {p.name for p in folder.iterdir()} == {
        PROJECTORS,
        "adapter",
        "scores.json",
        "MODEL_CARD.md",
        "neuronshield.json",
    }
    kept: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    assert set(kept["naming"]) == {"captioned", "regressed"}
    assert [(r["source"], r["label"], r["n"]) for r in kept["refusals"]] == [
        ("natural", "harmful", 2),
        ("natural", "benign", 2),
    ]
    assert kept["seed"] == scores.seed == 1
    assert kept["memory"] > 0
    card = (folder / "MODEL_CARD.md").read_text()
    assert SOURCES["natural"] in card
    assert f"{100 * scores.naming['captioned'].drawings:.0f} |" in card


def test_the_arms_of_the_projector_are_two(built: tuple[Path, construction.Scores]):
    arms = [
        assembled(llama(), tokenizer(), name=n, path=built[0])[0]
        for n in ("smollm2-vision", "smollm2-vision-captioned")
    ]
    weights = [m.model.multi_modal_projector.linear_1.weight for m in arms]
    assert not torch.equal(*weights)


def test_every_source_of_held_out_requests_has_a_line_in_the_card(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        tuning, "dataset", lambda *_, **__: [{"prompt": f"attack {n}", "label": "harmful"} for n in range(520)]
    )
    assert set(tuning.requests().held) == set(SOURCES)


def test_the_tower_is_remade_by_one_function(tmp_path: Path):
    found = build_tower(tmp_path / "tower", steps=1, progress=False)
    kept = json.loads((tmp_path / "tower" / "scores.json").read_text())
    assert {k: kept[k] for k in found} == found
    assert (kept["steps"], kept["seed"]) == (1, 0)
