"""The two modalities that are compared: their prompts by use, what the model does with them, and the conditions they are read under.

Prompts are used by their split, so that no request that selected neurons measures them:

    discover    selects: moments, probes, directions, behavioural labels
    confirm     confirms neurons one by one, and gives the benign means that patches write
    test        measures what sets and directions do

Two numbers are read at the first answer token, in one forward:

    refusal margin   logsumexp(refusal prefixes) - logsumexp(compliance prefixes), as everywhere in this package
    refusal mass     softmax probability of the first tokens of refusal prefixes

The refusal mass is the logistic function of the margin between the refusal tokens and **all other** tokens, so the same forward
passes compute it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy.special import expit
from torch import Tensor

from ..core.errors import InputError
from ..core.intervals import ratio_of_means
from ..core.neurons import NeuronSet
from ..core.statistics import Interval
from ..data.prompts import LABELS, Cell, Prompt, PromptSet
from ..find.moments import record
from ..model.engine import Runner
from ..model.gate import output_head
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import OpeningTokens
from ..model.thoughts import in_thought
from ..model.tokens import n_tokens
from ..model.units import run_answers, run_margins
from ..prove.answers import MAX_NEW_TOKENS, Answers, Grader
from .recording import record_under

__all__ = ["Bench", "Part", "Reader", "mass_tokens", "open_bench", "part_of_modality", "two_modalities"]


# -- prompts of one modality -----------------------------------------------------------------------------------
def two_modalities(prompts: PromptSet) -> tuple[str, str]:
    """The two modalities that are compared: text, and the first other one that there is.

    >>> two_modalities(prompts)
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: modality: the prompts are of text only; give prompts with pictures too, of the same requests

    Args:
        prompts: of two modalities or more.

    Raises:
        InputError: fewer.
    """
    found = list(dict.fromkeys(p.modality for p in prompts))
    others = [m for m in found if m != "text"]
    if "text" not in found or not others:
        only, lacking = (found[0], "pictures") if found == ["text"] else (", ".join(found), "text")
        raise InputError(
            f"modality: the prompts are of {only} only; give prompts with {lacking} too, of the same requests"
        )
    return "text", others[0]


def part_of_modality(
    prompts: PromptSet, modality: str, *, split: str, most: int, seed: int
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """The harmful and the benign prompts of one modality and split, at most so many of each, spread over requests and cells.

    >>> [len(rows) for rows in part_of_modality(prompts, "text", split="discover", most=12, seed=0)]
    [12, 12]

    Args:
        prompts: with splits, or without any.
        modality: which.
        split: "discover", "confirm" or "test".
        most: prompts of a label.
        seed: of the choice.
    """
    rng = np.random.default_rng([seed, len(split)])
    rows = [p for p in prompts.for_step(split) if p.modality == modality]
    out = []
    for label in LABELS:
        mine = [p for p in rows if p.label == label]
        order = rng.permutation(len(mine))
        cells: Counter[Cell] = Counter()
        place = {}
        for i in order:
            place[int(i)] = cells[mine[i].cell]
            cells[mine[i].cell] += 1
        kept = sorted(sorted(place, key=lambda i: place[i])[:most])
        out.append(tuple(mine[i] for i in kept))
    return out[0], out[1]


@dataclass(frozen=True, eq=False)
class Part:
    """Harmful and benign prompts of one modality and split.

    Attributes:
        harmful, benign: the prompts.
        requests: the request of each harmful prompt; intervals are over requests.
        benign_values: every neuron of the benign prompts at the last prompt token.
        clean: refusal margin and log odds of the refusal mass of the harmful prompts, of the unchanged model.
    """

    harmful: tuple[Prompt, ...]
    benign: tuple[Prompt, ...]
    requests: Shaped[np.ndarray, " prompt"]
    benign_values: Float[Tensor, "benign n_layers width"]
    clean: Float[np.ndarray, "reading prompt"]

    @cached_property
    def benign_mean(self) -> Float[Tensor, "prompt n_layers width"]:
        """For each harmful prompt what `means_for` gives."""
        return self.means_for(self.harmful)

    def means_for(self, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt n_layers width"]:
        """For each prompt the mean over the benign prompts of its cell; over all of them where its cell has none."""
        cells, values = [p.cell for p in self.benign], self.benign_values
        means = {c: values[[i for i, own in enumerate(cells) if own == c]].mean(dim=0) for c in dict.fromkeys(cells)}
        overall = values.mean(dim=0)
        return torch.stack([means.get(p.cell, overall) for p in prompts])

    def ablate(self, neurons: NeuronSet) -> Intervention:
        """The intervention that writes the benign mean of its cell into each harmful prompt, at the last prompt token."""
        return Intervention(neurons, "mean", self.benign_mean)

    def mean(self, values: Float[np.ndarray, " prompt"]) -> Interval:
        """The mean over prompts, with its interval over requests."""
        return ratio_of_means(values, np.ones(len(values)), list(self.requests))

    def __repr__(self) -> str:
        return f"Part({len(self.harmful)} harmful, {len(self.benign)} benign)"


# -- reading the model -----------------------------------------------------------------------------------------
def mass_tokens(model: Model, tokens: dict[str, OpeningTokens]) -> dict[str, OpeningTokens]:
    """By language the refusal tokens against all other tokens, whose margin is the log odds of the refusal mass.

    >>> found = mass_tokens(model, {"en": OpeningTokens(refusal=[19], compliance=[18])})
    >>> len(found["en"].compliance) == 38 - 1
    True

    Args:
        model: says how many tokens it can answer with.
        tokens: first tokens of refusal and compliance prefixes.
    """
    ids = range(_n_answers(model))
    return {
        language: OpeningTokens(found.refusal, sorted(set(ids) - set(found.refusal)))
        for language, found in tokens.items()
    }


def _n_answers(model: Model) -> int:
    """Width of the logits; some families read more tokens than they can answer with (Llama 3.2 Vision's image token)."""
    head: Any = output_head(model.module)
    if head is not None:
        return int(getattr(head, "out_features", None) or head.weight.shape[0])
    return n_tokens(model)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads margins, refusal masses and answers of a model under conditions.

    Attributes:
        model: the model.
        tokens: first tokens of refusal and compliance prefixes, by language.
        grader: its judge and prefixes grade answers.
        runner: an engine with the model on it.
        batch_size: prompts a forward.
        progress: whether bars are shown.
        work: how many "margins" were computed and "answers" generated.
    """

    model: Model
    tokens: dict[str, OpeningTokens]
    grader: Grader
    runner: Runner
    batch_size: int = 64
    progress: bool = False
    work: Counter[str] = field(default_factory=Counter)

    def margins(
        self, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None]
    ) -> Float[np.ndarray, "condition prompt"]:
        """Refusal margins, in nats; None is the unchanged model.

        Args:
            prompts: the prompts.
            conditions: interventions at the last prompt token.
        """
        return self._read(prompts, conditions, self.tokens)

    def odds(
        self, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None]
    ) -> Float[np.ndarray, "condition prompt"]:
        """Log odds of the refusal mass; `expit` of it is the mass.

        Args:
            prompts: the prompts.
            conditions: interventions at the last prompt token.
        """
        return self._read(prompts, conditions, self._mass_tokens)

    def mass(
        self, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None]
    ) -> Float[np.ndarray, "condition prompt"]:
        """First-token refusal mass, 0 to 1.

        Args:
            prompts: the prompts.
            conditions: interventions at the last prompt token.
        """
        found: Float[np.ndarray, "condition prompt"] = expit(self.odds(prompts, conditions))
        return found

    @cached_property
    def _mass_tokens(self) -> dict[str, OpeningTokens]:
        """The refusal tokens against all other tokens: a list as long as the vocabulary, made once."""
        return mass_tokens(self.model, self.tokens)

    def _read(
        self, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None], tokens: dict[str, OpeningTokens]
    ) -> Float[np.ndarray, "condition prompt"]:
        self.work["margins"] += len(prompts) * len(conditions)
        return run_margins(
            self.runner, self.model, prompts, conditions=conditions, tokens=tokens, batch_size=self.batch_size,
            progress=self.progress, desc="protocol",
        )  # fmt: skip

    def answers(self, prompts: Sequence[Prompt], condition: Intervention | None = None) -> Answers:
        """Graded answers, clean or under an intervention.

        Args:
            prompts: the prompts.
            condition: what is changed; None for nothing.
        """
        self.work["answers"] += len(prompts)
        texts = run_answers(
            self.runner, self.model, prompts, intervention=condition, max_new_tokens=MAX_NEW_TOKENS,
            batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip
        return self.grader.outcomes(prompts, texts, in_thought(self.model, prompts))


# -- both modalities -------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Bench:
    """One modality, ready to be measured.

    Attributes:
        modality: its name.
        prompts: those that select, harmful first.
        values: every neuron of those prompts at the last prompt token.
        behaves: which of the harmful ones are refused, and which of the benign ones are answered: the behavioural groups.
        confirm: harmful prompts that confirm neurons.
        test: harmful prompts on which effects are measured.
        answers: graded clean answers to the harmful test prompts.
        benign_margins: clean refusal margins of the benign test prompts.
    """

    modality: str
    prompts: tuple[Prompt, ...]
    values: Float[Tensor, "prompt n_layers width"]
    behaves: Bool[np.ndarray, " prompt"]
    confirm: Part
    test: Part
    answers: Answers
    benign_margins: Float[np.ndarray, " benign"]

    @property
    def harmful(self) -> Bool[np.ndarray, " prompt"]:
        """Which of the prompts that select are harmful."""
        return np.array([p.label == "harmful" for p in self.prompts])

    @property
    def difference(self) -> Interval:
        """Refusal margin of harmful minus benign test prompts, in nats, with its interval over requests."""
        margins = np.concatenate([self.test.clean[0], -self.benign_margins])
        harmful, benign = len(self.test.harmful), len(self.test.benign)
        if not harmful or not benign:
            return Interval(float("nan"), float("nan"), float("nan"))
        scale = np.concatenate([np.full(harmful, 1 / harmful), np.full(benign, 1 / benign)])
        requests = [*self.test.requests, *(p.cluster for p in self.test.benign)]
        n = harmful + benign  # the mean over rows of margin * scale * n is the difference of the two means
        return ratio_of_means(margins * scale * n, np.ones(n), requests)

    def at(self, reader: Reader, site: str) -> Bench:
        """The same modality with the values of another site."""

        def read(prompts: Sequence[Prompt]) -> Float[Tensor, "prompt n_layers width"]:
            return record(reader.model, prompts, batch_size=reader.batch_size, site=site)

        confirm, test = (replace(part, benign_values=read(part.benign)) for part in (self.confirm, self.test))
        return replace(self, values=read(self.prompts), confirm=confirm, test=test)

    def clamped(self, reader: Reader, neurons: NeuronSet) -> Float[Tensor, "prompt n_layers width"]:
        """Values of the prompts that select while some neurons have the benign mean of the confirm prompts of the cell."""
        clamp = Intervention(neurons, "mean", self.confirm.means_for(self.prompts))
        return record_under(reader.model, self.prompts, clamp, batch_size=reader.batch_size)

    def __repr__(self) -> str:
        return f"Bench({self.modality}, {len(self.prompts)} prompts)"


def open_bench(reader: Reader, prompts: PromptSet, modality: str, *, most: int, seed: int) -> Bench:
    """One modality with the neurons of its prompts, behavioural groups and clean readings.

    Args:
        reader: of the model.
        prompts: with splits.
        modality: which of theirs.
        most: prompts of a label in each split.
        seed: of the choice of prompts.

    Raises:
        InputError: a split without harmful or without benign prompts of the modality.
    """
    rows: dict[str, tuple[tuple[Prompt, ...], tuple[Prompt, ...]]] = {}
    for split in ("discover", "confirm", "test"):
        rows[split] = part_of_modality(prompts, modality, split=split, most=most, seed=seed)
        for label, found in zip(LABELS, rows[split], strict=True):
            if not found:
                raise InputError(
                    f"modality: no {label} prompts of {modality} in split {split!r}; each split needs both labels"
                )
    harmful, benign = rows["discover"]
    refused, answered = reader.answers(harmful).refused == 1, reader.answers(benign).complied == 1
    values = record(reader.model, (*harmful, *benign), batch_size=reader.batch_size)
    test = _part(reader, rows["test"])
    return Bench(
        modality, (*harmful, *benign), values=values, behaves=np.concatenate([refused, answered]),
        confirm=_part(reader, rows["confirm"]), test=test, answers=reader.answers(test.harmful),
        benign_margins=reader.margins(test.benign, [None])[0],
    )  # fmt: skip


def _part(reader: Reader, rows: tuple[tuple[Prompt, ...], tuple[Prompt, ...]]) -> Part:
    harmful, benign = rows
    return Part(
        harmful, benign, requests=np.array([p.cluster for p in harmful], dtype=object),
        benign_values=record(reader.model, benign, batch_size=reader.batch_size),
        clean=np.concatenate([reader.margins(harmful, [None]), reader.odds(harmful, [None])]),
    )  # fmt: skip
