"""How results show themselves: tables that fit a screen, and tab completion without names that other packages add."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd

__all__ = ["ROWS", "count", "in_script", "own_names", "short_table"]

#: Rows of a table that fit a screen.
ROWS = 12


def count(n: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "cell"), count(2, "cell")
    ('1 cell', '2 cells')

    Args:
        n: how many.
        noun: singular; its plural ends in s.
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def in_script(json: str) -> str:
    """JSON that can stand inside a script element: it holds no sign that HTML reads.

    >>> in_script('["</script>"]')
    '["\\\\u003c/script\\\\u003e"]'

    Args:
        json: text in which these signs stand in strings only.
    """
    return json.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def short_table(frame: pd.DataFrame, *, title: str = "", rows: int = ROWS, index: bool = False) -> str:
    """HTML of the first rows of a table, and how many more there are.

    >>> import pandas as pd
    >>> html = short_table(pd.DataFrame({"cell": ["en/text"] * 30}), title="Scores")
    >>> html.count("<tr>"), html.endswith("<p>18 more rows</p>")
    (12, True)

    Args:
        frame: the table; its text is escaped.
        title: a heading, as plain text; none if empty.
        rows: the most rows that are shown.
        index: whether the row names are shown too.
    """
    heading = f"<p><b>{escape(title)}</b></p>" if title else ""
    table = frame.head(rows).to_html(index=index, float_format="{:.3g}".format, border=0)
    left = len(frame) - rows
    more = f"<p>{left} more row{'s' if left > 1 else ''}</p>" if left > 0 else ""
    return f"{heading}{table}{more}"


def own_names(self: Any) -> list[str]:
    """Names of an object for tab completion, without `save`, which nnsight adds to every Python object.

    Classes that have no `save` of their own use it as `__dir__ = own_names`.

    >>> import nnsight
    >>> "save" in dir([1]), "save" in own_names([1])
    (True, False)

    Args:
        self: the object.
    """
    return [name for name in object.__dir__(self) if name != "save"]
