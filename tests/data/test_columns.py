"""Names of columns and labels: near misses are refused, public spellings are read, and nulls are null everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

from neuronshield import InputError, Prompt, PromptSet
from neuronshield.data.columns import check_columns, is_null, label_of, plain

OK: dict[str, Any] = {"prompt": "how do i bake a cake", "label": "benign"}

NEAR = {
    "images": ["image", "Images", "img", "imgs", "image_path", "image_paths", "picture", "images ", "imagse", "imageUrl"],
    "language": ["lang", "Language", "languages", "langauge", "language_code", "locale"],
    "label": ["Label", "labels", "lable"], "split": ["Split", "splits", "spilt"],
    "pair_id": ["pair", "pairid", "pairId", "pair-id", "Pair ID"], "prompt": ["Prompt", "prompts", "promt"],
    "messages": ["Messages", "message", "mesages"], "modality": ["Modality", "modalities", "modalty"],
    "target": ["Target", "targets"], "id": ["ID", "\ufeffid"], "expect": ["Expect", "expected"], "source": ["SOURCE"],
    "category": ["Category", "categories", "catgeory"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "meant"), [(name, meant) for meant, names in NEAR.items() for name in names])
def test_a_near_miss_is_refused_with_the_name_that_is_read(name: str, meant: str):
    with pytest.raises(InputError, match=f"record 0: column .* is not read; call it '{meant}'"):
        PromptSet.from_records([{**OK, name: "x"}])


@pytest.mark.parametrize("name", ["question", "text", "instruction", "goal", "Behavior", "query"])
def test_a_request_of_another_name_is_pointed_to_the_prompt(name: str):
    with pytest.raises(InputError, match=f"column '{name}' is not read; call it 'prompt'"):
        PromptSet.from_records([{name: "how", "label": "benign"}])


@pytest.mark.parametrize("name", ["is_safe", "toxicity", "harmful"])
def test_a_label_of_another_name_is_pointed_to_the_label(name: str):
    with pytest.raises(InputError, match=f"column '{name}' is not read; call it 'label'"):
        PromptSet.from_records([{"prompt": "how", name: 1}])


def test_columns_of_ones_own_stay():
    own = {"behavior": "x", "topic": 1, "subcategory": "y", "expert": "z", "prompt_id": 3, "image_id": 4, "question": "q",
           "num_images": 0, "note": "see a.png", "path": "/9j/a", "class": "c", "response": "r", "subset": "s"}  # fmt: skip
    assert PromptSet.from_records([{**OK, **own}])[0].extra == own
    beside = {"language": "sw", "lang": "Swahili", "images": [tiny.picture(0)], "image_path": "a.png"}
    assert PromptSet.from_records([{**OK, **beside}])[0].extra == {"lang": "Swahili", "image_path": "a.png"}


@pytest.mark.parametrize(
    "value",
    [
        "a.png",
        "sub/b.JPEG",
        "https://x.org/c.jpg?width=300",
        "d.avif",
        b"x",
        {"bytes": b"x", "path": None},
        ["a.webp"],
        tiny.picture(0),
        np.zeros((4, 6, 3), np.uint8),
        "iVBORw0KGgoAAAANSUhEUgAA",
        "/9j/4AAQSkZJRgABAQAAAQ",
        "data:image/png;base64,iVB",
    ],
    ids=lambda value: repr(value)[:12],
)
def test_a_picture_in_a_column_that_is_not_read_is_refused(value: Any):
    with pytest.raises(InputError, match="row: column 'mine' holds a picture and is not read; call it 'images'"):
        check_columns({**OK, "mine": value}, "row")


@pytest.mark.parametrize("name", ["video", "audio", "video_path", "tools"])
def test_what_no_step_looks_at_is_refused(name: str):
    with pytest.raises(InputError, match=f"column '{name}' is not read; prompts are text and pictures"):
        check_columns({**OK, name: "a.mp4"}, "row")


@pytest.mark.parametrize("key", ["prompt", "label", "mine"])
def test_a_key_given_twice_is_refused(tmp_path: Path, key: str):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(OK)[:-1] + f', "{key}": "a", "{key}": "b"}}\n', encoding="utf-8")
    with pytest.raises(InputError, match=rf"p\.jsonl:1: column '{key}' is given twice"):
        PromptSet.from_jsonl(path)
    path.write_text(json.dumps(OK)[:-1] + ', "mine": {"a": 1, "a": 2}}\n', encoding="utf-8")
    with pytest.raises(InputError, match="column 'a' is given twice"):
        PromptSet.from_jsonl(path)


@pytest.mark.parametrize(
    ("given", "label"),
    [("Unsafe", "harmful"), ("HARMFUL", "harmful"), (" toxic ", "harmful"), ("malicious", "harmful"), ("safe", "benign"),
     ("Harmless", "benign"), ("unharmful", "benign"), ("non-toxic", "benign"), (np.str_("Safe"), "benign")],
)  # fmt: skip
def test_spellings_of_the_labels_are_read(given: Any, label: str):
    assert PromptSet.from_records([{**OK, "label": given}])[0].label == label
    assert Prompt("a", "how", given).label == label


@pytest.mark.parametrize("given", [1, 0, True, "1", "yes", "jailbreak", "bad", ["harmful"]])
def test_what_may_mean_either_label_is_refused(given: Any):
    assert label_of(given) is None
    with pytest.raises(InputError, match=r"record 0: label .* is unknown; use 'harmful' or 'benign'"):
        PromptSet.from_records([{**OK, "label": given}])


def test_nulls_are_none_nan_and_what_pandas_has():
    values: list[Any] = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, 0, "", [], False, np.zeros(2)]
    assert [is_null(v) for v in values] == [True] * 5 + [False] * 5


def test_numpy_becomes_plain_at_every_depth():
    got = plain({"a": np.array([1, 2]), "b": [np.str_("x"), (np.float64(0.5), pd.NA)], "c": np.bool_(True)})
    assert got == {"a": [1, 2], "b": ["x", (0.5, None)], "c": True}
    assert type(got["b"][0]) is str
    assert type(got["c"]) is bool


def test_a_table_of_pandas_reads_like_the_records_it_was_made_from(tmp_path: Path):
    rows = [{**OK, "id": 1, "pair_id": 4, "expect": ["cake"], "n": 3},
            {"prompt": "how do i cut", "label": "harmful", "id": 2, "pair_id": None, "target": "sorry", "expect": None}]  # fmt: skip
    frame = pd.DataFrame(rows)
    assert frame["pair_id"].dtype == float  # trap: whole numbers beside a null
    frame.to_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, frame.to_dict("records"))), encoding="utf-8")  # NaN
    wanted = PromptSet.from_records(rows)
    for read in (
        PromptSet.from_records(frame.to_dict("records")), PromptSet.from_records(frame.convert_dtypes().to_dict("records")),
        PromptSet.from_dataset(frame.to_dict("records")), PromptSet.from_parquet(tmp_path / "p.parquet"),
        PromptSet.from_jsonl(tmp_path / "p.jsonl"),
    ):  # fmt: skip
        assert [(p.id, p.pair_id, p.target, p.expect) for p in read] == [
            ("1", "4", None, ("cake",)), ("2", None, "sorry", ())
        ]  # fmt: skip
        assert [p.content_hash for p in read] == [p.content_hash for p in wanted]


def test_blank_names_are_missing():
    row = {
        **OK,
        "pair_id": " ",
        "split": "",
        "language": "",
        "modality": "",
        "target": "",
        "images": "",
        "source": "\t",
    }
    (p,) = PromptSet.from_records([row])
    assert (p.pair_id, p.split, p.language, p.modality, p.target, p.images, p.source) == (
        None, None, "en", "text", None, (), None
    )  # fmt: skip


@pytest.mark.parametrize("column", ["id", "prompt", "pair_id", "target", "category", "mine", "expect"])
@pytest.mark.parametrize(("text", "says"), [("a\ud800", "half a surrogate pair"), ("a\0b", "NUL character")])
def test_text_that_files_and_tokenizers_cannot_hold_is_refused(column: str, text: str, says: str):
    with pytest.raises(InputError, match=f"{column}.* has (a|half a) ") as caught:
        PromptSet.from_records([{**OK, column: [text] if column in ("mine", "expect") else text}])
    assert says in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("value", [True, 1.5, [1], {"a": 1}])
def test_a_name_is_a_string_or_a_whole_number(value: Any):
    with pytest.raises(InputError, match=f"record 0: pair_id must be a string, got {type(value).__name__}"):
        PromptSet.from_records([{**OK, "pair_id": value}])
