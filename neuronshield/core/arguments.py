"""Checks at the public door: a wrong call gets one line that says what was given, where, and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from .errors import InputError

__all__ = ["at_least", "check_seed", "one_of", "require", "unknown_keywords"]

T = TypeVar("T")
_KINDS: dict[type, str] = {os.PathLike: "a path"}


def require(value: Any, kind: type[T] | tuple[type, ...], *, call: str, name: str, hint: str = "") -> T:
    """`value`, if it is of the type that the argument takes.

    >>> require("cake", int, call="top(k=...)", name="k")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: top(k=...): k must be int, got str 'cake'

    Args:
        value: what was given.
        kind: the type or types that are right.
        call: how the call reads when it is right, such as "capture(model, prompts)".
        name: the argument.
        hint: what to do.

    Raises:
        InputError: another type.
    """
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is int):
        return value  # type: ignore[return-value]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(dict.fromkeys(_KINDS.get(k, k.__name__) for k in kinds))
    shown = f" {value!r:.60}" if isinstance(value, (str, int, float)) else ""
    raise InputError(f"{call}: {name} must be {wanted}, got {type(value).__name__}{shown}{f'; {hint}' if hint else ''}")


def at_least(least: int, call: str, **values: Any) -> None:
    """Raise unless every keyword is a whole number of at least `least`.

    >>> at_least(1, "capture", batch_size=0)
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: capture: batch_size=0: must be a whole number of at least 1

    Args:
        least: the smallest that is right.
        call: the function, for the message.
        **values: arguments by name.

    Raises:
        InputError: the first that is not.
    """
    for name, value in values.items():
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        if not whole or value < least:
            raise InputError(f"{call}: {name}={value!r}: must be a whole number of at least {least}")


def check_seed(seed: Any, *, call: str, generator: bool = False) -> None:
    """Raise unless `seed` is a whole number of at least 0.

    >>> check_seed(-1, call="capture")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: capture: seed=-1: must be a whole number of at least 0

    Args:
        seed: what was given.
        call: the function, for the message.
        generator: whether a sequence of such numbers, or a numpy Generator, is right too.

    Raises:
        InputError: anything else.
    """
    if generator and isinstance(seed, np.random.Generator):
        return
    if generator and isinstance(seed, (Sequence, np.ndarray)) and not isinstance(seed, (str, bytes)):
        for one in seed:
            at_least(0, call, seed=one)
        return
    at_least(0, call, seed=seed)


def one_of(value: Any, known: Iterable[str], *, call: str, name: str) -> None:
    """Raise unless `value` is one of the names that are known; the nearest one is offered.

    >>> one_of("contribtion", ("contribution", "sas"), call="contrast", name="method")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: contrast: method='contribtion' is unknown; did you mean 'contribution'? use one of contribution, sas

    Args:
        value: what was given.
        known: what is right.
        call: the function, for the message.
        name: the argument.

    Raises:
        InputError: an unknown name.
    """
    names = list(known)
    if value in names:
        return
    raise InputError(f"{call}: {name}={value!r} is unknown; {_nearest(str(value), names)}use one of {', '.join(names)}")


def unknown_keywords(given: Iterable[str], known: Iterable[str], call: str) -> None:
    """Raise if a keyword is given that the call does not take; the nearest one is offered.

    >>> unknown_keywords(["lang"], ["language", "label"], "where")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: where: lang= is unknown; did you mean 'language'? use one of language, label

    Args:
        given: the keywords.
        known: what is right.
        call: the function, for the message.

    Raises:
        InputError: an unknown keyword.
    """
    names = list(known)
    for keyword in given:
        if keyword not in names:
            raise InputError(f"{call}: {keyword}= is unknown; {_nearest(keyword, names)}use one of {', '.join(names)}")


def _nearest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1) or [n for n in names if n.startswith(word) and word][:1]
    return f"did you mean {close[0]!r}? " if close else ""
