"""Interventions as data: they survive JSON, say at once what makes no sense, and take captured means."""

# mypy: disable-error-code="arg-type, call-overload, list-item, attr-defined"
# Wrong calls are made on purpose.

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from oracles import NEURONS, TOKENS, some, values

import neuronshield as ns
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.intervention import KINDS, Intervention


@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_survives_json(llama: ns.Model, kind: str) -> None:
    prompts = some("llama")
    value: Any = values(kind, len(prompts))
    value = value.numpy() if value is not None and value.ndim == 2 else value
    before = Intervention(NEURONS, kind, value, "prompt", cells=["en/text"])  # type: ignore[arg-type]
    text = before.to_json()
    after = Intervention.from_json(text)
    assert after.to_json() == text
    assert (after.neurons, after.kind, after.positions, after.cells) == (
        NEURONS,
        kind,
        "prompt",
        (ns.Cell("en", "text"),),
    )
    a, b = (margins(llama, prompts, [x], TOKENS) for x in (before, after))
    np.testing.assert_array_equal(a, b)  # bit for bit


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "neuronshield.Intervention/9"}', '{"format": 3}'])
def test_json_that_is_not_an_intervention_is_refused(text: str) -> None:
    with pytest.raises(ns.InputError, match="not an intervention written by to_json"):
        Intervention.from_json(text)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Intervention(ns.NeuronSet([]), "zero"), "empty neuron set"),
        (lambda: Intervention(NEURONS, "noise"), "kind='noise' is unknown"),  # type: ignore[arg-type]
        (lambda: Intervention(NEURONS, "zero", positions="first"), "positions='first' is unknown"),  # type: ignore[arg-type]
        (lambda: Intervention(NEURONS, "mean"), "needs a value"),
        (lambda: Intervention(NEURONS, "zero", torch.zeros(3, 29)), "takes no value"),
        (lambda: Intervention(NEURONS, "scale", torch.zeros(3, 29)), "value has shape (3, 29); expected a number"),
        (lambda: Intervention(NEURONS, "patch", 1.0), "value has shape (); expected"),
        (lambda: Intervention(NEURONS, "zero", cells=[]), "touches no prompt"),
        (lambda: Intervention(NEURONS, "zero", cells=["en"]), "is not a language and a modality"),
        (lambda: Intervention(NEURONS, "clamp", float("nan")), "not finite"),
        (lambda: Intervention(ns.NeuronSet([(0, 3)]), "mean", torch.zeros(3, 29)).to_json(), "does not know its shape"),
    ],
)
def test_an_intervention_that_makes_no_sense_is_said_at_once(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ns.InputError, match=re.escape(said)):
        make()


# -- captured means ---------------------------------------------------------------------------------------
def test_the_mean_of_a_prompt_is_that_of_its_own_cell(llama: ns.Model) -> None:
    prompts = tiny.prompts()
    stats = ns.capture(llama, prompts, progress=False)
    harmful = ns.PromptSet([p for p in prompts if p.label == "harmful"][::4])
    got = ns.Intervention.mean_of(NEURONS, stats, harmful)
    assert got.kind == "mean"
    assert {p.language for p in harmful} == {"en", "sw"}
    for row, prompt in zip(got.value, harmful, strict=True):
        np.testing.assert_allclose(row, stats.moments("benign", prompt.cell).mean, rtol=1e-6)
    one = ns.Intervention.mean_of(NEURONS, stats, label="harmful", cell="sw/text", positions="all", cells=["sw/text"])
    np.testing.assert_allclose(one.value, stats.moments("harmful", ("sw", "text")).mean, rtol=1e-6)
    assert (one.positions, one.cells) == ("all", (ns.Cell("sw", "text"),))
    alone = ns.Intervention(NEURONS, "mean", np.stack([stats.moments("benign", p.cell).mean for p in harmful]))
    assert torch.equal(answer_logits(llama, harmful, got), answer_logits(llama, harmful, alone))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: Intervention.mean_of(NEURONS, s), "give the prompts it is for (each gets the mean of its cell), or cell="),
        (lambda s: Intervention.mean_of(NEURONS, s, []), "no prompts"),
        (lambda s: Intervention.mean_of(NEURONS, s, cell="fr/text"), "nothing captured for benign prompts of fr/text"),
        (lambda _: Intervention.mean_of(NEURONS, {"mean": 1}, []), "stats must be what capture returns, got dict"),
        (lambda _: Intervention([(0, 3)], "zero"), "neurons must be NeuronSet or Directions, got list; NeuronSet(pairs) makes one"),
        (lambda _: Intervention({"en/text": NEURONS}, "zero"), "neurons must be NeuronSet or Directions, got dict"),
        (lambda _: Intervention("zero", NEURONS), "must be NeuronSet or Directions, got str 'zero'; the neuron set comes first"),
        (lambda _: Intervention(NEURONS, "men"), "kind='men' is unknown; did you mean 'mean'?"),
        (lambda s: Intervention(NEURONS, "mean", s), "value is a Stats; expected [n_layers, d_mlp] or [prompt,"),
        (lambda s: Intervention.mean_of(NEURONS, s, "en/text"), "got 'en/text'; for one cell pass cell="),
        (lambda s: Intervention.mean_of(NEURONS, s, ["how"]), "every prompt must be Prompt, got str 'how'"),
        (lambda s: Intervention.mean_of(NEURONS, s, 3), "prompts must be Iterable, got int 3"),
        (lambda _: Intervention(NEURONS, "mean"), "needs a value; Intervention.mean_of(neurons, stats, prompts) makes one"),
        (lambda _: Intervention(NEURONS, "mean", torch.zeros(3, 28)), "value has shape (3, 28); its last two axes must be"),
        (lambda _: Intervention(NEURONS, "patch", np.zeros((2, 4, 29))), "must be the 3 layers and 29 neurons of the model"),
        (lambda _: Intervention(NEURONS, "scale", 1j), "kind='scale': value is complex; expected real numbers"),
        (lambda _: Intervention(NEURONS, "clamp", torch.zeros(3, 29) * 1j), "value is complex; expected real numbers"),
        (lambda _: Intervention(NEURONS, "zero").check(tiny.prompts(), _), "model must be Model, got PromptSet; the model"),
        (lambda _: Intervention(NEURONS, "clamp", "loud"), "value is a str; expected a number or [n_layers, d_mlp]"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(llama: ns.Model, call: Any, said: str) -> None:
    stats = ns.capture(llama, tiny.prompts(), progress=False)
    with pytest.raises(ns.InputError) as caught:
        call(stats)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_cell_may_be_given_by_itself() -> None:
    assert Intervention(NEURONS, "zero", cells="en/text").cells == (ns.Cell("en", "text"),)


@pytest.mark.parametrize("kind", KINDS)
def test_its_repr_fits_a_line(kind: str) -> None:
    text = repr(Intervention(NEURONS, kind, values(kind, 4), "all", ["en/text"]))  # type: ignore[arg-type]
    assert kind in text
    assert len(text) <= 110
