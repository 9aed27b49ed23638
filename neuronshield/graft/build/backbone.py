"""The frozen language model of the graft's build: its embeddings, and the loss of answers after pictures.

The system message is the same in every row, so its keys and values are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Backbone"]

MARK = "<picture>"


class Backbone:
    """A frozen causal language model and its tokenizer.

    Args:
        module: of transformers; its parameters are frozen.
        tokenizer: its own, with a chat template.
    """

    def __init__(self, module: Any, tokenizer: Any) -> None:
        self.module = module.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.table: Tensor = module.get_input_embeddings().weight
        told = tokenizer.apply_chat_template(
            [{"role": "user", "content": MARK}], tokenize=False, add_generation_prompt=True
        )
        before, self.after = told.split(MARK)
        with torch.no_grad():
            kept = module.model(input_ids=torch.tensor([self.ids(before)]), use_cache=True).past_key_values
        self.kept = [(layer.keys, layer.values) for layer in kept.layers]

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, without special ones of its own."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def embedded(self, text: str) -> Float[Tensor, "pos d_model"]:
        """The embeddings of a text's tokens."""
        return self.table[torch.tensor(self.ids(text))]

    def _cache(self, rows: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.kept):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache

    def loss(
        self, shown: Float[Tensor, "row pos d_model"], asked: Sequence[str], *, answers: Sequence[str]
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the answers' tokens and of the end after them.

        Args:
            shown: what stands for the picture, before the request.
            asked: the requests.
            answers: their answers.
        """
        heads = [self.ids(text + self.after) for text in asked]
        tails = [[*self.ids(text), self.tokenizer.eos_token_id] for text in answers]
        rows = [head + tail[:-1] for head, tail in zip(heads, tails, strict=True)]
        width = max(map(len, rows))
        padded = torch.tensor([row + [self.tokenizer.eos_token_id] * (width - len(row)) for row in rows])
        embeds = torch.cat([shown.to(self.table.dtype), self.table[padded]], dim=1)
        run = self.module.model(inputs_embeds=embeds, past_key_values=self._cache(len(rows)), use_cache=True)
        hidden = run.last_hidden_state[:, shown.shape[1] :]
        spoken = [
            hidden[i, len(head) - 1 : len(head) - 1 + len(tail)]
            for i, (head, tail) in enumerate(zip(heads, tails, strict=True))
        ]
        logits = self.module.lm_head(torch.cat(spoken)).float()
        return F.cross_entropy(logits, torch.tensor([token for tail in tails for token in tail]))
