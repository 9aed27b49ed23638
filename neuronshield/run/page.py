"""The parts of a page: tables, figures and numbers as HTML. Every text is escaped; the page loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

CSS = """
:root{--ink:#1b2733;--muted:#66727f;--line:#e3e8ed;--accent:#0b6e8a;--bad:#b3364b;--page:#f4f6f8;--card:#fff;--main:#eef6f8;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9ee;--muted:#9aa7b4;--line:#33404d;--accent:#4fb3cc;--bad:#e8798c;--page:#12181f;--card:#1b242e;--main:#22313b}.figure{border-radius:8px}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 60px}h1{font-size:27px;margin:0 0 4px}header p{color:var(--muted);margin:0 0 22px}
h2{font-size:20px;margin:0 0 6px}section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin:18px 0}
.cards{list-style:none;padding:0;margin:0;display:grid;gap:10px}.cards li{background:var(--card);border:1px solid var(--line);border-left:5px solid var(--muted);border-radius:8px;padding:10px 14px;display:flex;gap:14px}
.cards b{flex:0 0 62px;text-transform:uppercase;font-size:12px;letter-spacing:.06em;padding-top:2px;color:var(--muted)}
.cards .good{border-left-color:var(--accent)}.cards .bad{border-left-color:var(--bad)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;margin:10px 0;width:100%}th,td{padding:6px 10px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--muted);font-weight:600;white-space:nowrap}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}td.n:last-child{white-space:normal}tr.main td{font-weight:600;background:var(--main)}
.passed{color:var(--accent);font-weight:600}.failed{color:var(--bad);font-weight:600}.stale{background:var(--card);border:1px solid var(--bad);border-left-width:5px;border-radius:8px;padding:10px 14px;margin:0 0 10px}.note{color:var(--muted);font-size:13.5px}
.figure{margin:14px -8px 0;overflow-x:auto}details{margin-top:12px}summary{cursor:pointer;color:var(--accent)}code{font-size:12.5px}
@media (max-width:480px){main{padding:20px 10px 40px}section{padding:16px 14px}.cards li{flex-direction:column;gap:2px}.cards b{flex:none}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--muted:#444}main{max-width:none;padding:0}section{border:0;padding:8px 0}.cards li,.figure,tr{break-inside:avoid}.scroll,.figure{overflow:visible}}
"""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], main: int | None = None) -> str:
    """An HTML table; every cell is escaped, numbers are aligned.

    >>> from neuronshield.run.page import table
    >>> "&lt;b&gt;" in table(["claim", "verdict"], [["<b>", "passed"]])
    True

    Args:
        head: names of the columns.
        rows: cells, as text or numbers.
        main: the row that is set in bold.
    """
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(
            f'<td class="{"n" if j else ""} {v if v in ("passed", "failed") else ""}">{escape(str(v))}</td>'
            for j, v in enumerate(row)
        )
        body += f'<tr class="{"main" if i == main else ""}">{cells}</tr>'
    titles = "".join(f"<th>{escape(h)}</th>" for h in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def drawing(figure: go.Figure) -> str:
    """A figure as HTML; plotly.js is in the page once."""
    config = {"displaylogo": False, "responsive": True}
    html = pio.to_html(figure, full_html=False, include_plotlyjs=False, config=config)
    return f'<div class="figure">{html}</div>'


def note(text: str) -> str:
    """A paragraph in small print; `text` is escaped."""
    return f'<p class="note">{escape(text)}</p>'


def sentence(text: str) -> str:
    """The text with a capital letter."""
    return text[:1].upper() + text[1:]


def num(value: float | None, spec: str = ".2f") -> str:
    """A number in a format; "n/a" where there is none."""
    return "n/a" if value is None else format(value, spec)


def interval(values: Sequence[float | None], spec: str = ".2f") -> str:
    """ "value [low, high]"."""
    return f"{num(values[0], spec)} [{num(values[1], spec)}, {num(values[2], spec)}]"


def signed(values: Sequence[float | None]) -> str:
    """ "value [low, high]" of a difference, with signs."""
    return interval(values, "+.2f")


def spread(values: Sequence[float] | None) -> str:
    """ "mean (smallest to largest)"."""
    return "n/a" if values is None else f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def p_text(value: float | None) -> str:
    """A p-value with three decimals, or "< 0.001"."""
    return "< 0.001" if value is not None and value < 0.001 else num(value, ".3f")
