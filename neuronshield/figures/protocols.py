"""The figure of protocols beside each other, from `ModalityProtocol.to_json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..core.arguments import require
from ..core.errors import InputError
from .paper import Figure
from .style import ACCENT, INK, MUTED, SECOND, bounds, error_bars, number, styled

COLOURS = (ACCENT, SECOND)
DASHES = ("solid", "dot")


def protocol_effects(found: Mapping[str, Any]) -> Figure:
    """What ablation does to the refusal margin of two modalities: of every set, and of growing numbers of directions.

    Colour is the modality whose requests are read. Bars are 95 % intervals, grey lines the range of control sets. On the right solid
    lines are directions of the same modality and dotted lines those of the other one; grey lines are random directions.

    >>> effect = {"source": "text", "target": "text", "n": 4, "margin": [1.0, 0.5, 1.5], "controls": {"random": [0, -0.1, 0.1, 19]}}
    >>> outcome = {"protocol": "behavioural", "site": "neuron", "verdict": "none found", "effects": [effect]}
    >>> point = {"source": "text", "target": "text", "k": 1, "margin": [1.0, 0.5, 1.5], "random": [0.0, -0.1, 0.1, 19]}
    >>> found = {"modalities": ["text", "image"], "outcomes": [outcome], "directions": {"points": [point]}}
    >>> [trace.name for trace in ns.figures.protocol_effects(found).data if trace.name]
    ['in text', 'in image', 'control sets']

    Args:
        found: `ModalityProtocol.to_json()`.

    Raises:
        InputError: something else.
    """
    require(
        found,
        Mapping,
        call="protocol_effects(found)",
        name="found",
        hint="pass result.to_json(), or use result.figure()",
    )
    if missing := [key for key in ("modalities", "outcomes", "directions") if key not in found]:
        raise InputError(f"protocol_effects: {missing[0]!r} is missing; pass ModalityProtocol.to_json()")
    figure = make_subplots(
        1, 2, subplot_titles=["sets of neurons", "directions"], column_widths=[0.6, 0.4], horizontal_spacing=0.1
    )
    rows = _effects(figure, found)
    _curves(figure, found)
    figure.update_xaxes(
        title="fall of the refusal margin under ablation, nats", zeroline=True, zerolinecolor=INK, row=1, col=1
    )
    figure.update_xaxes(title="directions ablated", type="log", tickvals=[1, 2, 5, 10, 20, 50], row=1, col=2)
    figure.update_yaxes(title="fall, nats", row=1, col=2)
    figure = styled(
        figure, f"Protocols: {' and '.join(map(str, found['modalities']))}", height=max(360, 170 + 46 * rows)
    )
    return figure.update_layout(margin={"l": 210}, legend={"y": -0.22})


def _effects(figure: go.Figure, found: Mapping[str, Any]) -> int:
    """Points of every set in both modalities, and the number of rows."""
    names: list[str] = []
    points: dict[str, list[tuple[int, Mapping[str, Any]]]] = {m: [] for m in found["modalities"]}
    for outcome in found["outcomes"]:
        site = "" if outcome["site"] == "neuron" else f" ({outcome['site']})"
        sources = list(dict.fromkeys(e["source"] for e in outcome["effects"]))
        for source in sources or [None]:
            mine = [e for e in outcome["effects"] if e["source"] == source]
            size = f", {mine[0]['n']} of {source}" if mine else ""
            names.append(f"{outcome['protocol']}{site}{size}<br><i>{outcome['verdict']}</i>")
            for e in mine:
                points[e["target"]].append((len(names) - 1, e))
    low, place = [], []
    for i, (modality, mine) in enumerate(points.items()):
        y = [row + 0.13 * (2 * i - 1) for row, _ in mine]
        value, above, below = bounds([e["margin"] for _, e in mine])
        figure.add_trace(
            go.Scatter(
                x=value, y=y, mode="markers", name=f"in {modality}", marker={"color": COLOURS[i % 2], "size": 9},
                error_x=error_bars(above, below, color=COLOURS[i % 2]),
                hovertemplate=f"{modality}: %{{x:.2f}} nats<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
        for at, (_, e) in zip(y, mine, strict=True):
            for spread in e["controls"].values():
                low += [number(spread[1]), number(spread[2]), None]
                place += [at + 0.11, at + 0.11, None]
    look = {"color": "rgba(102, 114, 127, 0.5)", "width": 4}
    figure.add_trace(
        go.Scatter(x=low, y=place, mode="lines", name="control sets", line=look, hoverinfo="skip"), row=1, col=1
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[len(names) - 0.4, -0.6],
        tickfont={"size": 10},
        row=1,
        col=1,
    )
    return len(names)


def _curves(figure: go.Figure, found: Mapping[str, Any]) -> None:
    """Falls over numbers of directions, and the mean of random ones."""
    points = found["directions"]["points"]
    for i, target in enumerate(found["modalities"]):
        for source in found["modalities"]:
            mine = [p for p in points if (p["source"], p["target"]) == (source, target)]
            if not mine:
                continue
            k, dash = [p["k"] for p in mine], DASHES[source != target]
            value, above, below = bounds([p["margin"] for p in mine])
            random = [number(p["random"][0]) for p in mine]
            lines: list[tuple[Any, dict[str, Any]]] = [
                (random, {"line": {"color": MUTED, "width": 1, "dash": dash}, "hoverinfo": "skip"}),
                (value, {"line": {"color": COLOURS[i % 2], "dash": dash}, "error_y": error_bars(above, below, width=2),
                         "hovertemplate": f"%{{x}} of {source} in {target}: %{{y:.2f}} nats<extra></extra>"}),
            ]  # fmt: skip
            for y, more in lines:
                figure.add_trace(
                    go.Scatter(x=k, y=y, mode="lines+markers", showlegend=False, marker={"size": 5}, **more),
                    row=1,
                    col=2,
                )
