"""What becomes of refusals when a set is changed: the dose-response curve, and answers before and after.

    dose_response    the set's values multiplied by alpha: how far does the refusal margin follow, and how far with random sets?
    before_after     the answers as they are and under an intervention, with the grade of each

The curve is a margin measurement: it says nothing of the wording or the content of answers. `verify` has it too, on the cells where the
model refuses; here it is taken on all cells of the prompts, as they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real

import numpy as np
import pandas as pd

from ..core.arguments import at_least, check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.grading import grade
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.encoding import as_prompts
from ..model.engine import Engine
from ..model.engines import engine_of
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from ..model.thoughts import in_thought
from ..model.units import run_answers
from ..prove import experiments
from ..prove.controls import random_like
from ..prove.experiments import ALPHAS
from ..prove.pairs import match, measure
from .activations import chosen_neurons

__all__ = ["before_after", "dose_response"]


def dose_response(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    alphas: Sequence[float] = ALPHAS,
    draws: int = 20,
    seed: int = 0,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    batch_size: int = 64,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row for each factor: the normalised change of the refusal margin when the set's values are multiplied by it.

    >>> options = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}
    >>> frame = dose_response(model, neurons, prompts, alphas=[0, 1, 2], draws=2, **options)
    >>> frame.columns.tolist()
    ['alpha', 'harmful', 'harmful_low', 'harmful_high', 'benign', ..., 'random', 'random_low', 'random_high']
    >>> frame["harmful"].abs().lt(1e-4).tolist()                     # multiplied by 1, nothing changes
    [False, True, False]

    A change of 1 is as large as the clean logit difference, the mean margin of harmful minus that of benign prompts. `harmful` and `benign` are
    the changes on either label with their 95 % intervals over requests, `random` the mean, smallest and largest change of random sets on the
    harmful prompts (missing without any). The values are changed at the last token of the prompt.

    Args:
        model: the model, loaded here.
        neurons: the set.
        prompts: harmful and benign prompts; those of split "confirm", all if none is so marked. They are matched as `verify` matches them.
        alphas: the factors: 0 ablates to zero, 1 changes nothing, 2 doubles.
        draws: random sets with as many neurons a layer; 0 for none.
        seed: draws the sets, and the pairs where prompts have no matched ones.
        refusals: refusal prefixes of the margin, a list for every language or {language: list}; the model's own or the built-in ones by default.
        compliances: compliance prefixes, the same.
        batch_size: prompts a forward.
        engine: where margins are computed: None for this process, "ray", or an engine (`neuronshield.model.engine`).
        progress: show progress bars.

    Raises:
        InputError: arguments of another type, neurons of another model, no factors, only one label, or a language without prefixes.

    Source: Wang et al. (2023), "Interpretability in the wild", for the normalisation.
    """
    members = chosen_neurons("dose_response", model, neurons)
    hint = (
        "the neurons come before the prompts"
        if isinstance(prompts, NeuronSet)
        else "PromptSet.from_records reads dicts"
    )
    require(prompts, PromptSet, call="dose_response(model, neurons, prompts)", name="prompts", hint=hint)
    if not len(alphas) or not all(isinstance(a, Real) and np.isfinite(float(a)) for a in alphas):
        raise InputError(f"dose_response: alphas={list(alphas)!r:.80}: give finite numbers, at least one")
    at_least(0, "dose_response", draws=draws)
    at_least(1, "dose_response", batch_size=batch_size)
    check_seed(seed, call="dose_response")
    model.needs_here("dose_response")
    confirm = prompts.for_step("confirm")
    confirm.require_both_labels("dose_response")
    tokens = opening_tokens(model, openings_of(model, confirm, refusals=refusals, compliances=compliances))
    rng = np.random.default_rng(seed)
    random = [random_like(members, model, seed=rng) for _ in range(draws)]
    pairs = measure(
        model, match(confirm, seed=seed)[0], tokens, seed=seed, batch_size=batch_size, progress=progress,
        runner=engine_of(engine).on(model),
    )  # fmt: skip
    points = experiments.dose_response(pairs, members, random, alphas=alphas)
    rows = [(p.alpha, *p.harmful, *p.benign, *(p.random or (np.nan,) * 3)) for p in points]
    names = [name + end for name in ("harmful", "benign", "random") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["alpha", *names], dtype=float)


def before_after(
    model: Model,
    prompts: str | Prompt | Iterable[str | Prompt],
    intervention: Intervention,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row for each prompt: its answer as it is, and under an intervention, with the grade of each.

    >>> zero = ns.Intervention(neurons, "zero", positions="all")
    >>> options = {"refusals": ["sorry"], "compliances": ["sure"], "max_new_tokens": 3, "progress": False}
    >>> frame = before_after(model, prompts[:4], zero, **options)
    >>> frame.shape, frame.columns.tolist()
    ((4, 7), ['prompt', 'cell', 'label', 'before', 'before_grade', 'after', 'after_grade'])

    `prompt` is the id, and a grade is "refused", "complied", "incoherent" or "unknown", as in `evaluate` without a judge. Rows are in the
    order of the prompts; all of them are answered, whatever their split.

    Args:
        model: the model.
        prompts: a prompt, a string, or several of either. A string is a prompt in English that is labelled benign.
        intervention: what is changed.
        refusals: refusal prefixes that answers are graded by, a list for every language or {language: list}; the model's own without them, and
            without either how refusals are worded in each language.
        compliances: compliance prefixes, the same.
        max_new_tokens: tokens an answer.
        batch_size: prompts a forward.
        engine: where answers are generated: None for this process, "ray", or an engine (`neuronshield.model.engine`).
        progress: show a progress bar.

    Raises:
        InputError: arguments of another type, no prompts, or an intervention on neurons of another model.
    """
    rows = as_prompts(model, prompts, call="before_after")
    call, hint = "before_after(model, prompts, intervention)", "wrap the neurons: Intervention(neurons, 'zero')"
    require(intervention, Intervention, call=call, name="intervention", hint=hint)
    at_least(1, "before_after", max_new_tokens=max_new_tokens, batch_size=batch_size)
    if not len(rows):
        raise InputError("before_after: no prompts")
    openings = openings_of(model, rows, refusals=refusals, compliances=compliances)
    runner, opened = engine_of(engine).on(model), in_thought(model, rows)
    table = {
        "prompt": [p.id for p in rows],
        "cell": [str(p.cell) for p in rows],
        "label": [p.label for p in rows],
    }
    for name, condition in (("before", None), ("after", intervention)):
        texts = run_answers(
            runner, model, rows, intervention=condition, max_new_tokens=max_new_tokens, batch_size=batch_size,
            progress=progress, desc=name,
        )  # fmt: skip
        graded = [grade(p, t, openings, in_thought=o) for p, t, o in zip(rows, texts, opened, strict=True)]
        table |= {name: texts, f"{name}_grade": [g.outcome for g in graded]}
    return pd.DataFrame(table)
