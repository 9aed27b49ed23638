"""What is said of a protocol's sets in words, from their effects in their own and in the other modality.

Fixed beforehand, for every protocol alike. A set **acts** in a modality if its ablation lowers the refusal margin of harmful
requests there: the interval lies above 0, the fall is at least a tenth of the clean logit difference of the modality, and against
every kind of control p <= 0.05. A modality is **refused** if at least a tenth of its harmful test requests is, and the margin tells
them from benign ones; where it is not, no refusal can rest on its set. The tenths are those of `prove.verdict.RULE`.

    shared, transfers    every set that acts in its own modality acts in the other one as well, with at least a tenth of its fall
    separate             no set that acts in its own modality acts in the other one, and the fall there is shown to be less than half
    transfers one way    one of two sets acts in both modalities, the other one in its own only
    none found           no set acts in its own modality, as far as that is refused
    too few requests     the requests, draws or labelled answers do not decide between these

"Separate" says that the neurons of one modality do nothing for the other, whether or not the other is refused; the reason says so
where it is not. A conjunction of tests needs no correction for their number (intersection-union test).

Source: Berger (1982), intersection-union tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.statistics import Interval, least_draws, least_requests
from ..prove.verdict import RULE
from .tables import Side

__all__ = [
    "ALPHA", "FAILED", "NONE", "ONE_WAY", "PASSED", "SEPARATE", "SHARED", "TOO_FEW", "UNTESTED", "Fall", "acts", "is_refused", "verdict_of",
]  # fmt: skip

PASSED, FAILED, UNTESTED = "passed", "failed", "not tested"
SHARED, SEPARATE, ONE_WAY, NONE = "shared, transfers", "separate", "transfers one way", "none found"
TOO_FEW = "too few requests to tell"

ALPHA = RULE.alpha
MATERIAL = (
    RULE.min_effect
)  # of the clean logit difference, and of the fall in its own modality: what a set that acts has at least
SMALL = 0.5  # of it: what the fall stays below where there is none


@dataclass(frozen=True)
class Fall:
    """The fall of the refusal margin under one ablation.

    Attributes:
        source, target: modalities of the set, and of the requests.
        margin: the fall, in nats.
        verdict: "passed", "failed" or "too few requests to tell".
    """

    source: str
    target: str
    margin: Interval
    verdict: str


def acts(margin: Interval, p: Sequence[float], *, difference: float, n_requests: int, draws: int) -> str:
    """Whether an ablation lowers refusal: "passed", "failed", or "too few requests to tell".

    >>> fall = Interval(1.0, 0.5, 1.5)
    >>> acts(fall, [0.01, 0.05], difference=4.0, n_requests=20, draws=99)
    'passed'
    >>> acts(fall, [0.01, 0.05], difference=14.0, n_requests=20, draws=99)
    'failed'
    >>> acts(fall, [0.01, 0.05], difference=4.0, n_requests=4, draws=99)
    'too few requests to tell'

    Args:
        margin: fall of the refusal margin, with its interval.
        p: against each kind of control.
        difference: refusal margin of harmful minus benign requests of the modality, in nats.
        n_requests: independent requests.
        draws: control sets of a kind.
    """
    if n_requests < least_requests(alpha=ALPHA) or draws < least_draws(alpha=ALPHA):
        return TOO_FEW
    large = margin.low > 0 and not margin.value < MATERIAL * difference
    return PASSED if large and max(p, default=1.0) <= ALPHA else FAILED


def is_refused(side: Side) -> bool:
    """Whether the model refuses a modality.

    Args:
        side: the modality.
    """
    return side.refused.value >= RULE.min_refusal and side.difference.low > 0


def verdict_of(
    falls: Sequence[Fall], sides: Sequence[Side], *, missing: Mapping[str, str], what: str = "set"
) -> tuple[str, str]:
    """The verdict on a protocol, and why (see the module).

    >>> own, cross = (Fall("text", name, Interval(2.0, 1.5, 2.5), "passed") for name in ("text", "image"))
    >>> verdict_of([own, cross], [], missing={"image": "no candidate"})
    ('shared, transfers', 'ablation of the set of text acts in text and in image; image: no candidate')

    Args:
        falls: of every set in both modalities.
        sides: the two modalities, for what the model refuses of them.
        missing: by modality, why it has no set; a reason that begins with "too few" says that its requests do not tell.
        what: "set", or what else is ablated.
    """
    at = {(f.source, f.target): f for f in falls}
    unrefused = {s.modality: s for s in sides if not is_refused(s)}
    names = list(dict.fromkeys(f.source for f in falls if f.source not in unrefused))
    own = [name for name in names if at[name, name].verdict == PASSED]
    notes = [f"{name}: {why}" for name, why in missing.items()]
    notes += [
        f"the model does not refuse {name} ({s.refused} of its harmful requests; margin of harmful minus benign {s.difference})"
        for name, s in unrefused.items()
    ]
    if not own:
        few = [name for name in names if at[name, name].verdict == TOO_FEW] + [
            name for name, why in missing.items() if why.startswith("too few") and name not in unrefused
        ]
        said = [_silent(what, at[name, name]) for name in names]
        if few:
            return TOO_FEW, _joined([f"{', '.join(few)}: {TOO_FEW}", *said, *notes])
        return NONE, _joined([*said, *notes])
    found = {
        name: [_crossing(at[name, name], f) for f in falls if f.source == name and f.target != name] for name in own
    }
    outcomes = [outcome for both in found.values() for outcome in both]
    reasons = [_reason(at[name, name], f, what) for name in own for f in falls if f.source == name != f.target]
    word = TOO_FEW
    if outcomes and all(o == PASSED for o in outcomes):
        word = SHARED
    elif outcomes and all(o == FAILED for o in outcomes):
        word = SEPARATE
    elif PASSED in outcomes and FAILED in outcomes:
        word = ONE_WAY
    silent = [_silent(what, at[name, name]) for name in names if name not in own]
    return word, _joined([*reasons, *silent, *notes])


def _crossing(own: Fall, other: Fall) -> str:
    """Whether what acts in its own modality acts in the other one."""
    if other.verdict == TOO_FEW:
        return TOO_FEW
    if other.verdict == PASSED and other.margin.value >= MATERIAL * own.margin.value:
        return PASSED
    return FAILED if other.margin.high < SMALL * own.margin.value else TOO_FEW


def _reason(own: Fall, other: Fall, what: str) -> str:
    found = _crossing(own, other)
    if found == PASSED:
        return f"ablation of the {what} of {own.source} acts in {own.source} and in {other.target}"
    falls = f"fall of the margin {own.margin} there, {other.margin} in {other.target}"
    if found == FAILED:
        return f"ablation of the {what} of {own.source} acts in {own.source} only ({falls})"
    return f"ablation of the {what} of {own.source} acts in {own.source}; in {other.target} the requests do not tell ({falls})"


def _silent(what: str, own: Fall) -> str:
    return f"ablation of the {what} of {own.source} does not act in {own.source} (fall of the margin {own.margin})"


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(parts)
