"""Results to files and back: dataclasses as JSON, arrays as safetensors.

`to_json` turns a result (dataclasses, named tuples, mappings, sequences, numbers) into what JSON can hold, and `from_json` is
its inverse. JSON has no NaN and no infinity: `null` stands for both, and is read back as NaN. `save_json` and `load_json` keep
such a description in a file, `save_arrays` and `load_arrays` arrays beside it in one safetensors file. Both files name their format
and hold a checksum of all their content.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .errors import InputError
from .files import as_path, replacing, write_text

__all__ = [
    "from_json", "load_arrays", "load_json", "other_format", "reading", "save_arrays", "save_json", "to_json",
]  # fmt: skip

T = TypeVar("T")
#: Public classes whose `load` reads a file, as a user writes them.
_PUBLIC = ("Directions", "Evaluation", "Intervention", "NeuronSet", "Overlap", "Proof", "Scores", "Stats", "System")
LOADABLE = {
    **{name: f"ns.{name}" for name in _PUBLIC},
    "CellSets": "neuronshield.find.cells.CellSets",
    "Guard": "ns.guard.Guard",
    "ModalityProtocol": "ns.protocols.ModalityProtocol",
}


def to_json(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses as objects, named tuples and sequences as lists, NaN and infinity as None.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     name: str
    ...     at: tuple[float, ...]
    >>> to_json(Point("a", (1.0, float("nan"))))
    {'name': 'a', 'at': [1.0, None]}

    Args:
        value: dataclasses, mappings, sequences, sets, strings, numbers, numpy scalars and arrays, paths, None; objects with a `to_json` method.

    Raises:
        TypeError: anything else; JSON could not give it back.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    own = getattr(value, "to_json", None)
    if callable(own):
        return own()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {f.name: to_json(v) for f, v in told.items() if not (f.metadata.get("said_if_other") and v == f.default)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return [to_json(v) for v in sorted(value)]
    if isinstance(value, Sequence):
        return [to_json(v) for v in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def from_json(kind: type[T], data: Any) -> T:
    """The value of type `kind` that `to_json` turned into `data`.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     name: str
    ...     at: tuple[float, ...]
    >>> from_json(Point, {"name": "a", "at": [1.0, None]})
    Point(name='a', at=(1.0, nan))

    Args:
        kind: a type: a dataclass, a named tuple, `list[...]`, `tuple[...]`, `dict[str, ...]`, a union with None, a plain type, or
            a class with a `from_json` static method.
        data: what `json.loads` gave.

    Raises:
        InputError: a missing, unknown or ill-typed field, named by its path.
    """
    return typing.cast(T, _read(kind, data, kind.__name__ if isinstance(kind, type) else str(kind)))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin is typing.Literal:
        if data not in args:
            raise InputError(f"{where}: {data!r} is not one of {', '.join(map(repr, args))}")
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(a for a in args if a is not type(None)), data, where)
    if hasattr(kind, "from_json"):
        return kind.from_json(data)
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = list(_hints(kind).values())
        values = _sequence(data, where, len(hints))
        return kind(*(_read(h, v, where) for h, v in zip(hints, values, strict=True)))
    if origin is tuple:
        values = _sequence(data, where, None if args[-1] is Ellipsis else len(args))
        hints = [args[0]] * len(values) if args[-1] is Ellipsis else list(args)
        return tuple(_read(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, values, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise InputError(f"{where}: expected an object, got {type(data).__name__}")
        return {_key(args[0], k, where): _read(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if origin is not None and issubclass(origin, Sequence):
        return [_read(args[0], v, f"{where}[{i}]") for i, v in enumerate(_sequence(data, where, None))]
    return _scalar(kind, data, where)


#: Types of the fields of a class; a file holds thousands of its values.
_hints = functools.cache(typing.get_type_hints)


def _read_fields(kind: Any, data: Any, where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object, got {type(data).__name__}")
    if unknown := sorted(set(data) - set(fields)):
        raise InputError(f"{where}: unknown field {unknown[0]!r}")
    hints = _hints(kind)
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: field {name!r} is missing")
    return kind(**values)


def _key(kind: Any, text: str, where: str) -> Any:
    if kind in (str, Any):
        return text
    try:
        return kind.of(text) if hasattr(kind, "of") else kind(text)
    except ValueError:
        raise InputError(f"{where}: {text!r:.40} is no {kind.__name__}") from None


def _sequence(data: Any, where: str, length: int | None) -> list[Any]:
    if not isinstance(data, list) or (length is not None and len(data) != length):
        raise InputError(f"{where}: expected a list{f' of {length}' if length is not None else ''}, got {data!r:.60}")
    return data


def _scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and data is None:
        return float("nan")
    wanted = (int, float) if kind is float else kind
    if not isinstance(data, wanted) or (kind is not bool and isinstance(data, bool)):
        raise InputError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {data!r:.60}")
    return float(data) if kind is float else data


def save_arrays(path: str | os.PathLike[str], form: str, arrays: Mapping[str, np.ndarray], about: Any) -> Path:
    """Path of the safetensors file that arrays and their description were written to.

    >>> path = save_arrays("a.safetensors", "example/1", arrays={"x": np.arange(3)}, about={"unit": "token"})
    >>> arrays, about = load_arrays(path, "example/1")
    >>> arrays["x"].tolist(), about
    ([0, 1, 2], {'unit': 'token'})

    Args:
        path: the file.
        form: name and version of the format, such as "neuronshield.Stats/1".
        arrays: by name; any shape.
        about: kept as JSON (see `to_json`).

    Raises:
        InputError: `path` is not a path, or the file cannot be written; what was there before stays.
    """
    from safetensors.numpy import save_file

    told = {"format": form, "about": to_json(about)}
    kept = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    text = json.dumps({**told, "sha256": _digest(told, kept)}, ensure_ascii=False)
    with replacing(path) as partial:
        save_file(kept, partial, metadata={"neuronshield": text})
    return Path(path)


def _digest(told: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of a description and its arrays: names, types, shapes and values."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load_arrays(path: str | os.PathLike[str], form: str) -> tuple[dict[str, np.ndarray], Any]:
    """Arrays by name, and the description, that `save_arrays` wrote with the same format.

    >>> load_arrays(save_arrays("a.safetensors", "example/1", arrays={}, about=[1, 2]), "example/1")
    ({}, [1, 2])

    Args:
        path: the file.
        form: the format it must have.

    Raises:
        InputError: no such file, damaged, or of another format.
    """
    path = _plain_file(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            told = _parsed((file.metadata() or {})["neuronshield"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, about, noted = told["format"], told.get("about"), told.pop("sha256", None)
        expected = _digest(told, arrays)
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise other_format(path, _json_format(path), form, why=error) from None
    _check_format(path, found, form, intact=noted == expected)
    return arrays, about


def save_json(path: str | os.PathLike[str], form: str, about: Any) -> Path:
    """Path of the JSON file that a description was written to, with its format and a checksum.

    >>> path = save_json("a.json", "example/1", {"x": 3})
    >>> json.loads(path.read_text())["format"], load_json(path, "example/1")
    ('example/1', {'x': 3})

    Args:
        path: the file; it is written beside `path` and renamed.
        form: name and version of the format, such as "neuronshield.Proof/5".
        about: a mapping or a dataclass (see `to_json`), without fields "format" and "sha256".

    Raises:
        InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        TypeError: something that JSON cannot hold.
    """
    told = {"format": form, **to_json(about)}
    text = json.dumps({**told, "sha256": _digest(told, {})}, ensure_ascii=False, indent=1, allow_nan=False)
    return write_text(path, text)


def load_json(path: str | os.PathLike[str], form: str) -> dict[str, Any]:
    """The description that `save_json` wrote with the same format.

    The checksum is of the content: white space and the order of keys may change.

    >>> load_json(save_json("a.json", "example/1", {"x": 3}), "example/1")
    {'x': 3}

    Args:
        path: the file.
        form: the format it must have.

    Raises:
        InputError: no such file, not JSON, of another format, or with another content than was written.
    """
    path = _plain_file(path)
    try:
        data = _parsed(path.read_text(encoding="utf-8"))
        noted = data.pop("sha256", None)
        expected = _digest(data, {})
    except (OSError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise other_format(path, _arrays_format(path), form, why=error) from None
    _check_format(path, data.pop("format", None), form, intact=noted == expected)
    return data  # type: ignore[no-any-return]


def _plain_file(path: Any) -> Path:
    """The path of a file that can be read to its end."""
    path = as_path(path, call="load(path)")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'a device or a pipe'}; give the name of a file")
    return path


def _parsed(text: str) -> Any:
    """The value of a JSON text; NaN and infinity are no JSON."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _check_format(path: Path, found: Any, form: str, *, intact: bool) -> None:
    """Raise unless a file has the format that was expected and the content that was saved."""
    if found != form:
        raise other_format(path, found, form)
    if not intact:
        raise InputError(f"{path}: is damaged: its contents are not those that were saved; write it again")


@contextmanager
def reading(path: str | os.PathLike[str], form: str) -> Iterator[None]:
    """A context in which a result is put together from a file's content; what does not fit names the file.

    >>> with reading("a.safetensors", "example/1"):
    ...     {}["x"]
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: a.safetensors: not a file of example/1 ('x' is missing)

    Args:
        path: the file.
        form: the format it has.

    Raises:
        InputError: the block raised an error that says that a field is missing, ill-typed or of another size.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, InputError) and str(error).startswith(f"{path}: "):
            raise
        why = f"{error.args[0]!r} is missing" if type(error) is KeyError else str(error)
        raise InputError(f"{path}: not a file of {form} ({why:.200})") from None


def other_format(path: Path, found: Any, form: str, *, why: Exception | None = None) -> InputError:
    """The error for a file that is not of the format that was expected.

    >>> print(other_format(Path("a"), "neuronshield.NeuronSet/2", "neuronshield.Stats/1"))
    a: holds a neuronshield.NeuronSet, not a neuronshield.Stats; read it with ns.NeuronSet.load
    >>> print(other_format(Path("a"), "neuronshield.Stats/0", "neuronshield.Stats/1"))
    a: holds neuronshield.Stats/0, written by an older version (this one reads neuronshield.Stats/1); make it again

    Args:
        path: the file.
        found: the format it says it has; None if it says nothing.
        form: the format it must have.
        why: why it could not be read.
    """
    if not isinstance(found, str) or "/" not in found:
        reason = (str(why) or type(why).__name__).splitlines()[0] if why else "it names no format"
        return InputError(f"{path}: not a file of {form} ({reason})")
    name, wanted = found.partition("/")[0], form.partition("/")[0]
    if name == wanted:
        older = _number(found) < _number(form)
        return InputError(
            f"{path}: holds {found:.80}, written by {'an older' if older else 'another'} version (this one reads {form}); "
            f"{'make it again' if older else 'make it again or use that version'}"
        )
    reader = LOADABLE.get(name.rpartition(".")[2])
    hint = f"; read it with {reader}.load" if reader else ""
    return InputError(f"{path}: holds a {name}, not a {wanted}{hint}")


def _number(form: str) -> float:
    """The version of a format; infinity for what is no number."""
    version = form.partition("/")[2]
    return int(version) if version.isdecimal() and len(version) < 9 else float("inf")


def _json_format(path: Path) -> Any:
    """The format that a JSON file says it has; None for any other file."""
    try:
        return _parsed(path.read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _arrays_format(path: Path) -> Any:
    """The format that a safetensors file says it has; None for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return _parsed((file.metadata() or {})["neuronshield"])["format"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None
