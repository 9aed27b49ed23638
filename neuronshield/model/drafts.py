"""Answers that were given before, tried as drafts of new ones.

The conditions of a study differ in few answers. Where another condition has answered a prompt, its answer is a draft of this one's:
one forward of the prompt and the draft gives the logits of every step at once, instead of one forward a token. A draft is the greedy
answer if each of its tokens is the argmax, by more than rounding can change. All other prompts are answered step by step, so that
answers do not depend on what was answered before.

Drafts are tried only where one forward of many tokens is known to give what many forwards of one token give: a class of transformers
with a plain cache, positions that are not rescaled by length, and no hook of the user's on the module (a hook may edit the last token
only). The first answer that a draft gives to a class of models is compared with the answer step by step; where they differ, that
class is never tried again.

Source: Leviathan, Kalman and Matias (2023), "Fast inference from transformers via speculative decoding".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.prompts import Prompt
from .edits import Edit, edits_for, site_of
from .encoding import Batch, batches
from .families import by_row
from .intervention import Intervention
from .lower import Lower, digests, from_layer, kept_at
from .model import Model
from .places import place_of
from .rotary import parts_of, stretched
from .running import running
from .shortcuts import agree, takes_cache

__all__ = ["confirmed", "remember"]

Ids = tuple[int, ...]

KEPT = 3  # drafts of a prompt, the last ones
LOGITS = 2**26  # numbers in the logits of one forward, at most
FEW = 1 / 3  # share of a model's drafts that are confirmed, below which no more are tried,
ENOUGH = 64  # once so many were
#: Distance of the argmax from the next logit, as a share of its size, that rounding cannot reach.
APART, APART_SHORT = 1e-3, 0.05


@dataclass
class _Drafts:
    """Answers to prompts as one tokenizer writes them, the last ones first; and which classes of models may be tried."""

    known: WeakKeyDictionary[Prompt, list[Ids]] = field(default_factory=WeakKeyDictionary)
    agrees: dict[type, bool] = field(default_factory=dict)
    lower: Lower = field(default_factory=Lower)
    counts: dict[Any, list[int]] = field(default_factory=dict)

    def worth(self, here: tuple[int, ...], rank: int) -> bool:
        """Whether enough of the drafts of a rank are what a model answers; its counts replace those of the model before."""
        if not any(known == here for known, _ in self.counts):
            self.counts = {(here, r): [0, 0] for r in range(KEPT)}
        tried, good = self.counts[here, rank]
        return tried < ENOUGH or good >= FEW * tried


_DRAFTS: WeakKeyDictionary[Any, _Drafts] = WeakKeyDictionary()


def remember(model: Model, prompt: Prompt, ids: Sequence[int]) -> None:
    """Keep an answer as a draft.

    >>> remember(model, prompts[0], [19, 20, 2])

    Args:
        model: its processor's tokens.
        prompt: what was asked.
        ids: what was answered, with the token that ended it, if one did.
    """
    if model.image_token_id in ids:  # as a part of a prompt it asks for a picture
        return
    known = _DRAFTS.setdefault(model.processor, _Drafts()).known
    given = tuple(ids)
    known[prompt] = [given, *(d for d in known.get(prompt, []) if d != given)][:KEPT]


def confirmed(
    model: Model,
    prompts: Sequence[Prompt],
    answer: Callable[[int], Ids],
    *,
    intervention: Intervention | None,
    max_new_tokens: int,
    ends: Sequence[int],
    batch_size: int,
) -> dict[int, Ids]:
    """The answers that are drafts, by row: token ids, with the one that ended it.

    Args:
        model: the model.
        prompts: what is asked.
        answer: gives the answer to a row step by step, which the first draft that is confirmed is compared with.
        intervention: what is changed at the prompt.
        max_new_tokens: tokens of an answer, at most.
        ends: ids that end an answer.
        batch_size: prompts a forward.

    Raises:
        InputError: as a forward of these prompts.
    """
    drafts = _DRAFTS.setdefault(model.processor, _Drafts())
    if not drafts.agrees.get(type(model.module), True) or not _allowed(model, intervention):
        return {}
    reader = _Reader(model, drafts, here=digests(model), intervention=intervention)
    out: dict[int, Ids] = {}
    for rank in range(KEPT):
        if not drafts.worth(reader.here, rank):
            continue
        tried: dict[int, dict[int, Ids]] = {}  # by the layer at which they enter
        for row, prompt in enumerate(prompts):
            known = drafts.known.get(prompt, [])
            if row not in out and len(known) > rank and (ids := _whole(known[rank], max_new_tokens, ends)):
                tried.setdefault(reader.layer(prompt, ids), {})[row] = ids
        for layer, some in tried.items():
            found = _try(reader, prompts, some, layer=layer, batch_size=batch_size)
            for i, n in enumerate((len(some), len(found))):
                drafts.counts[reader.here, rank][i] += n
            if found and type(model.module) not in drafts.agrees:
                row = next(iter(found))
                drafts.agrees[type(model.module)] = found[row] == answer(row)
                if not drafts.agrees[type(model.module)]:
                    return {}
            out |= found
    for row, ids in out.items():
        remember(model, prompts[row], ids)
    for prompt in prompts:
        drafts.lower.last[prompt] = reader.here
    return out


def _whole(ids: Ids, n: int, ends: Sequence[int]) -> Ids:
    """The draft as an answer of at most n tokens; empty if it was cut short earlier."""
    return ids[:n] if len(ids) >= n or ids[-1] in ends else ()


def _allowed(model: Model, intervention: Intervention | None) -> bool:
    """Whether one forward of a prompt and its answer is known to give what a forward a token gives."""
    if intervention is not None and intervention.positions in ("response", "all"):
        return False
    if model.remote or not takes_cache(model):
        return False
    hooks = [
        h for m in parts_of(model.module) for held in (m._forward_hooks, m._forward_pre_hooks) for h in held.values()
    ]
    return all(str(getattr(hook, "__module__", None)).startswith("transformers.") for hook in hooks)


@dataclass(frozen=True)
class _Reader:
    """A model under an intervention, and what is known of it."""

    model: Model
    drafts: _Drafts
    here: tuple[int, ...]
    intervention: Intervention | None

    @property
    def touched(self) -> int:
        """The lowest layer that the intervention touches."""
        return self.model.n_layers if self.intervention is None else min(self.intervention.neurons.by_layer())

    def layer(self, prompt: Prompt, answer: Ids) -> int:
        """The layer at which a prompt and an answer may enter; 0 for the bottom."""
        layer = self.drafts.lower.layer(prompt, answer, self.here) if self.here else 0
        works = self.drafts.lower.works.get((type(self.model.module), bool(prompt.images)), True)
        return layer if works and layer <= self.touched else 0

    def logits(
        self, prompts: Sequence[Prompt], batch: Batch, answers: Sequence[Ids], *, layer: int
    ) -> Float[Tensor, "batch step vocab"]:
        """Logits of as many steps as the longest answer has, from the layer on at which the batch enters."""
        lower, mine = self.drafts.lower, [prompts[i] for i in batch.rows]
        n, kind = max(map(len, answers)), (type(self.model.module), bool(mine[0].images))
        rows, width = batch.encoding["input_ids"].shape
        with running(self.model, rows=rows, width=width, traced=False):
            if layer:
                with from_layer(self.model, batch, layer=layer, rows=lower.entry(mine, answers)) as encoding:
                    short = self._forward(prompts, batch, encoding, n=n)
                if kind not in lower.works:
                    lower.works[kind] = agree(self.model, self._forward(prompts, batch, batch.encoding, n=n), short)
                if lower.works[kind]:
                    return short
            unlike, read = lower.unlike(mine, self.here), list[Tensor]()
            hold: Any = kept_at(self.model, unlike, read) if 0 < unlike <= self.touched else nullcontext()
            with hold:
                full = self._forward(prompts, batch, batch.encoding, n=n)
        real = batch.encoding["attention_mask"].bool()
        for i, (prompt, ids) in enumerate(zip(mine, answers, strict=True) if read else ()):
            value = read[0][i, real[i].to(read[0].device)].clone()
            lower.keep(prompt, ids, unlike, here=self.here, value=value, known=self.drafts.known.get(prompt, []))
        return full

    def _forward(
        self, prompts: Sequence[Prompt], batch: Batch, encoding: dict[str, Tensor], *, n: int
    ) -> Float[Tensor, "batch step vocab"]:
        """Logits of n steps, the last of which decides the last token of each row; every firing is counted."""
        model, (rows, width) = self.model, batch.encoding["input_ids"].shape
        edits, expected = edits_for(model, prompts, batch, conditions=[self.intervention])
        at_prompt = {layer: [_at_prompt(edit, batch) for edit in some] for layer, some in edits.items()}
        fired: dict[int, int] = {}

        def change(layer: int, h: Tensor) -> Tensor:
            h = h.clone()
            fired[layer] = sum(edit.apply(by_row(h, rows)) for edit in at_prompt[layer])
            return h

        options = {"use_cache": False} if model.forward_takes("use_cache") else {}
        hold = place_of(model, site_of([self.intervention])).changing(model, edits, change)
        with running(model, rows=rows, width=width, traced=False), torch.no_grad(), hold:
            out = model.module(**encoding, **options, **model.last_logits(n + 1)).logits
        if fired != expected:
            raise RuntimeError(f"an intervention on {model.id!r} fired {fired} times by layer, not {expected}")
        return out[:, -n - 1 : -1]


def _try(
    reader: _Reader, prompts: Sequence[Prompt], drafts: dict[int, Ids], *, layer: int, batch_size: int
) -> dict[int, Ids]:
    """The drafts that are what the model answers."""
    model, rows = reader.model, list(drafts)
    if not rows:
        return {}
    some, answers = [prompts[i] for i in rows], [drafts[i] for i in rows]
    vocabulary, longest = model.module.get_input_embeddings().weight.shape[0], max(map(len, answers))  # type: ignore[operator,union-attr]
    size = max(1, min(batch_size, LOGITS // (longest * vocabulary)))
    out: dict[int, Ids] = {}
    for batch in batches(model, some, batch_size=size, responses=answers, side="left"):
        if stretched(model.module, batch.encoding["input_ids"].shape[1]):
            return {}
        batch = replace(batch, rows=[rows[i] for i in batch.rows])
        good = _agrees(reader, prompts, batch, answers=[drafts[i] for i in batch.rows], layer=layer)
        out |= {row: drafts[row] for row, ok in zip(batch.rows, good.tolist(), strict=True) if ok}
    return out


def _agrees(
    reader: _Reader, prompts: Sequence[Prompt], batch: Batch, *, answers: Sequence[Ids], layer: int
) -> Bool[Tensor, " batch"]:
    """Whether each token of each answer is the argmax, by more than rounding."""
    n = max(map(len, answers))
    wanted = torch.full((len(answers), n), -1)
    for row, ids in enumerate(answers):
        wanted[row, n - len(ids) :] = torch.tensor(ids)
    logits = reader.logits(prompts, batch, answers, layer=layer)
    wanted = wanted.to(logits.device)
    index = wanted.clamp(min=0)[..., None]
    own = logits.gather(-1, index)[..., 0]
    others = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    share = APART if logits.dtype in (torch.float32, torch.float64) else APART_SHORT
    good = own.float() - others.float() > share * own.float().abs().clamp(min=1.0)
    return (good | (wanted < 0)).all(dim=1)  # what is not finite is not confirmed


def _at_prompt(edit: Edit, batch: Batch) -> Edit:
    """An edit of the last position as one of the last prompt token, which the answer follows here."""
    if edit.where is not None:
        return edit
    where = batch.roles["last_prompt"]
    return edit._replace(where=where if edit.active is None else where & edit.active[:, None])
