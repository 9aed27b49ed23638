"""Answers graded again, by another judge, without generating them again."""

from __future__ import annotations

from dataclasses import replace

from ..core.arguments import require
from ..data.judging import Judge, check_judge
from .evaluation import Evaluation
from .graded import judged_again

__all__ = ["regraded"]


def regraded(evaluation: Evaluation, judge: Judge | None) -> Evaluation:
    """The same answers, graded by another judge, or by their words alone.

    >>> from neuronshield.check.judges import PrefixJudge
    >>> options = {"refusals": ["sorry"], "compliances": ["sure"], "max_new_tokens": 3, "progress": False}
    >>> again = regraded(ns.evaluate(model, prompts, **options), PrefixJudge(["the"]))
    >>> again.provenance["judge"]
    'prefixes'

    Args:
        evaluation: graded answers.
        judge: its verdict replaces that of the words where it has one; None for the words alone.

    Raises:
        InputError: something that is no judge, or a judge that returns no verdict.
    """
    require(evaluation, Evaluation, call="regraded(evaluation, judge)", name="evaluation")
    check_judge(judge, call="regraded")
    about = {name: value for name, value in evaluation.provenance.items() if name != "judge"}
    if judge is not None:
        about["judge"] = judge.name
    opened = set(about.get("in_thought", ()))
    answers = [judged_again(judge, a, in_thought=a.prompt.id in opened) for a in evaluation.answers]
    return replace(evaluation, answers=answers, provenance=about)
