"""Heatmaps of the share of neurons in common: language x language and modality x modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from ..core.arguments import require
from ..core.errors import InputError
from .paper import Figure
from .style import LINE, MUTED, SEQUENTIAL, number, styled

ROW = 30  # pixels of one row
WRITTEN = 12  # names up to which numbers are written into the cells

#: One comparison of names: "cells" and a matrix for every measure, as `Overlap.to_dict()` has them.
Table = Mapping[str, Any]


def overlap_heatmap(table: Table) -> Figure:
    """Heatmaps of `shared` along each axis, most sharing first; of the cells themselves where no axis has a number.

    The other measures are shown on hover. Without enough requests to tell, a cell says "n/a".

    >>> pair = {name: [[1.0, 0.5], [0.5, 1.0]] for name in ("jaccard", "shared", "shared_low", "shared_high")}
    >>> figure = ns.figures.overlap_heatmap({"cells": ["en", "sw"], "method": "sas", **pair})
    >>> figure.data[0].text.tolist()
    [['', '0.50'], ['0.50', '']]

    Args:
        table: what `Overlap.to_dict()` returns, also as `results.json` has it: "cells", "method", the measures as lists of
            rows, and the same for each axis in "along".

    Raises:
        InputError: something else.
    """
    call, hint = "overlap_heatmap(table)", "use overlap.figure(), or pass overlap.to_dict()"
    require(table, Mapping, call=call, name="table", hint=hint)
    if missing := [name for name in ("cells", "method", "jaccard", "shared") if name not in table]:
        raise InputError(f"{call}: the table has no {missing[0]!r}; {hint}")
    panels = panels_of(table)
    heights = [max(len(one["cells"]), 3) for one in panels.values()]
    gap = 92 / (ROW * sum(heights) + 92 * (len(heights) - 1)) if len(heights) > 1 else 0
    figure = make_subplots(
        len(panels),
        1,
        subplot_titles=[f"{axis} × {axis}" for axis in panels],
        row_heights=heights,
        vertical_spacing=gap,
    )
    for row, one in enumerate(panels.values(), 1):
        for trace in _traces(one):
            figure.add_trace(trace, row=row, col=1)
    figure.update_layout(
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1,
                   "colorbar": {"orientation": "h", "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left", "y": 1,
                                "yanchor": "bottom", "ypad": 26, "tickvals": [0, 0.5, 1],
                                "ticktext": ["0 unrelated", "0.5", "1 the same"], "tickfont": {"size": 11}}}
    )  # fmt: skip
    figure.update_xaxes(type="category", tickangle=-45, showgrid=False, dtick=1, tickfont={"size": 11}, automargin=True)
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, dtick=1, tickfont={"size": 11}, automargin=True
    )
    for note in figure.layout.annotations:
        note.update(font={"size": 13}, x=0, xanchor="left")
    height = 192 + ROW * sum(heights) + 92 * (len(heights) - 1)
    figure = styled(figure, f"Share of neurons in common ({table['method']})", height=height)
    return figure.update_layout(margin={"l": 40, "r": 16, "t": 112, "b": 70}, plot_bgcolor="white")


def panels_of(table: Table) -> dict[str, Table]:
    """The comparisons that are drawn, by axis: those with a number, else that of the cells themselves."""
    along = {axis: one for axis, one in table.get("along", {}).items() if np.isfinite(_off_diagonal(one)).any()}
    return along or {"cell": table}


def sorted_shares(one: Table) -> tuple[list[str], Float[np.ndarray, "name name"], list[list[str]]]:
    """Names, most sharing first, `shared` of each two (NaN where unknown, and on the diagonal), and what is said of each two."""
    shared = _off_diagonal(one)
    known = np.isfinite(shared)
    means = np.divide(np.where(known, shared, 0).sum(axis=1), known.sum(axis=1), out=np.full(len(shared), -np.inf),
                      where=known.any(axis=1))  # fmt: skip
    order = np.argsort(-means, kind="stable")
    said = [[_said(one, i, j) for j in order] for i in order]
    return [str(one["cells"][i]) for i in order], shared[np.ix_(order, order)], said


def _matrix(one: Table, name: str) -> Float[np.ndarray, "name name"]:
    """A measure of the table as numbers; NaN where it has none."""
    n = len(one["cells"])
    rows = one.get(name) or [[None] * n] * n
    return np.array([[number(value) for value in row] for row in rows], dtype=float)


def _off_diagonal(one: Table) -> Float[np.ndarray, "name name"]:
    """`shared` of different names: of a name with itself it is 1 by definition, and is not shown."""
    shared = _matrix(one, "shared")
    np.fill_diagonal(shared, np.nan)
    return shared


def _traces(one: Table) -> list[go.Heatmap]:
    """The heatmap of what is known, and a grey one of what is not."""
    names, shared, said = sorted_shares(one)
    few = len(names) <= WRITTEN
    hover = np.array([["<br>".join(lines.split("\n")) for lines in row] for row in said], dtype=object)
    text = np.array([[f"{x:.2f}" if np.isfinite(x) else "" for x in row] for row in shared], dtype=object)
    missing = ~np.isfinite(shared) & ~np.eye(len(names), dtype=bool)
    look = {"x": names, "y": names, "xgap": 1, "ygap": 1, "customdata": hover, "textfont": {"size": 10},
            "hovertemplate": "%{customdata}<extra></extra>"}  # fmt: skip
    shown = go.Heatmap(z=shared, text=text, texttemplate="%{text}" if few else None, coloraxis="coloraxis", **look)
    if not missing.any():
        return [shown]
    look["textfont"] = {"size": 10, "color": MUTED}
    grey = go.Heatmap(
        z=np.where(missing, 0.0, np.nan), text=np.where(missing, "n/a", ""), texttemplate="%{text}" if few else None,
        colorscale=[[0, LINE], [1, LINE]], showscale=False, **look,
    )  # fmt: skip
    return [shown, grey]


def _said(one: Table, i: int, j: int) -> str:
    """What is shown of a pair on hover."""
    values = {
        name: _matrix(one, name)[i, j]
        for name in (
            "shared", "shared_low", "shared_high", "jaccard", "permutation_null", "p", "benign_null", "reliability", "pairs",
        )
    }  # fmt: skip
    shared = "too few requests to tell"
    if np.isfinite(values["shared"]):
        shared = f"{values['shared']:.2f} ({values['shared_low']:.2f} to {values['shared_high']:.2f})"
        if values["pairs"] > 1:
            shared += f", over {values['pairs']:.0f} pairs of cells"
    said = {
        "share in common": shared,
        "Jaccard index": _two(values["jaccard"]),
        "permutation null": f"{_two(values['permutation_null'])}, p {_two(values['p'])}",
        "benign null": _two(values["benign_null"]),
        "reliability": _two(values["reliability"]),
    }
    pair = f"{one['cells'][i]} with {one['cells'][j]}"
    return "\n".join([pair, *(f"{name} {value}" for name, value in said.items())])


def _two(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "n/a"
