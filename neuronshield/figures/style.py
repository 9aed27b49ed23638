"""The style that all figures share: colours, fonts, colour scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from .paper import Figure

INK, MUTED, LINE = "#1b2733", "#66727f", "#e3e8ed"
ACCENT, SECOND, THIRD, WARN = "#0b6e8a", "#d9822b", "#7a5ea8", "#b3364b"
SEQUENTIAL = [[0.0, "#f4f7f9"], [0.25, "#b9dbe2"], [0.55, "#4aa3b5"], [1.0, "#0a4a63"]]
DIVERGING = [[0.0, "#b3364b"], [0.5, "#f7f7f5"], [1.0, "#0b6e8a"]]


def styled(figure: go.Figure, title: str, *, height: int) -> Figure:
    """The figure, which can save itself, with the shared fonts, colours and margins, and a title.

    Args:
        figure: as plotly makes it.
        title: plain text.
        height: in pixels; the width follows the page.
    """
    figure = Figure(figure)
    figure.update_layout(
        title={"text": title, "x": 0.01, "xanchor": "left", "font": {"size": 16, "color": INK}},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 70, "r": 30, "t": 76, "b": 56},
        height=height,
        legend={"orientation": "h", "y": -0.14, "x": 0, "yanchor": "top"},
    )
    figure.update_xaxes(gridcolor=LINE, zerolinecolor=LINE, linecolor=LINE)
    figure.update_yaxes(gridcolor=LINE, zerolinecolor=LINE, linecolor=LINE)
    return figure


def number(value: float | None) -> float:
    """A number of a table; NaN where the table has none."""
    return float("nan") if value is None else value


def bounds(rows: list[Any]) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Estimates [row] and the lengths of their error bars above and below, from rows of (value, low, high)."""
    value, low, high = (np.array([number(row[i]) for row in rows], dtype=float) for i in range(3))
    return value, high - value, value - low


def error_bars(above: Float[np.ndarray, " row"], below: Float[np.ndarray, " row"], **look: Any) -> dict[str, Any]:
    """Plotly's `error_x` or `error_y` of asymmetric intervals."""
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}
