"""The notebooks as they are committed: executed in order, small, with figures that show everywhere. nbmake runs them again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BIG = 1.5e6  # bytes


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def outputs(path: Path) -> Iterator[dict[str, Any]]:
    for cell in cells(path):
        yield from cell.get("outputs", [])


def test_there_is_one_for_each_step():
    assert {p.stem for p in NOTEBOOKS} == {"quickstart", "overlap", "ablation", "masked_update"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_was_run_in_order_without_an_error(path: Path):
    counts = [c["execution_count"] for c in cells(path) if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert [o for o in outputs(path) if o["output_type"] == "error"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_small(path: Path):
    assert path.stat().st_size <= BIG


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_figure_is_kept_as_a_picture_too(path: Path):
    """Where plotly does not run (a code host, a printed page) the picture is what shows."""
    figures = [o["data"] for o in outputs(path) if "application/vnd.plotly.v1+json" in o.get("data", {})]
    drawn = sum(
        "figure(" in "".join(c["source"]) or "ns.figures." in "".join(c["source"])
        for c in cells(path)
        if c["cell_type"] == "code"
    )
    assert drawn
    assert len([o for o in outputs(path) if "image/png" in o.get("data", {})]) >= drawn
    assert all("image/png" in data for data in figures)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_shows_no_path_of_a_machine_and_no_script(path: Path):
    text = json.dumps(list(outputs(path)))
    assert re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", text) == []
    assert "<script" not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_uses_public_names_only(path: Path):
    code = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    assert set(re.findall(r"(?:from|import) neuronshield(\.\w+)", code)) == set()
    assert set(re.findall(r"from neuronshield import (\w+)", code)) <= {"organism"}
    assert re.findall(r"\bns\._\w+|\w\._[a-z]\w*\(", code) == []
