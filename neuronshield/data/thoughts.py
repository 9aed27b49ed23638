"""The answer of a reasoning model, after its thought.

A reasoning model writes a thought before its answer. The forms that are read:

    <think> ... </think>              also <thinking>, <thought>, <seed:think>, [THINK], ◁think▷, and "◁/think▷"
    <|begin_of_thought|> ... <|end_of_thought|>    also <|START_THINKING|> ... <|END_THINKING|>
    <|channel|>analysis<|message|> ... <|channel|>final<|message|>       also as "analysis... assistantfinal..."
    <|channel>thought ... <channel|>
    Here is my thought process: ... Here is my response: ...

Several templates write the opening tag into the prompt; the answer then has the closing tag only. A thought that was cut short by the
token limit has no answer.
"""

from __future__ import annotations

import re

__all__ = ["after_thought", "is_thought_token", "opens_thought"]


_WORD = r"(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|inner_?monologue)"
_TAG = rf"(?:[a-z]+[:_])?{_WORD}"
#: Opening and closing tags; a bare word in square brackets is a tag in capitals only.
_OPEN = (
    rf"(?:<\|?{_TAG}\|?>|◁{_TAG}▷|\[(?-i:THINK)\]|<\|(?:begin|start)_(?:of_)?{_WORD}\|>|<\|?inner_prefix\|>|<unused94>)"
)
_CLOSE = rf"(?:<\|?/{_TAG}\|?>|◁/{_TAG}▷|\[/(?-i:THINK)\]|<\|end_(?:of_)?{_WORD}\|>|<\|?inner_suffix\|>|<unused95>|<channel\|>)"
_OPENING, _CLOSING = re.compile(_OPEN, re.I), re.compile(_CLOSE, re.I)
#: Channels: the final one is the answer.
_CHANNEL = re.compile(r"<\|?channel\|?>\s*(\w+)(?:[^<]|<\|constrain\|>)*?(?:<\|message\|>|\n|$)", re.I)
#: Channels whose special tokens were stripped by decoding.
_BARE_START = re.compile(r"(?:analysis|commentary)(?=[^\W\d_])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\W|[^\Wa-z]|$)|assistantfinal")
#: A thought in words (Granite 3.2).
_SPOKEN_START = re.compile(r"here is my thought process:", re.I)
_SPOKEN_END = re.compile(r"here is my response:", re.I)
_BARE_ONLY_FINAL = re.compile(r"final(?=[^\W\da-z_])")
#: Frames of the answer that come after the thought.
_FRAME = re.compile(
    r"</?(?:answer|response|solution|conclusion|output)>|<\|(?:begin|end|start)_(?:of_)?(?:solution|response|answer)\|>"
    r"|<\|(?:return|end|im_end|eot_id|endoftext)\|>",
    re.I,
)
_TOKEN = re.compile(rf"{_OPEN}|{_CLOSE}|<\|?channel\|?>|<\|message\|>", re.I)


def after_thought(response: str, *, opened: bool = False) -> str | None:
    """The answer after the thought; the whole text if there is no thought, None if the thought was cut short.

    >>> after_thought("<think>Is this safe?</think>\\n\\nSure."), after_thought("Sure."), after_thought("<think>Is this")
    ('Sure.', 'Sure.', None)

    Args:
        response: what the model generated.
        opened: the prompt itself ends inside a thought (see `opens_thought`).
    """
    text = response.strip()
    channels = list(_CHANNEL.finditer(text))
    final = [m for m in channels if m[1].lower() == "final"]
    if final:
        return _unframed(text[final[-1].end() :])
    closed = list(_CLOSING.finditer(text))
    if closed:
        return after_thought(_unframed(text[closed[-1].end() :]))
    opening = _OPENING.search(text)
    if channels or opening:
        before = text[: min(m.start() for m in (*channels, opening) if m is not None)].strip()
        return before if any(c.isalnum() for c in before) else None
    if _BARE_START.match(text):
        ends = list(_BARE_FINAL.finditer(text))
        return text[ends[-1].end() :].strip() if ends else None
    if _SPOKEN_START.match(text):
        end = _SPOKEN_END.search(text)
        return text[end.end() :].strip() if end else None
    if opened:
        return None
    return text[len("final") :] if _BARE_ONLY_FINAL.match(text) else text


def _unframed(text: str) -> str:
    return _FRAME.sub("", text).strip()


def opens_thought(prompt: str) -> bool:
    """Whether the text of a prompt ends inside a thought, because the chat template opened one.

    >>> opens_thought("<|user|>hi<|assistant|><think>\\n"), opens_thought("<think>\\n\\n</think>\\n\\n")
    (True, False)

    Args:
        prompt: the prompt as the model reads it.
    """
    return bool(
        re.search(rf"(?:{_OPEN}|<\|?channel\|?>\s*(?:analysis|thought)\s*(?:<\|message\|>)?)\s*$", prompt, re.I)
    )


def is_thought_token(token: str) -> bool:
    """Whether a special token marks a thought, so that decoding must keep it.

    >>> is_thought_token("[THINK]"), is_thought_token("<|channel|>"), is_thought_token("<|im_end|>")
    (True, True, False)

    Args:
        token: the text of a special token.
    """
    return bool(_TOKEN.fullmatch(token))
