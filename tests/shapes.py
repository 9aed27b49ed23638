"""The type checker of the tests: beartype, on the annotations that name array shapes.

`conftest.py` installs it for the whole package through jaxtyping's import hook. Other annotations are left to mypy: a wrong
argument at the public door must reach the package, whose own one-line error is what the tests of wrong calls look for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype

ARRAY = re.compile(r"\b(Float|Int|Bool|Shaped|Num)\[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its array annotations checked in every call."""
    kept = {name: hint for name, hint in function.__annotations__.items() if ARRAY.search(str(hint))}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(function)
