"""verify on models whose circuit was planted: it keeps what causes refusals and nothing that merely goes along."""

from __future__ import annotations

import planted
import pytest

import neuronshield as ns

PROMPTS = planted.prompts()
CELL = ns.Cell("en", "text")


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("family", list(planted.FAMILIES))
@pytest.mark.parametrize("seed", range(5))
def test_the_models_are_what_they_are_said_to_be(family: str, seed: int, balanced: bool):
    """By plain hooks, without the package: a test of `verify` must rest on facts."""
    found = planted.check(planted.build(family, seed, balanced=balanced))
    weakest = min(found["causal"].values())
    assert found["refuses"]
    assert weakest > 0.03
    assert max(found["decoys"].values()) < weakest / 3
    assert max(found["opposers"].values()) < -0.015
    for backup, first, both in found["backed"].values():
        assert abs(backup) < 0.02  # silent while the first one works
        assert first < both - 0.04  # and stands in for it


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("family", list(planted.FAMILIES))
@pytest.mark.parametrize("seed", range(5))
def test_contrast_finds_decoys_and_verify_keeps_none(family: str, seed: int, balanced: bool):
    model = planted.build(family, seed, balanced=balanced)
    scores = ns.contrast(ns.capture(model.model, PROMPTS, progress=False))
    candidates = scores.top(k=len(model.loud) + 5)[CELL]
    assert model.loud <= set(candidates)  # decoys and opposers are found as readily as causes
    if seed % 2:  # with the backups among the candidates, and without them
        candidates = candidates | ns.NeuronSet(model.backups, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, candidates, PROMPTS, draws=25, **planted.ASK)
    kept, truth = set(proof.verified), (model.causal | model.backups) & set(candidates)
    assert len(kept & truth) >= 0.95 * len(truth), truth - kept
    assert len(kept & truth) >= 0.95 * len(kept), kept - truth
    assert not kept & model.decoys
    assert set(proof.opposing) == model.opposers
    assert set(proof.backups) == model.backups - set(candidates)


def test_decoys_by_themselves_are_no_cause():
    model = planted.build("llama", 0)
    decoys = ns.NeuronSet(model.decoys, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, decoys, PROMPTS, draws=25, **planted.ASK)
    assert proof.word == "no"
    assert not len(proof.verified)


def test_a_set_that_is_fully_backed_up_is_kept_as_part_of_the_group_that_has_the_effect():
    model = planted.build("llama", 0, balanced=True)
    firsts = ns.NeuronSet(model.backs.values(), n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, firsts, PROMPTS, draws=25, **planted.ASK)
    assert not proof.passed  # ablating it alone changes nothing
    assert set(proof.backups) == model.backups
    assert {m["how"] for m in proof.members} == {"in a group"}
    assert proof.verified == firsts
    assert "together with 2 backups" in proof.reason
