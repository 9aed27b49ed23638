"""Results to JSON and back, arrays to files and back; every damaged file is one line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from neuronshield import Cell, InputError
from neuronshield.core.results import from_json, load_arrays, load_json, same, save_arrays, to_json
from neuronshield.core.statistics import Interval

FORM = "neuronshield.Example/1"


@dataclass(frozen=True)
class Inner:
    name: str
    effect: Interval
    n: int = 0


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    parts: tuple[Inner, ...]
    pair: tuple[int, str]
    by_name: dict[str, Inner]
    by_cell: dict[Cell, float]
    maybe: float | None
    flags: list[bool]
    free: dict[str, Any] = field(default_factory=dict)


def example() -> Outer:
    one = Inner("x", Interval(0.5, 0.25, 0.75), 3)
    return Outer(
        "b", (one, one), (7, "s"), {"one": one}, {Cell("en", "text"): 0.5}, None, [True, False], {"k": [1, None]}
    )


def test_a_result_comes_back_from_json_text():
    assert from_json(Outer, json.loads(json.dumps(to_json(example())))) == example()


def test_json_text_is_standard_json():
    text = json.dumps(to_json({"a": float("nan"), "b": np.float32("inf"), "c": np.int64(3), "d": np.bool_(True),
                               "e": np.array([[1.0, np.nan]]), "f": {3, 1, 2}, "g": Path("x/y")}), allow_nan=False)  # fmt: skip
    assert json.loads(text) == {"a": None, "b": None, "c": 3, "d": True, "e": [[1.0, None]], "f": [1, 2, 3], "g": "x/y"}


def test_null_is_read_back_as_nan_where_a_number_is_due():
    inner = from_json(Inner, to_json(Inner("x", Interval(0.5, float("-inf"), float("nan")))))
    assert inner.effect.value == 0.5
    assert math.isnan(inner.effect.low)


def test_what_json_cannot_give_back_is_refused():
    with pytest.raises(TypeError, match="object has no form in JSON"):
        to_json({"a": [object()]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "c"}, r"Outer\.kind: 'c' is not one of 'a', 'b'"),
        ({"more": 1}, "Outer: unknown field 'more'"),
        ({"pair": [7]}, r"Outer\.pair: expected a list of 2"),
        ({"pair": [7, 8]}, r"Outer\.pair\[1\]: expected str, got 8"),
        ({"flags": [1]}, r"Outer\.flags\[0\]: expected bool, got 1"),
        ({"parts": [{"name": "x"}]}, r"Outer\.parts\[0\]: field 'effect' is missing"),
        ({"parts": {}}, r"Outer\.parts: expected a list"),
        ({"by_name": []}, r"Outer\.by_name: expected an object"),
        ({"maybe": "x"}, r"Outer\.maybe: expected float"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(change: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        from_json(Outer, {**to_json(example()), **change})


def test_a_field_with_a_default_may_be_missing_and_no_other():
    data = to_json(example())
    del data["free"]
    assert from_json(Outer, data).free == {}
    del data["kind"]
    with pytest.raises(InputError, match="Outer: field 'kind' is missing"):
        from_json(Outer, data)


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (Inner("x", Interval(0.5, 0.25, float("nan")), 3), True),
        (Inner("x", Interval(0.5, 0.25, 0.0), 3), False),
        (Inner("x", Interval(0.5, 0.25, float("nan")), 4), False),
        ("x", False),
    ],
)
def test_results_are_the_same_if_every_field_is(other: object, equal: bool):
    assert same(Inner("x", Interval(0.5, 0.25, float("nan")), 3), other) is equal


def test_arrays_are_the_same_by_shape_and_value():
    array = np.array([[1.0, np.nan]])
    assert same({"a": [array]}, {"a": (array.copy(),)})
    assert same(torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]))
    assert not same(array, array[0])
    assert not same({"a": array}, {"b": array})
    assert not same(array, None)
    assert same(np.array(["a"]), np.array(["a"]))


# -- arrays -----------------------------------------------------------------------------------------------
def test_arrays_come_back_with_their_description(tmp_path: Path):
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b": np.array([1, 2], np.int32), "empty": np.zeros((0, 3))}
    path = save_arrays(tmp_path / "new" / "x.safetensors", FORM, arrays, example())
    back, about = load_arrays(path, FORM)
    assert from_json(Outer, about) == example()
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_a_file_of_another_format_says_which(tmp_path: Path):
    path = save_arrays(tmp_path / "x", "neuronshield.Other/1", {"a": np.zeros(2)}, {})
    with pytest.raises(InputError, match=r"x: holds a neuronshield\.Other, not a neuronshield\.Example$"):
        load_arrays(path, FORM)
    old = save_arrays(tmp_path / "y", "neuronshield.Example/0", {}, {})
    with pytest.raises(
        InputError, match=r"y: holds neuronshield\.Example/0, expected neuronshield\.Example/1; write it again"
    ):
        load_arrays(old, FORM)


def test_a_file_of_another_class_names_its_reader_in_either_container(tmp_path: Path):
    (tmp_path / "proof").write_text('{"format": "neuronshield.Proof/2"}')
    with pytest.raises(InputError, match=r"read it with ns\.Proof\.load"):
        load_arrays(tmp_path / "proof", FORM)
    save_arrays(tmp_path / "set", "neuronshield.NeuronSet/2", {}, {})
    for load in (load_arrays, load_json):
        with pytest.raises(
            InputError, match=r"set: holds a neuronshield\.NeuronSet, .*read it with ns\.NeuronSet\.load"
        ):
            load(tmp_path / "set", FORM)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign", "a list", "a folder"])
def test_a_damaged_file_is_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "x"
    if kind == "a folder":
        path.mkdir()
    elif kind == "foreign":
        save_file({"a": np.zeros(2)}, path)
    elif kind == "a list":
        save_file({"a": np.zeros(2)}, path, metadata={"neuronshield": "[1]"})
    else:
        save_arrays(path, FORM, {"a": np.zeros(2)}, {})
        path.write_bytes({"empty": b"", "text": b"hello", "cut": path.read_bytes()[:-3]}[kind])
    with pytest.raises(InputError, match=r"x: not a file of neuronshield\.Example/1") as caught:
        load_arrays(path, FORM)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_wrong_path_are_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="none: no such file"):
        load_arrays(tmp_path / "none", FORM)
    for wrong in (5, None, b"x"):
        with pytest.raises(InputError, match=r"load\(path\): path must be str or a path"):
            load_arrays(wrong, FORM)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"save\(path\): path must be str or a path"):
            save_arrays(wrong, FORM, {}, {})  # type: ignore[arg-type]
