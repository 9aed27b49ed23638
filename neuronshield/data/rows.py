"""A prompt, and the cell it belongs to."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..core.arguments import one_of, require
from ..core.display import own_names
from ..core.equality import same
from ..core.errors import InputError
from .chats import read_chat, user_text
from .columns import LABELS, MODALITIES, SPLITS, check_text, label_of
from .parsing import check_modality
from .pictures import file_bytes, image_bytes, read_image
from .tags import language_tag

__all__ = ["KNOWN", "Cell", "Prompt", "as_cells", "options_of"]


class _Pair(NamedTuple):
    language: str
    modality: str


class Cell(_Pair):
    """One language in one modality: the unit everything is reported in. Prints as "en/text".

    >>> str(Cell("en", "text")), Cell("English", "text") == Cell("en", "text")
    ('en/text', True)

    Args:
        language: a BCP-47 tag, kept in its canonical form.
        modality: one of `MODALITIES`.

    Raises:
        InputError: a language or modality that is unknown.
    """

    __slots__ = ()

    def __new__(cls, language: str, modality: str) -> Cell:
        if modality not in MODALITIES:
            one_of(modality, MODALITIES, call=f"Cell({language!r:.60}, ...)", name="modality")
        return super().__new__(cls, language_tag(language), modality)

    def __str__(self) -> str:
        return f"{self.language}/{self.modality}"

    def __dir__(self) -> list[str]:
        return own_names(self)

    @classmethod
    def of(cls, cell: Cell | tuple[str, str] | str) -> Cell:
        """The cell that "en/text" or ("en", "text") names.

        >>> Cell.of("en/text+image")
        Cell(language='en', modality='text+image')

        Args:
            cell: a cell, a pair of language and modality, or both with "/" between them.

        Raises:
            InputError: anything else.
        """
        parts = cell.split("/") if isinstance(cell, str) else cell
        pair = isinstance(parts, (tuple, list)) and len(parts) == 2
        if not pair or not all(isinstance(part, str) and part and "/" not in part for part in parts):
            raise InputError(f"cell {cell!r:.60} is not a language and a modality, as in 'en/text'")
        return cls(*parts)


def as_cells(cells: Any, *, call: str) -> list[Cell]:
    """The cells that a call was given: one cell, or several.

    >>> as_cells("en/text", call="in_cells"), len(as_cells([("en", "text"), "sw/text"], call="in_cells"))
    ([Cell(language='en', modality='text')], 2)

    Args:
        cells: a cell as `Cell.of` takes it, or an iterable of them.
        call: the function, for the message.

    Raises:
        InputError: something that is neither.
    """
    pair = isinstance(cells, tuple) and len(cells) == 2 and all(isinstance(c, str) and "/" not in c for c in cells)
    if isinstance(cells, (str, Cell)) or pair:
        return [Cell.of(cells)]
    require(cells, Iterable, call=call, name="cells", hint="give a cell such as 'en/text', or a list of them")
    return [Cell.of(cell) for cell in cells]


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """One request to a model.

    >>> Prompt("1", "How do I bake bread?", "safe", language="English")
    Prompt('1', benign, en/text, 'How do I bake bread?')

    Raises:
        InputError: a value that no row of a file could have.

    Attributes:
        id: its name, unique in a set.
        prompt: the request, or the last user turn of `messages`.
        label: "harmful" or "benign".
        messages: a conversation that ends with the request; a picture in it is {"type": "image"}, in the order of `images`.
        images: paths, bytes or PIL images. Without `messages` they stand before the text.
        language: a BCP-47 tag.
        modality: one of `MODALITIES`.
        category: kind of harm or of request.
        source: data set that it comes from.
        pair_id: name of the matched pair; translations and image variants of one request share it.
        target: the answer a model should give.
        split: step that may use it, one of `SPLITS`.
        expect: strings that a right answer contains.
        extra: any other columns.
    """

    id: str
    prompt: str
    label: str
    messages: tuple[dict[str, Any], ...] | None = None
    images: tuple[Any, ...] = ()
    language: str = "en"
    modality: str = "text"
    category: str | None = None
    source: str | None = None
    pair_id: str | None = None
    target: str | None = None
    split: str | None = None
    expect: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"prompt {self.id!r:.60}" if isinstance(self.id, str) else "Prompt(id, prompt, label)"
        for name in ("id", "prompt"):
            require(getattr(self, name), str, call=where, name=name)
        for name in ("id", "prompt", "pair_id", "target", "category", "source"):
            value = getattr(self, name)
            require(value, (str, type(None)), call=where, name=name)
            check_text(value, f"{where}: {name}")
        if self.label not in LABELS:
            label = label_of(self.label)
            one_of(self.label if label is None else label, LABELS, call=where, name="label")
            object.__setattr__(self, "label", label)
        if self.split is not None:
            one_of(self.split, SPLITS, call=where, name="split")
        for name in ("images", "expect"):
            require(getattr(self, name), (tuple, list), call=where, name=name)
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for text in self.expect:
            require(text, str, call=where, name="expect")
            check_text(text, f"{where}: expect")
        require(self.extra, dict, call=where, name="extra")
        try:
            object.__setattr__(self, "language", language_tag(self.language))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if self.messages is not None:
            chat = read_chat(self.messages, self.images, where)
            check_text(chat.messages, f"{where}: messages")
            if chat.answer is not None:
                raise InputError(f"{where}: messages must end with the user's request; put the answer into target")
            if self.prompt != chat.prompt:
                raise InputError(f"{where}: prompt and messages ask for different things; change both")
            object.__setattr__(self, "messages", chat.messages)
            object.__setattr__(self, "images", chat.images)
        for image in self.images:
            hint = "read rows with PromptSet.from_records(rows, folder=...)"
            require(image, (Path, bytes, Image.Image), call=where, name="a picture", hint=hint)
        check_modality(self.modality, len(self.images), where)

    @cached_property
    def cell(self) -> Cell:
        """Its language and modality."""
        return Cell(self.language, self.modality)

    @property
    def cluster(self) -> str:
        """The group of prompts that count as one observation: `pair_id` where there is one, otherwise its content."""
        return f"pair:{self.pair_id}" if self.pair_id is not None else f"text:{self.content_hash}"

    @cached_property
    def request_text(self) -> str:
        """What the user asks in all turns, without case, spaces, what is not seen, and marks at its ends: the same in two rows of
        one request."""
        text = self.prompt if self.messages is None else user_text(self.messages)
        if not text.isascii():
            text = "".join(c for c in text if unicodedata.category(c) != "Cf")
        text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        return text.strip(MARKS) or text

    @cached_property
    def pictures_hash(self) -> str:
        """Short hash of its pictures' files, or of their pixels where they are in memory."""
        digest = hashlib.sha256()
        for image in self.images:
            own = image_bytes(image) if isinstance(image, Image.Image) else file_bytes(image)
            digest.update(hashlib.sha256(own).digest())
        return digest.hexdigest()[:16]

    @cached_property
    def content_hash(self) -> str:
        """Short hash of text, messages, language and pictures."""
        digest = hashlib.sha256(json.dumps([self.prompt, self.messages, self.language], default=str).encode())
        for image in self.images:
            digest.update(image_bytes(image))
        return digest.hexdigest()[:16]

    @cached_property
    def columns_hash(self) -> str:
        """Short hash of the columns that `content_hash` leaves out."""
        names = [f.name for f in fields(self) if f.name not in ("prompt", "messages", "images", "language")]
        columns = {**{name: getattr(self, name) for name in names}, "extra": sorted(self.extra.items())}
        text = json.dumps(columns, default=lambda value: type(value).__name__)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def load_images(self) -> list[Image.Image]:
        """Its pictures, decoded, in RGB, as a viewer shows them.

        >>> Prompt("1", "How do I bake bread?", "benign").load_images()
        []

        Raises:
            InputError: a picture that is damaged.
        """
        return [read_image(image, f"prompt {self.id!r:.60}") for image in self.images]

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Prompt):
            return self is other
        names = [f.name for f in fields(self) if f.name != "images"]
        mine, others = ([getattr(prompt, name) for name in names] for prompt in (self, other))
        return len(self.images) == len(other.images) and same(mine, others) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        text = self.prompt if len(self.prompt) <= 40 else f"{self.prompt[:39]}…"
        return f"Prompt({self.id!r:.24}, {self.label}, {self.cell}, {text!r})"

    __dir__ = own_names


#: Marks at the ends of a request that make no other request of it.
MARKS = " .,:;!?¿¡…。、！？،؟।\"'`“”‘’„«»「」()*"


#: Columns that `PromptSet.where` compares.
KNOWN = (
    "cell",
    "cluster",
    *(f.name for f in fields(Prompt) if f.name not in ("messages", "images", "expect", "extra")),
)


def options_of(name: str, value: Any) -> set[Any]:
    """The values of a column that a call of `PromptSet.where` accepts, each checked.

    >>> sorted(options_of("language", ["en", "sw"])), options_of("cell", "en/text")
    (['en', 'sw'], {Cell(language='en', modality='text')})

    Args:
        name: the column, one of `KNOWN`.
        value: one value, or a list, tuple or set of them.

    Raises:
        InputError: a value that the column cannot have.
    """
    single = name == "cell" and (
        isinstance(value, Cell) or (isinstance(value, tuple) and "/" not in "".join(map(str, value)))
    )
    options = [value] if single or not isinstance(value, (list, tuple, set, frozenset)) else list(value)
    if name == "cell":
        return {Cell.of(option) for option in options}
    known = {"label": LABELS, "modality": MODALITIES, "split": SPLITS}.get(name)
    for option in options:
        if option is None:  # a column without a value
            continue
        if known is not None:
            one_of(option, known, call="where", name=name)
        else:
            require(option, str, call="where", name=name)
    if name == "language":
        return {None if option is None else language_tag(option) for option in options}
    return set(options)
