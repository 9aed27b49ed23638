"""Every spelling of a language is one tag, and what is no language is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuronshield import Cell, InputError, Prompt, PromptSet
from neuronshield.data.tags import language_tag

SPELLINGS = {
    "en": ("en", "EN", "en-us", "en-US", "en_US", "eng", "eng_Latn", "English", "english", " English ", "American English"),
    "zh": ("zh", "zh-CN", "zh_cn", "zh-Hans", "ZH-HANS-CN", "zho_Hans", "cmn", "Chinese", "Simplified Chinese",
           "Chinese (Simplified)", "Mandarin", "中文"),
    "zh-Hant": ("zh-Hant", "zh-TW", "zh_tw", "zh-Hant-TW", "zho_Hant", "Traditional Chinese", "Chinese (Traditional)"),
    "pt": ("pt", "pt-BR", "pt-br", "por", "Portuguese", "Brazilian Portuguese"),
    "sw": ("sw", "swa", "swh", "swh_Latn", "sw-TZ", "Swahili", "Kiswahili"),
    "ar": ("ar", "ara", "arb", "arb_Arab", "ar-EG", "Arabic", "Modern Standard Arabic"),
    "bn": ("bn", "ben_Beng", "bn-BD", "Bengali", "Bangla"),
    "jv": ("jv", "jav_Latn", "Javanese"),
    "ko": ("ko", "kor", "ko-KR", "Korean"),
    "id": ("id", "in", "ind_Latn", "Indonesian"),
    "he": ("he", "iw", "Hebrew"),
}  # fmt: skip


@pytest.mark.parametrize("tag", SPELLINGS)
def test_spellings_of_a_language_are_one_tag(tag: str):
    assert {language_tag(given) for given in SPELLINGS[tag]} == {tag}


@pytest.mark.parametrize(
    "tag",
    ["en-GB", "pt-PT", "zh-HK", "sr-Latn", "sw-KE", "es-419", "yue", "arz", "de-1996", "en-x-leet", "x-toki", "und"],
)
def test_what_makes_another_language_stays(tag: str):
    assert language_tag(tag) == tag
    assert language_tag(tag.lower()) == tag


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Klingonish", "'Klingonish' is not a BCP-47 tag"), ("Englsh", "'Englsh' is not"), ("", "'' is not"),
        ("xx", "'xx' is not a BCP-47 tag"), ("en us", "'en us' is not"), ("../../x", "is not a BCP-47 tag"),
        ("en_US.UTF-8", "is not a BCP-47 tag"), ("Portuguese (Portugal)", "is not a BCP-47 tag"),
        ("en,de", "'en,de' is not"), ("en-", "'en-' is not"), ("-en", "'-en' is not"), ("en(de", "is not a BCP-47 tag"),
        ("a", "'a' is not"), ("ua", r"'ua' is a country: did you mean 'uk'\?"), ("ris", "'ris' is not"),
        ("jp", r"'jp' is a country: did you mean 'ja'\?"), ("cn", r"did you mean 'zh'\?"), ("cz", r"did you mean 'cs'\?"),
        (None, "language None is not"), (5, "language 5 is not"), (["en"], "is not a BCP-47 tag"),
    ],
)  # fmt: skip
def test_what_is_no_language_is_refused(given: Any, says: str):
    with pytest.raises(InputError, match=says):
        language_tag(given)


def test_a_tag_of_any_length_is_one_short_line():
    with pytest.raises(InputError, match="is not a BCP-47 tag") as caught:
        language_tag("en" + "-aaaaaaaa" * 300)
    assert len(str(caught.value)) < 200


def test_prompts_cells_and_choices_read_languages_alike():
    prompt = Prompt("a", "how", "benign", language="English")
    rows = PromptSet.from_records(
        [{"prompt": f"x{i}", "label": "benign", "language": t} for i, t in enumerate(SPELLINGS["zh"])]
    )
    assert prompt.cell == Cell("EN", "text") == Cell.of("en-US/text") == ("en", "text")
    assert rows.cells() == [Cell("zh", "text")]
    assert len(rows.where(language="Chinese")) == len(rows.where(cell="zh_CN/text")) == len(rows)
    assert len(rows.in_cells(("zho_Hans", "text"))) == len(rows)
    assert PromptSet([prompt]).where(language=np.str_("EN"))[0] == prompt
    with pytest.raises(InputError, match="language 'nonsense' is not"):
        rows.where(language="nonsense")
    with pytest.raises(InputError, match=r"modality='txt' is unknown; did you mean 'text'\?"):
        Cell("en", "txt")
