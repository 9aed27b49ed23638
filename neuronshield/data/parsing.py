"""A row to the fields of a prompt, each column checked; an error names the row and the column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from .chats import read_chat
from .columns import COLUMNS, MODALITIES, SPLITS, check_columns, check_text, is_null, label_of, plain
from .pictures import listed, read_images
from .tags import language_tag

__all__ = ["check_fractions", "parse_row"]


def parse_row(row: Any, where: str, folder: Path | None) -> dict[str, Any]:
    """The fields of a `Prompt`, each checked. Columns that are null, and names that are blank, are missing.

    >>> row = parse_row({"prompt": "Bake", "label": "safe", "mine": 1}, "p.jsonl:1", None)
    >>> row["label"], row["language"], row["modality"], row["extra"]
    ('benign', 'en', 'text', {'mine': 1})

    Args:
        row: columns by name.
        where: named in errors, e.g. "prompts.jsonl:7".
        folder: image paths are relative to it and stay inside it; None takes no paths.

    Raises:
        InputError: a column that is missing or wrong, or whose name is almost one of ours.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected an object with columns, got {type(row).__name__}")
    row = {name: value for name, value in row.items() if not is_null(value)}
    check_columns(row, where)
    given = {name: value if name in ("images", "messages") else plain(value) for name, value in row.items()}
    for name, value in given.items():
        if name not in ("images", "messages"):
            check_text({name: value}, f"{where}: {_shown(name)}")
    label = _label(given.get("label"), where)
    text, messages, pictures, target = _request(given, label, where)
    images = read_images(pictures, where, folder)
    modality = _name(given, "modality", where) or ("text+image" if images else "text")
    check_modality(modality, len(images), where)
    try:
        spoken = given.get("language", "")
        language = "en" if isinstance(spoken, str) and not spoken.strip() else language_tag(spoken)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    split = _name(given, "split", where)
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: split {split!r:.60} is unknown; use one of {', '.join(SPLITS)}")
    return dict(
        id=_name(given, "id", where) or "",
        prompt=text,
        label=label,
        messages=messages,
        images=images,
        language=language,
        modality=modality,
        category=_name(given, "category", where),
        source=_name(given, "source", where),
        pair_id=_name(given, "pair_id", where),
        target=target,
        split=split,
        expect=_expect(given, where),
        extra={k: v for k, v in given.items() if k not in COLUMNS},
    )


def check_modality(modality: Any, pictures: int, where: str) -> None:
    """Raise unless a modality is known and fits the number of pictures.

    >>> check_modality("image", 0, "p.jsonl:1")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: p.jsonl:1: modality 'image' but it has no picture; fill 'images', or use 'text'

    Args:
        modality: of the row.
        pictures: how many the row has.
        where: named in errors.

    Raises:
        InputError: a modality that is unknown, "text" with pictures, or another without.
    """
    if modality not in MODALITIES:
        raise InputError(f"{where}: modality {modality!r:.60} is unknown; use one of {', '.join(MODALITIES)}")
    if modality == "text" and pictures:
        raise InputError(f"{where}: modality 'text' but it has images; use 'image', 'typographic' or 'text+image'")
    if modality != "text" and not pictures:
        raise InputError(f"{where}: modality {modality!r} but it has no picture; fill 'images', or use 'text'")


def _shown(name: str) -> str:
    return name if name in COLUMNS else f"column {name[:60]!r}"


def _label(given: Any, where: str) -> str:
    label = label_of(given)
    if label is None:
        said = "is missing" if given in (None, "") else f"{given!r:.60} is unknown"
        raise InputError(f"{where}: label {said}; use 'harmful' or 'benign'")
    return label


def _name(row: Mapping[str, Any], name: str, where: str) -> str | None:
    """A column of strings; whole numbers become strings, blank ones are missing. Spaces around a name are no part of it."""
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():  # a table's column of numbers with one missing
        value = int(value)
    if value is not None and (not isinstance(value, (str, int)) or isinstance(value, bool)):
        raise InputError(f"{where}: {name} must be a string, got {type(value).__name__}")
    if value is None or not str(value).strip():
        return None
    return str(value) if name == "target" else str(value).strip()


def _expect(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    expect = row.get("expect")
    if expect is None:
        return ()
    if not isinstance(expect, (list, tuple)) or not all(isinstance(e, str) and e.strip() for e in expect):
        raise InputError(f"{where}: expect must be a list of strings that a right answer contains")
    return tuple(expect)


def _request(
    row: Mapping[str, Any], label: str, where: str
) -> tuple[str, tuple[dict[str, Any], ...] | None, Any, str | None]:
    """Text, turns, pictures and answer: of the `prompt`, or of `messages`."""
    text, target = row.get("prompt"), _name(row, "target", where)
    if row.get("messages") is None:
        if isinstance(text, (list, tuple)):
            raise InputError(f"{where}: prompt must be a string, got a list; a conversation goes into 'messages'")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: prompt is missing or empty")
        return text, None, _pictures(row, where), target
    chat = read_chat(row["messages"], _pictures(row, where), where)
    check_text(chat.messages, f"{where}: messages")
    if text is not None and text != chat.prompt:
        raise InputError(f"{where}: prompt and messages ask for different things; give one of them")
    if chat.answer is not None and target != chat.answer:
        check_text(chat.answer, f"{where}: messages")
        if target is not None:
            raise InputError(f"{where}: messages ends with another answer than 'target'; give one of them")
        if label == "harmful":
            raise InputError(
                f"{where}: messages of a harmful request ends with an answer; remove it, or put it into 'target' as well if "
                "a model should give it"
            )
        target = chat.answer if chat.answer.strip() else None
    return chat.prompt, chat.messages, chat.images, target


def _pictures(row: Mapping[str, Any], where: str) -> list[Any]:
    pictures = listed(row.get("images"))
    if any(is_null(picture) for picture in pictures):
        raise InputError(f"{where}: images has a picture that is null; give every picture, or leave the column out")
    return pictures


def check_fractions(fractions: Any) -> None:
    """Raise unless the sizes of the splits are four numbers of at least 0 that are not all 0.

    >>> check_fractions((0.4, 0.2, 0.2, 0.2))

    Args:
        fractions: relative sizes of discover, confirm, train and test.

    Raises:
        InputError: anything else.
    """
    call = f"with_splits(fractions={fractions!r:.60})"
    if not isinstance(fractions, Sequence) or len(fractions) != len(SPLITS):
        raise InputError(f"{call}: give four numbers, for {', '.join(SPLITS)}")
    numbers = [isinstance(f, (int, float)) and 0 <= f < float("inf") for f in fractions]
    if not all(numbers) or not sum(fractions) > 0:
        raise InputError(f"{call}: give numbers of at least 0 that are not all 0")
