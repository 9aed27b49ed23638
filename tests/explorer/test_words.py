"""The tokens that a neuron promotes and suppresses, against the formula, finite differences and every token one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.explorer.words import written_by
from neuronshield.model.hooks import hooked

NEURONS = ns.NeuronSet([(0, 3), (2, 7), (2, 11)], n_layers=3, d_mlp=29)
ASK: dict[str, Any] = {"refusals": ["sorry", "no"], "compliances": ["sure"]}
SORRY, NO, SURE = (tiny.WORDS.index(word) for word in ("sorry", "no", "sure"))


def one(language: str = "en") -> ns.PromptSet:
    return ns.PromptSet(p for p in tiny.prompts() if p.language == language)


def by_word(frame: pd.DataFrame, at: tuple[int, int], end: str) -> dict[str, float]:
    mine = frame[(frame["layer"] == at[0]) & (frame["index"] == at[1]) & (frame["end"] == end)]
    return dict(zip(mine["token"], mine["value"], strict=True))


def formula(model: ns.Model, at: tuple[int, int], prompt: ns.Prompt) -> np.ndarray:
    """W_U (gamma * W_down[:, i]) / s of a Llama, the mean taken out, in float64."""
    module: Any = model.module
    seen: list[torch.Tensor] = []
    with hooked([module.model.norm], before=lambda _, x: seen.append(x[0, -1].double())), torch.no_grad():
        module(torch.tensor([model.tokenizer(prompt.prompt)["input_ids"]]))
    scale = seen[0].pow(2).mean().add(module.config.rms_norm_eps).sqrt()
    column = module.model.layers[at[0]].mlp.down_proj.weight.detach()[:, at[1]].double()
    logits = module.lm_head.weight.detach().double() @ (module.model.norm.weight.detach().double() * column) / scale
    return (logits - logits.mean()).numpy()


def test_of_a_llama_all_tokens_change_as_the_formula_says(llama: ns.Model):
    rows = one()
    frame = ns.vocabulary(llama, NEURONS, k=100, prompts=rows, **ASK)
    for at in NEURONS:
        want = formula(llama, at, next(p for p in rows if p.label == "harmful"))
        for end in ("promoted", "suppressed"):
            got = by_word(frame, at, end)
            assert got == pytest.approx({word: want[i] for i, word in enumerate(tiny.WORDS)}, rel=1e-4, abs=1e-5)
        mine = frame[(frame["layer"] == at[0]) & (frame["index"] == at[1])]
        assert mine["refusal"].unique() == pytest.approx([(want[SORRY] + want[NO]) / 2], rel=1e-3)
        assert mine["compliance"].unique() == pytest.approx([want[SURE]], rel=1e-3)


def test_the_promoted_come_from_the_largest_down_and_the_suppressed_from_the_smallest_up(llama: ns.Model):
    frame = ns.vocabulary(llama, NEURONS, k=5, prompts=one(), **ASK)
    assert len(frame) == 3 * 2 * 5
    for _, mine in frame.groupby(["layer", "index", "end"]):
        assert mine["rank"].tolist() == [1, 2, 3, 4, 5]
        falling = mine["end"].iloc[0] == "promoted"
        assert mine["value"].is_monotonic_decreasing if falling else mine["value"].is_monotonic_increasing


def test_the_difference_of_the_prefixes_is_what_signs_say_over_all_languages(llama: ns.Model):
    rows = tiny.prompts()
    want = np.mean(list(ns.signs.directions(llama, rows, **ASK).values()), axis=0)
    for each in written_by(llama, NEURONS, prompts=rows, **ASK):
        assert each.refusal - each.compliance == pytest.approx(want[each.layer, each.index], rel=1e-4, abs=1e-6)


def test_a_layer_norm_takes_the_mean_of_the_column_out():
    """A column that is the same number everywhere changes nothing."""
    module = tiny.gpt2()
    with torch.no_grad():
        module.transformer.h[2].mlp.c_proj.weight[7] = 3.0  # GPT-2 keeps W_down transposed
    frame = ns.vocabulary(ns.load(module, processor=tiny.tokenizer()), NEURONS, prompts=one(), **ASK)
    assert max(map(abs, by_word(frame, (2, 7), "promoted").values())) < 1e-5
    assert max(map(abs, by_word(frame, (2, 11), "promoted").values())) > 1e-2


def test_a_word_with_and_without_a_space_is_one_and_parts_of_characters_are_left_out(organism_model: ns.Model):
    neurons = ns.NeuronSet([(5, 5), (5, 462)], n_layers=6, d_mlp=512)
    frame = ns.vocabulary(organism_model, neurons, k=10_000)
    tokenizer = organism_model.tokenizer
    seen = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    words = {text.strip() for text in seen if "\ufffd" not in text and text.strip()} - set(organism_model.media_tokens)
    assert any(f" {word}" in seen and word in seen for word in words)
    for at in neurons:
        high, low = by_word(frame, at, "promoted"), by_word(frame, at, "suppressed")
        assert set(high) == set(low) == words
        assert all(high[word] >= low[word] for word in words)
        twice = [word for word in words if seen.count(word) + seen.count(f" {word}") > 1]
        assert any(high[word] > low[word] for word in twice)


def test_a_planted_column_promotes_its_word():
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight[:, 7] = module.lm_head.weight[SORRY] * 5
    model = ns.load(module, processor=tiny.tokenizer())
    frame = ns.vocabulary(model, NEURONS, k=1, prompts=one(), **ASK)
    assert [*by_word(frame, (2, 7), "promoted")] == ["sorry"]


def test_without_prompts_the_shipped_english_ones_are_read(organism_model: ns.Model):
    neurons = ns.NeuronSet([(5, 5)], n_layers=6, d_mlp=512)
    english = ns.shipped.matched_pairs(["en"])
    assert ns.vocabulary(organism_model, neurons).equals(ns.vocabulary(organism_model, neurons, prompts=english))


def test_wrong_calls_are_refused_in_one_line(llama: ns.Model):
    for call, said in (
        (lambda: ns.vocabulary(NEURONS, llama), "model must be Model"),  # type: ignore[arg-type]
        (lambda: ns.vocabulary(llama, NEURONS, k=0), "k=0"),
        (lambda: ns.vocabulary(llama, NEURONS, prompts=[]), "prompts must be PromptSet"),  # type: ignore[arg-type]
        (lambda: ns.vocabulary(llama, NEURONS, prompts=ns.PromptSet([])), "no prompts"),
        (lambda: ns.vocabulary(llama, ns.NeuronSet([(0, 99)])), "lies outside"),
    ):
        with pytest.raises(ns.InputError, match=said):
            call()
