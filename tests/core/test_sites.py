"""A set names its site, keeps it in files, and is never mistaken for one of neurons."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors import safe_open

import neuronshield as ns
from neuronshield.core.results import from_json, to_json
from neuronshield.core.sites import said_if_other
from neuronshield.find.cells import CellSets
from neuronshield.find.reselection import selection_of

PAIRS = [(0, 3), (2, 7)]
GATE = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29, site="gate")


def test_sets_of_one_site_combine_and_keep_it() -> None:
    other = ns.NeuronSet([(2, 7)], n_layers=3, d_mlp=29, site="gate")
    for found, members in (
        (GATE & other, [(2, 7)]),
        (GATE | other, PAIRS),
        (GATE - other, [(0, 3)]),
        (GATE ^ other, [(0, 3)]),
    ):
        assert (list(found), found.site) == (members, "gate")
    assert ns.NeuronSet.intersection(GATE, other).site == "gate"


def test_sets_of_different_sites_are_not_combined_and_not_equal() -> None:
    neurons = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
    assert neurons.site == "neuron"
    assert neurons != GATE
    for combined in ("__or__", "__and__", "__sub__", "__xor__"):
        with pytest.raises(ns.InputError, match="cannot combine a set at site 'gate' with one at 'neuron'"):
            getattr(GATE, combined)(neurons)


def test_a_set_of_a_set_keeps_its_site_and_an_unknown_site_is_refused() -> None:
    assert ns.NeuronSet(GATE).site == "gate"
    assert ns.NeuronSet(list(GATE)).site == "neuron"
    with pytest.raises(ns.InputError, match=r"site='gates' is unknown; did you mean 'gate'\?"):
        ns.NeuronSet(PAIRS, site="gates")
    assert repr(GATE) == "NeuronSet(2 neurons in 2 layers, site='gate')"


def test_files_name_a_site_only_where_it_is_not_neuron(tmp_path: Path) -> None:
    for neurons in (GATE, ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)):
        path = neurons.save(tmp_path / "set.safetensors")
        assert ns.NeuronSet.load(path) == neurons
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["neuronshield"])["about"]
        assert about.get("site") == (None if neurons.site == "neuron" else "gate")
        sets = CellSets({"en/text": neurons})
        assert CellSets.load(sets.save(tmp_path / "sets.safetensors"))["en/text"] == neurons


def test_a_field_that_is_said_if_other_is_left_out_and_read_back() -> None:
    @dataclass(frozen=True)
    class Header:
        n: int
        site: str = said_if_other()

    globals()["Header"] = Header  # where its type hints are looked up
    assert to_json(Header(1)) == {"n": 1}
    assert to_json(Header(1, "up")) == {"n": 1, "site": "up"}
    assert from_json(Header, {"n": 1}) == Header(1)


CALLS: dict[str, Callable[..., Any]] = {
    "masked_update": lambda m, n, p: ns.masked_update(m, n, p, steps=1, allow_unproven=True, progress=False),
    "clamp_edit": ns.clamp_edit,
    "low_rank_edit": ns.low_rank_edit,
    "fit_guard": ns.guard.fit_guard,
    "verify": lambda m, n, p: ns.verify(m, n, p, progress=False),
    "selection_of": selection_of,
    "activations": lambda m, n, p: ns.activations(m, p, n),
    "top_prompts": lambda m, n, p: ns.top_prompts(m, p, n),
    "vocabulary": lambda m, n, _: ns.vocabulary(m, n, refusals=["sorry"], compliances=["sure"]),
    "dose_response": ns.dose_response,
    "explore": ns.explore,
    "param_fraction": lambda m, n, _: n.param_fraction(m),
    "to_transformer_lens": lambda _, n, __: n.to_transformer_lens(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_needs_neurons_refuses_a_set_of_another_site_in_one_line(
    llama: ns.Model, call: Callable[..., Any]
) -> None:
    for neurons in (GATE, ns.NeuronSet(PAIRS, site="attention")):
        with pytest.raises(ns.InputError, match=r"the set is at site '(gate|attention)'.*this needs neurons"):
            call(llama, neurons, tiny.prompts())


def test_members_are_checked_against_the_width_of_their_site(llama: ns.Model) -> None:
    ns.NeuronSet([(0, 28)], site="up").check_model(llama, any_site=True)
    with pytest.raises(ns.InputError, match=r"does not exist in .* \(3 layers x 20\)"):
        ns.NeuronSet([(0, 28)], site="attention").check_model(llama, any_site=True)
    with pytest.raises(ns.InputError, match=r"3 layers x 29 neurons; .* has 3 x 20"):
        ns.NeuronSet([(0, 1)], n_layers=3, d_mlp=29, site="attention").check_model(llama, any_site=True)


def test_random_sets_are_of_the_same_site_and_width(llama: ns.Model) -> None:
    of = ns.NeuronSet([(0, 3), (0, 5), (2, 7)], n_layers=3, d_mlp=20, site="attention")
    drawn = [ns.random_like(of, llama, seed=seed) for seed in range(20)]
    assert {(s.site, s.d_mlp) for s in drawn} == {("attention", 20)}
    assert all(s.per_layer() == of.per_layer() and not len(s & of) for s in drawn)
    assert np.max([index for s in drawn for _, index in s]) < 20
