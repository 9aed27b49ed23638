"""Plotly figures: returned, never shown, the same look everywhere.

Every figure carries what a sceptic asks for: controls beside effects, nulls beside overlaps, no update
beside the shield, numbers in the cells. Text from prompts never enters a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .core.errors import InputError

__all__ = ["grid", "layers", "overlap_heatmap", "proof_figure", "transfer"]


INK, MUTED, LINE = "#1b2733", "#66727f", "#e3e8ed"


ACCENT, SECOND, THIRD, WARN = "#0b6e8a", "#d9822b", "#7a5ea8", "#b3364b"


SEQUENTIAL = [[0.0, "#f4f7f9"], [0.25, "#b9dbe2"], [0.55, "#4aa3b5"], [1.0, "#0a4a63"]]


DIVERGING = [[0.0, "#b3364b"], [0.5, "#f7f7f5"], [1.0, "#0b6e8a"]]


SIGNED = ("selectivity",)


TITLES = {
    "refusal": "harmful refused",
    "attack_success": "attack success",
    "over_refusal": "benign refused",
    "selectivity": "selectivity",
    "utility": "benign answered right",
}


def style(figure: go.Figure, title: str, height: int, width: int | None = None) -> go.Figure:
    figure.update_layout(
        title={"text": title, "x": 0.01, "xanchor": "left", "font": {"size": 16, "color": INK}},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        margin={"l": 70, "r": 30, "t": 76, "b": 56},
        height=height,
        width=width,
        legend={"orientation": "h", "y": -0.14, "x": 0, "yanchor": "top"},
    )
    figure.update_xaxes(gridcolor=LINE, zerolinecolor=LINE, linecolor=LINE)
    figure.update_yaxes(gridcolor=LINE, zerolinecolor=LINE, linecolor=LINE)
    return figure


def overlap_heatmap(
    cells: Sequence[str],
    jaccard: np.ndarray,
    floor: np.ndarray,
    ceiling: np.ndarray,
    *,
    method: str,
) -> go.Figure:
    """Jaccard between cells, its floor and its ceiling, on one colour scale.

    Args:
        cells: names of rows and columns, such as "en/text".
        jaccard, floor, ceiling: [cell, cell], 0 to 1.
        method: the score, for the title.
    """
    few = len(cells) <= 12
    panels = [
        ("overlap (Jaccard)", without_diagonal(jaccard)),
        ("floor: benign vs benign", without_diagonal(floor)),
        ("ceiling: split half", ceiling),
    ]
    title = f"Do cells share their neurons? ({method})"
    return style(heat_panels(panels, list(cells), few), title, max(420, 200 + (24 if few else 15) * len(cells)))


def without_diagonal(matrix: np.ndarray) -> np.ndarray:
    """A cell with itself says nothing (the ceiling's diagonal does)."""
    out = matrix.astype(float).copy()
    np.fill_diagonal(out, np.nan)
    return out


def heat_panels(panels: list[tuple[str, np.ndarray]], names: list[str], few: bool) -> go.Figure:
    """Square matrices side by side, 0 to 1 on one scale; with few cells the numbers are written in."""
    figure = make_subplots(
        1, len(panels), subplot_titles=[p[0] for p in panels], horizontal_spacing=0.04, shared_yaxes=True
    )
    for i, (_, matrix) in enumerate(panels, 1):
        figure.add_trace(
            go.Heatmap(
                z=matrix,
                x=names,
                y=names,
                coloraxis="coloraxis",
                texttemplate="%{z:.2f}" if few else None,
                textfont={"size": 10},
                hovertemplate="%{y} with %{x}: %{z:.2f}<extra></extra>",
                xgap=1,
                ygap=1,
            ),
            1,
            i,
        )
    figure.update_layout(
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": "Jaccard", "thickness": 12}}
    )
    figure.update_xaxes(tickangle=-60, showgrid=False, dtick=1, tickfont={"size": 11}, showticklabels=few)
    if not few:
        figure.update_xaxes(title="columns as rows")
    figure.update_yaxes(autorange="reversed", showgrid=False, dtick=1, tickfont={"size": 11 if few else 9})
    return figure


CONTROL_COLOURS = {"random": MUTED, "matched": SECOND, "permuted": THIRD}


def proof_figure(proof: Mapping[str, Any], what: str = "claims") -> go.Figure:
    """A figure of a proof (as `Proof.to_dict` or `results.json` has it): "claims", "dose", "size" or "crossing".

    Raises:
        InputError: an unknown name, or an experiment that was not done.
    """
    drawers = {"claims": _claims, "dose": _dose, "size": _size, "crossing": _crossing}
    if what not in drawers:
        raise InputError(f"figure {what!r} is unknown; use one of {', '.join(drawers)}")
    if what != "claims" and not proof["experiments"].get(what):
        raise InputError(f"figure {what!r}: the experiment was not done (verdict: {proof['reason']})")
    return drawers[what](proof)


def _claims(proof: Mapping[str, Any]) -> go.Figure:
    """Each claim's effect with its interval, every control beside it."""
    claims = proof["claims"]
    figure = go.Figure()
    rng = np.random.default_rng(0)
    kinds = dict.fromkeys(kind for c in claims for kind in c["controls"])
    drawn = [k for k in kinds if any(len(c["controls"].get(k, [])) > 1 for c in claims)]
    single = [k for k in kinds if k not in drawn]
    for at, kind in enumerate([*drawn, *single]):
        points = [(v, i) for i, c in enumerate(claims) for v in c["controls"].get(kind, [])]
        one = kind in single
        offset = 0.16 + 0.1 * at if not one else 0.16 + 0.1 * len(drawn) + 0.07 * single.index(kind)
        jitter = np.zeros(len(points)) if one else rng.uniform(-0.035, 0.035, len(points))
        figure.add_trace(
            go.Scatter(
                x=[v for v, _ in points],
                y=[i + offset + j for (_, i), j in zip(points, jitter, strict=True)],
                mode="markers",
                name=kind,
                marker={
                    "color": INK if one else CONTROL_COLOURS.get(kind, MUTED),
                    "size": 7 if one else 4,
                    "opacity": 0.9 if one else 0.4,
                    "symbol": ["x-thin-open", "cross-thin-open", "asterisk-open"][single.index(kind) % 3]
                    if one
                    else "circle",
                },
                hovertemplate="%{x:.2f}<extra>" + kind + "</extra>",
            )
        )
    value, low, high = (np.array([_number(c["effect"][i]) for c in claims]) for i in range(3))
    colour = {"passed": ACCENT, "failed": WARN}
    figure.add_trace(
        go.Scatter(
            x=value,
            y=list(range(len(claims))),
            mode="markers",
            name="the set",
            marker={"color": [colour.get(c["verdict"], MUTED) for c in claims], "size": 12},
            error_x={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low,
                     "color": INK, "thickness": 1.4, "width": 5},
            text=[c["verdict"] for c in claims],
            hovertemplate="%{x:.2f} (%{text})<extra>the set</extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(claims))),
        ticktext=[f"{c['claim']}<br><i>{c['verdict']}</i>" for c in claims],
        range=[len(claims) - 0.3, -0.5],
    )
    figure.update_xaxes(title="effect, as a share of the harmful–benign refusal gap", zeroline=True, zerolinecolor=INK)
    title = f"Ablation and patching, set against controls ({proof['n_neurons']} neurons, {proof['n_pairs']} pairs)"
    figure = style(figure, title, 150 + 66 * len(claims))
    figure.update_layout(margin={"l": 160, "b": 60}, legend={"y": -0.1})
    return figure


def _band(figure: go.Figure, x: list[Any], rows: list[list[float]], name: str) -> None:
    """Random sets: their mean, and the range from the smallest to the largest."""
    mean, low, high = (list(v) for v in zip(*rows, strict=True))
    figure.add_trace(
        go.Scatter(x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself", fillcolor="rgba(102,114,127,0.18)",
                   line={"width": 0}, hoverinfo="skip", showlegend=False)
    )  # fmt: skip
    figure.add_trace(go.Scatter(x=x, y=mean, name=name, mode="lines+markers", line={"color": MUTED, "dash": "dot"}))


def _curve(figure: go.Figure, x: list[Any], rows: list[list[float | None]], name: str, colour: str) -> None:
    value, low, high = (np.array([_number(r[i]) for r in rows]) for i in range(3))
    figure.add_trace(
        go.Scatter(x=x, y=value, name=name, mode="lines+markers", line={"color": colour}, marker={"size": 8},
                   error_y={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low,
                            "thickness": 1.2, "width": 4})
    )  # fmt: skip


def _dose(proof: Mapping[str, Any]) -> go.Figure:
    """Change of the refusal margin when the set's values are scaled."""
    rows = proof["experiments"]["dose"]
    x = [r["alpha"] for r in rows]
    figure = go.Figure()
    if rows[0]["random"]:
        _band(figure, x, [r["random"] for r in rows], "random sets, harmful prompts (range)")
    _curve(figure, x, [r["harmful"] for r in rows], "the set, harmful prompts", ACCENT)
    _curve(figure, x, [r["benign"] for r in rows], "the set, benign twins", SECOND)
    figure.update_xaxes(title="alpha: what the set's values are multiplied by (0 ablates, 1 is the model as it is)")
    figure.update_yaxes(title="change of the refusal margin,<br>share of the gap", zeroline=True, zerolinecolor=INK)
    figure = style(figure, "Dose curve: does refusal follow the neurons?", 460)
    return figure.update_layout(legend={"y": -0.2}, margin={"b": 90})


def _size(proof: Mapping[str, Any]) -> go.Figure:
    """Effect of ablating the strongest members only."""
    rows = proof["experiments"]["size"]
    x = [r["size"] for r in rows]
    figure = go.Figure()
    beside = [r for r in rows if r["random"]]
    if beside:
        _band(
            figure, [r["size"] for r in beside], [r["random"] for r in beside], "random sets of the same size (range)"
        )
    _curve(figure, x, [r["effect"] for r in rows], "the strongest members", ACCENT)
    figure.update_xaxes(
        title="members ablated, the strongest first", type="log", tickvals=x, ticktext=[str(v) for v in x]
    )
    figure.update_yaxes(title="effect, share of the gap", zeroline=True, zerolinecolor=INK)
    figure = style(figure, "Size curve: how few carry it?", 460)
    return figure.update_layout(legend={"y": -0.2}, margin={"b": 90})


def _crossing(proof: Mapping[str, Any]) -> go.Figure:
    """Source cell x target cell: effect of writing harmful values of one into benign prompts of the other."""
    rows = proof["experiments"]["crossing"]
    sources = list(dict.fromkeys(r["source"] for r in rows))
    targets = list(dict.fromkeys(r["target"] for r in rows))
    z = np.full((len(sources), len(targets)), np.nan)
    random = np.full_like(z, np.nan)
    for r in rows:
        at = sources.index(r["source"]), targets.index(r["target"])
        z[at], random[at] = _number(r["effect"][0]), r["random"][0] if r["random"] else np.nan
    few = len(targets) <= 12
    figure = make_subplots(
        2, 1, subplot_titles=["the set", "random sets (mean)"], vertical_spacing=0.16, shared_xaxes=True
    )
    for i, matrix in enumerate((z, random), 1):
        figure.add_trace(
            go.Heatmap(z=matrix, x=targets, y=sources, coloraxis="coloraxis", xgap=1, ygap=1,
                       texttemplate="%{z:.2f}" if few else None,
                       hovertemplate="from %{y} into benign %{x}: %{z:.2f}<extra></extra>"),
            i,
            1,
        )  # fmt: skip
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING,
            "cmin": -1,
            "cmax": 1,
            "colorbar": {"title": "share of<br>the gap", "thickness": 12},
        }
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickangle=-60, dtick=1, showgrid=False)
    figure = style(
        figure, "Harmful values of one cell, written into benign prompts of another", 270 + 48 * len(sources)
    )
    figure.update_layout(margin={"l": 90, "b": 110})
    return figure


#: condition -> cell -> metric -> (value, low, high), as `results.json` has it; None or NaN where there is none
Rates = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def grid(rates: Rates, metric: str = "selectivity") -> go.Figure:
    """Language x modality heatmap of one metric, one panel a condition, on one scale."""
    keys = [c.split("/", 1) for c in next(iter(rates.values()))]
    languages, modalities = list(dict.fromkeys(k[0] for k in keys)), list(dict.fromkeys(k[1] for k in keys))
    figure = make_subplots(1, len(rates), subplot_titles=list(rates), horizontal_spacing=0.03, shared_yaxes=True)
    for i, cells in enumerate(rates.values(), 1):
        z = np.full((len(languages), len(modalities)), np.nan)
        for cell, values in cells.items():
            language, modality = cell.split("/", 1)
            z[languages.index(language), modalities.index(modality)] = _number(values[metric][0])
        figure.add_trace(
            go.Heatmap(
                z=z,
                x=modalities,
                y=languages,
                coloraxis="coloraxis",
                texttemplate="%{z:.2f}",
                textfont={"size": 11},
                xgap=2,
                ygap=2,
                hovertemplate="%{y}/%{x}: %{z:.2f}<extra></extra>",
            ),
            1,
            i,
        )
    signed = metric in SIGNED
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING if signed else SEQUENTIAL,
            "cmin": -1 if signed else 0,
            "cmax": 1,
            "colorbar": {"thickness": 12},
        }
    )
    figure.update_xaxes(showgrid=False, tickangle=-25)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    title = "Selectivity: harmful refused minus benign refused" if signed else TITLES[metric].capitalize()
    return style(figure, title, 190 + 30 * len(languages))


def transfer(rates: Rates, trained: set[str]) -> go.Figure:
    """Selectivity of every cell under every condition; cells that were trained on are set apart."""
    cells = sorted(next(iter(rates.values())), key=lambda c: c in trained)
    names = [f"{c}{' *' if c in trained else ''}" for c in cells]
    colours = [MUTED, ACCENT, SECOND, THIRD, WARN, INK]
    figure = go.Figure()
    for i, (name, found) in enumerate(rates.items()):
        value, low, high = (np.array([_number(found[c]["selectivity"][j]) for c in cells]) for j in range(3))
        figure.add_trace(
            go.Scatter(
                x=names,
                y=value,
                name=name,
                mode="markers",
                marker={
                    "size": 9,
                    "color": colours[i % len(colours)],
                    "symbol": ["circle-open", "circle", "x", "diamond-open", "square"][i % 5],
                },
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": high - value,
                    "arrayminus": value - low,
                    "thickness": 0.7,
                    "width": 0,
                },
                hovertemplate="%{x}: %{y:.2f}<extra>" + name + "</extra>",
            )
        )
    figure.update_yaxes(title="selectivity", range=[-1.05, 1.05], zeroline=True, zerolinecolor=INK)
    figure.update_xaxes(tickangle=-60)
    figure = style(figure, "Did safety transfer? (* trained on; every other cell is zero-shot)", 480)
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"}, margin={"t": 110, "b": 110})
    return figure


def layers(counts: np.ndarray, cells: Sequence[str], *, method: str) -> go.Figure:
    """How many of each cell's neurons lie in each layer.

    Args:
        counts: [cell, n_layers].
        cells: names of the rows.
        method: the score, for the title.
    """
    n_layers = counts.shape[1]
    figure = go.Figure(
        go.Heatmap(
            z=counts,
            x=[str(i) for i in range(n_layers)],
            y=list(cells),
            colorscale=SEQUENTIAL,
            texttemplate="%{z}" if n_layers <= 16 else None,
            colorbar={"title": "neurons", "thickness": 12},
            xgap=1,
            ygap=1,
        )
    )
    figure.update_yaxes(autorange="reversed", dtick=1, tickfont={"size": 9})
    figure.update_xaxes(title="layer")
    figure = style(figure, f"Where the best neurons lie ({method})", max(300, 150 + 16 * len(cells)))
    figure.update_layout(margin={"l": 130})
    return figure


def methods(
    names: list[str], jaccard: np.ndarray, effects: Mapping[str, Sequence[float]], sizes: Mapping[str, int]
) -> go.Figure:
    """Scores beside each other: how far they pick the same neurons, and what ablating their picks does, per neuron.

    Args:
        jaccard: [score, score] overlap of their sets.
        effects: share of the refusal gap that ablating the set removes: value, low, high.
        sizes: neurons in each set.
    """
    figure = make_subplots(
        1, 2, subplot_titles=["the same neurons? (Jaccard)", "share of the gap removed, per neuron"], column_widths=[0.55, 0.45],
        horizontal_spacing=0.06, shared_yaxes=True,
    )  # fmt: skip
    figure.add_trace(
        go.Heatmap(
            z=without_diagonal(jaccard), x=names, y=names, colorscale=SEQUENTIAL, zmin=0, zmax=1, texttemplate="%{z:.2f}",
            textfont={"size": 10}, xgap=1, ygap=1, showscale=False, hovertemplate="%{y} with %{x}: %{z:.2f}<extra></extra>",
        ),
        1, 1,
    )  # fmt: skip
    value, low, high = (np.array([effects[n][i] / sizes[n] for n in names]) for i in range(3))
    figure.add_trace(
        go.Scatter(
            x=value, y=names, mode="markers", marker={"color": INK, "size": 8}, showlegend=False,
            error_x={"type": "data", "symmetric": False, "array": high - value, "arrayminus": value - low, "color": INK},
            hovertemplate="%{y}: %{x:.4f} a neuron<extra></extra>",
        ),
        1, 2,
    )  # fmt: skip
    figure.add_vline(x=0, line={"color": MUTED, "dash": "dot"}, row=1, col=2)  # type: ignore[arg-type]
    figure.update_xaxes(tickangle=-60, showgrid=False, row=1, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return style(figure, "Scores of the literature on the same prompts", 240 + 26 * len(names))
