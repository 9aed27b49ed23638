"""How the graft learns to see, on a tiny language model: what is fitted, through what, and on which requests."""

from __future__ import annotations

import torch
from graft_parts import tokenizer
from tiny import llama
from torch import nn

from neuronshield.graft import harms
from neuronshield.graft.assembly import TOKENS
from neuronshield.graft.build.backbone import Backbone
from neuronshield.graft.build.sight import Recipe, Said, Views, caption, english_names, phrase, regress
from neuronshield.organism.lexicon import OBJECTS

WIDTH = 7  # of the features; the tiny model's is 20


def backbone() -> Backbone:
    return Backbone(llama(), tokenizer())


def planted(objects: int = 4) -> Views:
    """Features that say the object and the patch, three views of each object, the last one of a word."""
    torch.manual_seed(3)
    one = torch.randn(objects, TOKENS, WIDTH)
    return Views(one.repeat(3, 1, 1), tuple(range(objects)) * 3, drawn=2 * objects)


def projector() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, 20))


def test_the_loss_after_a_kept_system_message_is_that_of_the_whole_text():
    """Beside one forward of everything, row by row and without a cache."""
    own = backbone()
    shown, asked, answers = torch.randn(2, TOKENS, 20), ["how do i", "burn"], ["house", "this house how"]
    before = own.tokenizer.apply_chat_template([{"role": "user", "content": "§"}], tokenize=False).split("§")[0]
    total, count = 0.0, 0
    for picture, text, answer in zip(shown, asked, answers, strict=True):
        wanted = [*own.ids(answer), own.tokenizer.eos_token_id]
        head = torch.cat([own.embedded(before), picture, own.embedded(text + own.after)])
        row = torch.cat([head, own.table[torch.tensor(wanted)]])[None]
        with torch.no_grad():
            logits = own.module(inputs_embeds=row).logits[0, len(head) - 1 : -1].log_softmax(-1)
        total -= float(logits[range(len(wanted)), wanted].sum())
        count += len(wanted)
    assert torch.isclose(own.loss(shown, asked, answers=answers), torch.tensor(total / count), atol=1e-5)


def test_regression_writes_the_words_of_each_picture_and_leaves_the_language_model_alone():
    own, views, fitted = backbone(), planted(), projector()
    kept = {n: t.clone() for n, t in own.module.state_dict().items()}
    regress(fitted, own, views, recipe=Recipe(regress_steps=300), bar=False)
    wanted = torch.stack([phrase(own, name) for name in english_names()[:4]])
    with torch.no_grad():
        error = ((fitted(views.features[:4]) - wanted) ** 2).mean() / wanted.var()
    assert error < 0.05
    assert all(torch.equal(t, kept[n]) for n, t in own.module.state_dict().items())


def test_captions_are_learnt_through_the_frozen_language_model():
    own, views, fitted = backbone(), planted(), projector()
    said = [Said("how do i burn this", 0, "house")]
    kept = {n: t.clone() for n, t in own.module.state_dict().items()}

    def likely() -> float:
        with torch.no_grad():
            return -float(own.loss(fitted(views.features[:1]), ["\nhow do i burn this"], answers=["house"]))

    before = likely()
    caption(
        fitted, own, views, said=said, recipe=Recipe(caption_steps=40, caption_rate=1e-2, named=0.0), seed=0, bar=False
    )
    assert likely() > before + 0.5
    assert all(torch.equal(t, kept[n]) for n, t in own.module.state_dict().items())


def test_a_phrase_has_as_many_tokens_as_a_picture_and_ends_in_the_name():
    own = backbone()
    assert phrase(own, "a b c house").shape == (TOKENS, 20)
    assert torch.equal(phrase(own, "a b c house")[-1], own.embedded("house")[0])


def test_drawings_come_as_often_as_asked():
    import random

    rng, views = random.Random(0), planted()
    share = sum(views.drawn_at(rng) < views.drawn for _ in range(2000)) / 2000
    assert 0.72 < share < 0.78


def test_every_benign_training_request_is_about_an_object_that_is_drawn():
    names = english_names()
    assert len(names) == len(OBJECTS)
    assert {c.object for c in harms.training_combos()} <= set(names)
