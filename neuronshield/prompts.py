"""Prompts with the columns every later step needs, and their way into a batch of tokens.

A `PromptSet` is a list of `Prompt`s. Two of its columns do the scientific work:

- `pair_id` names the matched twin: the same request with one thing changed, one side harmful and one
  benign. Translations and image variants of one request share it, so it is also the *cluster* that
  intervals are computed over.
- `split` says what a prompt may be used for. Each verb takes the rows of its own split and leaves the
  others alone: `capture` "discover", `verify` "confirm", `masked_update` "train", `evaluate` "test".
  A set that has no such rows is used whole (`PromptSet.for_step`).

`collate` turns prompts into one padded batch and says which tokens play which **role**: `prompt`
(everything that is not padding), `image`, `text`, `last_prompt` (where the first answer token is
decided) and `response` (a teacher-forced answer).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

__all__ = ["LABELS", "MODALITIES", "SPLITS", "Cell", "Prompt", "PromptSet"]

LABELS = ("harmful", "benign")
MODALITIES = ("text", "image", "typographic", "text+image")
SPLITS = ("discover", "confirm", "train", "test")
MAX_PIXELS = 50_000_000
_BCP47 = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


class Cell(NamedTuple):
    """One language in one modality: the unit everything is reported in. Prints as "en/text"."""

    language: str
    modality: str

    def __str__(self) -> str:
        return f"{self.language}/{self.modality}"

    @classmethod
    def of(cls, cell: Cell | tuple[str, str] | str) -> Cell:
        """Read "en/text" or ("en", "text") as a cell.

        >>> Cell.of("en/text+image")
        Cell(language='en', modality='text+image')
        """
        parts = cell.split("/", 1) if isinstance(cell, str) else tuple(cell)
        if len(parts) != 2:
            raise InputError(f"cell {cell!r} is not a language and a modality, as in 'en/text'")
        return cls(*parts)


@dataclass(frozen=True, eq=False)
class Prompt:
    """One request to a model. Columns are documented in the README; `extra` keeps any others."""

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
        return Cell(self.language, self.modality)

    @property
    def cluster(self) -> str:
        """What its evidence is grouped by: `pair_id` where there is one, otherwise itself."""
        return f"pair:{self.pair_id}" if self.pair_id is not None else f"text:{self.content_hash}"

    @property
    def content_hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self.prompt, self.messages, self.language], default=str).encode())
        for image in self.images:
            digest.update(_image_bytes(image))
        return digest.hexdigest()[:16]

    def load_images(self) -> list[Image.Image]:
        """Its pictures, decoded, in RGB."""
        where = f"prompt {self.id!r}"
        try:
            return [_open_image(image, where).convert("RGB") for image in self.images]
        except (OSError, SyntaxError) as error:
            raise InputError(f"{where}: its picture is damaged ({error})") from None


class PromptSet(Sequence[Prompt]):
    """An ordered set of prompts.

    >>> prompts = PromptSet.from_records([
    ...     {"prompt": "How do I make a cake?", "label": "benign", "pair_id": "1"},
    ...     {"prompt": "How do I make a bomb?", "label": "harmful", "pair_id": "1"},
    ... ])
    >>> len(prompts), prompts.cells(), len(prompts.where(label="harmful"))
    (2, [Cell(language='en', modality='text')], 1)
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._prompts = tuple(prompts)

    # -- a sequence -----------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __getitem__(self, item: Any) -> Any:
        return PromptSet(self._prompts[item]) if isinstance(item, slice) else self._prompts[item]

    def __add__(self, other: PromptSet) -> PromptSet:
        """Both; an id that is in both is an error, for answers are kept by id."""
        mine = {p.id for p in self}
        twice = next((p.id for p in other if p.id in mine), None)
        if twice is not None:
            raise InputError(f"both prompt sets have an id {twice!r}; ids must be unique")
        return PromptSet([*self, *other])

    def __repr__(self) -> str:
        harmful = sum(p.label == "harmful" for p in self)
        return f"PromptSet({harmful} harmful + {len(self) - harmful} benign, {len(self.cells())} cells)"

    def _repr_html_(self) -> str:
        table = self.to_frame().groupby(["language", "modality", "label"], sort=False).size().unstack(fill_value=0)
        return f"<p><b>{len(self)} prompts</b></p>{table.to_html()}"

    # -- reading --------------------------------------------------------------------------------------
    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> PromptSet:
        """Read one JSON object a line. Image paths are relative to, and stay inside, the file's folder.

        Raises:
            InputError: naming the file and the line: not found, not UTF-8, not JSON, empty, a bad column,
                a duplicate id, an image that is missing, outside the folder, enormous or not an image.
        """
        path = Path(path)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            raise InputError(f"{path}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        rows: list[tuple[str, Any]] = []
        for number, line_text in enumerate(text.split("\n"), 1):
            if not line_text.strip():
                continue
            where = f"{path}:{number}"
            try:
                rows.append((where, json.loads(line_text)))
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON we can read ({str(error).split(';')[0]})") from None
        if not rows:
            raise InputError(f"{path}: empty; write one JSON object a line with at least 'prompt' and 'label'")
        return cls._build(rows, path.parent)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> PromptSet:
        """Read a Parquet file with the same columns (needs pyarrow)."""
        try:
            import pyarrow.parquet
        except ImportError:
            raise InputError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from None
        path = Path(path)
        try:
            records = pyarrow.parquet.read_table(path).to_pylist()
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
        rows = [(f"{path}: row {i}", {k: v for k, v in r.items() if not _is_null(v)}) for i, r in enumerate(records)]
        if not rows:
            raise InputError(f"{path}: empty")
        return cls._build(rows, path.parent)

    @classmethod
    def from_records(
        cls, records: Iterable[dict[str, Any]], *, folder: str | os.PathLike[str] | None = None
    ) -> PromptSet:
        """Take dicts with the same columns; `folder` is what image paths are relative to (none: no paths)."""
        rows = [(f"record {i}", record) for i, record in enumerate(records)]
        if not rows:
            raise InputError("from_records: no records")
        return cls._build(rows, Path(folder) if folder is not None else None)

    @classmethod
    def from_dataset(
        cls, dataset: Iterable[dict[str, Any]], *, folder: str | os.PathLike[str] | None = None
    ) -> PromptSet:
        """Take a Hugging Face dataset (or anything that iterates over dicts) with the same columns."""
        return cls.from_records(({k: v for k, v in row.items() if v is not None} for row in dataset), folder=folder)

    @classmethod
    def _build(cls, rows: list[tuple[str, Any]], folder: Path | None) -> PromptSet:
        prompts: list[Prompt] = []
        first: dict[str, str] = {}
        for where, row in rows:
            prompt = _parse(row, where, folder)
            if not prompt.id:  # none given: the content is the name
                name, n = prompt.content_hash, 2
                while name in first:
                    name, n = f"{prompt.content_hash}-{n}", n + 1
                prompt = _replace(prompt, id=name)
            if prompt.id in first:
                raise InputError(f"{where}: duplicate id {prompt.id!r} (first at {first[prompt.id]})")
            first[prompt.id] = where
            prompts.append(prompt)
        return cls(prompts)

    # -- choosing -------------------------------------------------------------------------------------
    def where(self, **columns: Any) -> PromptSet:
        """Rows whose columns equal the given values; a list, tuple or set means any of them.

        >>> prompts.where(language=["en", "sw"], modality="text")    # doctest: +SKIP
        """

        def keep(prompt: Prompt) -> bool:
            return all(
                getattr(prompt, name) in wanted
                if isinstance(wanted, (list, tuple, set, frozenset)) and name != "cell"
                else getattr(prompt, name) == wanted
                for name, wanted in columns.items()
            )

        return PromptSet(p for p in self if keep(p))

    def in_cells(self, cells: Iterable[Cell | tuple[str, str]]) -> PromptSet:
        """Rows of the given (language, modality) cells."""
        wanted = {Cell.of(cell) for cell in cells}
        return PromptSet(p for p in self if p.cell in wanted)

    def for_step(self, split: str) -> PromptSet:
        """The rows a step may use: those of `split` if there are any, otherwise all of them."""
        rows = PromptSet(p for p in self if p.split == split)
        return rows if len(rows) else self

    def cells(self) -> list[Cell]:
        """The (language, modality) cells, in order of first appearance."""
        return list(dict.fromkeys(p.cell for p in self))

    def pairs(self) -> list[tuple[Prompt, Prompt]]:
        """(harmful, benign) twins: same `pair_id`, same cell."""
        benign: dict[tuple[str | None, Cell], Prompt] = {
            (p.pair_id, p.cell): p for p in self if p.label == "benign" and p.pair_id is not None
        }
        return [(p, benign[p.pair_id, p.cell]) for p in self if p.label == "harmful" and (p.pair_id, p.cell) in benign]

    def with_splits(self, *, seed: int = 0, fractions: Sequence[float] = (0.4, 0.2, 0.2, 0.2)) -> PromptSet:
        """Assign discover, confirm, train and test, cluster by cluster, so no request is in two of them.

        Clusters are shuffled with `seed` and dealt out separately for every mix of labels they contain,
        so that each split gets its share of both.
        """
        import numpy as np

        kinds: dict[str, set[str]] = {}
        for p in self:
            kinds.setdefault(p.cluster, set()).add(p.label)
        rng = np.random.default_rng(seed)
        split_of: dict[str, str] = {}
        for kind in (["benign"], ["harmful"], ["benign", "harmful"]):
            clusters = sorted(c for c, labels in kinds.items() if sorted(labels) == kind)
            rng.shuffle(clusters)
            edges = np.round(np.cumsum(fractions) / sum(fractions) * len(clusters)).astype(int)
            for i, cluster in enumerate(clusters):
                split_of[cluster] = SPLITS[int(np.searchsorted(edges, i, side="right"))]
        return PromptSet(_replace(p, split=split_of[p.cluster]) for p in self)

    def require_both_labels(self, what: str) -> None:
        """Raise unless there are harmful and benign rows."""
        for label in LABELS:
            if not any(p.label == label for p in self):
                raise InputError(f"{what}: no {label} prompts; both labels are needed for a contrast")

    # -- what it was ----------------------------------------------------------------------------------
    def hash(self) -> str:
        """Short hash of everything in it: the data hash of an artefact's provenance."""
        digest = hashlib.sha256()
        for p in self:
            digest.update(f"{p.id}\0{p.label}\0{p.cell}\0{p.pair_id}\0{p.content_hash}\n".encode())
        return digest.hexdigest()[:16]

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt, without the pictures."""
        import pandas as pd

        columns = ("id", "prompt", "label", "language", "modality", "category", "source", "pair_id", "target", "split")
        return pd.DataFrame([{c: getattr(p, c) for c in columns} for p in self], columns=list(columns))


def _is_null(value: Any) -> bool:
    """None, or the NaN that a table puts where a string is missing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _replace(prompt: Prompt, **changes: Any) -> Prompt:
    from dataclasses import replace

    return replace(prompt, **changes)


# -- one row --------------------------------------------------------------------------------------------
def _parse(row: Any, where: str, folder: Path | None) -> Prompt:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with columns, got {type(row).__name__}")
    text, messages = _text(row, where)
    label = row.get("label")
    if label not in LABELS:
        said = "is missing" if label is None else f"{label!r} is unknown"
        raise InputError(f"{where}: label {said}; use 'harmful' or 'benign'")
    images = _images(row.get("images"), where, folder)
    modality = row.get("modality") or ("text+image" if images else "text")
    if modality not in MODALITIES:
        raise InputError(f"{where}: modality {modality!r} is unknown; use one of {', '.join(MODALITIES)}")
    if modality == "text" and images:
        raise InputError(f"{where}: modality 'text' but it has images; use 'image', 'typographic' or 'text+image'")
    language = row.get("language") or "en"
    if not isinstance(language, str) or not _BCP47.fullmatch(language):
        raise InputError(f"{where}: language {language!r} is not a BCP-47 tag such as 'en' or 'zh-Hans'")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    expect = row.get("expect")
    if expect is not None and not (
        isinstance(expect, (list, tuple)) and all(isinstance(e, str) and e.strip() for e in expect)
    ):
        raise InputError(f"{where}: expect must be a list of strings that a right answer contains")
    known = set(Prompt.__dataclass_fields__) - {"extra"}

    def scalar(name: str) -> str | None:
        value = row.get(name)
        if value is None:
            return None
        if not isinstance(value, (str, int)):
            raise InputError(f"{where}: {name} must be a string, got {type(value).__name__}")
        return str(value)

    return Prompt(
        id=scalar("id") or "",
        prompt=text,
        label=label,
        messages=messages,
        images=images,
        language=language,
        modality=modality,
        category=scalar("category"),
        source=scalar("source"),
        pair_id=scalar("pair_id"),
        target=scalar("target"),
        split=split,
        expect=tuple(expect) if expect is not None else (),
        extra={k: v for k, v in row.items() if k not in known},
    )


def _text(row: dict[str, Any], where: str) -> tuple[str, tuple[dict[str, Any], ...] | None]:
    """The `prompt`, or the last user turn of `messages`."""
    messages = row.get("messages")
    if messages is not None:
        turns = list(messages) if not isinstance(messages, (str, dict)) else []
        if not turns or not all(isinstance(m, dict) and "role" in m and "content" in m for m in turns):
            raise InputError(f"{where}: messages must be a list of objects with 'role' and 'content'")
        content = turns[-1]["content"]
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            content = " ".join(str(part["text"]) for part in content if part.get("text"))
        if not isinstance(content, str):
            raise InputError(f"{where}: the last message's content must be a string or a list of parts")
        return _encodable(content, where), tuple(turns)
    text = row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: prompt is missing or empty")
    return _encodable(text, where), None


def _encodable(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: prompt has half a surrogate pair, which no tokenizer can read; mend the text"
        ) from None
    return text


def _images(value: Any, where: str, folder: Path | None) -> tuple[Any, ...]:
    """Paths resolved inside `folder`, PIL images and bytes as they are; each checked from its header."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes, os.PathLike)) or not hasattr(value, "__iter__") or isinstance(value, dict):
        value = [value]
    images: list[Any] = []
    for item in value:
        if isinstance(item, dict):  # how Hugging Face datasets store an undecoded image
            item = item.get("bytes") or item.get("path")
        if isinstance(item, (str, os.PathLike)):
            item = _inside(item, where, folder)
        _open_image(item, where)
        images.append(item)
    return tuple(images)


def _inside(item: str | os.PathLike[str], where: str, folder: Path | None) -> Path:
    if folder is None:
        raise InputError(f"{where}: image path {os.fspath(item)!r} but no folder=; paths need a folder to stay inside")
    root = folder.resolve()
    try:
        path = (root / item).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, a loop of links
        raise InputError(f"{where}: image path {os.fspath(item)[:80]!r} cannot be followed") from None
    if not path.is_relative_to(root):
        raise InputError(f"{where}: image {os.fspath(item)!r} lies outside the prompt file's folder; move it inside")
    if not found:
        raise InputError(f"{where}: image {os.fspath(item)!r} not found under the prompt file's folder")
    return path


def _open_image(item: Any, where: str) -> Image.Image:
    """A PIL image, its header checked (the pixels are decoded later)."""
    from PIL import Image, UnidentifiedImageError

    name = repr(item.name) if isinstance(item, Path) else "image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(item, Image.Image):
                image = item
            elif isinstance(item, (bytes, bytearray)):
                image = Image.open(io.BytesIO(item))
            elif isinstance(item, Path):
                image = Image.open(item)
            else:
                raise InputError(f"{where}: image must be a path, bytes or a PIL image, got {type(item).__name__}")
    except Image.DecompressionBombError:
        raise InputError(f"{where}: {name} is enormous; at most {MAX_PIXELS // 10**6} megapixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {name} is not an image we can read") from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{where}: {name} is enormous ({image.width} x {image.height}); at most {MAX_PIXELS // 10**6} megapixels"
        )
    return image


def _image_bytes(image: Any) -> bytes:
    if isinstance(image, Path):
        return image.read_bytes()
    return bytes(image) if isinstance(image, (bytes, bytearray)) else image.tobytes()


Role = Literal["last_prompt", "prompt", "image", "text", "response"]
