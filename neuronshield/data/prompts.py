"""Prompts: requests with a label, a language, a modality and a split.

A `PromptSet` is an ordered set of `Prompt`s. Two columns decide what the results mean:

- `pair_id` names a matched pair: the same request with one thing changed, one side harmful and one benign. Translations
  and image variants of one request share it, so it is also the cluster that intervals are computed over.
- `split` says what a prompt may be used for. Each verb takes the rows of its own split: `capture` "discover", `verify`
  "confirm", `masked_update` "train", `evaluate` "test". A set that has no such rows is used whole (`PromptSet.for_step`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image

from ..core.errors import InputError
from .parsing import LABELS, MODALITIES, SPLITS, jsonl_rows, parquet_rows, parse_row
from .pictures import image_bytes, open_image

__all__ = ["LABELS", "MODALITIES", "SPLITS", "Cell", "Prompt", "PromptSet"]


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
            digest.update(image_bytes(image))
        return digest.hexdigest()[:16]

    def load_images(self) -> list[Image.Image]:
        """Its pictures, decoded, in RGB."""
        where = f"prompt {self.id!r}"
        try:
            return [open_image(image, where).convert("RGB") for image in self.images]
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
        rows = jsonl_rows(Path(path))
        return cls._build(rows, Path(path).parent)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> PromptSet:
        """Read a Parquet file with the same columns (needs pyarrow)."""
        rows = parquet_rows(Path(path))
        return cls._build(rows, Path(path).parent)

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
            prompt = Prompt(**parse_row(row, where, folder))
            if not prompt.id:  # none given: the content is the name
                name, n = prompt.content_hash, 2
                while name in first:
                    name, n = f"{prompt.content_hash}-{n}", n + 1
                prompt = replace(prompt, id=name)
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
        return PromptSet(replace(p, split=split_of[p.cluster]) for p in self)

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
