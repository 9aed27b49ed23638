"""Docstrings as the reference shows them: examples fenced as code, and "a, b: text" in Args as one entry for each name."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"(?:^[ ]*>>>.*\n?)(?:^(?![ ]*$).+\n?)*", re.M)
SHARED = re.compile(r"^( *)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.M)
DIRECTIVE = re.compile(r" *# doctest: [+\w, ]+")


class Docstrings(Extension):
    """Rewrites docstrings after they are collected."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text: str) -> str:
    """A docstring with fenced examples and one entry for each argument."""
    text = EXAMPLE.sub(fenced, text)
    return SHARED.sub(lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", ")), text)


def fenced(match: re.Match[str]) -> str:
    """One example as a code block, indented as it was, without doctest directives."""
    indent = re.match(r" *", match[0])
    space = indent[0] if indent else ""
    code = DIRECTIVE.sub("", match[0].rstrip("\n"))
    return f"\n{space}```pycon\n{code}\n{space}```\n\n"
