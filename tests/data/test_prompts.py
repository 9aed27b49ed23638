"""Prompts: reading them, every way a file can be wrong, and choosing among them."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from neuronshield import Cell, InputError, PromptSet

OK = {"prompt": "how do i bake a cake", "label": "benign"}
BAD = {"prompt": "how do i make a bomb", "label": "harmful"}


def write(folder: Path, *rows: Any, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def save_picture(path: Path, size: tuple[int, int] = (6, 6)) -> Path:
    tiny.picture(0, size).save(path)
    return path


def huge_png(path: Path, side: int) -> None:
    """A PNG whose header claims side x side pixels; a few bytes on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


# -- reading --------------------------------------------------------------------------------------------
def test_a_full_row_arrives_column_by_column(tmp_path: Path):
    save_picture(tmp_path / "a.png")
    row = {
        **OK,
        "id": "x",
        "images": ["a.png"],
        "language": "zh_TW",
        "modality": "typographic",
        "category": "food",
        "source": "me",
        "pair_id": 7,
        "target": "sure",
        "split": "train",
        "expect": ["bake", "cake"],
        "mine": [1],
    }
    (p,) = PromptSet.from_jsonl(write(tmp_path, row))
    got = (
        p.id,
        p.prompt,
        p.label,
        p.language,
        p.modality,
        p.category,
        p.source,
        p.pair_id,
        p.target,
        p.split,
        p.expect,
    )
    assert got == ("x", OK["prompt"], "benign", "zh-Hant", "typographic", "food", "me", "7", "sure", "train",
                   ("bake", "cake"))  # fmt: skip
    assert p.extra == {"mine": [1]}
    assert p.cell == Cell("zh-Hant", "typographic")
    assert [i.size for i in p.load_images()] == [(6, 6)]
    assert p.load_images()[0].mode == "RGB"


def test_defaults_are_english_text_with_the_content_as_name():
    a, b = PromptSet.from_records([OK, BAD])
    assert (a.language, a.modality, a.images, a.expect, a.split) == ("en", "text", (), (), None)
    assert a.id != b.id
    assert [p.id for p in PromptSet.from_records([BAD, OK])] == [b.id, a.id]


def test_two_rows_of_the_same_text_without_id_get_different_names():
    assert len({p.id for p in PromptSet.from_records([OK, OK, OK])}) == 3


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_fine(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OK).encode() + b"\r\n\r\n" + json.dumps(BAD).encode() + b"\r\n")
    assert [p.label for p in PromptSet.from_jsonl(path)] == ["benign", "harmful"]


def test_a_line_separator_inside_a_string_does_not_split_the_line(tmp_path: Path):
    # trap: str.splitlines also splits at U+2028 and U+0085
    path = write(tmp_path, json.dumps({**OK, "prompt": "one\u2028two\u0085"}, ensure_ascii=False))
    assert PromptSet.from_jsonl(path)[0].prompt == "one\u2028two\u0085"


def test_messages_stand_for_the_prompt():
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"},
             {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "bake"}]}]  # fmt: skip
    (p,) = PromptSet.from_records([{"messages": turns, "label": "benign", "images": [tiny.picture(0)]}])
    assert p.prompt.strip() == "bake"
    assert p.messages == tuple(turns)


def test_pictures_come_as_paths_pil_bytes_or_hugging_face_dicts(tmp_path: Path):
    path = save_picture(tmp_path / "a.png")
    data = path.read_bytes()
    forms = ["a.png", tiny.picture(0), data, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}]
    rows = PromptSet.from_records([{**OK, "id": i, "images": [form]} for i, form in enumerate(forms)], folder=tmp_path)
    pixels = {p.load_images()[0].tobytes() for p in rows}
    assert pixels == {tiny.picture(0).tobytes()}
    assert {p.modality for p in rows} == {"text+image"}


def test_from_dataset_takes_columns_that_are_none():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(
        [{**OK, "id": "a", "images": None, "pair_id": None, "target": "sure", "language": None, "split": "train"},
         {**BAD, "id": "b", "images": None, "pair_id": "1", "target": None, "language": "sw", "split": "test"}]
    )  # fmt: skip
    a, b = PromptSet.from_dataset(table)
    assert (a.language, a.pair_id, a.target, a.split, a.images) == ("en", None, "sure", "train", ())
    assert (b.language, b.pair_id, b.target, b.split) == ("sw", "1", None, "test")


def test_from_dataset_takes_decoded_images():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(
        {"prompt": ["cut"], "label": ["benign"], "images": [[tiny.picture(3)]]},
        features=datasets.Features({"prompt": datasets.Value("string"), "label": datasets.Value("string"),
                                    "images": datasets.List(datasets.Image())}),
    )  # fmt: skip
    (p,) = PromptSet.from_dataset(table)
    assert p.load_images()[0].tobytes() == tiny.picture(3).tobytes()


def test_parquet_holds_the_same_rows(tmp_path: Path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    rows = [{**OK, "id": "a", "pair_id": None, "expect": ["cake"]}, {**BAD, "id": "b", "pair_id": "1", "expect": None}]
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    a, b = PromptSet.from_parquet(tmp_path / "p.parquet")
    assert (a.id, a.pair_id, a.expect, b.pair_id, b.expect) == ("a", None, ("cake",), "1", ())
    (tmp_path / "q.parquet").write_text("no")
    with pytest.raises(InputError, match="not a Parquet file"):
        PromptSet.from_parquet(tmp_path / "q.parquet")


# -- bad input: each one line that names the file and the line --------------------------------------------
ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{'prompt': 1}", "not JSON"),
    "cut JSON": ('{"prompt": "how', "not JSON"),
    "a number": ("7", "expected an object"),
    "a list": ("[1, 2]", "expected an object"),
    "nested too deeply": ("[" * 100_000, "not JSON"),
    "a number of 5,000 digits": ('{"id": ' + "1" * 5000 + "}", "not JSON"),
    "no label": ({"prompt": "x"}, "label is missing"),
    "null label": ({**OK, "label": None}, "label is missing"),
    "unknown label": ({**OK, "label": "bad"}, "label 'bad' is unknown"),
    "label a number": ({**OK, "label": 1}, "label 1 is unknown; use 'harmful' or 'benign'"),
    "label of another set": ({**OK, "label": "jailbreak"}, "'jailbreak' is unknown"),
    "label a list": ({**OK, "label": ["harmful"]}, "is unknown"),
    "no prompt": ({"label": "benign"}, "prompt is missing"),
    "blank prompt": ({**OK, "prompt": " \n"}, "prompt is missing or empty"),
    "prompt a number": ({**OK, "prompt": 5}, "prompt is missing or empty"),
    "lone surrogate in the prompt": ('{"prompt": "a \\ud800", "label": "benign"}', "prompt"),
    "messages a string": ({"messages": "hi", "label": "benign"}, "messages must be"),
    "messages empty": ({"messages": [], "label": "benign"}, "messages must be"),
    "messages without content": ({"messages": [{"role": "user"}], "label": "benign"}, "messages must be"),
    "messages with null content": (
        {"messages": [{"role": "user", "content": None}], "label": "benign"},
        "content must be a string or a list",
    ),
    "messages with a number": ({"messages": [{"role": "user", "content": 5}], "label": "benign"}, "content must be"),
    "unknown modality": ({**OK, "modality": "video"}, "modality 'video' is unknown"),
    "text with a picture": ({**OK, "modality": "text", "images": ["a.png"]}, "modality 'text' but it has images"),
    "unknown split": ({**OK, "split": "dev"}, "split 'dev' is unknown"),
    "language not a tag": ({**OK, "language": "../../x"}, "not a BCP-47 tag"),
    "language a number": ({**OK, "language": 3}, "not a BCP-47 tag"),
    "expect a string": ({**OK, "expect": "cake"}, "expect must be a list"),
    "expect a number": ({**OK, "expect": 5}, "expect must be a list"),
    "pair_id a list": ({**OK, "pair_id": [1]}, "pair_id must be a string, got list"),
    "image missing": ({**OK, "images": ["none.png"]}, "'none.png' not found"),
    "image a folder": ({**OK, "images": ["sub"]}, "'sub' not found"),
    "image above the folder": ({**OK, "images": ["../outside.png"]}, "lies outside"),
    "image by absolute path": ({**OK, "images": ["{outside}"]}, "lies outside"),
    "image through a symbolic link": ({**OK, "images": ["link.png"]}, "lies outside"),
    "image through a linked folder": ({**OK, "images": ["way/outside.png"]}, "lies outside"),
    "image in a loop of links": ({**OK, "images": ["loop.png"]}, "image"),
    "image name with a null": ({**OK, "images": ["a\0.png"]}, "image"),
    "image name too long": ({**OK, "images": ["a" * 5000]}, "image"),
    "not an image": ({**OK, "images": ["text.png"]}, "'text.png' is not an image"),
    "empty image": ({**OK, "images": ["empty.png"]}, "'empty.png' is not an image"),
    "enormous image": ({**OK, "images": ["huge.png"]}, "'huge.png' is enormous"),
    "bomb of an image": ({**OK, "images": ["bomb.png"]}, "'bomb.png' is enormous"),
    "image a number": ({**OK, "images": [5]}, "image must be a path"),
    "duplicate id": ({**OK, "id": "first"}, "duplicate id 'first'"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "data"
    (inner / "sub").mkdir(parents=True)
    save_picture(tmp_path / "outside.png")
    save_picture(inner / "a.png")
    (inner / "link.png").symlink_to(tmp_path / "outside.png")
    (inner / "way").symlink_to(tmp_path)
    (inner / "loop.png").symlink_to(inner / "loop.png")
    (inner / "text.png").write_text("hello")
    (inner / "empty.png").write_bytes(b"")
    huge_png(inner / "huge.png", 8_000)
    huge_png(inner / "bomb.png", 60_000)
    return inner


@pytest.mark.parametrize("kind", ROWS)
def test_a_bad_row_is_named_by_file_and_line(folder: Path, kind: str):
    row, says = ROWS[kind]
    if isinstance(row, dict) and row.get("images") == ["{outside}"]:
        row = {**row, "images": [str(folder.parent / "outside.png")]}
    # line 1 is fine, line 2 is blank, line 3 is bad: the number must count blank lines
    path = write(folder, {**BAD, "id": "first"}, "", row)
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        PromptSet.from_jsonl(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert "\n" not in message
    if kind == "duplicate id":
        assert f"first at {path}:1" in message


@pytest.mark.parametrize(("content", "says"), [(b"", "empty"), (b"\n \n", "empty"), (b"\xef\xbb\xbf", "empty")])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"p.jsonl: {says}"):
        PromptSet.from_jsonl(path)


@pytest.mark.parametrize("make", [lambda _: None, lambda p: p.mkdir()], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], None]):
    path = tmp_path / "p.jsonl"
    make(path)
    with pytest.raises(InputError, match=r"p\.jsonl: (no such file|cannot be read)"):
        PromptSet.from_jsonl(path)


@pytest.mark.parametrize("data", ["é".encode("latin-1"), "x".encode("utf-16")])
def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path: Path, data: bytes):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(OK).encode() + b"\n\n" + data + b"\n")
    with pytest.raises(InputError, match=r"p\.jsonl:3: not UTF-8"):
        PromptSet.from_jsonl(path)


def test_a_truncated_picture_is_bad_input_when_it_is_decoded(tmp_path: Path):
    # trap: the header of a cut file is fine, so only decoding can tell
    whole = io.BytesIO()
    tiny.picture(0, (60, 60)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:2000])
    with pytest.raises(InputError, match="image"):
        PromptSet.from_records([{**OK, "images": ["cut.png"]}], folder=tmp_path)[0].load_images()


def test_records_may_not_name_paths_without_a_folder(tmp_path: Path):
    path = save_picture(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"record 0: .*folder="):
        PromptSet.from_records([{**OK, "images": [str(path)]}])
    with pytest.raises(InputError, match="no records"):
        PromptSet.from_records([])


def test_reading_changes_nothing_in_the_working_folder(folder: Path):
    before = sorted(folder.iterdir())
    path = write(folder, {**OK, "images": ["a.png"]})
    PromptSet.from_jsonl(path)
    assert sorted(folder.iterdir()) == sorted([*before, folder / "prompts.jsonl"])


# -- choosing -------------------------------------------------------------------------------------------
def test_where_and_in_cells_keep_the_order():
    rows = tiny.prompts(pictures=True)
    assert [p.id for p in rows.where(language="sw", label="harmful")] == [
        p.id for p in rows if p.language == "sw" and p.label == "harmful"
    ]
    assert len(rows.where(language=["en", "sw"], modality="image")) == 60
    assert rows.in_cells([("sw", "image")]).cells() == [Cell("sw", "image")]
    assert rows.cells() == [Cell(a, b) for a in ("en", "sw") for b in ("text", "image")]
    assert len(rows[3:10]) == 7
    assert [p.id for p in rows[:2] + rows[2:4]] == [p.id for p in rows[:4]]


def test_a_step_takes_its_own_split_and_all_rows_only_if_none_is_marked():
    rows = PromptSet.from_records([{**OK, "id": "a", "split": "train"}, {**BAD, "id": "b", "split": "test"}])
    assert [p.id for p in rows.for_step("train")] == ["a"]
    assert [p.id for p in rows.for_step("test")] == ["b"]
    with pytest.raises(
        InputError, match=r"none of split 'confirm'; there are 1 'train', 1 'test'\. .*marked\('confirm'\)"
    ):
        rows.for_step("confirm")
    with pytest.raises(InputError, match="none of split 'test'"):
        rows.where(split="train").for_step("test")
    bare = PromptSet.from_records([OK, BAD])
    assert bare.for_step("confirm") is bare


def test_splits_share_no_request():
    rows = tiny.prompts(pictures=True).with_splits(seed=5)
    splits: dict[str | None, set[str]] = {}
    for p in rows:
        splits.setdefault(p.split, set()).add(p.cluster)
    assert set(splits) == {"discover", "confirm", "train", "test"}
    # 15 requests at 40/20/20/20 %; translations and pictures of one request stay together
    assert {s: len(c) for s, c in splits.items()} == {"discover": 6, "confirm": 3, "train": 3, "test": 3}
    assert sum(len(c) for c in splits.values()) == len(set.union(*splits.values()))
    assert all({p.label for p in rows.where(split=s)} == {"harmful", "benign"} for s in splits)
    assert [p.id for p in rows] == [p.id for p in tiny.prompts(pictures=True)]


def test_splits_follow_their_seed_and_not_the_order_of_rows():
    rows = tiny.prompts()

    def table(p: PromptSet) -> dict[str, str | None]:
        return {x.id: x.split for x in p}

    assert table(rows.with_splits(seed=1)) == table(rows.with_splits(seed=1))
    assert table(rows.with_splits(seed=1)) != table(rows.with_splits(seed=2))
    assert table(PromptSet(reversed(list(rows))).with_splits(seed=1)) == table(rows.with_splits(seed=1))


def test_unpaired_rows_are_dealt_label_by_label():
    rows = PromptSet.from_records([{"prompt": f"{i}", "label": "harmful" if i % 5 else "benign"} for i in range(50)])
    split = rows.with_splits(seed=0, fractions=(0.5, 0.5, 0, 0))
    counts = {
        (s, y): len(split.where(split=s, label=y)) for s in ("discover", "confirm") for y in ("harmful", "benign")
    }
    assert counts == {("discover", "harmful"): 20, ("confirm", "harmful"): 20, ("discover", "benign"): 5,
                      ("confirm", "benign"): 5}  # fmt: skip
    assert not len(split.where(split="train"))


def test_pairs_are_of_one_cell():
    rows = tiny.prompts(pictures=True)
    pairs = rows.pairs()
    assert len(pairs) == 60
    assert all(h.label == "harmful" and b.label == "benign" for h, b in pairs)
    assert all((h.pair_id, h.cell) == (b.pair_id, b.cell) for h, b in pairs)
    lonely = PromptSet.from_records([{**BAD, "pair_id": "1", "language": "sw"}, {**OK, "pair_id": "1"}, BAD, OK])
    assert lonely.pairs() == []


def test_one_label_alone_is_refused_by_what_needs_both():
    with pytest.raises(InputError, match="capture: no benign prompts"):
        PromptSet.from_records([BAD]).require_both_labels("capture")


def test_the_hash_sees_text_label_picture_and_order():
    base: list[dict[str, Any]] = [{**OK, "id": "a"}, {**BAD, "id": "b"}]
    hashes = {
        PromptSet.from_records(rows).hash()
        for rows in (base, base[::-1], [{**OK, "id": "a", "prompt": "x"}, base[1]], [{**base[0], "label": "harmful"}, base[1]],
                     [{**base[0], "images": tiny.picture(1)}, base[1]], [{**base[0], "images": tiny.picture(2)}, base[1]])
    }  # fmt: skip
    assert len(hashes) == 6
    assert PromptSet.from_records(base).hash() in hashes


ROW: dict[str, Any] = {
    "id": "1", "prompt": "a", "label": "harmful", "language": "en", "category": "c", "source": "s", "pair_id": "p",
    "target": "Sorry", "expect": ["x"], "split": "train", "mine": {"a": 1},
}  # fmt: skip
CHANGED: dict[str, Any] = {
    "id": "2", "prompt": "b", "label": "benign", "language": "sw", "category": "d", "source": "t", "pair_id": "q", "target": "Sure",
    "expect": ["y"], "split": "test", "mine": {"a": 2}, "images": [tiny.picture(0)], "more": 1,
    "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a"}],
}  # fmt: skip


@pytest.mark.parametrize("column", CHANGED)
def test_the_hash_sees_every_column(column: str):
    base = PromptSet.from_records([ROW]).hash()
    assert PromptSet.from_records([dict(ROW)]).hash() == base
    changed = {**ROW, "prompt": None if column == "messages" else "a", column: CHANGED[column]}
    assert PromptSet.from_records([changed]).hash() != base


def test_the_hash_sees_the_shape_of_a_picture():
    wide, high = (
        PromptSet.from_records([{**ROW, "images": [tiny.Image.new("RGB", size)]}]) for size in ((6, 4), (4, 6))
    )
    assert wide.hash() != high.hash()


def test_html_of_a_set_shows_no_prompt_unescaped():
    rows = PromptSet.from_records([{**OK, "prompt": "<script>alert(1)</script>"}])
    assert "<script>" not in rows._repr_html_()
