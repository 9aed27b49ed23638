"""Charts out of SVG marks: a heatmap with its numbers, estimates with intervals beside their controls, and curves with bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from .svg import STEPS, Scale, put_line, put_mark, put_path, put_rect, put_text, shade, text_width, ticks

__all__ = ["Chart", "Curve", "Estimate", "curve_chart", "forest_chart", "heatmap_chart", "side_by_side"]

#: Colours of the kinds of control that are drawn as clouds.
CLOUDS = (1, 2, 4)
#: Pixels by which the dots of a cloud are moved, in turn.
JITTER = (0.0, -1.6, 1.6, -0.8, 0.8)
#: Verdicts that have a colour.
VERDICTS = ("passed", "failed")
#: Points up to which each has its mark.
MARKED = 16

#: value, low, high; None or NaN where there is none.
Interval = Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """Marks, and the room they take.

    Attributes:
        marks: SVG elements.
        width: in pixels.
        height: in pixels.
    """

    marks: str
    width: int
    height: int


@dataclass(frozen=True)
class Estimate:
    """One row of a forest chart.

    Attributes:
        name: of the row.
        note: below the name, such as a verdict.
        values: estimates with their intervals, by series.
        controls: single values, by kind; drawn below the estimates.
    """

    name: str
    note: str
    values: Mapping[str, Interval]
    controls: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """One line of a curve chart.

    Attributes:
        name: in the legend.
        x: places.
        y: value, low, high at each place.
        series: number of its colour and mark.
        ranges: what low and high are drawn as: "bars", "band", or "" for nothing.
        hover: what is said of each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[Interval]
    series: int
    ranges: str = ""
    hover: Sequence[str] = ()


def finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a number.

    >>> finite(0.5), finite(None), finite(float("nan"))
    (True, False, False)
    """
    return value is not None and math.isfinite(value)


def side_by_side(charts: Sequence[Chart], *, gap: int = 26, most: int = 900) -> Chart:
    """Charts in rows from left to right, a new row where the next does not fit.

    >>> side_by_side([Chart("", 30, 10), Chart("", 30, 20)], gap=5).width
    65

    Args:
        charts: in order.
        gap: pixels between them.
        most: pixels of a row.
    """
    x = y = tall = wide = 0
    marks = ""
    for chart in charts:
        if x and x + chart.width > most:
            x, y, tall = 0, y + tall + gap, 0
        marks += f'<g transform="translate({x} {y})">{chart.marks}</g>'
        x, tall, wide = x + chart.width + gap, max(tall, chart.height), max(wide, x + chart.width)
    return Chart(marks, wide, y + tall)


# -- heatmap --------------------------------------------------------------------------------------------------
def heatmap_chart(
    values: Sequence[Sequence[float | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    domain: tuple[float, float] = (0, 1),
    spec: str = ".2f",
    hover: Sequence[Sequence[str]] = (),
    title: str = "",
    cell: tuple[int, int] = (42, 28),
) -> Chart:
    """A heatmap with a number in every cell; a cell without a number is grey and says "n/a", or nothing on the diagonal of a square.

    >>> chart = heatmap_chart([[0.25, None]], rows=["en"], columns=["text", "image"])
    >>> "0.25" in chart.marks, "n/a" in chart.marks
    (True, True)

    Args:
        values: one list a row.
        rows: their names.
        columns: their names; turned where they are wider than a cell.
        domain: smallest and largest number of the colour scale; a scale that begins below 0 is diverging.
        spec: format of the numbers.
        hover: what is said of each cell.
        title: above the heatmap.
        cell: width and height of a cell, in pixels.
    """
    wide, tall = cell
    left = max([text_width(name) for name in rows], default=0) + 10
    turned = max([text_width(name, 11) for name in columns], default=0) > wide - 4
    head = 24 * bool(title) + (max(text_width(c, 11) for c in columns) * 0.72 + 14 if turned else 18)
    scale = "d" if domain[0] < 0 else "s"
    square = list(rows) == list(columns) and len(rows) > 1
    marks = put_text(0, 14, title, kind="b") if title else ""
    for j, name in enumerate(columns):
        x = left + j * wide + wide / 2
        marks += put_text(
            x, head - 6, name, kind="k", anchor="start" if turned else "middle", turn=-45 if turned else 0
        )
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = head + i * tall
        marks += put_text(left - 7, y + tall / 2 + 4, name, anchor="end")
        for j, value in enumerate(row):
            step = shade(value, low=domain[0], high=domain[1])
            kind = "none" if step is None else f"{scale}{step}"
            x, said = left + j * wide, hover[i][j] if hover else ""
            marks += put_rect(x + 1, y + 1, kind, size=(wide - 2, tall - 2), hover=said)
            text = "n/a" if step is None else format(value, spec)
            if not (square and i == j and step is None):
                marks += put_text(x + wide / 2, y + tall / 2 + 4, text, kind="k q" if step is None else f"k {kind}", anchor="middle")  # fmt: skip
    over = text_width(columns[-1], 11) * 0.72 if turned and columns else 0  # the last name leans out
    width = max(left + len(columns) * wide + over, text_width(title) * 1.08)
    return Chart(marks, math.ceil(width) + 2, math.ceil(head + len(rows) * tall) + 2)


def colour_key(domain: tuple[float, float], ends: tuple[str, str]) -> Chart:
    """What the ends of a colour scale mean.

    >>> colour_key((0, 1), ("unrelated", "the same")).height
    28

    Args:
        domain: smallest and largest number; a scale that begins below 0 is diverging.
        ends: what they mean.
    """
    scale = "d" if domain[0] < 0 else "s"
    low, high = f"{domain[0]:g} {ends[0]}".strip(), f"{domain[1]:g} {ends[1]}".strip()
    left = text_width(low) + 8
    marks = put_text(0, 14, low, kind="q")
    for i in range(STEPS + 1):
        marks += put_rect(left + 14 * i, 4, f"{scale}{i}", size=(14, 12))
    right = left + 14 * (STEPS + 1) + 8
    return Chart(marks + put_text(right, 14, high, kind="q"), math.ceil(right + text_width(high)), 28)


# -- legend and axes ------------------------------------------------------------------------------------------
def legend(names: Sequence[tuple[str, str]], *, width: int, left: float = 0) -> Chart:
    """Marks (as SVG around 0, 0) with their names, in lines of at most `width` pixels.

    >>> legend([("", "a"), ("", "b")], width=300).height
    22

    Args:
        names: mark and name.
        width: of a line.
        left: where lines begin.
    """
    x, y, out = left, 12.0, ""
    for mark, name in names:
        wide = 26 + text_width(name)
        if x > left and x + wide > width:
            x, y = left, y + 20
        out += f'<g transform="translate({x + 7:.1f} {y - 4:.1f})">{mark}</g>' + put_text(x + 18, y, name)
        x += wide + 10
    return Chart(out, width, round(y) + 10)


def axis_x(scale: Scale, marks: Sequence[float], *, y: tuple[float, float], title: str, names: Sequence[str] = ()) -> str:  # fmt: skip
    """A grid line and a number at every place, the title below them."""
    out = ""
    for i, at in enumerate(marks):
        x = scale(at)
        out += put_line((x, x), y, "zero" if at == 0 and not names else "grid")
        out += put_text(x, y[1] + 16, names[i] if names else f"{at:g}", kind="q k", anchor="middle")
    return out + put_text(sum(scale.pixels) / 2, y[1] + 36, title, kind="q", anchor="middle")


def axis_y(scale: Scale, marks: Sequence[float], *, x: tuple[float, float], title: str) -> str:
    """A grid line and a number at every height, the title above them."""
    out = put_text(0, scale.pixels[1] - 14, title, kind="q")
    for at in marks:
        y = scale(at)
        out += put_line(x, (y, y), "zero" if at == 0 else "grid")
        out += put_text(x[0] - 7, y + 4, f"{at:g}", kind="q k", anchor="end")
    return out


# -- forest ---------------------------------------------------------------------------------------------------
def forest_chart(rows: Sequence[Estimate], *, axis: str, width: int = 700) -> Chart:
    """Estimates with their intervals, one row each, single values of controls below them, on one scale with a line at 0.

    >>> rows = [Estimate("necessity", "passed", {"the set": (0.6, 0.5, 0.7)}, {"random": [0.1, 0.2]})]
    >>> forest_chart(rows, axis="normalised effect").width
    700

    Args:
        rows: from top to bottom.
        axis: title of the scale.
        width: in pixels.
    """
    series = list(dict.fromkeys(name for row in rows for name in row.values))
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.controls))
    numbers = [v for row in rows for part in (*row.values.values(), *row.controls.values()) for v in part if finite(v)]
    places = ticks(min([0.0, *numbers]), max([0.1, *numbers]))
    left = min(max([text_width(t) for row in rows for t in (row.name, row.note)], default=0) + 14, 240)
    scale = Scale((places[0], places[-1]), (left, width - 14))
    entries = [(put_mark(0, 0, i), name) for i, name in enumerate(series)] if len(series) > 1 or kinds else []
    entries += [(_controls([0.0], 0, i), kind) for i, kind in enumerate(kinds)]
    key = legend(entries, width=width) if entries else Chart("", 0, 0)
    y = top = key.height + 8.0
    body = ""
    for row in rows:
        tall = max(20 + 13 * (len(series) - 1) + 9 * len(row.controls), 36 if row.note else 22)
        body += put_text(0, y + 14, row.name, kind="b" if row.note else "") + (put_text(0, y + 29, row.note, kind=f"q k {row.note}" if row.note in VERDICTS else "q k") if row.note else "")  # fmt: skip
        body += _estimates(row, series, scale=scale, y=y + 10)
        for kind, values in row.controls.items():
            at = y + 10 + 13 * (len(series) - 1) + 10 + 9 * list(row.controls).index(kind)
            body += _controls([scale(v) for v in values if finite(v)], at, kinds.index(kind))
        y += tall + 6
    grid = axis_x(scale, places, y=(top - 4, y), title=axis)
    return Chart(key.marks + grid + body, width, round(y + 46))


def _estimates(row: Estimate, series: Sequence[str], *, scale: Scale, y: float) -> str:
    out = ""
    for i, name in enumerate(series):
        value, low, high = row.values.get(name, (None, None, None))
        if value is None or not finite(value):
            continue
        at = y + 13 * i
        ends = [scale(b) if b is not None and finite(b) else scale.pixels[k] for k, b in enumerate((low, high))]
        said = f"{row.name}, {name}: {value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if finite(low) and finite(high) else "")  # fmt: skip
        out += put_line((ends[0], ends[1]), (at, at), f"c{i % 6} w1") + put_mark(
            scale(value), at, i, size=5, hover=said
        )
    return out


def _controls(xs: Sequence[float], y: float, kind: int) -> str:
    """The marks of a kind of control: a cloud of drawn sets, each a little above or below the next, or the sign of a single one."""
    if kind >= len(CLOUDS):
        return "".join(_sign(x, y, kind) for x in xs)
    dots = "".join(f"M{x:.1f} {y + JITTER[i % len(JITTER)]:.1f}h0" for i, x in enumerate(xs))
    return f'<path d="{dots}" class="cloud{" one" * (len(xs) == 1)} c{CLOUDS[kind]}"/>' if dots else ""


def _sign(x: float, y: float, kind: int) -> str:
    s, number = 3.4, kind - len(CLOUDS)
    cross = [((x - s, x + s), (y - s, y + s)), ((x - s, x + s), (y + s, y - s))]
    plus = [((x - s, x + s), (y, y)), ((x, x), (y - s, y + s))]
    ways = (cross, plus, [*cross, *plus])[number % 3]
    return "".join(put_line(*way, f"c{(5, 3, 4)[number % 3]} w1") for way in ways)


# -- curves ---------------------------------------------------------------------------------------------------
def curve_chart(
    curves: Sequence[Curve],
    *,
    titles: tuple[str, str],
    places: Sequence[float] = (),
    level: float | None = None,
    size: tuple[int, int] = (620, 400),
) -> Chart:
    """Lines through points, with bands or error bars.

    >>> curve_chart([Curve("a", [0, 1], [(0, 0, 0), (1, 1, 1)], 0)], titles=("x", "y")).width
    620

    Args:
        curves: the first is drawn on top.
        titles: of the axes.
        places: x of categories at equal distances; the scale is linear without them.
        level: x of a dashed line.
        size: width and height, in pixels.
    """
    width, height = size
    key = legend([(_sample(c), c.name) for c in curves], width=width)
    at = (lambda v: float(list(places).index(v))) if places else float
    xs = [at(v) for c in curves for v in c.x]
    shown = [c.y[i] if c.ranges else c.y[i][:1] for c in curves for i in range(len(c.x))]
    ys = [v for part in shown for v in part if v is not None and finite(v)]
    across = [float(i) for i in range(len(places))] if places else ticks(min([0.0, *xs]), max([*xs, level or 0.0, 0.01]))  # fmt: skip
    up = ticks(min([0.0, *ys]), max([*ys, 0.01]))
    pad = 0.3 if places else 0.0
    scale_x = Scale((across[0] - pad, across[-1] + pad), (48, width - 16))
    scale_y = Scale((up[0], up[-1]), (height - 48, key.height + 34))
    marks = axis_y(scale_y, up, x=scale_x.pixels, title=titles[1])
    names = [f"{p:g}" for p in places]
    marks += axis_x(scale_x, across, y=(scale_y.pixels[1], scale_y.pixels[0]), title=titles[0], names=names)
    if level is not None:
        marks += put_line((scale_x(level),) * 2, scale_y.pixels, "c5 w1 dash")
    for curve in reversed(curves):
        marks += _line(curve, [scale_x(at(v)) for v in curve.x], scale_y)
    return Chart(key.marks + marks, width, height)


def _sample(curve: Curve) -> str:
    return put_line((-7, 7), (0, 0), f"c{curve.series % 6} {_width(curve)}") + put_mark(0, 0, curve.series, size=4)


def _width(curve: Curve) -> str:
    return "w2" if curve.series == 0 else "w1 dots"


def _line(curve: Curve, xs: Sequence[float], scale: Scale) -> str:
    """The curve, its band or bars, and its points; where it has no value there is a hole."""
    known = [i for i, y in enumerate(curve.y) if finite(y[0])]
    points = [(xs[i], scale(float(curve.y[i][0] or 0))) for i in known]
    ranged = [i for i in known if finite(curve.y[i][1]) and finite(curve.y[i][2])]
    low = [(xs[i], scale(float(curve.y[i][1] or 0))) for i in ranged]
    high = [(xs[i], scale(float(curve.y[i][2] or 0))) for i in ranged]
    out = ""
    if curve.ranges == "band" and ranged:
        out += put_path([*low, *reversed(high)], f"band c{curve.series % 6}", closed=True)
    if curve.ranges == "bars":
        out += "".join(put_line((a[0], b[0]), (a[1], b[1]), f"c{curve.series % 6} w1") for a, b in zip(low, high, strict=True))  # fmt: skip
    if len(points) > 1:
        out += put_path(points, f"line c{curve.series % 6} {_width(curve)}")
    if len(points) > MARKED:
        return out
    said = [curve.hover[i] if curve.hover else f"{curve.name}: {float(curve.y[i][0] or 0):.2f}" for i in known]
    return out + "".join(put_mark(x, y, curve.series, hover=h) for (x, y), h in zip(points, said, strict=True))
