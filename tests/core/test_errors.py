"""The error for bad input is one line."""

from __future__ import annotations

from neuronshield import InputError


def test_line_breaks_in_a_message_become_spaces():
    assert str(InputError("a.jsonl:1:\n  bad\tcolumn")) == "a.jsonl:1: bad column"


def test_half_a_surrogate_pair_in_a_message_can_be_printed():
    assert str(InputError("a\ud800.jsonl: no such file")).encode() == rb"a\ud800.jsonl: no such file"


def test_it_can_be_caught_as_a_value_error():
    assert issubclass(InputError, ValueError)
