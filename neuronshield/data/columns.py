"""The columns of a row: which there are, other names that data sets give them, and the values of each.

A column that is called almost like one of ours would be kept as `extra` and read by no step: a set with pictures in "image"
would be measured as text. So such a name is refused, with the name that is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import InputError

__all__ = [
    "COLUMNS",
    "LABELS",
    "MODALITIES",
    "SPLITS",
    "check_columns",
    "check_text",
    "is_encoded_picture",
    "is_null",
    "label_of",
    "plain",
]

LABELS = ("harmful", "benign")
MODALITIES = ("text", "image", "typographic", "text+image")
SPLITS = ("discover", "confirm", "train", "test")
#: The columns of a prompt; any other column of a row is kept as `extra`.
COLUMNS = ("id", "prompt", "label", "messages", "images", "language", "modality", "category", "source", "pair_id", "target",
           "split", "expect")  # fmt: skip
#: What public data sets call the two labels, in lower case.
LABEL_NAMES = {
    **dict.fromkeys(("harmful", "unsafe", "toxic", "malicious"), "harmful"),
    **dict.fromkeys(("benign", "safe", "harmless", "unharmful", "nontoxic"), "benign"),
}
#: Other names of columns without case, "_", "-" and spaces. They are refused where the row lacks the column itself.
OTHER_NAMES = {
    "prompt": "text question query instruction request goal input behavior behaviour userprompt prompttext forbiddenprompt",
    "messages": "conversation conversations chat dialog dialogue turns",
    "images": "image img imgs picture pictures photo photos pic pics imagepath imagepaths imagefile imagefiles imagefilename "
              "imagename imgpath imageurl imageurls imagebytes imagebase64 imagedata pixelvalues screenshot",
    "label": "class isharmful isunsafe issafe harmful unsafe safe harmlabel promptharmlabel toxicity",
    "language": "lang langs languagecode langcode locale languagetag",
    "pair_id": "pair pairs pairing pairno pairnumber",
    "expect": "expected expects",
    "modality": "modalities",
    "category": "categories",
}  # fmt: skip
MEANT = {alias: name for name, aliases in OTHER_NAMES.items() for alias in aliases.split()}
#: Columns of anything else that a model could look at or listen to; nothing here reads them.
UNREAD = ("video", "videos", "videopath", "videourl", "audio", "audios", "audiopath", "audiourl", "speech", "tools")
_PICTURE_FILE = re.compile(r"\S+\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|avif|heic)([?#]\S*)?", re.IGNORECASE)
#: How a picture begins as text: a data: URL, or PNG, JPEG, GIF and WebP in base64.
_PICTURE_TEXT = re.compile(r"\s*(data:image/|iVBORw0KGgo|/9j/[A-Za-z0-9+/]{4}|R0lGOD[dl]h|UklGR[A-Za-z0-9+/]{4})")
#: Columns that a word which differs in one letter is taken for; a word near the others may well be another column.
_TYPED = (
    "prompt",
    "label",
    "messages",
    "images",
    "language",
    "modality",
    "category",
    "source",
    "pair_id",
    "target",
    "split",
)


def is_null(value: Any) -> bool:
    """Whether a value is missing: None, NaN, or what a pandas table has where a value is missing.

    >>> is_null(float("nan")), is_null("")
    (True, False)

    Args:
        value: of a column.
    """
    return (
        value is None
        or (isinstance(value, (float, np.floating)) and math.isnan(value))
        or type(value).__name__ in ("NAType", "NaTType")
    )


def plain(value: Any) -> Any:
    """The value without numpy: scalars as Python's, arrays as lists, also inside lists and dicts; null as None.

    >>> plain({"a": np.array([1, 2]), "b": np.str_("x"), "c": float("nan")})
    {'a': [1, 2], 'b': 'x', 'c': None}

    Args:
        value: of a column.
    """
    if is_null(value):
        return None
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(v) for v in value)
    return value


def label_of(given: Any) -> str | None:
    """The label that a data set's spelling stands for; None where it is not known.

    >>> label_of("Unsafe"), label_of("non-toxic"), label_of(1)
    ('harmful', 'benign', None)

    Args:
        given: "harmful" or "benign", or another name of them, in any case. Numbers are not known: 1 is harmful in some data
            sets and safe in others.
    """
    return LABEL_NAMES.get(re.sub(r"[\s_-]", "", given).lower()) if isinstance(given, str) else None


def check_columns(row: Mapping[Any, Any], where: str) -> None:
    """Raise if a column's name is almost one of ours, or if it holds a picture that would not be read.

    >>> check_columns({"prompt": "Describe it.", "image": "a.png"}, "p.jsonl:1")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: p.jsonl:1: column 'image' is not read; call it 'images'

    Args:
        row: columns by name, without those that are missing.
        where: named in errors.

    Raises:
        InputError: such a column, with the name that is read.
    """
    for name in row:
        if not isinstance(name, str):
            raise InputError(f"{where}: the name of a column must be a string, got {name!r:.60}")
        if name in COLUMNS:
            continue
        if meant := _meant(name, row):
            raise InputError(f"{where}: column {name[:60]!r} is not read; call it {meant!r}")
        if _key(name) in UNREAD:
            raise InputError(f"{where}: column {name!r} is not read; prompts are text and pictures, remove the column")
        if "images" not in row and _holds_picture(row[name]):
            raise InputError(
                f"{where}: column {name[:60]!r} holds a picture and is not read; call it 'images' or remove it"
            )


def _meant(name: str, row: Mapping[Any, Any]) -> str | None:
    """The column that a name is a slip of, or another name of where the row has none of that name."""
    if slip := _slip(name):
        return slip
    meant = MEANT.get(_key(name))
    has_text = meant in ("prompt", "messages") and ("prompt" in row or "messages" in row)
    return None if meant in row or has_text else meant


@lru_cache(maxsize=4096)
def _slip(name: str) -> str | None:
    key = _key(name)
    for column in COLUMNS:
        own = _key(column)
        if key == own or (column in _TYPED and _one_slip(key, own)):
            return column
    return None


def _key(name: str) -> str:
    return re.sub(r"[\s_\-\ufeff]", "", name).lower()


def _one_slip(given: str, right: str) -> bool:
    """Whether one letter is left out, put in or changed, or two are swapped."""
    if given == right or abs(len(given) - len(right)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(given, right)) if a != b), min(len(given), len(right)))
    a, b = given[start:], right[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def _holds_picture(value: Any) -> bool:
    """Whether a value is a picture: an image, its bytes or pixels, a Hugging Face image dict, or the name of a picture's file."""
    if isinstance(value, Mapping):
        return set(value) == {"bytes", "path"}
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value.ndim >= 2
    if isinstance(value, (list, tuple)):
        return any(_holds_picture(v) for v in value)
    if isinstance(value, str):
        return bool(_PICTURE_FILE.fullmatch(value.strip())) or is_encoded_picture(value)
    return isinstance(value, (bytes, bytearray, Image.Image))


def is_encoded_picture(text: str) -> bool:
    """Whether a text is a picture: a data: URL, or base64.

    >>> is_encoded_picture("iVBORw0KGgoAAAANSUhEUgAAAAYAAAAE"), is_encoded_picture("a.png")
    (True, False)

    Args:
        text: any text.
    """
    return bool(_PICTURE_TEXT.match(text))


def check_text(value: Any, what: str) -> None:
    """Raise if a string has a character that files or tokenizers cannot hold.

    >>> check_text({"a": ["bake"]}, "p.jsonl:1: target")

    Args:
        value: a string, or lists and dicts of them; other values pass.
        what: the row and column, for errors.

    Raises:
        InputError: half a surrogate pair, or a NUL.
    """
    for text in _texts(value):
        if "\0" in text:
            raise InputError(f"{what} has a NUL character, as text in another encoding has; mend the text")
        try:
            _ = text.isascii() or text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"{what} has half a surrogate pair, which no tokenizer can read; mend the text") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
