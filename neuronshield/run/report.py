"""report.html: one self-contained page with the four steps' results beside their controls.

The page works offline (plotly.js is inlined), and everything that came from a prompt or a model is
escaped. It is made from results.json alone, so it can be remade at any time.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.files import write_text
from ..figures import grid, layers, overlap_heatmap, training_curves, transfer
from ..figures.cells import TITLES
from .conditions import BASE, LORA, RANDOM_MASKS, SHIELD, over
from .folder import read_results
from .headlines import headlines, summary
from .page import CSS, drawing, interval, note, num, signed, table
from .proof_section import proof_section
from .sections import check_results

__all__ = ["summary", "write_report"]


OUTCOMES = (
    "An answer refuses, complies, or is incoherent (empty, blank or degenerate), which is neither a refusal nor a success; "
    "incoherent answers are in the denominator of every rate. Answers that could not be graded (a thought cut short, a language "
    "whose refusals are not known) are in no rate. A mean is over the cells that have the rate."
)


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Path of the `report.html` that this writes into a result folder, from its results.json.

    Args:
        folder: holds results.json.

    Raises:
        InputError: no results there, damaged ones, of another version, or with fields missing or of another type.
    """
    folder = Path(folder)
    results = read_results(folder)
    return write_text(folder / "report.html", _page(results))


def _page(r: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    check_results(r)
    parts = {
        "find": _section_find,
        "prove": lambda r: proof_section(r["prove"], r.get("seconds", {}).get("prove")),
        "shield": _section_shield,
        "check": _section_check,
    }
    body = "".join(part(r) for name, part in parts.items() if name in r)
    cards = "".join(
        f'<li class="{tone}"><b>{name}</b><span>{escape(text)}</span></li>' for name, tone, text in headlines(r)
    )
    model = r["model"]
    about = (
        f"{model['model']} · {model['n_layers']} layers × {model['d_mlp']} neurons · "
        f"{model['n_params'] / 1e6:.1f} M parameters · {r['prompts']['n']} prompts in {len(r['prompts']['cells'])} cells · "
        f"seed {r['seed']}"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>neuronshield: {escape(str(model["model"]))}</title><style>{CSS}</style>
<script>{get_plotlyjs()}</script></head>
<body><main><header><h1>Safety neurons of {escape(str(model["model"]))}</h1><p>{escape(about)}</p></header>
{_stale(r)}<ul class="cards">{cards}</ul>{body}{_footer(r)}</main></body></html>
"""


def _stale(r: dict[str, Any]) -> str:
    """A warning of steps whose results are of other inputs than the results of the steps before them."""
    if not (steps := r.get("stale")):
        return ""
    names = " and ".join(steps)
    return (
        f'<p class="stale"><b>Stale: {escape(names)}.</b> A step before was run again since. What is shown of {escape(names)} was '
        "computed from earlier results; run these steps again.</p>"
    )


def _section_find(r: dict[str, Any]) -> str:
    f = r["find"]
    text = (
        f"<p>Neurons were ranked by <b>{escape(f['method'])}</b> in every cell (language × modality) on the "
        f"<i>discover</i> prompts. The candidates are the best {escape(str(f['n_neurons']))} of <b>{escape(f['anchor'])}</b>, "
        f"{f['param_fraction']:.3%} of the parameters. A contrast finds correlates; whether they cause refusals is the next question.</p>"
    )
    if f.get("overlap"):
        text += drawing(overlap_heatmap(f["overlap"])) + note(
            "Share of neurons in common: 0 for unrelated neurons, 1 for the same, with the 95 % interval over requests on hover. It is "
            "the overlap minus what noise makes two cells share, relative to what two samples of the same cell share; both cells are "
            "measured on different requests. n/a: too few requests to tell."
        )
    counts = np.array(list(f["per_layer"].values()), dtype=int)
    figure = layers(counts, list(f["per_layer"]), method=f["method"])
    return f"<section><h2>Find: which neurons respond differently to harmful and benign requests?</h2>{text}{drawing(figure)}</section>"


def _matrix(rows: list[list[float | None]]) -> Float[np.ndarray, "cell cell"]:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=float)


def _section_shield(r: dict[str, Any]) -> str:
    s = r["shield"]
    proven = "" if s["proven"] else "<b>These neurons were not proven</b>; the candidates were trained instead. "
    meant = (
        f" Meant for the blind cells <b>{escape(' and '.join(s['taught']))}</b>; the other cells are to stay as they were."
        if s["taught"]
        else ""
    )
    rows = [
        [name, c["form"], c["trained"], f"{c['param_fraction']:.3%}", *(num(x) for x in (c["losses"][:1] or [None])),
         *(num(x) for x in (c["losses"][-1:] or [None]))]
        for name, c in s["conditions"].items()
    ]  # fmt: skip
    stopped = [f"{name}: {c['stopped']}" for name, c in s["conditions"].items() if c["stopped"]]
    text = (
        f"<p>{proven}Trained on <i>train</i> prompts of {escape(', '.join(s['train_cells']))}, {escape(str(s['steps']))} steps: "
        f"{escape(_taught(s))}.{meant} Controls that learn had the same data, steps and learning rate.</p>"
    )
    if stopped:
        text += f"<p><b>Stopped early</b>: {escape('; '.join(stopped))}. The last finite weights were kept.</p>"
    text += table(
        ["condition", "what changes", "numbers that can change", "of the parameters", "first loss", "last loss"],
        rows,
        main=0,
    )
    return f"<section><h2>Shield: training those neurons only</h2>{text}</section>"


def _taught(s: dict[str, Any]) -> str:
    """What the steps did with the training prompts."""
    n = s["prompts"]
    said = [f"{n['refusals']} harmful prompts were taught a refusal"]
    if n["targets"]:
        said.append(f"{n['targets']} benign ones were taught their target")
    if n["preferred"]:
        said.append(f"the answers of {n['preferred']} benign ones were preferred to a refusal")
    if n["held"]:
        said.append(
            f"{n['held']} benign ones were held to the untouched model's answer by KL divergence (weight {s['retention']:g})"
        )
    if n["texts"]:
        said.append(f"{n['texts']} texts were held by KL divergence (weight {s['retention']:g})")
    if not n["held"] and not n["texts"]:
        said.append("no prompt was held by KL divergence")
    return "; ".join(said)


def _section_check(r: dict[str, Any]) -> str:
    c, trained = r["check"], set(r["shield"]["train_cells"])
    group = c["compared_on"]
    metrics = list(TITLES)
    n = len([cell for cell in c["cells"][BASE] if group == "all" or cell not in trained])
    rows = [[name, *(_mean(m[group], k, of=n) for k in metrics)] for name, m in c["means"].items()]
    names = list(c["means"])
    gains = [[k, signed(v)] for k, v in c["gains_in_selectivity"].items()]
    text = _matched(c, _where(c)) + "<h3>At the end of training</h3>"
    text += table(["condition", *(TITLES[m] for m in metrics)], rows, main=names.index(SHIELD))
    text += note(OUTCOMES) + table(["gain in selectivity of the shield", "value [95 %]"], gains)
    text += note(
        "A condition that refuses more differs in selectivity too; the comparison above does not depend on it."
    )
    shown = {name: c["cells"][name] for name in (BASE, SHIELD, c["best_random_mask"], LORA)}
    text += drawing(grid(shown))
    if group == "untrained":
        text += drawing(transfer(shown, trained))
    text += _cells(c["cells"], trained, metrics)
    examples = [[e["cell"], e["label"], e["prompt"], e["before"], e["after"]] for e in c["examples"]]
    text += "<details open><summary>Answers before and after</summary>" + table(
        ["cell", "label", "prompt", "before", "after"], examples
    ) + "</details>"  # fmt: skip
    text += _under_attack(r)
    return f"<section><h2>Check: change in safety, over-refusal and utility</h2>{text}</section>"


def _where(c: dict[str, Any]) -> str:
    if c["compared_on"] == "untrained":
        return "cells it did not train on"
    return "all cells (none was held out: this run does not ask whether safety transfers)"


def _matched(c: dict[str, Any], where: str) -> str:
    """The shield beside its controls at matched benign refusal: verdict, table, curves, and every cell."""
    masks = c["matched"][over(RANDOM_MASKS)]
    verdict = (
        "At the same benign refusal the shield refuses more harmful prompts than masks of random neurons of the same size."
        if c["beats_random_mask"]
        else "The shield and masks of random neurons cannot be compared: no cell has graded answers to prompts of both labels."
        if masks["difference"][0] is None
        else "At the same benign refusal the shield does not refuse more harmful prompts than masks of random neurons of the same size: "
        "there is no evidence here that the choice of neurons matters."
    )
    text = (
        f"<p><b>{verdict}</b> Means over {where}. Each condition was evaluated after several steps of its training; harmful refusal is "
        "read off these curves where both refuse the same share of benign prompts, that of the finished shield. Intervals are over "
        "requests, and over masks where there are two or more; one seed of training.</p>"
    )
    text += table(MATCHED, [_matched_row(k, v) for k, v in c["matched"].items()])
    short = [
        f"{v['n'] - v['reached']} of {v['n']} curves ({k})" for k, v in c["matched"].items() if v["reached"] < v["n"]
    ]
    if short and masks["difference"][0] is not None:
        text += note(
            f"Never refuse as many benign prompts as the finished shield: {', '.join(short)}. There both are read at the largest benign "
            "refusal that the other curve reaches."
        )
    text += drawing(training_curves(c["curves"], SHIELD, level=c["curves"][SHIELD][-1]["over_refusal"][0]))
    rows = [[cell, *_matched_row(k, v)] for cell, found in c["matched_cells"].items() for k, v in found.items()]
    every = table(["cell", *MATCHED], rows)
    return text + f"<details><summary>Matched benign refusal, cell by cell</summary>{every}</details>"


MATCHED = (
    "shield", "benign refused, both", "harmful refused, shield", "harmful refused, other", "difference [95 %]", "interval over",
    "curves that reach it",
)  # fmt: skip


def _matched_row(name: str, m: dict[str, Any]) -> list[str]:
    return [
        name, num(m["benign"]), num(m["harmful"]), num(m["others"]), signed(m["difference"]), m["over"], f"{m['reached']} of {m['n']}",
    ]  # fmt: skip


def _under_attack(r: dict[str, Any]) -> str:
    a = r["attack"]
    if not a["cells"]:
        return "<h3>Under attack</h3><p>Nothing to attack: the shield raised refusal by 0.10 in no cell.</p>"
    metrics = (
        "refusal",
        "compliance",
        "attack_success",
        "over_refusal",
        "benign_compliance",
        "selectivity",
        "incoherent",
    )
    rows = [[name, *(_mean(m, k, of=len(a["cells"])) for k in metrics)] for name, m in a["means"].items()]
    return (
        f"<h3>Under attack</h3><p>Means over the {len(a['cells'])} cells in which the shield raised refusal by 0.10 or more. "
        f"Pruned: {a['k']} neurons found again on the shielded model are zeroed (random pruned: as many others of the same "
        "layers). Fine-tuned: 40 steps of a LoRA on benign prompts only.</p>"
        + table(["shield", *(TITLES[m] for m in metrics)], rows)
    )


def _mean(means: dict[str, Any], metric: str, *, of: int) -> str:
    """A mean over cells, and over how many of them where some have no such rate."""
    n = means["n_cells"][metric]
    return interval(means[metric]) + (f" ({n} of {of} cells)" if n < of else "")


def _cells(cells: dict[str, Any], trained: set[str], metrics: list[str]) -> str:
    rows = [
        [f"{cell}{' *' if cell in trained else ''}", name, *(interval(values[cell][m]) for m in metrics),
         values[cell]["n_unknown"]]
        for cell in cells[BASE] for name, values in cells.items() if name in (BASE, SHIELD)
    ]  # fmt: skip
    every = table(["cell (* trained)", "condition", *(TITLES[m] for m in metrics), "unknown answers"], rows)
    return f"<details><summary>Every cell, with intervals</summary>{every}</details>"


def _footer(r: dict[str, Any]) -> str:
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in r.get("seconds", {}).items())
    made = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
    model = r["model"]
    return (
        f'<p class="note">Data {escape(r["prompts"]["data"])} · weights {escape(str(model["fingerprint"]))} '
        f"({escape(str(model['dtype']))}) · {escape(made)} · {escape(seconds)}. Numbers: results.json beside this page.</p>"
    )
