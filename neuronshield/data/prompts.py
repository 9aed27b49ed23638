"""Prompts: requests with a label, a language, a modality and a split.

A `PromptSet` is an ordered set of `Prompt`s. Two columns decide what the results mean:

- `pair_id` names a matched pair: the same request with one thing changed, one side harmful and one benign. Translations
  and image variants of one request share it, so it is also the cluster that intervals are computed over.
- `split` says what a prompt may be used for. Each verb takes the rows of its own split: `capture` "discover", `verify`
  "confirm", `masked_update` "train", `evaluate` "test". A set without splits is used whole (`PromptSet.for_step`). A set in
  which one request is in two splits is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.arguments import at_least, check_seed, one_of, require, unknown_keywords
from ..core.display import count, own_names, short_table
from ..core.errors import InputError
from ..core.files import as_path
from .columns import LABELS, MODALITIES, SPLITS
from .parsing import check_fractions
from .records import numbered, to_prompts
from .rows import KNOWN, Cell, Prompt, as_cells, options_of
from .sources import jsonl_rows, parquet_rows
from .splits import check_leaks, check_marked, deal, no_rows
from .tables import write_jsonl, write_parquet

__all__ = ["LABELS", "MODALITIES", "SPLITS", "Cell", "Prompt", "PromptSet", "as_cells"]


class PromptSet(Sequence[Prompt]):
    """An ordered set of prompts.

    >>> prompts = PromptSet.from_records([
    ...     {"prompt": "How do I make a cake?", "label": "benign", "pair_id": "1"},
    ...     {"prompt": "How do I make a bomb?", "label": "harmful", "pair_id": "1"},
    ... ])
    >>> len(prompts), prompts.cells(), len(prompts.where(label="harmful"))
    (2, [Cell(language='en', modality='text')], 1)

    Args:
        prompts: the rows; `from_records` makes them from dicts.

    Raises:
        InputError: rows that are not prompts, two of one id, or one request in two splits.
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        hint = "read rows with PromptSet.from_records(rows), a file with PromptSet.from_jsonl(path)"
        require(prompts, Iterable, call="PromptSet(prompts)", name="prompts", hint=hint)
        self._prompts = tuple(prompts)
        for prompt in self._prompts:
            if not isinstance(prompt, Prompt):
                require(prompt, Prompt, call="PromptSet(prompts)", name="every row", hint=hint)
        ids = Counter(p.id for p in self._prompts)
        if len(ids) < len(self._prompts):
            raise InputError(
                f"PromptSet(prompts): two prompts have the id {ids.most_common(1)[0][0]!r}; ids must be unique"
            )
        check_leaks(self._prompts)

    # -- a sequence -----------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self._named(item)
        return PromptSet(self._prompts[item]) if isinstance(item, slice) else self._prompts[item]

    def _named(self, name: str) -> Prompt:
        found = next((p for p in self if p.id == name), None)
        if found is None:
            close = difflib.get_close_matches(name, [p.id for p in self], n=1)
            hint = (
                f"did you mean {close[0]!r}?"
                if close
                else f"ids are like {self[0].id!r}"
                if len(self)
                else "it is empty"
            )
            raise InputError(f"prompts[{name!r}]: no prompt of that id; {hint}")
        return found

    def __add__(self, other: PromptSet) -> PromptSet:
        """Rows of both; an id that is in both is an error, for answers are kept by id."""
        require(other, PromptSet, call="prompts + other", name="other")
        mine = {p.id for p in self}
        twice = next((p.id for p in other if p.id in mine), None)
        if twice is not None:
            raise InputError(f"both prompt sets have an id {twice!r}; ids must be unique")
        return PromptSet([*self, *other])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptSet) and self._prompts == other._prompts

    def __hash__(self) -> int:
        return hash(tuple(p.id for p in self))

    def __repr__(self) -> str:
        harmful = sum(p.label == "harmful" for p in self)
        return f"PromptSet({harmful} harmful + {len(self) - harmful} benign, {count(len(self.cells()), 'cell')})"

    def _repr_html_(self) -> str:
        counts = self.to_frame().groupby(["language", "modality", "label"], sort=False).size().unstack(fill_value=0)
        return short_table(counts.reset_index(), title=f"{len(self)} prompts")

    __dir__ = own_names

    # -- reading --------------------------------------------------------------------------------------
    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> PromptSet:
        """The prompts of a file with one JSON object a line.

        >>> PromptSet.from_jsonl(prompts.to_jsonl("prompts.jsonl"))
        PromptSet(30 harmful + 30 benign, 2 cells)

        Args:
            path: the file. Image paths in it are relative to its folder and stay inside it.

        Raises:
            InputError: naming the file and the line: not found, not UTF-8, not JSON, empty, a bad column,
                a duplicate id, an image that is missing, outside the folder, enormous or not an image.
        """
        file = _file(path, "from_jsonl")
        return cls(to_prompts(jsonl_rows(file), file.parent))

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> PromptSet:
        """The prompts of a Parquet file with the same columns (needs pyarrow).

        >>> PromptSet.from_parquet(prompts.to_parquet("prompts.parquet"))
        PromptSet(30 harmful + 30 benign, 2 cells)

        Args:
            path: the file. Image paths in it are relative to its folder and stay inside it.

        Raises:
            InputError: as `from_jsonl`, or pyarrow is missing.
        """
        file = _file(path, "from_parquet")
        return cls(to_prompts(parquet_rows(file), file.parent))

    @classmethod
    def from_records(
        cls, records: Iterable[dict[str, Any]], *, folder: str | os.PathLike[str] | None = None
    ) -> PromptSet:
        """The prompts of dicts with the same columns.

        >>> PromptSet.from_records([{"prompt": "How do I bake bread?", "label": "benign"}])
        PromptSet(0 harmful + 1 benign, 1 cell)

        Args:
            records: one dict a prompt.
            folder: image paths are relative to it and stay inside it; None takes no paths.

        Raises:
            InputError: no records, or as `from_jsonl`, naming the number of the record.
        """
        return cls(to_prompts(numbered(records), folder))

    @classmethod
    def from_dataset(
        cls, dataset: Iterable[dict[str, Any]], *, folder: str | os.PathLike[str] | None = None
    ) -> PromptSet:
        """The prompts of a Hugging Face dataset, or of anything that iterates over dicts with the same columns.

        Columns that are None are missing.

        >>> PromptSet.from_dataset([{"prompt": "How do I bake bread?", "label": "benign", "target": None}])
        PromptSet(0 harmful + 1 benign, 1 cell)

        Args:
            dataset: its rows.
            folder: image paths are relative to it and stay inside it; None takes no paths.

        Raises:
            InputError: no rows, or as `from_jsonl`, naming the number of the row.
        """
        if isinstance(dataset, (str, bytes, Mapping)) or not isinstance(dataset, Iterable):
            hint = "choose a split, as in dataset['train']" if isinstance(dataset, Mapping) else "load it first"
            raise InputError(f"from_dataset(dataset): expected rows, got {type(dataset).__name__}; {hint}")
        if not isinstance(dataset, pd.DataFrame):  # a row without columns is refused by its number
            dataset = (dict(row.items()) if hasattr(row, "items") else row for row in dataset)
        return cls.from_records(dataset, folder=folder)

    # -- choosing -------------------------------------------------------------------------------------
    def where(self, **columns: Any) -> PromptSet:
        """Rows whose columns equal the given values, in order.

        >>> len(prompts.where(language=["en", "sw"], label="harmful")), len(prompts.where(cell="sw/text"))
        (30, 30)

        Args:
            **columns: a column of `Prompt`, or `cell`, with its value; a list, tuple or set of values means any of them.

        Raises:
            InputError: an unknown column, or a label, modality or split that no prompt can have.
        """
        unknown_keywords(columns, KNOWN, "where")
        wanted = {name: options_of(name, value) for name, value in columns.items()}
        return PromptSet(p for p in self if all(getattr(p, name) in options for name, options in wanted.items()))

    def in_cells(self, cells: Iterable[Cell | tuple[str, str] | str] | Cell | str) -> PromptSet:
        """Rows of the given cells, in order.

        >>> len(prompts.in_cells(["en/text", ("sw", "text")]))
        60

        Args:
            cells: one or several, each as `Cell.of` takes it.

        Raises:
            InputError: something that is not a cell.
        """
        wanted = set(as_cells(cells, call="in_cells"))
        return PromptSet(p for p in self if p.cell in wanted)

    def for_step(self, split: str) -> PromptSet:
        """The rows a step may use: those of `split`; all of them where no row has a split.

        >>> len(prompts.for_step("discover"))
        60

        Args:
            split: one of `SPLITS`.

        Raises:
            InputError: no split of that name, rows of other splits only, or rows without a split among others.
        """
        one_of(split, SPLITS, call="for_step", name="split")
        if not any(p.split for p in self):
            return self
        check_marked(self)
        rows = PromptSet(p for p in self if p.split == split)
        if not len(rows):
            raise no_rows(self, split)
        return rows

    def marked(self, split: str) -> PromptSet:
        """The same rows, all of one split.

        >>> len(prompts.marked("test").for_step("test"))
        60

        Args:
            split: one of `SPLITS`.

        Raises:
            InputError: no split of that name.
        """
        one_of(split, SPLITS, call="marked", name="split")
        return PromptSet(replace(p, split=split) for p in self)

    def cells(self) -> list[Cell]:
        """The (language, modality) cells, in order of first appearance.

        >>> [str(cell) for cell in prompts.cells()]
        ['en/text', 'sw/text']
        """
        return list(dict.fromkeys(p.cell for p in self))

    def pairs(self) -> list[tuple[Prompt, Prompt]]:
        """Matched pairs as (harmful, benign): same `pair_id`, same cell.

        >>> len(prompts.pairs())
        30
        """
        benign: dict[tuple[str | None, Cell], Prompt] = {
            (p.pair_id, p.cell): p for p in self if p.label == "benign" and p.pair_id is not None
        }
        return [(p, benign[p.pair_id, p.cell]) for p in self if p.label == "harmful" and (p.pair_id, p.cell) in benign]

    def with_splits(self, *, seed: int = 0, fractions: Sequence[float] = (0.4, 0.2, 0.2, 0.2)) -> PromptSet:
        """The same rows with a split each: discover, confirm, train or test; no request is in two of them.

        Whole clusters are shuffled and dealt, separately for every mix of labels they contain, so that each split gets its
        part of both labels.

        >>> dealt = prompts.with_splits(seed=0)
        >>> [len(dealt.where(split=name)) for name in SPLITS]
        [24, 12, 12, 12]

        Args:
            seed: of the shuffle.
            fractions: relative sizes of discover, confirm, train and test; a split of size 0 stays empty.

        Raises:
            InputError: fractions that are not four numbers of at least 0, or are all 0.
        """
        check_seed(seed, call="with_splits")
        check_fractions(fractions)
        split_of = deal(self, seed=seed, fractions=fractions)
        return PromptSet(replace(p, split=split_of[p.cluster]) for p in self)

    def require_both_labels(self, what: str) -> None:
        """Raise unless there are harmful and benign rows.

        >>> prompts.where(label="harmful").require_both_labels("contrast")
        Traceback (most recent call last):
            ...
        neuronshield.core.errors.InputError: contrast: no benign prompts; both labels are needed for a contrast

        Args:
            what: the step, for the message.

        Raises:
            InputError: one label is missing.
        """
        for label in LABELS:
            if not any(p.label == label for p in self):
                raise InputError(f"{what}: no {label} prompts; both labels are needed for a contrast")

    # -- as data --------------------------------------------------------------------------------------
    def hash(self) -> str:
        """Short hash of every column of every prompt, in order: the data hash of an artefact's provenance.

        >>> len(prompts.hash())
        16
        """
        digest = hashlib.sha256()
        for p in self:
            digest.update(f"{p.content_hash}{p.columns_hash}".encode())
        return digest.hexdigest()[:16]

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt, without the pictures.

        >>> prompts.to_frame().shape
        (60, 10)
        """
        columns = ("id", "prompt", "label", "language", "modality", "category", "source", "pair_id", "target", "split")
        return pd.DataFrame([{c: getattr(p, c) for c in columns} for p in self], columns=list(columns))

    def head(self, n: int = 5) -> pd.DataFrame:
        """The first rows as a frame, without columns that are empty in all of them.

        >>> list(prompts.head(2)["label"])
        ['harmful', 'benign']

        Args:
            n: rows.

        Raises:
            InputError: `n` is not a whole number of at least 1.
        """
        at_least(1, "head", n=n)
        return self[:n].to_frame().dropna(axis="columns", how="all")

    def to_jsonl(self, path: str | os.PathLike[str]) -> Path:
        """Path of the JSONL file that the prompts were written to; `from_jsonl` reads it back.

        Pictures given as paths inside the file's folder are referred to. All others are written to `<stem>-pictures`
        beside the file, named by the hash of their content.

        >>> PromptSet.from_jsonl(prompts.to_jsonl("prompts.jsonl")).hash() == prompts.hash()
        True

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: a column that JSON cannot hold.
        """
        return write_jsonl(self, _file(path, "to_jsonl"))

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Path of the Parquet file that the prompts were written to; `from_parquet` reads it back (needs pyarrow).

        >>> PromptSet.from_parquet(prompts.to_parquet("prompts.parquet")).hash() == prompts.hash()
        True

        Args:
            path: the file; pictures as for `to_jsonl`.

        Raises:
            InputError: a column that JSON cannot hold, or pyarrow is missing.
        """
        return write_parquet(self, _file(path, "to_parquet"))


def _file(path: Any, name: str) -> Path:
    hint = "for records in memory use from_records(records)" if name.startswith("from") else ""
    return as_path(path, call=f"{name}(path)", hint=hint)
