"""Tables of results as LaTeX, for a paper: `booktabs` rules, intervals in one column, every text escaped."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

__all__ = ["latex_table"]

#: How characters with a meaning in LaTeX are written.
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}", "]": "{]}",
}  # fmt: skip
#: What is written where there is no number.
NOTHING = "--"


def latex_table(frame: pd.DataFrame, *, digits: int = 2) -> str:
    """A `tabular` with `booktabs` rules (`\\usepackage{booktabs}`), one line a row.

    A column whose name with "_low" and "_high" has columns too is one column with them: value [low, high].

    >>> frame = pd.DataFrame({"cell": ["en_text"], "rate": [0.5], "rate_low": [0.25], "rate_high": [0.75]})
    >>> print(latex_table(frame))
    \\begin{tabular}{lr}
    \\toprule
    cell & rate \\\\
    \\midrule
    en\\_text & 0.50 {[}0.25, 0.75{]} \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>

    Args:
        frame: the rows.
        digits: of numbers that are not whole, after the point.
    """
    names = list(frame.columns)
    ends = {
        f"{name}{end}" for name in names for end in ("_low", "_high") if {f"{name}_low", f"{name}_high"} <= {*names}
    }
    kept = [name for name in names if name not in ends]
    right = [name for name in kept if pd.api.types.is_numeric_dtype(frame[name])]
    lines = [f"\\begin{{tabular}}{{{''.join('r' if name in right else 'l' for name in kept)}}}", "\\toprule"]
    lines += [_line([_escaped(str(name).replace("_", " ")) for name in kept]), "\\midrule"]
    for row in frame.to_dict("records"):
        cells = []
        for name in kept:
            text = _cell(row[name], digits)
            if f"{name}_low" in ends and text != NOTHING:
                text += " {[}" + ", ".join(_cell(row[f"{name}_{end}"], digits) for end in ("low", "high")) + "{]}"
            cells.append(text)
        lines.append(_line(cells))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING
    return _escaped(str(value))


def _escaped(text: str) -> str:
    """A text in which no character has a meaning of its own; line ends are spaces."""
    return "".join(SPECIAL.get(c, c) for c in " ".join(text.split()))
