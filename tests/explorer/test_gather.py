"""A view's numbers are those of plain hooks, of a proof and of captured moments; what cannot be known is said."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import planted
import pytest
import tiny
from PIL import Image

import neuronshield as ns
from neuronshield.explorer.balance import balanced
from neuronshield.explorer.gather import LEAST, Known, gather
from neuronshield.explorer.page import document
from neuronshield.explorer.replies import RANDOM_ABLATED, SET_ABLATED
from neuronshield.explorer.view import AS_IT_IS, NeuronView, SaidView, View

PAIRS = [(0, 3), (1, 5), (2, 7)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
WHAT: dict[str, Any] = {"max_new_tokens": 3}


def three(value: float) -> float:
    return float(f"{value:.3g}")


def at(view: View) -> list[tuple[int, int]]:
    return [(n.layer, n.index) for n in view.neurons]


@pytest.fixture(scope="module")
def circuit() -> planted.Planted:
    return planted.build("llama", 1, balanced=True)


@pytest.fixture(scope="module")
def refusing(circuit: planted.Planted) -> ns.Model:
    return ns.load(circuit.model.module, processor=tiny.tokenizer(), refusals=["sorry"], compliances=["sure"])


@pytest.mark.parametrize("pictures", [False, True])
def test_activations_and_differences_are_those_of_hooks_on_one_prompt_at_a_time(
    llama: ns.Model, llava: ns.Model, pictures: bool
):
    model = llava if pictures else llama
    sample = balanced(tiny.prompts(pictures=pictures), 16)
    view = gather(model, NEURONS, sample, **WHAT)
    last: dict[tuple[str, str], list[np.ndarray]] = {}
    for prompt, shown in zip(sample, view.prompts, strict=True):
        h, _, _ = tiny.activations(model, prompt)
        want = np.stack([h[:, layer, index] for layer, index in at(view)])
        np.testing.assert_allclose(shown.values, want, rtol=6e-3, atol=1e-6)
        assert all(v == three(v) for row in shown.values for v in row)
        assert (shown.id, shown.pair, shown.label, shown.cell) == (
            prompt.id,
            prompt.pair_id,
            prompt.label,
            str(prompt.cell),
        )
        last.setdefault((str(prompt.cell), prompt.label), []).append(want[:, -1])
    for k, neuron in enumerate(view.neurons):
        assert neuron.scale == max(abs(v) for p in view.prompts for v in p.values[k])
        for cell, found in neuron.differences.items():
            want_one = np.mean(last[cell, "harmful"], axis=0)[k] - np.mean(last[cell, "benign"], axis=0)[k]
            assert found == pytest.approx(want_one, rel=1e-4, abs=1e-6)
    assert "https://" not in document(view)


def test_with_captured_moments_differences_are_theirs(llama: ns.Model):
    stats = ns.capture(llama, tiny.prompts(), progress=False)
    view = gather(llama, NEURONS, balanced(tiny.prompts(), 8), known=Known(stats=stats), **WHAT)
    for n in view.neurons:
        for cell, found in n.differences.items():
            means = [stats.moments(label, cell).mean[n.layer, n.index] for label in ("harmful", "benign")]
            assert found == pytest.approx(means[0] - means[1])


def test_a_neuron_planted_to_write_sorry_promotes_refusals_and_comes_before_those_that_do_nothing(
    circuit: planted.Planted, refusing: ns.Model
):
    truth = planted.check(circuit)
    causal = sorted(set(truth["causal"]))[:3]
    decoys, against = sorted(circuit.decoys)[:2], sorted(circuit.anti_refusal)[:1]
    chosen = ns.NeuronSet([*causal, *decoys, *against], **planted.SHAPE)
    view = gather(refusing, chosen, balanced(planted.prompts(), 24), **WHAT)
    found: dict[tuple[int, int], NeuronView] = dict(zip(at(view), view.neurons, strict=True))
    assert set(at(view)[:3]) == set(causal)
    for neuron in causal:
        assert found[neuron].kind == "refusal-promoting"
        assert found[neuron].promoted[0] == "sorry"
        assert found[neuron].effect is not None
        assert found[neuron].effect.value == pytest.approx(truth["causal"][neuron], rel=0.25)
    assert found[against[0]].kind == "anti-refusal"
    assert found[against[0]].effect.value < 0
    assert all(abs(found[d].effect.value) < 0.02 for d in decoys)
    effects = [n.effect.value for n in view.neurons if n.effect]
    assert effects == sorted(effects, reverse=True)


def test_statuses_effects_and_kinds_are_those_of_the_proof(circuit: planted.Planted, refusing: ns.Model):
    rows = planted.prompts()
    chosen = ns.NeuronSet(sorted(circuit.separating), **planted.SHAPE)
    proof = ns.verify(refusing, chosen, rows, draws=1, graded=2, progress=False)
    proof = replace(proof, verified=proof.candidates | proof.verified)  # one draw proves nothing
    assert len(proof.verified)
    assert len(proof.anti_refusal)
    assert len(proof.backups)
    view = gather(refusing, chosen, balanced(rows, 8), known=Known(proof=proof), **WHAT)
    assert set(at(view)) == set(chosen | proof.backups)
    members = {m.neuron: m for m in proof.members}
    for neuron, shown in zip(at(view), view.neurons, strict=True):
        name = {"verified": proof.verified, "anti-refusal": proof.anti_refusal, "backup": proof.backups}
        assert (
            neuron in name[shown.status] if shown.status != "candidate" else all(neuron not in s for s in name.values())
        )
        member = members.get(neuron)
        assert shown.effect == (None if member is None else member.alone)
        if member is not None and member.sign is not None:
            assert (shown.kind, shown.writes) == (member.sign.kind, member.sign.writes)


def test_answers_are_those_of_the_model_and_of_its_ablation(llama: ns.Model):
    sample = balanced(tiny.prompts(), 8)
    stats = ns.capture(llama, tiny.prompts(), progress=False)
    view = gather(llama, NEURONS, sample, known=Known(stats=stats), seed=3, **WHAT)
    assert view.conditions == (AS_IT_IS, SET_ABLATED, RANDOM_ABLATED)
    random = ns.random_like(NEURONS, llama, seed=3)
    wanted = {
        AS_IT_IS: None, SET_ABLATED: ns.Intervention.mean_of(NEURONS, stats, sample),
        RANDOM_ABLATED: ns.Intervention.mean_of(random, stats, sample),
    }  # fmt: skip
    for name, change in wanted.items():
        said = ns.generate(llama, sample, intervention=change, max_new_tokens=3)
        assert [p.answers[name].text for p in view.prompts] == said
    for k, neuron in enumerate(at(view)):
        change = ns.Intervention.mean_of(ns.NeuronSet([neuron], n_layers=3, d_mlp=29), stats, sample)
        said = ns.generate(llama, sample, intervention=change, max_new_tokens=3)
        assert [p.alone[k].text for p in view.prompts if p.alone[k]] == said


def test_the_ablation_of_a_refusal_circuit_turns_refusals_into_compliance(circuit: planted.Planted, refusing: ns.Model):
    causal = ns.NeuronSet(sorted(circuit.causal | circuit.backups), **planted.SHAPE)
    view = gather(refusing, causal, balanced(planted.prompts(), 8), **WHAT)
    harmful = [p for p in view.prompts if p.label == "harmful"]
    outcomes = {name: {p.answers[name].outcome for p in harmful} for name in view.conditions}
    assert outcomes == {AS_IT_IS: {"refused"}, SET_ABLATED: {"complied"}, RANDOM_ABLATED: {"refused"}}


def test_a_cell_without_benign_prompts_anywhere_is_ablated_to_the_mean_of_the_captured_cells(llama: ns.Model):
    english = ns.PromptSet([p for p in tiny.prompts() if p.language == "en"])
    stats = ns.capture(llama, english, progress=False)
    rows = [english.where(label="harmful")[0], tiny.prompts().where(language="sw", label="harmful")[0]]
    view = gather(llama, NEURONS, rows, known=Known(stats=stats), **WHAT)
    change = ns.Intervention.mean_of(NEURONS, stats, cell="en/text")
    assert [p.answers[SET_ABLATED].text for p in view.prompts] == ns.generate(
        llama, rows, intervention=change, max_new_tokens=3
    )


def test_known_answers_are_not_generated_again(llama: ns.Model):
    sample = balanced(tiny.prompts(), 4)
    given = {AS_IT_IS: {sample[0].id: SaidView("known", "refused")}, "shielded": {sample[1].id: SaidView("no", "")}}
    view = gather(llama, NEURONS, sample, known=Known(answers=given), **WHAT)
    assert view.conditions == (AS_IT_IS, SET_ABLATED, RANDOM_ABLATED, "shielded")
    assert view.prompts[0].answers[AS_IT_IS] == SaidView("known", "refused")
    assert view.prompts[1].answers[AS_IT_IS].text == ns.generate(llama, sample[1], max_new_tokens=3)
    assert ["shielded" in p.answers for p in view.prompts] == [False, True, False, False]


def test_the_prompts_that_are_left_are_ablated_to_the_means_of_their_own_cells(
    llama: ns.Model, monkeypatch: pytest.MonkeyPatch
):
    sample, stats = balanced(tiny.prompts(), 4), ns.capture(llama, tiny.prompts(), progress=False)
    asked: list[tuple[list[ns.Prompt], ns.Intervention]] = []

    def spied(
        model: ns.Model, prompts: list[ns.Prompt], *, intervention: ns.Intervention | None, **options: Any
    ) -> list[str]:
        if intervention is not None and intervention.neurons == NEURONS:
            asked.append((prompts, intervention))
        return ns.generate(model, prompts, intervention=intervention, **options)

    monkeypatch.setattr("neuronshield.explorer.replies.generate", spied)
    given = {SET_ABLATED: {sample[0].id: SaidView("known", "")}}
    gather(llama, NEURONS, sample, known=Known(stats=stats, answers=given), **WHAT)
    ((prompts, change),) = asked
    assert [p.id for p in prompts] == [p.id for p in sample[1:]]
    np.testing.assert_allclose(change.value, [stats.moments("benign", p.cell).mean for p in prompts], rtol=1e-5)


def test_effects_are_of_cells_in_which_the_model_tells_the_labels_apart(circuit: planted.Planted, refusing: ns.Model):
    refused = [replace(p, split=None) for p in balanced(planted.prompts(), 12)]
    words = ["one", "two", "red", "blue", "green", "step"]
    answered = [  # no harm is in them, so that neither label is refused
        replace(
            p,
            id=f"{p.id}-sw",
            language="sw",
            prompt=f"{words[k // 2 % 6]} {p.label} bake bread",
            pair_id=f"sw-{k // 2}",
        )
        for k, p in enumerate(refused)
    ]
    chosen = ns.NeuronSet(sorted(circuit.causal)[:3], **planted.SHAPE)
    mixed, alone = (gather(refusing, chosen, rows, **WHAT) for rows in ([*refused, *answered], refused))
    assert [n.effect for n in mixed.neurons] == [pytest.approx(n.effect, abs=1e-5) for n in alone.neurons]
    assert len(mixed.prompts) == 2 * len(alone.prompts)


def test_prompts_without_labels_to_compare_and_of_unknown_languages_are_shown_and_what_is_not_known_is_said(
    llama: ns.Model,
):
    plain = gather(llama, NEURONS, balanced([ns.Prompt("1", "how do i bake bread", "benign")], 4), **WHAT)
    assert all(n.effect is None and n.differences == {"en/text": None} for n in plain.neurons)
    assert any("was not measured" in note for note in plain.notes)
    foreign = [replace(p, language="yo", target=None) for p in tiny.prompts()[:4]]
    english = ns.load(
        llama.module, processor=tiny.tokenizer(), refusals={"en": ["sorry"]}, compliances={"en": ["sure"]}
    )
    view = gather(english, NEURONS, foreign, **WHAT)
    assert view.languages == ("yo",)
    assert any("'yo'" in note and "English" in note for note in view.notes)
    assert all(n.promoted for n in view.neurons)
    assert "not measured" in document(view)


def test_of_many_neurons_and_long_prompts_the_strongest_are_shown(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    everything = ns.NeuronSet([(layer, i) for layer in (0, 1) for i in range(29)], n_layers=3, d_mlp=29)
    sample = balanced(tiny.prompts(), 4)
    whole = gather(llama, everything, sample, **WHAT)
    monkeypatch.setattr("neuronshield.explorer.gather.VALUES", 1)
    view = gather(llama, everything, sample, **WHAT)
    largest = sorted(whole.neurons, key=lambda n: -sum(abs(d or 0) for d in n.differences.values()))[:LEAST]
    kept = {(n.layer, n.index) for n in largest}
    assert at(view) == [name for name in at(whole) if name in kept]
    assert list(view.neurons) == [n for n in whole.neurons if (n.layer, n.index) in kept]
    assert any(f"Of 58 neurons the {LEAST} that differ most" in note for note in view.notes)


def test_a_set_of_whole_layers_has_no_random_set(llama: ns.Model):
    layer = ns.NeuronSet([(1, i) for i in range(29)], n_layers=3, d_mlp=29)
    view = gather(llama, layer, balanced(tiny.prompts(), 4), **WHAT)
    assert view.conditions == (AS_IT_IS, SET_ABLATED)
    assert any("no answer with a random set" in note for note in view.notes)


def test_neurons_of_another_model_are_refused(llama: ns.Model):
    with pytest.raises(ns.InputError, match="explore"):
        gather(llama, ns.NeuronSet([]), balanced(tiny.prompts(), 4), **WHAT)
    with pytest.raises(ns.InputError):
        gather(llama, ns.NeuronSet([(7, 0)]), balanced(tiny.prompts(), 4), **WHAT)


@pytest.mark.parametrize("grid", [(3, 3)])
def test_pictures_keep_their_pixels_and_their_grid(llava: ns.Model, grid: tuple[int, int]):
    sample = balanced([p for p in tiny.prompts(pictures=True) if p.images], 4)
    view = gather(llava, NEURONS, sample, **WHAT)
    assert {p.pictures[0].grid for p in view.prompts} == {grid}
    for prompt, shown in zip(sample, view.prompts, strict=True):
        data = b64decode(shown.pictures[0].source.partition(",")[2])
        np.testing.assert_array_equal(np.array(Image.open(BytesIO(data))), np.array(prompt.load_images()[0]))
