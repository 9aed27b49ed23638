"""What is preferred: a refusal to the system's own answer where the request is harmful, and the other way round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

import neuronshield as ns
from neuronshield.systems import Outcome, Preference, preferences


def system(model: ns.Model) -> ns.System:
    return ns.System(
        [ns.Node("describe", model, max_new_tokens=3), ns.Node("answer", model, "how {describe}", max_new_tokens=4)]
    )


def test_the_pairs_are_the_table_of_the_module(llama: ns.Model):
    own = system(llama)
    rows = ns.PromptSet(replace(p, target=p.target if i < 2 else None) for i, p in enumerate(tiny.prompts()[:4]))
    harmful, benign, harmful_too, benign_too = preferences(own, rows, refusals=["sorry no"])
    said = own.run(rows)
    assert (harmful.preferred.answer, harmful.rejected.answer) == ("sorry i cannot help", said[0].answer)
    assert (benign.preferred.answer, benign.rejected.answer) == ("sure make it", "sorry no")
    assert (harmful_too.preferred.answer, harmful_too.rejected.answer) == ("sorry no", said[2].answer)
    assert (benign_too.preferred.answer, benign_too.rejected.answer) == (said[3].answer, "sorry no")
    for one, outcome in zip((harmful, benign, harmful_too, benign_too), said, strict=True):
        assert one.preferred.outputs["describe"] == one.rejected.outputs["describe"] == outcome.outputs["describe"]


def test_a_request_that_is_answered_as_preferred_is_left_out(llama: ns.Model):
    own = system(llama)
    row = tiny.prompts()[0]
    said = own.generate([row])[0]
    assert preferences(own, ns.PromptSet([replace(row, target=said)])) == []


def test_preferences_of_ones_own_are_checked(llama: ns.Model):
    own, (harmful, benign) = system(llama), tiny.prompts()[:2]
    good = Outcome({"describe": "a", "answer": "no"}), Outcome({"describe": "b", "answer": "sure"})
    pairs = [Preference(harmful, *good), Preference(benign, *good)]
    sets = {"answer": ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29)}
    short = Preference(benign, good[0], Outcome({"answer": "sure"}))
    for given, said in (
        (
            [*pairs, short],
            r"prompt 'en-text-0-0-benign': an outcome has outputs of answer; the system has the nodes describe, answer",
        ),
        (pairs[:1], "system_update: no benign prompts"),
        ([harmful, benign], "every preference must be Preference, got Prompt; pass prompts, or what"),
        (3, "preferences must be Iterable, got int 3"),
    ):
        with pytest.raises(ns.InputError, match=said):
            ns.system_update(own, sets, given, steps=1, progress=False, allow_unproven=True)  # type: ignore[arg-type]
