"""report.html: one page with the four steps' results beside their controls, which works offline and in print.

The page loads nothing: figures are static SVG, styles and a short script are inside. Everything that came from a prompt, a model
or a file is escaped. It is made from results.json, and from answers.parquet and prompts.parquet beside it where they exist, so
it can be remade at any time.
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..figures.drawings import draw_layers, draw_overlap
from .answer_section import answer_section
from .check_section import check_section, shield_section
from .folder import read_results
from .glossary import glossary
from .headlines import STEPS, Card, cards, summary
from .page import asset, capital, figure, folded, styles, term
from .proof_section import proof_section
from .samples import picture_uris, prompt_rows, requests_by_split, sample_answers
from .sections import FindSection, Sections, sections_of
from .transfer import transfer, transfer_section
from .view_files import report_part

__all__ = ["summary", "write_report"]


#: What the tone of a card is called.
TONES = {"good": "shown", "bad": "not shown", "open": "undecided", "plain": "done", "none": "not run"}


def write_report(folder: str | os.PathLike[str]) -> Path:
    """Path of the `report.html` that this writes into a result folder, from its results.json.

    Args:
        folder: holds results.json, and answers.parquet and prompts.parquet where step check has been run.

    Raises:
        InputError: no results there, damaged ones, of another version, or with fields missing or of another type.
    """
    folder = Path(folder)
    results = read_results(folder)
    return write_text(folder / "report.html", _page(folder, results))


def _page(folder: Path, results: dict[str, Any]) -> str:
    found = sections_of(results)
    rows = prompt_rows(folder)
    told = cards(found, requests_by_split(rows))
    sentences = {
        card.step: card.sentence for card in told if card.step != "prove"
    }  # its section begins with the reason
    parts = _parts(folder, found, rows)
    sections = "".join(
        f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>'
        f"{_lead(sentences.get(key, ''))}{html}</section>"
        for key, title, html in parts
    )
    contents = "".join(f'<li><a href="#{key}">{escape(title.split(":")[0])}</a></li>' for key, title, _ in parts)
    model = found.model
    name = escape(model.model)
    about = (
        f"{model.model} · {model.n_layers} layers × {model.d_mlp} neurons · {model.n_params / 1e6:.1f} M parameters · "
        f"{found.prompts.n} prompts in {len(found.prompts.cells)} cells · seed {found.seed}"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>neuronshield: {name}</title>{styles()}</head>
<body><div class="layout"><nav aria-label="Contents"><ul><li><a href="#top">Summary</a></li>{contents}</ul></nav>
<main id="top"><header><h1>Safety neurons of {name}</h1><p>{escape(about)}</p></header>
{_stale(found)}<ol class="cards">{"".join(map(_card, told))}</ol>{sections}{_footer(found)}</main></div>
<div id="tip" role="tooltip" hidden></div><script>{asset("report.js")}</script></body></html>
"""


def _parts(folder: Path, found: Sections, rows: Any) -> list[tuple[str, str, str]]:
    """(key, title, HTML) of every section that there is."""
    made: list[tuple[str, str, str]] = []
    if found.find is not None:
        made.append(("find", _title("find"), _find_section(found.find)))
    if found.prove is not None:
        made.append(("prove", _title("prove"), proof_section(found.prove, found.seconds.get("prove"))))
    if found.shield is not None:
        made.append(("shield", _title("shield"), shield_section(found.shield)))
    if found.check is not None and found.shield is not None and found.attack is not None:
        made.append(("check", _title("check"), check_section(found.check, shield=found.shield, attack=found.attack)))
    if answers := transfer(found):
        made.append(
            ("transfer", "Transfer: is safety shared by cells, and did it transfer?", transfer_section(answers))
        )
    if found.check is not None:
        shown, total = sample_answers(folder)
        pictures = picture_uris(folder, rows, {s.id for s in shown})
        made.append(("answers", "Answers", answer_section(shown, pictures, total=total, check=found.check)))
    if explorer := report_part(folder):
        made.insert(1, ("explorer", "Neurons", explorer))
    return [*made, ("glossary", "Glossary", glossary())]


def _title(step: str) -> str:
    question = STEPS[step]
    return f"{step.capitalize()}: {question[0].lower()}{question[1:]}"


def _lead(sentence: str) -> str:
    return f'<p class="lead">{escape(capital(sentence))}.</p>' if sentence else ""


def _card(card: Card) -> str:
    """One step at a glance."""
    head = f'<h2><a href="#{card.step}">{card.step}</a> <span class="tone">{TONES[card.tone]}</span></h2>'
    if card.tone == "none":
        head = f'<h2>{card.step} <span class="tone">{TONES[card.tone]}</span></h2>'
        return f'<li class="none">{head}<p class="verdict">{STEPS[card.step]} Not run yet.</p></li>'
    facts = {"strongest control": card.control, "requests": card.requests, "cost": card.cost}
    told = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items() if text)
    return (
        f'<li class="{card.tone}">{head}<p class="number"><b>{escape(card.value)}</b> <span>{escape(card.ends)}</span></p>'
        f'<p class="about">{escape(card.about)}</p><p class="verdict">{escape(card.verdict)}</p><dl>{told}</dl></li>'
    )


def _stale(found: Sections) -> str:
    """A warning of steps whose results are of other inputs than the results of the steps before them."""
    if not found.stale:
        return ""
    names = " and ".join(found.stale)
    return (
        f'<p class="stale"><b>Stale: {escape(names)}.</b> A step before was run again since. What is shown of {escape(names)} was '
        "computed from earlier results; run these steps again.</p>"
    )


def _find_section(f: FindSection) -> str:
    text = (
        f"<p>Neurons were ranked by <b>{escape(f.method)}</b> in every {term('cell')} (language × modality) on the "
        f"<i>discover</i> prompts. The {term('candidate', 'candidates')} are the best {f.n_neurons} of <b>{escape(f.anchor)}</b>, "
        f"{f.param_fraction:.3%} of the parameters. A contrast finds correlates; whether they cause refusals is the next question.</p>"
    )
    if f.overlap:
        text += figure(draw_overlap(f.overlap), "overlap") + (
            f'<p class="note">{term("share in common", "Share of neurons in common")}: 0 for unrelated neurons, 1 for the same; point at '
            f"a number for its 95 % interval over requests and the {term('benign null')}. It is the overlap minus what noise makes two "
            "cells share, relative to what two samples of the same cell share; both cells are measured on different requests. n/a: too "
            "few requests to tell.</p>"
        )
    return text + folded(
        "Layers of each cell's best neurons", figure(draw_layers(f.per_layer, method=f.method), "layers")
    )


def _footer(found: Sections) -> str:
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in found.seconds.items())
    made = ", ".join(f"{k} {v}" for k, v in found.versions.items())
    model = found.model
    return (
        f'<footer class="note">Data {escape(found.prompts.data)} · weights {escape(model.fingerprint)} '
        f"({escape(model.dtype)}) · {escape(made)} · {escape(seconds)}. Numbers: results.json beside this page.</footer>"
    )
