"""Where the model refuses at all: cells whose harmful prompts it refuses more often than benign ones, and graded answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from ..core.intervals import clustered_rate
from ..core.neurons import NeuronSet
from ..data.grading import Grade, Openings, grade
from ..data.prompts import Cell
from ..model.generation import generate
from ..model.thoughts import in_thought
from .pairs import MatchedPairs
from .tables import CLEAN, AnswerRate
from .verdict import RULE

__all__ = ["Grader", "refusing_cells"]


@dataclass(frozen=True)
class Grader:
    """Generates and grades the answers to a fixed random sample of pairs.

    Attributes:
        openings: refusal and compliance prefixes.
        graded: pairs in the sample.
    """

    openings: Openings
    graded: int

    def rows(self, pairs: MatchedPairs) -> Int[np.ndarray, " row"]:
        """The pairs of the sample: a random order, one pair of each request before a second one of any."""
        order = np.random.default_rng(pairs.seed).permutation(len(pairs))
        seen: Counter[str] = Counter()
        earlier = []
        for request in pairs.requests[order]:
            earlier.append(seen[request])
            seen[request] += 1
        return order[np.argsort(earlier, kind="stable")][: self.graded]

    def answers(self, pairs: MatchedPairs, label: str, *, ablated: NeuronSet | None = None) -> list[Grade]:
        """Graded answers to the sample's prompts of a label, clean or under mean ablation at the last prompt token."""
        sample = pairs.take(self.rows(pairs))
        prompts = sample.rows.harmful if label == "harmful" else sample.rows.benign
        texts = generate(
            pairs.model, prompts, intervention=None if ablated is None else sample.ablate(ablated), max_new_tokens=24,
            batch_size=pairs.batch_size, progress=pairs.progress,
        )  # fmt: skip
        opened = in_thought(pairs.model, prompts)
        return [grade(p, t, self.openings, in_thought=o) for p, t, o in zip(prompts, texts, opened, strict=True)]


def answer_rate(
    label: str, condition: str, grades: Sequence[Grade], *, requests: Shaped[np.ndarray, " answer"]
) -> AnswerRate:
    """The shares of answers that refuse (of those that could be graded) and that are incoherent, with intervals over requests.

    Args:
        label: of the prompts.
        condition: of the model.
        grades: one an answer.
        requests: the request of each answer.
    """
    outcomes = [g.outcome for g in grades]
    refused, incoherent = (
        clustered_rate(np.array(values, dtype=float), list(requests))
        for values in (
            [np.nan if g.refused is None else g.outcome == "refused" for g in grades], [g.incoherent for g in grades],
        )
    )  # fmt: skip
    return AnswerRate(
        label, condition, n=len(grades), refused=refused, incoherent=incoherent, n_unknown=outcomes.count("unknown")
    )


def refusing_cells(pairs: MatchedPairs, grader: Grader) -> tuple[list[Cell], dict[str, list[Grade]], str]:
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
    answers = {label: grader.answers(pairs, label) for label in ("harmful", "benign")}
    asked = pairs.requests[grader.rows(pairs)]
    refused = {
        label: answer_rate(label, CLEAN, found, requests=asked).refused.value for label, found in answers.items()
    }
    more = refused["harmful"] - refused["benign"]
    if np.isnan(more):
        why = (
            f"first tokens show no refusal ({best:+.2f} more of harmful prompts than of benign ones), and of the answers to "
            "harmful or to benign prompts none could be graded (a thought cut short, or a language whose refusals are not known)"
        )
        return [], answers, f"not tested: {why}"
    if more < RULE.min_refusal:
        why = (
            f"the model refuses harmful prompts no more than benign ones (graded answers {more:+.2f}, "
            f"first tokens {best:+.2f}), so there is no refusal to explain"
        )
        return [], answers, f"not tested: {why}"
    difference = pairs.clean_logit_difference
    if not difference.low > 0:
        why = f"the refusal margin does not separate harmful from benign prompts (clean logit difference {difference})"
        return [], answers, f"not tested: {why}"
    return list(pairs.by_cell()), answers, ""
