"""Runs beside each other: every measure of every run with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from .paper import Figure
from .style import ACCENT, INK, MUTED, SECOND, THIRD, WARN, error_bars, styled

__all__ = ["compared_runs"]


def compared_runs(rows: Sequence[tuple[str, str, tuple[float, float, float]]], runs: Sequence[str]) -> Figure:
    """One point a measure and run, with its interval.

    >>> figure = compared_runs([("necessity", "a", (0.6, 0.5, 0.7)), ("necessity", "b", (0.4, 0.3, 0.5))], ["a", "b"])
    >>> [trace.name for trace in figure.data]
    ['a', 'b']

    Args:
        rows: measure, run, and (value, low, high).
        runs: their names, in order.
    """
    measures = list(dict.fromkeys(row[0] for row in rows))
    figure, colours = go.Figure(), (ACCENT, SECOND, THIRD, WARN, INK, MUTED)
    for i, run in enumerate(runs):
        mine = [row for row in rows if row[1] == run]
        value, low, high = np.array([row[2] for row in mine], dtype=float).reshape(-1, 3).T
        offset = (i - (len(runs) - 1) / 2) * 0.7 / len(runs)
        colour = colours[i % len(colours)]
        figure.add_trace(
            go.Scatter(
                x=value, y=[measures.index(row[0]) + offset for row in mine], name=run, mode="markers",
                marker={"size": 8, "color": colour}, customdata=[row[0] for row in mine],
                error_x=error_bars(high - value, value - low, color=colour, thickness=1.5, width=3),
                hovertemplate="%{customdata}: %{x:.2f}<extra>" + run + "</extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": MUTED, "width": 1})
    figure.update_yaxes(tickvals=list(range(len(measures))), ticktext=measures, autorange="reversed", title="")
    figure.update_xaxes(title="value, with its 95 % interval")
    return styled(figure, "Runs, compared", height=140 + 34 * len(measures))
