"""The prompts that come with the package are what their names say."""

from __future__ import annotations

import re

import pytest

import neuronshield as ns
from neuronshield import organism
from neuronshield.data.fetch import benign_prompts
from neuronshield.data.languages import REFUSALS, refusal_sentence
from neuronshield.data.shipped import matched_pairs, retention_prompts


def plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def test_retention_is_benign_the_same_requests_in_every_language_of_the_organism():
    prompts = retention_prompts()
    languages = {p.language for p in prompts}
    assert {*organism.LANGUAGES, "es", "fr", "de", "pt"} == languages
    assert {p.label for p in prompts} == {"benign"}
    assert {p.split for p in prompts} == {"train"}
    for language in languages:
        assert sorted(p.pair_id or "" for p in prompts.where(language=language)) == [
            f"retain-{i:02}" for i in range(1, 25)
        ]


def test_pairs_are_whole_in_every_language_and_differ():
    prompts = matched_pairs()
    assert [sum(p.language == x for p in prompts) for x in ("en", "es", "fr", "de", "pt")] == [80] * 5
    assert {p.split for p in prompts} == {"test"}
    matched = prompts.pairs()
    assert len(matched) == 200
    for harmful, benign in matched:
        a, b = (set(plain(p.prompt).split()) for p in (harmful, benign))
        assert a != b
        assert len(a & b) / len(a | b) > 0.2


def test_nothing_is_both_retained_and_tested():
    own = [plain(p.prompt) for p in [*retention_prompts(), *matched_pairs()]] + [plain(t) for t in benign_prompts()]
    assert len(own) == len(set(own))


def test_every_retained_language_has_a_refusal_that_the_grader_counts():
    for language in {p.language for p in retention_prompts()}:
        assert any(refusal_sentence(language).startswith(opening) for opening in REFUSALS[language]), language


@pytest.mark.parametrize("read", [retention_prompts, matched_pairs])
def test_a_missing_language_is_named(read: object):
    assert callable(read)
    assert {p.language for p in read(["es", "de"])} == {"es", "de"}
    with pytest.raises(ns.InputError, match=r"no .* prompts in 'eu'; there are en"):
        read(["eu"])
    with pytest.raises(ns.InputError, match="no refusal sentence for 'xx'"):
        refusal_sentence("xx")
