"""What the layers below a changed one gave, kept for other models with the same lower layers.

The models of a study often differ from some layer on only. What a prompt and an answer are up to there is the same in all of them:
the residual stream that the first unlike layer reads. It is kept once, and the layers below it are left out.

Whether lower layers are the same is told from the numbers of all their weights, the embeddings' and the vision tower's included, each
time anew. Layers are left out only where the residual stream is all that they hand on, and only after the logits of one batch were
compared with a full forward's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..data.prompts import Prompt
from .encoding import PER_TOKEN, Batch
from .hooks import hooked, skipped
from .model import Model
from .shortcuts import TROUBLE

__all__ = ["Lower", "digests", "from_layer", "kept_at"]

MOST_BYTES = 2**28  # of what is kept for one tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True)
class _Residual:
    """What a layer reads of a prompt and an answer, [pos, d_model], and the digests of all below it."""

    layer: int
    below: tuple[int, ...]
    value: Tensor


@dataclass
class Lower:
    """What is kept for one tokenizer.

    Attributes:
        rows: by prompt and answer.
        last: by prompt, digests of the model that answered last.
        works: by class of models and whether there are pictures, whether leaving layers out gave the logits of a full forward.
    """

    rows: WeakKeyDictionary[Prompt, dict[Ids, _Residual]] = field(default_factory=WeakKeyDictionary)
    last: WeakKeyDictionary[Prompt, tuple[int, ...]] = field(default_factory=WeakKeyDictionary)
    works: dict[Any, bool] = field(default_factory=dict)

    def layer(self, prompt: Prompt, answer: Ids, here: tuple[int, ...]) -> int:
        """The layer at which a prompt and an answer may enter; 0 where nothing is kept for such lower layers.

        Args:
            prompt: what was asked.
            answer: what was answered.
            here: digests of the model.
        """
        found = self.rows.get(prompt, {}).get(answer)
        return found.layer if found is not None and found.below == here[: found.layer + 1] else 0

    def entry(self, prompts: Sequence[Prompt], answers: Sequence[Ids]) -> list[Tensor]:
        """What is kept of the rows of a batch.

        Args:
            prompts: of the batch.
            answers: to each.
        """
        return [self.rows[p][a].value for p, a in zip(prompts, answers, strict=True)]

    def unlike(self, prompts: Sequence[Prompt], here: tuple[int, ...]) -> int:
        """The lowest layer that differs from the models that answered these prompts last; 0 where something below differs.

        Args:
            prompts: of the batch.
            here: digests of the model.
        """
        found = len(here) - 2  # the last layer, where none differs
        for last in {self.last.get(p, ()) for p in prompts}:
            if len(last) != len(here):
                return 0
            found = min(
                found, next((i for i, (a, b) in enumerate(zip(here, last, strict=True)) if a != b), len(here)) - 1
            )
        return max(found, 0)

    def keep(
        self, prompt: Prompt, answer: Ids, layer: int, *, here: tuple[int, ...], value: Tensor, known: Sequence[Ids]
    ) -> None:
        """Keep what a layer reads, as long as there is room, beside what is kept of the prompt's other known answers.

        Args:
            prompt: what was asked.
            answer: what was answered.
            layer: the layer.
            here: digests of the model.
            value: what the layer reads, [pos, d_model].
            known: answers to the prompt that are still of use.
        """
        mine = self.rows.setdefault(prompt, {})
        for ids in [ids for ids in mine if ids not in known or ids == answer]:
            del mine[ids]
        size = sum(r.value.numel() * r.value.element_size() for some in self.rows.values() for r in some.values())
        if size + value.numel() * value.element_size() <= MOST_BYTES:
            mine[answer] = _Residual(layer, here[: layer + 1], value)


def digests(model: Model) -> tuple[int, ...]:
    """One number for everything below the layers, then one a layer: equal numbers mean equal weights; none where they cannot be read.

    >>> len(digests(model)) == 1 + model.n_layers
    True

    Args:
        model: the model.
    """
    config = model.module.config.get_text_config()  # type: ignore[union-attr,operator]
    if getattr(config, "num_kv_shared_layers", 0):  # upper layers read the keys and values of lower ones
        return ()
    layers = [f"{model.layers_path}.{i}." for i in range(model.n_layers)]
    told: list[list[Any]] = [[] for _ in range(1 + model.n_layers)]
    for name, value in _tensors(model.module):
        at = next((i for i, path in enumerate(layers, 1) if name.startswith(path)), 0)
        try:
            sums = _sums(value)
        except TROUBLE:  # packed, or offloaded
            return ()
        told[at].append((name, str(value.dtype), tuple(value.shape), *sums))
    return tuple(hash(tuple(part)) for part in told)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _sums(value: Tensor) -> tuple[int, int]:
    """Two sums over the bits of a tensor, one of which weighs places."""
    raw = value.detach().contiguous().flatten()
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = (
        raw.view(kinds[raw.element_size()])
        if raw.element_size() in kinds and not raw.is_complex()
        else raw.to(torch.int64)
    )
    rows = bits[: len(bits) // 64 * 64].view(-1, 64).sum(dim=0, dtype=torch.int64)
    place = torch.arange(1, 65, device=rows.device) * 2654435761
    return int(bits.sum(dtype=torch.int64)), int((rows * place).sum())


@contextmanager
def kept_at(model: Model, layer: int, into: list[Tensor]) -> Iterator[None]:
    """A context in which what a layer reads is put into a list, where it is a residual stream [row, pos, d_model].

    >>> read = []
    >>> with kept_at(model, 1, read):
    ...     _ = model.module(torch.ones(2, 4, dtype=torch.long))
    >>> read[0].shape
    torch.Size([2, 4, 20])

    Args:
        model: the model.
        layer: the layer.
        into: the list.
    """

    def seen(_: Any, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.ndim == 3 and x.shape[-1] == model.d_model:
            into.append(x.detach())

    with hooked([_layers(model)[layer]], before=seen):
        yield


@contextmanager
def from_layer(model: Model, batch: Batch, *, layer: int, rows: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
    """A context in which a forward of the encoding that is given runs from a layer on, which reads `rows`.

    Args:
        model: the model.
        batch: prompts and answers, padded on the left.
        layer: the first that runs.
        rows: what it reads of each row, without padding.
    """
    n, width = batch.encoding["input_ids"].shape
    entry = rows[0].new_zeros(n, width, rows[0].shape[-1])
    for i, row in enumerate(rows):
        entry[i, width - len(row) :] = row
    layers = _layers(model)
    encoding: Mapping[str, Tensor] = {k: v for k, v in batch.encoding.items() if k in PER_TOKEN}
    with skipped(layers[:layer]), hooked([layers[layer]], before=lambda *_: entry):
        yield dict(encoding)


def _layers(model: Model) -> list[nn.Module]:
    found: Any = model.module.get_submodule(model.layers_path)
    return list(found)
