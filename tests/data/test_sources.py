"""Files to rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuronshield import InputError
from neuronshield.data.sources import jsonl_rows, parquet_rows, rows_of

OK: dict[str, Any] = {"prompt": "how do i bake a cake", "label": "benign"}


def test_rows_are_numbered_by_line(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text(f"\n{json.dumps(OK)}\n\n{json.dumps(OK)}\n", encoding="utf-8")
    assert [where for where, _ in jsonl_rows(path)] == [f"{path}:2", f"{path}:4"]


def test_an_empty_parquet_file_is_said_to_be_empty(tmp_path: Path):
    import pandas as pd

    path = tmp_path / "p.parquet"
    pd.DataFrame({"prompt": pd.Series([], dtype=str)}).to_parquet(path)
    with pytest.raises(InputError, match=r"p\.parquet: empty"):
        parquet_rows(path)
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        parquet_rows(tmp_path / "none.parquet")


ROW = {"goal": "Bake, then\ncut", "n": "1"}


def csv(separator: str) -> bytes:
    return f'goal{separator}n\r\n"Bake, then\ncut"{separator}1\r\n'.encode()


FILES = {
    "p.csv": csv(","), "p.CSV": csv(","), "p.tsv": csv("\t"), "p.jsonl": json.dumps(ROW).encode() + b"\r\n\r\n",
    "p.json": json.dumps([ROW], indent=2).encode(),
}  # fmt: skip


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_by_its_ending_with_or_without_a_byte_order_mark(tmp_path: Path, name: str, mark: bytes):
    (tmp_path / name).write_bytes(mark + FILES[name])
    assert [row for _, row in rows_of(tmp_path / name)] == [ROW]


def test_an_object_of_objects_gives_its_keys(tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps({"7": {"goal": "Bake"}}))
    assert rows_of(tmp_path / "p.json") == [(f"{tmp_path / 'p.json'}: row 1", {"key": "7", "goal": "Bake"})]


BAD: dict[str, tuple[str, bytes, str]] = {
    "UTF-16": ("p.csv", "goal\nBake\n".encode("utf-16"), "p.csv: is UTF-16; save the file as UTF-8"),
    "UTF-16 without a mark": ("p.csv", "goal\nBake\n".encode("utf-16-le"), "p.csv:1: has a NUL byte, as UTF-16 has"),
    "Latin-1": ("p.csv", b"goal\nBak\xe9\n", "p.csv:2: not UTF-8 \\(byte 8\\)"),
    "lines of JSON": ("p.json", b'{"goal": "a"}\n{"goal": "b"}\n', "has one JSON object a line.*name it .jsonl"),
    "a column twice": ("p.csv", b"goal,goal\na,b\n", "p.csv: column 'goal' is given twice"),
    "a key twice": ("p.json", b'[{"goal": "a", "goal": "b"}]', "p.json: column 'goal' is given twice"),
    "a field too many": (
        "p.csv",
        b"goal,n\na,1\nb,c,2\n",
        r"p.csv: row 2 \(line 3\) has 3 fields, the header 2; check quotes",
    ),
    "a field too few": ("p.csv", b"goal,n\na\n", "has 1 fields, the header 2"),
    "a quote that stays open": ("p.csv", b'goal,n\n"a,1\n', "cannot be read as .csv"),
    "a number": ("p.json", b"3", "expected a list of objects, got int"),
    "a list of strings": ("p.json", b'["a"]', "p.json: row 1: expected a list of objects, got str in it"),
    "an object of strings": ("p.json", b'{"a": "b"}', "expected a list of objects, or an object of objects"),
    "cut JSON": ("p.json", b'[{"goal":\n "a"', "p.json: not JSON .*line 2, column 5"),
    "another ending": ("p.xlsx", b"x", "p.xlsx: .xlsx is not read; use .csv, .tsv"),
    "no ending": ("p", b"x", "a file without ending is not read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str):
    name, data, says = BAD[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, ending: str):
    with pytest.raises(InputError, match=rf"none\.{ending}: no such file"):
        rows_of(tmp_path / f"none.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(InputError, match=rf"folder\.{ending}: (cannot be read|not a Parquet file|empty)"):
        rows_of(tmp_path / f"folder.{ending}")


def test_json_in_a_table_of_ours_that_was_changed_is_named(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"mine": ["{broken"]}).replace_schema_metadata({b"neuronshield.json": b'["mine"]'})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"p.parquet: row 0: column 'mine': not JSON"):
        parquet_rows(tmp_path / "p.parquet")
