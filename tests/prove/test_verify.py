"""verify, on a model whose answer is planted: one neuron causes the refusal, another only knows of the harm."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.core.statistics import Interval
from neuronshield.data.grading import Grade
from neuronshield.prove.claims import measure_effect, measure_utility
from neuronshield.prove.controls import Controls, control_sets, matched_like, random_like

HARM, OUT, IDLE, ONE = range(4)  # residual dimensions: harm is known; refusal is said; nobody reads; constant
LAYER = 1
TRUTH, DECOY, LOUD = (LAYER, 3), (LAYER, 11), (LAYER, 17)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}


def plant(*, refuses: bool = True, always: bool = False) -> ns.Model:
    """A tiny Llama that answers "sorry" after a harmful noun and "sure" after a benign one.

    Neuron TRUTH reads the harm of the last word and writes the refusal. DECOY reads it as well and writes where
    nobody looks: it tells harmful from benign just as clearly and causes nothing. LOUD fires on every prompt
    alike and, with `always`, pushes them all towards refusal a little.
    """
    module = copy.deepcopy(tiny.llama())
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" not in name:
                p.mul_(0.1)
        embed, head = module.get_input_embeddings().weight, module.lm_head.weight
        embed[:, :4] = 0
        embed[:, ONE] = 1
        for noun in tiny.THINGS["harmful"]:
            embed[WORD[noun], HARM] = 1
        head[:, :4] = 0
        head[WORD["sure"], ONE], head[WORD["sorry"], OUT] = 4, 8
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight[:4] = 0
        mlp = module.model.layers[LAYER].mlp
        wires = [(TRUTH, HARM, OUT, 1), (DECOY, HARM, IDLE, 1), (LOUD, ONE, *((OUT, 0.02) if always else (IDLE, 1)))]
        for (_, index), reads, writes, strength in wires:
            for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
                weight[index] = 0
                weight[index, reads] = 1
            mlp.down_proj.weight[:, index] = 0
            mlp.down_proj.weight[writes, index] = strength
        if not refuses:
            mlp.down_proj.weight[OUT] = 0
    return ns.load(module, processor=tiny.tokenizer())


@pytest.fixture(scope="module")
def planted() -> ns.Model:
    return plant()


@pytest.fixture(scope="module")
def prompts() -> ns.PromptSet:
    return tiny.prompts(split="confirm")


UNTARGETED = [{k: v for k, v in row.items() if k != "target"} for row in tiny.records()]


def set_of(*pairs: tuple[int, int], **provenance: Any) -> ns.NeuronSet:
    return ns.NeuronSet(pairs, n_layers=3, d_mlp=29, provenance=provenance)


@pytest.fixture(scope="module")
def truth(planted: ns.Model, prompts: ns.PromptSet) -> ns.Proof:
    return ns.verify(planted, set_of(TRUTH), prompts, **ASK)


def claim(proof: ns.Proof, name: str) -> Any:
    return next(c for c in proof.claims if c.name == name)


NECESSITY = [f"necessity: {k}" for k in ("zero", "mean", "resample", "patch")]


# -- the planted truth, and what is not it ------------------------------------------------------------------
def test_the_planted_neuron_passes_every_claim(truth: ns.Proof):
    assert truth.passed
    assert list(truth.verified) == [TRUTH]
    assert {c.name: c.verdict for c in truth.claims} == {
        **dict.fromkeys([*NECESSITY, "sufficiency: patch", "specificity"], "passed"),
        "utility": "not tested",  # no prompt says what a right answer contains
    }


@pytest.mark.parametrize("name", [*NECESSITY, "sufficiency: patch"])
def test_the_planted_neuron_carries_nearly_all_of_the_gap(truth: ns.Proof, name: str):
    found = claim(truth, name)
    assert 0.85 < found.effect.low <= found.effect.value <= found.effect.high < 1.15
    assert found.p == pytest.approx(dict.fromkeys(["random", "matched", "permuted"], 1 / 201))
    assert {kind: interval.low > 0 for kind, interval in found.over.items()} == dict.fromkeys(
        ["next rank", "general", "language"], True
    )
    assert found.strongest_control[1] < 0.5  # the decoy is drawn now and then, and moves the final norm


def test_a_neuron_that_only_knows_of_the_harm_fails(planted: ns.Model, prompts: ns.PromptSet):
    proof = ns.verify(planted, set_of(DECOY), prompts, **ASK)
    assert not proof.passed
    assert not len(proof.verified)
    assert {claim(proof, n).verdict for n in (*NECESSITY, "sufficiency: patch")} == {"failed"}
    assert "necessity: mean" in proof.reason
    assert "sufficiency: patch" in proof.reason


def test_contrast_alone_cannot_tell_the_two_apart_and_verify_can(planted: ns.Model):
    """The reason for the module: both score alike, only one survives."""
    rows = tiny.prompts()
    scores = ns.contrast(ns.capture(planted, rows, progress=False), method="effect_size")
    best = scores.top(k=2)[ns.Cell("en", "text")]
    assert set(best) == {TRUTH, DECOY}
    free = ns.NeuronSet(best, n_layers=3, d_mlp=29)
    proof = ns.verify(planted, free, rows, **ASK)
    assert proof.passed
    assert list(proof.verified) == [TRUTH]
    assert {(m["layer"], m["index"]): m["how"] for m in proof.members}[TRUTH] == "alone"


def test_a_neuron_that_refuses_everything_has_nothing_to_explain(prompts: ns.PromptSet):
    proof = ns.verify(plant(refuses=False), set_of(TRUTH), prompts, **ASK)
    assert not proof.passed
    assert not len(proof.verified)
    assert {c.verdict for c in proof.claims} == {"not tested"}
    assert proof.reason.startswith("not tested: the model refuses harmful prompts no more than benign ones")
    assert proof.to_dict()["claims"][0]["effect"] == [None, None, None]


def test_a_set_that_moves_benign_prompts_as_much_is_not_specific(prompts: ns.PromptSet):
    proof = ns.verify(plant(always=True), set_of(TRUTH, LOUD), prompts, **ASK)
    specific = claim(proof, "specificity")
    assert specific.verdict == "failed"
    assert specific.effect.value < -0.25
    assert "zero ablation" in specific.note
    assert not proof.passed
    assert "specificity" in proof.reason


def test_members_are_ablated_one_by_one_to_their_benign_mean(prompts: ns.PromptSet):
    proof = ns.verify(plant(always=True), set_of(LOUD), prompts, draws=1, **ASK)
    alone = proof.members[0]["alone"][0]
    assert alone == pytest.approx(claim(proof, "necessity: mean").effect.value, abs=1e-6)
    assert abs(alone - claim(proof, "necessity: zero").effect.value) > 0.01


# -- numbers against an independent computation -------------------------------------------------------------
def test_zero_ablation_equals_the_same_by_hand(planted: ns.Model, prompts: ns.PromptSet, truth: ns.Proof):
    def margin(prompt: ns.Prompt, ablate: bool) -> float:
        encoding, n = tiny.encode(planted, prompt)

        def change(layer: int, h: torch.Tensor) -> torch.Tensor | None:
            if layer != LAYER or not ablate:
                return None
            h = h.clone()
            h[:, n - 1, TRUTH[1]] = 0
            return h

        with torch.no_grad(), tiny.hooked(tiny.downs(planted), change):
            logits = planted.module(**encoding).logits[0, -1]
        return float(logits[WORD["sorry"]] - logits[WORD["sure"]])

    pairs = prompts.pairs()
    clean = np.array([margin(h, False) for h, _ in pairs])
    benign = np.array([margin(b, False) for _, b in pairs])
    ablated = np.array([margin(h, True) for h, _ in pairs])
    expected = (clean - ablated).mean() / (clean - benign).mean()
    assert claim(truth, "necessity: zero").effect.value == pytest.approx(expected, abs=1e-3)
    gap = np.mean([row["gap"] for row in truth.cells.values()])
    assert gap == pytest.approx((clean - benign).mean(), rel=1e-3)


def test_graded_answers_turn_from_refusal_to_compliance(truth: ns.Proof):
    rates = {name: value.value for name, value in truth.answers.items()}
    assert rates == {
        "harmful, clean": 1.0,
        "benign, clean": 0.0,
        "harmful, set ablated": 0.0,
        "harmful, random set ablated": 1.0,
        "benign, set ablated": 0.0,
    }


def test_cells_that_do_not_refuse_are_left_to_the_experiments(planted: ns.Model):
    """Swahili prompts get a word that switches refusal off: nothing there to explain, but something to learn."""
    blind = {"bomb": "cake", "knife": "bread", "ring": "house"}
    rows = tiny.records(split="confirm")
    for row in rows:
        if row["language"] == "sw" and row["label"] == "harmful":
            words = row["prompt"].split()
            row["prompt"] = " ".join([*words[:-1], "no", blind[words[-1]]])
    proof = ns.verify(planted, set_of(TRUTH), ns.PromptSet.from_records(rows), draws=25, **ASK)
    assert proof.passed
    assert list(proof.cells) == ["en/text"]
    assert proof.n_pairs == 15
    answered = {r["prompts"]: r["n"] for r in proof.experiments["recognition"]}
    assert answered["harmful, answered"] == 15
    crossed = {(r["source"], r["target"]): r["effect"][0] for r in proof.experiments["crossing"]}
    assert crossed["en/text", "sw/text"] > 0.8


def test_utility_is_graded_where_prompts_say_what_is_right(planted: ns.Model):
    rows = tiny.records(split="confirm")
    for row in rows:
        row["expect"] = ["sure"]
    prompts = ns.PromptSet.from_records(rows)
    proof = ns.verify(planted, set_of(TRUTH), prompts, draws=25, **ASK)
    assert claim(proof, "utility").verdict == "passed"
    assert claim(proof, "utility").effect.value == 0


@pytest.mark.parametrize(("spoilt", "verdict"), [(0, "passed"), (1, "passed"), (12, "failed")])
def test_utility_fails_when_too_many_benign_answers_go_wrong(spoilt: int, verdict: str):
    lab = SimpleNamespace(clusters=np.array([f"request {i}" for i in range(48)], dtype=object), seed=0)
    before = [Grade(False, True)] * 48
    after = [Grade(False, i >= spoilt) for i in range(48)]
    found = measure_utility(before, after, list(range(48)), lab)  # type: ignore[arg-type]
    assert found.verdict == verdict
    assert found.effect.value == pytest.approx(-spoilt / 48)


def test_cells_are_reported_one_by_one(truth: ns.Proof):
    assert {str(c) for c in truth.cells} == {"en/text", "sw/text"}
    for row in truth.cells.values():
        assert row["n_pairs"] == 15
        assert row["effect"][0] > 0.85 > row["strongest control"]
        assert row["p holm"] == pytest.approx(2 / 201)  # two cells are claimed
        assert row["verdict"] == "passed"


# -- controls -----------------------------------------------------------------------------------------------
def test_random_controls_have_as_many_neurons_per_layer_and_none_of_the_set(planted: ns.Model):
    neurons = set_of((0, 1), (0, 2), (2, 5), (2, 6), (2, 7))
    drawn = [random_like(neurons, planted, np.random.default_rng(i)) for i in range(200)]
    assert all(control.per_layer() == neurons.per_layer() and not control & neurons for control in drawn)
    every = set().union(*(set(control) for control in drawn))
    assert every == {(layer, i) for layer in (0, 2) for i in range(29)} - set(neurons)


def test_matched_controls_are_as_loud_and_write_as_much():
    loud = np.exp(np.random.default_rng(0).normal(0, 3, (2, 3, 290)))
    rank = loud.argsort(axis=2).argsort(axis=2)
    neurons = ns.NeuronSet([(0, int(i)) for i in (7, 8, 200)] + [(2, 100)])
    for control in matched_like(neurons, loud, 20, np.random.default_rng(1)):
        assert control.per_layer() == neurons.per_layer()
        assert not control & neurons
        for layer, index in neurons:
            apart = [np.abs(rank[:, layer, index] - rank[:, a, b]).sum() for a, b in control if a == layer]
            everyone = np.sort(np.abs(rank[:, layer] - rank[:, layer, index, None]).sum(axis=0))
            assert min(apart) <= everyone[25]


def test_two_hundred_draws_of_each_kind_by_default_and_they_differ(truth: ns.Proof):
    found = claim(truth, "necessity: mean")
    assert {k: len(v) for k, v in found.controls.items()} == {
        "random": 200, "matched": 200, "permuted": 200, "next rank": 1, "general": 1, "language": 1,
    }  # fmt: skip
    assert truth.controls["sets"] == {k: len(v) for k, v in found.controls.items()}
    assert len(set(found.controls["random"])) > 10


def test_controls_hold_as_many_neurons_per_layer_and_none_of_the_set(planted: ns.Model):
    rows = tiny.prompts()
    neurons = set_of(TRUTH, (0, 4), (0, 9), cell="en/text", method="effect_size")
    loud = np.random.default_rng(0).random((2, 3, 29))
    controls = control_sets(planted, neurons, rows, loud, draws=7)
    assert set(controls.drawn) == {"random", "matched", "permuted"}
    assert set(controls.fixed) == {"next rank", "general", "language"}
    for control in controls.all():
        assert control.per_layer() == neurons.per_layer()
        assert not control & neurons
    assert DECOY in controls.fixed["next rank"]  # the same selection would have taken it next
    assert LOUD in controls.fixed["general"]
    assert 0 <= controls.recovered < 1


def test_a_control_that_cannot_be_had_is_named(planted: ns.Model):
    rows = tiny.prompts(languages=["en"])
    controls = control_sets(planted, set_of(TRUTH), rows, np.ones((2, 3, 29)), draws=2)
    assert "language" not in controls.fixed
    assert "two languages" in controls.missing["language"]


def test_too_few_draws_can_never_pass_and_the_claim_says_why(planted: ns.Model, prompts: ns.PromptSet):
    proof = ns.verify(planted, set_of(TRUTH), prompts, draws=4, **ASK)
    assert not proof.passed
    assert "with 4 draws p cannot fall below 0.20" in claim(proof, "necessity: mean").note


def test_one_control_that_does_more_is_enough_to_fail():
    """Single sets count as much as drawn ones."""
    lab = SimpleNamespace(
        effect=lambda c: Interval(float(c.mean()), float(c.mean()) - 0.01, float(c.mean()) + 0.01),
        effects=lambda c: c.mean(axis=1),
    )
    controls = Controls({"random": [set_of(DECOY)] * 30}, {"next rank": set_of(DECOY)})
    for reached, verdict in ((0.4, "passed"), (0.6, "failed")):
        change = np.zeros((32, 4))
        change[0], change[-1] = 0.5, reached
        found = measure_effect(lab, "necessity: mean", change, controls)  # type: ignore[arg-type]
        assert found.verdict == verdict
        assert found.note == ("" if verdict == "passed" else "does not beat: next rank")


def test_shuffled_labels_seldom_find_the_set_again(planted: ns.Model):
    neurons = set_of(TRUTH, DECOY, cell="en/text", method="effect_size")
    controls = control_sets(planted, neurons, tiny.prompts(), np.ones((2, 3, 29)), draws=20)
    assert controls.recovered < 0.7  # with the labels as they are it is 1


def test_random_controls_take_what_is_left_and_never_a_member(planted: ns.Model):
    most = ns.NeuronSet([(1, i) for i in range(20)], n_layers=3, d_mlp=29)
    drawn = random_like(most, planted, np.random.default_rng(0), leave_out=set_of((1, 28)))
    assert set(drawn) == {(1, i) for i in range(20, 28)}


def test_a_cell_that_passes_alone_may_fail_as_one_of_several(planted: ns.Model, prompts: ns.PromptSet):
    """24 draws: p = 1/25 = 0.04 in each cell, which Holm's correction over several cells takes above 0.05."""
    proof = ns.verify(planted, set_of(TRUTH), prompts, draws=24, **ASK)
    assert len(proof.cells) > 1
    for row in proof.cells.values():
        assert row["p"] == pytest.approx(0.04)
        assert (row["p holm"] <= 0.05) == (row["verdict"] == "passed")
    assert "failed" in {row["verdict"] for row in proof.cells.values()}


# -- held-out prompts ---------------------------------------------------------------------------------------
def test_prompts_that_selection_saw_are_refused(planted: ns.Model, prompts: ns.PromptSet):
    seen = set_of(TRUTH, seen=[prompts[0].cluster])
    with pytest.raises(ns.InputError, match=r"were seen when the neurons were selected \(first: id 'en-text-0-0-harm"):
        ns.verify(planted, seen, prompts, **ASK)


def test_only_confirm_prompts_are_used_where_there_are_any(planted: ns.Model):
    rows = tiny.records()
    for row in rows:
        row["split"] = "confirm" if row["pair_id"].startswith("0-") else "discover"
    proof = ns.verify(planted, set_of(TRUTH), ns.PromptSet.from_records(rows), draws=1, **ASK)
    assert proof.n_pairs == 6


def test_a_verified_set_remembers_what_it_was_confirmed_on(truth: ns.Proof, prompts: ns.PromptSet):
    assert truth.verified.provenance["verified_on"] == prompts.hash()
    assert truth.verified.provenance["seen"] == sorted({p.cluster for p in prompts})


def test_without_twins_a_random_benign_prompt_of_the_cell_stands_in(planted: ns.Model):
    rows = [{k: v for k, v in row.items() if k != "pair_id"} for row in tiny.records()]
    proof = ns.verify(planted, set_of(TRUTH), ns.PromptSet.from_records(rows), **ASK)
    assert not proof.paired
    assert proof.n_pairs == 30
    assert proof.passed


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
            {"refusals": ["  "], "prompts": ns.PromptSet.from_records(UNTARGETED)},
            "refusal prefixes of 'en' tokenise to nothing",
        ),
        ({"compliances": ["sorry"], "prompts": ns.PromptSet.from_records(UNTARGETED)}, "share their first tokens"),
        ({"draws": 0}, "draws=0; at least 1"),
        ({"prompts": tiny.prompts().where(label="harmful")}, "benign"),
        ({"refusals": [], "prompts": ns.PromptSet.from_records(UNTARGETED)}, "no refusal prefixes for language"),
    ],
)
def test_bad_input_is_one_clear_line(planted: ns.Model, prompts: ns.PromptSet, change: dict[str, Any], message: str):
    options: dict[str, Any] = {"neurons": set_of(TRUTH), "prompts": prompts, **ASK, **change}
    with pytest.raises(ns.InputError, match=message) as caught:
        ns.verify(planted, options.pop("neurons"), options.pop("prompts"), **options)
    assert "\n" not in str(caught.value)


# -- the same again, and shown ------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_proof_and_another_seed_other_controls(planted: ns.Model, prompts: ns.PromptSet):
    first, again, other = (
        ns.verify(planted, set_of(TRUTH), prompts, draws=3, seed=seed, **ASK).to_dict() for seed in (1, 1, 2)
    )
    assert first == again
    assert first["claims"][0]["controls"] != other["claims"][0]["controls"]


def test_verify_leaves_the_model_as_it_was(prompts: ns.PromptSet):
    model = plant()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    ns.verify(model, set_of(TRUTH), prompts, draws=1, **ASK)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.module.modules())


def test_a_proof_prints_as_a_table_with_its_strongest_control(truth: ns.Proof):
    frame = truth.to_frame()
    assert list(frame["claim"]) == [*NECESSITY, "sufficiency: patch", "specificity", "utility"]
    row = frame.iloc[1]
    assert row["strongest control"] == max(v for values in truth.claims[1].controls.values() for v in values)
    assert row["strongest control"] in truth.claims[1].controls[row["which"]]
    assert str(truth).startswith("PASSED: ablating the set removes refusals")
    assert "<b>Passed.</b>" in truth._repr_html_()


def test_the_figure_shows_every_control(truth: ns.Proof):
    drawn = {t.name: len(t.x) for t in truth.figure().data}
    assert drawn == {"random": 1000, "matched": 1000, "permuted": 1000, "next rank": 5, "general": 5, "language": 5,
                     "the set": 7}  # fmt: skip


@pytest.mark.parametrize("what", ["dose", "size", "crossing"])
def test_experiments_have_figures(truth: ns.Proof, what: str):
    assert truth.figure(what).data
    with pytest.raises(ns.InputError, match="figure 'pie' is unknown"):
        truth.figure("pie")
