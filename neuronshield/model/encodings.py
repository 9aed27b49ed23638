"""Encodings of single prompts, kept as long as the prompt: a prompt is encoded once, whatever reads it.

The conditions of a study read the same prompts, each in several passes. What the processor makes of a prompt depends on the prompt,
on the chat template with its options, and on the state of the processor and its tokenizer. All of these are compared before an
encoding is used again, and so are the size and time of a picture's file.

Rows are kept without padding. Of pictures the processor's tensors are kept as well, up to `MOST_BYTES` in all; those that were not
used for longest are forgotten first. A batch joins the tensors of its rows. Whether that gives what the processor itself makes of
several prompts is compared once for each processor; where it does not, batches with pictures are encoded by the processor each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from ..core.errors import InputError
from ..data.prompts import Prompt
from .model import Model
from .tokens import begins, encoded, n_tokens

__all__ = ["PER_TOKEN", "Encoded", "encoded_rows", "joined"]

#: What an encoding may hold that has one entry a token, [batch, pos, ...].
PER_TOKEN = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "mm_token_type_ids",
    "cross_attention_mask",
)

MOST_BYTES = 2**29  # of the tensors that are kept for one processor
TOGETHER = 32  # prompts without pictures that are encoded in one call


class Encoded(NamedTuple):
    """What the processor makes of one prompt.

    Attributes:
        tokens: tensors with one entry a token, [pos, ...], without padding.
        others: other tensors, such as the pixels of its pictures.
        kind: number of pictures, and whether the template writes the beginning-of-sequence token: prompts of one kind share a batch.
        state: hash of what decided the encoding beside the prompt.
    """

    tokens: dict[str, Tensor]
    others: dict[str, Tensor]
    kind: tuple[int, bool]
    state: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.tokens["input_ids"])

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(x.numel() * x.element_size() for x in (*self.tokens.values(), *self.others.values()))


class _Kept(NamedTuple):
    prompt: ref[Prompt]
    encoding: Encoded


@dataclass
class _Memory:
    """Encodings of one processor, those used last at the end; `joins` says whether batches may be joined, None if not yet known."""

    rows: OrderedDict[Any, _Kept] = field(default_factory=OrderedDict)
    size: int = 0
    joins: dict[Any, bool] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def get(self, key: Any, prompt: Prompt) -> Encoded | None:
        with self.lock:
            kept = self.rows.get(key)
            if kept is None or kept.prompt() is not prompt:
                return None
            self.rows.move_to_end(key)
            return kept.encoding

    def put(self, key: Any, prompt: Prompt, encoding: Encoded) -> None:
        with self.lock:
            self._drop(key)
            self.rows[key] = _Kept(ref(prompt, self._forget(key)), encoding)
            self.size += encoding.size
            while self.size > MOST_BYTES and self.rows:
                self._drop(next(iter(self.rows)))

    def _drop(self, key: Any) -> None:
        with self.lock:
            kept = self.rows.pop(key, None)
            if kept is not None:
                self.size -= kept.encoding.size

    def _forget(self, key: Any) -> Callable[[Any], None]:
        def gone(which: Any) -> None:
            kept = self.rows.get(key)
            if kept is not None and kept.prompt is which:  # the number of a prompt that is gone may be another's by now
                self._drop(key)

        return gone


_MEMORIES: WeakKeyDictionary[Any, _Memory] = WeakKeyDictionary()


def encoded_rows(model: Model, prompts: Sequence[Prompt]) -> list[Encoded]:
    """The encoding of each prompt; those that are new are encoded.

    >>> [row.length for row in encoded_rows(model, prompts[:3])]
    [5, 5, 6]

    Args:
        model: the model.
        prompts: the prompts.

    Raises:
        InputError: pictures for a model that takes none, or as `neuronshield.model.tokens.encoded`.
    """
    memory, state = _MEMORIES.setdefault(model.processor, _Memory()), _state(model)
    keys = [(id(prompt), state, _files(prompt)) for prompt in prompts]
    out = [memory.get(key, prompt) for key, prompt in zip(keys, prompts, strict=True)]
    new = [i for i, found in enumerate(out) if found is None]
    kinds = {i: (len(prompts[i].images), begins(model, prompts[i])) for i in new}
    for rows in _cut(kinds, sorted(new, key=lambda i: kinds[i])):
        some = _encode(model, [prompts[i] for i in rows], kinds[rows[0]], state=state)
        for i, found in zip(rows, some, strict=True):
            out[i] = found
            memory.put(keys[i], prompts[i], found)
    return [found for found in out if found is not None]


def _cut(kinds: dict[int, tuple[int, bool]], order: list[int]) -> list[list[int]]:
    """Rows in order, in pieces of one kind; those with pictures one by one."""
    pieces: list[list[int]] = []
    for i in order:
        last = pieces[-1] if pieces else []
        if last and kinds[last[0]] == kinds[i] and not kinds[i][0] and len(last) < TOGETHER:
            last.append(i)
        else:
            pieces.append([i])
    return pieces


def _encode(model: Model, prompts: Sequence[Prompt], kind: tuple[int, bool], *, state: int) -> list[Encoded]:
    pictured = next((p for p in prompts if p.images), None)
    if pictured is not None and not model.takes_images:
        raise InputError(f"prompt {pictured.id!r} has pictures but {model.id!r} has no image processor")
    data = encoded(model, prompts)
    if len(prompts) > 1 and not set(data) <= set(PER_TOKEN):  # whose rows those tensors are is not known
        return [row for prompt in prompts for row in _encode(model, [prompt], kind, state=state)]
    return _rows(data, kind, state=state)


def _rows(data: dict[str, Tensor], kind: tuple[int, bool], *, state: int) -> list[Encoded]:
    """Each row of a batch without its padding. Some processors pad on the left whatever their tokenizer is told: the mask says."""
    real = data["attention_mask"].bool()
    others = {k: v for k, v in data.items() if k not in PER_TOKEN}
    tokens = {k: v for k, v in data.items() if k in PER_TOKEN}
    return [
        Encoded({k: v[row, real[row]] for k, v in tokens.items()}, others, kind=kind, state=state)
        for row in range(len(real))
    ]


# -- what decides an encoding -----------------------------------------------------------------------------
def _files(prompt: Prompt) -> tuple[Any, ...]:
    """Time and size of the files of its pictures."""
    return tuple(_file(image) for image in prompt.images if isinstance(image, Path))


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:  # said when it is read
        return None
    return found.st_mtime_ns, found.st_size


def _state(model: Model) -> int:
    """All that decides an encoding beside the prompt: template, options, and what can be set on a processor and its tokenizer."""
    template, tokenizer = model.template, model.tokenizer
    facts = None if template is None else (template.text, repr(sorted(template.arguments().items())))
    owners = {
        id(x): x
        for x in (model.processor, tokenizer, getattr(model.processor, "image_processor", None))
        if x is not None
    }
    known = tuple(repr([(k, v) for k, v in sorted(vars(x).items()) if _is_plain(v)]) for x in owners.values())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [getattr(backend, name, None) for name in ("post_processor", "normalizer", "pre_tokenizer")]
    size = backend.get_vocab_size() if backend is not None else len(tokenizer)
    inside = tuple(p.__getstate__() if hasattr(p, "__getstate__") else None for p in parts)
    return hash((facts, n_tokens(model), model.answer_token_type, model.image_token_id, known, size, inside))


def _is_plain(value: Any) -> bool:
    """Whether a value is made of numbers and texts, so that its `repr` says what it is."""
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


# -- batches ----------------------------------------------------------------------------------------------
def joined(
    model: Model, prompts: Sequence[Prompt], rows: Sequence[Encoded]
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of a batch: those with one entry a token by row, and the others of all rows together.

    >>> rows = encoded_rows(model, prompts[:3])
    >>> tokens, others = joined(model, prompts[:3], rows)
    >>> [len(row["input_ids"]) for row in tokens], others
    ([5, 5, 6], {})

    Args:
        model: the model.
        prompts: the prompts of the batch, all of one kind.
        rows: their encodings.

    Raises:
        InputError: as `neuronshield.model.tokens.encoded`.
    """
    first = rows[0]
    if len(rows) == 1 or not any(row.others for row in rows):
        return [row.tokens for row in rows], dict(first.others)
    joins, key = _MEMORIES.setdefault(model.processor, _Memory()).joins, (first.state, *_shapes(first))
    alike = all((row.state, *_shapes(row)) == key for row in rows)
    others = {k: torch.cat([row.others[k] for row in rows]) for k in first.others} if alike else {}
    if alike and joins.get(key):
        return [row.tokens for row in rows], others
    whole = _rows(encoded(model, prompts), first.kind, state=first.state)
    if alike and key not in joins:
        same = all(_same(a.tokens, b.tokens) for a, b in zip(whole, rows, strict=True))
        joins[key] = same and _same(whole[0].others, others)
    return [row.tokens for row in whole], dict(whole[0].others)


def _shapes(row: Encoded) -> tuple[Any, ...]:
    """Names, types and shapes of its tensors, first axes aside."""
    parts = sorted({**row.tokens, **row.others}.items())
    return tuple((k, v.dtype, tuple(v.shape[1:]), v.ndim) for k, v in parts)


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
