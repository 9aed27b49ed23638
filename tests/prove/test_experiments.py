"""Experiments on a planted circuit, where every answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import planted
import pytest

import neuronshield as ns
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove import experiments
from neuronshield.prove.backups import search_backups
from neuronshield.prove.controls import random_like
from neuronshield.prove.pairs import MatchedPairs, match, measure

SHAPE: dict[str, Any] = {"n_layers": planted.N_LAYERS, "d_mlp": planted.D_MLP}


class Bench:
    """A circuit without backups, and its matched confirm prompts."""

    def __init__(self, n_backups: int = 0) -> None:
        self.planted = planted.build("llama", 1, balanced=True, n_backups=n_backups)
        self.model = self.planted.model
        confirm = planted.prompts().for_step("confirm")
        tokens = opening_tokens(self.model, openings_of(self.model, confirm, refusals=["sorry"], compliances=["sure"]))
        self.pairs = measure(self.model, match(confirm, seed=0)[0], tokens)
        self.causal = ns.NeuronSet(self.planted.causal, **SHAPE)
        rng = np.random.default_rng(0)
        self.random = [random_like(self.causal, self.model, seed=rng) for _ in range(5)]
        read = self.pairs.on_harmful([self.pairs.ablate(ns.NeuronSet([p])) for p in self.causal])
        effects = self.pairs.normalised_effects(self.pairs.harmful_margins - read)
        self.alone = dict(zip(self.causal, effects, strict=True))
        self.ranked = sorted(self.alone, key=lambda p: -self.alone[p])


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def test_refusal_follows_the_dose(bench: Bench):
    rows = experiments.dose_response(bench.pairs, bench.causal, bench.random)
    harmful = [r.harmful.value for r in rows]
    assert [r.alpha for r in rows] == list(experiments.ALPHAS)
    assert harmful == sorted(harmful)
    assert harmful[experiments.ALPHAS.index(1.0)] == pytest.approx(0, abs=1e-5)  # the model as it is
    assert harmful[experiments.ALPHAS.index(0.0)] < -0.9
    assert max(abs(r.benign.value) for r in rows) < 0.05  # they are silent there
    assert max(abs(v) for r in rows for v in r.random) < 0.3


def test_zero_dose_is_zero_ablation(bench: Bench):
    row = experiments.dose_response(bench.pairs, bench.causal, [])[experiments.ALPHAS.index(0.0)]
    zero = bench.pairs.on_harmful([bench.pairs.ablate(bench.causal, "zero")])[0]
    assert row.harmful.value == pytest.approx(
        (zero - bench.pairs.harmful_margins).mean() / bench.pairs.differences.mean()
    )
    assert row.random is None


def test_effects_add_up_with_size_and_most_members_are_needed(bench: Bench):
    rows = experiments.size(bench.pairs, bench.ranked, draws=3)
    assert [r.size for r in rows][:3] == [1, 2, 4]
    assert rows[-1].size == len(bench.ranked)
    effects = [r.effect.value for r in rows]
    assert effects == sorted(effects)
    assert rows[0].effect.value == pytest.approx(bench.alone[bench.ranked[0]])
    need = experiments.minimal(rows).size
    by_hand = np.cumsum([bench.alone[p] for p in bench.ranked])
    assert by_hand[need - 1] >= 0.85 * by_hand[-1]


def test_leaving_a_layer_out_loses_what_that_layer_does(bench: Bench):
    for row in experiments.groups(bench.pairs, bench.causal, bench.ranked):
        layer = int(row.group.split()[1])
        assert row.lost.value == pytest.approx(sum(v for (at, _), v in bench.alone.items() if at == layer), abs=0.03)


def test_one_layer_is_left_out_by_quarters(bench: Bench):
    ranked = [(3, i) for i in range(7)]
    rows = experiments.groups(bench.pairs, ns.NeuronSet(ranked, **SHAPE), ranked)
    assert [r.group for r in rows] == ["quarter 1", "quarter 2", "quarter 3", "quarter 4"]
    assert sum(r.n for r in rows) == 7


def test_the_causes_alone_are_enough_and_random_neurons_are_not(bench: Bench):
    row = experiments.completeness(bench.pairs, bench.causal, bench.random)[0]
    assert row.frame == "all layers"
    assert row.share.value > 0.9
    assert row.random[2] < 0.5
    assert row.without_set.value > 0.8


def test_backups_are_found_only_where_there_are_some(bench: Bench):
    assert not len(search_backups(bench.pairs, bench.causal).found(bench.pairs, least=0.01, alpha=0.05))
    other = Bench(n_backups=2)
    firsts = ns.NeuronSet(other.planted.backs.values(), **SHAPE)
    again = search_backups(other.pairs, firsts)
    assert set(again.found(other.pairs, least=0.01, alpha=0.05)) == other.planted.backups
    the_set, with_more = again.rounds
    assert the_set.effect.value < 0.05 < with_more.effect.value


def half_answered(bench: Bench, *, silent: bool) -> MatchedPairs:
    """Every second harmful prompt is said to be answered; with `silent` the neurons are as on its benign prompt there."""
    rows = bench.pairs.rows
    answered = np.arange(len(bench.pairs)) % 2 == 1
    values = rows.harmful_values.clone()
    if silent:
        values[answered] = rows.benign_values[answered]
    margins = np.where(answered, -1.0, 1.0)
    return replace(bench.pairs, rows=replace(rows, harmful_margins=margins, harmful_values=values))


def activity(bench: Bench, *, silent: bool) -> dict[str, float]:
    pairs = half_answered(bench, silent=silent)
    rows = experiments.recognition(pairs, bench.causal, bench.random, difference=1.0)
    return {f"{r.label}, {r.outcome}": r.activity.value for r in rows}


def test_neurons_that_are_active_on_harm_recognise_it_even_where_it_is_answered(bench: Bench):
    """The planted neurons read harm, so they are as active on the answered half."""
    found = activity(bench, silent=False)
    assert found["harmful, refused"] == pytest.approx(1)
    assert found["harmful, answered"] == pytest.approx(1, abs=0.15)
    assert found["benign, answered"] == pytest.approx(0, abs=1e-9)


def test_neurons_that_are_active_on_refusal_only_execute_it(bench: Bench):
    assert activity(bench, silent=True)["harmful, answered"] == pytest.approx(0, abs=0.15)


def test_harmful_values_carry_over_to_another_cell():
    rows = [
        {"prompt": p.prompt, "label": p.label, "pair_id": p.pair_id, "language": language}
        for language in ("en", "sw") for p in planted.prompts().for_step("confirm")
    ]  # fmt: skip
    model = planted.build("llama", 1, balanced=True, n_backups=0)
    prompts = ns.PromptSet.from_records(rows)
    tokens = opening_tokens(model.model, openings_of(model.model, prompts, refusals=["sorry"], compliances=["sure"]))
    pairs = measure(model.model, match(prompts, seed=0)[0], tokens)
    causal = ns.NeuronSet(model.causal, **SHAPE)
    random = [random_like(causal, model.model, seed=i) for i in range(2)]
    found = {
        (r.source, r.target): r for r in experiments.cross_cell(pairs, causal, random, sources=[ns.Cell("en", "text")])
    }
    assert set(found) == {("en/text", "en/text"), ("en/text", "sw/text")}
    own = (pairs.on_benign([pairs.insert(causal)])[0] - pairs.benign_margins)[pairs.rows.cells == "en/text"]
    assert found["en/text", "en/text"].effect.value == pytest.approx(
        own.mean() / pairs.differences[pairs.rows.cells == "en/text"].mean()
    )
    assert found["en/text", "sw/text"].effect.value > 0.8
    assert max(abs(v) for v in found["en/text", "sw/text"].random) < 0.2
