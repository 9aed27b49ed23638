"""SVG as text: marks, scales, colours, and `Drawing`, a figure that needs no script and no library to be seen.

Colours are CSS variables with the light colour as their fallback. A page that sets the variables has figures in its own theme, and a
figure that leaves the page is light. Every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from .style import DIVERGING, SEQUENTIAL

__all__ = ["FIGURE_CSS", "Drawing", "Scale", "dark_steps", "shade", "text_width", "ticks"]

#: Value of one cell of a table.
Value = str | float | int | None

STEPS = 10  # shades of a colour scale are numbered from 0 to STEPS
#: Colours of series, light; the first is that of the subject, the last that of what stands behind it.
SERIES = ("#0b6e8a", "#b35c00", "#7a5ea8", "#b3364b", "#4f6b2f", "#66727f")
DARK_SEQUENTIAL = [[0.0, "#22303b"], [0.5, "#2f7f96"], [1.0, "#a6e9f7"]]
DARK_DIVERGING = [[0.0, "#f08fa0"], [0.5, "#2a3642"], [1.0, "#6fd0e8"]]


@dataclass(frozen=True)
class Drawing:
    """One figure, and the numbers in it.

    >>> from neuronshield.figures.svg import Drawing
    >>> drawing = Drawing("A < B", "Two numbers.", width=20, height=10, marks="", head=("a",), rows=((1,),))
    >>> drawing.svg("f1")[:47]
    '<svg class="fig" viewBox="0 0 20 10" width="20"'

    Attributes:
        title: what is shown.
        description: what is read off it, for readers who do not see it.
        width: in pixels.
        height: in pixels.
        marks: the SVG inside.
        head: names of the columns of the table.
        rows: the numbers in the figure.
    """

    title: str
    description: str
    width: int
    height: int
    marks: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def svg(self, key: str) -> str:
        """The figure as an SVG element.

        Args:
            key: of the page's figures; ids begin with it.
        """
        return (
            f'<svg class="fig" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" role="img" '
            f'aria-labelledby="{key}-t {key}-d" style="min-width:{round(0.82 * self.width)}px" xmlns="http://www.w3.org/2000/svg">'
            f'<title id="{key}-t">{escape(self.title)}</title><desc id="{key}-d">{escape(self.description)}</desc>{self.marks}</svg>'
        )


@dataclass(frozen=True)
class Scale:
    """A linear map from numbers to pixels.

    >>> from neuronshield.figures.svg import Scale
    >>> Scale((0, 1), (100, 300))(0.5)
    200.0

    Attributes:
        domain: two numbers.
        pixels: where they are.
    """

    domain: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        (a, b), (x, y) = self.domain, self.pixels
        return x + (min(max(value, a), b) - a) / ((b - a) or 1) * (y - x)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """About n round numbers from at most `low` to at least `high`.

    >>> ticks(-0.1, 0.62)
    [-0.2, 0.0, 0.2, 0.4, 0.6, 0.8]

    Args:
        low: smallest number shown.
        high: largest number shown.
        n: steps wanted.
    """
    span = (high - low) or 1.0
    raw = span / n
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.99)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def text_width(text: str, size: float = 12) -> float:
    """About how many pixels a text takes.

    >>> text_width("abcd") < text_width("\\u4e00\\u4e8c\\u4e09\\u56db")
    True

    Args:
        text: on one line.
        size: of the font, in pixels.
    """
    return size * sum(1.0 if ord(c) > 0x2E80 else 0.56 for c in text)


def shade(value: float | None, *, low: float, high: float) -> int | None:
    """The shade of a value on a scale, from 0 to `STEPS`; None where it has none.

    >>> shade(0.5, low=0, high=1), shade(float("nan"), low=0, high=1)
    (5, None)

    Args:
        value: the number.
        low: has shade 0.
        high: has the last shade.
    """
    if value is None or not math.isfinite(value):
        return None
    return round(min(max((value - low) / ((high - low) or 1), 0), 1) * STEPS)


# -- colours --------------------------------------------------------------------------------------------------
def _mixed(scale: Sequence[Sequence[Any]], at: float) -> str:
    """The colour of a scale at a place from 0 to 1."""
    stops = [(float(p), [int(str(c)[i : i + 2], 16) for i in (1, 3, 5)]) for p, c in scale]
    (p, a), (q, b) = next(pair for pair in pairwise(stops) if at <= pair[1][0])
    share = (at - p) / (q - p)
    return "#" + "".join(f"{round(x + share * (y - x)):02x}" for x, y in zip(a, b, strict=True))


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _on(colour: str) -> str:
    """Black or white, whichever is read better on a colour."""
    light = _luminance(colour)
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "#000000"


def _steps(name: str, scale: Sequence[Sequence[Any]]) -> list[tuple[str, str, str]]:
    """(class, colour, colour of text on it) of every shade of a scale."""
    colours = [_mixed(scale, i / STEPS) for i in range(STEPS + 1)]
    return [(f"{name}{i}", colour, _on(colour)) for i, colour in enumerate(colours)]


def dark_steps() -> str:
    """CSS variables of the shades and series in the dark, for the `:root` of a page."""
    shades = [*_steps("s", DARK_SEQUENTIAL), *_steps("d", DARK_DIVERGING)]
    series = zip(range(6), ("#5cc4dd", "#f0a458", "#b9a0e6", "#f08fa0", "#a5c77c", "#9aa7b4"), strict=True)
    return "".join(f"--{k}:{c};--{k}t:{t};" for k, c, t in shades) + "".join(f"--c{i}:{c};" for i, c in series)


def _css() -> str:
    shades = [*_steps("s", SEQUENTIAL), *_steps("d", DIVERGING)]
    rules = [f".fig rect.{k}{{fill:var(--{k},{c})}}.fig text.{k}{{fill:var(--{k}t,{t})}}" for k, c, t in shades]
    for i, colour in enumerate(SERIES):
        paint = f"var(--c{i},{colour})"
        rules.append(f".fig .c{i}{{fill:{paint};stroke:{paint}}}.fig .o{i}{{fill:var(--card,#fff);stroke:{paint}}}")
    return (
        ".fig{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}.fig text{fill:var(--ink,#1b2733);stroke:none}"
        ".fig .q{fill:var(--muted,#5a6672)}.fig .b{font-weight:600}.fig .grid{stroke:var(--line,#dfe5ea)}"
        ".fig .zero{stroke:var(--ink,#1b2733);stroke-width:1.2}.fig .none{fill:var(--line,#dfe5ea)}.fig .k{font-size:11px}"
        ".fig path.line{fill:none}.fig path.band{fill-opacity:.16;stroke:none}.fig .w1{stroke-width:1.5}.fig .w2{stroke-width:2.6}"
        ".fig .dash{stroke-dasharray:5 4}.fig .dots{stroke-dasharray:2 3}.fig text.passed{fill:var(--good,#0b6e8a)}"
        ".fig text.failed{fill:var(--bad,#b3364b)}"
        + "".join(rules)
        + ".fig path.cloud{fill:none;stroke-width:4.4;stroke-linecap:round;stroke-opacity:.5}.fig path.one{stroke-width:7;stroke-opacity:.9}"
    )


#: Rules of the classes that drawings use.
FIGURE_CSS = _css()


# -- marks ----------------------------------------------------------------------------------------------------
def put_text(x: float, y: float, text: str, *, kind: str = "", anchor: str = "start", turn: float = 0) -> str:
    """A text; `anchor` is start, middle or end, `turn` in degrees around (x, y)."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}{placed}{turned}>{escape(text)}</text>'


def put_line(x: tuple[float, float], y: tuple[float, float], kind: str) -> str:
    """A straight line."""
    return f'<line x1="{x[0]:.1f}" y1="{y[0]:.1f}" x2="{x[1]:.1f}" y2="{y[1]:.1f}" class="{kind}"/>'


def put_rect(x: float, y: float, kind: str, *, size: tuple[float, float], hover: str = "") -> str:
    """A rectangle; `hover` is shown when it is pointed at."""
    inside = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}" class="{kind}">{inside}</rect>'


def put_path(points: Sequence[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """Straight lines through points."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}{"Z" * closed}" class="{kind}"/>'


def put_mark(x: float, y: float, series: int, *, size: float = 4.5, hover: str = "") -> str:
    """The mark of a series: series differ in shape and filling, not in colour alone."""
    inside = f"<title>{escape(hover)}</title>" if hover else ""
    shape, colour = series % 6, f"{'co'[series % 2]}{series % len(SERIES)}"
    look = f'class="{colour} w1"'
    if shape in (0, 1):
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {look}>{inside}</circle>'
    if shape == 2:
        s = size * 0.9
        return f'<rect x="{x - s:.1f}" y="{y - s:.1f}" width="{2 * s:.1f}" height="{2 * s:.1f}" {look}>{inside}</rect>'
    s = size * 1.3
    corners = (
        [(x, y - s), (x + s, y), (x, y + s), (x - s, y)],
        [(x, y - s), (x + s, y + s * 0.8), (x - s, y + s * 0.8)],
        [(x, y + s), (x + s, y - s * 0.8), (x - s, y - s * 0.8)],
    )[shape - 3]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" {look}>{inside}</polygon>'
