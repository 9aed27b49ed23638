"""The text of each token of a prompt, and whether it is the prompt's own or was added around it.

**Text.** The texts of all tokens, joined, are what the tokenizer decodes the prompt to. A character that is split over several
tokens (Arabic or Chinese in byte-level BPE) is the text of the token that completes it; the tokens before it have the text "".
A token that stands for a part of a picture has the text "" too.

**Role.** A prompt's own words (of the user, of a system turn, of earlier turns) are "text". What the chat template, the tokenizer
or the processor adds around them is "template". Where the words are in what the template writes is found by writing the template once
more with a marked word in place of each text. If the two do not fit together, or the tokenizer changes what it reads (so that it does not
decode to what was written), no token is said to be the template's: all are "text".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ..data.prompts import Prompt
from ..model.chat import conversation, placeholder, reading, said
from ..model.encodings import Encoded
from ..model.model import Model

__all__ = ["roles_of", "token_texts"]

Span = tuple[int, int]
CUT = "\ufffd"  # what a decoder writes for bytes that are no character


def token_texts(model: Model, ids: Sequence[int]) -> list[str]:
    """The text of each token of a sequence.

    >>> token_texts(model, [5, 6, 7])
    ['how', ' do', ' i']

    Args:
        model: its tokenizer decodes.
        ids: the token ids of a prompt, without padding.
    """
    out: list[str] = []
    before = start = (
        0  # tokens that were decoded last, whose end a decoder may ask for, and those whose text is not all given yet
    )
    given = 0
    for i, token in enumerate(ids):
        if token == model.image_token_id:
            out.append("")
            before, start, given = i, i + 1, 0
            continue
        known = _decoded(model, ids[before:start])
        text = _decoded(model, ids[before : i + 1])[len(known) :]
        last = i + 1 == len(ids) or ids[i + 1] == model.image_token_id
        whole = text if last else text.rstrip(CUT)
        out.append(whole[given:])
        given = max(given, len(whole))
        if whole == text:
            before, start, given = start, i + 1, 0
    return out


def _decoded(model: Model, ids: Sequence[int]) -> str:
    if not len(ids):
        return ""
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def roles_of(model: Model, prompt: Prompt, row: Encoded, *, texts: Sequence[str]) -> list[str]:
    """The role of each token of a prompt: "template", "text" or "image".

    >>> from neuronshield.model.encodings import encoded_rows
    >>> row = encoded_rows(model, prompts[:1])[0]
    >>> roles_of(model, prompts[0], row, texts=token_texts(model, row.tokens["input_ids"].tolist()))
    ['text', 'text', 'text', 'text', 'text']

    Args:
        model: the model.
        prompt: the prompt.
        row: its encoding, one of `neuronshield.model.encodings.encoded_rows`.
        texts: of its tokens, as `token_texts` gives them.
    """
    ids, image = row.tokens["input_ids"].tolist(), model.image_token_id
    spans = _own_words(model, prompt, "".join(texts), pictures=_pictures_between(texts, ids, image))
    ends = list(accumulate(map(len, texts)))
    out = []
    for token, text, end in zip(ids, texts, ends, strict=True):
        if token == image:
            out.append("image")
        elif spans is None:
            out.append("text")
        else:
            begin, stop = end - len(text), max(end, end - len(text) + 1)  # a part of a character goes with what follows
            out.append("text" if any(begin < b and a < stop for a, b in spans) else "template")
    return out


def _pictures_between(texts: Sequence[str], ids: Sequence[int], image: int | None) -> Span | None:
    """Where in the joined text the first and the last image token are; None without any."""
    at = [i for i, token in enumerate(ids) if token == image]
    return (sum(map(len, texts[: at[0]])), sum(map(len, texts[: at[-1]]))) if at else None


def _own_words(model: Model, prompt: Prompt, decoded: str, *, pictures: Span | None) -> list[Span] | None:
    """Where in the decoded text the prompt's own words are; None if that is not known."""
    written, spans = _written(model, prompt)
    if spans is None:
        return None
    mark = placeholder(model)
    if pictures is None:
        first, last = 0, 0
        head, tail = "", written
    else:
        if mark not in written:
            return None
        first, last = written.index(mark), written.rindex(mark) + len(mark)
        head, tail = written[:first], written[last:]
    start = _start(model, decoded, head)
    if start is None or not decoded.endswith(tail):
        return None
    out = []
    for a, b in spans:
        if a >= last:
            out.append((a - len(written) + len(decoded), b - len(written) + len(decoded)))
        elif b <= first:
            out.append((a + start, b + start))
        elif b > a:  # between two pictures, whose places hold more than was written
            return None
    if pictures is not None and any(a < pictures[1] and b > pictures[0] for a, b in out):
        return None
    return out


def _start(model: Model, decoded: str, head: str) -> int | None:
    """Where what the template wrote begins: behind the beginning-of-sequence token that the tokenizer may have added."""
    bos = model.tokenizer.bos_token or ""
    begin = decoded.find(head)
    return begin if begin >= 0 and decoded[:begin].strip() in ("", bos) else None


def _written(model: Model, prompt: Prompt) -> tuple[str, list[Span] | None]:
    """What the model reads, and where in it the prompt's own words are; None if that is not known."""
    read, mark = reading(model, prompt), placeholder(model)
    template = model.template
    if template is None or read.turns is None:
        words = [text for _, text in said(conversation(prompt, parts=True)) if text]
        between = _between(read.text, words)
        return read.text, None if between is None else _fitted(read.text, words, between)
    words = []
    turns: list[Any] = []

    def marked(text: str) -> str:
        pieces = text.split(mark) if prompt.images else [text]
        out = []
        for piece in pieces:
            words.append(piece)
            out.append(f"nsword{len(words)}end")
        return mark.join(out)

    for turn in read.turns:
        content = turn["content"]
        if isinstance(content, str):
            content = marked(content)
        else:
            content = [{**p, "text": marked(p["text"])} if p["type"] == "text" else p for p in content]
        turns.append({**turn, "content": content})
    between = _between(template.render(turns), [f"nsword{i + 1}end" for i in range(len(words))])
    if between is None:
        return read.text, None
    return read.text, _fitted(read.text, words, between) or _fitted(read.text, [w.strip() for w in words], between)


def _between(text: str, words: Sequence[str]) -> list[str] | None:
    """What is before, between and after words that are in a text, each once and in order."""
    out = []
    for word in words:
        if text.count(word) != 1:
            return None
        piece, _, text = text.partition(word)
        out.append(piece)
    return [*out, text]


def _fitted(text: str, words: Sequence[str], between: Sequence[str]) -> list[Span] | None:
    """Where words are in a text that is made of them and of what is between them; None if it is not."""
    spans, at = [], 0
    for word, piece in zip(words, between, strict=False):
        spans.append((at + len(piece), at + len(piece) + len(word)))
        at = spans[-1][1]
    made = "".join(part for pair in zip(between, [*words, ""], strict=True) for part in pair)
    return spans if made == text else None
