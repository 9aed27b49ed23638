"""A request of inspect_ai to a model, as a prompt and settings: what a model here cannot do is refused, and never left out.

Objects of inspect_ai are read by their attributes, so that this module does not import it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import InputError
from ..data.chats import read_chat
from ..data.pictures import local_name
from ..data.prompts import Prompt

__all__ = ["Wanted", "as_prompt", "picture_of", "wanted"]

#: Settings that would change an answer, with the values that mean greedy generation.
GREEDY: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.0), "top_p": (1, 1.0), "top_k": (1,), "best_of": (1,), "num_choices": (1,), "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
}  # fmt: skip
#: Settings that would change an answer, and that no model here has.
ABSENT = (
    "stop_seqs", "logit_bias", "prompt_logprobs", "response_schema", "extra_body", "extra_headers", "modalities", "fallback_models",
    "verbosity", "effort", "reasoning_effort", "reasoning_mode", "reasoning_tokens", "reasoning_summary", "batch",
)  # fmt: skip


class Wanted(NamedTuple):
    """What a request asks of generation.

    Attributes:
        max_tokens: tokens of the answer, at most; None for as many as the model's context holds.
        logprobs: how many likeliest tokens of each step are wanted with their log-probabilities; None for no log-probabilities.
    """

    max_tokens: int | None
    logprobs: int | None


def wanted(config: Any, tools: Sequence[Any] = ()) -> Wanted:
    """What a request asks of generation.

    >>> from types import SimpleNamespace
    >>> wanted(SimpleNamespace(max_tokens=16, temperature=0.0))
    Wanted(max_tokens=16, logprobs=None)
    >>> wanted(SimpleNamespace(temperature=0.7))
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: temperature=0.7: answers are greedy here; leave it out or set --temperature 0

    Args:
        config: inspect_ai's `GenerateConfig`.
        tools: tools that the model may call.

    Raises:
        InputError: a setting that greedy generation does not have, or tools.
    """
    if tools:
        raise InputError(f"tool {tools[0].name!r}: models here call no tools; use a task without tools")
    for name, values in GREEDY.items():
        value = getattr(config, name, None)
        if value is not None and value not in values:
            option = f"--{name.replace('_', '-')} {values[0]}"
            raise InputError(f"{name}={value!r}: answers are greedy here; leave it out or set {option}")
    for name in ABSENT:
        value = getattr(config, name, None)
        if value is not None and value is not False and value != []:
            raise InputError(f"{name}={value!r:.60}: models here have no such setting; leave it out")
    top = getattr(config, "top_logprobs", None)
    asked = bool(getattr(config, "logprobs", None))
    if top and not asked:
        raise InputError(f"top_logprobs={top}: needs logprobs; set --logprobs")
    return Wanted(getattr(config, "max_tokens", None), (top or 0) if asked else None)


def as_prompt(messages: Sequence[Any]) -> Prompt:
    """The prompt that messages of inspect_ai make.

    One turn of words, or of pictures with words after them, is a prompt without `messages`, as `generate` takes it. The label is
    "benign" and the language "en" because a message has none; neither is read when an answer is generated.

    >>> from types import SimpleNamespace
    >>> as_prompt([SimpleNamespace(role="user", content="How do I bake bread?")])
    Prompt('message', benign, en/text, 'How do I bake bread?')

    Args:
        messages: inspect_ai's chat messages; a picture is a data URI or the path of a file.

    Raises:
        InputError: a message of a tool, content that is neither text nor a picture, a picture on the web, or a conversation that
            does not end with the user's turn.
    """
    turns = [_turn(message) for message in messages]
    if turns and turns[-1]["role"] == "assistant":
        raise InputError("messages end with the assistant's turn; models here answer the user's")
    chat = read_chat(turns, None, "messages")
    modality = "text+image" if chat.images else "text"
    facts: dict[str, Any] = {"images": chat.images, "modality": modality}
    kinds = [part["type"] for part in _parts(chat.messages[-1]["content"])]
    plain = len(turns) == 1 and kinds == ["image"] * len(chat.images) + ["text"] * (len(kinds) > len(chat.images))
    return Prompt("message", chat.prompt, "benign", messages=None if plain else chat.messages, **facts)


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _turn(message: Any) -> dict[str, Any]:
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise InputError(f"messages: a turn of role {message.role!r} is about a tool; models here call no tools")
    content = message.content
    return {"role": message.role, "content": content if isinstance(content, str) else [_part(part) for part in content]}


def _part(part: Any) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type == "image":
        return {"type": "image", "image": picture_of(part.image)}
    raise InputError(f"messages: content of type {part.type!r} is not read; models here read text and pictures")


def picture_of(image: str) -> bytes:
    """The bytes of a picture of inspect_ai.

    >>> picture_of("data:image/png;base64,aGVsbG8=")
    b'hello'

    Args:
        image: a data URI, or the path of a file.

    Raises:
        InputError: a picture on the web, no such file, or a data URI that is not base64.
    """
    if image.startswith("data:"):
        head, _, data = image.partition(",")
        try:
            if not head.endswith(";base64"):
                raise ValueError("not base64")
            return base64.b64decode(data, validate=True)
        except (ValueError, binascii.Error):
            raise InputError(f"messages: the picture {image[:30]!r}... is a data URI that is not base64") from None
    path = Path(local_name(image, "messages"))
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"messages: the picture {image[:80]!r} cannot be read ({error.strerror})") from None
