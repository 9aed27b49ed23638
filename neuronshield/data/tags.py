"""Language tags: every spelling of a language to one canonical BCP-47 tag, so that one language is one cell.

A canonical tag has no part that CLDR's likely subtags would add: "en-US", "eng_Latn" and "English" are "en", "zh-CN" and
"zh-Hans" are "zh", "zh-TW" is "zh-Hant". What changes the language stays: "en-GB", "pt-PT", "zh-Hant", "sr-Latn".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ..core.errors import InputError

__all__ = ["language_tag"]

#: The longest tag that is read, in characters; RFC 5646 asks for at least 35.
LONGEST = 35
#: "und": the language is not known. Likely subtags would make it English.
UNKNOWN = "und"


def language_tag(given: Any) -> str:
    """The canonical BCP-47 tag that a tag or an English name stands for.

    >>> [language_tag(name) for name in ("en_US", "English", "eng_Latn", "zh-TW", "zh-Hans", "en-GB")]
    ['en', 'en', 'en', 'zh-Hant', 'zh', 'en-GB']

    Args:
        given: a tag with "-" or "_", an ISO 639 code of two or three letters, or the name of a language; in any case.

    Raises:
        InputError: none of them, or a tag of more than 35 characters.
    """
    if not isinstance(given, str):
        raise InputError(f"language {given!r:.60} is not a BCP-47 tag such as 'en' or 'zh-Hant'")
    return _canonical(" ".join(given.split())[: LONGEST + 1])


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    from langcodes import standardize_tag, tag_is_valid

    tag = text if re.fullmatch(r"[A-Za-z]+([-_][A-Za-z0-9]+)*", text) and len(text) <= LONGEST else ""
    if not (tag and tag_is_valid(tag)):
        tag = _named(text)
    if tag:
        return _minimal(standardize_tag(tag, macro=True))
    shown = repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}..."
    raise InputError(f"language {shown} is not a BCP-47 tag, nor the name of a language that is known{_hint(text)}")


def _named(text: str) -> str:
    """The tag of a language's name, "" for none; "Chinese (Traditional)" is read as "Traditional Chinese"."""
    from language_data.names import TRIES, name_to_code, normalize_name

    name = re.sub(r"^(.+?) ?\((.+)\)$", r"\2 \1", text)
    key = normalize_name(name)
    if re.search(r"[()]|,(?! )", name) or re.fullmatch("[a-z]{1,2}", key):  # "en,de" is not Ende, "ua" not Abu' Arapesh
        return ""
    languages = ("en",) if re.fullmatch("[a-z]{3}", key) else ("en", "und")  # in English first, then in any language
    for language in languages:
        tag = name_to_code("language", name, language)
        if tag and key in TRIES[f"{language}/name_to_language"]:  # the beginning of a name is not enough
            return str(tag)
    return ""


def _minimal(tag: str) -> str:
    """The shortest tag with the same likely subtags; a script is kept rather than a region."""
    from langcodes import Language

    given = Language.get(tag.removesuffix("-001"), normalize=False)  # 001 is the world
    if given.language in (None, UNKNOWN) or given.variants or given.extensions or given.private or given.extlangs:
        return tag
    full = given.maximize()
    for script, territory in ((None, None), (full.script, None), (None, full.territory)):
        candidate = Language.make(language=given.language, script=script, territory=territory)
        if candidate.maximize() == full:
            return str(candidate.to_tag())
    return tag


def _hint(text: str) -> str:
    """The tag that was meant where a country's code was written."""
    from langcodes import Language, tag_is_valid

    if not re.fullmatch("[A-Za-z]{2}", text) or not tag_is_valid(f"und-{text}"):
        return "; use a tag such as 'en' or 'zh-Hant'"
    likely = Language.get(f"und-{text}").maximize().language
    if likely == "en":  # also of what is no country
        return "; use a tag such as 'en' or 'zh-Hant'"
    return f"; {text!r} is a country: did you mean {likely!r}?"
