"""How a guard is learnt: barriers, what they predict, their residuals and levels, each from requests of its own.

    requests of folds 0-3    w and b of every barrier; then, with random raises, the transition
    requests of folds 4-5    the zero of every barrier; then, under the guard, the distribution of the residual
    requests of folds 6-7    under the finished guard: the levels whose shortfalls the bound is made of

So nothing that a number rests on was fitted to the requests that it is measured on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.grading import Openings, grade
from ..data.prompts import Prompt, PromptSet
from ..find.folds import FOLDS, folds_of
from ..model.model import Model
from ..model.thoughts import in_thought
from .barrier import Barrier, Slot, barriers, line, project, separation_of, shares
from .exits import followed
from .readings import Readings, readings
from .steering import Steered, Steering, levels_of, slot_at, steered
from .transition import Transition, fitted, settled

__all__ = ["LABELS", "Learned", "calibrated", "learned", "parts_of"]

LABELS = ("harmful", "benign")
HALF = 0.5  # share of steps that are not raised while the transition is learnt


@dataclass(frozen=True)
class Learned:
    """What a guard is made of.

    Attributes:
        slots: the barriers.
        separation: held-out AUC of each.
        levels: by label, of answers under the finished guard, [answer, token].
        answered: harmful prompts that were answered, of the first two parts.
        parts: prompts of each part.
    """

    slots: dict[Slot, Barrier]
    separation: dict[Slot, float]
    levels: dict[str, Float[np.ndarray, "_ token"]]
    answered: int
    parts: list[int]


def learned(
    model: Model,
    prompts: PromptSet,
    neurons: NeuronSet,
    *,
    steering: Steering,
    openings: Openings,
    benign_rate: float,
    seed: int,
) -> Learned:
    """What a guard on these neurons is made of.

    Args:
        model: the model.
        prompts: all that is learnt from.
        neurons: the set.
        steering: what is enforced, and how answers are generated.
        openings: refusal and compliance prefixes.
        benign_rate: the largest share of safe prompts of the second part outside the safe set.
        seed: of the deal of the requests, and of the random raises.

    Raises:
        InputError: fewer than eight requests, a class that is missing in a part, or states of a slot that do not differ.
    """
    parts = parts_of(prompts, seed)
    fit, held, last = ([prompts[i] for i in part] for part in parts)
    both, n = [*fit, *held], len(fit)
    run = readings(model, both, neurons, change=lambda *at: (None, at[-1].float()), **steering.generation)
    unsafe, states = _unsafe(model, both, run.texts, openings=openings), _slots_of(run.kept)
    lines, others = _lines(states, fit, unsafe[:n]), {slot: xs[n:] for slot, xs in states.items()}
    if unsafe[n:].all():
        raise InputError("fit_guard: every prompt that is held out is harmful and was answered; add benign ones")
    slots = barriers(lines, others, held, unsafe=unsafe[n:], benign_rate=benign_rate)
    separation = {
        slot: separation_of([b.heights(x.double()) for x in others[slot]], held, unsafe=unsafe[n:])
        for slot, b in slots.items()
    }
    reach = {
        slot: _reach(b, [states[slot][i] for i in np.flatnonzero(unsafe[:n])], steering.margin)
        for slot, b in slots.items()
    }
    slots = _with_transitions(model, fit, neurons, slots=slots, reach=reach, seed=seed, steering=steering)
    trial = steered(model, held, neurons, slots=slots, steering=steering)
    slots = _settled(slots, trial, held, layers=list(neurons.per_layer()))
    final = steered(model, last, neurons, slots=slots, steering=steering)
    levels = calibrated(final, last, steering=steering)
    return Learned(slots, separation, levels, answered=int(unsafe.sum()), parts=[len(part) for part in parts])


def parts_of(prompts: Sequence[Prompt], seed: int) -> list[list[int]]:
    """Rows that barriers are fitted to, rows of the residual, and rows of the shortfalls: half, a quarter and a quarter.

    >>> [len(part) for part in parts_of(prompts, seed=0)]
    [32, 16, 12]

    Args:
        prompts: the prompts; all of one request are in one part.
        seed: of the deal.

    Raises:
        InputError: fewer than eight requests.
    """
    folds = folds_of(prompts, seed)
    if len(set(folds)) < FOLDS:
        raise InputError(
            f"fit_guard: {len({p.cluster for p in prompts})} requests are too few; it takes at least {FOLDS}"
        )
    return [[i for i, fold in enumerate(folds) if fold in part] for part in (range(4), (4, 5), (6, 7))]


def _slots_of(kept: Mapping[int, Sequence[Tensor]]) -> dict[Slot, list[Tensor]]:
    """States by slot: the first step of each prompt, and the others.

    Args:
        kept: activations of each layer's members, [step, member] for each prompt.
    """
    return {
        (layer, kind): [x[:1] if kind == 0 else x[1:] for x in rows] for layer, rows in kept.items() for kind in (0, 1)
    }


def _unsafe(
    model: Model, prompts: Sequence[Prompt], texts: Sequence[str], *, openings: Openings
) -> Bool[np.ndarray, " prompt"]:
    """Whether each prompt is harmful and was answered."""
    opened = in_thought(model, prompts)
    grades = [grade(p, t, openings, in_thought=o) for p, t, o in zip(prompts, texts, opened, strict=True)]
    return np.array([p.label == "harmful" and g.outcome == "complied" for p, g in zip(prompts, grades, strict=True)])


def _lines(
    states: Mapping[Slot, Sequence[Tensor]], prompts: Sequence[Prompt], unsafe: Bool[np.ndarray, " prompt"]
) -> dict[Slot, tuple[Tensor, float]]:
    """w and b of each slot, fitted to the first prompts."""
    if not unsafe.any():
        harmful = sum(p.label == "harmful" for p in prompts)
        raise InputError(
            f"fit_guard: none of {harmful} harmful prompts was answered; there is nothing to guard against"
        )
    if unsafe.all():
        raise InputError("fit_guard: every prompt is harmful and was answered; add benign ones")
    weights = shares(prompts, unsafe)
    return {slot: line(xs[: len(prompts)], unsafe, weights) for slot, xs in states.items()}


def _reach(barrier: Barrier, unsafe: Sequence[Tensor], margin: float) -> float:
    """Twice the raise that takes the mean unsafe state to the margin, and at least 2: how far raises are tried."""
    return 2 * max(1.0, margin - float(torch.cat([barrier.heights(x) for x in unsafe]).mean()))


def _with_transitions(
    model: Model,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    *,
    slots: Mapping[Slot, Barrier],
    reach: Mapping[Slot, float],
    seed: int,
    steering: Steering,
) -> dict[Slot, Barrier]:
    """The barriers with transitions, from answers in which about half of the steps of each layer are raised at random."""
    rng = np.random.default_rng(seed)
    size = (len(prompts), steering.max_new_tokens, 2)
    raises = {layer: torch.from_numpy(rng.random(size)).float() for layer in neurons.per_layer()}
    here = {slot: replace(b, weight=b.weight.to(model.device)) for slot, b in slots.items()}

    def change(rows: Sequence[int], at: tuple[int, int], x: Tensor) -> tuple[Tensor, Tensor]:
        (step, layer), slot = at, slot_at(*at)
        h, drawn = here[slot].heights(x), raises[layer][list(rows), step].to(x.device)
        up = torch.where(drawn[:, 0] < HALF, 0.0, drawn[:, 1] * reach[slot])
        new, _ = project(x, here[slot], torch.where(up > 0, h + up, -torch.inf))
        return new, torch.stack([h, up], dim=1)

    run = readings(model, prompts, neurons, change=change, **steering.generation)
    requests = np.array([p.cluster for p in prompts], dtype=object)
    made = {}
    for slot, barrier in slots.items():
        h, up, after, who = _steps_of(run, slot)
        learnt = fitted(h, up, after, requests=requests[who].tolist(), reach=reach[slot])
        made[slot] = replace(barrier, transition=learnt)
    return made


def _steps_of(run: Readings, slot: Slot) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Heights, raises, next heights and prompts of all steps of a slot that have a next one."""
    layer, kind = slot
    out: list[np.ndarray] = []
    for row, x in enumerate(run.kept[layer]):
        x = x.double()
        now = range(min(1, len(x) - 1)) if kind == 0 else range(1, len(x) - 1)
        out += [np.array([float(x[k, 0]), float(x[k, 1]), float(x[k + 1, 0]), row]) for k in now]
    h, up, after, who = np.array(out).reshape(-1, 4).T
    return h, up, after, who.astype(int)


def _settled(
    slots: Mapping[Slot, Barrier], run: Steered, prompts: Sequence[Prompt], *, layers: Sequence[int]
) -> dict[Slot, Barrier]:
    """The barriers with the residual's mean and spread, from answers under the guard to requests that had no part in the fit."""
    out = {}
    for (layer, kind), barrier in slots.items():
        at, residuals, requests = layers.index(layer), [], []
        for h, up, p in zip(run.heights, run.raised, prompts, strict=True):
            now = slice(0, 1) if kind == 0 else slice(1, None)
            ahead = barrier.transition.ahead(torch.from_numpy(h[:-1, at][now]), torch.from_numpy(up[:-1, at][now]))
            residuals.append(h[1:, at][now] - ahead.numpy())
            requests += [p.cluster] * len(residuals[-1])
        found: Transition = settled(barrier.transition, np.concatenate(residuals), requests=requests)
        out[layer, kind] = replace(barrier, transition=found)
    return out


def calibrated(
    run: Steered, prompts: Sequence[Prompt], *, steering: Steering
) -> dict[str, Float[np.ndarray, "_ token"]]:
    """By label, the levels of answers under a finished guard, one row an answer (`exits.followed`).

    Args:
        run: the answers.
        prompts: their prompts.
        steering: how they were generated.
    """
    levels = [levels_of(h, steering.margin) for h in run.heights]
    return {
        label: followed(
            [s for s, p in zip(levels, prompts, strict=True) if p.label == label], steering.max_new_tokens - 1
        )
        for label in LABELS
    }
