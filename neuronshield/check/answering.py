"""The answers that an evaluation grades: of a model, of a model under a guard, or of a system."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ..core.errors import InputError
from ..core.intervals import clustered_rate
from ..data.prompts import Cell, PromptSet
from ..model.engine import Engine
from ..model.engines import engine_of
from ..model.model import Model, require_model
from ..model.thoughts import in_thought
from ..model.units import run_answers
from ..shield.guard import Guard, Guarded
from ..systems.system import System
from .cells import Touched

__all__ = ["Answered", "answered", "answerer"]


@dataclass(frozen=True)
class Answered:
    """Answers to prompts, before they are graded.

    Attributes:
        texts: of each prompt.
        opened: whether what was read ends inside a thought that the chat template opened.
        touched: with a guard, how often it acted in each cell.
    """

    texts: list[str]
    opened: list[bool]
    touched: dict[Cell, Touched] = field(default_factory=dict)


def answerer(model: Any, *, call: str) -> Model:
    """The model whose answers are graded: of a system, that of the node that answers.

    >>> answerer(ns.System([ns.Node("answer", model)]), call="evaluate(model, prompts)") is model
    True

    Args:
        model: a model or a system.
        call: how the call reads when it is right.

    Raises:
        InputError: neither.
    """
    one = model.last.model if isinstance(model, System) else model
    require_model(one, call=call)
    return cast("Model", one)


def answered(
    model: Model | System,
    prompts: PromptSet,
    *,
    guard: Guard | None = None,
    engine: Engine | str | None = None,
    name: str = "",
    **options: Any,
) -> Answered:
    """Greedy answers to prompts.

    >>> answered(model, prompts[:3], max_new_tokens=2, batch_size=3, progress=False).opened
    [False, False, False]

    Args:
        model: a model or a system.
        prompts: what is asked.
        guard: acts while a model's answers are generated.
        engine: where a model's answers are generated.
        name: the condition, for the progress bar.
        **options: `max_new_tokens`, `batch_size`, `progress`.

    Raises:
        InputError: a guard or an engine with a system, or as `ns.generate`.
    """
    desc = f"check {name}".strip()
    if isinstance(model, System):
        for what, value, hint in (
            ("guard", guard, "guard the model of a node"),
            ("engine", engine, "it runs in this process"),
        ):
            if value is not None:
                raise InputError(f"evaluate: {what}= has no use with a System; leave it out ({hint})")
        outcomes = model.run(prompts, desc=desc, **options)
        read = model.asked(prompts, outcomes)
        return Answered([outcome.answer for outcome in outcomes], in_thought(model.last.model, read))
    if guard is None:
        texts = run_answers(engine_of(engine).on(model), model, prompts, desc=desc, **options)
        return Answered(texts, in_thought(model, prompts))
    guarded = guard.generate(model, prompts, **options)
    return Answered(guarded.texts, in_thought(model, prompts), _touched(prompts, guarded))


def _touched(prompts: PromptSet, run: Guarded) -> dict[Cell, Touched]:
    """How often the guard acted, by cell."""
    out = {}
    requests = np.array([p.cluster for p in prompts], dtype=object)
    for cell in prompts.cells():
        rows = [[i for i, p in enumerate(prompts) if (p.cell, p.label) == (cell, x)] for x in ("benign", "harmful")]
        out[cell] = Touched(
            *(clustered_rate((run.touched[r] > 0).astype(float), requests[r].tolist()) for r in rows),
            *(
                clustered_rate(run.touched[r].astype(float), requests[r].tolist(), trials=run.steps[r].astype(float))
                for r in rows
            ),
        )
    return out
