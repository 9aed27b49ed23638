"""A prompt, and the cell it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..core.arguments import one_of, require
from ..core.display import own_names
from ..core.errors import InputError
from ..core.results import same
from .parsing import LABELS, MODALITIES, SPLITS
from .pictures import image_bytes, open_image

__all__ = ["KNOWN", "Cell", "Prompt", "as_cells", "deal", "options_of"]


class Cell(NamedTuple):
    """One language in one modality: the unit everything is reported in. Prints as "en/text".

    >>> str(Cell("en", "text"))
    'en/text'

    Args:
        language: a BCP-47 tag.
        modality: one of `MODALITIES`.
    """

    language: str
    modality: str

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

    >>> Prompt("1", "How do I bake bread?", "benign")
    Prompt('1', benign, en/text, 'How do I bake bread?')

    Attributes:
        id: its name, unique in a set.
        prompt: the request, or the last user turn of `messages`.
        label: "harmful" or "benign".
        messages: a conversation as the chat template takes it, instead of a single request.
        images: paths, bytes or PIL images.
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

    @property
    def cell(self) -> Cell:
        """Its language and modality."""
        return Cell(self.language, self.modality)

    @property
    def cluster(self) -> str:
        """The group of prompts that count as one observation: `pair_id` where there is one, otherwise its content."""
        return f"pair:{self.pair_id}" if self.pair_id is not None else f"text:{self.content_hash}"

    @cached_property
    def content_hash(self) -> str:
        """Short hash of text, messages, language and pictures."""
        digest = hashlib.sha256(json.dumps([self.prompt, self.messages, self.language], default=str).encode())
        for image in self.images:
            digest.update(image_bytes(image))
        return digest.hexdigest()[:16]

    def load_images(self) -> list[Image.Image]:
        """Its pictures, decoded, in RGB.

        >>> Prompt("1", "How do I bake bread?", "benign").load_images()
        []

        Raises:
            InputError: a picture that is damaged.
        """
        where = f"prompt {self.id!r}"
        try:
            return [open_image(image, where).convert("RGB") for image in self.images]
        except (OSError, SyntaxError) as error:
            raise InputError(f"{where}: its picture is damaged ({error})") from None

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Prompt):
            return self is other
        bare = [replace(prompt, images=()) for prompt in (self, other)]
        return len(self.images) == len(other.images) and same(*bare) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        text = self.prompt if len(self.prompt) <= 40 else f"{self.prompt[:39]}…"
        return f"Prompt({self.id!r:.24}, {self.label}, {self.cell}, {text!r})"

    __dir__ = own_names


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
    return set(options)


def deal(prompts: Iterable[Prompt], *, seed: int, fractions: Sequence[float]) -> dict[str, str]:
    """The split of every cluster: each mix of labels is shuffled and dealt separately.

    >>> list(deal(prompts[:2], seed=0, fractions=(0, 0, 0, 1)).values())
    ['test']

    Args:
        prompts: the rows.
        seed: of the shuffle.
        fractions: relative sizes of the splits, in the order of `SPLITS`.
    """
    kinds: dict[str, set[str]] = {}
    for p in prompts:
        kinds.setdefault(p.cluster, set()).add(p.label)
    rng = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    for kind in (["benign"], ["harmful"], ["benign", "harmful"]):
        clusters = sorted(c for c, labels in kinds.items() if sorted(labels) == kind)
        rng.shuffle(clusters)
        edges = np.round(np.cumsum(fractions) / sum(fractions) * len(clusters)).astype(int)
        for i, cluster in enumerate(clusters):
            split_of[cluster] = SPLITS[int(np.searchsorted(edges, i, side="right"))]
    return split_of
