"""The loss of an update, and the batches it is computed on.

    harmful   cross-entropy of a refusal: the prompt's `target`, else the first refusal prefix given, else a refusal
              sentence in its language
    benign    cross-entropy of its `target`, if it has one; otherwise retention: KL(untouched || updated) over the
              vocabulary, at every token of the untouched model's greedy answer
    texts     generic text of any language: the same KL at every token

Each term is averaged over tokens, then over the rows of a batch; the KL term has the weight `retention`. Half of a batch is
harmful and half benign, and within each label every cell (language x modality) gets the same number of rows. A language
with benign prompts only is therefore retained as strongly as one that is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..data.prompts import LABELS
from ..model.answers import Example, answer_batches, answer_positions, answer_tokens, cross_entropy, mean_over
from ..model.encoding import Batch
from ..model.model import Model

__all__ = ["Taught", "deal", "step_loss", "taught_in"]


@dataclass(frozen=True)
class Taught:
    """What the steps of a training did with the prompts: how many different ones were in a batch, by what was asked of them.

    Attributes:
        refusals: harmful prompts that were taught a refusal.
        targets: benign prompts that were taught their `target`.
        held: benign prompts whose own answer was held by KL.
        preferred: benign prompts whose answer was preferred to a refusal (objective "preference").
        texts: generic texts that were held by KL.
    """

    refusals: int = 0
    targets: int = 0
    held: int = 0
    preferred: int = 0
    texts: int = 0

    @property
    def prompts(self) -> int:
        """All prompts that were in a batch, without generic texts."""
        return self.refusals + self.targets + self.held + self.preferred

    @property
    def by_kl(self) -> bool:
        """Whether the KL term acted on anything, so that its weight means something."""
        return bool(self.held or self.texts)


def taught_in(data: Sequence[Example], batches: Iterable[Sequence[int]], *, preference: bool = False) -> Taught:
    """What some batches teach.

    >>> from neuronshield.model.answers import Example
    >>> data = [Example(p, "sure", keep=p.label == "benign") for p in prompts]
    >>> taught_in(data, deal(data, 4, steps=2, seed=0))
    Taught(refusals=4, targets=0, held=4, preferred=0, texts=0)

    Args:
        data: prompts with their answers.
        batches: rows of every step that was taken, from `deal`.
        preference: the objective was "preference".
    """
    used = [data[i] for i in {i for rows in batches for i in rows}]
    harmful, benign = (
        [e for e in used if e.prompt.label == label and not e.generic] for label in ("harmful", "benign")
    )
    kept = sum(e.keep for e in benign)
    return Taught(
        refusals=len(harmful),
        targets=0 if preference else len(benign) - kept,
        held=0 if preference else kept,
        preferred=len(benign) if preference else 0,
        texts=sum(e.generic for e in used),
    )


def deal(data: Sequence[Example], batch_size: int, *, steps: int, seed: int) -> list[list[int]]:
    """Rows of every batch: half harmful, half benign, cells in turn, the prompts of a cell shuffled.

    >>> from neuronshield.model.answers import Example
    >>> data = [Example(p, "sure") for p in prompts]
    >>> [prompts[i].label for i in deal(data, 4, steps=1, seed=0)[0]]
    ['harmful', 'harmful', 'benign', 'benign']

    Args:
        data: prompts with their answers.
        batch_size: rows a batch; an odd number is rounded down. With one label only, all rows have it.
        steps: number of batches.
        seed: of the order within a cell. No prompt of a cell comes again before all of them have come.
    """
    rng = np.random.default_rng(seed)

    def endless(label: str) -> Iterator[int]:
        decks: dict[Any, list[int]] = {}
        for i, e in enumerate(data):
            if e.prompt.label == label:
                decks.setdefault(e.prompt.cell, []).append(i)
        hands: dict[Any, list[int]] = {cell: [] for cell in decks}
        while True:
            for cell, deck in decks.items():
                if not hands[cell]:
                    hands[cell] = list(rng.permutation(deck))
                yield int(hands[cell].pop())

    present = [label for label in LABELS if any(e.prompt.label == label for e in data)]
    streams = [endless(label) for label in present]
    share = max(batch_size // len(streams), 1)
    return [[next(stream) for stream in streams for _ in range(share)] for _ in range(steps)]


def step_loss(
    model: Model,
    trained: Any,
    chosen: Sequence[Example],
    *,
    retention: float,
    held: AbstractContextManager[Any] | None = None,
) -> Iterator[Float[Tensor, ""]]:
    """The loss of a batch in parts that add up to it, one forward each: back-propagate one before asking for the next.

    >>> from neuronshield.model.answers import Example
    >>> batch = [Example(prompts[0], "sorry i cannot help"), Example(prompts[1], "sure", keep=True)]
    >>> [tuple(loss.shape) for loss in step_loss(model, model.module, batch, retention=4.0)]
    [(), ()]

    Args:
        model: the untouched model.
        trained: the module that is trained.
        chosen: the rows of the batch.
        retention: weight of the KL term.
        held: entered for the forwards of the trained model only (neurons held at zero while the rest learns).
    """
    for keep in (False, True):
        mine = [e for e in chosen if e.keep is keep]
        for batch in answer_batches(model, mine):
            before = None
            if keep:
                with torch.no_grad():
                    before = answer_positions(model, model.module, batch)
            with held or nullcontext():
                after = answer_positions(model, trained, batch)
            losses = _kept(before, after, batch) * retention if before is not None else cross_entropy(after, batch)
            yield losses.sum() / len(chosen)


def _kept(
    before: Float[Tensor, "batch pos vocab"], after: Float[Tensor, "batch pos vocab"], batch: Batch
) -> Float[Tensor, " batch"]:
    """KL(before || after), mean over the answer's tokens."""
    _, answer = answer_tokens(batch)
    distance = F.kl_div(after.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    return mean_over(distance, answer)
