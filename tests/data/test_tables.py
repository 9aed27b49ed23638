"""Prompts to JSONL and Parquet and back, column by column and pixel by pixel."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny

from neuronshield import InputError, Prompt, PromptSet

FORMS = ["jsonl", "parquet"]


def write(prompts: PromptSet, path: Path, form: str) -> PromptSet:
    writers: dict[str, Callable[[Path], Path]] = {"jsonl": prompts.to_jsonl, "parquet": prompts.to_parquet}
    readers: dict[str, Callable[[Path], PromptSet]] = {"jsonl": PromptSet.from_jsonl, "parquet": PromptSet.from_parquet}
    assert writers[form](path) == path
    return readers[form](path)


def columns(prompt: Prompt) -> dict[str, Any]:
    found = {f.name: getattr(prompt, f.name) for f in fields(prompt) if f.name != "images"}
    return {**found, "pixels": [image.tobytes() for image in prompt.load_images()]}


def rich() -> PromptSet:
    """Rows that differ in which columns they have, and whose own columns differ in type."""
    jpeg = io.BytesIO()
    tiny.picture(5).save(jpeg, "JPEG")
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "bake"}, {"type": "image"}]},
    ]
    return PromptSet.from_records(
        [
            {"id": "a", "prompt": "one\u2028two\nthree “é” 中", "label": "benign", "target": "sure", "expect": ["x", "y"], "split": "train"},
            {"id": "b", "messages": turns, "label": "harmful", "images": [tiny.picture(0), jpeg.getvalue()], "language": "zh-Hans", "split": "test"},
            {"prompt": "no id", "label": "harmful", "pair_id": 7, "category": "c", "source": "s", "mine": [1, {"a": None}], "n": 3, "mix": 1.5, "split": "test"},
            {"id": "c", "prompt": "x", "label": "benign", "mine": "text", "n": 4, "mix": "x", "big": 2**70, "none": None, "flag": True, "split": "train"},
        ]
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_prompts_come_back_equal(tmp_path: Path, form: str):
    prompts = rich()
    back = write(prompts, tmp_path / "new" / f"p.{form}", form)
    assert [columns(p) for p in back] == [columns(p) for p in prompts]
    assert back.hash() == prompts.hash()
    assert [p.cluster for p in back] == [p.cluster for p in prompts]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["p-pictures", f"p.{form}"]


@pytest.mark.parametrize("form", FORMS)
def test_a_set_with_pictures_in_memory_comes_back_equal(tmp_path: Path, form: str):
    prompts = tiny.prompts(pictures=True)
    back = write(prompts, tmp_path / f"p.{form}", form)
    assert back.hash() == prompts.hash()
    assert [columns(p) for p in back] == [columns(p) for p in prompts]


@pytest.mark.parametrize("form", FORMS)
def test_what_was_read_back_is_written_again_without_copies(tmp_path: Path, form: str):
    first = write(rich(), tmp_path / f"p.{form}", form)
    pictures = sorted((tmp_path / "p-pictures").iterdir())
    again = write(first, tmp_path / f"q.{form}", form)
    assert again.hash() == first.hash()
    assert sorted((tmp_path / "p-pictures").iterdir()) == pictures
    assert not (tmp_path / "q-pictures").exists()  # they lie in the folder of the file already


def test_a_line_holds_the_columns_that_have_a_value(tmp_path: Path):
    row = {"id": "a", "prompt": "x", "label": "benign", "language": "en", "modality": "text"}
    path = PromptSet.from_records([row]).to_jsonl(tmp_path / "p.jsonl")
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [row]


@pytest.mark.parametrize("form", FORMS)
def test_a_column_that_json_cannot_hold_is_named_and_the_old_file_stays(tmp_path: Path, form: str):
    path = tmp_path / f"p.{form}"
    write(rich(), path, form)
    before = path.read_bytes()
    bad = PromptSet.from_records([{"id": "z", "prompt": "x", "label": "benign", "mine": object()}])
    with pytest.raises(InputError, match=r"prompt 'z': a column cannot be written as JSON \(object"):
        write(bad, path, form)
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_is_gone_is_named_with_its_prompt(tmp_path: Path, form: str):
    tiny.picture(0).save(tmp_path / "a.png")
    row = {"id": "z", "prompt": "x", "label": "benign", "images": ["a.png"]}
    prompts = PromptSet.from_records([row], folder=tmp_path)
    for spoil in (lambda path: path.write_bytes(b"junk"), Path.unlink):
        spoil(tmp_path / "a.png")
        with pytest.raises(InputError, match=rf"p\.{form}: prompt 'z': "):
            write(prompts, tmp_path / "out" / f"p.{form}", form)
