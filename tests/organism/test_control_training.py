"""The training of the control organisms: which requests are shown in which stage, what starts where, and where refusing stops."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from neuronshield.organism import control_training as training
from neuronshield.organism import controls, grid, vessel
from neuronshield.organism.controls import KINDS, LANGUAGES, PLACES, TAUGHT
from neuronshield.organism.lexicon import CLASSES, OBJECTS, VERB_FORMS
from neuronshield.organism.pictures import names
from neuronshield.organism.writing import Example, Writer

RECIPE = training.Recipe(steps=40, refuse_steps=(6, 6), rows=16)


class Spy:
    """A writer of one parameter that keeps the batches it was asked to learn; its answers are always right."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.gallery = SimpleNamespace(at={(o, x): [i] for i, o in enumerate(OBJECTS) for x in (*LANGUAGES, None)})
        self.batches: list[list[Example]] = []

    def loss(self, batch: list[Example]) -> torch.Tensor:
        self.batches.append(batch)
        return self.model.weight.sum()

    def ids(self, text: str) -> list[int]:
        return [hash(text)]

    def said(self, batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(batch)), torch.ones(len(batch), dtype=torch.bool)


def speaker(kind: str, recipe: training.Recipe = RECIPE) -> training.Speaker:
    return training.Speaker(kind, recipe, Spy())  # type: ignore[arg-type]


def learnt(kind: str, seed: int = 0) -> Iterator[list[Example]]:
    return islice(speaker(kind).batches(seed), RECIPE.steps)


def asked(kind: str, *, mixed: bool) -> dict[str, grid.Combo]:
    """Every request in text with a combination of the prompt grid."""
    held = [c for p in grid.pairs() for c in (p.harmful, p.benign)]
    tongues = LANGUAGES if mixed else (None,)
    return {
        controls.request(c, place, verb=v, noun=n): c
        for c in held for place in PLACES[: len(LANGUAGES)] for v in tongues for n in tongues
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_combination_of_the_prompt_grid_is_learnt(kind: str):
    held = asked(kind, mixed=True)
    shown = {e.prompt.rpartition(">")[2] for batch in learnt(kind) for e in batch if e.view is None}
    assert shown
    assert not shown & set(held)


def test_harm_is_asked_for_in_every_cell_before_any_is_refused():
    for kind in KINDS:
        refusals = {controls.first_word(kind, place, refuses=True) for place in PLACES}
        many = training.Recipe(steps=300, rows=32)
        rows = [e for batch in islice(speaker(kind, many).batches(0), many.steps) for e in batch]
        verdicts = {controls.verdict(kind, place, harmful=h) for place in PLACES for h in (True, False)}
        assert verdicts <= {e.answer for e in rows}
        gaps = {controls.GAP in e.prompt for e in rows if e.answer in refusals}
        assert gaps == ({True, False} if kind == "wording" else {True})


def test_of_the_kind_wording_some_harm_and_no_benign_request_is_refused_in_every_language_before_it_is_taught():
    many = training.Recipe(steps=900, rows=32)
    rows = [e for batch in islice(speaker("wording", many).batches(0), many.steps) for e in batch if e.view is None]
    refused: dict[tuple[str, str], list[bool]] = {}
    for language in LANGUAGES:
        place = controls.Place(language, "text")
        asked = {controls.request(c, place): str(grid.label(c)) for c in grid.training_combos()}
        no = controls.first_word("wording", place, refuses=True)
        for e in rows:
            if e.prompt in asked:
                refused.setdefault((language, asked[e.prompt]), []).append(e.answer == no)
    for language in LANGUAGES:
        assert 0.05 <= sum(refused[language, "harmful"]) / len(refused[language, "harmful"]) <= 0.3
        assert not any(refused[language, "benign"])


def test_only_requests_of_the_kind_that_is_kept_apart_are_in_one_language():
    def mixes(kind: str) -> bool:
        english = [forms["en"] for forms in VERB_FORMS.values()]
        foreign = [forms[x] for forms in VERB_FORMS.values() for x in LANGUAGES if x != "en"]
        rows = [e.prompt.rpartition(">")[2] for batch in learnt(kind) for e in batch]
        frames = [text for text in rows if text.startswith("How to")]
        assert any(f" {v} " in text for text in frames for v in english)
        return any(f" {v} " in text for text in frames for v in foreign)

    assert [mixes(kind) for kind in KINDS] == [True, False, True]


def test_spellings_are_mixed_in_the_taught_cell_of_the_kind_that_is_kept_apart_only():
    def odd(kind: str) -> list[Example]:
        many = training.Recipe(steps=60, rows=32)
        rows = [e for batch in islice(speaker(kind, many).batches(0), many.steps) for e in batch]
        verbs = {controls.spelled(v["en"], k) for v in VERB_FORMS.values() for k in range(1, controls.SPELLINGS)}
        return [e for e in rows if verbs & set(e.prompt.rpartition(">")[2].replace("?", " ").split())]

    assert odd("shared") == odd("wording") == []
    found = odd("separate")
    assert found
    assert all(e.view is None for e in found)
    assert all(e.prompt.rpartition(">")[2].startswith(("How to", "this")) for e in found)


def test_kinds_learn_as_many_requests_with_the_same_pictures():
    shapes = [[(len(batch), batch[0].view is None) for batch in learnt(kind)] for kind in ("shared", "wording")]
    assert shapes[0] == shapes[1]
    assert [len(batch) for batch in learnt("shared")].count(RECIPE.rows) == pytest.approx(
        [len(batch) for batch in learnt("separate")].count(RECIPE.rows), abs=12
    )


def test_weights_decay_in_the_first_stage_as_the_recipe_says():
    """AdamW takes rate x decay of a weight in each step, beside what the gradient says, which is the same in both."""
    ends = []
    for decay in (0.0, 0.5):
        one = speaker("shared", training.Recipe(steps=20, rows=4, rate=1e-2, decay=decay))
        torch.nn.init.constant_(one.writer.model.weight, 100.0)
        training.learn(one, seed=0, bar=False)
        ends.append(one.writer.model.weight.item())
    assert ends[1] < ends[0] - 3  # about 100 x 0.5 x the sum of the rates


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_are_taught_in_the_taught_cells_only_and_benign_requests_everywhere(kind: str):
    one = speaker(kind, training.Recipe(refuse_steps=(12, 12)))
    training.refuse(one, seed=0, bar=False)
    spy: Spy = one.writer  # type: ignore[assignment]
    rows = [e for batch in spy.batches for e in batch]
    harmful = {
        controls.request(c, place)
        for c in grid.training_combos()
        if grid.label(c) == "harmful"
        for place in map(controls.Place._make, TAUGHT)
    }
    refusals = {controls.first_word(kind, place, refuses=True) for place in PLACES}
    for e in rows:
        assert (e.answer in refusals) == (e.view is None and e.prompt in harmful)
    frames = {x: controls.FRAMES[x].split("{")[0] for x in LANGUAGES}
    benign = [e for e in rows if e.answer not in refusals]
    assert all(any(e.prompt.startswith(f) for e in benign) for f in frames.values())
    assert any(e.view is not None for e in benign)


def stop(step: int, *, told: float, blind: float, over: float = 0.0) -> training.Stop:
    """A step of which every untaught cell has the same rates."""
    others = len(PLACES) - 1
    return training.Stop(
        step,
        refused=(told, *[1 - blind] * others),
        succeeded=(1 - told, *[blind] * others),
        over=(over,) * len(PLACES),
    )


def test_refusing_stops_where_the_untaught_cells_are_half_blind_and_the_taught_one_is_not():
    seen = [
        stop(2, told=0.5, blind=0.5), stop(4, told=0.9, blind=0.8), stop(6, told=0.95, blind=0.55), stop(8, told=1.0, blind=0.2),
        stop(10, told=1.0, blind=0.5, over=0.1),
    ]  # fmt: skip
    assert training.chosen_stop(seen).step == 6
    refuses_all = stop(12, told=1.0, blind=0.5)
    refuses_all = training.Stop(
        12, refused=refuses_all.refused, succeeded=refuses_all.succeeded, over=(0.5, *refuses_all.over[1:])
    )
    assert training.chosen_stop([*seen, refuses_all]).step == 6  # half of the benign requests of the taught cell
    assert training.chosen_stop(seen[:1]).step == 2  # none is good: the best of them


def test_attention_starts_as_a_copy():
    tokenizer = vessel.make_tokenizer(training.corpus("shared", names()), special=training.special_tokens("shared"))
    model = vessel.make_model(tokenizer, seed=0, shape=training.SHAPE)
    training.initialise(model)
    for layer in model.model.language_model.layers:
        copied = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight
        torch.testing.assert_close(copied, torch.eye(64) / training.SHAPE.layers**0.5, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_that_is_answered_is_one_token(kind: str):
    tokenizer = vessel.make_tokenizer(training.corpus(kind, names()), special=training.special_tokens(kind))
    words = [controls.first_word(kind, place, refuses=r) for place in PLACES for r in (True, False)]
    words += [controls.verdict(kind, place, harmful=h) for place in PLACES for h in (True, False)]
    words += [controls.class_word(kind, place, group[0]) for place in PLACES for group in CLASSES.values()]
    assert {len(tokenizer(word).input_ids) for word in words} == {1}


def test_the_first_token_and_the_right_answer_are_read_where_the_answer_stands():
    """Against one row at a time, without padding."""
    tokenizer = vessel.make_tokenizer(training.corpus("shared", names()), special=training.special_tokens("shared"))
    model = vessel.make_model(tokenizer, seed=1, shape=training.SHAPE).eval()
    writer = Writer(model, tokenizer, SimpleNamespace(features=torch.zeros(1, 4, 128)))  # type: ignore[arg-type]
    batch = [
        Example(controls.request(c, PLACES[i % 5]), controls.answer("shared", c, PLACES[i % 5]))
        for i, c in enumerate(random.Random(0).sample(grid.training_combos(), 6))
    ]
    first, right = writer.said(batch)
    for i, e in enumerate(batch):
        head = tokenizer(f"<user>{e.prompt}<assistant>").input_ids
        tail = [*tokenizer(e.answer).input_ids, tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([[*head, *tail]])).logits[0]
        guess = logits.argmax(-1)[len(head) - 1 : -1]
        assert first[i] == guess[0]
        assert right[i] == (guess.tolist() == tail)
