"""One row to the fields of a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from neuronshield import InputError
from neuronshield.data.columns import COLUMNS
from neuronshield.data.parsing import parse_row

OK: dict[str, Any] = {"prompt": "how do i bake a cake", "label": "benign"}


def test_a_row_fills_every_column():
    row = parse_row({**OK, "mine": {"a": 1}}, "x:1", None)
    assert set(row) == {*COLUMNS, "extra"}
    assert row["extra"] == {"mine": {"a": 1}}
    assert (row["id"], row["expect"], row["images"], row["messages"]) == ("", (), (), None)


def test_pictures_decide_the_modality_unless_it_is_given():
    picture = tiny.picture(0)
    assert parse_row({**OK, "images": picture}, "x:1", None)["modality"] == "text+image"
    assert parse_row({**OK, "images": picture, "modality": "typographic"}, "x:1", None)["modality"] == "typographic"


@pytest.mark.parametrize(("value", "kept"), [(7, "7"), ("7", "7"), (None, None)])
def test_names_may_be_numbers(value: Any, kept: str | None):
    row = parse_row({**OK, "pair_id": value, "category": value}, "x:1", None)
    assert (row["pair_id"], row["category"]) == (kept, kept)


def test_spaces_around_a_name_are_no_part_of_it():
    # trap: a pair that is not found, or a request in two splits that is not seen
    row = parse_row({**OK, "id": " a", "pair_id": "1 ", "split": "test\n", "target": " no "}, "x:1", None)
    assert (row["id"], row["pair_id"], row["split"], row["target"]) == ("a", "1", "test", " no ")


@pytest.mark.parametrize("value", [1.5, [1], {"a": 1}])
def test_other_types_are_named_with_their_column(value: Any):
    with pytest.raises(InputError, match="x:1: source must be a string, got"):
        parse_row({**OK, "source": value}, "x:1", None)


def test_the_parts_of_a_message_are_joined_to_its_text():
    parts = [{"type": "text", "text": "how do"}, {"type": "image"}, {"type": "text", "text": "i bake"}]
    row = parse_row(
        {"messages": [{"role": "user", "content": parts}], "label": "benign", "images": [tiny.picture(0)]}, "x:1", None
    )
    assert row["prompt"] == "how do i bake"
