"""Curves over training strength: harmful refused against benign refused, by condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ..core.arguments import require
from ..core.errors import InputError
from .paper import Figure
from .style import ACCENT, INK, MUTED, SECOND, THIRD, WARN, bounds, error_bars, number, styled

#: condition -> points with "steps", "refusal" and "over_refusal" (value, low, high), as `results.json` has them
Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def training_curves(curves: Curves, main: str, *, level: float | None = None) -> Figure:
    """Harmful refused against benign refused after more and more training steps, one line a condition.

    >>> rate = lambda value: [value, value - 0.1, value + 0.1]
    >>> points = [{"steps": s, "refusal": rate(s / 50), "over_refusal": rate(s / 100)} for s in (0, 10, 40)]
    >>> ns.figures.training_curves({"shield": points, "plain LoRA": points}, "shield").data[0].x
    (0.0, 0.1, 0.4)

    Args:
        curves: by condition the points, the untouched model first: steps, and both rates with their intervals.
        main: the condition that is emphasised; its interval is drawn.
        level: benign refusal at which conditions are compared, drawn as a line.

    Raises:
        InputError: no such condition, or curves of another form.
    """
    require(curves, Mapping, call="training_curves(curves, main)", name="curves")
    if main not in curves:
        raise InputError(f"training_curves: main={main!r:.40} is no condition; there are {', '.join(curves)}")
    figure = go.Figure()
    colours = [MUTED, SECOND, THIRD, WARN, INK]
    others = [name for name in curves if name != main]
    for name in (main, *others):
        points = curves[name]
        x, y = ([number(p[metric][0]) for p in points] for metric in ("over_refusal", "refusal"))
        colour = ACCENT if name == main else colours[others.index(name) % len(colours)]
        look = {"width": 3 if name == main else 1.5, "color": colour, "dash": "solid" if name == main else "dot"}
        figure.add_trace(
            go.Scatter(
                x=x, y=y, name=name, mode="lines+markers", line=look, customdata=[p["steps"] for p in points],
                marker={"size": 9 if name == main else 6, "color": colour},
                hovertemplate="%{customdata} steps: benign %{x:.2f}, harmful %{y:.2f}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
    last = curves[main][-1]
    for axis, metric in (("error_x", "over_refusal"), ("error_y", "refusal")):
        _, above, below = bounds([[None] * 3] * (len(curves[main]) - 1) + [last[metric]])
        figure.data[0][axis] = error_bars(above, below, color=ACCENT, thickness=1, width=3)
    if level is not None:
        figure.add_vline(x=level, line={"color": MUTED, "dash": "dash", "width": 1})
    figure.update_xaxes(title="benign refused", rangemode="tozero")
    figure.update_yaxes(title="harmful refused", rangemode="tozero")
    return styled(figure, "Refusal over training, from the untouched model to the last step", height=460)
