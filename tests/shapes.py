"""The type checker of the tests: beartype, on the annotations that name array shapes.

`conftest.py` installs it for the whole package through jaxtyping's import hook. Other annotations are left to mypy: a wrong
argument at the public door must reach the package, whose own one-line error is what the tests of wrong calls look for.

The decorator of jaxtyping itself wraps every function and checks arguments twice, which takes longer than most tests. This one wraps
functions and dataclasses that name an array, and checks once. A function inside another one is made again in every call of that: it
is checked the first time.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import wraps
from types import CodeType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

ARRAY = re.compile(r"\b(Float|Int|Bool|Shaped|Num)\[")
#: A wrong shape is a `TypeError`, as a wrong argument is.
WRONG = BeartypeConf(violation_type=TypeError)
SEEN: set[tuple[str, str, CodeType]] = set()


def install() -> None:
    """Modules of the package that are imported from now on have their shapes checked."""
    # the decorator that the hook writes above every function
    jaxtyping.jaxtyped = lambda *, typechecker: typechecker  # type: ignore[assignment]
    jaxtyping.install_import_hook("neuronshield", "shapes.check")


def check(made: Any) -> Any:
    """A function, or a dataclass, with its array annotations checked in every call."""
    if not isinstance(made, type):
        return checked(made)
    if dataclasses.is_dataclass(made) and "__init__" in vars(made):
        made.__init__ = checked(made.__init__)  # type: ignore[method-assign]
    return made


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, checked if it names an array. An axis has one length within a call."""
    made = (function.__module__, function.__qualname__, function.__code__)
    if made in SEEN:
        return function
    SEEN.add(made)
    hints = function.__annotations__.items()
    arrays = {name: eval(hint, function.__globals__) for name, hint in hints if ARRAY.search(str(hint))}
    if inspect.isgeneratorfunction(function):
        arrays.pop("return", None)  # what it yields comes after the call
    if not arrays:
        return function

    @wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    plain.__annotations__ = arrays
    strict = beartype(conf=WRONG)(plain)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with jaxtyped("context"):
            return strict(*args, **kwargs)

    return call
