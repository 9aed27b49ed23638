"""Control sets: as many neurons as the set, selected as their names say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from one_neuron import DECOY, LOUD, TRUTH, claim, set_of

import neuronshield as ns
from neuronshield.find.reselection import selection_of
from neuronshield.prove.controls import Controls, Source, complete, control_sets, drawn_like, matched_like, random_like

pytest_plugins = ["one_neuron"]


def test_random_controls_have_as_many_neurons_per_layer_and_none_of_the_set(planted_model: ns.Model):
    neurons = set_of((0, 1), (0, 2), (2, 5), (2, 6), (2, 7))
    drawn = [random_like(neurons, planted_model, seed=i) for i in range(200)]
    assert all(control.per_layer() == neurons.per_layer() and not control & neurons for control in drawn)
    every = set().union(*(set(control) for control in drawn))
    assert every == {(layer, i) for layer in (0, 2) for i in range(29)} - set(neurons)


def test_matched_controls_are_as_loud_and_write_as_much():
    features = np.exp(np.random.default_rng(0).normal(0, 3, (2, 3, 290)))
    rank = features.argsort(axis=2).argsort(axis=2)
    neurons = ns.NeuronSet([(0, int(i)) for i in (7, 8, 200)] + [(2, 100)])
    for control in matched_like(neurons, features, draws=20, seed=1):
        assert control.per_layer() == neurons.per_layer()
        assert not control & neurons
        for layer, index in neurons:
            apart = [np.abs(rank[:, layer, index] - rank[:, a, b]).sum() for a, b in control if a == layer]
            everyone = np.sort(np.abs(rank[:, layer] - rank[:, layer, index, None]).sum(axis=0))
            assert min(apart) <= everyone[25]


@pytest.mark.slow
def test_two_hundred_draws_of_each_kind_by_default_and_they_differ(truth: ns.Proof):
    found = claim(truth, "necessity: mean")
    assert {k: len(v) for k, v in found.controls.items()} == {
        "random": 200, "matched": 200, "permuted (contribution)": 200, "next rank (contribution)": 1, "general": 1, "language": 1,
    }  # fmt: skip
    assert truth.controls.sets == {k: len(v) for k, v in found.controls.items()}
    assert len(set(found.controls["random"])) > 10


EVERYTHING = np.ones((2, 3, 29))


def test_drawn_and_single_controls_have_as_many_neurons_per_layer_and_none_of_the_set(planted_model: ns.Model):
    neurons = set_of(TRUTH, (0, 4), (0, 9))
    features = np.random.default_rng(0).random((2, 3, 29))
    controls = control_sets(neurons, Source(planted_model, neurons, tiny.prompts()), features=features, draws=7)
    for control in (
        *controls.drawn["random"],
        *controls.drawn["matched"],
        controls.fixed["general"],
        controls.fixed["language"],
    ):
        assert control.per_layer() == neurons.per_layer()
        assert not control & neurons
    assert LOUD in controls.fixed["general"]


def test_the_selecting_controls_run_the_selection_of_the_set_again(planted_model: ns.Model):
    rows = tiny.prompts()
    sets = ns.contrast(ns.capture(planted_model, rows, progress=False), method="effect_size").top(k=5)
    neurons = sets["en/text"] & sets["sw/text"]
    assert {TRUTH, DECOY} <= set(neurons)
    controls = control_sets(neurons, Source(planted_model, neurons, rows, seed=2), features=EVERYTHING, draws=6)
    selection, n = selection_of(planted_model, neurons, rows), len(neurons)
    rng = np.random.default_rng(2)  # draws the random and matched sets first
    for _ in range(6):
        drawn_like(neurons, planted_model, seed=rng)
    matched_like(neurons, EVERYTHING, draws=6, seed=rng)
    assert controls.drawn["permuted"] == [selection.shuffled(rng, n=n) for _ in range(6)]
    assert {len(control) for control in controls.shuffled} == {n}
    assert controls.fixed["next rank"] == selection.again(n=n, leave_out=neurons)
    assert not controls.fixed["next rank"] & neurons
    assert controls.shuffled == controls.drawn["permuted"]
    assert controls.recovered == np.mean([len(s & neurons) / n for s in controls.shuffled])
    assert not controls.missing


def test_shuffled_labels_may_select_members_of_the_set(planted_model: ns.Model):
    """The truth is the loudest of all, so a score of magnitude finds it on any labels: nothing then speaks for the selection."""
    rows = tiny.prompts()
    neurons = ns.contrast(ns.capture(planted_model, rows, progress=False)).top(k=2)["en/text"]
    controls = control_sets(neurons, Source(planted_model, neurons, rows), features=EVERYTHING, draws=20)
    assert controls.recovered > 0.5
    found = ns.contrast(ns.capture(planted_model, rows, progress=False), method="effect_size").top(k=2)["en/text"]
    assert control_sets(found, Source(planted_model, found, rows), features=EVERYTHING, draws=20).recovered < 0.4


def test_a_part_of_a_set_is_controlled_by_the_best_of_the_same_selection(planted_model: ns.Model):
    rows = tiny.prompts()
    neurons = ns.contrast(ns.capture(planted_model, rows, progress=False), method="effect_size").top(k=6)["en/text"]
    part = ns.NeuronSet(list(neurons)[:2], n_layers=3, d_mlp=29, provenance=neurons.provenance)
    controls = control_sets(part, Source(planted_model, part, rows), features=EVERYTHING, draws=5)
    assert {len(s) for s in controls.shuffled} == {len(controls.fixed["next rank"])} == {2}
    assert not controls.fixed["next rank"] & part
    assert controls.fixed["next rank"] & neurons  # the rule's best that are not in the part


@pytest.mark.parametrize("known", [True, False])
def test_a_set_and_a_part_of_it_are_controlled_from_one_reading_of_the_prompts(planted_model: ns.Model, known: bool):
    rows = tiny.prompts()
    found = ns.contrast(ns.capture(planted_model, rows, progress=False), method="effect_size").top(k=6)["en/text"]
    about = found.provenance if known else {"cell": "en/text"}
    whole, part = (ns.NeuronSet(list(found)[:n], n_layers=3, d_mlp=29, provenance=about) for n in (6, 2))
    source = Source(planted_model, whole, rows)
    first = control_sets(whole, source, features=EVERYTHING, draws=3)
    watch = planted_model.module.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    try:
        second = control_sets(part, source, features=EVERYTHING, draws=3)
    finally:
        watch.remove()
    for neurons, controls in ((whole, first), (part, second)):
        assert controls == control_sets(neurons, Source(planted_model, neurons, rows), features=EVERYTHING, draws=3)


@pytest.mark.parametrize(
    "known", [{}, {"cell": "en/text", "method": "effect_size"}, {"cell": ["en/text", "sw/text"]}, {"cell": "?"}]
)
def test_without_a_known_selection_the_largest_contributions_stand_in_and_it_is_said(
    planted_model: ns.Model, known: dict[str, Any]
):
    neurons = set_of(TRUTH, (0, 4), (0, 9), **known)
    controls = control_sets(neurons, Source(planted_model, neurons, tiny.prompts()), features=EVERYTHING, draws=4)
    assert set(controls.drawn) == {"random", "matched", "permuted (contribution)"}
    assert set(controls.fixed) == {"next rank (contribution)", "general", "language"}
    assert all("selected is not known" in controls.missing[kind] for kind in ("permuted", "next rank"))
    assert controls.recovered is None
    assert controls.shuffled == controls.drawn["permuted (contribution)"]
    assert all(
        len(s) == 3 and not s & neurons for s in (*controls.shuffled, controls.fixed["next rank (contribution)"])
    )
    assert DECOY in controls.fixed["next rank (contribution)"]


def test_a_selection_that_is_not_run_again_says_why(planted_model: ns.Model):
    rows = tiny.prompts()
    snip = ns.baselines.snip(planted_model, rows, refusals=["sorry"], compliances=["sure"], progress=False).top(k=3)
    controls = control_sets(snip["en/text"], Source(planted_model, snip["en/text"], rows), features=EVERYTHING, draws=2)
    assert controls.missing["permuted"].startswith("permuted: selection by 'snip' is not run again on other labels: ")
    assert len(controls.drawn["permuted (contribution)"]) == 2


def test_a_rule_that_selects_nothing_on_shuffled_labels_is_replaced(planted_model: ns.Model):
    rows = tiny.prompts()
    leaf = ns.contrast(ns.capture(planted_model, rows, progress=False)).top(k=87)["en/text"].provenance["selection"]
    neurons = set_of(TRUTH, selection={"op": "-", "of": [leaf, leaf]})
    controls = control_sets(neurons, Source(planted_model, neurons, rows), features=EVERYTHING, draws=2)
    assert controls.missing["permuted"] == "permuted: on shuffled labels the rule of the set selects no neuron"
    assert {len(s) for s in controls.drawn["permuted (contribution)"]} == {1}
    assert controls.recovered is None


def test_a_rule_that_cannot_select_as_many_is_noted(planted_model: ns.Model):
    rows = tiny.prompts()
    neurons = ns.contrast(ns.capture(planted_model, rows, progress=False)).top(k=60)["en/text"]
    controls = control_sets(neurons, Source(planted_model, neurons, rows), features=EVERYTHING, draws=2)
    assert len(controls.fixed["next rank"]) == 27  # of 87
    assert controls.missing["next rank"] == "next rank: only 27 neurons can be selected for a set of 60"
    assert {len(s) for s in controls.shuffled} == {60}
    assert "permuted" not in controls.missing


def test_a_control_that_cannot_be_had_is_named(planted_model: ns.Model):
    rows = tiny.prompts(languages=["en"])
    controls = control_sets(set_of(TRUTH), Source(planted_model, set_of(TRUTH), rows), features=EVERYTHING, draws=2)
    assert "language" not in controls.fixed
    assert "two languages" in controls.missing["language"]


def test_the_seed_decides_every_draw(planted_model: ns.Model):
    rows = tiny.prompts()
    neurons = ns.contrast(ns.capture(planted_model, rows, progress=False), method="sas").top(k=4)["sw/text"]
    first, again, other = (
        control_sets(neurons, Source(planted_model, neurons, rows, seed=seed), features=EVERYTHING, draws=5)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.drawn["permuted"] != other.drawn["permuted"]


def test_random_controls_take_what_is_left_and_never_a_member(planted_model: ns.Model):
    most = ns.NeuronSet([(1, i) for i in range(20)], n_layers=3, d_mlp=29)
    drawn = random_like(most, planted_model, leave_out=set_of((1, 28)))
    assert set(drawn) == {(1, i) for i in range(20, 28)}


# -- seeds and wrong calls --------------------------------------------------------------------------------------
def test_a_seed_is_an_int_a_sequence_or_a_generator_that_goes_on(planted_model: ns.Model):
    neurons = set_of((0, 1), (0, 2), (2, 5))
    assert random_like(neurons, planted_model, seed=3) == random_like(
        neurons, planted_model, seed=np.random.default_rng(3)
    )
    assert random_like(neurons, planted_model) == random_like(neurons, planted_model, seed=0)
    assert random_like(neurons, planted_model, seed=[3, 1]) != random_like(neurons, planted_model, seed=[3, 2])
    rng = np.random.default_rng(0)
    assert random_like(neurons, planted_model, seed=rng) != random_like(neurons, planted_model, seed=rng)


def test_swapped_arguments_are_one_line(planted_model: ns.Model):
    with pytest.raises(ns.InputError, match=r"^random_like\(neurons, model\): neurons must be NeuronSet, got Model$"):
        random_like(planted_model, set_of(TRUTH))  # type: ignore[arg-type]
    with pytest.raises(ns.InputError, match="model must be Model, got NeuronSet"):
        random_like(set_of(TRUTH), set_of(DECOY))  # type: ignore[arg-type]


def test_kinds_without_a_neuron_in_some_layer_are_dropped_and_smaller_ones_noted():
    neurons = set_of((0, 1), (0, 2), (2, 5))
    controls = Controls({"random": [set_of((0, 3), (2, 6))], "matched": [set_of((0, 3))]}, {"general": set_of((2, 7))})
    out = complete(controls, neurons)
    assert set(out.drawn) == {"random"}
    assert not out.fixed
    assert out.missing["random"] == "random: only 2 neurons are left for a set of 3"
    assert out.missing["matched"] == "matched: no neuron of layer 2 is left to draw from"
    assert set(controls.drawn) == {"random", "matched"}  # the argument is not changed


def test_a_random_set_of_another_model_is_refused(planted_model: ns.Model):
    for wrong, said in (
        (ns.NeuronSet([(0, 3)], n_layers=5, d_mlp=29), "is of a model of 5 layers x 29 neurons"),
        (ns.NeuronSet([(0, 3), (7, 1)]), r"neuron \(7, 1\) does not exist"),
        (ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29, provenance={"fingerprint": "0"}), "with other weights"),
    ):
        with pytest.raises(ns.InputError, match=said):
            random_like(wrong, planted_model)


def test_fewer_random_neurons_than_asked_are_said(planted_model: ns.Model, caplog: pytest.LogCaptureFixture):
    most = set_of(*((1, i) for i in range(20)), (0, 4))
    with caplog.at_level("WARNING", "neuronshield"):
        assert random_like(most, planted_model).per_layer() == {0: 1, 1: 9}
    assert "random_like: only 10 neurons are left for a set of 21" in caplog.text
    with pytest.raises(ns.InputError, match="no neuron of layer 1 is left to draw"):
        random_like(set_of(*((1, i) for i in range(29))), planted_model)
