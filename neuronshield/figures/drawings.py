"""The figures of a run as static SVG, from the same plain tables as the plotly figures. The report shows these."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .cells import TITLES, Rates
from .charts import Chart, Curve, Estimate, colour_key, curve_chart, finite, forest_chart, heatmap_chart, side_by_side
from .curves import Curves
from .overlaps import Table, panels_of, sorted_shares
from .svg import Drawing, Value

__all__ = [
    "draw_claims", "draw_cross_cell", "draw_curves", "draw_dose_response", "draw_layers", "draw_losses", "draw_overlap", "draw_rates",
    "draw_size", "draw_transfer",
]  # fmt: skip


def _drawing(chart: Chart, title: str, said: str, *, head: Sequence[str], rows: Sequence[Sequence[Value]]) -> Drawing:
    kept = tuple(tuple(None if isinstance(v, float) and not finite(v) else v for v in row) for row in rows)
    return Drawing(title, said, chart.width, height=chart.height, marks=chart.marks, head=tuple(head), rows=kept)


def _stacked(*charts: Chart, gap: int = 16) -> Chart:
    """Charts from top to bottom."""
    return side_by_side(charts, gap=gap, most=1)


# -- find -----------------------------------------------------------------------------------------------------
def draw_overlap(table: Table) -> Drawing:
    """Share of neurons in common, language x language and modality x modality.

    >>> pair = {name: [[1.0, 0.5], [0.5, 1.0]] for name in ("jaccard", "shared", "shared_low", "shared_high")}
    >>> draw_overlap({"cells": ["en", "sw"], "method": "sas", **pair}).rows[0]
    ('cell', 'en', 'sw', 0.5, 0.5, 0.5)

    Args:
        table: as `overlap_heatmap` takes it.
    """
    charts, rows = [], []
    for axis, one in panels_of(table).items():
        names, shared, said = sorted_shares(one)
        values = [[float(v) for v in row] for row in shared]
        charts.append(heatmap_chart(values, rows=names, columns=names, hover=said, title=f"{axis} × {axis}"))
        places = [list(map(str, one["cells"])).index(name) for name in names]
        low, high = (one.get(name) for name in ("shared_low", "shared_high"))
        for i, a in enumerate(names):
            for j in range(i + 1, len(names)):
                ends = [m[places[i]][places[j]] if m else None for m in (low, high)]
                rows.append((axis, a, names[j], values[i][j], *ends))
    chart = _stacked(colour_key((0, 1), ("unrelated", "the same")), side_by_side(charts))
    said_of = (
        f"A heatmap of {' and of '.join(f'{axis} by {axis}' for axis in panels_of(table))}; the table has the numbers."
    )
    head = ("axis", "a", "b", "share in common", "low", "high")
    return _drawing(chart, f"Share of neurons in common ({table['method']})", said_of, head=head, rows=rows)


def draw_layers(per_layer: Mapping[str, Sequence[int]], *, method: str) -> Drawing:
    """How many of each cell's best neurons every layer has.

    >>> draw_layers({"en/text": [3, 0]}, method="sas").rows
    (('en/text', 0, 3), ('en/text', 1, 0))

    Args:
        per_layer: by cell the number of neurons in each layer.
        method: the score, for the title.
    """
    cells = list(per_layer)
    n = max((len(v) for v in per_layer.values()), default=0)
    most = max([1, *(x for v in per_layer.values() for x in v)])
    chart = heatmap_chart(
        [[float(x) for x in per_layer[c]] for c in cells], rows=cells, columns=[str(i) for i in range(n)], domain=(0, most),
        spec=".0f", title="layer", cell=(34 if n <= 20 else 24, 22),
    )  # fmt: skip
    rows = [(cell, i, x) for cell in cells for i, x in enumerate(per_layer[cell])]
    said = f"A heatmap of {len(cells)} cells by {n} layers."
    title = f"Layers of each cell's best neurons ({method})"
    return _drawing(chart, title, said, head=("cell", "layer", "neurons"), rows=rows)


# -- prove ----------------------------------------------------------------------------------------------------
def draw_claims(claims: Sequence[Mapping[str, Any]], *, measure: str) -> Drawing:
    """Each claim's effect with its interval, and every control set below it.

    >>> claim = {"name": "utility", "effect": [0.1, 0.0, 0.2], "verdict": "passed", "controls": {"random": [0.05]}}
    >>> draw_claims([claim], measure="answers").rows
    (('the set', 'value', 0.1), ('the set', 'low', 0.0), ('the set', 'high', 0.2), ('random', 1, 0.05))

    Args:
        claims: of a proof, as `Proof.to_dict` has them.
        measure: "margin" or "answers": what the claims are about.
    """
    rows = [Estimate(c["name"], c["verdict"], {"the set": c["effect"]}, controls=c["controls"]) for c in claims]
    axis = (
        "normalised effect (1 is the clean logit difference)" if measure == "margin" else "change of a share of answers"
    )
    said = "; ".join(f"{c['name']}: {_said(c['effect'])}, {c['verdict']}" for c in claims)
    parts: list[tuple[str, Value, list[float | None]]] = [
        ("the set", name, [c["effect"][i] for c in claims]) for i, name in enumerate(("value", "low", "high"))
    ]
    for kind in dict.fromkeys(kind for c in claims for kind in c["controls"]):
        found = [c["controls"].get(kind, []) for c in claims]
        draws = range(max(map(len, found)))
        parts += [(kind, i + 1, [v[i] if i < len(v) else None for v in found]) for i in draws]
    table = [(kind, what, *(_short(v) for v in values)) for kind, what, values in parts]
    about = "the refusal margin" if measure == "margin" else "answers"
    head = ("set", "number", *(c["name"] for c in claims))
    chart = forest_chart(rows, axis=axis)
    return _drawing(chart, f"Claims about {about}, beside every control set", said, head=head, rows=table)


def _short(value: float | None) -> float | None:
    """Five digits, of which there are thousands of numbers."""
    return None if value is None or not finite(value) else float(f"{value:.5g}")


def _said(values: Sequence[float | None]) -> str:
    value, low, high = ("n/a" if v is None else f"{v:.2f}" for v in values)
    return f"{value} [{low}, {high}]"


def _random(rows: Sequence[Mapping[str, Any]], x: str, name: str) -> list[Curve]:
    """The range of random sets, where there are any."""
    beside = [row for row in rows if row["random"]]
    return (
        [Curve(name, [r[x] for r in beside], [r["random"] for r in beside], series=5, ranges="band")] if beside else []
    )


def draw_dose_response(points: Sequence[Mapping[str, Any]]) -> Drawing:
    """Change of the refusal margin when the set's values are multiplied by alpha.

    >>> point = {"alpha": 0.0, "harmful": [-0.5, -0.6, -0.4], "benign": [0.0, -0.1, 0.1], "random": None}
    >>> draw_dose_response([point]).rows[0]
    (0.0, 'harmful', -0.5, -0.6, -0.4)

    Args:
        points: the experiment, as `Proof.to_dict` has it.
    """
    x = [p["alpha"] for p in points]
    curves = [
        Curve("the set, harmful prompts", x, [p["harmful"] for p in points], series=0, ranges="bars"),
        Curve("the set, matched benign prompts", x, [p["benign"] for p in points], series=1, ranges="bars"),
        *_random(points, "alpha", "random sets, harmful prompts (range)"),
    ]
    titles = (
        "alpha: factor on the set's values (0 ablates, 1 is the clean model)",
        "normalised change of the refusal margin",
    )
    rows = [(p["alpha"], kind, *p[kind]) for p in points for kind in ("harmful", "benign", "random") if p[kind]]
    said = "Harmful prompts: " + "; ".join(f"alpha {p['alpha']:g}: {_said(p['harmful'])}" for p in points)
    chart = curve_chart(curves, titles=titles)
    return _drawing(chart, "Dose-response curve", said, head=("alpha", "prompts", "change", "low", "high"), rows=rows)


def draw_size(points: Sequence[Mapping[str, Any]]) -> Drawing:
    """Normalised effect of ablating the strongest members only, beside random sets of as many.

    >>> draw_size([{"size": 1, "effect": [0.5, 0.4, 0.6], "random": None}]).rows
    ((1, 'strongest', 0.5, 0.4, 0.6),)

    Args:
        points: the experiment, as `Proof.to_dict` has it.
    """
    sizes = [p["size"] for p in points]
    curves = [
        Curve("the strongest members", sizes, [p["effect"] for p in points], series=0, ranges="bars"),
        *_random(points, "size", "random sets of the same size (range)"),
    ]
    titles = ("members ablated, the strongest first", "normalised effect")
    rows = [(p["size"], name, *p[key]) for p in points for key, name in (("effect", "strongest"), ("random", "random")) if p[key]]  # fmt: skip
    said = "; ".join(f"{p['size']} members: {_said(p['effect'])}" for p in points)
    chart = curve_chart(curves, titles=titles, places=sizes)
    return _drawing(
        chart, "Effect by size of the set", said, head=("members", "set", "effect", "low", "high"), rows=rows
    )


def draw_cross_cell(found: Sequence[Mapping[str, Any]]) -> Drawing:
    """Effect of writing harmful values of one cell into benign prompts of another, beside random sets.

    >>> row = {"source": "en/text", "target": "sw/text", "effect": [0.3, 0.2, 0.4], "random": [0.0, -0.1, 0.1]}
    >>> draw_cross_cell([row]).rows
    (('en/text', 'sw/text', 0.3, 0.2, 0.4, 0.0),)

    Args:
        found: the experiment, as `Proof.to_dict` has it.
    """
    sources, targets = (list(dict.fromkeys(r[key] for r in found)) for key in ("source", "target"))
    at = {(r["source"], r["target"]): r for r in found}
    charts = []
    for title, key in (("the set", "effect"), ("random sets (mean)", "random")):
        values = [[(at[s, t][key] or [None])[0] if (s, t) in at else None for s in sources] for t in targets]
        charts.append(heatmap_chart(values, rows=targets, columns=sources, domain=(-1, 1), title=title, cell=(42, 24)))
    chart = _stacked(colour_key((-1, 1), ("", "normalised effect")), side_by_side(charts))
    rows = [(r["source"], r["target"], *r["effect"], r["random"][0] if r["random"] else None) for r in found]
    said = "A heatmap of target cells (rows) by source cells (columns)."
    head = ("source", "target", "effect", "low", "high", "random sets, mean")
    return _drawing(chart, "Cross-cell patching: harmful values into benign prompts", said, head=head, rows=rows)


# -- shield and check -----------------------------------------------------------------------------------------
def draw_losses(losses: Mapping[str, Sequence[float | None]], main: str) -> Drawing:
    """The loss of every trained condition by step.

    >>> draw_losses({"shield": [2.0, 1.0]}, "shield").rows
    (('shield', 1, 2.0), ('shield', 2, 1.0))

    Args:
        losses: of every step, by condition; conditions without any are left out.
        main: the condition that is emphasised.
    """
    trained = {name: found for name, found in losses.items() if found}
    order = _main_first(trained, main)
    curves = [
        Curve(name, list(range(1, len(trained[name]) + 1)), [(v, None, None) for v in trained[name]], series=i)
        for i, name in enumerate(order)
    ]
    rows = [(name, i, v) for name in order for i, v in enumerate(trained[name], 1)]
    said = "; ".join(f"{name}: {_said([trained[name][0], None, trained[name][-1]])}" for name in order)
    chart = curve_chart(curves, titles=("step", "loss"), size=(620, 320))
    return _drawing(
        chart, "Training loss", f"First and last loss. {said}", head=("condition", "step", "loss"), rows=rows
    )


def _main_first(names: Collection[str], main: str) -> list[str]:
    return [*(n for n in names if n == main), *(n for n in names if n != main)]


def draw_curves(curves: Curves, main: str, *, level: float | None = None) -> Drawing:
    """Harmful refused against benign refused after more and more training steps, one line a condition.

    >>> point = {"steps": 0, "refusal": [0.2, 0.1, 0.3], "over_refusal": [0.1, 0.0, 0.2]}
    >>> draw_curves({"shield": [point]}, "shield").rows
    (('shield', 0, 0.1, 0.2, 0.1, 0.3),)

    Args:
        curves: as `training_curves` takes them.
        main: the condition that is emphasised; its intervals are drawn.
        level: benign refusal at which conditions are compared.
    """
    order = _main_first(curves, main)
    drawn = [
        Curve(
            name, [p["over_refusal"][0] or 0 for p in curves[name]], [p["refusal"] for p in curves[name]], series=i,
            ranges="bars" if name == main else "",
            hover=[f"{name}, {p['steps']} steps: benign {p['over_refusal'][0] or 0:.2f}, harmful {p['refusal'][0] or 0:.2f}" for p in curves[name]],
        )
        for i, name in enumerate(order)
    ]  # fmt: skip
    rows = [(name, p["steps"], p["over_refusal"][0], *p["refusal"]) for name in order for p in curves[name]]
    said = "Last step: " + "; ".join(
        f"{n}: benign refused {_said(curves[n][-1]['over_refusal'])}, harmful refused {_said(curves[n][-1]['refusal'])}"
        for n in order
    )
    head = ("condition", "steps", "benign refused", "harmful refused", "low", "high")
    chart = curve_chart(
        drawn, titles=("share of benign prompts refused", "share of harmful prompts refused"), level=level
    )
    return _drawing(
        chart, "Refusal over training, from the untouched model to the last step", said, head=head, rows=rows
    )


def draw_rates(rates: Rates, metric: str = "selectivity") -> Drawing:
    """Heatmaps of one metric over languages and modalities, one panel a condition, on one scale.

    >>> draw_rates({"no update": {"en/text": {"refusal": [0.9, 0.8, 1.0]}}}, "refusal").rows
    (('no update', 'en/text', 0.9, 0.8, 1.0),)

    Args:
        rates: as `grid` takes them.
        metric: one of `TITLES`.
    """
    keys = [c.split("/", 1) for c in next(iter(rates.values()))]
    languages, modalities = (list(dict.fromkeys(k[i] for k in keys)) for i in (0, 1))
    domain = (-1.0, 1.0) if metric == "selectivity" else (0.0, 1.0)
    charts = []
    for name, cells in rates.items():
        found = {cell: values[metric] for cell, values in cells.items()}
        values = [[found.get(f"{a}/{b}", [None])[0] for b in modalities] for a in languages]
        hover = [
            [f"{name}, {a}/{b}: {_said(found.get(f'{a}/{b}', [None] * 3))}" for b in modalities] for a in languages
        ]
        charts.append(
            heatmap_chart(
                values, rows=languages, columns=modalities, domain=domain, hover=hover, title=name, cell=(36, 24)
            )
        )
    rows = [(name, cell, *values[metric]) for name, cells in rates.items() for cell, values in cells.items()]
    title = (
        "Selectivity: harmful refused minus benign refused" if metric == "selectivity" else TITLES[metric].capitalize()
    )
    said = f"Heatmaps of {len(languages)} languages by {len(modalities)} modalities: {', '.join(rates)}."
    chart = _stacked(colour_key(domain, ("", "")), side_by_side(charts, gap=16))
    return _drawing(chart, title, said, head=("condition", "cell", metric, "low", "high"), rows=rows)


def draw_transfer(rates: Rates, trained: Collection[str]) -> Drawing:
    """Selectivity of every cell under every condition with its interval; cells that were trained on come last, with a star.

    >>> rates = {"shield": {"en/text": {"selectivity": [0.9, 0.8, 1.0]}, "sw/text": {"selectivity": [0.2, 0.1, 0.4]}}}
    >>> [row[0] for row in draw_transfer(rates, ["en/text"]).rows]
    ['sw/text', 'en/text *']

    Args:
        rates: as `transfer` takes them.
        trained: names of the cells that were trained on.
    """
    cells = sorted(next(iter(rates.values())), key=lambda c: c in trained)
    names = {c: f"{c}{' *' if c in trained else ''}" for c in cells}
    estimates = [Estimate(names[c], "", {k: found[c]["selectivity"] for k, found in rates.items()}) for c in cells]
    rows = [(names[c], k, *found[c]["selectivity"]) for c in cells for k, found in rates.items()]
    title = "Selectivity by cell (* trained on; every other cell is zero-shot)"
    said = f"Estimates with intervals for {len(cells)} cells under {len(rates)} conditions; the table has the numbers."
    chart = forest_chart(estimates, axis="selectivity")
    return _drawing(chart, title, said, head=("cell", "condition", "selectivity", "low", "high"), rows=rows)
