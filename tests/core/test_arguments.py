"""Checks of arguments: what passes, and the one line that is said of what does not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from neuronshield import InputError
from neuronshield.core.arguments import at_least, one_of, require, unknown_keywords


def test_a_value_of_the_right_type_is_returned():
    assert require(3, int, call="f(n)", name="n") == 3
    assert require(Path("a"), (str, os.PathLike), call="f(path)", name="path") == Path("a")


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ("x", int, "f(n): n must be int, got str 'x'"),
        (True, int, "f(n): n must be int, got bool True"),  # True is an int to Python
        ([1], str, "f(n): n must be str, got list"),
        (None, str, "f(n): n must be str, got NoneType"),
        (5, (str, os.PathLike), "f(n): n must be str or a path, got int 5"),
    ],
)
def test_a_value_of_another_type_is_named(value: object, kind: type, said: str):
    with pytest.raises(InputError) as caught:
        require(value, kind, call="f(n)", name="n")
    assert str(caught.value) == said
    with pytest.raises(InputError, match=r"; do this$"):
        require(value, kind, call="f(n)", name="n", hint="do this")


def test_a_long_value_is_cut():
    with pytest.raises(InputError) as caught:
        require("x" * 1000, int, call="f(n)", name="n")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True, float("nan")])
def test_counts_are_whole_and_large_enough(value: object):
    at_least(1, "f", n=1, m=np.int64(7))
    with pytest.raises(InputError, match=r"f: n=.*must be a whole number of at least 1"):
        at_least(1, "f", n=value)


def test_an_unknown_name_gets_the_nearest_one():
    one_of("text", ["text", "image"], call="f", name="modality")
    with pytest.raises(InputError, match=r"modality='txt' is unknown; did you mean 'text'\? use one of text, image"):
        one_of("txt", ["text", "image"], call="f", name="modality")
    with pytest.raises(InputError, match="modality='video' is unknown; use one of"):
        one_of("video", ["text", "image"], call="f", name="modality")
    with pytest.raises(InputError, match="is unknown"):
        one_of(["text"], ["text", "image"], call="f", name="modality")


def test_an_unknown_keyword_gets_the_nearest_one():
    unknown_keywords(["a"], ["a", "b"], "f")
    with pytest.raises(InputError, match=r"f: lang= is unknown; did you mean 'language'\?"):
        unknown_keywords(["language", "lang"], ["language", "label"], "f")
