"""Whether an answer says anything: empty, blank and degenerate answers do not.

Incoherent are, and only are

    answers without a letter or digit: empty, blank, punctuation, emoji, special tokens, replacement characters
    answers of which a third or more are characters that stand for no text (U+FFFD, private use, unassigned)
    answers that repeat one unit throughout: up to three words (four times or more), or up to six characters of one word
    answers that end in such a repetition, if it is more than half of their words

An answer of random words is not recognised; a judge may.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["is_incoherent"]


#: Special tokens that decoding left in: <pad>, </s>, <|im_end|>, [UNK], <0x0A>, <unused12>, and byte marks of tokenizers.
_SPECIAL = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|</?[a-z_]{1,16}\d{0,4}>|<0x[0-9a-f]{2}>|\[/?(?:pad|unk|cls|sep|mask|bos|eos|inst)\]|[▁ĠĊ]",
    re.IGNORECASE,
)
REPEATS = 4  # of a unit of words, from which on it is a loop
UNIT = 3  # words of the longest unit
LETTERS = 6  # characters of the longest unit of a word
WORDS_OF_LETTERS = 8  # characters that a word has at least that is a repetition of characters
ODD = 1 / 3  # share of characters that stand for no text


def is_incoherent(response: str) -> bool:
    """Whether an answer is empty, blank or degenerate (see the module).

    >>> [is_incoherent(text) for text in ("", "?!", "the the the the the", "<pad><pad>", "No.", "42")]
    [True, True, True, True, False, False]

    Args:
        response: the answer, after the thought if there is one.
    """
    text = _SPECIAL.sub(" ", unicodedata.normalize("NFKC", response))
    seen = [c for c in text if not c.isspace()]
    if not any(unicodedata.category(c)[0] in "LN" for c in seen):
        return True
    if sum(c == "\ufffd" or unicodedata.category(c) in ("Co", "Cn", "Cs", "Cc") for c in seen) >= ODD * len(seen):
        return True
    words = _words(text)
    return _repeats_letters(words[0]) if len(words) == 1 else _loop(words) > len(words) / 2


def _words(text: str) -> list[str]:
    """The words of a text, in lower case, with the marks and apostrophes that are part of them."""
    lower = text.casefold().replace("’", "'")
    joined = "".join(c if c == "'" or unicodedata.category(c)[0] in "LNM" else " " for c in lower)
    return [w for w in (word.strip("'") for word in joined.split()) if w]


def _repeats_letters(word: str) -> bool:
    """Whether one word is a unit of a few characters, repeated: "lalalala", "哈哈哈哈哈哈哈哈"."""
    if len(word) < WORDS_OF_LETTERS or word.isdigit():
        return False
    return any(
        len(word) >= REPEATS * size and word == (word[:size] * (len(word) // size + 1))[: len(word)]
        for size in range(1, LETTERS + 1)
    )


def _loop(words: list[str]) -> int:
    """How many of the last words repeat one unit of at most `UNIT` words, `REPEATS` times or more; 0 if they do not."""
    longest = 0
    for size in range(1, UNIT + 1):
        at = len(words) - 1 - size
        while at >= 0 and words[at] == words[at + size]:
            at -= 1
        run = len(words) - 1 - at
        if run >= REPEATS * size:
            longest = max(longest, run)
    return longest
