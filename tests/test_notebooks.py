"""The notebooks as they are committed: executed in order, small, with figures that show everywhere. nbmake runs them again."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nbconvert import HTMLExporter
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
BIG = 1.5e6  # bytes


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def outputs(path: Path) -> Iterator[dict[str, Any]]:
    for cell in cells(path):
        yield from cell.get("outputs", [])


def test_there_is_one_for_each_step():
    assert {p.stem for p in NOTEBOOKS} == {"quickstart", "explore", "overlap", "ablation", "masked_update", "modality"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_was_run_in_order_without_an_error(path: Path):
    counts = [c["execution_count"] for c in cells(path) if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert [o for o in outputs(path) if o["output_type"] == "error"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_small(path: Path):
    assert path.stat().st_size <= BIG


def drawn(path: Path) -> int:
    """How many cells end with a figure or an explorer."""
    code = ["".join(c["source"]).rstrip() for c in cells(path) if c["cell_type"] == "code"]
    return sum(".figure(" in text or "ns.figures." in text or "ns.explore(" in text for text in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_figure_and_explorer_shows_where_no_script_runs(path: Path):
    """nbconvert's page of a notebook has a picture of each, as a code host and a printed page have."""
    page, _ = HTMLExporter(template_name="basic").from_filename(str(path))
    pictures = re.findall(r'<img[^>]+src="data:image/png;base64,([^"]+)"', page)
    assert drawn(path)
    assert len(pictures) == drawn(path)
    for picture in pictures:
        with Image.open(io.BytesIO(b64decode(picture))) as opened:
            assert opened.width >= 800
            assert len(opened.convert("RGB").getcolors(1 << 24) or []) >= 10  # something is drawn


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_picture_of_an_explorer_is_small(path: Path):
    sizes = [
        len(o["data"]["image/png"]) * 3 / 4
        for o in outputs(path)
        if "Explorer" in "".join(o.get("data", {}).get("text/plain", ""))
    ]
    assert len(sizes) == sum("ns.explore(" in "".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    assert all(size < 300e3 for size in sizes)


def test_the_third_cell_of_the_quickstart_shows_neurons():
    third = [c for c in cells(NOTEBOOKS[-1].with_name("quickstart.ipynb")) if c["cell_type"] == "code"][2]
    assert "ns.explore(" in "".join(third["source"])
    assert [o for o in third["outputs"] if "image/png" in o["data"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_short_enough_to_read(path: Path):
    assert len(cells(path)) <= 30
    tables = ["".join(o["data"]["text/html"]) for o in outputs(path) if "text/html" in o.get("data", {})]
    assert all(table.count("<tr") <= 30 for table in tables)
    assert all(len("".join(o["text"]).splitlines()) <= 40 for o in outputs(path) if "text" in o)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_shows_no_path_of_a_machine_and_no_script(path: Path):
    text = json.dumps(list(outputs(path)))
    assert re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", text) == []
    assert "<script" not in text
    assert re.findall(r" at 0x[0-9a-f]+>|widget-view", text) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_uses_public_names_only(path: Path):
    code = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    assert set(re.findall(r"(?:from|import) neuronshield(\.\w+)", code)) == set()
    assert set(re.findall(r"from neuronshield import (\w+)", code)) <= {"organism"}
    assert re.findall(r"\bns\._\w+|\w\._[a-z]\w*\(", code) == []
