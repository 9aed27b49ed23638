"""Figures for a paper: plotly figures that are saved in the width of a column, with letters of the size of a caption."""

from __future__ import annotations

import copy
import math
import os
import textwrap
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..core.arguments import require
from ..core.errors import InputError
from ..core.files import as_path, replacing

__all__ = ["Figure"]

#: Widths in mm: one of two columns, and both with the space between them, of A4 and letter paper.
WIDTHS = {"column": 85.0, "page": 175.0}
#: A figure is drawn this much larger than it is printed: letters of 12 px (9 pt) become 7 pt.
ENLARGED = 9 / 7
#: CSS pixels in a millimetre.
PIXELS = 96 / 25.4
#: Pixels of the title above a figure.
TITLE = 44
FORMATS = (".pdf", ".svg", ".png")


class Figure(go.Figure):
    """A plotly figure that saves itself as paper takes it."""

    def save(self, path: str | os.PathLike[str], *, width: str | float = "column") -> Path:
        """Path of the PDF, SVG or PNG file that the figure was written to, without its title, which a caption says.

        Letters have 7 pt. A PDF has its fonts embedded, a PNG 600 dots an inch.

        >>> figure = ns.figures.layers(np.array([[3, 0], [1, 2]]), ["en/text", "sw/text"], method="sas")
        >>> figure.save("layers.pdf", width="column")                               # doctest: +SKIP
        PosixPath('layers.pdf')

        Args:
            path: ends in .pdf, .svg or .png; an existing file is replaced.
            width: "column" (85 mm), "page" (175 mm), or a number of mm from 20 to 1000.

        Raises:
            InputError: another ending or width, kaleido or a Chromium is missing, or the file cannot be written.
        """
        path = as_path(path, call="save(path)")
        if path.suffix not in FORMATS:
            raise InputError(f"save({path.name!r:.60}): must end in {', '.join(FORMATS)}")
        across = round(_millimetres(width) * PIXELS * ENLARGED)
        data = _rendered(self._for_paper(across), path.suffix[1:], across)
        with replacing(path) as partial:
            partial.write_bytes(data)
        return path

    def _for_paper(self, across: int) -> go.Figure:
        """The figure in a width, without title, its legend above it; its height shrinks with the width, but keeps rows apart."""
        figure = go.Figure(copy.deepcopy(self.to_dict()))
        tall, head = int(figure.layout.height or 450), int(figure.layout.margin.t or 80)
        key = _legend_room(figure, across)
        above = max(head - TITLE, 12)  # what the figure itself has there: names of panels, a colour bar
        height = max(round(0.75 * (tall - head)), min(tall - head, round(0.75 * across))) + above + key
        figure.update_layout(title_text="", width=across, height=height, margin={"t": above + key, "r": 12})
        if key:
            place = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
            figure.update_layout(legend={**place, "orientation": "h"}, margin={"b": 50})
        figure.for_each_xaxis(lambda axis: _short_title(axis, across))
        figure.for_each_yaxis(lambda axis: _short_title(axis, across))
        return figure


def _legend_room(figure: go.Figure, across: int) -> int:
    """Pixels that the legend takes above the figure; 0 if it has none, or has it there already."""
    names = [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]
    if len(names) < 2 or (figure.layout.legend.y or 0) > 0:
        return 0
    per_line = max(1, int(across // (48 + 6.4 * max(map(len, names)))))
    return 12 + 19 * math.ceil(len(names) / per_line)


def _short_title(axis: Any, across: int) -> None:
    """Break the title of an axis into lines that fit the width."""
    text = axis.title.text
    if text:
        lines = [part for line in text.split("<br>") for part in textwrap.wrap(line, max(20, int(across / 8.2)))]
        axis.update(title={"text": "<br>".join(lines), "font": {"size": 12}, "standoff": 6})


def _millimetres(width: str | float) -> float:
    require(width, (str, int, float), call="save(path, width=)", name="width")
    if isinstance(width, str):
        if width not in WIDTHS:
            raise InputError(f"save: width={width!r:.40}: must be {', '.join(map(repr, WIDTHS))} or a number of mm")
        return WIDTHS[width]
    if not 20 <= width <= 1000:
        raise InputError(f"save: width={width:g}: must be from 20 to 1000 mm")
    return float(width)


def _rendered(figure: go.Figure, kind: str, across: int) -> bytes:
    """The bytes of a file of a figure, through kaleido and the Chromium that it finds."""
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise InputError("save: drawing a file needs kaleido; pip install 'neuronshield[figures]'") from None
    dots = {"png": 600 / 96 / ENLARGED, "pdf": 1 / ENLARGED, "svg": 1.0}[kind]
    try:
        data = figure.to_image(format=kind, width=across, height=figure.layout.height, scale=dots)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"save: no {kind} was drawn ({reason[0]:.120}); kaleido needs Chrome or Chromium, whose path BROWSER_PATH may name"
        ) from None
    return _sized(data, across) if kind == "svg" else bytes(data)


def _sized(data: bytes, across: int) -> bytes:
    """An SVG file whose width and height are those on paper."""
    head, _, rest = data.partition(b">")
    for name in (b"width", b"height"):
        before, _, after = head.partition(name + b'="')
        number, _, tail = after.partition(b'"')
        head = before + name + b'="' + f"{float(number) / ENLARGED / PIXELS:.2f}mm".encode() + b'"' + tail
    return head + b">" + rest
