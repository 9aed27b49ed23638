"""Claims about refusals, judged on generated answers: refusals, harmful compliance, incoherent answers, utility.

    refusals: necessity     mean ablation of the set: refusals of harmful prompts fall, and harmful compliance rises
    refusals: sufficiency   the set at its harmful values: refusals of matched benign prompts rise
    refusals: coherence     mean ablation makes no more than a few answers incoherent, harmful and benign ones
    utility                 mean ablation leaves the share of benign answers that are right

Changes are shares of answers, paired by prompt. Each change of the first two must be at least `RULE.min_answer_change`, have an
interval above 0 and pass the sign-flip test, and exceed the change under every control whose answers were generated (see `answers`).
Over a single control set the interval of the difference, paired over requests, must lie above 0. A drawn kind answers with the set
at the level of its margin effects; larger than that one is what p <= alpha means for the margin, and the same is asked of answers. An
interval is not: sets selected on shuffled labels may share members with the set, and few members can turn every answer.

A model whose own benign answers are mostly incoherent shows no compliance that could rise; there the claims that need it are not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..core.intervals import clustered_difference
from ..core.statistics import NAN, Interval, at_most, equivalent, least_draws, positive
from ..data.grading import Grade
from ..data.prompts import LABELS
from .answers import Answers, AnswerSheet
from .claims import too_few, verdict_of_test
from .controls import PERMUTED
from .tables import ANSWERS, CLEAN, SET_ABLATED, SET_INSERTED, Claim, Wording
from .verdict import RULE

__all__ = [
    "ANSWER_CLAIMS", "COHERENCE", "REFUSALS_NECESSITY", "REFUSALS_SUFFICIENCY", "UTILITY", "measure_answers", "measure_utility",
    "measure_wording",
]  # fmt: skip

REFUSALS_NECESSITY, REFUSALS_SUFFICIENCY = "refusals: necessity", "refusals: sufficiency"
COHERENCE, UTILITY = "refusals: coherence", "utility"
#: Claims that are measured on answers, in order.
ANSWER_CLAIMS = (REFUSALS_NECESSITY, REFUSALS_SUFFICIENCY, COHERENCE, UTILITY)

Values = Float[np.ndarray, " answer"]


def measure_answers(sheet: AnswerSheet, *, draws: int) -> list[Claim]:
    """The four claims about answers.

    Args:
        sheet: answers under every condition.
        draws: control sets of the smallest drawn kind; 0 without any.
    """
    if not len(sheet.requests):
        return [
            Claim.untested(name, "no prompt of these requests was answered", measure=ANSWERS) for name in ANSWER_CLAIMS
        ]
    before, after = sheet.answers["benign", CLEAN], sheet.answers["benign", SET_ABLATED]
    return [
        _necessity(sheet, draws),
        _sufficiency(sheet, draws),
        _coherence(sheet),
        measure_utility(before.grades, after.grades, requests=sheet.requests),
    ]


# -- refusals -------------------------------------------------------------------------------------------------
class _Change(NamedTuple):
    """A change that is claimed to be above 0, the same under each control, and the largest there can be; NaN where unknown."""

    what: str
    of_set: Values
    of_controls: dict[str, Values]
    largest: Values

    @property
    def complete(self) -> bool:
        """Whether every answer that can change has changed."""
        known = ~np.isnan(self.of_set)
        return bool(known.any() and (self.of_set[known] >= self.largest[known]).all())


def _necessity(sheet: AnswerSheet, draws: int) -> Claim:
    """Refusals of harmful prompts fall, and harmful compliance rises, more than under the controls."""
    fall = _change(sheet, "harmful", SET_ABLATED, what="refusals fall", of=lambda a: -a.refused, most=0.0)
    rise = _change(sheet, "harmful", SET_ABLATED, what="harmful compliance rises", of=lambda a: a.complied)
    found = _tested(REFUSALS_NECESSITY, [fall, rise], sheet, draws=draws)
    alone = _tested(REFUSALS_NECESSITY, [fall], sheet, draws=draws)
    if found.verdict == "failed" and alone.verdict == "passed" and _speaks_not(sheet):
        note = f"{alone.note}; {_SPEAKS_NOT}, so harmful compliance cannot be told"
        return Claim.untested(REFUSALS_NECESSITY, note, measure=ANSWERS)
    return found


def _sufficiency(sheet: AnswerSheet, draws: int) -> Claim:
    """Refusals of benign prompts rise with the set at its harmful values, more than with the controls at theirs."""
    rise = _change(sheet, "benign", SET_INSERTED, what="refusals of benign prompts rise", of=lambda a: a.refused)
    return _tested(REFUSALS_SUFFICIENCY, [rise], sheet, draws=draws)


def _change(
    sheet: AnswerSheet, label: str, condition: str, *, what: str, of: Callable[[Answers], Values], most: float = 1.0
) -> _Change:
    """The change of a value that is at most `most`."""
    clean, mine = of(sheet.answers[label, CLEAN]), of(sheet.answers[label, condition])
    others = {kind: of(sheet.answers[label, f"{kind} {condition}"]) - clean for kind in (*sheet.drawn, *sheet.single)}
    return _Change(what, mine - clean, others, largest=most - clean)


def _tested(name: str, changes: Sequence[_Change], sheet: AnswerSheet, *, draws: int) -> Claim:
    """A claim that each of some changes is above 0, large enough and larger than under every control."""
    requests = sheet.requests
    known = ~np.isnan([c.of_set for c in changes]).any(axis=0)
    if not known.any():
        return Claim.untested(name, "no answer could be graded before and after", measure=ANSWERS)
    effects = {c.what: _mean(c.of_set, requests) for c in changes}
    p = {c.what: positive(c.of_set[known], list(requests[known])) for c in changes}
    more = {
        kind: [_mean(c.of_set - c.of_controls[kind], requests) for c in changes]
        for kind in (*sheet.drawn, *sheet.single)
    }
    lacks = [f"not shown: {what}" for what, e in effects.items() if not (e.low > 0 and p[what] <= RULE.alpha)]
    lacks += [
        f"{what} by less than {RULE.min_answer_change:g}" for what, e in effects.items()
        if f"not shown: {what}" not in lacks and e.value < RULE.min_answer_change
    ]  # fmt: skip
    lost = [
        kind for kind, intervals in more.items()
        if not all(_exceeds(c, i, kind=kind, drawn=kind in sheet.drawn) for c, i in zip(changes, intervals, strict=True))
    ]  # fmt: skip
    lacks += [f"does not exceed: {', '.join(lost)}"] if lost else []
    if not draws:
        lacks.append("no other neurons to draw controls from")
    elif draws < least_draws(alpha=RULE.alpha):
        lacks.append(f"with {draws} draws no control is at the level {RULE.alpha:g}")
    few = too_few(requests[known])
    said = ", ".join(f"{what} by {effect}" for what, effect in effects.items())
    return Claim(
        name, min(effects.values(), key=lambda e: e.value), verdict_of_test(not lacks, few), p=p,
        over={kind: min(intervals, key=lambda i: i.low) for kind, intervals in more.items()},
        controls=_reached(changes, list(more)), note="; ".join([said, *lacks, *few]), measure=ANSWERS,
    )  # fmt: skip


def _exceeds(change: _Change, more: Interval, *, kind: str, drawn: bool) -> bool:
    """Whether a change is larger than under a control: by its value if the control is drawn, else by its interval.

    Sets selected on shuffled labels may share members with the set. If both change every answer that can change, neither can exceed
    the other, and the margin decides.
    """
    if not drawn:
        return more.low > 0
    return more.value > 0 or (kind == PERMUTED and more.value == 0 and change.complete)


def _reached(changes: Sequence[_Change], kinds: Sequence[str]) -> dict[str, list[float]]:
    """The smallest of the changes under each control whose answers are known."""
    known = [kind for kind in kinds if not any(np.isnan(c.of_controls[kind]).all() for c in changes)]
    return {kind: [float(min(np.nanmean(c.of_controls[kind]) for c in changes))] for kind in known}


def _mean(values: Values, requests: Shaped[np.ndarray, " answer"]) -> Interval:
    """Mean of the changes that are known (-1, 0 or 1), with its interval over requests; NaN of nothing."""
    known = ~np.isnan(values)
    if not known.any():
        return NAN
    rises, falls = ((sign * values[known] > 0).astype(float) for sign in (1, -1))
    clusters = list(requests[known])
    return clustered_difference(rises, clusters, b=falls, clusters_b=clusters)


# -- what else an ablation does to answers --------------------------------------------------------------------
_SPEAKS_NOT = "most of the model's own answers to benign prompts are incoherent"


def _speaks_not(sheet: AnswerSheet) -> bool:
    return bool(sheet.answers["benign", CLEAN].incoherent.mean() > RULE.max_clean_incoherent)


def _coherence(sheet: AnswerSheet) -> Claim:
    """Incoherent answers rise by less than the limit under ablation, to harmful and to benign prompts: the worse of the two."""
    if _speaks_not(sheet):
        return Claim.untested(COHERENCE, _SPEAKS_NOT, measure=ANSWERS)
    limit = RULE.max_incoherent_rise
    rises = {
        label: sheet.answers[label, SET_ABLATED].incoherent - sheet.answers[label, CLEAN].incoherent for label in LABELS
    }
    requests = sheet.requests
    p = {label: at_most(rise, list(requests), limit) for label, rise in rises.items()}
    worst = max(LABELS, key=lambda label: (p[label], rises[label].mean()))
    effect = _mean(rises[worst], requests)
    note = f"incoherent answers to {worst} prompts rise by {effect}, the worse of both labels; the rise is to be below {limit:g}"
    few = too_few(requests, limit)
    verdict = verdict_of_test(p[worst] <= RULE.alpha, few)
    return Claim(COHERENCE, effect, verdict, p={"one-sided": p[worst]}, note="; ".join([note, *few]), measure=ANSWERS)


def measure_utility(
    before: Sequence[Grade], after: Sequence[Grade], *, requests: Shaped[np.ndarray, " answer"]
) -> Claim:
    """The share of benign answers that are right is equivalent before and after ablation (TOST).

    Args:
        before, after: graded answers to the same benign prompts.
        requests: the request of each answer.
    """
    change = [
        (float(b.right) - float(a.right), request)
        for a, b, request in zip(before, after, requests, strict=True) if a.right is not None and b.right is not None
    ]  # fmt: skip
    if not change:
        return Claim.untested(UTILITY, "no prompt says what a right answer contains ('expect')", measure=ANSWERS)
    values, clusters = np.array([c for c, _ in change]), np.array([c for _, c in change], dtype=object)
    limit = RULE.max_utility_change
    p = equivalent(values, list(clusters), limit)
    note = (
        f"share of {len(values)} benign answers that are right, after minus before; equivalent to 0 within ±{limit:g}"
    )
    few = too_few(clusters, limit)
    verdict = verdict_of_test(p <= RULE.alpha, few)
    effect = _mean(values, clusters)
    return Claim(UTILITY, effect, verdict, p={"TOST": p}, note="; ".join([note, *few]), measure=ANSWERS)


# -- wording ----------------------------------------------------------------------------------------------------
def measure_wording(sheet: AnswerSheet) -> Wording | None:
    """Fall of judged refusals beside the fall of refusal prefixes, under mean ablation; None where no answer could be graded.

    Only the wording changes where fewer (or more) answers to harmful prompts start with a refusal prefix, while it is not shown that
    fewer (or more) of them refuse, and the difference between the two changes is shown. Where clean answers to harmful prompts are not
    judged to refuse more often than those to benign prompts (a judge that says the same of every answer), no refusal is there to stay.

    Args:
        sheet: answers under every condition.
    """
    clean, after = sheet.answers["harmful", CLEAN], sheet.answers["harmful", SET_ABLATED]
    judged, keyword = clean.refused - after.refused, clean.prefixed - after.prefixed
    known = ~np.isnan(judged) & ~np.isnan(keyword)
    if not known.any():
        return None
    judged, keyword, requests = judged[known], keyword[known], sheet.requests[known]

    def shown(values: Values) -> bool:
        found = _mean(values, requests)
        return bool(
            found.low > 0 and found.value >= RULE.min_answer_change and positive(values, list(requests)) <= RULE.alpha
        )

    more = keyword - judged
    benign = sheet.answers["benign", CLEAN].refused
    benign = benign[~np.isnan(benign)]
    refuses = not len(benign) or clean.refused[known].mean() - benign.mean() >= RULE.min_refusal
    only = refuses and any(
        shown(sign * keyword) and not shown(sign * judged) and _mean(sign * more, requests).low > 0 for sign in (1, -1)
    )
    return Wording(_mean(judged, requests), _mean(keyword, requests), _mean(more, requests), only_wording=bool(only))
