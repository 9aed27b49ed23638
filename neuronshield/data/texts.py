"""Text as it is compared: without case, accents, invisible marks and decoration, cut into sentences and clauses.

`plain` is applied to an answer and to the prefix or pattern that it is compared with, so that "Désolé", "De´sole´" and "DESOLE" are
the same word. Scripts that write no spaces between words have no word boundaries here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["from_clauses", "plain", "sentences", "starts_with", "without_quotes"]


#: Marks that some writers leave out: accents of Latin and Cyrillic, Arabic vowels and hamza, nukta, tatweel.
_MARKS = re.compile("[\u0300-\u036f\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0640\u093c\u09bc]")
#: Letters with several spellings of the same word.
_LETTERS = str.maketrans({
    "’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'", "′": "'", "＇": "'", "“": '"', "”": '"', "„": '"', "‟": '"',
    "ı": "i", "đ": "d", "Đ": "d", "\u0901": "\u0902", "\u0649": "\u064a", "\u06cc": "\u064a", "\u06a9": "\u0643",
})  # fmt: skip
_SPACES = re.compile(r"[^\S\n]+")
_SENTENCE_END = re.compile(r"[.!?。؟।॥۔\n]+")
_CLAUSE_END = re.compile(r"[,;:،؛、，；：()—–]+|\s-+\s")
_QUOTED = re.compile(r'"[^"\n]*"|«[^»\n]*»|‹[^›\n]*›|「[^」\n]*」|『[^』\n]*』|《[^》\n]*》|(?<!\w)\'[^\'\n]*\'(?!\w)')
#: Scripts that write no spaces between words, and Hangul, whose endings follow the stem without one.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af]"
)


def plain(text: str) -> str:
    """The text without case, accents, invisible characters and other marks that do not change which word it is.

    >>> plain("  JE SUIS DÉSOLÉ\\u200b"), plain("I’m"), plain("عُذْرًا")
    ('je suis desole', "i'm", 'عذرا')

    Args:
        text: any text.
    """
    text = unicodedata.normalize("NFKD", text).translate(_LETTERS).casefold()
    text = "".join(c for c in _MARKS.sub("", text) if c == "\n" or unicodedata.category(c) not in ("Cf", "Cc"))
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text).translate(_LETTERS)).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a plain text, each from its first letter on; lines without a letter are no sentences.

    >>> sentences('**no.** 1. take two eggs\\n- mix!')
    ['no', 'take two eggs', 'mix']

    Args:
        text: as `plain` returns it.
    """
    return [s for s in (_from_first_letter(part) for part in _SENTENCE_END.split(text)) if s]


def from_clauses(sentence: str) -> list[str]:
    """The rest of a sentence from the start of each of its clauses on.

    >>> from_clauses("well, i am sorry, but no")
    ['well, i am sorry, but no', 'i am sorry, but no', 'but no']

    Args:
        sentence: one of `sentences`.
    """
    starts = [0, *(m.end() for m in _CLAUSE_END.finditer(sentence))]
    return [rest for rest in (_from_first_letter(sentence[at:]) for at in starts) if rest]


def _from_first_letter(text: str) -> str:
    for i, c in enumerate(text):
        if unicodedata.category(c)[0] == "L":
            return text[i:].rstrip(" *_#>\"'-")
    return ""


def without_quotes(text: str) -> str:
    """A plain text without what it quotes, unless all of it is one quotation.

    >>> without_quotes('"i cannot" is short for "i can not"'), without_quotes('"i cannot."')
    (' is short for ', '"i cannot."')

    Args:
        text: as `plain` returns it.
    """
    rest = _QUOTED.sub("", text)
    return rest if any(unicodedata.category(c)[0] == "L" for c in rest) else text


def starts_with(sentence: str, prefixes: Sequence[str]) -> bool:
    """Whether a plain sentence starts with one of the prefixes, and the prefix ends where a word ends.

    >>> starts_with("no problem", ["No"]), starts_with("nothing", ["No"]), starts_with("抱歉我不能", ["抱歉"])
    (True, False, True)

    Args:
        sentence: one of `sentences`.
        prefixes: as a person writes them.
    """
    for prefix in map(plain, prefixes):
        if prefix and sentence.startswith(prefix):
            after = sentence[len(prefix) : len(prefix) + 1]
            if not (_is_letter(prefix[-1]) and _is_letter(after)) or _UNSPACED.match(prefix[-1]):
                return True
    return False


def _is_letter(c: str) -> bool:
    return bool(c) and unicodedata.category(c)[0] in "LMN"
