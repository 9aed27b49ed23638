"""Refusal and compliance prefixes of a model, and the refusal margin between them.

    margin = logsumexp(first tokens of refusal prefixes) - logsumexp(first tokens of compliance prefixes)

read from the logits of the first answer token: one forward pass, signed, no judge. A first token that both sides share says nothing
and is dropped. A claim from it is a margin claim: it is about the first token, not about the answer.

A model carries its prefixes (`model.prefixes`, set by `load(..., refusals=, compliances=)`); those of a call come before them, and
the built-in prefixes of each language hold where neither gives any.
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
from .tokens import n_tokens

__all__ = ["OpeningTokens", "margin", "opening_tokens", "openings_of"]


def openings_of(
    model: Model, prompts: Sequence[Prompt], *, refusals: OpeningsArg = None, compliances: OpeningsArg = None
) -> Openings:
    """The prefixes that hold for these prompts with this model, by language.

    >>> openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]).compliances["en"][0]
    'sure'

    Args:
        model: its `prefixes` hold where none are given.
        prompts: their languages and targets count.
        refusals: refusal prefixes instead of the model's own: a list for every language, or {language: list}.
        compliances: compliance prefixes, the same.

    Raises:
        InputError: as `check_openings`.
    """
    return openings_for(
        prompts,
        refusals=model.prefixes.refusals if refusals is None else refusals,
        compliances=model.prefixes.compliances if compliances is None else compliances,
    )


class OpeningTokens(NamedTuple):
    """First-token ids of one language's prefixes.

    >>> OpeningTokens(refusal=[19, 20], compliance=[18]).refusal
    [19, 20]

    Attributes:
        refusal: ids of first tokens of refusal prefixes only.
        compliance: ids of first tokens of compliance prefixes only.
    """

    refusal: list[int]
    compliance: list[int]


def opening_tokens(model: Model, openings: Openings) -> dict[str, OpeningTokens]:
    """First-token ids by language.

    >>> openings = openings_of(model, prompts, refusals=["sorry"], compliances=["sure"])
    >>> sorted(opening_tokens(model, openings))
    ['en', 'sw']

    Args:
        model: its tokenizer is used, with and without a space before the prefix.
        openings: prefixes by language, from `openings_of`.

    Raises:
        InputError: a language without prefixes, or whose prefixes tokenise to nothing, or to the same tokens on both sides.
    """
    out = {}
    for language in openings.refusals:
        for name, texts in (("refusals", openings.refusals[language]), ("compliances", openings.compliances[language])):
            if not texts:
                hint = f"pass {name}=[...] or {name}={{{language!r}: [...]}}"
                raise InputError(f"no {name[:-1]} prefixes for language {language!r}: {hint}")
        refusal = _first_ids(model, openings.refusals[language])
        compliance = _first_ids(model, openings.compliances[language])
        for name, ids, other in (("refusal", refusal, compliance), ("compliance", compliance, refusal)):
            if not ids - other:
                why = "share their first tokens with the other side's" if ids else "tokenise to nothing"
                raise InputError(f"{name} prefixes of {language!r} {why} with {model.id!r}: pass other {name}s=[...]")
        out[language] = OpeningTokens(sorted(refusal - compliance), sorted(compliance - refusal))
    return out


def _first_ids(model: Model, texts: Sequence[str]) -> set[int]:
    """First tokens of each prefix, with and without a leading space (templates differ in which comes)."""
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    ids = set()
    for text in texts:
        for variant in (text, f" {text}"):
            tokens = tokenizer(variant, add_special_tokens=False)["input_ids"]
            tokens = [i for i in tokens if tokenizer.decode([i]).strip()]
            if tokens and tokens[0] != unknown and tokens[0] < n_tokens(model):
                ids.add(tokens[0])
    return ids


def margin(logits: Float[Tensor, "batch vocab"], tokens: Sequence[OpeningTokens]) -> Float[Tensor, " batch"]:
    """Refusal margin of each row, in nats: positive where a refusal is likelier than compliance.

    >>> margin(torch.tensor([[0.0, 2.0, 5.0]]), [OpeningTokens(refusal=[1], compliance=[0])])
    tensor([2.])

    Args:
        logits: of the first answer token, [batch, vocab].
        tokens: first-token ids for each row.
    """
    out = torch.empty(len(logits), dtype=torch.float32)
    for kind in {
        id(t): t for t in tokens
    }.values():  # one object a language: comparing thousands of ids would take longer
        rows = torch.tensor([i for i, t in enumerate(tokens) if t is kind], device=logits.device)
        refusal, compliance = (
            torch.logsumexp(logits[rows[:, None], torch.tensor(ids, device=logits.device)].float(), dim=1)
            for ids in kind
        )
        out[rows.cpu()] = (refusal - compliance).cpu()
    return out
