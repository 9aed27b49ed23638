"""Experiments on a planted circuit, where every answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import planted
import pytest

import neuronshield as ns
from neuronshield.data.grading import openings_for
from neuronshield.model.prefixes import opening_tokens
from neuronshield.prove import experiments
from neuronshield.prove.controls import random_like
from neuronshield.prove.pairs import Lab, twins

SHAPE: dict[str, Any] = {"n_layers": planted.N_LAYERS, "d_mlp": planted.D_MLP}


class Bench:
    """A circuit without backups, and the lab on its confirm prompts."""

    def __init__(self, n_backups: int = 0) -> None:
        self.planted = planted.build("llama", 1, balanced=True, n_backups=n_backups)
        self.model = self.planted.model
        confirm = planted.prompts().for_step("confirm")
        tokens = opening_tokens(self.model, openings_for(confirm, refusals=["sorry"], compliances=["sure"]))
        self.lab = Lab(self.model, twins(confirm, 0)[0], tokens)
        self.causal = ns.NeuronSet(self.planted.causal, **SHAPE)
        rng = np.random.default_rng(0)
        self.random = [random_like(self.causal, self.model, rng) for _ in range(5)]
        read = self.lab.on_harmful([self.lab.ablate(ns.NeuronSet([p])) for p in self.causal])
        effects = self.lab.effects(self.lab.clean_h - read)
        self.alone = dict(zip(self.causal, effects, strict=True))
        self.ranked = sorted(self.alone, key=lambda p: -self.alone[p])


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def test_refusal_follows_the_dose(bench: Bench):
    rows = experiments.dose(bench.lab, bench.causal, bench.random)
    harmful = [r["harmful"][0] for r in rows]
    assert [r["alpha"] for r in rows] == list(experiments.ALPHAS)
    assert harmful == sorted(harmful)
    assert harmful[experiments.ALPHAS.index(1.0)] == pytest.approx(0, abs=1e-5)  # the model as it is
    assert harmful[experiments.ALPHAS.index(0.0)] < -0.9
    assert max(abs(r["benign"][0]) for r in rows) < 0.05  # they are silent there
    assert max(abs(v) for r in rows for v in r["random"]) < 0.3


def test_zero_dose_is_zero_ablation(bench: Bench):
    row = experiments.dose(bench.lab, bench.causal, [])[experiments.ALPHAS.index(0.0)]
    zero = bench.lab.on_harmful([bench.lab.ablate(bench.causal, "zero")])[0]
    assert row["harmful"][0] == pytest.approx((zero - bench.lab.clean_h).mean() / bench.lab.gaps.mean())
    assert row["random"] is None


def test_effects_add_up_with_size_and_most_members_are_needed(bench: Bench):
    rows = experiments.size(bench.lab, bench.ranked, draws=3)
    assert [r["size"] for r in rows][:3] == [1, 2, 4]
    assert rows[-1]["size"] == len(bench.ranked)
    effects = [r["effect"][0] for r in rows]
    assert effects == sorted(effects)
    assert rows[0]["effect"][0] == pytest.approx(bench.alone[bench.ranked[0]])
    need = experiments.enough(rows)
    by_hand = np.cumsum([bench.alone[p] for p in bench.ranked])
    assert by_hand[need - 1] >= 0.85 * by_hand[-1]


def test_leaving_a_layer_out_loses_what_that_layer_does(bench: Bench):
    for row in experiments.groups(bench.lab, bench.causal, bench.ranked):
        layer = int(row["group"].split()[1])
        assert row["lost"][0] == pytest.approx(sum(v for (at, _), v in bench.alone.items() if at == layer), abs=0.03)


def test_one_layer_is_left_out_by_quarters(bench: Bench):
    ranked = [(3, i) for i in range(7)]
    rows = experiments.groups(bench.lab, ns.NeuronSet(ranked, **SHAPE), ranked)
    assert [r["group"] for r in rows] == ["quarter 1", "quarter 2", "quarter 3", "quarter 4"]
    assert sum(r["n"] for r in rows) == 7


def test_the_causes_alone_are_enough_and_random_neurons_are_not(bench: Bench):
    row = experiments.completeness(bench.lab, bench.causal, bench.random)[0]
    assert row["frame"] == "all layers"
    assert row["share"][0] > 0.9
    assert row["random"][2] < 0.5
    assert row["without any"][0] > 0.8


def test_backups_are_found_only_where_there_are_some(bench: Bench):
    assert not len(experiments.backups(bench.lab, bench.causal).found(bench.lab, 0.01, 0.05))
    other = Bench(n_backups=2)
    firsts = ns.NeuronSet(other.planted.backs.values(), **SHAPE)
    again = experiments.backups(other.lab, firsts)
    assert set(again.found(other.lab, 0.01, 0.05)) == other.planted.backups
    the_set, with_more = again.rows
    assert the_set["effect"][0] < 0.05 < with_more["effect"][0]


def test_neurons_that_fire_on_harm_recognise_it_even_where_it_is_answered(bench: Bench):
    """Half of the requests answered: the planted neurons read harm, so they are as active there."""
    lab = bench.lab.rows(np.arange(len(bench.lab.harmful)))
    lab.clean_h = np.where(np.arange(len(lab.clean_h)) % 2, -1.0, 1.0)
    rows = {r["prompts"]: r for r in experiments.recognition(lab, bench.causal, bench.random, 1.0)}
    assert rows["harmful, refused"]["activity"][0] == pytest.approx(1)
    assert rows["harmful, answered"]["activity"][0] == pytest.approx(1, abs=0.15)
    assert rows["benign, answered"]["activity"][0] == pytest.approx(0, abs=1e-9)


def test_neurons_that_fire_on_refusal_only_execute_it(bench: Bench):
    lab = bench.lab.rows(np.arange(len(bench.lab.harmful)))
    answered = np.arange(len(lab.clean_h)) % 2 == 1
    lab.clean_h = np.where(answered, -1.0, 1.0)
    lab.act_h = lab.act_h.clone()
    lab.act_h[answered] = lab.act_b[answered]  # as on the benign twin
    rows = {r["prompts"]: r for r in experiments.recognition(lab, bench.causal, bench.random, 1.0)}
    assert rows["harmful, answered"]["activity"][0] == pytest.approx(0, abs=0.15)


def test_harmful_values_carry_over_to_another_cell():
    rows = [
        {"prompt": p.prompt, "label": p.label, "pair_id": p.pair_id, "language": language}
        for language in ("en", "sw") for p in planted.prompts().for_step("confirm")
    ]  # fmt: skip
    model = planted.build("llama", 1, balanced=True, n_backups=0)
    prompts = ns.PromptSet.from_records(rows)
    tokens = opening_tokens(model.model, openings_for(prompts, refusals=["sorry"], compliances=["sure"]))
    lab = Lab(model.model, twins(prompts, 0)[0], tokens)
    causal = ns.NeuronSet(model.causal, **SHAPE)
    random = [random_like(causal, model.model, np.random.default_rng(i)) for i in range(2)]
    found = {(r["source"], r["target"]): r for r in experiments.crossing(lab, causal, random, [ns.Cell("en", "text")])}
    assert set(found) == {("en/text", "en/text"), ("en/text", "sw/text")}
    own = (lab.on_benign([lab.insert(causal)])[0] - lab.clean_b)[lab.cells == "en/text"]
    assert found["en/text", "en/text"]["effect"][0] == pytest.approx(
        own.mean() / lab.gaps[lab.cells == "en/text"].mean()
    )
    assert found["en/text", "sw/text"]["effect"][0] > 0.8
    assert max(abs(v) for v in found["en/text", "sw/text"]["random"]) < 0.2
