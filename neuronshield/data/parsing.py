"""Files and rows to the fields of a prompt, each column checked; an error names the file, the line and the column."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from .pictures import read_images

__all__ = ["COLUMNS", "LABELS", "MODALITIES", "SPLITS", "check_fractions", "jsonl_rows", "parquet_rows", "parse_row"]

LABELS = ("harmful", "benign")
MODALITIES = ("text", "image", "typographic", "text+image")
SPLITS = ("discover", "confirm", "train", "test")
#: The columns of a prompt; any other column of a row is kept as `extra`.
COLUMNS = ("id", "prompt", "label", "messages", "images", "language", "modality", "category", "source", "pair_id", "target",
           "split", "expect")  # fmt: skip
_BCP47 = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


#: Key of a Parquet file's metadata under which `PromptSet.to_parquet` lists the columns that it wrote as JSON.
JSON_COLUMNS = b"neuronshield.json"


def is_null(value: Any) -> bool:
    """Whether a value is missing: None, or the NaN that a table has where a string is missing.

    >>> is_null(float("nan")), is_null("")
    (True, False)

    Args:
        value: of a column.
    """
    return value is None or (isinstance(value, float) and math.isnan(value))


# -- files to rows ------
def jsonl_rows(path: Path) -> list[tuple[str, Any]]:
    """(where, row) of every line of a JSONL file; blank lines are left out.

    >>> path = Path("p.jsonl")
    >>> _ = path.write_text('{"prompt": "Bake"}\\n')
    >>> jsonl_rows(path)
    [('p.jsonl:1', {'prompt': 'Bake'})]

    Args:
        path: the file.

    Raises:
        InputError: naming the file and the line: not found, not UTF-8, not JSON, or empty.
    """
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
    return rows


def parquet_rows(path: Path) -> list[tuple[str, Any]]:
    """(where, row) of every row of a Parquet file; nulls are left out.

    >>> import pandas as pd
    >>> pd.DataFrame({"prompt": ["Bake"], "split": [None]}).to_parquet("p.parquet")
    >>> parquet_rows(Path("p.parquet"))
    [('p.parquet: row 0', {'prompt': 'Bake'})]

    Args:
        path: the file.

    Raises:
        InputError: naming the file: not found, not Parquet, or empty; or pyarrow is missing.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
        encoded = json.loads((table.schema.metadata or {}).get(JSON_COLUMNS, b"[]"))
        records = table.to_pylist()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    rows = [
        (f"{path}: row {i}", {k: json.loads(v) if k in encoded else v for k, v in r.items() if not is_null(v)})
        for i, r in enumerate(records)
    ]
    if not rows:
        raise InputError(f"{path}: empty")
    return rows


# -- one row --------------------------------------------------------------------------------------------
def parse_row(row: Any, where: str, folder: Path | None) -> dict[str, Any]:
    """The fields of a `Prompt`, each checked.

    >>> row = parse_row({"prompt": "Bake", "label": "benign", "mine": 1}, "p.jsonl:1", None)
    >>> row["language"], row["modality"], row["extra"]
    ('en', 'text', {'mine': 1})

    Args:
        row: columns by name.
        where: named in errors, e.g. "prompts.jsonl:7".
        folder: image paths are relative to it and stay inside it; None takes no paths.

    Raises:
        InputError: a column that is missing or wrong.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with columns, got {type(row).__name__}")
    text, messages = _text(row, where)
    label = row.get("label")
    if label not in LABELS:
        said = "is missing" if label is None else f"{label!r} is unknown"
        raise InputError(f"{where}: label {said}; use 'harmful' or 'benign'")
    images = read_images(row.get("images"), where, folder)
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
    return dict(
        id=_scalar(row, "id", where) or "",
        prompt=text,
        label=label,
        messages=messages,
        images=images,
        language=language,
        modality=modality,
        category=_scalar(row, "category", where),
        source=_scalar(row, "source", where),
        pair_id=_scalar(row, "pair_id", where),
        target=_scalar(row, "target", where),
        split=split,
        expect=_expect(row, where),
        extra={k: v for k, v in row.items() if k not in COLUMNS},
    )


def _scalar(row: dict[str, Any], name: str, where: str) -> str | None:
    """A column of strings; whole numbers become strings."""
    value = row.get(name)
    if value is not None and not isinstance(value, (str, int)):
        raise InputError(f"{where}: {name} must be a string, got {type(value).__name__}")
    return None if value is None else str(value)


def _expect(row: dict[str, Any], where: str) -> tuple[str, ...]:
    expect = row.get("expect")
    if expect is None:
        return ()
    if not isinstance(expect, (list, tuple)) or not all(isinstance(e, str) and e.strip() for e in expect):
        raise InputError(f"{where}: expect must be a list of strings that a right answer contains")
    return tuple(expect)


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
