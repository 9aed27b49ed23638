"""All protocols on models whose refusals rest on known neurons, and what is refused at the door."""

from __future__ import annotations

from typing import Any

import numpy as np
import planted_modalities
import pytest
import torch
from planted_modalities import SMALL, Planted, build, prompts

import neuronshield as ns
from neuronshield.protocols.verdicts import NONE, SEPARATE, SHARED, UNTESTED

PROTOCOLS = ("Precise Shield", "SS-Neurons", "behavioural")


def compared(kind: str, **changes: Any) -> tuple[Planted, ns.protocols.ModalityProtocol]:
    planted = build(kind)
    return planted, ns.protocols.modality(planted.model, prompts(), **{**SMALL, **changes})


@pytest.fixture(scope="module")
def shared() -> tuple[Planted, ns.protocols.ModalityProtocol]:
    return compared("shared")


@pytest.fixture(scope="module")
def separate() -> tuple[Planted, ns.protocols.ModalityProtocol]:
    return compared("separate")


# -- models with known answers ------------------------------------------------------------------------------
def test_the_planted_neurons_carry_refusals_by_plain_hooks():
    """What was planted is measured without the package: held at zero, they are all that refuses harmful requests of their modality."""
    found = build("separate")
    wires = planted_modalities._Wires(found.model.module)
    run = planted_modalities.planted._run
    words = {"text": "knife", "image": "green"}
    for modality, noun in words.items():
        ids = torch.tensor([[planted_modalities.WORD[w] for w in ("how", "do", "i", "make", "the", noun)]])
        clean = float(run(wires, ids, {})[0])
        assert clean > 0
        for other, members in found.causal.items():
            ablated = float(run(wires, ids, dict.fromkeys(members, 0.0))[0])
            assert (ablated < 0) if other == modality else abs(ablated - clean) < 0.1


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "One Anchor"])
def test_shared_neurons_are_found_in_both_modalities_and_act_across(shared: tuple[Planted, Any], protocol: str):
    planted, found = shared
    for modality in ("text", "image"):
        assert planted.causal[modality] <= set(found.neurons(protocol, modality))
        assert len(found.neurons(protocol, modality)) <= 9
    outcome = found.outcome(protocol)
    assert outcome.verdict == SHARED
    for effect in outcome.effects:
        assert effect.verdict == "passed"
        assert effect.margin.low > effect.controls["random"].high
        assert effect.answers is not None
        assert effect.answers.judged.low > 0
        assert effect.answers.keyword == effect.answers.judged  # the model has one word for a refusal
        assert effect.answers.complied.low > 0
        assert effect.answers.control.value == 0
    assert protocol == "One Anchor" or (outcome.overlap is not None and outcome.overlap.jaccard > 0.6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_separate_neurons_are_found_and_do_not_act_across(separate: tuple[Planted, Any], protocol: str):
    planted, found = separate
    outcome = found.outcome(protocol)
    assert outcome.verdict == SEPARATE
    for modality, other in (("text", "image"), ("image", "text")):
        assert planted.causal[modality] <= set(found.neurons(protocol, modality))
        assert not planted.causal[other] & set(found.neurons(protocol, modality))
        own, cross = outcome.effect(modality, modality), outcome.effect(modality, other)
        assert own is not None
        assert cross is not None
        assert (own.verdict, cross.verdict) == ("passed", "failed")
        assert cross.margin.high < 0.2 * own.margin.value
    assert outcome.overlap is not None
    assert outcome.overlap.jaccard < 0.1


def test_one_anchor_has_no_set_where_modalities_share_no_neuron(separate: tuple[Planted, Any]):
    outcome = separate[1].outcome("One Anchor")
    assert outcome.verdict == NONE
    assert [s.n for s in outcome.sets] == [0, 0]


def test_directions_follow_the_planted_answer(shared: tuple[Planted, Any], separate: tuple[Planted, Any]):
    assert shared[1].directions.verdict == SHARED
    for _, found in (shared, separate):
        assert found.directions.needed["text"] == 1  # harm is one dimension
        first = found.directions.curve("text", "text")[0]
        assert first.margin.low > first.random.high


def test_directions_of_separate_neurons_are_shared_once_the_refusal_is_written(separate: tuple[Planted, Any]):
    """Both modalities write the refusal into one dimension. A layer that comes after a part of it has been written has it too."""
    planted, found = separate
    first = {
        source: found.directions.curve(source, "image" if source == "text" else "text")[0]
        for source in ("text", "image")
    }
    before = {source: sum(layer <= p.layer for layer, _ in planted.causal[source]) for source, p in first.items()}
    falls = {
        source: p.margin.value / found.directions.curve(source, source)[0].margin.value for source, p in first.items()
    }
    assert before["image"] > before["text"]
    assert falls["image"] > falls["text"]
    assert falls["text"] < 0.3


def test_a_clamped_round_finds_nothing_more(shared: tuple[Planted, Any]):
    rounds = [r for r in shared[1].outcome("behavioural").rounds if r.modality == "text"]
    assert [r.number for r in rounds] == [1, 2]
    assert rounds[0].confirmed >= 6
    assert rounds[1].confirmed == 0


def test_a_model_without_a_causal_neuron_confirms_none():
    """Refusal is read from the words themselves, by the head."""
    _, found = compared("direct", rounds=1)
    assert all(side.refused.value == 1 for side in found.sides)
    assert found.outcome("behavioural").verdict == NONE
    assert len(found.neurons("behavioural", "text")) == len(found.neurons("behavioural", "image")) == 0
    assert not any(e.verdict == "passed" for o in found.outcomes for e in o.effects)


@pytest.mark.slow
def test_a_modality_that_is_not_refused_has_too_few_labelled_answers():
    _, found = compared("text", rounds=1)
    outcome = found.outcome("behavioural")
    assert outcome.verdict == SEPARATE
    assert "image: too few: 0 harmful prompts refused" in outcome.reason
    assert "the model does not refuse image" in outcome.reason


@pytest.mark.slow
def test_the_behavioural_protocol_reads_other_sites():
    planted, found = compared("shared", rounds=1, sites=["gate", "attention"])
    assert planted.causal["text"] <= set(found.neurons("behavioural", "text", site="gate"))  # harm is read by the gate
    assert found.outcome("behavioural", "attention").verdict == NONE
    assert found.neurons("behavioural", "text", site="gate").site == "gate"


# -- the result ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_same_seed_gives_the_same_result(separate: tuple[Planted, Any]):
    """On a part of the requests, to be quick."""
    rows = ns.PromptSet(p for p in prompts() if p.prompt.split()[3] in ("make", "bake"))
    options = {**SMALL, "rounds": 1, "draws": 3, "controls": 5}
    one, other = (ns.protocols.modality(separate[0].model, rows, **options) for _ in range(2))
    assert one == other


def test_requests_that_select_measure_nothing(shared: tuple[Planted, Any]):
    split = {p.cluster: p.split for p in prompts()}
    assert {split[request] for request in shared[1].provenance["seen"]} == {"discover"}
    side = shared[1].sides[0]
    assert (side.n_harmful, side.n_confirm, side.n_test, side.n_requests) == (20, 20, 20, 20)


def test_the_difference_of_a_side_is_that_of_the_means(shared: tuple[Planted, Any]):
    from neuronshield.model.forward import margins
    from neuronshield.model.prefixes import OpeningTokens

    model = shared[0].model
    tokens = {"en": OpeningTokens([planted_modalities.WORD["sorry"]], [planted_modalities.WORD["sure"]])}
    rows = {label: prompts().where(split="test", modality="text", label=label) for label in ("harmful", "benign")}
    means = {label: float(np.mean(margins(model, found, [None], tokens)[0])) for label, found in rows.items()}
    assert shared[1].sides[0].difference.value == pytest.approx(means["harmful"] - means["benign"], abs=1e-4)


# -- at the door --------------------------------------------------------------------------------------------
def test_prompts_of_one_modality_are_refused(llama: ns.Model):
    import tiny

    with pytest.raises(ns.InputError, match="the prompts are of text only"):
        ns.protocols.modality(llama, tiny.prompts())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0}, "rho=0: a part of the neurons"),
        ({"sites": "neuron"}, "sites='neuron'"),
        ({"sites": ["gates"]}, "did you mean 'gate'"),
        ({"draws": 0}, "draws=0: must be a whole number of at least 1"),
        ({"judge": "wildguard"}, "is no judge"),
    ],
)
def test_a_wrong_option_is_one_line(llava: ns.Model, options: dict[str, Any], message: str):
    import tiny

    with pytest.raises(ns.InputError, match=message):
        ns.protocols.modality(llava, tiny.prompts(pictures=True, languages=("en",)), progress=False, **options)


@pytest.mark.slow
def test_a_rule_that_needs_english_says_so_and_the_others_run(llava: ns.Model):
    import tiny

    rows = tiny.prompts(pictures=True, languages=("sw",))
    found = ns.protocols.modality(
        llava, rows, rho=0.2, draws=3, controls=5, rounds=1, refusals=["sorry"], compliances=["sure"], progress=False
    )
    assert found.outcome("SS-Neurons").verdict == UNTESTED
    assert "English" in found.outcome("SS-Neurons").reason
    assert found.outcome("Precise Shield").verdict != UNTESTED
