"""Answers while barriers are enforced, with the heights, raises and levels of every decoding step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.arguments import at_least
from ..core.display import count
from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from ..model.model import Model
from .barrier import Barrier, Slot, project
from .exits import exited
from .readings import Readings, readings
from .transition import needed

__all__ = ["Guarded", "Steered", "Steering", "guarded", "levels_of", "slot_at", "steered"]


@dataclass(frozen=True)
class Steering:
    """How answers are steered and generated.

    Attributes:
        alpha: factor that the level may fall by at a step.
        margin: height that a state outside the safe set is brought back to.
        max_new_tokens: tokens an answer.
        batch_size: prompts a forward.
        desc: label of the progress bar; none without it.
    """

    alpha: float
    margin: float
    max_new_tokens: int
    batch_size: int
    desc: str = ""

    @property
    def generation(self) -> dict[str, Any]:
        """Its part that `readings` takes."""
        return {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size, "desc": self.desc}


@dataclass(frozen=True, eq=False)
class Steered:
    """Answers, and what happened at each step; arrays are [step, layer] for each prompt, layers ascending.

    Attributes:
        texts: the answers.
        heights: h as the model computed it, before any change of that layer at that step.
        raised: by how much h was raised; 0 where nothing was changed.
        unmet: where the next height was still expected to be too low.
    """

    texts: list[str]
    heights: list[Float[np.ndarray, "_ layer"]]
    raised: list[Float[np.ndarray, "_ layer"]]
    unmet: list[Bool[np.ndarray, "_ layer"]]


def slot_at(step: int, layer: int) -> Slot:
    """The slot of a layer at a decoding step.

    >>> slot_at(0, 5), slot_at(3, 5)
    ((5, 0), (5, 1))

    Args:
        step: 0 for the last prompt token.
        layer: the layer.
    """
    return layer, min(step, 1)


def steered(
    model: Model,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    *,
    slots: Mapping[Slot, Barrier],
    steering: Steering,
) -> Steered:
    """Greedy answers with the conditions of `neuronshield.shield.transition` enforced at every step and layer.

    Args:
        model: the model.
        prompts: the prompts.
        neurons: the set.
        slots: a barrier for each of its layers and both kinds of token.
        steering: what is enforced, and how answers are generated.
    """
    here = {slot: replace(b, weight=b.weight.to(model.device)) for slot, b in slots.items()}

    def change(_: Sequence[int], at: tuple[int, int], x: Tensor) -> tuple[Tensor, Tensor]:
        barrier = here[slot_at(*at)]
        h = barrier.heights(x)
        least, unmet = needed(h, barrier.transition, alpha=steering.alpha, margin=steering.margin)
        new, moved = project(x, barrier, least)
        return new, torch.stack([h, torch.where(moved, least - h, 0.0), unmet.to(h)], dim=1)

    run = readings(model, prompts, neurons, change=change, **steering.generation)
    heights, raised, unmet = (_by_prompt(run, part) for part in range(3))
    return Steered(run.texts, heights, raised, unmet=[u > 0 for u in unmet])


def _by_prompt(run: Readings, part: int) -> list[np.ndarray]:
    """One of the kept columns, [step, layer] for each prompt."""
    return [np.stack([x[:, part].double().numpy() for x in of], axis=1) for of in zip(*run.kept.values(), strict=True)]


def levels_of(heights: Float[np.ndarray, "step layer"], margin: float) -> Float[np.ndarray, " step"]:
    """S_k of `neuronshield.shield.exits`: the lowest height of all layers, within 0 and 1.

    At the last prompt token, which is where an answer starts, a layer outside the safe set counts as it is after the guard has
    brought it back to the margin.

    >>> levels_of(np.array([[-1.0, 0.9], [2.0, 3.0], [0.5, -0.1]]), margin=1.0).tolist()
    [0.9, 1.0, 0.0]

    Args:
        heights: of one answer.
        margin: height that a state outside the safe set is brought back to.
    """
    heights = heights.copy()
    heights[0] = np.where(heights[0] > 0, heights[0], margin)
    return heights.min(axis=1).clip(0.0, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class Guarded:
    """Answers under a guard, how often it changed an activation, and whether they left the safe set.

    Attributes:
        texts: the answers.
        steps: decoding steps of each prompt.
        touched: those of its steps at which any layer was changed.
        edits: how many of its steps were changed in each layer, layers ascending.
        unmet: those of its steps at which, in any layer, the next height was still expected to be too low.
        levels: S_0, S_1, ... of each prompt, one a step: 0 outside the safe set, 1 well inside.
    """

    texts: list[str]
    steps: Int[np.ndarray, " prompt"]
    touched: Int[np.ndarray, " prompt"]
    edits: Int[np.ndarray, "prompt layer"]
    unmet: Int[np.ndarray, " prompt"]
    levels: list[Float[np.ndarray, " _"]]

    def exits(self, tokens: int) -> Bool[np.ndarray, " prompt"]:
        """Whether each answer has left the safe set within so many tokens; where it started does not count.

        Args:
            tokens: K, at least 1. It takes K + 1 steps to see K tokens; an answer that has ended has not left.

        Raises:
            InputError: a number that is not at least 1.
        """
        at_least(1, "exits", tokens=tokens)
        return exited(self.levels, tokens)

    def __repr__(self) -> str:
        changed = f"{int((self.touched > 0).sum())} of them changed at {int(self.touched.sum())} of {int(self.steps.sum())} steps"
        return f"Guarded({count(len(self.texts), 'answer')}, {changed})"


def guarded(run: Steered, margin: float) -> Guarded:
    """What a user is told of some answers.

    Args:
        run: the answers.
        margin: height that a state outside the safe set is brought back to.
    """
    fired = [up > 0 for up in run.raised]
    return Guarded(
        run.texts,
        steps=np.array([len(f) for f in fired]),
        touched=np.array([int(f.any(axis=1).sum()) for f in fired]),
        edits=np.stack([f.sum(axis=0) for f in fired]),
        unmet=np.array([int(u.any(axis=1).sum()) for u in run.unmet]),
        levels=[levels_of(h, margin) for h in run.heights],
    )
