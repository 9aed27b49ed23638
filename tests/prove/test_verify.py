"""verify, on a model in which one neuron causes the refusal and another only responds to harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import planted
import pytest
import tiny
import torch
from one_neuron import ASK, DECOY, LAYER, LOUD, TRUTH, WORD, claim, plant, set_of

import neuronshield as ns
from neuronshield.data.judging import Judge, Verdict
from neuronshield.prove.claims import MARGIN_CLAIMS, NECESSITY
from neuronshield.prove.evidence import measure_evidence
from neuronshield.prove.members import measure_members
from neuronshield.prove.verdict import REFUSAL_CLAIMS

pytest_plugins = ["one_neuron"]

# how the planted neuron was selected is not known, so the controls that select do so by contribution
DRAWN = ("random", "matched", "permuted (contribution)")
SINGLE = ("next rank (contribution)", "general", "language")
UNTARGETED = [{k: v for k, v in row.items() if k != "target"} for row in tiny.records()]


# -- the planted neuron, and others -------------------------------------------------------------------------
def test_the_planted_neuron_passes_every_claim(truth: ns.Proof):
    assert truth.passed
    assert list(truth.verified) == [TRUTH]
    assert {c.name: c.verdict for c in truth.claims} == {
        **dict.fromkeys([*MARGIN_CLAIMS, *REFUSAL_CLAIMS], "passed"),
        "utility": "not tested",  # no prompt says what a right answer contains
    }


@pytest.mark.parametrize("name", [*NECESSITY, "sufficiency: patch"])
def test_the_planted_neuron_has_nearly_all_of_the_clean_logit_difference(truth: ns.Proof, name: str):
    found = claim(truth, name)
    assert 0.85 < found.effect.low <= found.effect.value <= found.effect.high < 1.15
    assert found.p == pytest.approx(dict.fromkeys(DRAWN, 1 / 201))
    assert {kind: interval.low > 0 for kind, interval in found.over.items()} == dict.fromkeys(SINGLE, True)
    assert found.strongest_control[1] < 0.5  # the decoy is drawn now and then, and moves the final norm


@pytest.mark.slow
def test_a_neuron_that_only_responds_to_harm_fails(planted_model: ns.Model, confirm: ns.PromptSet):
    proof = ns.verify(planted_model, set_of(DECOY), confirm, **ASK)
    assert not proof.passed
    assert not len(proof.verified)
    assert {claim(proof, n).verdict for n in (*NECESSITY, "sufficiency: patch")} == {"failed"}
    assert "necessity: mean" in proof.reason
    assert "sufficiency: patch" in proof.reason


@pytest.mark.slow
def test_contrast_scores_both_alike_and_verify_keeps_the_cause_only(planted_model: ns.Model):
    """The reason for the module: both score alike, only one is a cause."""
    rows = tiny.prompts()
    scores = ns.contrast(ns.capture(planted_model, rows, progress=False), method="effect_size")
    best = scores.top(k=2)[ns.Cell("en", "text")]
    assert set(best) == {TRUTH, DECOY}
    free = ns.NeuronSet(best, n_layers=3, d_mlp=29)
    proof = ns.verify(planted_model, free, planted.prompts(), **ASK)  # 30 requests: 10 choose members, 20 test them
    assert proof.passed
    assert list(proof.verified) == [TRUTH]
    assert (proof.retest.n_members, proof.retest.n_chosen_on, proof.retest.n_requests) == (1, 10, 20)
    assert {m.neuron: m.role for m in proof.members}[TRUTH] == "alone"
    assert {m.neuron: m.sign.kind for m in proof.members}[TRUTH] == "refusal-promoting"


def test_a_model_that_does_not_refuse_has_nothing_to_explain(confirm: ns.PromptSet):
    proof = ns.verify(plant(refuses=False), set_of(TRUTH), confirm, **ASK)
    assert not proof.passed
    assert not len(proof.verified)
    assert {c.verdict for c in proof.claims} == {"not tested"}
    assert str(proof).startswith("NOT TESTED: the model refuses harmful prompts no more")
    assert proof.reason.startswith("the model refuses harmful prompts no more than benign ones")
    assert proof.to_dict()["claims"][0]["effect"] == [None, None, None]


@pytest.mark.slow
def test_a_set_that_moves_benign_prompts_as_much_is_not_specific(confirm: ns.PromptSet):
    proof = ns.verify(plant(always=True), set_of(TRUTH, LOUD), confirm, **ASK)
    specific = claim(proof, "specificity")
    assert specific.verdict == "failed"
    assert specific.effect.value < -0.25
    assert "zero ablation" in specific.note
    assert not proof.passed
    assert "specificity" in proof.reason


@pytest.mark.slow
def test_members_are_ablated_one_by_one_to_their_benign_mean(confirm: ns.PromptSet):
    proof = ns.verify(plant(always=True), set_of(LOUD), confirm, draws=1, **ASK)
    alone = proof.members[0].alone.value
    assert alone == pytest.approx(claim(proof, "necessity: mean").effect.value, abs=1e-4)  # of a third of the requests
    assert abs(alone - claim(proof, "necessity: zero").effect.value) > 0.01


# -- numbers against an independent computation -------------------------------------------------------------
def test_zero_ablation_equals_the_same_by_hand(planted_model: ns.Model, confirm: ns.PromptSet, truth: ns.Proof):
    def margin(prompt: ns.Prompt, ablate: bool) -> float:
        encoding, n = tiny.encode(planted_model, prompt)

        def change(layer: int, h: torch.Tensor) -> torch.Tensor | None:
            if layer != LAYER or not ablate:
                return None
            h = h.clone()
            h[:, n - 1, TRUTH[1]] = 0
            return h

        with torch.no_grad(), tiny.hooked(tiny.downs(planted_model), change):
            logits = planted_model.module(**encoding).logits[0, -1]
        return float(logits[WORD["sorry"]] - logits[WORD["sure"]])

    pairs = confirm.pairs()
    clean = np.array([margin(h, False) for h, _ in pairs])
    benign = np.array([margin(b, False) for _, b in pairs])
    ablated = np.array([margin(h, True) for h, _ in pairs])
    expected = (clean - ablated).mean() / (clean - benign).mean()
    assert claim(truth, "necessity: zero").effect.value == pytest.approx(expected, abs=1e-3)
    difference = np.mean([row.clean_logit_difference for row in truth.cells.values()])
    assert difference == pytest.approx((clean - benign).mean(), rel=1e-3)


def test_graded_answers_turn_from_refusal_to_compliance(truth: ns.Proof):
    rates = {(a.label, a.condition): (a.refused.value, a.complied.value, a.incoherent.value) for a in truth.answers}
    refuse, comply = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    assert rates == {
        ("harmful", "clean"): refuse,
        ("benign", "clean"): comply,
        ("harmful", "set ablated"): comply,
        ("benign", "set ablated"): comply,
        ("benign", "set inserted"): refuse,
        **{("harmful", f"{kind} set ablated"): refuse for kind in (*DRAWN, *SINGLE)},
        **{("benign", f"{kind} set inserted"): comply for kind in (*DRAWN, *SINGLE)},
    }
    assert truth.cost.answers == len(rates) * 30


@pytest.mark.slow
def test_cells_that_do_not_refuse_are_left_to_the_experiments(planted_model: ns.Model):
    """Swahili prompts get a word that switches refusal off: nothing there to explain, but something to learn."""
    blind = {"bomb": "cake", "knife": "bread", "ring": "house"}
    rows = tiny.records(split="confirm")
    for row in rows:
        if row["language"] == "sw" and row["label"] == "harmful":
            words = row["prompt"].split()
            row["prompt"] = " ".join([*words[:-1], "no", blind[words[-1]]])
    proof = ns.verify(planted_model, set_of(TRUTH), ns.PromptSet.from_records(rows), draws=25, **ASK)
    assert proof.passed
    assert list(proof.cells) == ["en/text"]
    assert proof.n_pairs == 15
    answered = {f"{r.label}, {r.outcome}": r.n for r in proof.experiments.recognition}
    assert answered["harmful, answered"] == 15
    crossed = {(r.source, r.target): r.effect.value for r in proof.experiments.cross_cell}
    assert crossed["en/text", "sw/text"] > 0.8


# -- held-out prompts ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_set_of_unknown_history_says_so_in_the_reason(planted_model: ns.Model, confirm: ns.PromptSet):
    unknown = "the requests that selected the set are not known"
    for neurons, said in (
        (set_of(TRUTH), True),
        (set_of(TRUTH, seen=["another"]), False),
        (set_of(TRUTH, seen=["another"]) | set_of(TRUTH), True),
    ):
        proof = ns.verify(planted_model, neurons, confirm, draws=1, **ASK)
        assert (unknown in proof.reason) == said
        assert bool(proof.verified.provenance.get("seen_incomplete")) == said


def test_prompts_that_selection_saw_are_refused(planted_model: ns.Model, confirm: ns.PromptSet):
    seen = set_of(TRUTH, seen=[confirm[0].cluster])
    with pytest.raises(ns.InputError, match=r"were seen when the neurons were selected \(first: id 'en-text-0-0-harm"):
        ns.verify(planted_model, seen, confirm, **ASK)


@pytest.mark.slow
def test_only_confirm_prompts_are_used_where_there_are_any(planted_model: ns.Model):
    rows = tiny.records()
    for row in rows:
        row["split"] = "confirm" if row["pair_id"].startswith("0-") else "discover"
    proof = ns.verify(planted_model, set_of(TRUTH), ns.PromptSet.from_records(rows), draws=1, **ASK)
    assert proof.n_pairs == 6


# -- what is verified, and what is only chosen --------------------------------------------------------------------
def test_where_too_few_requests_are_left_to_test_the_members_the_whole_set_is_verified_and_the_reason_says_so(
    truth: ns.Proof,
):
    """15 requests: 5 choose, 10 test, and specificity takes 11."""
    assert (truth.retest.n_chosen_on, truth.retest.n_requests, truth.retest.passed) == (5, 10, False)
    assert "too few requests to tell: specificity, refusals: coherence" in truth.reason
    assert "so the whole set is verified, tested on all requests" in truth.reason
    assert (list(truth.verified), list(truth.candidates)) == ([TRUTH], [TRUTH])
    assert {"verified_on", "proof"} <= set(truth.verified.provenance)
    assert not {"verified_on", "proof"} & set(truth.candidates.provenance)
    claims = {c["name"]: c for c in truth.verified.provenance["claims"]}
    tested = [c for c in truth.claims if c.verdict != "not tested"]
    assert list(claims) == [c.name for c in tested]
    kind, value = tested[0].strongest_control or ("none", float("nan"))
    told = {
        "name": tested[0].name,
        "effect": list(tested[0].effect),
        "control": f"{value:.2f} ({kind})",
        "verdict": tested[0].verdict,
    }
    assert claims[tested[0].name] == told


@pytest.mark.slow
def test_what_is_not_verified_never_says_that_it_was(planted_model: ns.Model, confirm: ns.PromptSet):
    """Even if the set was verified on other requests before."""
    before = set_of(DECOY, verified_on="f00d", proof="passed elsewhere", seen=["another"])
    proof = ns.verify(planted_model, before, confirm, draws=25, **ASK)
    for neurons in (proof.verified, proof.candidates, proof.anti_refusal, proof.backups):
        assert not {"verified_on", "proof", "proven"} & set(neurons.provenance)
        assert neurons.provenance["tested_on"] == confirm.hash()


@pytest.mark.slow
def test_requests_that_chose_members_test_none(planted_model: ns.Model, monkeypatch: pytest.MonkeyPatch):
    seen: list[set[str]] = []

    def watched(pairs: Any, *args: Any, **options: Any) -> Any:
        seen.append(set(pairs.requests))
        return measure_evidence(pairs, *args, **options)

    chose: list[set[str]] = []

    def members(pairs: Any, *args: Any) -> Any:
        chose.append(set(pairs.requests))
        return measure_members(pairs, *args)

    monkeypatch.setattr("neuronshield.prove.verify.measure_evidence", watched)
    monkeypatch.setattr("neuronshield.prove.verify.measure_members", members)
    proof = ns.verify(planted_model, set_of(TRUTH, DECOY), planted.prompts(), draws=25, **ASK)
    whole, tested = seen
    assert (len(whole), len(tested), len(chose[0])) == (30, 20, 10)
    assert not tested & chose[0]
    assert list(proof.verified) == [TRUTH]


class ByTheRequest:
    """A judge to which every answer to a harmful request is a refusal, whatever it says."""

    name = "by the request"

    def score(self, prompt: str, response: str, language: str) -> Verdict:  # noqa: ARG002
        return Verdict(any(noun in prompt for noun in tiny.THINGS["harmful"]), False)


class Calm:
    """A judge to which no answer is a refusal."""

    name = "calm"

    def score(self, prompt: str, response: str, language: str) -> Verdict:  # noqa: ARG002
        return Verdict(False, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge", "word"),
    [(ByTheRequest(), "controls the wording of refusals, not refusal"), (Calm(), "no")],
    ids=["the answers still refuse", "no answer refused before"],
)
def test_the_judge_decides_what_a_refusal_is(planted_model: ns.Model, confirm: ns.PromptSet, judge: Judge, word: str):
    """Ablation takes "sorry" out of the answers; to these judges refusals do not fall."""
    proof = ns.verify(planted_model, set_of(TRUTH), confirm, draws=19, judge=judge, **ASK)
    assert proof.word == word
    assert proof.provenance["judge"] == judge.name
    assert not len(proof.verified)


# -- bad input ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": ns.NeuronSet([])}, "the neuron set is empty"),
        ({"neurons": ns.NeuronSet([(0, 29)])}, r"neuron \(0, 29\) does not exist"),
        ({"neurons": ns.NeuronSet([(3, 0)])}, r"neuron \(3, 0\) does not exist"),
        (
            {"neurons": ns.NeuronSet([(0, 1)], n_layers=4, d_mlp=29)},
            "a model of 4 layers x 29 neurons; 'LlamaForCausalLM' has 3 x 29",
        ),
        (
            {
                "neurons": ns.NeuronSet(
                    [(0, 1)], n_layers=3, d_mlp=29, provenance={"model": "other", "fingerprint": "f00d"}
                )
            },
            "was found in 'other' with other weights",
        ),
        (
            {"refusals": ["qwertz"], "prompts": ns.PromptSet.from_records(UNTARGETED)},
            "refusal prefixes of 'en' tokenise to nothing",
        ),
        ({"compliances": ["sorry"], "prompts": ns.PromptSet.from_records(UNTARGETED)}, "share their first tokens"),
        ({"draws": 0}, "verify: draws=0: must be a whole number of at least 1"),
        ({"prompts": tiny.prompts().where(label="harmful")}, "benign"),
        (
            {"refusals": None, "prompts": ns.PromptSet.from_records([{**r, "language": "tlh"} for r in UNTARGETED])},
            "no refusal prefixes for language",
        ),
        ({"refusals": []}, "must be a list of non-empty strings"),
        ({"refusals": ["  "]}, "must be a list of non-empty strings"),
    ],
)
def test_bad_input_is_one_clear_line(
    planted_model: ns.Model, confirm: ns.PromptSet, change: dict[str, Any], message: str
):
    options: dict[str, Any] = {"neurons": set_of(TRUTH), "prompts": confirm, **ASK, **change}
    with pytest.raises(ns.InputError, match=message) as caught:
        ns.verify(planted_model, options.pop("neurons"), options.pop("prompts"), **options)
    assert "\n" not in str(caught.value)


# -- the same again, and shown ------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_same_seed_gives_the_same_proof_and_another_seed_other_controls(
    planted_model: ns.Model, confirm: ns.PromptSet
):
    first, again, other = (
        ns.verify(planted_model, set_of(TRUTH), confirm, draws=3, seed=seed, **ASK).to_dict() for seed in (1, 1, 2)
    )
    assert first == again
    assert first["claims"][0]["controls"] != other["claims"][0]["controls"]


@pytest.mark.slow
def test_verify_leaves_the_model_as_it_was(confirm: ns.PromptSet):
    model = plant()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    ns.verify(model, set_of(TRUTH), confirm, draws=1, **ASK)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.module.modules())


# -- wrong calls ------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "organism"}, "model must be Model, got str 'organism'; load one with ns.load"),
        (
            {"neurons": tiny.prompts()},
            r"neurons must be NeuronSet, got PromptSet; pass one set, such as scores.top\(k=64\)",
        ),
        ({"neurons": {"en/text": set_of(TRUTH)}}, "neurons must be NeuronSet, got dict; pass one set"),
        ({"neurons": [TRUTH]}, "neurons must be NeuronSet, got list; pass one set"),
        ({"prompts": "prompts.jsonl"}, "prompts must be PromptSet, got str 'prompts.jsonl'; read them with"),
        ({"prompts": ["how do i bake"]}, "prompts must be PromptSet, got list; read them with"),
        ({"prompts": set_of(TRUTH)}, "prompts must be PromptSet, got NeuronSet; read them with"),
        ({"draws": 2.5}, "verify: draws=2.5: must be a whole number of at least 1"),
        ({"batch_size": 0}, "verify: batch_size=0: must be a whole number of at least 1"),
        ({"graded": 0}, "verify: graded=0: must be a whole number of at least 1"),
        ({"judge": "wildguard"}, r"verify: judge='wildguard' is no judge; use judge=load_judge\('wildguard'\)"),
        (
            {"judge": type("Mute", (), {"name": "mute", "score": lambda *_: None})()},
            "judge 'mute': score.. returned None",
        ),
    ],
)
def test_a_wrong_call_is_one_line(planted_model: ns.Model, confirm: ns.PromptSet, change: dict[str, Any], message: str):
    options: dict[str, Any] = {"model": planted_model, "neurons": set_of(TRUTH), "prompts": confirm, **ASK, **change}
    with pytest.raises(ns.InputError, match=message) as caught:
        ns.verify(options.pop("model"), options.pop("neurons"), options.pop("prompts"), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_models_own_prefixes_hold_where_none_are_given(confirm: ns.PromptSet):
    module = plant().module
    own = ns.load(module, processor=tiny.tokenizer(), refusals=["sorry"], compliances=["sure"])
    given = ns.verify(own, set_of(TRUTH), confirm, draws=1, progress=False)
    assert given == ns.verify(own, set_of(TRUTH), confirm, draws=1, **ASK)
