"""The sample of answers that the report embeds, and the pictures beside them."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuronshield import InputError
from neuronshield.data.pictures import image_bytes
from neuronshield.run.answer_files import COLUMNS
from neuronshield.run.samples import picture_uris, prompt_rows, requests_by_split, sample_answers

CONDITIONS = ["plain LoRA", "no update", "shield", "random mask 1", "random mask 2", "shield, pruned"]


def write(folder: Path, *, cells: int, requests: int = 5, steps: tuple[int | None, ...] = (None, 10)) -> pd.DataFrame:
    """answers.parquet with every condition in every cell; the attack only in the first."""
    rows = [
        (condition, step, f"q{q}-{label}-{cell}", f"l{cell}", "text", label, f"q{q}", f"ask {q} {label}", f"{condition} {q}",
         "refused", True, None, False, None, None, "words")
        for condition in CONDITIONS for cell in range(cells) for q in range(requests) for label in ("harmful", "benign")
        for step in steps if condition != "shield, pruned" or (cell == 0 and step is None)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"steps": "Int64"})
    table.to_parquet(folder / "answers.parquet")
    return table


@pytest.mark.parametrize(("cells", "most"), [(1, 200), (4, 24), (9, 200), (30, 200), (40, 200), (60, 200)])
def test_every_cell_condition_and_label_occurs_in_a_bounded_sample(tmp_path: Path, cells: int, most: int):
    table = write(tmp_path, cells=cells)
    shown, total = sample_answers(tmp_path, most=most)
    assert total == len(table)
    assert sum(len(s.answers) for s in shown) <= most
    assert {(s.cell, s.label) for s in shown} == {
        (f"l{c}/text", label) for c in range(cells) for label in ("harmful", "benign")
    }
    assert {a.condition for s in shown for a in s.answers} >= set(CONDITIONS)
    for s in shown:
        assert [a.condition for a in s.answers][:2] == ["no update", "shield"] or cells == 60
        for a in s.answers:  # finished conditions, of this prompt
            row = table[(table.prompt_id == s.id) & (table.condition == a.condition) & table.steps.isna()]
            assert row.response.tolist() == [a.text]


def test_more_cells_than_answers_leave_some_out(tmp_path: Path):
    write(tmp_path, cells=150, requests=1, steps=(None,))
    shown, _ = sample_answers(tmp_path)
    assert 100 <= sum(len(s.answers) for s in shown) <= 200 + len(CONDITIONS)


def test_the_sample_is_chosen_by_position_and_shows_matched_pairs(tmp_path: Path):
    write(tmp_path, cells=3)
    shown, _ = sample_answers(tmp_path)
    assert [s.id for s in shown] == [f"q{c}-{label}-{c}" for c in range(3) for label in ("harmful", "benign")]
    assert sample_answers(tmp_path)[0] == shown


def test_without_answers_there_is_no_sample_and_a_damaged_file_is_said(tmp_path: Path):
    assert sample_answers(tmp_path) == ([], 0)
    assert prompt_rows(tmp_path) is None
    assert requests_by_split(None) == {}
    for name, call in (("answers", sample_answers), ("prompts", prompt_rows)):
        (tmp_path / f"{name}.parquet").write_bytes(b"nope")
        with pytest.raises(InputError, match=f"{name}.parquet: cannot be read"):
            call(tmp_path)  # type: ignore[operator]


def hashed(image: object) -> str:
    return hashlib.sha256(image_bytes(image)).hexdigest()[:16]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_pictures_are_read_again_from_the_prompts_if_they_are_the_same(tmp_path: Path, kind: str):
    rng = np.random.default_rng(0)
    kept, changed = (Image.fromarray(rng.integers(0, 255, (150, 300, 3), dtype=np.uint8)) for _ in range(2))
    for name, image in (("a", kept), ("b", changed)):
        image.save(tmp_path / f"{name}.png")
    given = pd.DataFrame({"id": ["a", "b", "c"], "prompt": "What is this?", "label": ["harmful", "benign", "benign"], "modality": "image",
                          "images": ["a.png", "b.png", "a.png"]})  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    if kind == "jsonl":
        given.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    else:
        given.to_parquet(tmp_path / "p.parquet")
    (out / "run.toml").write_text(f'model = "m"\nprompts = "../p.{kind}"\n')
    rows = pd.DataFrame({"id": ["a", "b", "c"], "split": ["test", "test", "train"], "request": ["1", "1", "2"],
                         "images": [[hashed(kept)], [hashed(changed)], [hashed(kept)]]})  # fmt: skip
    assert requests_by_split(rows) == {"test": 1, "train": 1}
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")  # another picture since
    found = picture_uris(out, rows, {"a", "b"})
    assert list(found) == ["a", "b"]
    assert found["b"] == [None]
    uri = found["a"][0]
    assert uri is not None
    assert uri.startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as small:
        assert small.size == (128, 64)
    (tmp_path / f"p.{kind}").unlink()
    assert picture_uris(out, rows, {"a", "b"}) == {"a": [None], "b": [None]}


def test_prompts_given_in_python_have_no_pictures_any_more(tmp_path: Path):
    rows = pd.DataFrame({"id": ["a"], "split": ["test"], "request": ["1"], "images": [["00"]]})
    (tmp_path / "run.toml").write_text('model = "m"\nprompts = "given in Python"\n')
    assert picture_uris(tmp_path, rows, {"a"}) == {"a": [None]}
    assert picture_uris(tmp_path, rows, {"b"}) == {}


@pytest.mark.slow
def test_the_organisms_pictures_are_drawn_again(tmp_path: Path):
    from neuronshield.organism import records

    row = next(r for r in records(splits=["test"], modalities=["image"], languages=["sw"]) if r["label"] == "harmful")
    rows = pd.DataFrame(
        {"id": [row["id"]], "split": ["test"], "request": ["1"], "images": [[hashed(row["images"][0])]]}
    )
    (tmp_path / "run.toml").write_text('model = "organism"\nseed = 0\n')
    assert picture_uris(tmp_path, rows, {row["id"]})[row["id"]][0] is not None
