"""Prompts to files: the rows of a JSONL or Parquet file, and the pictures beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.files import replacing, write_text
from ..core.results import to_json
from .pictures import write_image
from .sources import JSON_COLUMNS

__all__ = ["write_jsonl", "write_parquet"]

#: Columns of a row that are written where they have a value.
OPTIONAL = ("category", "source", "pair_id", "target", "split")


def write_jsonl(prompts: Iterable[Any], path: Path) -> Path:
    """Path of the JSONL file that prompts were written to, one object a line.

    >>> write_jsonl(prompts, Path("p.jsonl")).read_text().count("\\n")
    60

    Args:
        prompts: the rows, as `Prompt`s.
        path: the file; pictures go to `<stem>-pictures` beside it.

    Raises:
        InputError: a column that JSON cannot hold.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in _rows(prompts, path)]
    return write_text(path, "".join(f"{line}\n" for line in lines))


def write_parquet(prompts: Iterable[Any], path: Path) -> Path:
    """Path of the Parquet file that prompts were written to.

    Columns whose values are neither all strings, all numbers of one kind, nor all lists of strings are written as JSON;
    the file's metadata names them.

    >>> write_parquet(prompts, Path("p.parquet")).name
    'p.parquet'

    Args:
        prompts: the rows, as `Prompt`s.
        path: the file; pictures go to `<stem>-pictures` beside it.

    Raises:
        InputError: a column that JSON cannot hold, or pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: writing Parquet needs pyarrow; pip install pyarrow") from None
    rows = _rows(prompts, path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    kinds = {name: {_kind(row[name]) for row in rows if name in row} for name in names}
    encoded = [name for name in names if len(kinds[name]) > 1 or "json" in kinds[name]]
    columns = {
        name: [
            None if name not in row else json.dumps(row[name], ensure_ascii=False) if name in encoded else row[name]
            for row in rows
        ]
        for name in names
    }
    table = pyarrow.table(columns).replace_schema_metadata({JSON_COLUMNS: json.dumps(encoded).encode()})
    with replacing(path) as partial:
        pyarrow.parquet.write_table(table, partial)
    return path


def _kind(value: Any) -> str:
    """How Parquet holds a value: its type's name, "list" of strings, or "json" for anything else."""
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "list"
    if type(value) is int and not -(2**63) <= value < 2**63:
        return "json"
    return type(value).__name__ if type(value) in (str, int, float, bool) else "json"


def _rows(prompts: Iterable[Any], path: Path) -> list[dict[str, Any]]:
    """Columns of every prompt that have a value, as JSON can hold them; pictures are written."""
    pictures = path.with_name(f"{path.stem}-pictures")
    rows = []
    for prompt in prompts:
        text = {"messages": list(prompt.messages)} if prompt.messages is not None else {"prompt": prompt.prompt}
        row = {"id": prompt.id, **text, "label": prompt.label, "language": prompt.language, "modality": prompt.modality}
        row |= {name: getattr(prompt, name) for name in OPTIONAL if getattr(prompt, name) is not None}
        try:
            images = [write_image(image, pictures, path.parent) for image in prompt.images]
        except InputError as error:
            raise InputError(f"{path}: prompt {prompt.id!r:.60}: {error}") from None
        if images:
            row["images"] = images
        if prompt.expect:
            row["expect"] = list(prompt.expect)
        try:
            rows.append(to_json({**row, **prompt.extra}))
        except TypeError as error:
            raise InputError(f"{path}: prompt {prompt.id!r}: a column cannot be written as JSON ({error})") from None
    return rows
