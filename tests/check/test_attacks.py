"""White-box attacks on a shield, and the defence by repeated rounds."""

# ruff: noqa: ARG005
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.check.attacks import FINE_TUNE, attack, attacked, find_again, finetune, prune, relearn
from neuronshield.find.reselection import shuffled_sets

MEMBERS = [(0, 3), (0, 28), (2, 7)]
SET = ns.NeuronSet(MEMBERS, n_layers=3, d_mlp=29)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pruning_is_ablation_at_every_token(family: str):
    model = ns.load(getattr(tiny, family)(), processor=tiny.tokenizer())
    before = {n: p.clone() for n, p in model.module.named_parameters()}

    def zero(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        h[..., SET.by_layer().get(layer, [])] = 0
        return h

    encoding, _ = tiny.encode(model, tiny.prompts()[0])
    with torch.no_grad():
        got = prune(model, SET).module(**encoding).logits
        clean = model.module(**encoding).logits
        with tiny.hooked(tiny.downs(model), zero):
            expected = model.module(**encoding).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got - clean).abs().max() > 1e-3
    assert all(torch.equal(before[n], p) for n, p in model.module.named_parameters())


@pytest.mark.parametrize("method", ["contribution", "precise_shield"])
def test_finding_again_pools_cells_each_with_a_say(llama: ns.Model, method: str):
    prompts = tiny.prompts()
    scores = ns.contrast(ns.capture(llama, prompts, progress=False), method=method)
    pooled = sum(np.abs(v) / np.abs(v).max() for v in scores.values)
    in_a_cell = set().union(*(set(s) for s in scores.top(k=7).values()))
    order = zip(*np.unravel_index(np.argsort(-pooled, axis=None, kind="stable"), pooled.shape), strict=True)
    best = [(int(a), int(b)) for a, b in order if (a, b) in in_a_cell][:7]
    found = find_again(llama, prompts, 7, method=method)
    assert set(found) == set(best) or (method == "precise_shield" and set(found) <= in_a_cell)
    again = shuffled_sets(llama, found, prompts, draws=1)[0]  # its selection is known
    assert len(again) == 7


def test_what_cannot_be_found_again_is_one_line(llama: ns.Model):
    for arguments, said in (
        ({"k": 88}, "k=88, must be 1 to 87"),
        ({"k": 0}, "k=0, must be 1 to 87"),
        ({"k": 3, "method": "snip"}, "method='snip'"),
    ):
        with pytest.raises(ns.InputError, match=f"find_again: {said}"):
            find_again(llama, tiny.prompts(), **arguments)  # type: ignore[arg-type]


def test_a_benign_fine_tune_learns_benign_answers_only(llama: ns.Model):
    prompts = tiny.prompts()

    def likelihood(model: ns.Model, label: str) -> float:
        total = 0.0
        for p in prompts.where(label=label)[:6]:
            encoding, n = tiny.encode(model, p, "sure make it" if label == "benign" else "sorry i cannot help")
            with torch.no_grad():
                logits = model.module(**encoding).logits[0, n - 1 : -1].log_softmax(-1)
            total += float(logits.gather(1, encoding["input_ids"][0, n:, None]).sum())
        return total

    tuned = finetune(llama, prompts, steps=20, lr=1e-2, progress=False)
    gained = {label: likelihood(tuned, label) - likelihood(llama, label) for label in ("benign", "harmful")}
    assert gained["benign"] > gained["harmful"] + 20
    silent = ns.PromptSet(replace(p, target=None) for p in prompts)  # its own answers are taught then
    again = finetune(llama, silent, steps=20, lr=1e-2, progress=False)
    said = {p.id: tiny.own_answer(llama, p) for p in silent.where(label="benign")[:4]}

    def own(model: ns.Model) -> float:
        total = 0.0
        for p in silent.where(label="benign")[:4]:
            encoding, n = tiny.encode(model, p, model.tokenizer.decode(said[p.id], skip_special_tokens=True))
            with torch.no_grad():
                logits = model.module(**encoding).logits[0, n - 1 : -1].log_softmax(-1)
            total += float(logits.gather(1, encoding["input_ids"][0, n:, None]).sum())
        return total

    assert own(again) > own(llama) + 5
    with pytest.raises(ns.InputError, match="no benign prompt has an answer"):
        finetune(llama, prompts.where(label="harmful"))


def test_an_attack_fine_tunes_for_40_steps_of_a_thousandth_unless_told(llama: ns.Model):
    assert (FINE_TUNE.steps, FINE_TUNE.lr, FINE_TUNE.batch_size) == (40, 1e-3, 16)
    options: dict[str, Any] = {"seed": 3, "progress": False}
    models = attacked(llama, tiny.prompts(), k=5, **options)
    same = finetune(llama, tiny.prompts(), steps=40, lr=1e-3, **options)
    for a, b in zip(models["fine-tuned"].module.parameters(), same.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert models["as it is"] is llama
    found = find_again(llama, tiny.prompts(), 5)
    gone = {(i, int(j)) for i in range(3) for j in (models["random pruned"].down_weight(i) == 0).all(dim=0).nonzero()}
    assert len(gone) == 5
    assert not gone & set(found)
    assert ns.NeuronSet(gone).per_layer() == found.per_layer()


#: The public functions, without their types: these calls are wrong.
untyped: Any = ns.attacks

WRONG: dict[str, tuple[Any, str]] = {
    "pruning prompts": (prune, "prune(model, neurons): neurons must be NeuronSet, got PromptSet"),
    "no prompts": (
        lambda m, p: untyped.finetune(m, "how"),
        "finetune(model, prompts): prompts must be PromptSet, got str 'how'",
    ),
    "an objective it lacks": (
        lambda m, p: untyped.finetune(m, p, objective="preference"),
        "finetune: objective='preference' is unknown",
    ),
    "an update": (
        lambda m, p: untyped.attack(ns.Update(m, None, None, trained=0), p),
        "attack(model, prompts): model must be Model, got Update; pass update.model",
    ),
    "a misspelt keyword": (
        lambda m, p: untyped.attack(m, p, stps=2),
        "attack: stps= is unknown; did you mean 'steps'?",
    ),
    "a misspelt own keyword": (
        lambda m, p: untyped.relearn(m, p, round=2),
        "relearn: round= is unknown; did you mean 'rounds'?",
    ),
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_call_gets_one_line(llama: ns.Model, call: str):
    make, said = WRONG[call]
    with pytest.raises(ns.InputError) as caught:
        make(llama, tiny.prompts())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_attack_evaluates_each_on_the_test_prompts(llama: ns.Model):
    left = attack(llama, tiny.prompts(), k=5, steps=2, refusals=["sorry"], max_new_tokens=3, progress=False)
    assert list(left) == ["as it is", "pruned", "random pruned", "fine-tuned"]
    assert {len(e.answers) for e in left.values()} == {len(tiny.prompts())}
    found = find_again(llama, tiny.prompts(), 5)
    again = ns.evaluate(prune(llama, found), tiny.prompts(), refusals=["sorry"], max_new_tokens=3, progress=False)
    assert [a.response for a in left["pruned"].answers] == [a.response for a in again.answers]


def test_every_round_of_relearning_leaves_what_it_found_alone(llama: ns.Model):
    common: dict[str, Any] = {"steps": 3, "lr": 1e-2, "progress": False}
    rounds = relearn(llama, tiny.prompts(), k=5, rounds=2, rank=2, **common)
    models = [llama, *(r.update.model for r in rounds)]
    for before, after, done in zip(models, models[1:], rounds, strict=False):
        assert done.neurons == find_again(before, tiny.prompts(), 5)
        for layer in range(3):
            own = done.neurons.by_layer().get(layer, [])
            rest = [i for i in range(29) if i not in own]
            a, b = before.down_weight(layer), after.down_weight(layer)
            assert torch.equal(a[:, own], b[:, own])
            assert not torch.equal(a[:, rest], b[:, rest])
    with pytest.raises(ns.InputError, match="rounds=0"):
        relearn(llama, tiny.prompts(), rounds=0)
