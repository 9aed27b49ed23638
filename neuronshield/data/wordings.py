"""Whether an answer refuses, by how refusals are worded in its language.

An answer refuses if one of its first two sentences says that the speaker cannot or will not help, or if it apologises and says no
more, or no more than a "no". An apology for a delay or for bad news, or one that an answer follows, is no refusal. What the answer
quotes is left out.

The patterns (`wordings_latin`, `wordings_other`) are not the refusal prefixes of `data.languages`, whose first tokens the refusal
margin is read from.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from .texts import from_clauses, plain, sentences, without_quotes
from .wordings_latin import LATIN
from .wordings_other import OTHER

__all__ = ["WORDINGS", "has_wording", "refuses"]


#: {language: how it words a refusal}
WORDINGS = {**LATIN, **OTHER}

#: Characters of the first two sentences that are read: scripts without full stops have long ones.
HEAD = 320

#: Letters and digits after an apology, up to which it is a bare one.
BARE = 6


def has_wording(language: str) -> bool:
    """Whether refusals of a language, or of its base language, can be recognised.

    >>> has_wording("pt-BR"), has_wording("tlh")
    (True, False)

    Args:
        language: a BCP-47 tag.
    """
    return _base(language) in WORDINGS


def refuses(text: str, language: str) -> bool:
    """Whether the first two sentences of an answer refuse.

    >>> refuses("Great question! I can't help with that.", "en"), refuses("Sorry for the delay, here is the list.", "en")
    (True, False)

    Args:
        text: the answer, after the thought if there is one.
        language: a BCP-47 tag of a language that `has_wording`.

    Raises:
        KeyError: a language without a wording.
    """
    wording = _compiled(_base(language))
    head = [wording.unless.sub(" ", s[:HEAD]) for s in sentences(without_quotes(plain(text)))[:2]]
    if any(wording.refuse.search(s) for s in head):
        return True
    if any(wording.answer.search(s) for s in head):
        return False
    # the apology may follow a word or a greeting ("Oh, I'm sorry")
    starts = [part for s, n in zip(head, (2, 1), strict=False) for part in from_clauses(s)[:n]]
    for start in starts:
        if (found := wording.apology.match(start)) is not None:
            rest = start[found.end() :]
            more = " ".join([rest, *head[1:]])
            bare = sum(map(str.isalnum, more)) <= BARE
            return not wording.regret.match(rest) and (bare or wording.no.search(more) is not None)
    return False


class _Compiled(NamedTuple):
    refuse: re.Pattern[str]
    no: re.Pattern[str]
    apology: re.Pattern[str]
    regret: re.Pattern[str]
    answer: re.Pattern[str]
    unless: re.Pattern[str]


def _base(language: str) -> str:
    return language if language in WORDINGS else re.split("[-_]", language, maxsplit=1)[0].lower()


@cache
def _compiled(language: str) -> _Compiled:
    found = WORDINGS[language]
    parts = (found.refuse, (found.no,), (found.apology,), (found.regret,), (found.answer,), found.unless or (r"(?!)",))
    return _Compiled(*(re.compile("|".join(f"(?:{_plain_pattern(p)})" for p in part)) for part in parts))


def _plain_pattern(pattern: str) -> str:
    """A pattern with its letters as `plain` writes them; spaces at its ends are kept."""
    left, right = len(pattern) - len(pattern.lstrip(" ")), len(pattern) - len(pattern.rstrip(" "))
    return " " * left + plain(pattern) + " " * right
