"""Prompts that are read while they are used, for sets that do not fit into memory.

A `PromptSet` holds every prompt, with its pictures where they are given as bytes. A `PromptStream` holds none: it reads a Parquet
file, a folder of them, or a data set from the hub a few rows at a time, each time it is iterated over. The columns and the checks of
each row are those of `PromptSet`. What needs all rows at once is not checked: that no two ids are equal, and that the same words
are not in two splits under two names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..core.arguments import one_of, require
from ..core.errors import InputError
from ..core.files import as_path
from .columns import SPLITS
from .parsing import parse_row
from .prompts import Prompt
from .sources import JSON_COLUMNS

__all__ = ["PromptStream", "StreamedStep"]

ROWS = 256  # rows of a Parquet file that are read at once


class _Request(NamedTuple):
    """The name of a request, as `Prompt.cluster` gives it."""

    cluster: str


class PromptStream:
    """Prompts that are read a few at a time. `ns.capture` and `ns.top_prompts` take one in place of a `PromptSet`.

    >>> stream = ns.PromptStream.from_parquet(prompts.to_parquet("prompts.parquet"))
    >>> stream, sum(1 for _ in stream)
    (PromptStream('prompts.parquet'), 60)

    Args:
        read: gives (where, row, folder of its pictures) of every row, from the first, each time it is called.
        name: what is read, for messages.
    """

    def __init__(self, read: Callable[[], Iterator[tuple[str, Any, Path | None]]], *, name: str) -> None:
        self._read = read
        self.name = name

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> PromptStream:
        """The prompts of a Parquet file, or of all Parquet files in a folder in the order of their names (needs pyarrow).

        >>> ns.capture(model, PromptStream.from_parquet(prompts.to_parquet("prompts.parquet")), progress=False)
        Stats(60 tokens [last_prompt], 2 cells, 3 x 29 neurons)

        Args:
            path: the file or the folder. Image paths are relative to the folder of their file and stay inside it.

        Raises:
            InputError: no such file, a folder without Parquet files, or pyarrow is missing. What is wrong in a row is raised
                when the row is read.
        """
        given = as_path(path, call="from_parquet(path)")
        files = sorted(given.rglob("*.parquet")) if given.is_dir() else [given]
        if not files or not given.exists():
            what = "a folder without .parquet files" if given.exists() else "no such file"
            raise InputError(f"{given}: {what}")
        _pyarrow(given)
        return cls(lambda: (row for file in files for row in _parquet(file)), name=given.name)

    @classmethod
    def from_dataset(
        cls, dataset: Iterable[Mapping[str, Any]], *, folder: str | os.PathLike[str] | None = None
    ) -> PromptStream:
        """The prompts of a Hugging Face data set, such as `datasets.load_dataset(name, split="train", streaming=True)`.

        >>> rows = [{"prompt": "How do I bake bread?", "label": "benign"}, {"prompt": "How do I pick a lock?", "label": "harmful"}]
        >>> [p.label for p in PromptStream.from_dataset(rows)]
        ['benign', 'harmful']

        Args:
            dataset: anything that can be iterated over more than once and gives dicts.
            folder: image paths are relative to it and stay inside it; None takes no paths.

        Raises:
            InputError: something that cannot be iterated over, or only once.
        """
        call = "from_dataset(dataset)"
        require(dataset, Iterable, call=call, name="dataset")
        if isinstance(dataset, (Iterator, str, bytes, Mapping)):
            raise InputError(
                f"{call}: a {type(dataset).__name__} is no data set that can be read twice; pass the data set itself"
            )
        root = None if folder is None else as_path(folder, call=f"{call[:-1]}, folder=)")

        def read() -> Iterator[tuple[str, Any, Path | None]]:
            for number, row in enumerate(dataset):
                yield f"row {number}", {k: v for k, v in row.items() if v is not None}, root

        return cls(read, name=type(dataset).__name__)

    def __iter__(self) -> Iterator[Prompt]:
        for number, (where, row, folder) in enumerate(self._read()):
            prompt = Prompt(**parse_row(row, where, folder))
            yield prompt if prompt.id else replace(prompt, id=f"{prompt.content_hash}-{number}")

    def for_step(self, split: str) -> StreamedStep:
        """The rows that a step may use, as `PromptSet.for_step` chooses them.

        >>> stream = PromptStream.from_parquet(prompts.to_parquet("prompts.parquet"))
        >>> step = stream.for_step("discover")
        >>> len(list(step)), step.hash() == prompts.hash()
        (60, True)

        Args:
            split: one of `SPLITS`.

        Raises:
            InputError: no split of that name.
        """
        one_of(split, SPLITS, call="for_step", name="split")
        return StreamedStep(self, split)

    def __repr__(self) -> str:
        return f"PromptStream({self.name!r})"


class StreamedStep:
    """The rows of one step of a stream. It remembers the names of requests, about 100 bytes each, and a running hash.

    >>> step = PromptStream.from_dataset([{"prompt": "Bake", "label": "benign", "pair_id": "7"}]).for_step("test")
    >>> [p.prompt for p in step], [request.cluster for request in step.seen]
    (['Bake'], ['pair:7'])

    Args:
        stream: what is read.
        split: the step's split.
    """

    def __init__(self, stream: PromptStream, split: str) -> None:
        self.stream, self.split = stream, split
        self._splits: dict[str, str | None] = {}
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[Prompt]:
        self._splits, self._digest, marked = {}, hashlib.sha256(), None
        for prompt in self.stream:
            marked = bool(prompt.split) if marked is None else marked
            if bool(prompt.split) is not marked:
                raise InputError(f"{self.stream.name}: prompt {prompt.id!r:.60} has {'no' if marked else 'a'} split, rows "
                                 f"before it have {'one' if marked else 'none'}; give every row a split, or none")  # fmt: skip
            before = self._splits.setdefault(prompt.cluster, prompt.split)
            if before != prompt.split:
                raise InputError(f"{self.stream.name}: prompt {prompt.id!r:.60}: its request is in the splits {before!r} and "
                                 f"{prompt.split!r}; put all prompts of a request into one")  # fmt: skip
            if prompt.split in (None, self.split):
                self._digest.update(f"{prompt.content_hash}{prompt.columns_hash}".encode())
                yield prompt

    @property
    def seen(self) -> list[_Request]:
        """The requests that were read for the step."""
        return [_Request(name) for name, split in self._splits.items() if split in (None, self.split)]

    def hash(self) -> str:
        """Short hash of the rows that were read: that of a `PromptSet` of the same rows, if they have ids."""
        return self._digest.hexdigest()[:16]


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from None
    return pyarrow.parquet


def _parquet(path: Path) -> Iterator[tuple[str, Any, Path | None]]:
    """(where, row, folder of its pictures) of every row of a file, `ROWS` at a time."""
    parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            encoded = json.loads((file.schema_arrow.metadata or {}).get(JSON_COLUMNS, b"[]"))
            number = 0
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", _decoded(row, encoded), path.parent
                    number += 1
    except InputError:
        raise
    except (OSError, ValueError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a Parquet file ({said})") from None


def _decoded(row: dict[str, Any], encoded: list[str]) -> dict[str, Any]:
    return {k: json.loads(v) if k in encoded and isinstance(v, str) else v for k, v in row.items() if v is not None}
