"""The guard: its change is the smallest one, and it is seen to hold by hooks that know nothing of nnsight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import planted_guard
import pytest
import tiny
import torch
from scipy.optimize import minimize
from torch.overrides import TorchFunctionMode

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.generation import generate
from neuronshield.shield.barrier import Barrier, project
from neuronshield.shield.exits import followed, shortfalls
from neuronshield.shield.guard import Guard, fit_guard
from neuronshield.shield.transition import Transition, needed

PAIRS = [(0, 3), (0, 28), (0, 11), (2, 7), (2, 8)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}


#: Asks for much at the next token, so that raises are needed inside the safe set too, some of them beyond the reach.
DEMANDING = Transition(intercept=-0.6, slope=0.5, gain=0.8, reach=0.9, bias=-0.1, spread=1.0)


def a_guard(bias: float = 0.0, margin: float = 0.0, transition: Transition = DEMANDING, **about: Any) -> Guard:
    """One that a random half of the states violates at bias 0, with other barriers for generated tokens."""
    random = torch.Generator().manual_seed(5)
    barriers = {
        layer: (Barrier(torch.randn(len(m), generator=random), bias, transition),
                Barrier(torch.randn(len(m), generator=random), bias, transition))
        for layer, m in NEURONS.by_layer().items()
    }  # fmt: skip
    return Guard(NEURONS, barriers, margin, provenance=about)


def some(name: str) -> ns.PromptSet:
    """Seven unlike lengths in every batch, so that padding would show; for the LLaVA also pictures."""
    return ns.PromptSet(list(tiny.prompts(pictures=name == "llava"))[:: 13 if name == "llava" else 7])


# -- the closed form --------------------------------------------------------------------------------------
@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_the_change_is_the_solution_of_the_quadratic_program(seed: int, margin: float):
    """Against a solver that is given both conditions as they are written, with the reach where it is the limit."""
    rng = np.random.default_rng(seed)
    x, w, b, t = rng.normal(size=(23, 7)), rng.normal(size=7), float(rng.normal()) + 2.0, DEMANDING
    barrier, alpha = Barrier(torch.tensor(w).float(), b, t), 0.9
    h = barrier.heights(torch.tensor(x).float())
    least, unmet = needed(h, t, alpha=alpha, margin=margin)
    got, moved = project(torch.tensor(x).float(), barrier, least)
    for row, new, was_moved, short in zip(x, got.numpy(), moved.tolist(), unmet.tolist(), strict=True):
        now = float(w @ row + b)
        target = alpha * min(now if now > 0 else margin, 1.0)

        def ahead(v: np.ndarray, r: np.ndarray = row, now: float = now) -> float:
            return t.intercept + t.slope * now + t.gain * float(w @ (v - r)) + t.bias

        conditions: list[Any] = [{"type": "ineq", "fun": lambda v: w @ v + b - margin}] * (now <= 0)
        if short:  # as far as a raise was tried
            conditions += [{"type": "ineq", "fun": lambda v, r=row: w @ (v - r) - t.reach}]
        else:
            conditions += [{"type": "ineq", "fun": lambda v, d=target: ahead(v) - d}]
        best = minimize(lambda v, r=row: ((v - r) ** 2).sum(), row, method="SLSQP", constraints=conditions, tol=1e-12)
        np.testing.assert_allclose(new, best.x, atol=2e-4)
        assert was_moved == (not np.allclose(best.x, row, atol=1e-6))
        assert short == (ahead(new) < target - 1e-4)
    assert 0 < moved.sum() < 23
    assert 0 < unmet.sum() < 23


def test_where_both_conditions_hold_nothing_changes_bit_for_bit():
    x = torch.randn(13, 5)
    barrier = Barrier(torch.randn(5), 0.0)
    barrier = dataclasses.replace(barrier, bias=float(-barrier.heights(x).min()) + 0.1)
    least, unmet = needed(barrier.heights(x), Transition(), alpha=1.0, margin=1.0)
    got, moved = project(x, barrier, least)
    assert torch.equal(got, x)
    assert not moved.any()
    assert not unmet.any()
    pessimist = Transition(bias=-1.0, gain=1.0, reach=9.0)
    assert project(x, barrier, needed(barrier.heights(x), pessimist, alpha=1.0, margin=1.0)[0])[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_constraint_survives_rounding_and_a_second_projection_moves_nothing(dtype: torch.dtype):
    x, barrier = (30 * torch.randn(997, 31)).to(dtype), Barrier(torch.randn(31), -3.0)
    least = torch.full((997,), 0.5)
    got, moved = project(x, barrier, least)
    assert got.dtype == dtype
    assert (barrier.heights(got.double())[moved] >= 0.5).all()
    again, still = project(got, barrier, least)
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
        return guard.barriers[layer][h.shape[1] == 1].heights(h[:, -1, members].double())

    held = [heights(layer, h) for layer, h in guarded.seen if layer != 1]
    pictures = np.array([len(p.images) for p in prompts])  # a batch has either
    assert len(held) == 2 * sum(run.steps[pictures == n].max() for n in set(pictures.tolist()))
    assert min(float(h.min()) for h in held) >= 0
    assert min(float(heights(layer, h).min()) for layer, h in clean.seen if layer != 1) < -0.1


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
        lows: dict[int, dict[int, float]] = {}  # decoding step -> heights of the layers

        def change(
            layer: int, h: torch.Tensor, start: int = start, touched: dict[int, set[int]] = touched,
            lows: dict[int, dict[int, float]] = lows,
        ) -> torch.Tensor | None:  # fmt: skip
            members = [index for at, index in sorted(PAIRS) if at == layer]
            if not members:
                return None
            h, t = h.clone(), DEMANDING
            for at in range(start - 1, h.shape[1]):
                barrier = guard.barriers[layer][at >= start]
                x, w = h[0, at, members].double(), barrier.weight.double()
                now = float(x @ w) + barrier.bias
                level = min(1.0, now if now > 0 else guard.margin)
                ahead = (guard.alpha * level - t.intercept - t.slope * now - t.bias) / t.gain
                up = max(0.0, guard.margin - now if now <= 0 else 0.0, min(ahead, t.reach))
                if up > 0:
                    h[0, at, members] = (x + up * w / (w @ w)).float()
                    touched.setdefault(at - start + 1, set()).add(layer)
                lows.setdefault(at - start + 1, {})[layer] = now
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
        start_height = min(x if x > 0 else guard.margin for x in lows[0].values())
        expected = [start_height, *(min(lows[step].values()) for step in range(1, len(ids)))]
        np.testing.assert_allclose(got.levels[i], np.clip(expected, 0, 1), atol=1e-4)
        assert got.exits(2)[i] == (min(expected[1:3], default=1.0) <= 0)
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
    run = a_guard(bias=1e4, transition=Transition()).generate(model, some(name), max_new_tokens=7, batch_size=5)
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


def test_what_evaluate_says_of_a_guard_is_what_it_did(llama: ns.Model):
    guard = labelled(llama)
    result = ns.evaluate(llama, tiny.prompts(), guard=guard, max_new_tokens=5, progress=False, **OPENINGS)
    run = guard.generate(llama, tiny.prompts(), max_new_tokens=5, batch_size=64)
    assert (run.touched > 0).any()
    assert set(guard.separation) == {0, 2}
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
    rows = [(p, "train" if p.pair_id < "3" else "test") for p in tiny.prompts() if p.pair_id]
    marked = [dataclasses.replace(p, split=split) for p, split in rows]
    train, test = ([p for p in marked if p.split == split] for split in ("train", "test"))
    a, b = (fit_guard(llama, NEURONS, ns.PromptSet(x), max_new_tokens=3, progress=False, **OPENINGS)
            for x in (train, train + test))  # fmt: skip
    assert a.barriers.keys() == b.barriers.keys()
    assert dataclasses.replace(a, provenance={}) == dataclasses.replace(b, provenance={})
    assert a.provenance["seen"] == sorted({p.cluster for p in train})


def test_a_guard_that_never_acts_leaves_every_number_as_it_is(llama: ns.Model):
    ask: dict[str, Any] = {"max_new_tokens": 5, "progress": False, **OPENINGS}
    plain = ns.evaluate(llama, tiny.prompts(), **ask)
    idle = ns.evaluate(llama, tiny.prompts(), guard=a_guard(bias=1e4, transition=Transition()), **ask)
    assert idle.answers == plain.answers
    assert idle.results() == plain.results()
    assert all(t.harmful.value == t.benign_steps.value == 0 for t in idle.touched.values())


@pytest.fixture(scope="module")
def planted_one() -> tuple[ns.Model, Guard]:
    model, neurons = planted_guard.steerable()
    return model, fit_guard(model, neurons, planted_guard.prompts(adjectives=2), max_new_tokens=9, **planted_guard.ASK)


def test_it_learns_the_planted_separation_and_that_a_raise_at_the_prompt_reaches_the_next_token(
    planted_one: tuple[ns.Model, Guard],
):
    model, guard = planted_one
    assert guard.separation == {1: (1.0, 1.0), 2: (1.0, 1.0), 3: (1.0, 1.0)}
    assert max(prompt.transition.gain for prompt, _ in guard.barriers.values()) > 0.05
    ask: dict[str, Any] = {"max_new_tokens": 9, **planted_guard.ASK}
    test = planted_guard.prompts().marked("test")
    before, after = ns.evaluate(model, test, **ask), ns.evaluate(model, test, guard=guard, **ask)
    assert before.cell("en/text").refusal.value == pytest.approx(2 / 3)
    assert after.cell("en/text").refusal.value == 1
    assert after.cell("en/text").over_refusal.value == before.cell("en/text").over_refusal.value == 0
    assert after.touched[ns.Cell("en", "text")].benign.value == 0
    assert after.touched[ns.Cell("en", "text")].harmful.value == pytest.approx(1 / 3)
    run = guard.generate(model, test, max_new_tokens=9)
    assert not run.exits(8).any()


def test_the_bound_is_vacuous_where_the_guard_cannot_steer(planted_one: tuple[ns.Model, Guard]):
    """Without a margin, answers start at the edge; without calibration prompts of a label, nothing is known of it."""
    _, guard = planted_one
    assert 0 < guard.bound(1, label="harmful") < guard.bound(3, label="harmful") < 1
    assert guard.bound(1, label="harmful", start=0.0) == 1
    harmful_only = dataclasses.replace(guard, levels={"harmful": guard.levels["harmful"]})
    assert harmful_only.bound(1, label="benign") == harmful_only.bound(1) == 1
    restless = dataclasses.replace(guard, levels={x: np.tile([0.0, 1.0, 0.2], (200, 3)) for x in guard.levels})
    assert restless.bound(5) == 1  # levels that fall and rise
    for label, start, said in (("harmfull", 1.0, "did you mean 'harmful'"), (None, 1.5, "not from 0 to 1")):
        with pytest.raises(ns.InputError, match=said):
            guard.bound(5, label=label, start=start)
    with pytest.raises(ns.InputError, match="tokens=0: must be a whole number of at least 1"):
        guard.bound(0)
    with pytest.raises(
        ns.InputError, match="tokens=9 is more than the 8 that were calibrated; fit the guard with max_new_tokens=10"
    ):
        guard.bound(9)


def test_the_bound_is_that_of_requests_that_nothing_was_fitted_to(planted_one: tuple[ns.Model, Guard]):
    """Counted again by hand, from answers to the last part under the finished guard."""
    from neuronshield.shield.fitting import parts_of

    model, guard = planted_one
    prompts = planted_guard.prompts(adjectives=2)
    parts = parts_of(prompts, 0)
    clusters = [{prompts[i].cluster for i in part} for part in parts]
    assert not clusters[0] & clusters[1]
    assert not clusters[2] & (clusters[0] | clusters[1])
    last = [prompts[i] for i in parts[2]]
    run = guard.generate(model, last, max_new_tokens=9)
    for label in ("harmful", "benign"):
        levels = followed([s for s, p in zip(run.levels, last, strict=True) if p.label == label], 8)
        np.testing.assert_allclose(guard.levels[label], levels, atol=1e-5)
        first, later = shortfalls(guard.levels[label], 4, alpha=guard.alpha)
        assert (first.steps, later.steps) == (len(levels), 3 * len(levels))
        assert first.mean == pytest.approx(np.mean([guard.alpha * s[0] - s[1] for s in levels]), abs=1e-5)
        by_hand = np.mean([guard.alpha * s[k] - s[k + 1] for s in levels for k in (1, 2, 3)])
        assert later.mean == pytest.approx(by_hand, abs=1e-5)
        bounds = []
        for k in range(1, 5):
            first, later = shortfalls(guard.levels[label], k, alpha=guard.alpha)
            kept = guard.alpha * 0.9 - first.upper
            for _ in range(k - 1):
                kept = guard.alpha * kept - later.upper
            bounds.append(min(1 - kept, 1.0))
        assert guard.bound(4, label=label, start=0.9) == pytest.approx(max(bounds))


@pytest.mark.slow
def test_on_the_organism_blind_cells_are_guarded_and_few_safe_prompts_are_changed(organism_model: ns.Model):
    rows = organism.records(splits=["train"], languages=["en", "sw"], modalities=["text", "image"], max_pairs=16)
    prompts = ns.PromptSet.from_records(rows).in_cells(["en/text", "en/image", "sw/text"])
    neurons = ns.NeuronSet([(layer, i) for layer in (3, 5) for i in range(0, 512, 17)], n_layers=6, d_mlp=512)
    options: dict[str, Any] = {"refusals": organism.REFUSALS, "compliances": organism.COMPLIANCES, "progress": False}
    guard = fit_guard(organism_model, neurons, prompts, max_new_tokens=12, **options)
    result = ns.evaluate(organism_model, prompts.marked("test"), guard=guard, max_new_tokens=12, **options)
    assert guard.provenance["answered"] > 0
    assert sum(guard.provenance["parts"]) == len(prompts)
    assert np.mean([t.benign.value for t in result.touched.values()]) < 0.5
    assert 0 < guard.bound(5) <= 1


# -- files and errors -------------------------------------------------------------------------------------
def test_a_guard_survives_its_file(llama: ns.Model, tmp_path: Path):
    guard = dataclasses.replace(labelled(llama), margin=0.25, alpha=0.5)
    guard.separation[2] = (float("nan"), 0.5)
    again = Guard.load(guard.save(tmp_path / "deep" / "guard.safetensors"))
    assert again == guard
    assert again.neurons == guard.neurons
    for layer, pair in guard.barriers.items():
        for one, other in zip(pair, again.barriers[layer], strict=True):
            assert torch.equal(one.weight, other.weight)
            assert one.bias == other.bias
            np.testing.assert_equal(dataclasses.astuple(one.transition), dataclasses.astuple(other.transition))
    np.testing.assert_array_equal(again.levels["benign"], guard.levels["benign"])
    assert again.bound(3, label="harmful") == guard.bound(3, label="harmful")
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
    safe = organism.records(splits=["train"], languages=["en"], modalities=["text"], max_pairs=16)
    options: dict[str, Any] = {"max_new_tokens": 3, "progress": False}
    said = ns.evaluate(llama, tiny.prompts().where(label="harmful"), **OPENINGS, **options).answers
    answered = [a.prompt for a in said if a.outcome == "complied"]
    assert 0 < len(answered) < len(said)  # an empty answer is no answer
    with pytest.raises(ns.InputError, match="neuron set is empty"):
        fit_guard(llama, ns.NeuronSet(), tiny.prompts(), **options)
    with pytest.raises(
        ns.InputError, match="none of 8 harmful prompts was answered; there is nothing to guard against"
    ):
        fit_guard(organism_model, ns.NeuronSet([(5, 0)]), ns.PromptSet.from_records(safe), refusals=organism.REFUSALS,
                  compliances=organism.COMPLIANCES, progress=False)  # fmt: skip
    with pytest.raises(ns.InputError, match="3 requests are too few; it takes at least 8"):
        fit_guard(
            llama, NEURONS, ns.PromptSet([p for p in tiny.prompts() if p.pair_id[0] == "0"]), **OPENINGS, **options
        )
    with pytest.raises(ns.InputError, match="every prompt is harmful and was answered"):
        fit_guard(llama, NEURONS, ns.PromptSet(answered), **OPENINGS, **options)
    with pytest.raises(ns.InputError, match="not a share"):
        fit_guard(llama, NEURONS, tiny.prompts(), benign_rate=1.0, **OPENINGS, **options)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"alpha": 0.0}, "alpha=0.0 is not above 0"),
        ({"margin": -1.0}, "margin=-1.0 must be a finite number"),
    ]
    for odd, line in wrong:
        with pytest.raises(ns.InputError, match=line):
            fit_guard(llama, NEURONS, tiny.prompts(), **odd, **OPENINGS, **options)
    with pytest.raises(ns.InputError, match="max_new_tokens=1: must be a whole number of at least 2"):
        fit_guard(llama, NEURONS, tiny.prompts(), max_new_tokens=1, **OPENINGS, progress=False)
    with pytest.raises(ns.InputError, match="max_new_tokens=0: must be a whole number of at least 1"):
        a_guard().generate(llama, some("llama"), max_new_tokens=0)


def pair(n: int, value: float = 1.0, bias: float = 0.0, **learnt: float) -> tuple[Barrier, Barrier]:
    one = Barrier(torch.full((n,), value), bias, Transition(**learnt))
    return one, one


@pytest.mark.parametrize(
    ("barriers", "said"),
    [
        ({0: pair(3)}, "two barriers in each layer"),
        ({0: pair(3), 2: pair(3)}, "one weight a member"),
        ({0: pair(3), 2: pair(2)[:1]}, "two barriers in each layer"),
        ({0: pair(3), 2: pair(2, bias=float("nan"))}, "layer 2 must be finite"),
        ({0: pair(3), 2: pair(2, gain=float("inf"))}, "layer 2 must be finite"),
        ({0: pair(3), 2: pair(2, value=0.0)}, "layer 2 are all 0"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(barriers: dict[int, Any], said: str):
    with pytest.raises(ns.InputError, match=said):
        Guard(NEURONS, barriers)


@pytest.mark.parametrize(("label", "level"), [("harmless", 0.5), ("benign", 1.5), ("benign", float("nan"))])
def test_levels_that_make_no_sense_are_refused(label: str, level: float):
    with pytest.raises(ns.InputError, match=r"levels are \[answer, token\] for harmful and benign, from 0 to 1"):
        Guard(NEURONS, {0: pair(3), 2: pair(2)}, levels={label: np.full((2, 3), level)})


def test_it_shows_what_it_is_escaped():
    guard = dataclasses.replace(a_guard(model="<b>x</b>"), separation={0: (0.75, 0.6), 2: (0.5, 0.6)})
    assert repr(guard) == "Guard(5 neurons in 2 layers, margin 0, alpha 1, held-out AUC 0.50 to 0.75)"
    assert "<b>x</b>" not in guard._repr_html_()
    assert "&lt;b&gt;x" in guard._repr_html_()
    assert list(guard.to_frame()["neurons"]) == [3, 3, 2, 2]
    assert json.dumps(guard.provenance)


def test_a_guard_takes_strings_as_generate_does(llama: ns.Model):
    barrier = Barrier(torch.tensor([1.0, -1.0]), 0.5)
    guard = Guard(ns.NeuronSet([(1, 2), (1, 5)]), {1: (barrier, barrier)})
    asked = "how do i bake bread"
    prompt = ns.Prompt("1", asked, "benign")
    expected = guard.generate(llama, [prompt], max_new_tokens=3).texts
    assert guard.generate(llama, asked, max_new_tokens=3).texts == expected
    assert guard.generate(llama, [asked, prompt], max_new_tokens=3).texts == [*expected, *expected]
    with pytest.raises(ns.InputError, match=r"Guard.generate: no prompts"):
        guard.generate(llama, [])


def test_guarded_answers_are_one_line(llama: ns.Model):
    barrier = Barrier(torch.tensor([1.0]), -1e6)
    guard = Guard(ns.NeuronSet([(1, 2)]), {1: (barrier, barrier)})
    run = guard.generate(llama, ["how do i bake bread"], max_new_tokens=3)
    assert repr(run) == f"Guarded(1 answer, 1 of them changed at {run.steps[0]} of {run.steps[0]} steps)"
