"""Requests in a queue: every answer is that of `generate`, whatever shares its batch, and an error reaches its own request only."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError
from neuronshield.handoff import inspect_answers
from neuronshield.handoff.inspect_answers import Answerer, answerer
from neuronshield.handoff.inspect_requests import Wanted
from neuronshield.model.encodings import encoded_rows
from neuronshield.model.generation import complete

NEURONS = ns.NeuronSet([(1, 3), (2, 7)], n_layers=3, d_mlp=29)


def test_requests_from_many_threads_get_the_answers_of_generate(llama: ns.Model):
    prompts, answers = tiny.prompts()[:20], Answerer(llama, batch_size=4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: answers.ask(p, Wanted(3, None)).result(timeout=60), prompts))
    answers.close()
    assert [answer.text for answer in found] == ns.generate(llama, prompts, max_new_tokens=3)
    assert [answer.read for answer in found] == [row.length for row in encoded_rows(llama, prompts)]
    want = [
        (len(c.ids), "stop" if c.ended else "max_tokens", False) for c in complete(llama, prompts, max_new_tokens=3)
    ]
    assert [(answer.tokens, answer.reason, answer.in_thought) for answer in found] == want


def test_pictures_are_answered(llava: ns.Model):
    prompts, answers = tiny.prompts(pictures=True)[:6], Answerer(llava)
    found = [future.result(timeout=60) for future in [answers.ask(p, Wanted(3, None)) for p in prompts]]
    answers.close()
    assert [answer.text for answer in found] == ns.generate(llava, prompts, max_new_tokens=3)


def test_requests_that_wait_together_share_a_batch_of_their_settings(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    real = inspect_answers.complete

    def counted(model: ns.Model, prompts: Any, **options: Any) -> Any:
        seen.append((len(prompts), options["max_new_tokens"]))
        return real(model, prompts, **options)

    monkeypatch.setattr(inspect_answers, "complete", counted)
    answers, hold = Answerer(llama, batch_size=8), threading.Event()
    batch = answers._batch
    monkeypatch.setattr(answers, "_batch", lambda: (hold.wait(), batch())[1])
    futures = [answers.ask(p, Wanted(2 + i % 2, None)) for i, p in enumerate(tiny.prompts()[:10])]
    hold.set()
    for future in futures:
        future.result(timeout=60)
    answers.close()
    assert sorted(seen) == [(1, 2), (1, 3), (4, 2), (4, 3)]


@pytest.mark.parametrize("changed", [None, ns.Intervention(NEURONS, "clamp", 9.0, positions="all")])
def test_an_intervention_acts_in_every_answer(llama: ns.Model, changed: ns.Intervention | None):
    prompts, answers = tiny.prompts()[:5], Answerer(llama, intervention=changed)
    found = [answers.ask(p, Wanted(3, None)).result(timeout=60).text for p in prompts]
    answers.close()
    assert found == ns.generate(llama, prompts, intervention=changed, max_new_tokens=3)
    assert (found == ns.generate(llama, prompts, max_new_tokens=3)) == (changed is None)


def test_a_prompt_that_cannot_be_read_fails_alone(llama: ns.Model):
    answers, good = Answerer(llama), tiny.prompts()[0]
    long = ns.Prompt("long", "how " * 5000, "benign")
    futures = [answers.ask(p, Wanted(3, None)) for p in (good, long, good)]
    assert futures[0].result(timeout=60).text == futures[2].result(timeout=60).text
    with pytest.raises(InputError, match=r"prompt 'long': .* tokens are more than"):
        futures[1].result(timeout=60)
    answers.close()


def test_a_batch_that_fails_is_answered_one_by_one(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    prompts, real = tiny.prompts()[:4], inspect_answers.complete

    def failing(model: ns.Model, some: Any, **options: Any) -> Any:
        if any(p.id == prompts[2].id for p in some):
            raise InputError("no")
        return real(model, some, **options)

    monkeypatch.setattr(inspect_answers, "complete", failing)
    answers = Answerer(llama)
    futures = [answers.ask(p, Wanted(2, None)) for p in prompts]
    errors = [future.exception(timeout=60) for future in futures]
    answers.close()
    assert [error is None for error in errors] == [True, True, False, True]


def test_without_a_number_of_tokens_the_answer_may_fill_the_context(llama: ns.Model):
    prompt = ns.Prompt("p", "how " * 2040, "benign")
    answers = Answerer(llama)
    found = answers.ask(prompt, Wanted(None, None)).result(timeout=120)
    answers.close()
    assert found.tokens == 2048 - encoded_rows(llama, [prompt])[0].length + 1


def test_log_probabilities_come_with_the_answer(llama: ns.Model):
    answers = Answerer(llama)
    found = answers.ask(tiny.prompts()[0], Wanted(3, 2)).result(timeout=60)
    answers.close()
    assert found.completion is not None
    assert [len(step.top) for step in found.completion.steps or ()] == [2, 2, 2]


class Guarding:
    """A guard that answers; only its public call is used."""

    def generate(self, _: ns.Model, prompts: Any, *, max_new_tokens: int, **__: int) -> Any:
        return SimpleNamespace(texts=[f"guarded {p.id}" for p in prompts], steps=np.full(len(prompts), max_new_tokens))


def test_a_guard_answers_and_gives_no_log_probabilities(llama: ns.Model):
    answers = Answerer(llama, guard=Guarding())  # type: ignore[arg-type]
    prompt = tiny.prompts()[0]
    found = answers.ask(prompt, Wanted(3, None)).result(timeout=60)
    assert (found.text, found.tokens, found.reason) == (f"guarded {prompt.id}", 3, "unknown")
    with pytest.raises(InputError, match="a guard gives no log-probabilities"):
        answers.ask(prompt, Wanted(3, 0))
    answers.close()


def test_model_arguments_load_what_they_name(llama: ns.Model, tmp_path: Path):
    changed = ns.Intervention(NEURONS, "scale", 0.5)
    for given in (changed, str(changed.save(tmp_path / "half.json"))):
        made = answerer("mine", {"loaded": llama, "intervention": given, "batch_size": 3})
        assert (made.model, made.intervention, made.batch_size) == (llama, changed, 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"adaptor": "x"}, "neuronshield/mine: adaptor= is unknown; did you mean 'adapter'"),
        ({"loaded": "organism"}, "loaded"),
        ({"loaded": None}, "mine"),
        ({"intervention": 3}, "intervention"),
        ({"intervention": "none.json"}, "none.json: no such file"),
        ({"guard": "none.safetensors"}, "none.safetensors"),
        ({"dtype": "float32"}, "dtype= is of loading, and loaded= is loaded already"),
        (
            {"intervention": ns.Intervention(NEURONS, "zero", cells=["en/text"])},
            "cells of prompts, which messages do not have",
        ),
        (
            {"intervention": ns.Intervention(NEURONS, "patch", torch.zeros(2, 3, 29))},
            "a value for each prompt, which messages",
        ),
        ({"intervention": ns.Intervention(ns.NeuronSet([(9, 3)]), "zero")}, "9"),
        ({"batch_size": -1}, "batch_size"),
    ],
)
def test_a_wrong_model_argument_gets_one_line(llama: ns.Model, arguments: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        answerer("mine", {"loaded": llama, **arguments})
