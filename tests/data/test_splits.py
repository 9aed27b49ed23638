"""One request is in one split; a step takes its own rows or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from neuronshield import InputError, PromptSet

BAKE: dict[str, Any] = {"id": "a", "prompt": "How do I bake bread?", "label": "benign", "split": "train"}


def other(**columns: Any) -> dict[str, Any]:
    return {**BAKE, "id": "b", "split": "test", **columns}


def seen(seed: int = 0) -> dict[str, Any]:
    return {"images": [tiny.picture(seed)], "modality": "image"}


def chat(*texts: str) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": turns, "prompt": None}


LEAKS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "matched pair": ([{**BAKE, "pair_id": "1"}, other(prompt="How do I bake a bomb?", label="harmful", pair_id="1")], "pair_id"),
    "translation": ([{**BAKE, "pair_id": 1}, other(prompt="Nitaokaje mkate?", language="sw", pair_id="1")], "pair_id"),
    "the same text": ([BAKE, other()], "text"),
    "the same text in capitals": ([BAKE, other(prompt="  how do i\nBAKE bread? ")], "text"),
    "the same text with what is not seen": ([BAKE, other(prompt="How do I ba\u200bke\ufeff bread?")], "text"),
    "a pair with a space": ([{**BAKE, "pair_id": "1"}, other(prompt="How do I bake a bomb?", pair_id="1 ")], "pair_id"),
    "the same text without its mark": ([BAKE, other(prompt="“how do I bake bread”")], "text"),
    "the same text of other pairs": ([{**BAKE, "pair_id": "1"}, other(pair_id="2")], "text"),
    "the same text in another cell": ([BAKE, other(language="sw")], "text"),
    "the same text with a picture": ([BAKE, other(**seen())], "text"),
    "the same text, the last of three": ([{**BAKE, **seen(1)}, {**other(**seen(2)), "split": "train"}, {**other(), "id": "c"}], "text"),
    "the same text and picture": ([{**BAKE, **seen()}, other(**seen())], "text and pictures"),
    "a conversation of one turn": ([BAKE, other(**chat("How do I bake bread?"))], "text"),
    "a conversation": ([{**BAKE, **chat("Hi", "Hello", "Go on")}, other(**chat("hi", "Oh", "go on"))], "text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAKS)
def test_one_request_in_two_splits_is_refused(kind: str):
    rows, shared = LEAKS[kind]
    with pytest.raises(
        InputError, match=rf"have the same {shared}: one request must be in one split; deal whole requests"
    ) as e:
        PromptSet.from_records(rows)
    assert "split 'train'" in str(e.value)
    assert "split 'test'" in str(e.value)
    whole = [{**row, "split": "train"} for row in rows]
    assert len(PromptSet.from_records(whole)) == len(rows)


@pytest.mark.parametrize("kind", LEAKS)
def test_dealing_keeps_whole_requests_together(kind: str):
    rows = [{**row, "split": None} for row in LEAKS[kind][0]]
    more = [{"id": str(i), "prompt": f"request {i}", "label": "benign"} for i in range(12)]
    for seed in range(3):
        dealt = PromptSet.from_records([*rows, *more]).with_splits(seed=seed)
        assert len({p.split for p in dealt[: len(rows)]}) == 1


NOT_ONE: dict[str, list[dict[str, Any]]] = {
    "other pictures": [{**BAKE, **seen(1)}, other(**seen(2))],
    "other conversations that end alike": [{**BAKE, **chat("Bread", "Yes", "Go on")}, other(**chat("Cake", "Yes", "Go on"))],
    "other pairs": [{**BAKE, "pair_id": "1"}, other(prompt="How do I cut bread?", pair_id="2")],
    "pictures alone": [
        {**BAKE, "prompt": None, "messages": [{"role": "user", "content": [{"type": "image", "image": tiny.picture(i)}]}],
         "id": str(i), "split": split} for i, split in enumerate(("train", "test"))
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_ONE)
def test_other_requests_may_be_in_other_splits(kind: str):
    assert [p.split for p in PromptSet.from_records(NOT_ONE[kind])] == ["train", "test"]


def test_however_a_set_is_made_a_leak_is_found(tmp_path: Path):
    train, test = (PromptSet.from_records([row]) for row in (BAKE, other()))
    makers: list[Callable[[], object]] = [
        lambda: train + test, lambda: PromptSet([*train, *test]), lambda: PromptSet([train[0], replace(train[0], id="c", split="test")])
    ]  # fmt: skip
    for make in makers:
        with pytest.raises(InputError, match="one request must be in one split"):
            make()
    path = tmp_path / "p.jsonl"
    path.write_text(train.to_jsonl(tmp_path / "a.jsonl").read_text() + test.to_jsonl(tmp_path / "b.jsonl").read_text())
    with pytest.raises(InputError, match=r"prompts 'a' .* and 'b' "):
        PromptSet.from_jsonl(path)


def test_rows_without_a_split_beside_rows_with_one_are_refused(tmp_path: Path):
    rows = [{**r, "split": "train"} if i < 4 else r for i, r in enumerate(tiny.records(languages=("en",)))]
    with pytest.raises(InputError, match=r"prompts: 26 of 30 have no split \(first: id 'en-text-0-2-harmful'\)"):
        PromptSet.from_records(rows)
    mixed = PromptSet.from_records(rows[:4]) + PromptSet.from_records(rows[4:])
    with pytest.raises(InputError, match="26 of 30 have no split"):
        mixed.for_step("train")
    assert {p.split for p in mixed.with_splits(seed=0)} == {"discover", "confirm", "train", "test"}


def test_marked_rows_are_taken_by_the_step_they_are_marked_for():
    rows = PromptSet.from_records([BAKE])
    marked = rows.marked("test")
    assert [p.split for p in marked.for_step("test")] == ["test"]
    assert [p.split for p in rows] == ["train"]
    with pytest.raises(InputError, match=r"none of split 'test'; there are 1 'train'\. .*: rows.marked\('test'\)"):
        rows.for_step("test")
    with pytest.raises(InputError, match="marked: split='dev' is unknown"):
        rows.marked("dev")


def test_parts_of_a_set_with_splits_stay_usable():
    rows = tiny.prompts().with_splits(seed=0)
    for part in (rows.where(language="sw"), rows.where(label="harmful"), rows[3:40]):
        assert {p.split for p in part.for_step("train")} == {"train"}
    assert len(rows.where(split="train").for_step("train")) == len(rows.for_step("train"))
