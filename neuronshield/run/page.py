"""The parts of a page: tables, figures, terms and numbers as HTML. Every text is escaped; the page loads nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..core.display import in_script
from ..figures.svg import FIGURE_CSS, Drawing, dark_steps
from .glossary import TERMS, key_of

#: What is written of a p-value below 0.001.
LEAST_P = "< 0.001"
#: Words of verdicts and outcomes that a table marks.
MARKED = ("passed", "failed", "too few requests to tell", "not tested")


def asset(name: str) -> str:
    """A file of this package as text: "report.css" or "report.js"."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def styles() -> str:
    """The style sheets of the page: that of the figures is an element of its own, which a saved figure takes along."""
    css = asset("report.css").replace("/*DARK*/", dark_steps())
    return f'<style id="figure-style">{FIGURE_CSS}</style><style>{css}</style>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], main: int | None = None) -> str:
    """An HTML table; every cell is escaped, numbers are aligned.

    >>> from neuronshield.run.page import table
    >>> "&lt;b&gt;" in table(["claim", "verdict"], [["<b>", "passed"]])
    True

    Args:
        head: names of the columns; none for a table without a head.
        rows: cells, as text or numbers.
        main: the row that is set in bold.
    """
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(
            f'<td class="{"n" if j else ""} {v.replace(" ", "-") if v in MARKED else ""}" dir="auto">{_value(str(v))}</td>'
            for j, v in enumerate(row)
        )
        body += f'<tr class="{"main" if i == main else ""}">{cells}</tr>'
    titles = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    thead = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<div class="scroll" tabindex="0"><table>{thead}<tbody>{body}</tbody></table></div>'


def _value(text: str) -> str:
    """A cell's text; the interval of a number moves to the next line as a whole."""
    if text == LEAST_P:
        return f'<span class="whole">{escape(text)}</span>'
    number = re.fullmatch(r"([+-]?\d+\.\d+) (\[[-+\d., n/a]+\])(.*)", text)
    return f'{number[1]} <span class="ends">{number[2]}</span>{escape(number[3])}' if number else escape(text)


def figure(drawing: Drawing, key: str) -> str:
    """A figure as HTML, with its numbers beside it for whoever saves them.

    Args:
        drawing: the figure.
        key: of the page's figures; ids begin with it.
    """
    numbers = json.dumps({"head": drawing.head, "rows": drawing.rows}, separators=(",", ":"), allow_nan=False)
    buttons = "".join(
        f'<button type="button" data-save="{kind}">{kind.upper()}</button>' for kind in ("png", "svg", "csv")
    )
    return (
        f'<figure id="figure-{key}"><figcaption>{escape(drawing.title)}</figcaption>'
        f'<div class="scroll" tabindex="0">{drawing.svg(key)}</div>'
        f'<div class="tools" role="group" aria-label="Save: {escape(drawing.title)}">{buttons}</div>'
        f'<script type="application/json">{in_script(numbers)}</script></figure>'
    )


def term(name: str, shown: str = "") -> str:
    """A term with its definition on hover and focus; a link to the glossary.

    >>> from neuronshield.run.page import term
    >>> term("request", "requests")
    '<a class="term" href="#term-request" aria-describedby="term-request">requests</a>'

    Args:
        name: one of `glossary.TERMS`.
        shown: the words on the page, if not the name.
    """
    assert name in TERMS, name
    key = key_of(name)
    return f'<a class="term" href="#{key}" aria-describedby="{key}">{escape(shown or name)}</a>'


def note(text: str) -> str:
    """A paragraph in small print; `text` is escaped."""
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, html: str, *, is_open: bool = False) -> str:
    """HTML that is folded away under a title."""
    return f"<details{' open' * is_open}><summary>{escape(title)}</summary>{html}</details>"


def capital(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def known(value: float | None) -> bool:
    """Whether there is a number: not None, not NaN, not infinite."""
    return value is not None and math.isfinite(value)


def num(value: float | None, spec: str = ".2f") -> str:
    """A number in a format; "n/a" where there is none."""
    return "n/a" if value is None or not math.isfinite(value) else format(value, spec)


def interval(values: Sequence[float | None], spec: str = ".2f") -> str:
    """ "value [low, high]"."""
    return f"{num(values[0], spec)} [{num(values[1], spec)}, {num(values[2], spec)}]"


def signed(values: Sequence[float | None]) -> str:
    """ "value [low, high]" of a difference, with signs."""
    return interval(values, "+.2f")


def spread(values: Sequence[float] | None) -> str:
    """ "mean (smallest to largest)"."""
    return "n/a" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def p_text(value: float | None) -> str:
    """A p-value with three decimals, or "< 0.001"."""
    return LEAST_P if value is not None and value < 0.001 else num(value, ".3f")
