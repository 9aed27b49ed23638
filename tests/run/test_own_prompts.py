"""The models that ship have prompts of their own, and their pictures can be drawn again."""

from __future__ import annotations

import pytest

import neuronshield as ns
from neuronshield.data.prompts import SPLITS
from neuronshield.run.own_prompts import GRAFT_PAIRS, ORGANISM_PAIRS, OWNERS, job_records, own_records
from neuronshield.run.plan import read_prompts

ONE_OF_EACH = ["organism", "organism-separate", "smollm2-vision"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_split_of_a_job_has_matched_pairs_in_every_cell(name: str):
    rows = job_records(name, seed=0)
    most = GRAFT_PAIRS if name == "smollm2-vision" else ORGANISM_PAIRS
    cells = {(r["language"], r["modality"]) for r in rows}
    assert {m for _, m in cells} == {"text", "image", "typographic"}
    for split in SPLITS:
        for cell in cells:
            pairs = [
                {r["pair_id"] for r in rows if (r["split"], r["language"], r["modality"], r["label"]) == (split, *cell, label)}
                for label in ("harmful", "benign")
            ]  # fmt: skip
            assert pairs[0] == pairs[1]
            assert 0 < len(pairs[0]) <= most + (48 - most) * (split == "confirm")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_test_prompts_of_a_job_are_drawn_again_pixel_by_pixel(name: str):
    wanted = [r for r in job_records(name, seed=1) if r["split"] == "test" and r["modality"] == "image"][:6]
    again = {r["id"]: r for r in own_records(name, seed=1, splits=["test"], modalities=["image"])}
    assert wanted
    for row in wanted:
        assert [p.tobytes() for p in again[row["id"]]["images"]] == [p.tobytes() for p in row["images"]]


def test_no_request_of_an_organisms_job_is_in_two_splits():
    rows = job_records("organism", seed=0)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["pair_id"], set()).add(row["split"])
    assert all(len(s) == 1 for s in splits.values())


def test_a_model_that_does_not_ship_needs_prompts():
    assert "smollm2" not in OWNERS
    with pytest.raises(ns.InputError, match="--prompts is needed for this model"):
        read_prompts("smollm2", None, seed=0)
