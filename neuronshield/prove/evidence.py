"""Everything that is measured on one set beside its controls, and the claims that follow from it.

`verify` measures the whole set on all requests, and what its members kept on the requests that did not choose them, by the same
function and against the same kinds of control.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from ..core.neurons import NeuronSet
from .answer_claims import measure_answers
from .answers import AnswerSheet, Grader, level_draw
from .claims import NECESSITY_MEAN, Margins, measure_claims, measure_margins
from .controls import Controls
from .pairs import MatchedPairs
from .tables import Claim
from .verdict import RULE

__all__ = ["Evidence", "measure_evidence"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Margins and answers of a set and its controls. Made by `measure_evidence`.

    Attributes:
        pairs: matched pairs.
        controls: the control sets.
        margins: changes of margin of the set and of every control.
        sheet: answers to the sample.
        sample: the pairs whose answers were generated.
    """

    pairs: MatchedPairs
    controls: Controls
    margins: Margins
    sheet: AnswerSheet
    sample: Int[np.ndarray, " answer"]

    def claims(self) -> tuple[Claim, ...]:
        """Every claim, margin claims first."""
        draws = min(map(len, self.controls.drawn.values()), default=0)
        of_margins = measure_claims(self.pairs, self.margins, self.controls)
        return (*of_margins, *measure_answers(self.sheet, draws=draws))

    def of_requests(self, other: MatchedPairs) -> Evidence:
        """The same of the pairs whose requests `other` has; nothing is run.

        Args:
            other: part of the same pairs.
        """
        rows = np.flatnonzero(np.isin(self.pairs.requests, list(set(other.requests))))
        answered = np.flatnonzero(np.isin(self.sample, rows))
        return replace(
            self, pairs=self.pairs.take(rows), margins=self.margins.take(rows), sheet=self.sheet.take(answered),
            sample=np.searchsorted(rows, self.sample[answered]),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Evidence({len(self.pairs)} pairs, {len(self.sample)} of them answered)"


def measure_evidence(
    pairs: MatchedPairs, neurons: NeuronSet, controls: Controls, *, grader: Grader, sample: Int[np.ndarray, " answer"]
) -> Evidence:
    """Margins of a set and all its controls, and answers of the set and one control of each kind.

    Args:
        pairs: matched pairs.
        neurons: the set.
        controls: its control sets.
        grader: generates and grades answers.
        sample: the pairs whose answers are generated.
    """
    margins = measure_margins(pairs, neurons, controls)
    effects = pairs.normalised_effects(margins.changes[NECESSITY_MEAN])[1:]
    answering: dict[str, NeuronSet] = {}
    at = 0
    for kind, sets in controls.drawn.items():
        answering[kind] = sets[level_draw(effects[at : at + len(sets)], RULE.alpha)]
        at += len(sets)
    sheet = grader.sheet(pairs.take(sample), neurons, drawn=answering, single=controls.fixed)
    return Evidence(pairs, controls, margins, sheet=sheet, sample=sample)
