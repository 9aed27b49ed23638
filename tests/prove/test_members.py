"""verify on models whose circuit was planted: it keeps what causes refusals and nothing that is merely correlated."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import planted
import pytest

import neuronshield as ns
from neuronshield.prove.members import Members

PROMPTS = planted.prompts()
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))]
CELL = ns.Cell("en", "text")


@pytest.mark.parametrize("balanced", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", list(planted.FAMILIES))
@pytest.mark.parametrize("seed", SEEDS)
def test_the_models_are_as_described(family: str, seed: int, balanced: bool):
    """By plain hooks, without the package."""
    found = planted.check(planted.build(family, seed, balanced=balanced))
    weakest = min(found["causal"].values())
    assert found["refuses"]
    assert weakest > 0.03
    assert max(found["decoys"].values()) < weakest / 3
    assert max(found["anti_refusal"].values()) < -0.015
    for backup, first, both in found["backed"].values():
        assert abs(backup) < 0.02  # inactive while the first one is active
        assert first < both - 0.04  # self-repair


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("seed", SEEDS)
def test_contrast_finds_decoys_and_verify_keeps_none(family: str, seed: int, balanced: bool):
    model = planted.build(family, seed, balanced=balanced)
    scores = ns.contrast(ns.capture(model.model, PROMPTS, progress=False))
    candidates = scores.top(k=len(model.separating) + 5)[CELL]
    assert model.separating <= set(candidates)  # decoys and anti-refusal neurons are found as readily as causes
    if seed % 2:  # with the backups among the candidates, and without them
        candidates = candidates | ns.NeuronSet(model.backups, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, candidates, PROMPTS, draws=25, **planted.ASK)
    kept, truth = set(proof.verified), (model.causal | model.backups) & set(candidates)
    assert len(kept & truth) >= 0.95 * len(truth), truth - kept
    assert len(kept & truth) >= 0.95 * len(kept), kept - truth
    assert not kept & model.decoys
    assert proof.retest.passed or (proof.passed and proof.verified == candidates)
    assert {m.neuron: m.sign.kind for m in proof.members if m.neuron in model.anti_refusal} == dict.fromkeys(
        model.anti_refusal, "anti-refusal"
    )
    assert set(proof.anti_refusal) == model.anti_refusal
    assert set(proof.backups) == model.backups - set(candidates)


@pytest.mark.slow
def test_decoys_by_themselves_are_not_verified():
    model = planted.build("llama", 0)
    decoys = ns.NeuronSet(model.decoys, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, decoys, PROMPTS, draws=25, **planted.ASK)
    assert proof.word == "no"
    assert not len(proof.verified)


def open_claims(proof: ns.Proof) -> set[str]:
    """Claims that the chosen members did not pass, on the requests that did not choose them."""
    return {c.name for c in proof.retest.claims if c.verdict not in ("passed", "not tested")}


@pytest.mark.slow
def test_a_set_that_is_fully_backed_up_lowers_the_margin_with_its_backups_and_changes_no_answer():
    model = planted.build("llama", 0, balanced=True)
    firsts = ns.NeuronSet(model.backs.values(), n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, firsts, PROMPTS, draws=25, **planted.ASK)
    assert not proof.passed  # ablating it alone changes nothing
    assert set(proof.backups) == model.backups
    assert {m.role for m in proof.members} == {"in a group"}
    assert (proof.retest.n_members, proof.retest.n_backups) == (2, 2)
    assert open_claims(proof) == {"refusals: necessity", "refusals: sufficiency"}  # 17 % of the margin turns no answer
    assert (len(proof.verified), proof.candidates) == (0, firsts)
    assert "together with 2 backups" in proof.reason


@pytest.mark.slow
def test_what_is_fully_backed_up_is_verified_as_part_of_the_group_that_changes_answers():
    """The same among all causes; the backups are outside the set."""
    model = planted.build("llama", 0, balanced=True)
    causes = ns.NeuronSet(model.causal, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, causes, PROMPTS, draws=25, **planted.ASK)
    assert proof.verified == causes
    assert set(proof.backups) == model.backups
    assert (proof.retest.n_members, proof.retest.n_backups) == (len(causes), 2)


# -- sets that are only part of the truth, or more than it ----------------------------------------------------
def every(layers: range) -> ns.NeuronSet:
    return ns.NeuronSet(
        [(la, i) for la in layers for i in range(planted.D_MLP)], n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "verified"), [(range(1, 2), False), (range(planted.N_LAYERS), True)], ids=["a layer", "the model"]
)
def test_a_whole_layer_leaves_nothing_to_draw_controls_from_and_its_causes_are_still_told(
    layers: range, verified: bool
):
    """The causes of one layer have a fifth of the margin, which turns no answer: they are candidates."""
    model = planted.build("llama", 1)
    proof = ns.verify(model.model, every(layers), PROMPTS, draws=25, **planted.ASK)
    assert not proof.passed  # a claim without a control does not pass
    assert "is left to draw from" in proof.controls.missing["random"]
    told = {a for a in model.causal | model.backups if a[0] in layers}
    assert (set(proof.verified), set(proof.candidates)) == ((told, set()) if verified else (set(), told))
    assert open_claims(proof) == (set() if verified else {"refusals: necessity", "refusals: sufficiency"})
    assert set(proof.anti_refusal) == {a for a in model.anti_refusal if a[0] in layers}


@pytest.mark.slow
@pytest.mark.parametrize("family", list(planted.FAMILIES))
def test_half_of_the_causes_among_decoys_is_told_from_them(family: str):
    """The controls may draw the other causes."""
    model = planted.build(family, 2, n_backups=0)
    half = set(sorted(model.causal)[::2])
    candidates = ns.NeuronSet(half | model.decoys | model.anti_refusal, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, candidates, PROMPTS, draws=25, **planted.ASK)
    assert set(proof.verified) == half
    assert "chosen on 10 requests and tested as a set on the other 20, passed every claim" in proof.reason


@pytest.mark.slow
def test_anti_refusal_by_themselves_are_reported_and_none_is_kept():
    model = planted.build("gpt2", 0)
    anti_refusal = ns.NeuronSet(model.anti_refusal, n_layers=planted.N_LAYERS, d_mlp=planted.D_MLP)
    proof = ns.verify(model.model, anti_refusal, PROMPTS, draws=25, **planted.ASK)
    assert proof.word == "no"
    assert proof.anti_refusal == anti_refusal
    assert not len(proof.verified)


def decide(alone: float, last: float, peers: float) -> str:
    """The word for a neuron with these effects (normalised, norms frozen), beside one that does 0.5 everywhere."""
    noise = np.random.default_rng(0).normal(0, 0.001, (3, 2, 30))
    path = np.array([[alone, 0.5], [last, 0.5], [peers, 0.5]])[:, :, None] + noise
    pairs = SimpleNamespace(requests=np.arange(30), differences=np.ones(30))
    members = SimpleNamespace(pairs=pairs, frozen=path, neurons=((0, 0), (0, 1)))
    return Members.roles(members)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("alone", "last", "peers", "word"),
    [
        (0.1, 0.1, 0.1, "alone"),
        (0.1, 0.0, 0.0, "alone"),
        (0.0, 0.3, 0.0, "in a group"),
        (0.0, 0.0, 0.3, "in a group"),
        (0.1, 0.3, 0.3, "in a group"),  # it does more than twice as much there
        (-0.1, 0.3, 0.0, "in a group"),  # its backup overdoes it
        (-0.3, 0.1, 0.0, "anti-refusal"),  # on balance
        (-0.3, -0.3, -0.3, "anti-refusal"),
        (0.02, 0.02, 0.02, ""),  # less than 5 % of what the strongest of its layer does
        (-0.02, 0.0, 0.0, ""),
        (0.0, 0.0, 0.0, ""),
    ],
)
def test_what_a_member_is_called(alone: float, last: float, peers: float, word: str):
    assert decide(alone, last, peers) == word
