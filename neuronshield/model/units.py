"""Margins and answers as units of work for an engine (see `engine`).

    margins    a batch of prompts under up to `CONDITIONS` interventions
    answers    about `ANSWERED` prompts under one intervention

What conditions share on a batch (`forward.prepare`) is kept for the next unit on the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..data.prompts import Prompt
from .edits import check_conditions
from .encoding import check_prompts
from .engine import Context, Result, Runner, Unit, part_of, shards
from .forward import Prepared, margins, prepare
from .generation import generate
from .intervention import Intervention
from .model import Model
from .prefixes import OpeningTokens

__all__ = ["answers_of", "margins_of", "run_answers", "run_margins"]

CONDITIONS = 256  # of a unit of margins
ANSWERED = 128  # prompts of a unit of answers, rounded to whole batches
KEPT_BYTES = 2**30  # of what is kept between units; one unit's is kept whatever its size


def run_margins(
    runner: Runner,
    model: Model,
    prompts: Sequence[Prompt],
    *,
    conditions: Sequence[Intervention | None],
    tokens: dict[str, OpeningTokens],
    batch_size: int = 64,
    frozen: bool = False,
    progress: bool = False,
    desc: str = "ablate",
) -> Float[np.ndarray, "condition prompt"]:
    """Refusal margins of prompts under conditions, as `forward.margins` gives them, computed by an engine.

    >>> from neuronshield.model.engine import InProcess
    >>> from neuronshield.model.prefixes import opening_tokens, openings_of
    >>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
    >>> run_margins(InProcess().on(model), model, prompts[:5], conditions=[None], tokens=tokens).shape
    (1, 5)

    Args:
        runner: the engine with the model on it.
        model: the model.
        prompts: the prompts.
        conditions: interventions; None for a clean run.
        tokens: first-token ids by language.
        batch_size: prompts a forward.
        frozen: as in `forward.margins`.
        progress: show a progress bar.
        desc: its label.

    Raises:
        InputError, RuntimeError: as `forward.margins`.
    """
    check_conditions(model, prompts, conditions)
    check_prompts(model, prompts)
    last_only = all(c is None or c.positions == "last_prompt" for c in conditions)
    options = {
        "tokens": {language: [list(ids) for ids in tokens[language]] for language in sorted(tokens)},
        "batch_size": batch_size, "frozen": frozen, "prepared": len(conditions) > 2 and last_only,
    }  # fmt: skip
    plan = [
        (rows, start)
        for rows in shards(prompts, batch_size, batches=1)
        for start in range(0, len(conditions), CONDITIONS)
    ]

    def units() -> Iterator[Unit]:
        for rows, start in plan:
            chosen = part_of(conditions[start : start + CONDITIONS], prompts, rows)
            used = {prompts[i].language for i in rows}
            mine = {**options, "tokens": {k: v for k, v in options["tokens"].items() if k in used}}  # type: ignore[attr-defined]
            yield Unit(f"{__name__}:margins_of", tuple(prompts[i] for i in rows), tuple(chosen), options=mine)

    out = np.empty((len(conditions), len(prompts)))
    found = runner.map(units(), desc=desc, progress=progress, total=len(conditions) * len(prompts))
    for (rows, start), (arrays, _) in zip(plan, found, strict=True):
        out[start : start + CONDITIONS, rows] = arrays["margins"]
    return out


def margins_of(model: Model, unit: Unit, context: Context) -> Result:
    """Margins of a unit's prompts under its conditions: the work of `run_margins`.

    >>> from neuronshield.model.engine import Context, Unit
    >>> options = {"tokens": {"en": [[19], [18]]}, "batch_size": 4, "frozen": False, "prepared": True}
    >>> margins_of(model, Unit("", tuple(prompts[:3]), (None,), options=options), Context())[0]["margins"].shape
    (1, 3)

    Args:
        model: the model.
        unit: prompts and conditions, with the options of `run_margins`.
        context: keeps what conditions share on the same prompts.

    Raises:
        InputError, RuntimeError: as `forward.margins`.
    """
    options = unit.options
    found = margins(
        model, unit.prompts, unit.conditions, tokens={k: OpeningTokens(*ids) for k, ids in options["tokens"].items()},
        batch_size=options["batch_size"], frozen=options["frozen"],
        prepared=_prepared(model, unit, context) if options["prepared"] else None,
    )  # fmt: skip
    return {"margins": found}, None


def _prepared(model: Model, unit: Unit, context: Context) -> Prepared | None:
    """What conditions share on a unit's prompts; of the units before, what fits is kept."""
    kept: dict[Any, Any] = context.kept.setdefault("prepared", {})
    key = (unit.options["batch_size"], *map(id, unit.prompts))
    if key in kept:
        kept[key] = kept.pop(key)  # used last
    else:
        made = prepare(model, unit.prompts, batch_size=unit.options["batch_size"])
        kept[key] = unit.prompts, made, _bytes(made)
        while len(kept) > 1 and sum(size for _, _, size in kept.values()) > KEPT_BYTES:
            kept.pop(next(iter(kept)))
    return kept[key][1]  # type: ignore[no-any-return]


def _bytes(prepared: Prepared | None) -> int:
    size = 0
    for _, shared in prepared or []:
        layers = [layer for layer in getattr(shared.cache, "layers", []) if layer.is_initialized]
        tensors = [*shared.residual.values(), *(x for layer in layers for x in (layer.keys, layer.values))]
        size += sum(x.numel() * x.element_size() for x in tensors)
    return size


def run_answers(
    runner: Runner,
    model: Model,
    prompts: Sequence[Prompt],
    *,
    intervention: Intervention | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    progress: bool = False,
    desc: str = "answer",
) -> list[str]:
    """Greedy answers to prompts, as `generate` gives them, computed by an engine.

    >>> from neuronshield.model.engine import InProcess
    >>> len(run_answers(InProcess().on(model), model, prompts[:4], max_new_tokens=3))
    4

    Args:
        runner: the engine with the model on it.
        model: the model.
        prompts: the prompts.
        intervention: what is changed; None for nothing.
        max_new_tokens: tokens an answer, at most.
        batch_size: prompts a batch.
        progress: show a progress bar.
        desc: its label.

    Raises:
        InputError, RuntimeError: as `generate`.
    """
    model.needs_here("generate")
    check_conditions(model, prompts, [intervention], generated=max_new_tokens)
    check_prompts(model, prompts, extra=max_new_tokens)
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    plan = shards(prompts, batch_size, batches=max(1, ANSWERED // batch_size))

    def units() -> Iterator[Unit]:
        for rows in plan:
            chosen = part_of([intervention], prompts, rows)
            yield Unit(f"{__name__}:answers_of", tuple(prompts[i] for i in rows), tuple(chosen), options=options)

    out = [""] * len(prompts)
    for rows, (_, texts) in zip(
        plan, runner.map(units(), desc=desc, progress=progress, total=len(prompts)), strict=True
    ):
        for row, text in zip(rows, texts, strict=True):
            out[row] = text
    return out


def answers_of(model: Model, unit: Unit, context: Context) -> Result:
    """Answers to a unit's prompts: the work of `run_answers`.

    >>> from neuronshield.model.engine import Context, Unit
    >>> options = {"max_new_tokens": 3, "batch_size": 4}
    >>> len(answers_of(model, Unit("", tuple(prompts[:3]), (None,), options=options), Context())[1])
    3

    Args:
        model: the model.
        unit: prompts and one condition, with the options of `run_answers`.
        context: not used.

    Raises:
        InputError, RuntimeError: as `generate`.
    """
    return {}, generate(model, unit.prompts, intervention=unit.conditions[0], **unit.options)
