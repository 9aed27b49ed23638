"""What an update is taught, and the loss that teaches it.

    harmful   cross-entropy on a refusal: its `target`, else the first of `refusals`, else a sentence in its language
    benign    its `target`, if it has one, by cross-entropy; otherwise retention: KL(untouched || updated) over the
              vocabulary at every token of the answer that the untouched model gives (greedy)
    texts     generic text of any language: the same KL at every token

Each is averaged over tokens, then over the rows of a batch; retention counts `retention` times. Half of a batch is
harmful, half is to stay as it was, and cells are dealt out evenly, so a language that comes with benign prompts only
is retained as much as one that is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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

__all__ = ["deal", "step_loss"]


def deal(data: Sequence[Example], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Rows of every batch: half harmful, half benign (all of one, if that is all there is); cells in turn, shuffled."""
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
    retention: float,
    held: AbstractContextManager[Any] | None = None,
) -> Iterator[Float[Tensor, ""]]:
    """The loss of a batch in parts that add up to it, one forward each: back-propagate one before asking for the next.

    `held` is entered for the forwards of the trained model only (neurons held at zero while the rest learns).
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
