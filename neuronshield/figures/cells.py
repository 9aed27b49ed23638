"""Figures over cells (language x modality): rates, transfer, layers, and the scores of the literature."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.subplots import make_subplots

from ..core.arguments import one_of, require
from ..core.errors import InputError
from .paper import Figure
from .style import ACCENT, DIVERGING, INK, MUTED, SECOND, SEQUENTIAL, THIRD, WARN, bounds, error_bars, number, styled

#: Metrics of a cell and what a figure or a table calls them.
TITLES = {
    "refusal": "harmful refused",
    "compliance": "harmful complied",
    "attack_success": "attack success",
    "over_refusal": "benign refused",
    "benign_compliance": "benign complied",
    "selectivity": "selectivity",
    "utility": "benign answered right",
    "incoherent": "incoherent answers",
}
SIGNED = ("selectivity",)

#: condition -> cell -> metric -> (value, low, high), as `results.json` has it; None or NaN where there is none
Rates = Mapping[str, Mapping[str, Any]]


# -- find -------------------------------------------------------------------------------------------------
def _without_diagonal(matrix: Float[np.ndarray, "cell cell"]) -> Float[np.ndarray, "cell cell"]:
    """A cell's overlap with itself is 1 by definition and is not shown."""
    out = matrix.astype(float).copy()
    np.fill_diagonal(out, np.nan)
    return out


def layers(counts: Int[np.ndarray, "cell n_layers"], cells: Sequence[str], *, method: str) -> Figure:
    """A heatmap of how many of each cell's neurons lie in each layer.

    >>> ns.figures.layers(np.array([[3, 0], [1, 2]]), ["en/text", "sw/text"], method="sas").data[0].z.tolist()
    [[3, 0], [1, 2]]

    Args:
        counts: neurons of each cell in each layer.
        cells: names of the rows.
        method: the score, for the title.
    """
    n_layers = counts.shape[1]
    figure = go.Figure(
        go.Heatmap(
            z=counts, x=[str(i) for i in range(n_layers)], y=list(cells), colorscale=SEQUENTIAL,
            texttemplate="%{z}" if n_layers <= 16 else None, colorbar={"title": "neurons", "thickness": 12}, xgap=1, ygap=1,
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", dtick=1, tickfont={"size": 9})
    figure.update_xaxes(title="layer")
    sizes = sorted({int(n) for n in counts.sum(axis=1)})
    best = f"{sizes[0]} best neurons" if len(sizes) == 1 else "best neurons"
    figure = styled(figure, f"Layers of each cell's {best} ({method})", height=max(300, 150 + 16 * len(cells)))
    return figure.update_layout(margin={"l": 130})


def methods(
    names: Sequence[str],
    jaccard: Float[np.ndarray, "score score"],
    *,
    effects: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int],
) -> Figure:
    """Scores side by side: the overlap of the sets that they select, and the effect of ablating each set, per neuron.

    >>> effects = {"a": [0.5, 0.4, 0.7], "b": [0.1, 0.0, 0.2]}
    >>> figure = ns.figures.methods(["a", "b"], np.eye(2), effects=effects, sizes={"a": 10, "b": 5})
    >>> [round(float(x), 2) for x in figure.data[1].x]
    [0.05, 0.02]

    Args:
        names: the scores.
        jaccard: overlap of their sets, 0 to 1.
        effects: normalised effect of ablating each set: value, low, high.
        sizes: neurons in each set.
    """
    figure = make_subplots(
        1, 2, subplot_titles=["overlap of the sets (Jaccard)", "normalised effect per neuron"], column_widths=[0.55, 0.45],
        horizontal_spacing=0.06, shared_yaxes=True,
    )  # fmt: skip
    figure.add_trace(
        go.Heatmap(
            z=_without_diagonal(jaccard), x=list(names), y=list(names), colorscale=SEQUENTIAL, zmin=0, zmax=1,
            texttemplate="%{z:.2f}", textfont={"size": 10}, xgap=1, ygap=1, showscale=False,
            hovertemplate="%{y} with %{x}: %{z:.2f}<extra></extra>",
        ),
        row=1, col=1,
    )  # fmt: skip
    value, above, below = bounds([[v / sizes[n] for v in effects[n]] for n in names])
    figure.add_trace(
        go.Scatter(
            x=value, y=list(names), mode="markers", marker={"color": INK, "size": 8}, showlegend=False,
            error_x=error_bars(above, below, color=INK), hovertemplate="%{y}: %{x:.4f} per neuron<extra></extra>",
        ),
        row=1, col=2,
    )  # fmt: skip
    figure.add_vline(x=0, line={"color": MUTED, "dash": "dot"}, row=1, col=2)  # type: ignore[arg-type]
    figure.update_xaxes(tickangle=-60, showgrid=False, row=1, col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return styled(figure, "Scores of the literature on the same prompts", height=240 + 26 * len(names))


# -- check ------------------------------------------------------------------------------------------------
def grid(rates: Rates, metric: str = "selectivity") -> Figure:
    """Heatmaps of one metric over languages and modalities, one panel per condition, on one scale.

    >>> rates = {"no update": {"en/text": {"refusal": [0.9, 0.8, 1.0]}, "sw/text": {"refusal": [0.2, 0.1, 0.4]}}}
    >>> ns.figures.grid(rates, "refusal").data[0].z.ravel().tolist()
    [0.9, 0.2]

    Args:
        rates: by condition, cell ("language/modality") and metric: value, low, high (`Evaluation.rates()` for one condition).
        metric: one of "refusal", "compliance", "attack_success", "over_refusal", "benign_compliance", "selectivity",
            "utility", "incoherent".

    Raises:
        InputError: rates of another form, or an unknown metric.
    """
    _check_rates(rates, "grid(rates, metric)")
    one_of(metric, TITLES, call="grid", name="metric")
    keys = [c.split("/", 1) for c in next(iter(rates.values()))]
    languages, modalities = list(dict.fromkeys(k[0] for k in keys)), list(dict.fromkeys(k[1] for k in keys))
    figure = make_subplots(1, len(rates), subplot_titles=list(rates), horizontal_spacing=0.03, shared_yaxes=True)
    for i, cells in enumerate(rates.values(), 1):
        z = np.full((len(languages), len(modalities)), np.nan)
        for cell, values in cells.items():
            language, modality = cell.split("/", 1)
            z[languages.index(language), modalities.index(modality)] = number(values[metric][0])
        figure.add_trace(
            go.Heatmap(
                z=z, x=modalities, y=languages, coloraxis="coloraxis", texttemplate="%{z:.2f}", textfont={"size": 11},
                xgap=2, ygap=2, hovertemplate="%{y}/%{x}: %{z:.2f}<extra></extra>",
            ),
            row=1, col=i,
        )  # fmt: skip
    signed = metric in SIGNED
    colours = {"colorscale": DIVERGING if signed else SEQUENTIAL, "cmin": -1 if signed else 0, "cmax": 1}
    figure.update_layout(coloraxis={**colours, "colorbar": {"thickness": 12}})
    figure.update_xaxes(showgrid=False, tickangle=-25)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    title = "Selectivity: harmful refused minus benign refused" if signed else TITLES[metric].capitalize()
    return styled(figure, title, height=190 + 30 * len(languages))


def _check_rates(rates: Any, call: str) -> None:
    """Raise unless rates are nested mappings: {condition: {cell: {metric: numbers}}}."""
    hint = "use evaluation.figure(), or pass {name: evaluation.rates()}"
    require(rates, Mapping, call=call, name="rates", hint=hint)
    if not rates:
        raise InputError(f"{call}: rates are empty; {hint}")
    for condition in rates.values():
        require(condition, Mapping, call=call, name="every condition of rates", hint=hint)
        for cell in condition.values():
            require(cell, Mapping, call=call, name="every cell of rates", hint=hint)


def transfer(rates: Rates, trained: Collection[str]) -> Figure:
    """Selectivity of every cell under every condition with its interval; cells that were trained on come last, with a star.

    >>> rates = {"shield": {"en/text": {"selectivity": [0.9, 0.8, 1.0]}, "sw/text": {"selectivity": [0.2, 0.1, 0.4]}}}
    >>> ns.figures.transfer(rates, ["en/text"]).data[0].x
    ('sw/text', 'en/text *')

    Args:
        rates: as in `grid`; every condition has the same cells.
        trained: names of the cells that were trained on.

    Raises:
        InputError: rates of another form.
    """
    _check_rates(rates, "transfer(rates, trained)")
    cells = sorted(next(iter(rates.values())), key=lambda c: c in trained)
    names = [f"{c}{' *' if c in trained else ''}" for c in cells]
    colours = [MUTED, ACCENT, SECOND, THIRD, WARN, INK]
    symbols = ["circle-open", "circle", "x", "diamond-open", "square"]
    figure = go.Figure()
    for i, (name, found) in enumerate(rates.items()):
        value, above, below = bounds([found[c]["selectivity"] for c in cells])
        figure.add_trace(
            go.Scatter(
                x=names, y=value, name=name, mode="markers",
                marker={"size": 9, "color": colours[i % len(colours)], "symbol": symbols[i % len(symbols)]},
                error_y=error_bars(above, below, thickness=0.7, width=0),
                hovertemplate="%{x}: %{y:.2f}<extra>" + name + "</extra>",
            )
        )  # fmt: skip
    figure.update_yaxes(title="selectivity", range=[-1.05, 1.05], zeroline=True, zerolinecolor=INK)
    figure.update_xaxes(tickangle=-60)
    figure = styled(figure, "Selectivity by cell (* trained on; every other cell is zero-shot)", height=480)
    return figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"}, margin={"t": 110, "b": 110})
