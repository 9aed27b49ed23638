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
from ..figures import grid, layers, overlap_heatmap, transfer
from ..figures.cells import TITLES
from .conditions import BASE, LORA, RANDOM_MASKS, SHIELD, is_random_mask, over
from .folder import read_results
from .page import CSS, drawing, interval, note, num, signed, table
from .proof_section import proof_section

__all__ = ["summary", "write_report"]


OUTCOMES = (
    "An answer refuses, complies, or is incoherent (empty, blank or degenerate), which is neither a refusal nor a success; "
    "incoherent answers are in the denominator of every rate. Answers that could not be graded (a thought cut short, a language "
    "whose refusals are not known) are in no rate. A mean is over the cells that have the rate."
)


def summary(results: dict[str, Any]) -> str:
    """One line per step that has been run, for a terminal.

    Args:
        results: what `results.json` holds.
    """
    return "\n".join(f"{name:7} {text}" for name, _, text in _headlines(results))


def _headlines(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(step, tone, sentence) of the steps that have been run."""
    out = []
    if "find" in r:
        f = r["find"]
        cells = ", ".join(f["refusing_cells"])
        where = f"model already refuses in {cells}" if cells else "model refuses nowhere"
        said = f"{f['n_neurons']} candidate neurons ({f['param_fraction']:.3%} of the parameters); {where}"
        out.append(("find", "plain", said))
    if "prove" in r:
        p = r["prove"]
        n, of = len(p["verified"]["members"]), len(p["neurons"]["members"])
        kept = f"; {n} of {of} neurons verified one by one" if n else ""
        out.append(("prove", "good" if p["passed"] else "bad", f"{p['word']}: {p['reason']}{kept}"))
    if "shield" in r:
        s = r["shield"]
        main = s["conditions"][SHIELD]
        proven = "proven" if s["proven"] else "candidate, NOT proven,"
        out.append(("shield", "plain", f"{s['neurons']} {proven} neurons trained: {main['trained']} numbers, "
                    f"{main['param_fraction']:.3%} of the parameters"))  # fmt: skip
    if "check" in r:
        c = r["check"]
        gain = c["gains_in_selectivity"]
        masks = gain[over(RANDOM_MASKS)]
        verb = "beats" if c["beats_random_mask"] else "cannot be compared with" if masks[0] is None else "does NOT beat"
        cells = "cells it did not train on" if c["compared_on"] == "untrained" else "all cells (none was held out)"
        out.append(("check", "good" if c["beats_random_mask"] else "bad",
                    f"selectivity on {cells}: {signed(gain[over(BASE)])} over {BASE}; the shield {verb} "
                    f"masks of random neurons ({signed(masks)})"))  # fmt: skip
    return out


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Path of the `report.html` that this writes into a result folder, from its results.json.

    Args:
        folder: holds results.json.

    Raises:
        InputError: no results there, or not of this version.
    """
    folder = Path(folder)
    results = read_results(folder)
    return write_text(folder / "report.html", _page(results))


def _page(r: dict[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    parts = {
        "find": _section_find,
        "prove": lambda r: proof_section(r["prove"]),
        "shield": _section_shield,
        "check": _section_check,
    }
    body = "".join(part(r) for name, part in parts.items() if name in r)
    cards = "".join(
        f'<li class="{tone}"><b>{name}</b><span>{escape(text)}</span></li>' for name, tone, text in _headlines(r)
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
<ul class="cards">{cards}</ul>{body}{_footer(r)}</main></body></html>
"""


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
        f"<p>{proven}Trained on {escape(str(s['n_prompts']))} <i>train</i> prompts of {escape(', '.join(s['train_cells']))}, "
        f"{escape(str(s['steps']))} steps."
        f"{meant} Controls that learn had the same data, steps and learning rate; benign prompts are taught their target or, "
        f"without one, held to the old answer by KL divergence (weight {s['retention']:g}).</p>"
    )
    if stopped:
        text += f"<p><b>Stopped early</b>: {escape('; '.join(stopped))}. The last finite weights were kept.</p>"
    text += table(
        ["condition", "what changes", "numbers changed", "of the parameters", "first loss", "last loss"], rows, main=0
    )
    return f"<section><h2>Shield: training those neurons only</h2>{text}</section>"


def _section_check(r: dict[str, Any]) -> str:
    c, trained = r["check"], set(r["shield"]["train_cells"])
    group = c["compared_on"]
    label = (
        "cells it did not train on"
        if group == "untrained"
        else "all cells (none was held out: this run does not ask whether safety transfers)"
    )
    metrics = list(TITLES)
    n = len([cell for cell in c["cells"][BASE] if group == "all" or cell not in trained])
    rows = [[name, *(_mean(m[group], k, of=n) for k in metrics)] for name, m in c["means"].items()]
    names = list(c["means"])
    gains = [[k, signed(v)] for k, v in c["gains_in_selectivity"].items()]
    verdict = (
        "The shield beats masks of random neurons of the same size."
        if c["beats_random_mask"]
        else "The shield and masks of random neurons cannot be compared: no cell has graded answers to prompts of both labels."
        if c["gains_in_selectivity"][over(RANDOM_MASKS)][0] is None
        else "The shield does not beat masks of random neurons of the same size: there is no evidence here that the choice of neurons matters."
    )
    masks = sum(map(is_random_mask, c["means"]))
    text = (
        f"<p><b>{verdict}</b> Means over {label}, 95 % intervals over requests; {masks} random mask{'s' * (masks != 1)}, one "
        "seed of training, so a difference whose interval includes zero is not established.</p>"
    )
    text += table(["condition", *(TITLES[m] for m in metrics)], rows, main=names.index(SHIELD))
    text += note(OUTCOMES) + table(["gain in selectivity of the shield", "value [95 %]"], gains)
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


def _under_attack(r: dict[str, Any]) -> str:
    a = r["attack"]
    if not a["cells"]:
        return "<h3>Under attack</h3><p>Nothing to attack: the shield raised refusal by 0.10 in no cell.</p>"
    metrics = ("refusal", "over_refusal", "selectivity", "attack_success", "incoherent")
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
