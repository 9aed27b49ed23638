"""Files to rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuronshield import InputError
from neuronshield.data.sources import jsonl_rows, parquet_rows

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
