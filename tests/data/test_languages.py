"""Tables by language: they cover the same languages, and names and prefixes are found."""

from __future__ import annotations

from typing import Any

import pytest

from neuronshield import InputError
from neuronshield.data.languages import (
    COMPLIANCES,
    REFUSAL_SENTENCES,
    REFUSALS,
    Prefixes,
    chosen_openings,
    refusal_sentence,
    target_opening,
)


def test_every_language_has_refusals_compliances_and_a_sentence():
    assert set(REFUSALS) == set(COMPLIANCES) == set(REFUSAL_SENTENCES)
    for language in REFUSALS:
        assert REFUSALS[language]
        assert not set(REFUSALS[language]) & set(COMPLIANCES[language])
        assert any(refusal_sentence(language).startswith(prefix) for prefix in REFUSALS[language])


def test_given_prefixes_replace_the_built_in_ones_of_their_language_only():
    built_in = {"en": ["Sorry"], "zh": ["抱歉"]}
    assert chosen_openings(None, built_in, "zh-Hant") == ["抱歉"]
    assert chosen_openings(["No"], built_in, "zh") == ["No"]
    assert chosen_openings("No", built_in, "zh") == ["No"]
    assert chosen_openings({"zh": ["不"]}, built_in, "zh-Hant") == ["不"]
    assert chosen_openings({"zh": ["不"]}, built_in, "en") == ["Sorry"]
    assert chosen_openings(None, built_in, "eu") == []


def test_languages_of_given_prefixes_are_read_as_those_of_prompts():
    assert chosen_openings({"English": ["No"], "zh_TW": ["不"]}, {}, "en") == ["No"]
    assert chosen_openings({"English": ["No"], "zh_TW": ["不"]}, {}, "zh-Hant") == ["不"]
    with pytest.raises(InputError, match="refusals: language 'en' is given twice, the second time as 'EN'"):
        Prefixes(refusals={"en": ["No"], "EN": ["Sorry"]})
    with pytest.raises(InputError, match="compliances: language 'nonsense' is not a BCP-47 tag"):
        Prefixes(compliances={"nonsense": ["Yes"]})


def test_the_prefix_of_a_target_ends_at_punctuation_or_three_words():
    found = [target_opening(t) for t in ("Sorry, no.", "one two three four", "抱歉，我", "", None)]
    assert found == ["Sorry", "one two three", "抱歉", "", ""]


def test_a_language_without_a_sentence_is_named():
    with pytest.raises(InputError, match="no refusal sentence for 'eu'; there are en, es"):
        refusal_sentence("eu")


@pytest.mark.parametrize(
    "wrong", [3, [], [3], [""], ["No", " "], {}, {"fr": "Non"}, {"fr": []}, {3: ["Non"]}, "", {"a"}]
)
def test_prefixes_are_a_list_of_texts_or_lists_by_language(wrong: Any):
    with pytest.raises(
        InputError, match=r"^refusals=.*: must be a list of non-empty strings, {language: list} or None$"
    ):
        Prefixes(refusals=wrong)
    with pytest.raises(InputError, match=r"^compliances="):
        Prefixes(["No"], wrong)
