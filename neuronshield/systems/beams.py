"""Several different outputs of a model for one prompt, by diverse beam search.

n groups of one beam each are decoded together. At every token a group takes

    argmax_v  log p(v | prompt, its tokens so far) - penalty * (groups before it that have taken v at this step)

so the first group is the greedy output, and a later one leaves what the earlier ones write wherever another token is nearly as
likely. Groups that end up with the same tokens are one output. Nothing is random.

Source: Vijayakumar et al. (2018), "Diverse beam search", algorithm 1 with Hamming diversity and as many groups as beams. It is
written here because transformers no longer has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import at_least
from ..data.prompts import Prompt
from ..model.encoding import batches, check_prompts
from ..model.generation import decode, settings
from ..model.model import Model
from ..model.thoughts import decoded

__all__ = ["PENALTY", "Output", "diverse_outputs"]

#: What a token loses for every earlier group that takes it, in nats.
PENALTY = 1.0


class Output(NamedTuple):
    """One output of a model.

    Attributes:
        ids: its tokens, with the one that ended it; without, if it was cut off.
        text: what they say.
    """

    ids: tuple[int, ...]
    text: str


def diverse_outputs(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_new_tokens: int,
    penalty: float = PENALTY,
    batch_size: int = 16,
) -> list[list[Output]]:
    """Up to n different outputs for each prompt, the greedy one first.

    >>> found = diverse_outputs(model, prompts[:2], n=3, max_new_tokens=4)
    >>> len(found), found[0][0].text == ns.generate(model, prompts[0], max_new_tokens=4)
    (2, True)

    Args:
        model: the model.
        prompts: the prompts.
        n: groups.
        max_new_tokens: tokens an output, at most.
        penalty: of a token that an earlier group takes at the same step, in nats.
        batch_size: prompts a forward, each n times.

    Raises:
        InputError: as `ns.generate`.
    """
    at_least(1, "diverse_outputs", n=n, max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_prompts(model, prompts, extra=max_new_tokens)
    ends = settings(model, max_new_tokens)["eos_token_ids"]
    found: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    several = [
        p for p in prompts for _ in range(n)
    ]  # copies are neighbours in every batch: its size is a multiple of n
    for batch in batches(model, several, batch_size=n * batch_size, side="left", extra=max_new_tokens):
        groups = _Groups(n, batch.encoding["input_ids"].shape[1], ends=ends, penalty=penalty)
        new, _ = decode(model, batch, max_new_tokens=max_new_tokens, choose=groups)
        for row, ids in zip(batch.rows, new.tolist(), strict=True):
            end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            one = tuple(ids[: end + 1])
            if one not in found[row // n]:
                found[row // n].append(one)
    texts = iter(decoded(model.tokenizer, [list(ids) for own in found for ids in own]))
    return [[Output(ids, next(texts).strip()) for ids in own] for own in found]


class _Groups:
    """A logits processor whose rows are n groups of each prompt: the penalty of each group, after those before it."""

    def __init__(self, n: int, width: int, *, ends: Sequence[int], penalty: float) -> None:
        self.n, self.width, self.ends, self.penalty = n, width, ends, penalty

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]) -> Tensor:
        new = input_ids[:, self.width :]
        ended = torch.isin(new, torch.tensor(self.ends, device=new.device, dtype=new.dtype)).any(dim=1)
        alive = (~ended).view(-1, self.n).to(scores.device)
        logp = scores.float().log_softmax(-1).view(-1, self.n, scores.shape[-1])
        taken = torch.zeros_like(logp[:, 0])
        out = []
        for group in range(self.n):
            out.append(logp[:, group] - self.penalty * taken)
            best = out[-1].argmax(dim=-1, keepdim=True)
            taken = taken.scatter_add(1, best, alive[:, group, None].to(taken))
        return torch.stack(out, dim=1).view(scores.shape)
