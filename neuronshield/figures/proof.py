"""Figures of a proof, as `Proof.to_dict` or `results.json` has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..core.arguments import one_of, require
from ..core.errors import InputError
from .paper import Figure
from .style import ACCENT, DIVERGING, INK, MUTED, SECOND, THIRD, WARN, bounds, error_bars, number, styled

CONTROL_COLOURS = {"random": MUTED, "matched": SECOND, "permuted": THIRD}
SINGLE_SYMBOLS = ("x-thin-open", "cross-thin-open", "asterisk-open")
EFFECTS = "margin claims: normalised effect (1 is the clean logit difference)<br>answers: change of a share of answers"


def proof_figure(proof: Mapping[str, Any], what: str = "claims") -> Figure:
    """A figure of a proof: its claims beside every control set, or one of its experiments.

    >>> proof = ns.verify(model, neurons, prompts, draws=1, refusals=["sorry"], compliances=["sure"], progress=False)
    >>> ns.figures.proof_figure(proof.to_dict(), "size").layout.title.text
    'Effect by size of the set'

    Args:
        proof: `Proof.to_dict()`, or the section "prove" of `results.json`.
        what: "claims", "dose_response", "size" or "cross_cell".

    Raises:
        InputError: no mapping, an unknown name, or an experiment that was not done.
    """
    drawers: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
        "claims": _claims, "dose_response": _dose_response, "size": _size, "cross_cell": _cross_cell,
    }  # fmt: skip
    require(
        proof,
        Mapping,
        call="proof_figure(proof, what)",
        name="proof",
        hint="use proof.figure(), or pass proof.to_dict()",
    )
    one_of(what, drawers, call="figure", name="what")
    if what != "claims" and not proof["experiments"][what]:
        raise InputError(f"figure: the experiment {what!r} was not done (verdict: {proof['reason']})")
    return drawers[what](proof)


def _claims(proof: Mapping[str, Any]) -> Figure:
    """Each claim's effect with its interval, and every control set below it."""
    claims = proof["claims"]
    figure = go.Figure([*_control_points(claims), _set_points(claims)])
    figure.update_yaxes(
        tickvals=list(range(len(claims))),
        ticktext=[f"{c['name']}<br><i>{c['verdict']}</i>" for c in claims],
        range=[len(claims) - 0.3, -0.5],
    )
    figure.update_xaxes(title=EFFECTS, zeroline=True, zerolinecolor=INK)
    n = len(proof["neurons"]["members"])
    title = f"Claims beside matched control sets ({n} neurons, {proof['n_pairs']} pairs)"
    figure = styled(figure, title, height=190 + 66 * len(claims))
    below = 70 / (34 + 66 * len(claims))  # pixels below the plot, as a share of its height
    return figure.update_layout(margin={"l": 160, "b": 80}, legend={"y": -below})


def _control_points(claims: Sequence[Mapping[str, Any]]) -> list[go.Scatter]:
    """One trace per kind of control set: drawn kinds as clouds, single sets as crosses."""
    rng = np.random.default_rng(0)
    kinds = dict.fromkeys(kind for c in claims for kind in c["controls"])
    drawn = [k for k in kinds if any(len(c["controls"].get(k, [])) > 1 for c in claims)]
    single = [k for k in kinds if k not in drawn]
    traces = []
    for at, kind in enumerate([*drawn, *single]):
        points = [(v, i) for i, c in enumerate(claims) for v in c["controls"].get(kind, [])]
        alone = [len(claims[i]["controls"][kind]) == 1 for _, i in points]  # the draw that answers
        if kind in single:
            order = single.index(kind)
            offset, jitter = 0.16 + 0.1 * len(drawn) + 0.07 * order, np.zeros(len(points))
            marker = {"color": INK, "size": 7, "opacity": 0.9, "symbol": SINGLE_SYMBOLS[order % 3]}
        else:
            offset, jitter = 0.16 + 0.1 * at, rng.uniform(-0.035, 0.035, len(points))
            marker = {
                "color": CONTROL_COLOURS.get(kind.split(" (")[0], MUTED),
                "size": [8 if one else 4 for one in alone],
                "symbol": "circle",
                "opacity": [0.9 if one else 0.4 for one in alone],
            }
        y = [i + offset + j for (_, i), j in zip(points, jitter, strict=True)]
        traces.append(
            go.Scatter(
                x=[v for v, _ in points], y=y, mode="markers", name=kind, marker=marker,
                hovertemplate="%{x:.2f}<extra>" + kind + "</extra>",
            )
        )  # fmt: skip
    return traces


def _set_points(claims: Sequence[Mapping[str, Any]]) -> go.Scatter:
    """The tested set: each claim's effect with its interval, coloured by its verdict."""
    value, above, below = bounds([c["effect"] for c in claims])
    colour = {"passed": ACCENT, "failed": WARN}
    return go.Scatter(
        x=value, y=list(range(len(claims))), mode="markers", name="the set",
        marker={"color": [colour.get(c["verdict"], MUTED) for c in claims], "size": 12},
        error_x=error_bars(above, below, color=INK, thickness=1.4, width=5), text=[c["verdict"] for c in claims],
        hovertemplate="%{x:.2f} (%{text})<extra>the set</extra>",
    )  # fmt: skip


def _range_of(x: Sequence[Any], rows: Sequence[Sequence[float]], name: str) -> list[go.Scatter]:
    """Control sets: their mean, and a band from the smallest to the largest."""
    mean, low, high = (list(v) for v in zip(*rows, strict=True))
    band = go.Scatter(
        x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", fillcolor="rgba(102,114,127,0.18)",
        line={"width": 0}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    return [band, go.Scatter(x=x, y=mean, name=name, mode="lines+markers", line={"color": MUTED, "dash": "dot"})]


def _curve(x: Sequence[Any], rows: list[Any], *, name: str, colour: str) -> go.Scatter:
    value, above, below = bounds(rows)
    return go.Scatter(
        x=x, y=value, name=name, mode="lines+markers", line={"color": colour}, marker={"size": 8},
        error_y=error_bars(above, below, thickness=1.2, width=4),
    )  # fmt: skip


def _dose_response(proof: Mapping[str, Any]) -> Figure:
    """Change of the refusal margin when the set's values are multiplied by alpha."""
    rows = proof["experiments"]["dose_response"]
    x = [r["alpha"] for r in rows]
    figure = go.Figure()
    if rows[0]["random"]:
        figure.add_traces(_range_of(x, [r["random"] for r in rows], "random sets, harmful prompts (range)"))
    figure.add_trace(_curve(x, [r["harmful"] for r in rows], name="the set, harmful prompts", colour=ACCENT))
    figure.add_trace(_curve(x, [r["benign"] for r in rows], name="the set, matched benign prompts", colour=SECOND))
    figure.update_xaxes(title="alpha: factor on the set's values (0 ablates, 1 is the clean model)")
    figure.update_yaxes(title="change of the refusal margin,<br>normalised", zeroline=True, zerolinecolor=INK)
    figure = styled(figure, "Dose-response curve", height=460)
    return figure.update_layout(legend={"y": -0.2}, margin={"b": 90})


def _size(proof: Mapping[str, Any]) -> Figure:
    """Normalised effect of ablating the strongest members only."""
    rows = proof["experiments"]["size"]
    x = [r["size"] for r in rows]
    figure = go.Figure()
    if beside := [r for r in rows if r["random"]]:
        name = "random sets of the same size (range)"
        figure.add_traces(_range_of([r["size"] for r in beside], [r["random"] for r in beside], name))
    figure.add_trace(_curve(x, [r["effect"] for r in rows], name="the strongest members", colour=ACCENT))
    figure.update_xaxes(
        title="members ablated, the strongest first", type="log", tickvals=x, ticktext=[str(v) for v in x]
    )
    figure.update_yaxes(title="normalised effect", zeroline=True, zerolinecolor=INK)
    figure = styled(figure, "Effect by size of the set", height=460)
    return figure.update_layout(legend={"y": -0.2}, margin={"b": 90})


def _cross_cell(proof: Mapping[str, Any]) -> Figure:
    """Source cell x target cell: effect of writing harmful values of one into benign prompts of the other."""
    rows = proof["experiments"]["cross_cell"]
    sources = list(dict.fromkeys(r["source"] for r in rows))
    targets = list(dict.fromkeys(r["target"] for r in rows))
    z = np.full((2, len(sources), len(targets)), np.nan)
    for r in rows:
        at = sources.index(r["source"]), targets.index(r["target"])
        z[0][at], z[1][at] = number(r["effect"][0]), r["random"][0] if r["random"] else np.nan
    panels = ["the set", "random sets (mean)"]
    figure = make_subplots(2, 1, subplot_titles=panels, vertical_spacing=0.16, shared_xaxes=True)
    for i, matrix in enumerate(z, 1):
        figure.add_trace(
            go.Heatmap(
                z=matrix, x=targets, y=sources, coloraxis="coloraxis", xgap=1, ygap=1,
                texttemplate="%{z:.2f}" if len(targets) <= 12 else None,
                hovertemplate="from %{y} into benign %{x}: %{z:.2f}<extra></extra>",
            ),
            row=i, col=1,
        )  # fmt: skip
    bar = {"title": "normalised<br>effect", "thickness": 12}
    figure.update_layout(coloraxis={"colorscale": DIVERGING, "cmin": -1, "cmax": 1, "colorbar": bar})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickangle=-60, dtick=1, showgrid=False)
    figure = styled(figure, "Cross-cell patching: harmful values into benign prompts", height=270 + 48 * len(sources))
    return figure.update_layout(margin={"l": 90, "b": 110})
