"""The explorer as one file of HTML, and as a piece of a notebook or of a report.

A page is three texts: the style (page.css), the script (page.js), and the view as JSON. Everything is inlined and nothing is
fetched; the page's content security policy allows this script, this style and pictures inside the page, and no other. What comes
from a prompt, a model or a file is JSON for `JSON.parse`, and the script writes it with `textContent`.

The script is one function, `mount(root, data, {onSelect})`, so that a live widget draws the same explorer: its module is
`script()` and a `render` of its own.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from ..core.arguments import at_least
from ..core.display import count, in_script
from ..core.errors import InputError
from ..core.statistics import finite
from .view import NeuronView, PromptView, SaidView, View

__all__ = ["data", "describe", "document", "fragment", "script", "style"]

#: Pictures a page takes: of a raster format, inside the page.
PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+\Z")
#: Largest whole number of an encoded activation; its negative less 1 says that a value is not known.
STEPS = 32767
#: A page of its own takes the keyboard at once; a frame in a notebook leaves it where it is.
START = """const view = mount(document.getElementById("explorer"), JSON.parse(document.getElementById("data").textContent));
if (window.top === window) view.focus();
"""
ROLES = {"template": "p", "text": "t", "image": "i"}


def document(view: View) -> str:
    """A view as one HTML file that works offline.

    >>> html = document(view)
    >>> html.startswith("<!doctype html>"), "https://" in html
    (True, False)

    Args:
        view: what is shown.

    Raises:
        InputError: a prompt's values do not match its tokens and the view's neurons, or a picture is not a `data:` URI of a raster
            format.
    """
    css, js = style(), f"{script()}\n{START}"
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(css)}'; script-src '{_digest(js)}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(_clean(view.title))}</title>\n<style>{css}</style></head>\n"
        '<body><div id="explorer"></div><noscript>This page needs JavaScript to draw itself. It fetches nothing.</noscript>\n'
        f'<script type="application/json" id="data">{_json(data(view))}</script>\n<script>{js}</script></body></html>\n'
    )


def fragment(view: View, *, height: int = 860) -> str:
    """A view as a piece of another page: a frame that shares no style, name or script with what is around it.

    >>> fragment(view).startswith('<iframe title="Safety neurons of a sample"')
    True

    Args:
        view: what is shown.
        height: of the frame, in CSS pixels; its lower edge can be dragged.

    Raises:
        InputError: as `document`; or the height is below 200.
    """
    at_least(200, "fragment", height=height)
    inside = document(view).replace("&", "&amp;").replace("'", "&#39;")
    return (
        f'<iframe title="{escape(_clean(view.title))}" sandbox="allow-scripts" loading="lazy" '
        f'style="display:block;width:100%;height:{height}px;border:1px solid #8886;border-radius:8px;resize:vertical;overflow:auto" '
        f"srcdoc='{inside}'></iframe>"
    )


def script() -> str:
    """JavaScript that defines `mount(root, data, {onSelect})`.

    `mount` draws the explorer into an element or a shadow root, from `data`, which is what the Python function of that name returns
    after JSON. It calls `onSelect([[layer, index], ...])` when the selection changes (the marked neurons, or the current one if none
    is marked), and returns `{select(neurons), focus()}`.

    >>> "function mount(root, data," in script()
    True
    """
    return files(__package__).joinpath("page.js").read_text("utf-8")


def style() -> str:
    """The style sheet of what `mount` draws; it styles nothing outside the class `explorer`.

    >>> ".explorer" in style()
    True
    """
    return files(__package__).joinpath("page.css").read_text("utf-8")


def data(view: View) -> dict[str, Any]:
    """What `mount` draws, as plain JSON values.

    Activations are whole numbers of 16 bits in steps of a neuron, base64 of little-endian, all prompts one after the other. Answers
    and pictures that occur several times are held once.

    >>> sorted(data(view))
    ['conditions', 'languages', 'modalities', 'neurons', 'notes', 'pictures', 'prompts', 'said', 'shared', 'summary', 'title']

    Args:
        view: what is shown.

    Raises:
        InputError: as `document`.
    """
    _check(view)
    said: dict[SaidView, int] = {}
    pictures: dict[str, int] = {}
    total = sum(len(p.tokens) for p in view.prompts)
    table = np.empty((len(view.neurons), total))
    start = 0
    for p in view.prompts:
        table[:, start : start + len(p.tokens)] = p.values
        start += len(p.tokens)
    return {
        "title": view.title,
        "summary": view.summary,
        "languages": list(view.languages),
        "modalities": list(view.modalities),
        "conditions": list(view.conditions),
        "neurons": [_neuron(n, values) for n, values in zip(view.neurons, table)],
        "prompts": [_prompt(p, said, pictures) for p in view.prompts],
        "said": [[s.text, s.outcome] for s in said],
        "pictures": list(pictures),
        "shared": [
            {"cells": s.cells, "overlap": s.overlap and finite(s.overlap), "neurons": s.neurons} for s in view.shared
        ],
        "notes": list(view.notes),
    }


def describe(neuron: NeuronView) -> str:
    """One plain sentence about a neuron.

    >>> describe(view.neurons[0])
    'Its mean activation is higher on benign requests in 3 of 3 cells; a unit of it changes the refusal margin directly by −0.021
    logits; ablating it alone removes 5.8 % [5.4, 6.4] of the clean logit difference.'

    Args:
        neuron: the neuron.
    """
    known = [d for d in neuron.differences.values() if d is not None]
    side = _leaning(neuron)
    agree = sum((d > 0) == (side == "harmful") and d != 0 for d in known)
    parts = [
        f"its mean activation is higher on {side} requests in {agree} of {count(len(known), 'cell')}" if side else
        "how its activation differs between harmful and benign requests was not measured" if not known else
        "its mean activation is equal on harmful and benign requests"
    ]  # fmt: skip
    if neuron.writes is not None:
        parts.append(
            f"a unit of it changes the refusal margin directly by {neuron.writes:+.2g} logits".replace("-", "−")
        )
    effect = neuron.effect and finite(neuron.effect)
    if effect and effect[0] is not None:
        sign = 1 if effect[0] >= 0 else -1
        ends = sorted(100 * sign * e for e in effect[1:] if e is not None)
        known_ends = f" [{ends[0]:.1f}, {ends[1]:.1f}]" if len(ends) == 2 else ""
        verb, of = ("removes", "of") if sign > 0 else ("adds", "to")
        parts.append(
            f"ablating it alone {verb} {100 * abs(effect[0]):.1f} %{known_ends} {of} the clean logit difference"
        )
    else:
        parts.append("the effect of ablating it alone was not measured")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _leaning(neuron: NeuronView) -> str:
    """The label with the larger mean activation, over the cells together: "harmful" or "benign"; "" where neither is larger."""
    total = sum(d for d in neuron.differences.values() if d is not None)
    return "harmful" if total > 0 else "benign" if total < 0 else ""


def _check(view: View) -> None:
    """One clear line about a view that cannot be drawn."""
    for p in view.prompts:
        shape = [len(row) for row in p.values]
        if shape != [len(p.tokens)] * len(view.neurons):
            raise InputError(
                f"prompt {p.id!r}: values must be [{len(view.neurons)} neurons, {len(p.tokens)} tokens], got rows of {shape[:4]}"
            )
        if p.alone and len(p.alone) != len(view.neurons):
            raise InputError(
                f"prompt {p.id!r}: {len(p.alone)} answers with one neuron ablated for {len(view.neurons)} neurons"
            )
        for k, picture in enumerate(p.pictures):
            if not PICTURE.match(picture.source):
                raise InputError(
                    f"prompt {p.id!r}: picture {k} must be a data: URI of a PNG, JPEG, GIF or WebP, got {picture.source[:40]!r}"
                )


def _neuron(neuron: NeuronView, values: np.ndarray) -> dict[str, Any]:
    """A neuron and its activations on all tokens."""
    known = np.isfinite(values)
    step = max(float(np.abs(values[known]).max(initial=0.0)), neuron.scale, 1e-12) / STEPS
    whole = np.where(known, np.round(np.where(known, values, 0) / step), -STEPS - 1)
    return {
        "layer": neuron.layer,
        "index": neuron.index,
        "status": neuron.status,
        "kind": neuron.kind,
        "leaning": _leaning(neuron),
        "sentence": describe(neuron),
        "effect": neuron.effect and finite(neuron.effect),
        "promoted": list(neuron.promoted),
        "suppressed": list(neuron.suppressed),
        "differences": {cell: None if d is None else float(f"{d:.4g}") for cell, d in neuron.differences.items()},
        "scale": neuron.scale,
        "step": step,
        "values": b64encode(whole.astype("<i2").tobytes()).decode(),
    }


def _prompt(prompt: PromptView, said: dict[SaidView, int], pictures: dict[str, int]) -> dict[str, Any]:
    """A prompt without its activations; answers and pictures by their number."""
    image = [t for t in prompt.tokens if t.role == "image"]
    return {
        "id": prompt.id,
        "pair": prompt.pair,
        "label": prompt.label,
        "cell": prompt.cell,
        "language": prompt.language,
        "tokens": [t.text for t in prompt.tokens],
        "roles": "".join(ROLES.get(t.role, "t") for t in prompt.tokens),
        "patches": _flat([(t.image, t.row, t.column) for t in image]),
        "pictures": [[pictures.setdefault(p.source, len(pictures)), p.grid, p.box] for p in prompt.pictures],
        "answers": {name: said.setdefault(answer, len(said)) for name, answer in prompt.answers.items()},
        "alone": [None if a is None else said.setdefault(a, len(said)) for a in prompt.alone],
    }


def _flat(rows: Sequence[tuple[int | None, ...]]) -> list[int]:
    """Numbers one after the other, -1 for None."""
    return [-1 if v is None else v for row in rows for v in row]


def _json(value: Any) -> str:
    """JSON that can stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return in_script(_clean(text))


def _clean(text: str) -> str:
    """The text without halves of characters, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _digest(text: str) -> str:
    """How a content security policy names an inlined text."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
