"""Interventions at other sites and on directions as data: what is refused, JSON, digests, and the way to another process."""

# mypy: disable-error-code="arg-type"
# Wrong calls are made on purpose.

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from oracles import some

import neuronshield as ns
from neuronshield.core.directions import Directions
from neuronshield.model.engine import Unit, part_of
from neuronshield.model.forward import answer_logits
from neuronshield.model.intervention import Intervention
from neuronshield.model.replica import packed

WEST = Directions(
    np.random.default_rng(0).standard_normal((2, 20)), layers=[0, 2], n_layers=3, provenance={"method": "mine"}
)
ATTENTION = ns.NeuronSet([(0, 3), (2, 19)], n_layers=3, d_mlp=20, site="attention")
NEURONS = ns.NeuronSet([(0, 3), (2, 19)], n_layers=3, d_mlp=29)


def conditions(n: int) -> list[Intervention]:
    rng = np.random.default_rng(1)
    return [
        Intervention(WEST, "zero"),
        Intervention(WEST, "clamp", [1.0, 2.0], "all", cells=["en/text"]),
        Intervention(WEST, "mean", rng.standard_normal((n, 2))),
        Intervention(WEST, "scale", 0.5),
        Intervention(ATTENTION, "zero"),
        Intervention(ATTENTION, "mean", rng.standard_normal((3, 20))),
        Intervention(ATTENTION, "patch", rng.standard_normal((n, 3, 20))),
        Intervention(NEURONS, "mean", rng.standard_normal((3, 29))),
    ]


def test_json_gives_back_what_is_changed_and_its_values(llama: ns.Model) -> None:
    prompts = some("llama")
    for condition in conditions(len(prompts)):
        back = Intervention.from_json(condition.to_json())
        assert back == condition
        assert (back.digest, back.neurons.site) == (condition.digest, condition.neurons.site)
        assert back.neurons.provenance == condition.neurons.provenance
        assert torch.equal(answer_logits(llama, prompts, back), answer_logits(llama, prompts, condition))


def test_json_of_neurons_says_nothing_of_sites() -> None:
    assert "site" not in Intervention(NEURONS, "zero").to_json()
    assert '"site": "attention"' in Intervention(ATTENTION, "zero").to_json()


def test_interventions_that_do_other_things_have_other_digests() -> None:
    gate, up = (ns.NeuronSet(list(NEURONS), n_layers=3, d_mlp=29, site=site) for site in ("gate", "up"))
    other = Directions(WEST.vectors, layers=[1, 2], n_layers=3)
    every = [
        *conditions(4), *(Intervention(what, "zero") for what in (gate, up, NEURONS, other)),
        Intervention(Directions(WEST.vectors[:1], WEST.layers, n_layers=3), "zero"),
    ]  # fmt: skip
    assert len({c.digest for c in every}) == len(every)
    assert all(a != b for i, a in enumerate(every) for b in every[:i])


def test_a_unit_comes_out_of_its_parcel_as_it_went_in(llama: ns.Model) -> None:
    prompts = tuple(some("llama"))
    unit = Unit("", prompts, (None, *conditions(len(prompts))))
    back = packed(llama, unit).unpacked()
    assert back.conditions == unit.conditions
    assert [c and c.neurons.site for c in back.conditions] == [c and c.neurons.site for c in unit.conditions]


def test_rows_of_values_follow_the_prompts_that_they_are_for(llama: ns.Model) -> None:
    prompts = list(some("llama"))
    whole = conditions(len(prompts))
    rows = [4, 1]
    for condition, part in zip(whole, part_of(whole, prompts, rows), strict=True):
        if part is not None:
            want = answer_logits(llama, prompts, condition)[rows]
            torch.testing.assert_close(
                answer_logits(llama, [prompts[i] for i in rows], part), want, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Intervention(WEST, "patch", np.zeros((4, 2))), "Intervention of directions: kind='patch' is unknown"),
        (lambda: Intervention(WEST, "zero", 1.0), "kind='zero' takes no value"),
        (lambda: Intervention(WEST, "mean"), "kind='mean' needs a value"),
        (lambda: Intervention(WEST, "clamp", [1.0, 2.0, 3.0]), "value has shape (3,); its last axis must be the 2 directions"),
        (lambda: Intervention(WEST, "clamp", np.zeros((1, 2, 2))), "expected a number or [k] or [prompt, k]"),
        (lambda: Intervention(WEST, "scale", [1.0, 2.0]), "value has shape (2,); expected a number"),
        (lambda: Intervention(WEST, "clamp", [1.0, np.inf]), "value is not finite everywhere"),
        (lambda: Intervention(ATTENTION, "mean", np.zeros((3, 29))), "must be the 3 layers and 20 neurons"),
        (lambda: Intervention.mean_of(WEST, None, cell="en/text"), "neurons must be NeuronSet, got Directions"),
    ],
)  # fmt: skip
def test_a_wrong_intervention_is_one_line(call: Any, said: str) -> None:
    with pytest.raises(ns.InputError) as caught:
        call()
    assert said in str(caught.value)


def test_what_does_not_fit_the_model_or_the_prompts_is_refused(llama: ns.Model, gpt2: ns.Model) -> None:
    moe = ns.load(tiny.mixtral(), processor=tiny.tokenizer())
    prompts = some("llama")
    gate = ns.NeuronSet([(0, 3)], site="gate")
    for model, condition, said in (
        (llama, Intervention(WEST, "mean", np.zeros((3, 2))), "value has shape (3, 2); expected (2,) or"),
        (llama, Intervention(ns.NeuronSet([(0, 20)], site="attention"), "zero"), "does not exist"),
        (llama, Intervention(Directions(np.eye(1, 19), layers=[0]), "zero"), "find directions on this model"),
        (gpt2, Intervention(gate, "zero"), "has no gate; site 'up' is what its activation function reads"),
        (moe, Intervention(gate, "zero"), "is a mixture of experts"),
    ):
        with pytest.raises(ns.InputError) as caught:
            answer_logits(model, prompts, condition)
        assert said in str(caught.value)
