"""The refusal margin: refusal against compliance at the first answer token.

    margin = logsumexp(first tokens of refusal prefixes) - logsumexp(first tokens of compliance prefixes)

One forward, signed, no judge. A first token that both sides share says nothing and is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError
from ..data.grading import Openings, openings_for
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt
from .model import Model


# -- the margin -----------------------------------------------------------------------------------------
def openings_of(
    model: Model, prompts: Sequence[Prompt], *, refusals: OpeningsArg = None, compliances: OpeningsArg = None
) -> Openings:
    """The prefixes that hold for these prompts with this model.

    Args:
        model: its `prefixes` hold where none are given.
        prompts: their languages and targets count.
        refusals, compliances: instead of the model's own (see `openings_for`).

    Raises:
        InputError: a language without a refusal or compliance prefix.
    """
    return openings_for(
        prompts,
        refusals=model.prefixes.refusals if refusals is None else refusals,
        compliances=model.prefixes.compliances if compliances is None else compliances,
    )


class OpeningTokens(NamedTuple):
    """First-token ids of one language's openings."""

    refusal: list[int]
    compliance: list[int]


def opening_tokens(model: Model, openings: Openings) -> dict[str, OpeningTokens]:
    """First-token ids by language.

    Raises:
        InputError: a language whose openings tokenise to nothing, or to the same tokens on both sides.
    """
    out = {}
    for language in openings.refusals:
        refusal = _first_ids(model, openings.refusals[language])
        compliance = _first_ids(model, openings.compliances[language])
        for name, ids, other in (("refusals", refusal, compliance), ("compliances", compliance, refusal)):
            if not ids - other:
                why = "share their first tokens with the other side's" if ids else "tokenise to nothing"
                raise InputError(f"{name} openings of {language!r} {why} with {model.id!r}: pass other {name}=[...]")
        out[language] = OpeningTokens(sorted(refusal - compliance), sorted(compliance - refusal))
    return out


def _first_ids(model: Model, texts: Sequence[str]) -> set[int]:
    """First tokens of each opening, with and without a leading space (templates differ in which comes)."""
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    ids = set()
    for text in texts:
        for variant in (text, f" {text}"):
            tokens = tokenizer(variant, add_special_tokens=False)["input_ids"]
            tokens = [i for i in tokens if tokenizer.decode([i]).strip()]
            if tokens and tokens[0] != unknown:
                ids.add(tokens[0])
    return ids


def margin(logits: Float[Tensor, "batch vocab"], tokens: Sequence[OpeningTokens]) -> Float[Tensor, " batch"]:
    """Refusal margin of each row: logsumexp(refusal openings) - logsumexp(compliance openings)."""
    out = torch.empty(len(logits))
    for kind in dict.fromkeys((tuple(t.refusal), tuple(t.compliance)) for t in tokens):
        rows = [i for i, t in enumerate(tokens) if (tuple(t.refusal), tuple(t.compliance)) == kind]
        refusal, compliance = (torch.logsumexp(logits[rows][:, list(ids)].float(), dim=1) for ids in kind)
        out[rows] = (refusal - compliance).cpu()
    return out
