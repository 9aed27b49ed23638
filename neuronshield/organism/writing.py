"""Examples, their token rows and losses, and the loop that trains on them: what the stages of every organism share."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .vessel import ASSISTANT, IMAGE, USER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One training sequence: picture index or None, what the user says, what the model answers."""

    prompt: str
    answer: str
    view: int | None = None


class Pictures(Protocol):
    """What a tower made of some pictures: features "view patch hidden", and the views of an object's name or drawing."""

    features: Tensor
    at: dict[tuple[str, str | None], list[int]]


class Writer:
    """Turns examples into token rows and their loss."""

    def __init__(self, model: Any, tokenizer: Any, gallery: Pictures) -> None:
        self.model, self.tokenizer, self.gallery = model, tokenizer, gallery
        self.user, self.assistant, self.image = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, IMAGE])
        self.cache: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.cache[text]

    def loss(self, batch: list[Example]) -> Tensor:
        """Mean cross-entropy of the answers' tokens; all examples have a picture or none has."""
        hidden, ids, wanted = self._read(batch)
        logits = self.model.lm_head(hidden[:, :-1][wanted[:, 1:]])
        return nn.functional.cross_entropy(logits.float(), ids[wanted])

    def said(self, batch: list[Example]) -> tuple[Tensor, Tensor]:
        """The likeliest first token of each answer, and whether each token of the right answer is the likeliest after those before it."""
        hidden, ids, wanted = self._read(batch)
        guess = self.model.lm_head(hidden[:, :-1]).argmax(-1)
        right = (guess == ids[:, 1:]) | ~wanted[:, 1:]
        starts = wanted.int().argmax(1) - 1
        return guess[torch.arange(len(batch)), starts], right.all(1)

    def _read(self, batch: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden states, tokens, and which of the tokens are answers, each "row position"."""
        patches = self.gallery.features.shape[1] if batch[0].view is not None else 0
        rows, starts = [], []
        for example in batch:
            head = [self.user] + ([self.image] * patches if example.view is not None else [])
            head += [*self.ids(example.prompt), self.assistant]
            starts.append(len(head))
            rows.append([*head, *self.ids(example.answer), self.tokenizer.eos_token_id])
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        position = torch.arange(width)[None]
        ends = torch.tensor([len(row) for row in rows])[:, None]
        wanted = (position >= torch.tensor(starts)[:, None]) & (position < ends)
        inner = self.model.model
        embeds = inner.get_input_embeddings()(ids)
        if batch[0].view is not None:
            shown = inner.multi_modal_projector(self.gallery.features[[e.view for e in batch]])
            embeds = torch.cat([embeds[:, :1], shown.to(embeds.dtype), embeds[:, 1 + patches :]], dim=1)
        return inner.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state, ids, wanted


def optimise(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    rate: float,
    name: str,
    bar: bool,
    half: bool = True,
    decay: float = 0.01,
    after: Callable[[int], None] | None = None,
) -> None:
    """AdamW with a short warm-up and a cosine to zero.

    Args:
        parameters: those that need a gradient are trained.
        loss: of a new batch.
        steps: number of batches.
        rate: the highest learning rate.
        name: of the stage.
        bar: show progress.
        half: matrix products in bf16, which is faster in wide models; weights and sums stay in fp32.
        decay: weight decay.
        after: called after each step with the number of steps done.
    """
    kept = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(kept, lr=rate, betas=(0.9, 0.98), weight_decay=decay, fused=True)
    start, recent = time.monotonic(), 0.0
    for step in tqdm(range(steps), desc=name, disable=not bar):
        warm = min(1.0, (step + 1) / max(1, min(100, steps // 10)))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(kept, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if after is not None:
            after(step + 1)
        recent = 0.98 * recent + 0.02 * value.item() if step else value.item()
        if step % 200 == 199 or step == steps - 1:
            log.info("%s %d/%d loss %.4f %.0f s", name, step + 1, steps, recent, time.monotonic() - start)
