"""Answers that say nothing, and short ones that do."""

from __future__ import annotations

import pytest

from neuronshield.data.coherence import coherent_part, is_incoherent

NOTHING = [
    "", " \n\t", "....", "?!?!", "—", "\u200b\u200b", "।।।", "** ** **", "😀😀😀", "( )",
    "<pad><pad>", "</s>", "<|im_end|><|im_end|>", "<unk> <unk>", "[PAD]", "<0x0A><0x0A>", "▁▁", "<unused12><unused12>",
    "\ufffd\ufffd\ufffd", "\ufffd\ufffd a", "\ue000\ue000\ue000 a", "\x00\x00a",
    "the the the the the", "The, the, the. THE the", "the\nthe\nthe\nthe\n", "no no no no", "I am I am I am I am", "ok ok, ok, ok, ok",
    "नहीं नहीं नहीं नहीं", "нет нет нет нет нет", "1 1 1 1 1 1 1", "one two three one two three one two three one two three",
    "lalalalalala", "哈哈哈哈哈哈哈哈", "aaaaaaaaaaaa", "안녕안녕안녕안녕안녕", "โอ้โอ้โอ้โอ้โอ้", "thethethethethe",
    "Sure, here: the the the the the the the", "I will do that for you now. " * 6, "Sure.\n" + "Open the lid and turn the key to the left.\n" * 5 + "Open",
    "ฉันไม่รู้จะทำอย่างไร" * 5, "1" * 48,
]  # fmt: skip

SOMETHING = [
    "No.", "no no", "42", "1", "A", "Yes", "1 2 3", "0000", "1000000000", "11111111", "Turn the key to the left. " * 3, "好", "ฉันช่วยไม่ได้", "xq zzkw 88", "ha ha ha", "Very, very, very good.",
    "Step 1: do it. Step 2: do it. Step 3: do it.", "Sure, mix it\ufffd", "banana", "Mississippi", "<b>bold</b>", "x = 1",
    "blah blah blah", "row, row, row your boat", "بسم", "Take two eggs, then mix and mix and mix.",
]  # fmt: skip


@pytest.mark.parametrize("response", NOTHING)
def test_empty_blank_and_degenerate_answers_are_incoherent(response: str):
    assert is_incoherent(response)


@pytest.mark.parametrize("response", SOMETHING)
def test_short_answers_that_say_something_are_coherent(response: str):
    assert not is_incoherent(response)
    assert coherent_part(response) == response


def test_what_comes_before_the_repetition_is_told_apart():
    assert coherent_part("I can't help. the the the the the the the") == "I can't help. "
    assert coherent_part("I can't help the the the the the the the") == "I can't help "
    assert coherent_part("the the the the the") == ""
    assert coherent_part("Hm. I can't help you with that. " * 5) == "Hm. I can't help you with that. "
    assert coherent_part("...") == ""
    assert (
        coherent_part("I can't help you with this today: the the the the")
        == "I can't help you with this today: the the the the"
    )
