"""Log-probabilities of the tokens of an answer, read while it is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Likelihoods", "Step"]


class Step(NamedTuple):
    """One token of an answer.

    >>> Step(7, -0.5, ((7, -0.5), (3, -1.5))).top[1]
    (3, -1.5)

    Attributes:
        token: its id.
        logprob: its log-probability, in nats.
        top: (id, log-probability) of the likeliest tokens in its place, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Likelihoods:
    """What `decode` calls with the logits of each step.

    >>> seen = Likelihoods(1)
    >>> seen(torch.tensor([[0.0, 0.0, 9.0]]))
    >>> [(step.token, round(step.logprob, 3), step.top[0][0]) for step in seen.steps(0, [2])]
    [(2, -0.0, 2)]

    Args:
        top: how many of the likeliest tokens are kept at each step.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self._steps: list[tuple[list[int], list[float], list[list[int]], list[list[float]]]] = []

    def __call__(self, logits: Tensor) -> None:
        logprobs = logits.float().log_softmax(dim=-1)
        chosen = logits.argmax(dim=-1)
        values, ids = logprobs.topk(min(self.top, logprobs.shape[1]), dim=-1)
        own = logprobs.gather(1, chosen[:, None])[:, 0]
        self._steps.append((chosen.tolist(), own.tolist(), ids.tolist(), values.tolist()))

    def steps(self, row: int, ids: Sequence[int]) -> tuple[Step, ...]:
        """The tokens of one row's answer.

        Args:
            row: of the batch.
            ids: its tokens, which must be those of the largest logits.

        Raises:
            RuntimeError: they are not.
        """
        out = tuple(
            Step(chosen[row], own[row], tuple(zip(top[row], values[row], strict=True)))
            for chosen, own, top, values in self._steps[: len(ids)]
        )
        if [step.token for step in out] != list(ids):
            raise RuntimeError(f"row {row}: the tokens of the answer are not those of the largest logits")
        return out
