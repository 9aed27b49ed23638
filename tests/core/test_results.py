"""Results to JSON and back, arrays to files and back; every damaged file is one line."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import save_file

from neuronshield import Cell, InputError
from neuronshield.core.equality import same
from neuronshield.core.results import from_json, load_arrays, load_json, save_arrays, save_json, to_json
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
        InputError,
        match=r"y: holds neuronshield\.Example/0, written by an older version \(.*Example/1\); make it again",
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


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign", "a list", "deep", "header"])
def test_a_damaged_file_is_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "x"
    if kind == "foreign":
        save_file({"a": np.zeros(2)}, path)
    elif kind in ("a list", "deep"):
        save_file({"a": np.zeros(2)}, path, metadata={"neuronshield": "[1]" if kind == "a list" else "[" * 10**5})
    else:
        save_arrays(path, FORM, {"a": np.zeros(2)}, {})
        raw = path.read_bytes()
        huge = (2**63 - 1).to_bytes(8, "little") + raw[8:]
        path.write_bytes({"empty": b"", "text": b"hello", "cut": raw[:-3], "header": huge}[kind])
    with pytest.raises(InputError, match=r"x: not a file of neuronshield\.Example/1") as caught:
        load_arrays(path, FORM)
    assert "\n" not in str(caught.value)


def test_what_is_no_plain_file_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for load in (load_arrays, load_json):
        with pytest.raises(InputError, match="is a folder; give the name of a file"):
            load(tmp_path, FORM)
        with pytest.raises(InputError, match="pipe: is a device or a pipe; give the name of a file"):
            load(tmp_path / "pipe", FORM)


# -- JSON -------------------------------------------------------------------------------------------------
def test_a_description_comes_back_from_a_json_file_that_names_its_format(tmp_path: Path):
    path = save_json(tmp_path / "new" / "x.json", FORM, example())
    assert from_json(Outer, load_json(path, FORM)) == example()
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == FORM
    with pytest.raises(InputError, match="no such file"):
        load_json(tmp_path / "none", FORM)


def test_the_checksum_is_of_the_content_and_not_of_how_it_is_written(tmp_path: Path):
    data = json.loads(save_json(tmp_path / "x", FORM, {"b": 1.5, "a": "\u00e9"}).read_text(encoding="utf-8"))
    (tmp_path / "x").write_text(json.dumps(dict(reversed(data.items()))))
    assert load_json(tmp_path / "x", FORM) == {"a": "\u00e9", "b": 1.5}


def test_no_flipped_bit_and_no_cut_is_read_as_something_else(tmp_path: Path):
    about = {"x": 0.1, "n": 7, "text": "a b", "list": [1, None, True]}
    arrays = {"a": np.array([1.0, 2.0], np.float32)}
    for load, path in (
        (load_json, save_json(tmp_path / "j", FORM, about)),
        (load_arrays, save_arrays(tmp_path / "a", FORM, arrays, about)),
    ):
        raw, expected, damaged = path.read_bytes(), load(path, FORM), tmp_path / "damaged"
        flipped = [
            raw[:i] + bytes([raw[i] ^ (1 << bit)]) + raw[i + 1 :] for i in range(0, len(raw), 2) for bit in [i // 2 % 8]
        ]
        refused = 0
        for data in [*flipped, *(raw[:i] for i in range(0, len(raw), 7))]:
            damaged.write_bytes(data)
            try:
                found = load(damaged, FORM)
            except InputError:
                refused += 1
            else:
                assert same(found, expected)  # white space of JSON
        assert refused > 0.9 * len(flipped)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": 4}, "x: is damaged: its contents are not those that were saved; write it again"),
        ({"more": 1}, "is damaged"),
        ({"sha256": None}, "is damaged"),
        ({"x": math.nan}, "not a file of neuronshield.Example/1 (NaN is not JSON)"),
        ({"format": "neuronshield.Example/0"}, "written by an older version (this one reads neuronshield.Example/1); make it again"),
        ({"format": "neuronshield.Example/9"}, "written by another version"),
        ({"format": None}, "not a file of neuronshield.Example/1 (it names no format)"),
        ({"format": 5}, "not a file of neuronshield.Example/1 (it names no format)"),
    ],
)  # fmt: skip
def test_a_changed_json_file_is_refused(tmp_path: Path, change: dict[str, Any], said: str):
    data = json.loads(save_json(tmp_path / "x", FORM, {"x": 3}).read_text())
    (tmp_path / "x").write_text(json.dumps({**data, **change}))
    with pytest.raises(InputError) as caught:
        load_json(tmp_path / "x", FORM)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"[]", b"5", b"null", b"[" * 200_000, b'{"a":' * 900, b"\xff{}", b"\0" * 9]
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, data: bytes):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError, match=r"x: not a file of neuronshield\.Example/1"):
        load_json(tmp_path / "x", FORM)


def test_a_missing_file_and_a_wrong_path_are_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="none: no such file"):
        load_arrays(tmp_path / "none", FORM)
    for wrong in (5, None, b"x"):
        with pytest.raises(InputError, match=r"load\(path\): path must be str or a path"):
            load_arrays(wrong, FORM)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"save\(path\): path must be str or a path"):
            save_arrays(wrong, FORM, {}, {})  # type: ignore[arg-type]
