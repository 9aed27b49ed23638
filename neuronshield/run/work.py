"""How much each step of a run computes: what `--plan` prints, and what the remaining time of a step is reckoned from.

What is not known before the run is taken as follows: the members that `verify` chooses are fewer than all, so that they are tested as
a set; the shield raises refusal, so that it is attacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data.prompts import Cell
from .comparison import compared_cells
from .job import Opened

__all__ = ["StepWork", "n_candidates", "work_of"]

KINDS = 3  # of control sets that are drawn, and as many single sets


@dataclass(frozen=True)
class StepWork:
    """What a step computes.

    Attributes:
        step: its name.
        captured: prompts whose neurons are recorded.
        margins: prompts read under an intervention.
        answers: answers generated.
        first: answers of them to prompts that no other condition has answered; the others are faster (`neuronshield.model.drafts`).
        training_steps: optimiser steps.
        forwards: prompts read, each token of an answer and each training prompt counted once.
        tokens: of these, about.
        seconds: expected; NaN until the probe has run.
        disk: bytes that are left.
    """

    step: str
    captured: int = 0
    margins: int = 0
    answers: int = 0
    first: int = 0
    training_steps: int = 0
    forwards: int = 0
    tokens: int = 0
    seconds: float = float("nan")
    disk: int = 0


def n_candidates(about: Opened) -> int:
    """How many neurons step find takes.

    Args:
        about: the model, its prompts and the plan of the run.
    """
    size, model = about.plan.size, about.model
    return size.get("k") or int(size["param_fraction"] * model.n_params / model.params_per_neuron)


def work_of(about: Opened, refusing: Sequence[Cell], *, prompt_tokens: float = 0.0) -> list[StepWork]:
    """What each step computes.

    >>> from neuronshield.run.job import open_job
    >>> from neuronshield.run.settings import Settings
    >>> [work.answers for work in work_of(open_job(model, prompts, Settings(draws=2, steps=2)), [])]
    [0, 12, 80, 176]

    Args:
        about: the model, its prompts and the plan of the run.
        refusing: the cells in which the model refuses.
        prompt_tokens: of a prompt, mean.
    """
    prompts, plan, model = about.prompts, about.plan, about.model
    k = n_candidates(about)
    neurons = model.n_layers * model.d_mlp
    discover, test = len(prompts.where(split="discover")), len(prompts.where(split="test"))
    find = StepWork("find", captured=discover, margins=discover, disk=len(prompts.cells()) * 2 * 8 * 3 * 8 * neurons)
    rows = prompts.where(split="confirm")
    pairs = len(rows.in_cells(refusing)) // 2 if refusing else 0
    sets = 1 + KINDS * (plan.draws + 1)
    of_set, graded = 5 * sets + 3, min(plan.graded, pairs) * (5 + 2 * 2 * KINDS)
    proved = round(pairs * of_set * 5 / 3 + pairs / 3 * k * 18) if pairs else len(rows)
    answers = graded * 5 // 3 or len(rows)
    prove = StepWork("prove", captured=len(rows), margins=proved, answers=answers, first=answers, disk=10**6)
    own = len([p for p in about.taught.where(label="benign") if p.target is None])
    compared = len(
        prompts.where(split="test").in_cells(
            compared_cells(prompts.where(split="test").cells(), set(about.taught.cells()))
        )
    )
    trained, t = plan.random_masks + 2, plan.training
    adapter = 3 * k * model.d_model * 4 * (trained + 1)
    shield = StepWork(
        "shield", training_steps=trained * t.steps, answers=trained * (own + len(t.snapshots) * compared) + 2 * own,
        first=own + compared, disk=adapter + trained * len(t.snapshots) * compared * 1000,
    )  # fmt: skip
    conditions, attacks = trained + 3, 3
    check = StepWork(
        "check", captured=discover + test, training_steps=40, answers=(conditions + attacks) * test,
        first=test - compared, disk=(conditions + attacks) * test * 2000,
    )  # fmt: skip
    return [_counted(work, prompt_tokens, about) for work in (find, prove, shield, check)]


def _counted(work: StepWork, tokens: float, about: Opened) -> StepWork:
    """With forwards and tokens."""
    new, batch = about.plan.max_new_tokens, about.plan.training.batch_size
    read = work.captured + work.margins + work.answers + work.training_steps * batch
    return replace(work, forwards=read + work.answers * new, tokens=round(read * tokens + work.answers * new))
