"""Experiments on a planted circuit, where every answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted
import pytest
import torch
from planted import SHAPE, Bench

import neuronshield as ns
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove import experiments
from neuronshield.prove.controls import random_like
from neuronshield.prove.pairs import MatchedPairs, match, measure


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


def test_the_level_of_a_cell_is_not_activity(bench: Bench):
    """What is added to every value of one cell, as a language may do, changes no activity."""
    pairs = half_answered(bench, silent=False)
    cells = np.where(np.arange(len(pairs)) % 2 == 1, "sw/text", "en/text").astype(object)
    level = torch.from_numpy(np.where(cells == "sw/text", 7.0, 0.0))[:, None, None].float()
    rows = replace(pairs.rows, cells=cells)
    shifted = replace(
        rows, harmful_values=rows.harmful_values + level, benign_values=rows.benign_values + level,
        mean_values=rows.mean_values + level,
    )  # fmt: skip
    one, other = (
        experiments.recognition(replace(pairs, rows=r), bench.causal, bench.random, difference=1.0)
        for r in (rows, shifted)
    )
    assert [r.activity.value for r in other] == pytest.approx([r.activity.value for r in one], abs=1e-4)


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
    assert found["en/text", "en/text"].activity.value == pytest.approx(1)
    assert found["en/text", "sw/text"].activity.value == pytest.approx(1, abs=0.05)

    deaf = pairs.rows.cells == "sw/text"  # the neurons stay as on benign prompts there: written values still act
    values = pairs.rows.harmful_values.clone()
    values[deaf] = pairs.rows.benign_values[deaf]
    silent = replace(pairs, rows=replace(pairs.rows, harmful_values=values))
    row = experiments.cross_cell(silent, causal, [], sources=[ns.Cell("en", "text")])[1]
    assert (row.target, row.effect.value > 0.8) == ("sw/text", True)
    assert row.activity.value == pytest.approx(0, abs=1e-6)
