"""How many independent requests each claim of `verify` has, and how many its test needs at least.

A test of few requests has one outcome only, whatever they say. The fewest with which each claim can pass follow from its own test
(`core.statistics.least_requests`); below them its verdict is "too few requests to tell". Both numbers are known before the model has
run. Cells where the model does not refuse are left out of the claims, which then have fewer. Of the graded pairs, a random sample,
the number that falls to a part of the requests is the expected one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.display import count
from ..core.statistics import least_requests
from ..data.prompts import PromptSet
from .answer_claims import COHERENCE, REFUSALS_NECESSITY, REFUSALS_SUFFICIENCY, UTILITY
from .claims import NECESSITY, SPECIFICITY, SUFFICIENCY
from .pairs import match
from .verdict import RULE

__all__ = ["Requirement", "log_requirements", "requirements"]

#: What is tested: the set on all requests, each member on the third that chooses, and the kept members on the other two thirds.
SET, MEMBER, KEPT = "the set", "each member", "its kept members"

#: The limit of each claim of equivalence; None where a mean is claimed to be above 0.
LIMITS: dict[str, float | None] = {
    **dict.fromkeys([*NECESSITY, SUFFICIENCY]), SPECIFICITY: RULE.max_benign_shift,
    REFUSALS_NECESSITY: None, REFUSALS_SUFFICIENCY: None, COHERENCE: RULE.max_incoherent_rise,
    UTILITY: RULE.max_utility_change,
}  # fmt: skip

#: Claims on the answers of the graded pairs.
ANSWERED = (REFUSALS_NECESSITY, REFUSALS_SUFFICIENCY, COHERENCE)

logger = logging.getLogger("neuronshield")


@dataclass(frozen=True)
class Requirement:
    """Requests that a claim has and needs.

    >>> print(Requirement("utility", "the set", has=24, needs=29))
    utility of the set: 24 requests, needs 29: too few

    Attributes:
        claim: its name.
        of: "the set", "each member" or "its kept members".
        has: independent requests, if every cell refuses; the expected number of a part of the graded pairs.
        needs: the fewest with which its test can pass.
    """

    claim: str
    of: str
    has: int
    needs: int

    @property
    def enough(self) -> bool:
        """Whether the claim can pass at all."""
        return self.has >= self.needs

    def __str__(self) -> str:
        short = "" if self.enough else ": too few"
        return f"{self.claim} of {self.of}: {count(self.has, 'request')}, needs {self.needs}{short}"


def requirements(prompts: PromptSet, *, graded: int = 48) -> tuple[Requirement, ...]:
    """The requests that each claim has and needs, of the set and of its kept members.

    >>> found = requirements(prompts)
    >>> len(found), str(found[0])
    (19, 'necessity: zero of the set: 15 requests, needs 5')

    Args:
        prompts: as for `verify`: the "confirm" rows count, all of them if none is so marked.
        graded: pairs whose answers are generated, as for `verify`.

    Raises:
        InputError: no cell has harmful and benign prompts.
    """
    pairs, _ = match(prompts.for_step("confirm"), seed=0)
    n = len({h.cluster for h, _ in pairs})
    asked = min(graded, n)
    right = asked * len({h.cluster for h, b in pairs if b.expect}) // n
    chooses = max(1, n // 3)

    def of_claims(of: str, share: int) -> list[Requirement]:
        has = {
            **dict.fromkeys(LIMITS, share),
            **dict.fromkeys(ANSWERED, asked * share // n),
            UTILITY: right * share // n,
        }
        return [
            Requirement(claim, of, has=has[claim], needs=least_requests(alpha=RULE.alpha, limit=limit))
            for claim, limit in LIMITS.items() if claim != UTILITY or right
        ]  # fmt: skip

    member = Requirement("effect", MEMBER, has=chooses, needs=least_requests(alpha=RULE.alpha))
    return (*of_claims(SET, n), member, *of_claims(KEPT, n - chooses))


def log_requirements(found: Sequence[Requirement]) -> None:
    """Log one line a claim, as a warning where a claim has too few requests.

    >>> log_requirements(requirements(prompts))

    Args:
        found: of `requirements`.
    """
    for each in found:
        logger.log(logging.INFO if each.enough else logging.WARNING, "%s", each)
