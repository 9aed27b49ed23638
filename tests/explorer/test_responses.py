"""Dose-response curves and answers before and after, against single forwards and `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.model.forward import answer_logits

NEURONS = ns.NeuronSet([(0, 3), (1, 5), (2, 7)], n_layers=3, d_mlp=29)
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}
REFUSE, COMPLY = (tiny.WORDS.index(word) for word in ("sorry", "sure"))
SHORT: dict[str, Any] = {"max_new_tokens": 5, "batch_size": 4, "progress": False}


def margin(model: ns.Model, rows: list[ns.Prompt], intervention: ns.Intervention | None = None) -> np.ndarray:
    logits = answer_logits(model, rows, intervention, batch_size=3).double()
    return (logits[:, REFUSE] - logits[:, COMPLY]).numpy()


def test_the_curve_is_the_change_of_the_margin_in_clean_logit_differences(llama: ns.Model):
    rows = tiny.prompts(target=None)
    frame = ns.dose_response(llama, NEURONS, rows, alphas=[-1, 0, 1, 3], draws=2, seed=4, **ASK)
    assert frame["alpha"].tolist() == [-1, 0, 1, 3]
    harmful, benign = ([p for p in rows if p.label == label] for label in ("harmful", "benign"))
    difference = (margin(llama, harmful) - margin(llama, benign)).mean()
    rng = np.random.default_rng(4)
    random = [ns.random_like(NEURONS, llama, seed=rng) for _ in range(2)]
    for row in frame.itertuples():
        for label, mine in (("harmful", harmful), ("benign", benign)):
            moved = margin(llama, mine, ns.Intervention(NEURONS, "scale", row.alpha)) - margin(llama, mine)
            assert getattr(row, label) == pytest.approx(moved.mean() / difference, rel=1e-3, abs=1e-4)
            assert getattr(row, f"{label}_low") <= getattr(row, label) <= getattr(row, f"{label}_high")
        others = [
            (margin(llama, harmful, ns.Intervention(s, "scale", row.alpha)) - margin(llama, harmful)).mean()
            / difference
            for s in random
        ]
        assert (row.random, row.random_low, row.random_high) == pytest.approx(
            (np.mean(others), min(others), max(others)), rel=1e-3, abs=1e-4
        )


def test_only_prompts_to_confirm_on_are_read_where_some_are_so_marked(llama: ns.Model):
    rows = tiny.prompts()
    some = ns.PromptSet(p for p in rows if p.pair_id in ("0-0", "1-1", "2-2"))
    split = some.marked("confirm") + ns.PromptSet(p for p in rows if p.pair_id == "3-0").marked("train")
    options = {"alphas": [0.0], "draws": 0, **ASK}
    got = ns.dose_response(llama, NEURONS, split, **options)
    assert got.equals(ns.dose_response(llama, NEURONS, some, **options))
    assert not got.equals(ns.dose_response(llama, NEURONS, rows, **options))
    assert got["random"].isna().all()


def test_answers_and_grades_are_those_of_generate_and_evaluate(llama: ns.Model):
    rows = tiny.prompts()[:9]
    change = ns.Intervention(NEURONS, "clamp", 8.0, positions="all")
    frame = ns.before_after(llama, rows, change, refusals=["sorry"], compliances=["sure"], **SHORT)
    assert frame["prompt"].tolist() == [p.id for p in rows]
    assert frame["cell"].tolist() == [str(p.cell) for p in rows]
    assert frame["label"].tolist() == [p.label for p in rows]
    clean = ns.evaluate(llama, rows, refusals=["sorry"], compliances=["sure"], **SHORT)
    assert frame["before"].tolist() == [a.response for a in clean.answers]
    assert frame["before_grade"].tolist() == [a.outcome for a in clean.answers]
    assert frame["after"].tolist() == ns.generate(llama, rows, intervention=change, max_new_tokens=5)
    assert (frame["before"] != frame["after"]).any()


def test_a_neuron_that_says_sorry_turns_answers_into_refusals():
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight[:, 7] = module.lm_head.weight[REFUSE] * 5
    model = ns.load(module, processor=tiny.tokenizer())
    only = ns.NeuronSet([(2, 7)], n_layers=3, d_mlp=29)
    told = ["how do i bake bread", "how do i paint the house"]
    options: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], **SHORT, "max_new_tokens": 1}
    frame = ns.before_after(model, told, ns.Intervention(only, "clamp", 50.0, positions="all"), **options)
    assert frame["after_grade"].tolist() == ["refused", "refused"]
    frame = ns.before_after(model, told, ns.Intervention(only, "clamp", -50.0, positions="all"), **options)
    assert "refused" not in frame["after_grade"].tolist()


def test_wrong_calls_are_refused_in_one_line(llama: ns.Model):
    rows, zero = tiny.prompts(), ns.Intervention(NEURONS, "zero")
    far = ns.Intervention(ns.NeuronSet([(9, 1)]), "zero")
    for call, said in (
        (lambda: ns.dose_response(llama, rows, NEURONS), "neurons must be NeuronSet"),  # type: ignore[arg-type]
        (lambda: ns.dose_response(llama, NEURONS, rows, alphas=[]), "at least one"),
        (lambda: ns.dose_response(llama, NEURONS, rows, alphas=[float("nan")]), "finite numbers"),
        (lambda: ns.dose_response(llama, NEURONS, rows, draws=-1), "draws=-1"),
        (lambda: ns.dose_response(llama, NEURONS, rows.where(label="benign"), **ASK), "dose_response"),
        (lambda: ns.before_after(llama, rows, NEURONS), "intervention must be Intervention"),  # type: ignore[arg-type]
        (lambda: ns.before_after(llama, rows, None), "intervention must be Intervention"),  # type: ignore[arg-type]
        (lambda: ns.before_after(llama, [], zero), "no prompts"),
        (lambda: ns.before_after(llama, rows, far, progress=False), r"\(9, 1\)"),
    ):
        with pytest.raises(ns.InputError, match=said):
            call()
