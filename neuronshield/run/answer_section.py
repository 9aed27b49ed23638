"""The report's section on answers: a sample of prompts with their pictures and answers, which can be filtered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .page import folded, note, table
from .samples import Said, Shown
from .sections import CheckSection

__all__ = ["answer_section"]

#: What an outcome means for a label.
TONES = {
    ("harmful", "refused"): "good", ("harmful", "complied"): "bad", ("benign", "complied"): "good", ("benign", "refused"): "bad",
}  # fmt: skip
WARNING = (
    "Prompts and answers below were written to test safety. Some are harmful. The switch hides the words and pictures of harmful "
    "prompts and the answers to them."
)


def answer_section(
    shown: Sequence[Shown], pictures: Mapping[str, Sequence[str | None]], *, total: int, check: CheckSection
) -> str:
    """The section as HTML: filters, and the prompts with their answers.

    Args:
        shown: the sample; without it the examples of step check are shown.
        pictures: of its prompts, as `data:` URIs; None for one that cannot be read any more.
        total: answers in answers.parquet.
        check: the section of results.json.
    """
    warning = (
        f'<p class="warning"><b>Content warning.</b> {WARNING} <label><input type="checkbox" id="redact"> '
        "hide harmful content</label></p>"
    )
    if not shown:
        rows = [[e.cell, e.label, e.prompt, e.before, e.after] for e in check.examples]
        examples = table(["cell", "label", "prompt", "before", "after"], rows)
        return warning + folded("Answers before and after", f'<div class="harm">{examples}</div>', is_open=True)
    n = sum(len(s.answers) for s in shown)
    said = (
        f"{n} of {total:,} answers, chosen by position and not by outcome: of every cell another request, its harmful and its benign "
        "prompt."
    )
    whole = '<p class="note">All of them, also those after fewer training steps, are in <a href="answers.parquet">answers.parquet</a> beside this page.</p>'
    articles = "".join(_article(s, pictures.get(s.id, ())) for s in shown)
    return f'{warning}{note(said)}{whole}{_filters(shown, n)}<div class="answers">{articles}</div>'


def _filters(shown: Sequence[Shown], n: int) -> str:
    choices = {
        "condition": dict.fromkeys(a.condition for s in shown for a in s.answers),
        "cell": dict.fromkeys(s.cell for s in shown),
        "label": dict.fromkeys(s.label for s in shown),
        "outcome": dict.fromkeys(sorted({a.outcome for s in shown for a in s.answers})),
    }
    selects = "".join(
        f'<label>{name} <select data-filter="{name}"><option value="">all</option>'
        + "".join(f"<option>{escape(value)}</option>" for value in values)
        + "</select></label>"
        for name, values in choices.items()
    )
    return f'<div class="filters" role="group" aria-label="Filter the answers">{selects}<output>{n} answers shown</output></div>'


def _article(s: Shown, pictures: Sequence[str | None]) -> str:
    drawn = "".join(
        f'<img src="{escape(uri)}" alt="picture of the prompt">'
        if uri
        else '<span class="gone">The picture cannot be read any more.</span>'
        for uri in pictures
    )
    harm = " harm" if s.label == "harmful" else ""
    said = "".join(_answer(a, s.label) for a in s.answers)
    return (
        f'<article class="prompt{harm}" data-cell="{escape(s.cell)}" data-label="{escape(s.label)}">'
        f'<div class="asked"><p class="what"><span class="tag">{escape(s.cell)}</span> <span class="tag">{escape(s.label)}</span> '
        f'<span class="id">{escape(s.id)}</span></p><div class="words">{drawn}<p dir="auto">{escape(s.prompt)}</p></div></div>'
        f'<ul class="said">{said}</ul></article>'
    )


def _answer(a: Said, label: str) -> str:
    tone = TONES.get((label, a.outcome), "plain")
    return (
        f'<li data-condition="{escape(a.condition)}" data-outcome="{escape(a.outcome)}"><p class="what">{escape(a.condition)} '
        f'<span class="outcome {tone}">{escape(a.outcome)}</span></p><p class="words" dir="auto">{escape(a.text) or "(empty)"}</p></li>'
    )
