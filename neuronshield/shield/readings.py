"""What a set's activations are while a model answers: read, and where asked changed, at every decoding step of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..core.arguments import at_least
from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from ..model.encoding import batches
from ..model.generation import decode, settings
from ..model.model import Model
from ..model.thoughts import decoded

__all__ = ["Change", "Readings", "readings"]

#: (prompts of the rows, (step, layer), activations of its members at one token) -> (what replaces them or None, what is kept)
Change = Callable[[Sequence[int], tuple[int, int], Tensor], "tuple[Tensor | None, Tensor]"]


@dataclass(frozen=True)
class Readings:
    """Answers, each prompt's number of decoding steps, and by layer what `change` kept: [step, ...] for each prompt."""

    texts: list[str]
    steps: list[int]
    kept: dict[int, list[Tensor]]


def readings(
    model: Model,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    *,
    change: Change,
    max_new_tokens: int,
    batch_size: int,
    desc: str = "",
) -> Readings:
    """Greedy answers, with `change` applied at every decoding step of every layer of the set.

    >>> run = readings(model, prompts[:2], neurons, change=lambda rows, at, x: (None, x), max_new_tokens=3, batch_size=2)
    >>> run.kept[1][0].shape[1]         # [step, member of the layer]
    1

    A step belongs to a prompt until its answer has ended; rows that wait for longer answers have no steps. Step 0 reads the last
    prompt token, step s the s-th generated token.

    Args:
        model: the model.
        prompts: the prompts.
        neurons: the set.
        change: what is kept and what is changed; its rows say which prompts are in the batch.
        max_new_tokens: tokens an answer.
        batch_size: prompts a forward.
        desc: label of the progress bar; none without it.

    Raises:
        InputError: a number that is not at least 1.
        RuntimeError: `change` was not called at every layer and step.
    """
    at_least(1, "guard", max_new_tokens=max_new_tokens, batch_size=batch_size)
    members = {layer: torch.tensor(own, device=model.device) for layer, own in neurons.by_layer().items()}
    texts, steps = [""] * len(prompts), [0] * len(prompts)
    kept: dict[int, list[Any]] = {layer: [None] * len(prompts) for layer in members}
    with tqdm(total=len(prompts), desc=desc, unit="prompt", disable=not desc, leave=False) as bar:
        for batch in batches(model, prompts, batch_size=batch_size, side="left", extra=max_new_tokens):
            mine = list(batch.rows)

            def at_step(step: int, layer: int, h: Float[Tensor, "batch pos d_mlp"], mine: list[int] = mine) -> Tensor:
                new, keep = change(mine, (step, layer), h[:, -1, members[layer]])
                if new is not None:
                    h[:, -1, members[layer]] = new
                return keep

            layers = [list(members)] * max_new_tokens
            new, seen = decode(model, batch, max_new_tokens=max_new_tokens, layers=layers, change=at_step)
            parts = zip(mine, decoded(model.tokenizer, new.tolist()), _steps(model, new), strict=True)
            for i, (row, text, alive) in enumerate(parts):
                texts[row], steps[row] = text.strip(), alive
                for layer, rows in kept.items():
                    rows[row] = torch.stack([seen[s, layer][i] for s in range(alive)]).cpu()
            bar.update(len(mine))
    return Readings(texts, steps, kept)


def _steps(model: Model, new: Int[Tensor, "batch new"]) -> Iterator[int]:
    """How many decoding steps each row took, its end-of-sequence token included."""
    ended = torch.isin(new, torch.tensor(settings(model, new.shape[1])["eos_token_ids"]).to(new)).int()
    yield from (ended.cumsum(dim=1) - ended == 0).sum(dim=1).tolist()
