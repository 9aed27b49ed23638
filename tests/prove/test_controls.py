"""Matched control sets: as many neurons per layer, none of the set, selected as their names say."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from one_neuron import DECOY, LOUD, TRUTH, claim, set_of

import neuronshield as ns
from neuronshield.prove.controls import Controls, complete, control_sets, matched_like, random_like

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
        "random": 200, "matched": 200, "permuted": 200, "next rank": 1, "general": 1, "language": 1,
    }  # fmt: skip
    assert truth.controls.sets == {k: len(v) for k, v in found.controls.items()}
    assert len(set(found.controls["random"])) > 10


def test_controls_hold_as_many_neurons_per_layer_and_none_of_the_set(planted_model: ns.Model):
    rows = tiny.prompts()
    neurons = set_of(TRUTH, (0, 4), (0, 9), cell="en/text", method="effect_size")
    features = np.random.default_rng(0).random((2, 3, 29))
    controls = control_sets(planted_model, neurons, rows, features=features, draws=7)
    assert set(controls.drawn) == {"random", "matched", "permuted"}
    assert set(controls.fixed) == {"next rank", "general", "language"}
    for control in controls.all():
        assert control.per_layer() == neurons.per_layer()
        assert not control & neurons
    assert DECOY in controls.fixed["next rank"]  # the same selection would have taken it next
    assert LOUD in controls.fixed["general"]
    assert 0 <= controls.recovered < 1


def test_a_control_that_cannot_be_had_is_named(planted_model: ns.Model):
    rows = tiny.prompts(languages=["en"])
    controls = control_sets(planted_model, set_of(TRUTH), rows, features=np.ones((2, 3, 29)), draws=2)
    assert "language" not in controls.fixed
    assert "two languages" in controls.missing["language"]


def test_shuffled_labels_seldom_find_the_set_again(planted_model: ns.Model):
    neurons = set_of(TRUTH, DECOY, cell="en/text", method="effect_size")
    controls = control_sets(planted_model, neurons, tiny.prompts(), features=np.ones((2, 3, 29)), draws=20)
    assert controls.recovered < 0.7  # with the labels as they are it is 1


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
