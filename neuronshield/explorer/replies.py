"""Answers to the prompts of an explorer: as the model is, and with neurons ablated.

    as it is                the model
    set ablated             a set at its mean on benign prompts of the cell, at the last token of the prompt, as `verify` ablates it
    random set ablated      the same of a random set with as many neurons a layer
    alone                   the same of one neuron

Answers that are known already, such as those of a run, are taken as they are. All others are generated; answers of one condition are
drafts of the others (`model.drafts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..data.grading import Openings, grade
from ..data.prompts import Cell, Prompt
from ..model.drafts import remember
from ..model.generation import generate, settings
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import openings_of
from ..model.thoughts import in_thought
from .view import AS_IT_IS, SaidView

__all__ = ["RANDOM_ABLATED", "SET_ABLATED", "Answering", "KnownAnswers", "benign_mean"]

SET_ABLATED, RANDOM_ABLATED = "set ablated", "random set ablated"

#: Answers by condition and by the prompt's id.
KnownAnswers = Mapping[str, Mapping[str, SaidView]]
#: The benign mean of every neuron in each cell; empty where there are no benign prompts.
Means = Mapping[Cell, Float[np.ndarray, "n_layers d_mlp"]]


@dataclass(frozen=True)
class Answering:
    """Answers prompts under one intervention after the other, and grades the answers.

    >>> answering = Answering(model, list(prompts[:4]), max_new_tokens=3)
    >>> [said.outcome for said in answering.under(None)]
    ['complied', 'complied', 'complied', 'complied']

    Attributes:
        model: the model.
        prompts: what is asked.
        max_new_tokens: tokens of an answer, at most.
        batch_size: prompts a forward.
        progress: show progress bars.
        known: answers that need not be generated, by condition.
    """

    model: Model
    prompts: Sequence[Prompt]
    max_new_tokens: int = 24
    batch_size: int = 32
    progress: bool = False
    known: KnownAnswers = field(default_factory=dict)

    def under(self, intervention: Intervention | None, *, name: str = "") -> list[SaidView]:
        """The answers under an intervention, in the order of the prompts.

        Args:
            intervention: what is changed; None for nothing.
            name: of the condition: its known answers are taken.
        """
        given = self.known.get(name, {})
        left = [p for p in self.prompts if p.id not in given]
        found = dict(given)
        if left:
            openings, opened = self._grading
            texts = generate(
                self.model, left, intervention=_of_rows(intervention, [p.id not in given for p in self.prompts]),
                max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, progress=self.progress, desc=name or "answer",
            )  # fmt: skip
            for prompt, text in zip(left, texts, strict=True):
                said = grade(prompt, text, openings, in_thought=opened[prompt.id]).outcome
                found[prompt.id] = SaidView(text, "" if said == "unknown" else said)
        return [found[p.id] for p in self.prompts]

    @property
    def _grading(self) -> tuple[Openings, dict[str, bool]]:
        opened = in_thought(self.model, self.prompts)
        return openings_of(self.model, self.prompts), {p.id: o for p, o in zip(self.prompts, opened, strict=True)}

    def all(
        self, changed: NeuronSet, random: NeuronSet | None, *, means: Means
    ) -> dict[str, list[SaidView] | Mapping[str, SaidView]]:
        """The answers by condition: as it is, the set ablated, the random set ablated, and what else is known.

        Args:
            changed: the set.
            random: the random set; None for none.
            means: of the benign prompts.
        """
        self._draft()
        out: dict[str, list[SaidView] | Mapping[str, SaidView]] = {AS_IT_IS: self.under(None, name=AS_IT_IS)}
        for name, neurons in ((SET_ABLATED, changed), (RANDOM_ABLATED, random)):
            if neurons is not None:
                out[name] = self.under(benign_mean(neurons, self.prompts, means), name=name)
        return out | {name: given for name, given in self.known.items() if name not in out}

    def alone(self, neurons: Sequence[tuple[int, int]], *, means: Means) -> list[list[SaidView]]:
        """The answers to each prompt with each neuron ablated alone, by neuron.

        Args:
            neurons: as (layer, index).
            means: of the benign prompts.
        """
        return [self.under(benign_mean(NeuronSet([at]), self.prompts, means)) for at in neurons]

    def _draft(self) -> None:
        """Keep the known answers as drafts of the others."""
        ends = settings(self.model, self.max_new_tokens)["eos_token_ids"]
        for prompt in self.prompts:
            if said := self.known.get(AS_IT_IS, {}).get(prompt.id):
                ids = self.model.tokenizer(said.text, add_special_tokens=False)["input_ids"]
                remember(self.model, prompt, [*ids, *ends[:1]][: self.max_new_tokens])


def benign_mean(neurons: NeuronSet, prompts: Sequence[Prompt], means: Means) -> Intervention:
    """The ablation of a set: its benign mean in the cell of each prompt, zero without any means.

    >>> benign_mean(neurons, prompts[:2], {})
    Intervention(zero, 3 neurons in 3 layers, positions='last_prompt')

    Args:
        neurons: the set.
        prompts: the prompts, in order.
        means: of the benign prompts.
    """
    if not means:
        return Intervention(neurons, "zero")
    return Intervention(neurons, "mean", np.stack([means[p.cell] for p in prompts]))


def _of_rows(intervention: Intervention | None, rows: Sequence[bool]) -> Intervention | None:
    """An intervention of some of its prompts."""
    if intervention is None or intervention.value is None or intervention.value.ndim < 3:
        return intervention
    return intervention.with_value(intervention.value[np.array(rows)])
