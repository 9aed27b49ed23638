"""Texts to graded answers: by their words, and by a judge where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from ..data.grading import Grade, Openings, grade
from ..data.judging import Judge, judged
from ..data.prompts import Prompt
from .cells import Answer

__all__ = ["graded", "judged_again"]


def graded(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    *,
    openings: Openings,
    in_thought: Sequence[bool],
    judge: Judge | None = None,
    progress: bool = False,
) -> list[Answer]:
    """The answers to some prompts, graded.

    >>> from neuronshield.data.grading import openings_for
    >>> (answer,) = graded(prompts[:1], ["Sorry, no."], openings=openings_for(prompts[:1]), in_thought=[False])
    >>> answer.outcome
    'refused'

    Args:
        prompts: what was asked.
        texts: what was answered.
        openings: the prefixes that hold, from `openings_for` or `openings_of`.
        in_thought: for each prompt, whether it ends inside a thought that its chat template opened.
        judge: its verdict replaces that of the words where it has one.
        progress: show a progress bar.

    Raises:
        InputError: a judge that returns no verdict.
    """
    answers = [
        Answer(p, t, *grade(p, t, openings, in_thought=o)) for p, t, o in zip(prompts, texts, in_thought, strict=True)
    ]
    if judge is None:
        return answers
    rows = zip(answers, in_thought, strict=True)
    shown = tqdm(rows, desc=judge.name, disable=not progress, leave=False, total=len(answers))
    return [judged_again(judge, answer, in_thought=opened) for answer, opened in shown]


def judged_again(judge: Judge | None, answer: Answer, *, in_thought: bool) -> Answer:
    """The answer with a judge's verdict in the place of an earlier one (see `data.judging.judged`).

    >>> from neuronshield.check.judges import PrefixJudge
    >>> judged_again(PrefixJudge(["No"]), Answer(prompts[0], "Sorry.", refused=True, right=None), in_thought=False).refused
    False

    Args:
        judge: any judge; None for the words alone.
        answer: the answer, graded.
        in_thought: its prompt ends inside a thought that the chat template opened.

    Raises:
        InputError: a judge that returns no verdict.
    """
    words = Grade(answer.refused if answer.graded is None else answer.graded, answer.right, answer.incoherent)
    return replace(
        answer, **judged(judge, answer.prompt, answer.response, found=words, in_thought=in_thought)._asdict()
    )
