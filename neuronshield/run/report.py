"""report.html: one self-contained page that reads like the four questions, with their controls.

The page works offline (plotly.js is inlined), and everything that came from a prompt or a model is
escaped. It is made from results.json alone, so it can be remade at any time.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from ..core.files import write_text
from ..figures import TITLES, grid, heat_panels, proof_figure, style, transfer, without_diagonal
from .folder import read_results

__all__ = ["summary", "write_report"]


BASE, SHIELD = "no update", "shield"


def summary(results: dict[str, Any]) -> str:
    """The answers in a few lines, for a terminal."""
    return "\n".join(f"{name:7} {text}" for name, _, text in _headlines(results))


def _headlines(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(step, tone, sentence) of the steps that have been run."""
    out = []
    if "find" in r:
        f = r["find"]
        where = (
            f"model already refuses in {', '.join(f['refusing_cells'])}"
            if f["refusing_cells"]
            else "model refuses nowhere"
        )
        out.append(
            (
                "find",
                "plain",
                f"{f['n_neurons']} candidate neurons ({f['param_fraction']:.3%} of the parameters); {where}",
            )
        )
    if "prove" in r:
        p = r["prove"]
        word = _word(p).lower()
        kept = f"; {p['n_verified']} of {p['n_neurons']} neurons verified one by one" if p["n_verified"] else ""
        out.append(("prove", "good" if p["passed"] else "bad", f"{word}: {p['reason']}{kept}"))
    if "shield" in r:
        s = r["shield"]
        main = s["conditions"][SHIELD]
        proven = "proven" if s["proven"] else "candidate, NOT proven,"
        out.append(("shield", "plain", f"{s['neurons']} {proven} neurons trained: {main['trained']} numbers, "
                    f"{main['param_fraction']:.3%} of the parameters"))  # fmt: skip
    if "check" in r:
        c = r["check"]
        gain = c["gains_in_selectivity"]
        over = gain["over random masks"]
        verb = "beats" if c["beats_random_mask"] else "does NOT beat"
        cells = "cells it did not train on" if c["compared_on"] == "untrained" else "all cells (none was held out)"
        out.append(("check", "good" if c["beats_random_mask"] else "bad",
                    f"selectivity on {cells}: {_ci(gain['over no update'])} over no update; the shield {verb} "
                    f"masks of random neurons ({_ci(over)})"))  # fmt: skip
    return out


def _ci(values: list[float | None]) -> str:
    return f"{_num(values[0], '+.2f')} [{_num(values[1], '+.2f')}, {_num(values[2], '+.2f')}]"


def _num(value: float | None, spec: str = ".2f") -> str:
    return "n/a" if value is None else format(value, spec)


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _num(value, ".3f")


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a result folder, from its results.json.

    Raises:
        InputError: no results there, or not of this version.
    """
    folder = Path(folder)
    results = read_results(folder)
    return write_text(folder / "report.html", _page(results))


def _page(r: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    sections = [_section_find, _section_prove, _section_shield, _section_check]
    body = "".join(s(r) for s, name in zip(sections, ("find", "prove", "shield", "check"), strict=True) if name in r)
    cards = "".join(
        f'<li class="{tone}"><b>{name}</b><span>{escape(text)}</span></li>' for name, tone, text in _headlines(r)
    )
    model = r["model"]
    about = (
        f"{escape(str(model['model']))} · {model['n_layers']} layers × {model['d_mlp']} neurons · "
        f"{model['n_params'] / 1e6:.1f} M parameters · {r['prompts']['n']} prompts in {len(r['prompts']['cells'])} cells · "
        f"seed {r['seed']}"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>neuronshield: {escape(str(model["model"]))}</title><style>{CSS}</style>
<script>{get_plotlyjs()}</script></head>
<body><main><header><h1>Safety neurons of {escape(str(model["model"]))}</h1><p>{about}</p></header>
<ul class="cards">{cards}</ul>{body}{_footer(r)}</main></body></html>
"""


CSS = """
:root{--ink:#1b2733;--muted:#66727f;--line:#e3e8ed;--accent:#0b6e8a;--bad:#b3364b}
*{box-sizing:border-box}body{margin:0;background:#f4f6f8;color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 60px}h1{font-size:27px;margin:0 0 4px}header p{color:var(--muted);margin:0 0 22px}
h2{font-size:20px;margin:0 0 6px}section{background:#fff;border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:18px 0}
.cards{list-style:none;padding:0;margin:0;display:grid;gap:10px}.cards li{background:#fff;border:1px solid var(--line);border-left:5px solid var(--muted);border-radius:8px;padding:10px 14px;display:flex;gap:14px}
.cards b{flex:0 0 62px;text-transform:uppercase;font-size:12px;letter-spacing:.06em;padding-top:2px;color:var(--muted)}
.cards .good{border-left-color:var(--accent)}.cards .bad{border-left-color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;margin:10px 0;width:100%}th,td{padding:6px 10px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--muted);font-weight:600;white-space:nowrap}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}td.n:last-child{white-space:normal}tr.main td{font-weight:600;background:#eef6f8}
.passed{color:var(--accent);font-weight:600}.failed{color:var(--bad);font-weight:600}.note{color:var(--muted);font-size:13.5px}
.figure{margin:14px -8px 0;overflow-x:auto}details{margin-top:12px}summary{cursor:pointer;color:var(--accent)}code{font-size:12.5px}
"""


def _table(head: list[str], rows: list[list[Any]], main: int | None = None) -> str:
    """An HTML table; every cell is escaped, numbers are aligned."""
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(
            f'<td class="{"n" if j else ""} {v if v in ("passed", "failed") else ""}">{escape(str(v))}</td>'
            for j, v in enumerate(row)
        )
        body += f'<tr class="{"main" if i == main else ""}">{cells}</tr>'
    return f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{escape(h)}</th>" for h in head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figure(figure: go.Figure) -> str:
    html = pio.to_html(
        figure, full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return f'<div class="figure">{html}</div>'


def _matrix(rows: list[list[float | None]]) -> np.ndarray:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)


def _section_find(r: dict[str, Any]) -> str:
    f = r["find"]
    text = (
        f"<p>Neurons were ranked by <b>{escape(f['method'])}</b> in every cell (language × modality) on the "
        f"<i>discover</i> prompts. The candidates are the best {f['n_neurons']} of <b>{escape(f['anchor'])}</b>, "
        f"{f['param_fraction']:.3%} of the parameters. A contrast finds correlates; whether they cause refusals is the next question.</p>"
    )
    if f.get("overlap"):
        o = f["overlap"]
        few = len(o["cells"]) <= 12
        panels = [("overlap (Jaccard)", _matrix(o["jaccard"]), True), ("floor: benign vs benign", _matrix(o["floor"]), True),
                  ("ceiling: split half", _matrix(o["ceiling"]), False)]  # fmt: skip
        figure = heat_panels([(t, without_diagonal(m) if b else m) for t, m, b in panels], o["cells"], few)
        text += _figure(
            style(figure, "Do cells share their neurons?", max(420, 200 + (24 if few else 15) * len(o["cells"])))
        )
        text += (
            '<p class="note">Floor: the same selection on two halves of the benign prompts, what the choice of requests alone '
            "makes two cells share. Ceiling: harmful against benign on two halves of the same cell. Sharing means clearly above "
            "the floor; complete sharing reaches the ceiling.</p>"
        )
    elif f.get("overlap_missing"):
        text += f'<p class="note">No overlap heatmap: {escape(f["overlap_missing"])}</p>'
    cells = list(f["per_layer"])
    figure = go.Figure(
        go.Heatmap(z=[f["per_layer"][c] for c in cells], x=[str(i) for i in range(r["model"]["n_layers"])], y=cells,
                   colorscale=[[0, "#f4f7f9"], [1, "#0a4a63"]], colorbar={"title": "neurons", "thickness": 12}, xgap=1, ygap=1)
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", dtick=1, tickfont={"size": 10})
    figure.update_xaxes(title="layer")
    figure = style(figure, "Where each cell's best neurons lie", max(280, 150 + 16 * len(cells)))
    figure.update_layout(margin={"l": 130})
    return f"<section><h2>Find: which neurons tell harmful from benign?</h2>{text}{_figure(figure)}</section>"


def _section_prove(r: dict[str, Any]) -> str:
    p = r["prove"]
    pairing = "matched twins" if p["paired"] else "a random benign prompt each, as no prompt has a twin"
    kinds = ", ".join(f"{n} {kind}" for kind, n in p["controls"].get("sets", {}).items())
    cells = ", ".join(p["cells"])
    text = (
        f'<p><b class="{"passed" if p["passed"] else "failed"}">{_word(p)}.</b> {escape(_sentence(p["reason"]))}. '
        f"Tested on {p['n_pairs']} harmful prompts ({pairing}) that had no part in choosing the neurons"
        f"{f', in the cells where the model refuses: {escape(cells)}' if cells else ''}. Effects are shares of the "
        f"refusal-margin gap between harmful and benign. Control sets, as many neurons per layer: {kinds or 'none'}.</p>"
    )
    text += _claims_table(p["claims"]) + _figure(proof_figure(p, "claims"))
    for why in p["controls"].get("missing", {}).values():
        text += f'<p class="note">A control is missing or smaller: {escape(why)}.</p>'
    if p["retest"]:
        text += "<h3>The kept members by themselves, on the half of the requests that did not choose them</h3>"
        text += _claims_table(p["retest"])
    if p["cells"]:
        rows = [
            [c, v["n_pairs"], _num(v["gap"]), _ci_short(v["effect"]), _num(v["strongest control"]), _p(v["p"]), _p(v["p holm"]), v["verdict"]]
            for c, v in p["cells"].items()
        ]  # fmt: skip
        text += "<h3>Mean ablation, cell by cell</h3>" + _table(
            ["cell", "pairs", "gap", "effect [95 %]", "strongest control", "p", "p (Holm)", "verdict"], rows
        )
    answers = [[name, _ci_short(v)] for name, v in sorted(p["answers"].items())]
    text += "<h3>Refusals in generated answers</h3>" + _table(["answers", "refused [95 %]"], answers)
    text += _members(p) + _experiments(p)
    return f"<section><h2>Prove: do refusals run through them?</h2>{text}</section>"


def _word(p: dict[str, Any]) -> str:
    if p["passed"]:
        return "Passed"
    return "Not tested" if all(c["verdict"] == "not tested" for c in p["claims"]) else "No"


def _claims_table(claims: list[dict[str, Any]]) -> str:
    rows = []
    for c in claims:
        best = max(((max(v), k) for k, v in c["controls"].items() if v), default=None)
        rows.append([
            c["claim"], _ci_short(c["effect"]), f"{best[0]:.2f} ({best[1]})" if best else "n/a",
            _p(max(c["p"].values(), default=None)), c["verdict"], c["note"],
        ])  # fmt: skip
    return _table(["claim", "effect [95 %]", "strongest control", "p", "verdict", "note"], rows)


def _members(p: dict[str, Any]) -> str:
    if not p["members"]:
        return ""
    how = [m["how"] for m in p["members"]]
    text = (
        f"<p>One by one: of {p['n_neurons']} neurons, {how.count('alone')} lower refusal when ablated alone, "
        f"{how.count('in a group')} only (or more than twice as much) when others are ablated too, {how.count('opposing')} <i>raise</i> it, and {how.count('')} do "
        f"nothing that counts (Benjamini–Hochberg, q ≤ {p['rule']['alpha']:g}, at least {p['rule']['material']:.0%} of the strongest "
        f"of its layer, norms frozen). {p['n_verified']} are kept; {len(p['backups'])} neurons outside the set stand in for it once it is ablated.</p>"
    )
    rows = [
        [f"({m['layer']}, {m['index']})", _ci3(m["alone"]), _ci3(m["last"]), m["how"] or "none"]
        for m in sorted(p["members"], key=lambda m: -(m["alone"][0] or 0))
    ]  # fmt: skip
    table = _table(["neuron (layer, index)", "ablated alone [95 %]", "ablated last [95 %]", "counts"], rows)
    return f"<h3>Members</h3>{text}<details><summary>Every member</summary>{table}</details>"


def _ci3(values: list[float | None]) -> str:
    return f"{_num(values[0], '.3f')} [{_num(values[1], '.3f')}, {_num(values[2], '.3f')}]"


def _span(values: list[float] | None) -> str:
    return "n/a" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def _experiments(p: dict[str, Any]) -> str:
    e = p["experiments"]
    if not e:
        return ""
    text = "<h3>Dose and size</h3>" + "".join(_figure(proof_figure(p, what)) for what in ("dose", "size"))
    m = e["minimal"][0]
    text += (
        f'<p class="note">The strongest {m["size"]} of {m["of"]} members have {m["share"]:.0%} of the whole set\'s effect '
        "(ranked on the same prompts, so a little flattered).</p>"
    )
    if e["groups"]:
        rows = [[g["group"], g["n"], _ci_short(g["without"]), _ci_short(g["lost"])] for g in e["groups"]]
        text += "<h3>Without one group</h3>" + _table(
            ["left out", "neurons", "effect of the others", "effect lost"], rows
        )
    rows = [
        [c["frame"], _ci_short(c["share"]), _span(c["random"]), _ci_short(c["without any"])] for c in e["completeness"]
    ]
    text += "<h3>Completeness: only the set keeps its values</h3>" + _table(
        [
            "all others at their benign mean, in",
            "share of what they lose that the set keeps",
            "random sets",
            "lost without the set too",
        ],
        rows,
    )
    rows = [[b["ablated"], b["n"], _ci_short(b["effect"]), _span(b["random"])] for b in e["backups"]]
    if rows:
        text += "<h3>Backups: ablate, find again, ablate again</h3>" + _table(
            ["ablated", "neurons", "effect [95 %]", "with as many random ones"], rows
        )
    rows = [
        [g["prompts"], g["n"], _ci_short(g["activity"]), _span(g["random"]), _ci_short(g["effect"])]
        for g in e["recognition"]
    ]
    if rows:
        text += "<h3>Recognition or execution?</h3>" + _table(
            ["prompts, all cells", "n", "activity of the set", "of random sets", "effect of ablating the set"], rows
        ) + (
            '<p class="note">Activity: 0 as on answered benign prompts, 1 as on refused harmful ones. Harmful prompts that were answered '
            "tell a set that knows of the harm (near 1) from one that says no (near 0).</p>"
        )  # fmt: skip
    if len({r["target"] for r in e["crossing"]}) > 1:
        text += "<h3>From cell to cell</h3>" + _figure(proof_figure(p, "crossing"))
    return text


def _section_shield(r: dict[str, Any]) -> str:
    s = r["shield"]
    proven = "" if s["proven"] else "<b>These neurons were not proven</b>; the candidates were trained instead. "
    meant = (
        f" Meant for the blind cells <b>{escape(' and '.join(s['taught']))}</b>; the others keep what they had."
        if s["taught"]
        else ""
    )
    rows = [
        [name, c["form"], c["trained"], f"{c['param_fraction']:.3%}", *(_num(x) for x in (c["losses"][:1] or [None])),
         *(_num(x) for x in (c["losses"][-1:] or [None]))]
        for name, c in s["conditions"].items()
    ]  # fmt: skip
    stopped = [f"{name}: {c['stopped']}" for name, c in s["conditions"].items() if c["stopped"]]
    text = (
        f"<p>{proven}Trained on {s['n_prompts']} <i>train</i> prompts of {escape(', '.join(s['train_cells']))}, {s['steps']} steps."
        f"{meant} Controls that learn had the same data, steps and learning rate; benign prompts are taught their target or, "
        f"without one, held to the old answer by KL divergence (weight {s['retention']:g}).</p>"
    )
    if stopped:
        text += f"<p><b>Stopped early</b>: {escape('; '.join(stopped))}. The last good numbers were kept.</p>"
    text += _table(
        ["condition", "what changes", "numbers changed", "of the parameters", "first loss", "last loss"], rows, main=0
    )
    return f"<section><h2>Shield: training those neurons only</h2>{text}</section>"


def _section_check(r: dict[str, Any]) -> str:
    c, trained = r["check"], set(r["shield"]["train_cells"])
    group = c["compared_on"]
    label = "cells it did not train on" if group == "untrained" else "all cells (none was held out)"
    metrics = list(TITLES)
    rows = [[name, *(_ci_short(m[group][k]) for k in metrics)] for name, m in c["means"].items()]
    names = list(c["means"])
    gains = [[k, _ci(v)] for k, v in c["gains_in_selectivity"].items()]
    verdict = (
        "The shield beats masks of random neurons of the same size."
        if c["beats_random_mask"]
        else "The shield does not beat masks of random neurons of the same size: which neurons are trained did not matter here."
    )
    masks = sum(name.startswith("random mask") for name in c["means"])
    text = (
        f"<p><b>{verdict}</b> Means over {label}, 95 % intervals over requests; {masks} random mask{'s' * (masks != 1)}, one "
        "seed of training, so a lead whose interval touches zero is not settled.</p>"
    )
    text += _table(["condition", *(TITLES[m] for m in metrics)], rows, main=names.index(SHIELD))
    text += _table(["gain in selectivity of the shield", "value [95 %]"], gains)
    shown = {name: c["cells"][name] for name in (BASE, SHIELD, c["best_random_mask"], "plain LoRA")}
    text += _figure(grid(shown)) + _figure(transfer(shown, trained))
    text += _cells_table(c["cells"], trained, metrics)
    examples = [[e["cell"], e["label"], e["prompt"], e["before"], e["after"]] for e in c["examples"]]
    text += "<details open><summary>Answers before and after</summary>" + _table(
        ["cell", "label", "prompt", "before", "after"], examples
    ) + "</details>"  # fmt: skip
    text += _under_attack(r)
    return f"<section><h2>Check: did safety transfer, and what did it cost?</h2>{text}</section>"


def _under_attack(r: dict[str, Any]) -> str:
    a = r["attack"]
    if not a["cells"]:
        return "<h3>Under attack</h3><p>Nothing to attack: the shield raised refusal by 0.10 in no cell.</p>"
    metrics = ("refusal", "over_refusal", "selectivity", "attack_success")
    rows = [[name, *(_ci_short(m[k]) for k in metrics)] for name, m in a["means"].items()]
    return (
        f"<h3>Under attack</h3><p>Means over the {len(a['cells'])} cells in which the shield raised refusal by 0.10 or more. "
        f"Pruned: {a['k']} neurons found again on the shielded model are zeroed (random pruned: as many others of the same "
        "layers). Fine-tuned: 40 steps of a LoRA on benign prompts only.</p>"
        + _table(["shield", *(TITLES[m] for m in metrics)], rows)
    )


def _ci_short(values: list[float | None]) -> str:
    return f"{_num(values[0])} [{_num(values[1])}, {_num(values[2])}]"


def _cells_table(cells: dict[str, Any], trained: set[str], metrics: list[str]) -> str:
    rows = [
        [f"{cell}{' *' if cell in trained else ''}", name, *(_ci_short(values[cell][m]) for m in metrics)]
        for cell in cells[BASE] for name, values in cells.items() if name in (BASE, SHIELD)
    ]  # fmt: skip
    table = _table(["cell (* trained)", "condition", *(TITLES[m] for m in metrics)], rows)
    return f"<details><summary>Every cell, with intervals</summary>{table}</details>"


def _footer(r: dict[str, Any]) -> str:
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in r.get("seconds", {}).items())
    made = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    model = r["model"]
    return (
        f'<p class="note">Data {escape(r["prompts"]["data"])} · weights {escape(str(model["fingerprint"]))} '
        f"({escape(str(model['dtype']))}) · {escape(made)} · {escape(seconds)}. Numbers: results.json beside this page.</p>"
    )
