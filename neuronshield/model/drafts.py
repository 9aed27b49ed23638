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
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.prompts import Prompt
from .edits import Edit, edits_for
from .encoding import Batch, batches
from .families import by_row
from .hooks import hooked
from .intervention import Intervention
from .model import Model
from .rotary import parts_of, stretched
from .running import running
from .shortcuts import takes_cache

__all__ = ["confirmed", "remember"]

Ids = tuple[int, ...]

KEPT = 2  # drafts of a prompt, the last ones
LOGITS = 2**26  # numbers in the logits of one forward, at most
FEW = 1 / 3  # share of drafts that are confirmed, below which no more are tried
#: Distance of the argmax from the next logit, as a share of its size, that rounding cannot reach.
APART, APART_SHORT = 1e-3, 0.05


@dataclass
class _Drafts:
    """Answers to prompts as one tokenizer writes them, the last ones first; and which classes of models may be tried."""

    known: WeakKeyDictionary[Prompt, list[Ids]] = field(default_factory=WeakKeyDictionary)
    agrees: dict[type, bool] = field(default_factory=dict)


_DRAFTS: WeakKeyDictionary[Any, _Drafts] = WeakKeyDictionary()


def remember(model: Model, prompt: Prompt, ids: Sequence[int]) -> None:
    """Keep an answer as a draft.

    >>> remember(model, prompts[0], [19, 20, 2])

    Args:
        model: its processor's tokens.
        prompt: what was asked.
        ids: what was answered, with the token that ended it, if one did.
    """
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
    drafts = _DRAFTS.get(model.processor)
    if drafts is None or not drafts.agrees.get(type(model.module), True) or not _allowed(model, intervention):
        return {}
    out: dict[int, Ids] = {}
    for rank in range(KEPT):
        tried: dict[int, Ids] = {}
        for row, prompt in enumerate(prompts):
            known = drafts.known.get(prompt, [])
            if row not in out and len(known) > rank and (ids := _whole(known[rank], max_new_tokens, ends)):
                tried[row] = ids
        found = _try(model, prompts, tried, intervention=intervention, batch_size=batch_size)
        if found and type(model.module) not in drafts.agrees:
            row = next(iter(found))
            drafts.agrees[type(model.module)] = found[row] == answer(row)
            if not drafts.agrees[type(model.module)]:
                return {}
        out |= found
    for row, ids in out.items():
        remember(model, prompts[row], ids)
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


def _try(
    model: Model,
    prompts: Sequence[Prompt],
    drafts: dict[int, Ids],
    *,
    intervention: Intervention | None,
    batch_size: int,
) -> dict[int, Ids]:
    """The drafts that are what the model answers."""
    rows = list(drafts)
    if not rows:
        return {}
    some, answers = [prompts[i] for i in rows], [drafts[i] for i in rows]
    vocabulary, longest = model.module.get_input_embeddings().weight.shape[0], max(map(len, answers))  # type: ignore[operator,union-attr]
    size = max(1, min(batch_size, LOGITS // (longest * vocabulary)))
    out: dict[int, Ids] = {}
    tried = 0
    for batch in batches(model, some, batch_size=size, responses=answers, side="left"):
        if stretched(model.module, batch.encoding["input_ids"].shape[1]):
            return {}
        batch = replace(batch, rows=[rows[i] for i in batch.rows])
        good = _agrees(model, prompts, batch, [drafts[i] for i in batch.rows], intervention=intervention)
        out |= {row: drafts[row] for row, ok in zip(batch.rows, good.tolist(), strict=True) if ok}
        tried += len(batch.rows)
        if tried >= 2 * size and len(out) < FEW * tried:
            break
    return out


def _agrees(
    model: Model, prompts: Sequence[Prompt], batch: Batch, answers: Sequence[Ids], *, intervention: Intervention | None
) -> Bool[Tensor, " batch"]:
    """Whether each token of each answer is the argmax, by more than rounding."""
    n = max(map(len, answers))
    wanted = torch.full((len(answers), n), -1)
    for row, ids in enumerate(answers):
        wanted[row, n - len(ids) :] = torch.tensor(ids)
    wanted = wanted.to(model.device)
    logits = _logits(model, prompts, batch, n=n, intervention=intervention)
    index = wanted.clamp(min=0)[..., None].to(logits.device)
    own = logits.gather(-1, index)[..., 0]
    others = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    share = APART if logits.dtype in (torch.float32, torch.float64) else APART_SHORT
    good = own.float() - others.float() > share * own.float().abs().clamp(min=1.0)
    return (good.to(wanted.device) | (wanted < 0)).all(dim=1)  # what is not finite is not confirmed


def _logits(
    model: Model, prompts: Sequence[Prompt], batch: Batch, *, n: int, intervention: Intervention | None
) -> Float[Tensor, "batch step vocab"]:
    """Logits of n steps, the last of which decides the last token of each row."""
    rows, width = batch.encoding["input_ids"].shape
    edits, expected = edits_for(model, prompts, batch, conditions=[intervention])
    at_prompt = {layer: [_at_prompt(edit, batch) for edit in some] for layer, some in edits.items()}
    fired: dict[int, int] = {}

    def change(layer: int, h: Tensor) -> Tensor:
        h = h.clone()
        fired[layer] = sum(edit.apply(by_row(h, rows)) for edit in at_prompt[layer])
        return h

    downs = {layer: model.linear(layer, model.site.down) for layer in edits}
    options = {"use_cache": False} if model.forward_takes("use_cache") else {}
    hold = hooked(downs, before=change)
    with running(model, rows=rows, width=width, traced=False), torch.no_grad(), hold:
        out = model.module(**batch.encoding, **options, **model.last_logits(n + 1)).logits
    if fired != expected:
        raise RuntimeError(f"an intervention on {model.id!r} fired {fired} times by layer, not {expected}")
    return out[:, -n - 1 : -1]


def _at_prompt(edit: Edit, batch: Batch) -> Edit:
    """An edit of the last position as one of the last prompt token, which the answer follows here."""
    if edit.where is not None:
        return edit
    where = batch.roles["last_prompt"]
    return edit._replace(where=where if edit.active is None else where & edit.active[:, None])
