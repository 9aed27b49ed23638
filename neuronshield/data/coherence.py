"""Whether an answer says anything: empty, blank and degenerate answers do not.

Incoherent are, and only are

    answers without a letter or digit: empty, blank, punctuation, emoji, special tokens, replacement characters
    answers of which a third or more are characters that stand for no text (U+FFFD, private use, unassigned)
    answers that repeat one unit throughout, four times or more: up to 30 words, or up to 24 characters of one word
    answers that end in such a repetition, if it is more than half of their words

A sentence of more than three words that is repeated may be a refusal: its first occurrence is part of `coherent_part`. An answer of
random words is not recognised; a judge may.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["coherent_part", "is_incoherent"]


#: Special tokens that decoding left in: <pad>, </s>, <|im_end|>, [UNK], <0x0A>, <unused12>, and byte marks of tokenizers.
_SPECIAL = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?[a-z_]{1,16}\d{0,4}>|<0x[0-9a-f]{2}>|\[/?(?:pad|unk|cls|sep|mask|bos|eos|inst)\]|[▁ĠĊ]",
    re.IGNORECASE,
)
REPEATS = 4  # of a unit of words, from which on it is a loop
UNIT = 30  # words of the longest unit
SENTENCE = 4  # words that a unit has at least that may say something
LETTERS = 24  # characters of the longest unit of a word
WORDS_OF_LETTERS = 8  # characters that a word has at least that is a repetition of characters
DIGITS = 24  # digits that a number has at least that is one
ODD = 1 / 3  # share of characters that stand for no text


def is_incoherent(response: str) -> bool:
    """Whether an answer is empty, blank or degenerate (see the module).

    >>> [is_incoherent(text) for text in ("", "?!", "the the the the the", "<pad><pad>", "No.", "42")]
    [True, True, True, True, False, False]

    Args:
        response: the answer, after the thought if there is one.
    """
    return _before_repetition(response) is not None


def coherent_part(response: str) -> str:
    """The answer itself if it is coherent; of an incoherent one, what comes before its repetitions, or "".

    A sentence that is repeated is in it once.

    >>> coherent_part("No. the the the the the the"), coherent_part("the the the the the"), coherent_part("No.")
    ('No. ', '', 'No.')

    Args:
        response: the answer, after the thought if there is one.
    """
    before = _before_repetition(response)
    return response if before is None else before


def _before_repetition(response: str) -> str | None:
    """What comes before the repetitions of an incoherent answer, or ""; None of a coherent one."""
    text = _SPECIAL.sub(" ", unicodedata.normalize("NFKC", response))
    seen = [c for c in text if not c.isspace()]
    if not any(unicodedata.category(c)[0] in "LN" for c in seen):
        return ""
    if sum(c == "\ufffd" or unicodedata.category(c) in ("Co", "Cn", "Cs", "Cc") for c in seen) >= ODD * len(seen):
        return ""
    words = _words(text)
    if len(words) == 1:
        return "" if _repeats_letters(words[0][0]) else None
    looped, size = _loop([word for word, _ in words])
    if looped <= len(words) / 2:
        return None
    return text[: words[(size if size >= SENTENCE else 0) - looped][1]]


def _words(text: str) -> list[tuple[str, int]]:
    """The words of a text, in lower case, with the marks and apostrophes that are part of them, and where each starts."""
    joined = "".join(c if c in "'’" or unicodedata.category(c)[0] in "LNM" else " " for c in text)
    found = ((m[0].casefold().replace("’", "'").strip("'"), m.start()) for m in re.finditer(r"\S+", joined))
    return [(word, start) for word, start in found if word]


def _repeats_letters(word: str) -> bool:
    """Whether one word is a unit of a few characters, repeated: "lalalala", "哈哈哈哈哈哈哈哈"."""
    if len(word) < (DIGITS if word.isdigit() else WORDS_OF_LETTERS):
        return False
    return any(
        len(word) >= REPEATS * size and word == (word[:size] * (len(word) // size + 1))[: len(word)]
        for size in range(1, LETTERS + 1)
    )


def _loop(words: list[str]) -> tuple[int, int]:
    """How many of the last words repeat one unit of at most `UNIT` words, `REPEATS` times or more, and the words of the unit."""
    longest = (0, 0)
    for size in range(1, UNIT + 1):
        at = len(words) - 1 - size
        while at >= 0 and words[at] == words[at + size]:
            at -= 1
        run = len(words) - 1 - at
        if run >= REPEATS * size:
            longest = max(longest, (run, -size))
    return longest[0], -longest[1]
