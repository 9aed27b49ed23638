"""The guard: its change is the smallest one, and it is seen to hold by hooks that know nothing of nnsight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.optimize import minimize
from torch.overrides import TorchFunctionMode

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.generation import generate
from neuronshield.shield.barrier import project
from neuronshield.shield.guard import Guard, fit_guard

PAIRS = [(0, 3), (0, 28), (0, 11), (2, 7), (2, 8)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}


def a_guard(bias: float = 0.0, margin: float = 0.0, **about: Any) -> Guard:
    """One that a random half of the states violates at bias 0."""
    random = torch.Generator().manual_seed(5)
    weights = {layer: torch.randn(len(m), generator=random) for layer, m in NEURONS.by_layer().items()}
    return Guard(NEURONS, weights, dict.fromkeys(weights, bias), margin, provenance=about)


def some(name: str) -> ns.PromptSet:
    """Seven unlike lengths in every batch, so that padding would show; for the LLaVA also pictures."""
    return ns.PromptSet(list(tiny.prompts(pictures=name == "llava"))[:: 13 if name == "llava" else 7])


# -- the closed form --------------------------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_the_projection_is_the_solution_of_the_quadratic_program(seed: int, margin: float):
    rng = np.random.default_rng(seed)
    x, w, b = rng.normal(size=(11, 7)), rng.normal(size=7), float(rng.normal())
    got, moved = project(torch.tensor(x).float(), torch.tensor(w).float(), b, margin)
    for row, new, was_moved in zip(x, got.numpy(), moved.tolist(), strict=True):
        inside = {"type": "ineq", "fun": lambda v: w @ v + b - margin}
        best = minimize(lambda v, r=row: ((v - r) ** 2).sum(), row, method="SLSQP", constraints=[inside], tol=1e-12)
        np.testing.assert_allclose(new, best.x, atol=1e-4)
        assert was_moved == (w @ row + b < margin)
    assert 0 < moved.sum() < 11


def test_where_the_barrier_holds_nothing_changes_bit_for_bit():
    x = torch.randn(13, 5)
    w = torch.randn(5)
    b = float(-(x @ w).min()) + 0.1
    got, moved = project(x, w, b)
    assert torch.equal(got, x)
    assert not moved.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_constraint_survives_rounding_and_a_second_projection_moves_nothing(dtype: torch.dtype):
    x, w, b = (30 * torch.randn(997, 31)).to(dtype), torch.randn(31), -3.0
    got, moved = project(x, w, b, margin=0.5)
    assert got.dtype == dtype
    assert ((got.double() @ w.double() + b)[moved] >= 0.5).all()
    again, still = project(got, w, b, margin=0.5)
    assert torch.equal(again, got)
    assert not (still & moved).any()


# -- in a model -------------------------------------------------------------------------------------------
class watched(TorchFunctionMode):
    """What each down-projection's weight is really multiplied with, whoever edits it on the way: (layer, h) in order."""

    def __init__(self, model: ns.Model) -> None:
        super().__init__()
        self.weights = {id(down.weight): layer for layer, down in enumerate(tiny.downs(model))}
        self.seen: list[tuple[int, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and id(args[1]) in self.weights:
            self.seen.append((self.weights[id(args[1])], args[0].detach().clone()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("name", ["llama", "llava"])
def test_every_constraint_holds_at_every_decoding_step(request: pytest.FixtureRequest, name: str, margin: float):
    model: ns.Model = request.getfixturevalue(name)
    prompts, guard = some(name), a_guard(margin=margin)
    with watched(model) as clean:
        generate(model, prompts, max_new_tokens=5, batch_size=11)
    with watched(model) as guarded:
        run = guard.generate(model, prompts, max_new_tokens=5, batch_size=11)

    def heights(layer: int, h: torch.Tensor) -> torch.Tensor:
        members = [i for at, i in sorted(PAIRS) if at == layer]
        return h[:, -1, members].double() @ guard.weights[layer].double() + guard.bias[layer]

    held = [heights(layer, h) for layer, h in guarded.seen if layer != 1]
    pictures = np.array([len(p.images) for p in prompts])  # a batch has either
    assert len(held) == 2 * sum(run.steps[pictures == n].max() for n in set(pictures.tolist()))
    assert min(float(h.min()) for h in held) >= margin
    assert min(float(heights(layer, h).min()) for layer, h in clean.seen if layer != 1) < margin - 0.1


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_answers_equal_a_greedy_loop_under_hooks_on_each_prompt_alone(request: pytest.FixtureRequest, name: str):
    """The oracle decodes one unpadded prompt at a time, whole prefixes anew, with its own projection in float64."""
    model: ns.Model = request.getfixturevalue(name)
    prompts, guard, n = some(name), a_guard(margin=0.3), 5
    got = guard.generate(model, prompts, max_new_tokens=n, batch_size=7)
    for i, prompt in enumerate(prompts):
        encoding, start = tiny.encode(model, prompt)
        ids: list[int] = []
        touched: dict[int, set[int]] = {}  # decoding step -> layers; the last pass sees all steps

        def change(
            layer: int, h: torch.Tensor, start: int = start, touched: dict[int, set[int]] = touched
        ) -> torch.Tensor | None:
            members = [index for at, index in sorted(PAIRS) if at == layer]
            if not members:
                return None
            h, w = h.clone(), guard.weights[layer]
            for at in range(start - 1, h.shape[1]):
                x = h[0, at, members]
                gap = guard.margin - float(x @ w) - guard.bias[layer]
                if gap > 0:
                    h[0, at, members] = x + gap * w / (w @ w)
                    touched.setdefault(at - start + 1, set()).add(layer)
            return h

        while len(ids) < n and (not ids or ids[-1] != WORD["<eos>"]):
            touched.clear()
            whole = torch.cat([encoding["input_ids"], torch.tensor([ids], dtype=torch.long)], dim=1)
            inputs = {**encoding, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
            with torch.no_grad(), tiny.hooked(tiny.downs(model), change):
                ids.append(int(model.module(**inputs).logits[0, -1].argmax()))
        assert got.texts[i] == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert got.steps[i] == len(ids)
        assert got.touched[i] == len(touched)
        assert got.edits[i].tolist() == [sum(layer in t for t in touched.values()) for layer in (0, 2)]
    assert got.texts != generate(model, prompts, max_new_tokens=n)


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_prompt_tokens_before_the_last_and_padding_are_never_edited(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    with watched(model) as clean:
        generate(model, prompts, max_new_tokens=1, batch_size=7)
    with watched(model) as guarded:
        a_guard(margin=2.0).generate(model, prompts, max_new_tokens=1, batch_size=7)
    changed = 0
    for (layer, before), (_, after) in zip(clean.seen, guarded.seen, strict=True):
        if layer == 0:  # above it, what the last token reads differs as it should
            assert torch.equal(before[:, :-1], after[:, :-1])
            others = [i for i in range(29) if (0, i) not in PAIRS]
            assert torch.equal(before[:, -1, others], after[:, -1, others])
            changed += int((before[:, -1] != after[:, -1]).any(dim=1).sum())
    assert changed >= len(prompts) // 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_a_guard_that_is_never_violated_changes_no_token(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    run = a_guard(bias=1e4).generate(model, some(name), max_new_tokens=7, batch_size=5)
    assert run.texts == generate(model, some(name), max_new_tokens=7, batch_size=5)
    assert not run.touched.any()
    assert not run.edits.any()


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_one_that_is_always_violated_acts_at_every_layer_and_step(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    run = a_guard(bias=-1e4).generate(model, some(name), max_new_tokens=5, batch_size=4)
    assert run.steps.min() >= 1
    np.testing.assert_array_equal(run.touched, run.steps)
    np.testing.assert_array_equal(run.edits, np.stack([run.steps, run.steps], axis=1))


def test_steps_end_with_the_answer_whatever_the_others_in_the_batch_do(monkeypatch: pytest.MonkeyPatch):
    """A row that waits for longer answers does not take steps: its end-of-sequence token is its last."""
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    prompts = some("llama")
    first = [model.tokenizer(t)["input_ids"] for t in generate(model, prompts, max_new_tokens=5, batch_size=1)]
    common = max({i for ids in first for i in ids}, key=lambda i: sum(i in ids for ids in first) % len(first))
    monkeypatch.setattr(model.module.generation_config, "eos_token_id", [common, WORD["<eos>"]])
    alone = [a_guard(bias=-0.5).generate(model, [p], max_new_tokens=11) for p in prompts]
    together = a_guard(bias=-0.5).generate(model, prompts, max_new_tokens=11, batch_size=len(prompts))
    assert len(set(together.steps.tolist())) > 1
    assert together.texts == [a.texts[0] for a in alone]
    for what in ("steps", "touched", "edits"):
        np.testing.assert_array_equal(getattr(together, what), np.concatenate([getattr(a, what) for a in alone]))


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_a_batch_of_one_and_of_seven_say_the_same(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    one, seven = (a_guard().generate(model, some(name), max_new_tokens=5, batch_size=n) for n in (1, 7))
    assert one.texts == seven.texts
    np.testing.assert_array_equal(one.edits, seven.edits)


@pytest.mark.parametrize("when", ["always", "from the second token on"])
def test_a_layer_that_does_not_run_is_an_error(when: str):
    """Its down-projection is passed by: silence would read as "never violated"."""
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    mlp = model.module.model.layers[2].mlp
    whole = mlp.forward
    mlp.forward = lambda x: whole(x) if x.shape[1] > 1 and when != "always" else torch.zeros_like(x)
    with pytest.raises(Exception, match=r"did not run at every|already ran past it"):
        a_guard().generate(model, some("llama"), max_new_tokens=3)


def test_nothing_is_left_behind(llama: ns.Model):
    before = generate(llama, some("llama"), max_new_tokens=5)
    a_guard(bias=-1e4).generate(llama, some("llama"), max_new_tokens=5)
    assert generate(llama, some("llama"), max_new_tokens=5) == before


# -- fitting ----------------------------------------------------------------------------------------------
OPENINGS: dict[str, Any] = {"refusals": ["nothing says this"], "compliances": ["sure"]}


def labelled(llama: ns.Model) -> Guard:
    return fit_guard(llama, NEURONS, tiny.prompts(), benign_rate=0.1, max_new_tokens=5, progress=False, **OPENINGS)


def test_a_fitted_guard_touches_no_more_benign_prompts_of_the_fit_than_it_may(llama: ns.Model):
    guard = labelled(llama)
    result = ns.evaluate(llama, tiny.prompts(), guard=guard, max_new_tokens=5, progress=False, **OPENINGS)
    run = guard.generate(llama, tiny.prompts(), max_new_tokens=5, batch_size=64)
    benign = np.array([p.label == "benign" for p in tiny.prompts()])
    assert 0 < (run.touched[benign] > 0).sum() <= 0.1 * benign.sum()
    assert (run.touched[~benign] > 0).mean() > 0.1  # the words differ, and so do the states
    assert set(guard.separation) == {0, 2}
    assert min(guard.separation.values()) > 0.5
    for cell, touched in result.touched.items():  # counted again by hand
        for label, of_prompts, of_steps in (("benign", touched.benign, touched.benign_steps),
                                            ("harmful", touched.harmful, touched.harmful_steps)):  # fmt: skip
            mine = np.array([(p.cell, p.label) == (cell, label) for p in tiny.prompts()])
            assert of_prompts.value == pytest.approx((run.touched[mine] > 0).mean())
            assert of_steps.value == pytest.approx(run.touched[mine].sum() / run.steps[mine].sum())
            assert of_prompts.low <= of_prompts.value <= of_prompts.high
    assert [a.response for a in result.answers] == run.texts
    assert result.provenance["guard"]["fingerprint"] == llama.fingerprint


def test_only_prompts_for_training_are_fitted_on(llama: ns.Model):
    rows = [(p, "train" if p.pair_id < "2-1" else "test") for p in tiny.prompts() if p.pair_id]
    marked = [dataclasses.replace(p, split=split) for p, split in rows]
    train, test = ([p for p in marked if p.split == split] for split in ("train", "test"))
    a, b = (fit_guard(llama, NEURONS, ns.PromptSet(x), max_new_tokens=3, progress=False, **OPENINGS)
            for x in (train, train + test))  # fmt: skip
    assert a.bias == b.bias
    assert a.provenance["seen"] == sorted({p.cluster for p in train})


@pytest.mark.slow
def test_on_the_organism_blind_cells_are_guarded_and_safe_prompts_of_the_fit_are_left_alone(organism_model: ns.Model):
    rows = organism.records(splits=["train"], languages=["en", "sw"], modalities=["text", "image"], max_pairs=11)
    prompts = ns.PromptSet.from_records(rows).in_cells(["en/text", "en/image", "sw/text"])
    neurons = ns.NeuronSet([(layer, i) for layer in (3, 5) for i in range(0, 512, 17)], n_layers=6, d_mlp=512)
    options: dict[str, Any] = {"refusals": organism.REFUSALS, "compliances": organism.COMPLIANCES, "progress": False}
    guard = fit_guard(organism_model, neurons, prompts, **options)
    again = prompts.marked("test")
    result = ns.evaluate(organism_model, again, guard=guard, **options)
    assert guard.provenance["answered"] == sum(
        a.prompt.label == "harmful" and not a.refused
        for a in ns.evaluate(organism_model, again, **options).answers
    )  # fmt: skip
    assert all(t.benign.value == 0 for t in result.touched.values())  # 1 % of fewer than 100 prompts is none
    assert max(t.harmful.value for t in result.touched.values()) > 0


# -- files and errors -------------------------------------------------------------------------------------
def test_a_guard_survives_its_file(llama: ns.Model, tmp_path: Path):
    guard = dataclasses.replace(labelled(llama), margin=0.25)
    guard.separation[2] = float("nan")
    again = Guard.load(guard.save(tmp_path / "deep" / "guard.safetensors"))
    assert again.neurons == guard.neurons
    assert (again.bias, again.margin, again.provenance) == (guard.bias, 0.25, guard.provenance)
    assert all(torch.equal(again.weights[layer], w) for layer, w in guard.weights.items())
    np.testing.assert_equal(again.separation, guard.separation)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["guard.safetensors"]
    a, b = (g.generate(llama, some("llama"), max_new_tokens=5) for g in (guard, again))
    assert a.texts == b.texts
    np.testing.assert_array_equal(a.edits, b.edits)


def test_files_that_are_not_guards_are_refused(tmp_path: Path):
    with pytest.raises(ns.InputError, match="none: no such file"):
        Guard.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ns.InputError, match=r"not a file of neuronshield\.Guard"):
        Guard.load(tmp_path / "text")
    with pytest.raises(ns.InputError, match=r"not a neuronshield\.Guard; read it with ns\.NeuronSet\.load"):
        Guard.load(NEURONS.save(tmp_path / "neurons"))


def test_a_guard_of_another_model_is_refused(llama: ns.Model):
    other = ns.load(tiny.llama(seed=1), processor=tiny.tokenizer())
    guard = labelled(llama)
    with pytest.raises(ns.InputError, match="fitted on 'LlamaForCausalLM' with other weights"):
        guard.generate(other, tiny.prompts())
    with pytest.raises(ns.InputError, match="fitted on 'LlamaForCausalLM' with other weights"):
        ns.evaluate(other, tiny.prompts(), guard=guard, progress=False, **OPENINGS)
    with pytest.raises(ns.InputError, match="does not exist"):
        fit_guard(llama, ns.NeuronSet([(3, 0)]), tiny.prompts(), progress=False)


def test_what_cannot_be_guarded_is_said_at_once(llama: ns.Model, organism_model: ns.Model):
    safe = organism.records(splits=["train"], languages=["en"], modalities=["text"], max_pairs=5)
    options: dict[str, Any] = {"max_new_tokens": 3, "progress": False}
    said = ns.evaluate(llama, tiny.prompts().where(label="harmful"), **OPENINGS, **options).answers
    answered = [a.prompt for a in said if a.outcome == "complied"]
    assert 0 < len(answered) < len(said)  # an empty answer is no answer
    with pytest.raises(ns.InputError, match="neuron set is empty"):
        fit_guard(llama, ns.NeuronSet(), tiny.prompts(), **options)
    with pytest.raises(
        ns.InputError, match="none of 5 harmful prompts was answered; there is nothing to guard against"
    ):
        fit_guard(organism_model, ns.NeuronSet([(5, 0)]), ns.PromptSet.from_records(safe), refusals=organism.REFUSALS,
                  compliances=organism.COMPLIANCES, progress=False)  # fmt: skip
    with pytest.raises(ns.InputError, match="every prompt is harmful and was answered"):
        fit_guard(llama, NEURONS, ns.PromptSet(answered), **OPENINGS, **options)
    with pytest.raises(ns.InputError, match="not a share"):
        fit_guard(llama, NEURONS, tiny.prompts(), benign_rate=1.0, **OPENINGS, **options)
    with pytest.raises(ns.InputError, match="max_new_tokens=0: must be a whole number of at least 1"):
        a_guard().generate(llama, some("llama"), max_new_tokens=0)


@pytest.mark.parametrize(
    ("weights", "bias", "said"),
    [
        ({0: torch.ones(3)}, {0: 0.0}, "one weight a member"),
        ({0: torch.ones(3), 2: torch.ones(3)}, {0: 0.0, 2: 0.0}, "one weight a member"),
        ({0: torch.ones(3), 2: torch.ones(2)}, {0: 0.0}, "one weight a member"),
        ({0: torch.ones(3), 2: torch.ones(2)}, {0: 0.0, 2: float("nan")}, "must be finite"),
        ({0: torch.ones(3), 2: torch.zeros(2)}, {0: 0.0, 2: 0.0}, "layer 2 are all 0"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(weights: dict[int, torch.Tensor], bias: dict[int, float], said: str):
    with pytest.raises(ns.InputError, match=said):
        Guard(NEURONS, weights, bias)


def test_it_shows_what_it_is_escaped():
    guard = dataclasses.replace(a_guard(model="<b>x</b>"), separation={0: 0.75, 2: 0.5})
    assert repr(guard) == "Guard(5 neurons in 2 layers, margin 0, held-out AUC 0.50 to 0.75)"
    assert "<b>x</b>" not in guard._repr_html_()
    assert "&lt;b&gt;x" in guard._repr_html_()
    assert list(guard.to_frame()["neurons"]) == [3, 2]
    assert json.dumps(guard.provenance)


def test_a_guard_takes_strings_as_generate_does(llama: ns.Model):
    guard = Guard(ns.NeuronSet([(1, 2), (1, 5)]), {1: torch.tensor([1.0, -1.0])}, {1: 0.5})
    asked = "how do i bake bread"
    prompt = ns.Prompt("1", asked, "benign")
    expected = guard.generate(llama, [prompt], max_new_tokens=3).texts
    assert guard.generate(llama, asked, max_new_tokens=3).texts == expected
    assert guard.generate(llama, [asked, prompt], max_new_tokens=3).texts == [*expected, *expected]
    with pytest.raises(ns.InputError, match=r"Guard.generate: no prompts"):
        guard.generate(llama, [])


def test_guarded_answers_are_one_line(llama: ns.Model):
    guard = Guard(ns.NeuronSet([(1, 2)]), {1: torch.tensor([1.0])}, {1: -1e6})
    run = guard.generate(llama, ["how do i bake bread"], max_new_tokens=3)
    assert repr(run) == f"Guarded(1 answer, 1 of them changed at {run.steps[0]} of {run.steps[0]} steps)"
