"""Rows, from a file or from memory, to prompts with ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.arguments import require
from ..core.errors import InputError
from .parsing import parse_row
from .rows import Prompt
from .splits import check_marked

__all__ = ["numbered", "to_prompts"]


def numbered(records: Any) -> list[tuple[str, Any]]:
    """(where, record) of every record of `PromptSet.from_records`.

    >>> numbered([{"id": "a"}, {"prompt": "Bake"}])
    [("record 0 (id 'a')", {'id': 'a'}), ('record 1', {'prompt': 'Bake'})]

    Args:
        records: dicts in an iterable.

    Raises:
        InputError: no records, or something else.
    """
    if isinstance(records, (str, bytes, Mapping, pd.DataFrame, os.PathLike)) or not isinstance(records, Iterable):
        hint = {
            str: "read a file with from_jsonl(path)", dict: "put it in a list: [record]",
            pd.DataFrame: 'pass frame.to_dict("records")',
        }.get(type(records), "as in from_records([{...}])")  # fmt: skip
        raise InputError(
            f"from_records(records): records must be dicts in a list, got {type(records).__name__}; {hint}"
        )
    rows = [(_where(number, record), record) for number, record in enumerate(records)]
    if not rows:
        raise InputError("from_records: no records")
    return rows


def _where(number: int, record: Any) -> str:
    name = record.get("id") if isinstance(record, Mapping) else None
    return f"record {number} (id {name!r:.60})" if isinstance(name, (str, int)) else f"record {number}"


def to_prompts(rows: Iterable[tuple[str, Any]], folder: str | os.PathLike[str] | None) -> list[Prompt]:
    """The prompts of rows; one without an id is named by its content.

    >>> [p.id for p in to_prompts([("row 1", {"prompt": "Bake", "label": "benign"})], None)]
    ['...']

    Args:
        rows: (where, row), where names it in errors.
        folder: image paths are relative to it and stay inside it; None takes no paths.

    Raises:
        InputError: `folder` is no path, as `parse_row`, an id given twice, or rows without a split beside rows with one.
    """
    require(folder, (str, os.PathLike, type(None)), call="folder=", name="folder")
    root = None if folder is None else Path(folder)
    prompts: list[Prompt] = []
    first: dict[str, str] = {}
    for where, row in rows:
        prompt = Prompt(**parse_row(row, where, root))
        if not prompt.id:  # none given: the content is the name
            name, n = prompt.content_hash, 2
            while name in first:
                name, n = f"{prompt.content_hash}-{n}", n + 1
            prompt = replace(prompt, id=name)
        if prompt.id in first:
            raise InputError(f"{where}: duplicate id {prompt.id!r:.60} (first at {first[prompt.id]})")
        first[prompt.id] = where
        prompts.append(prompt)
    check_marked(prompts)
    return prompts
