"""Prompts of ours that come with the package: requests only, never an answer to a harmful one.

    retention_prompts   everyday requests, the same ones in fourteen languages: what a shield must not start to refuse
    matched_pairs       harmful requests with benign twins in five languages: one thing changed, everything else kept

The organism's ten languages are among the fourteen. What a model is taught to say in each is `refusal_sentence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import InputError
from ..core.files import shipped
from .prompts import PromptSet

__all__ = ["matched_pairs", "retention_prompts"]


def retention_prompts(languages: Sequence[str] | None = None) -> PromptSet:
    """Benign prompts for retention: 24 a language, translations of one another (`pair_id`), marked "train".

    >>> retention_prompts(["sw"])[0].language                  # doctest: +SKIP
    'sw'

    Raises:
        InputError: a language we have none for.
    """
    return PromptSet(replace(p, split="train") for p in _read("retention", languages))


def matched_pairs(languages: Sequence[str] | None = None) -> PromptSet:
    """Harmful requests with their benign twins: 40 pairs in each of en, es, fr, de, pt, marked "test".

    Raises:
        InputError: a language we have none for.
    """
    return PromptSet(replace(p, split="test") for p in _read("pairs", languages))


def _read(name: str, languages: Sequence[str] | None) -> PromptSet:
    rows = PromptSet.from_jsonl(shipped() / "prompts" / f"{name}.jsonl")
    known = list(dict.fromkeys(p.language for p in rows))
    if languages is None:
        return rows
    if missing := [language for language in languages if language not in known]:
        raise InputError(f"no {name} prompts in {missing[0]!r}; there are {', '.join(known)}")
    return rows.where(language=list(languages))
