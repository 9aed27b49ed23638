"""Files to rows: JSON lines, JSON, CSV, TSV and Parquet; an error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import InputError

__all__ = ["JSON_COLUMNS", "jsonl_rows", "parquet_rows", "rows_of"]

#: Key of a Parquet file's metadata under which `PromptSet.to_parquet` lists the columns that it wrote as JSON.
JSON_COLUMNS = b"neuronshield.json"
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def rows_of(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) of every row of a file, read by its ending: .csv, .tsv, .json, .jsonl or .parquet.

    >>> path = Path("p.csv")
    >>> _ = path.write_text("goal\\nBake\\n")
    >>> rows_of(path)
    [('p.csv: row 1', {'goal': 'Bake'})]

    Args:
        path: the file. JSON is a list of objects, or an object of objects, whose keys become a column "key".

    Raises:
        InputError: naming the file: another ending, not found, empty, or not what its ending says.
    """
    kind = path.suffix.lower()
    readers: dict[str, Callable[[Path], list[tuple[str, Any]]]] = {
        ".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows, ".jsonl": jsonl_rows, ".parquet": parquet_rows,
    }  # fmt: skip
    if kind not in readers:
        raise InputError(f"{path}: {kind or 'a file without ending'} is not read; use {', '.join(readers)}")
    rows = readers[kind](path)
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a list of objects, got {type(row).__name__} in it")
    return rows


def jsonl_rows(path: Path) -> list[tuple[str, Any]]:
    """(where, row) of every line of a JSONL file; blank lines are left out.

    >>> path = Path("p.jsonl")
    >>> _ = path.write_text('{"prompt": "Bake"}\\n')
    >>> jsonl_rows(path)
    [('p.jsonl:1', {'prompt': 'Bake'})]

    Args:
        path: the file.

    Raises:
        InputError: naming the file and the line: not found, not UTF-8, not JSON, a key given twice, or empty.
    """
    rows = [
        (f"{path}:{number}", _json(line, f"{path}:{number}"))
        for number, line in enumerate(_text(path).split("\n"), 1)
        if line.strip()
    ]
    if not rows:
        raise InputError(f"{path}: empty; write one JSON object a line with at least 'prompt' and 'label'")
    return rows


def parquet_rows(path: Path) -> list[tuple[str, Any]]:
    """(where, row) of every row of a Parquet file.

    >>> import pandas as pd
    >>> pd.DataFrame({"prompt": ["Bake"], "split": [None]}).to_parquet("p.parquet")
    >>> parquet_rows(Path("p.parquet"))
    [('p.parquet: row 0', {'prompt': 'Bake', 'split': None})]

    Args:
        path: the file.

    Raises:
        InputError: naming the file: not found, not Parquet, a column given twice, or empty; or pyarrow is missing.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow") from None
    try:
        table = pyarrow.parquet.read_table(path)
        encoded = json.loads((table.schema.metadata or {}).get(JSON_COLUMNS, b"[]"))
        _once(table.column_names, str(path))
        records = table.to_pylist()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a Parquet file ({said})") from None
    rows = []
    for i, record in enumerate(records):
        where = f"{path}: row {i}"
        written = {name for name, value in record.items() if name in encoded and isinstance(value, str)}
        read = {name: _json(record[name], f"{where}: column {name!r}") for name in written}
        rows.append((where, {**record, **read}))
    if not rows:
        raise InputError(f"{path}: empty")
    return rows


def _json_rows(path: Path) -> list[tuple[str, Any]]:
    text = _text(path)
    if text.lstrip().startswith("{") and "\n{" in text.strip():
        raise InputError(f"{path}: has one JSON object a line, not one JSON value; name it .jsonl")
    data = _json(text, str(path))
    if isinstance(data, dict):
        if not all(isinstance(row, dict) for row in data.values()):
            raise InputError(f"{path}: expected a list of objects, or an object of objects")
        data = [{"key": key, **row} for key, row in data.items()]
    if not isinstance(data, list):
        raise InputError(f"{path}: expected a list of objects, got {type(data).__name__}")
    return [(f"{path}: row {number}", row) for number, row in enumerate(data, 1)]


def _csv_rows(path: Path) -> list[tuple[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        table = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
        header = next(table, [])
        _once(header, str(path))
        rows: list[tuple[str, Any]] = []
        for values in table:
            if not values:  # a blank line
                continue
            where = f"{path}: row {len(rows) + 1}"
            if len(values) != len(header):
                said = f"has {len(values)} fields, the header {len(header)}"
                raise InputError(f"{where} (line {table.line_num}) {said}; check quotes and separators")
            rows.append((where, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as {path.suffix.lower()} (line {table.line_num}: {error})") from None
    return rows


def _text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if data.startswith(UTF16):
        raise InputError(f"{path}: is UTF-16; save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if (at := data.find(b"\0")) >= 0:
        line = data[:at].count(b"\n") + 1
        raise InputError(f"{path}:{line}: has a NUL byte, as UTF-16 has; save the file as UTF-8")
    return text


def _json(text: str, where: str) -> Any:
    """The value of a JSON text; a key may stand once in an object."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        _once([key for key, _ in items], where)
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(f"{where}: not JSON ({error.msg}, {line}column {error.colno})") from None
    except (ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{where}: not JSON we can read ({str(error).split(';')[0]})") from None


def _once(names: list[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{where}: column {name[:60]!r} is given twice; only one can be meant")
        seen.add(name)
