"""Where the model refuses at all: cells whose harmful prompts it refuses more often than benign ones."""

from __future__ import annotations

import numpy as np

from ..core.display import count
from ..core.statistics import least_requests
from ..data.prompts import Cell
from .answers import Answers, Grader, answer_rate
from .pairs import MatchedPairs
from .tables import CLEAN
from .verdict import RULE

__all__ = ["refusing_cells"]


def refusing_cells(pairs: MatchedPairs, grader: Grader) -> tuple[list[Cell], dict[str, Answers], str]:
    """Cells where the model refuses harmful prompts more than benign ones, by the sign of the margin or else by graded answers.

    Cells that refuse less than half as often as the cell that refuses most are left to the experiments.

    Args:
        pairs: matched pairs of all cells.
        grader: is asked only where the margins show no refusal.

    Returns:
        The cells; the clean answers by label, if they were generated; and why there is nothing to test, or "".
    """
    by_margin = {}
    for cell, rows in pairs.by_cell().items():
        by_margin[cell] = float((pairs.harmful_margins[rows] > 0).mean() - (pairs.benign_margins[rows] > 0).mean())
    best = max(by_margin.values())
    apart = [c for c, share in by_margin.items() if share >= max(RULE.min_refusal, best / 2)]
    cells = [c for c in apart if pairs.take(pairs.by_cell()[c]).clean_logit_difference.low > 0]
    if cells:
        return cells, {}, ""
    sample = pairs.take(grader.rows(pairs))
    answers = {label: grader.answers(sample, label) for label in ("harmful", "benign")}
    refused = {
        label: answer_rate(label, CLEAN, found, requests=sample.requests).refused.value
        for label, found in answers.items()
    }
    more = refused["harmful"] - refused["benign"]
    if np.isnan(more):
        why = (
            f"first tokens show no refusal ({best:+.2f} more of harmful prompts than of benign ones), and of the answers to "
            "harmful or to benign prompts none could be graded (a thought cut short, or a language whose refusals are not known)"
        )
        return [], answers, why
    if more < RULE.min_refusal:
        why = (
            f"the model refuses harmful prompts no more than benign ones (graded answers {more:+.2f}, "
            f"first tokens {best:+.2f}), so there is no refusal to explain"
        )
        return [], answers, why
    difference = pairs.clean_logit_difference
    if not difference.low > 0:
        n, least = len(set(pairs.requests)), least_requests(alpha=RULE.alpha)
        said = f"the refusal margin does not separate harmful from benign prompts (clean logit difference {difference})"
        few = f"{count(n, 'request')} cannot show that the refusal margin separates harmful from benign prompts, {least} can"
        why = few if n < least else said
        return [], answers, why
    return list(pairs.by_cell()), answers, ""
