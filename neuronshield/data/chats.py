"""Conversations: `messages` in every spelling of a picture, to one form.

A turn of that form is {"role": "system" | "user" | "assistant", "content": text or parts}; a part is
{"type": "text", "text": ...} or {"type": "image"}. The pictures stand in a list of their own, in the order of their parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from .columns import is_null, plain
from .pictures import listed

__all__ = ["Chat", "read_chat", "user_text"]

ROLES = ("system", "user", "assistant")
#: Types of a part, as chat templates and interfaces to models write them.
TYPES = {"text": "text", "input_text": "text", "image": "image", "image_url": "image", "input_image": "image"}
#: Keys of a part of type "image" that hold its picture.
PICTURE_KEYS = ("image", "image_url", "url", "path", "bytes")
#: Keys of a turn beside role and content whose content a model would have to read.
UNREAD = ("tool_calls", "tool_call_id", "function_call", "images", "image", "videos", "video", "audio", "audios")
PLACE = object()


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the user's turn.

    Attributes:
        messages: the turns.
        prompt: text of the last one.
        images: the pictures as they were given, in the order of their parts.
        answer: what an assistant's turn after the last user's said; None without one.
    """

    messages: tuple[dict[str, Any], ...]
    prompt: str
    images: tuple[Any, ...]
    answer: str | None


def read_chat(messages: Any, images: Any, where: str) -> Chat:
    """The conversation in one form, with the pictures of its parts and of the column `images`.

    Pictures of the column fill the parts without one of their own, in order. Where no part is a picture, they stand before the
    text of the last user turn.

    >>> chat = read_chat([{"role": "user", "content": "What is this?"}], "a.png", "p.jsonl:1")
    >>> chat.messages[0]["content"], chat.images
    ([{'type': 'image'}, {'type': 'text', 'text': 'What is this?'}], ('a.png',))

    Args:
        messages: the turns.
        images: of the column `images`; None without one.
        where: named in errors.

    Raises:
        InputError: a turn or part that is not read, pictures that do not fit the parts, or no request at the end.
    """
    turns = _turns(messages, where)
    answer = None
    if turns[-1]["role"] == "assistant":
        answer = turns.pop()["content"]
        if not isinstance(answer, str):
            answer = text_of(answer, only_text=f"{where}: the answer at the end of messages")
    if not turns or turns[-1]["role"] != "user":
        role = turns[-1]["role"] if turns else "assistant"
        raise InputError(f"{where}: messages must end with the user's request, and end with a turn of role {role!r}")
    found = _fill(turns, listed(images), where)
    last = turns[-1]["content"]
    prompt = text_of(last)
    if not prompt.strip() and not (isinstance(last, list) and any(part["type"] == "image" for part in last)):
        raise InputError(f"{where}: the last message's content is empty")
    return Chat(messages=tuple(turns), prompt=prompt, images=tuple(found), answer=answer)


def text_of(content: str | Sequence[Mapping[str, Any]], *, only_text: str = "") -> str:
    """The text of a turn's content, its parts joined by spaces.

    >>> text_of([{"type": "image"}, {"type": "text", "text": "Bake"}])
    'Bake'

    Args:
        content: a text or parts.
        only_text: how an error begins if a part is not text; empty where pictures may stand.

    Raises:
        InputError: a picture where only text may stand.
    """
    if isinstance(content, str):
        return content
    if only_text and any(part["type"] != "text" for part in content):
        raise InputError(f"{only_text} must be text")
    return " ".join(part["text"] for part in content if part["type"] == "text" and part["text"])


def user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of all turns of the user, one a line.

    >>> user_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Bake"}])
    'Bake'

    Args:
        messages: turns in the form of `Chat.messages`.
    """
    return "\n".join(text_of(turn["content"]) for turn in messages if turn["role"] == "user")


def _turns(messages: Any, where: str) -> list[dict[str, Any]]:
    """The turns, with the picture of a part under "picture"."""
    given = list(messages) if not isinstance(messages, (str, bytes, Mapping)) and hasattr(messages, "__iter__") else []
    if not given or not all(isinstance(turn, Mapping) for turn in given):
        raise InputError(f"{where}: messages must be a list of objects with 'role' and 'content'")
    turns = []
    for turn in given:
        known = {key: value for key, value in turn.items() if not is_null(value) and not _empty(key, value)}
        if "role" not in known or "content" not in turn:
            raise InputError(
                f"{where}: messages must be a list of objects with 'role' and 'content', one has {', '.join(map(str, known))}"
            )
        role = known["role"]
        if role not in ROLES:
            raise InputError(f"{where}: messages has a turn of role {role!r:.40}; use one of {', '.join(ROLES)}")
        if unread := next((key for key in UNREAD if key in known), None):
            hint = "put the picture into 'images' of the row" if unread.startswith("image") else "remove it"
            raise InputError(f"{where}: messages has a turn with {unread!r}, which is not read; {hint}")
        rest = {str(key): plain(value) for key, value in known.items() if key not in ("role", "content")}
        turns.append({"role": str(role), "content": _content(turn["content"], str(role), where), **rest})
    return turns


def _empty(key: Any, value: Any) -> bool:
    """Whether a key that is not read has nothing in it, as tables and interfaces write it."""
    return key in UNREAD and hasattr(value, "__len__") and len(value) == 0


def _content(content: Any, role: str, where: str) -> Any:
    if isinstance(content, str):
        return str(content)
    if is_null(content) or isinstance(content, (bytes, Mapping)) or not hasattr(content, "__iter__"):
        raise InputError(
            f"{where}: the {role} message's content must be a string or a list of parts, got {type(content).__name__}"
        )
    return [_part(part, where) for part in content]


def _part(part: Any, where: str) -> dict[str, Any]:
    """One part; that of a picture has it under "picture"."""
    if not isinstance(part, Mapping):
        raise InputError(f"{where}: a part of messages must be an object with 'type', got {type(part).__name__}")
    known = {key: value for key, value in part.items() if not is_null(value)}
    kinds = {TYPES.get(key) for key in known} - {None}
    said = known.pop("type", next(iter(kinds)) if len(kinds) == 1 else None)
    kind = TYPES.get(said) if isinstance(said, str) else None
    if said is None:
        raise InputError(f"{where}: messages has a part without a 'type'; write 'text' or 'image'")
    if kind is None:
        raise InputError(f"{where}: messages has a part of type {said!r:.40}; only 'text' and 'image' are read")
    if kind == "text":
        text = known.pop("text", None)
        if not isinstance(text, str):
            raise InputError(f"{where}: messages has a part of type 'text' without a text")
        _rest(known, kind, where)
        return {"type": "text", "text": str(text)}
    return {"type": "image", "picture": _picture(known, where)}


def _picture(known: dict[str, Any], where: str) -> Any:
    """The picture that a part brings; `PLACE` where it only says where one stands, or its number in the column."""
    brought = [known.pop(key) for key in PICTURE_KEYS if key in known]
    number = known.pop("index", None)
    known.pop("detail", None)  # of an interface's picture, for its own models
    if known.get("text") == "":  # a table fills the keys of the other parts
        del known["text"]
    if encoded := next((key for key in ("base64", "source", "data") if key in known), None):
        raise InputError(f"{where}: messages has a picture under {encoded!r}; decode it and give its bytes as 'image'")
    _rest(known, "image", where)
    if len(brought) > 1:
        raise InputError(f"{where}: messages has a part with more than one picture")
    if not brought:
        return PLACE if number is None else ("index", plain(number))
    (picture,) = brought
    while isinstance(picture, Mapping) and set(picture) <= {"url", "detail"} and picture.get("url") is not None:
        picture = picture["url"]
    return picture


def _rest(known: Mapping[str, Any], kind: str, where: str) -> None:
    if known:
        name = next(iter(known))
        raise InputError(f"{where}: messages has a part of type {kind!r} with {name!r}, which is not read; remove it")


def _fill(turns: list[dict[str, Any]], column: list[Any], where: str) -> list[Any]:
    """All pictures in the order of their parts, which lose theirs."""
    parts = [part for turn in turns if isinstance(turn["content"], list) for part in turn["content"]]
    places = [part for part in parts if part["type"] == "image"]
    if column and not places:
        content = turns[-1]["content"]
        texts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns[-1]["content"] = [*({"type": "image"} for _ in column), *texts]
        return column
    found, waiting = [], list(column)
    for part in places:
        picture = part.pop("picture")
        if picture is PLACE or isinstance(picture, tuple):
            number = len(column) - len(waiting)
            if isinstance(picture, tuple) and picture[1] != number:
                raise InputError(
                    f"{where}: messages has picture {picture[1]} where picture {number} of 'images' is due"
                )
            if not waiting:
                raise InputError(
                    f"{where}: messages has more places for a picture ({len(places)}) than 'images' has pictures ({len(column)})"
                )
            picture = waiting.pop(0)
        found.append(picture)
    if waiting:
        raise InputError(
            f"{where}: 'images' has more pictures than messages has places for; {len(waiting)} would not be read"
        )
    return found
