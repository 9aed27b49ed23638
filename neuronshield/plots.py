"""Plotly figures: returned, never shown, the same look everywhere.

Every figure carries what a sceptic asks for: controls beside effects, nulls beside overlaps, no update
beside the shield, numbers in the cells. Text from prompts never enters a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

if TYPE_CHECKING:
    from .causal import Proof
    from .contrast import Scores
    from .evaluate import Evaluation
    from .overlap import Overlap

__all__ = ["ablation", "grid", "layers", "overlap_heatmap", "transfer"]

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


def _style(figure: go.Figure, title: str, height: int, width: int | None = None) -> go.Figure:
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


def overlap_heatmap(overlap: Overlap) -> go.Figure:
    """Jaccard between cells, its floor and its ceiling, on one colour scale."""
    names = [str(c) for c in overlap.cells]
    few = len(names) <= 12
    panels = [
        ("overlap (Jaccard)", _without_diagonal(overlap.jaccard)),
        ("floor: benign vs benign", _without_diagonal(overlap.floor)),
        ("ceiling: split half", overlap.ceiling),
    ]
    title = f"Do cells share their neurons? ({overlap.method})"
    return _style(heat_panels(panels, names, few), title, max(420, 200 + (24 if few else 15) * len(names)))


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
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


def ablation(proof: Proof) -> go.Figure:
    """Each claim's effect with its interval, every control draw beside it."""
    names = [c.name for c in proof.claims]
    figure = go.Figure()
    rng = np.random.default_rng(0)
    for label, attribute, colour, offset in (
        ("random sets", "random", MUTED, 0.18),
        ("matched sets", "matched", SECOND, 0.34),
    ):
        x = [v for c in proof.claims for v in getattr(c, attribute)]
        y = [i + offset for i, c in enumerate(proof.claims) for _ in getattr(c, attribute)]
        if x:
            y = list(np.array(y) + rng.uniform(-0.05, 0.05, len(y)))
            figure.add_trace(
                go.Scatter(x=x, y=y, mode="markers", name=label, marker={"color": colour, "size": 5, "opacity": 0.55},
                           hovertemplate="%{x:.2f} of the gap<extra>" + label + "</extra>")
            )  # fmt: skip
    x = [c.effect.value for c in proof.claims]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=list(range(len(names))),
            mode="markers",
            name="the set",
            marker={"color": [ACCENT if c.verdict == "passed" else WARN for c in proof.claims], "size": 12},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [min(c.effect.high, 9) - c.effect.value for c in proof.claims],
                "arrayminus": [c.effect.value - max(c.effect.low, -9) for c in proof.claims],
                "color": INK,
                "thickness": 1.4,
                "width": 5,
            },
            text=[c.verdict for c in proof.claims],
            hovertemplate="%{x:.2f} of the gap (%{text})<extra>the set</extra>",
        )
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[f"{c.name}<br><i>{c.verdict}</i>" for c in proof.claims],
        range=[len(names) - 0.4, -0.5],
    )
    figure.update_xaxes(title="effect, as a share of the harmful–benign refusal gap", zeroline=True, zerolinecolor=INK)
    head = "Ablation and patching, set against controls"
    figure = _style(figure, f"{head} ({len(proof.neurons)} neurons, {proof.n_pairs} pairs)", 130 + 62 * len(names))
    figure.update_layout(margin={"l": 160})
    return figure


#: condition -> cell -> metric -> (value, low, high), as `results.json` has it; None or NaN where there is none
Rates = Mapping[str, Mapping[str, Mapping[str, Any]]]


def _rates(evaluations: Mapping[str, Evaluation]) -> Rates:
    return {name: {str(c): e.cell(c) for c in e.cells()} for name, e in evaluations.items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def grid(evaluations: Mapping[str, Evaluation], metric: str = "selectivity") -> go.Figure:
    """Language x modality heatmap of one metric, one panel a condition, on one scale."""
    return draw_grid(_rates(evaluations), metric)


def draw_grid(rates: Rates, metric: str = "selectivity") -> go.Figure:
    """`grid`, from rates."""
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
    return _style(figure, title, 190 + 30 * len(languages))


def transfer(evaluations: Mapping[str, Evaluation], trained: set[Any]) -> go.Figure:
    """Selectivity of every cell under every condition; cells that were trained on are set apart."""
    return draw_transfer(_rates(evaluations), {str(c) for c in trained})


def draw_transfer(rates: Rates, trained: set[str]) -> go.Figure:
    """`transfer`, from rates."""
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
    figure = _style(figure, "Did safety transfer? (* trained on; every other cell is zero-shot)", 480)
    figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"}, margin={"t": 110, "b": 110})
    return figure


def layers(scores: Scores, *, k: int = 64) -> go.Figure:
    """How many of each cell's k best neurons lie in each layer."""
    sets = scores.top(k=min(k, scores.values[0].size))
    n_layers = scores.values.shape[1]
    z = np.array([[sets[c].per_layer().get(layer, 0) for layer in range(n_layers)] for c in scores.cells])
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=[str(i) for i in range(n_layers)],
            y=[str(c) for c in scores.cells],
            colorscale=SEQUENTIAL,
            texttemplate="%{z}" if n_layers <= 16 else None,
            colorbar={"title": "neurons", "thickness": 12},
            xgap=1,
            ygap=1,
        )
    )
    figure.update_yaxes(autorange="reversed", dtick=1, tickfont={"size": 9})
    figure.update_xaxes(title="layer")
    figure = _style(figure, f"Where the {k} best neurons lie ({scores.method})", max(300, 150 + 16 * len(scores.cells)))
    figure.update_layout(margin={"l": 130})
    return figure
