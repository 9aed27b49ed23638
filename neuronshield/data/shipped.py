"""Prompts that come with the package: requests only, no answer to a harmful one.

    retention_prompts   everyday requests, the same ones in fourteen languages: a shield must not refuse them
    matched_pairs       harmful requests with their matched benign ones in five languages; one thing differs

The ten languages of the organism are among the fourteen. `languages.refusal_sentence` has the answer that is trained in each.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import InputError
from ..core.files import shipped
from .prompts import PromptSet
from .tags import language_tag

__all__ = ["matched_pairs", "retention_prompts"]


def retention_prompts(languages: Sequence[str] | None = None) -> PromptSet:
    """Benign prompts for retention: 24 a language, translations of one another (`pair_id`), marked "train".

    >>> retention_prompts(["sw"])
    PromptSet(0 harmful + 24 benign, 1 cell)

    Args:
        languages: BCP-47 tags; None for all.

    Raises:
        InputError: a language without prompts.
    """
    return _read("retention", languages).marked("train")


def matched_pairs(languages: Sequence[str] | None = None) -> PromptSet:
    """Matched pairs of harmful and benign requests: 40 in each of en, es, fr, de, pt, marked "test".

    >>> matched_pairs(["en"])
    PromptSet(40 harmful + 40 benign, 1 cell)

    Args:
        languages: BCP-47 tags; None for all.

    Raises:
        InputError: a language without prompts.
    """
    return _read("pairs", languages).marked("test")


def _read(name: str, languages: Sequence[str] | None) -> PromptSet:
    languages = [languages] if isinstance(languages, str) else languages
    rows = PromptSet.from_jsonl(shipped() / "prompts" / f"{name}.jsonl")
    known = list(dict.fromkeys(p.language for p in rows))
    if languages is None:
        return rows
    languages = [language_tag(language) for language in languages]
    if missing := [language for language in languages if language not in known]:
        raise InputError(f"no {name} prompts in {missing[0]!r}; there are {', '.join(known)}")
    return rows.where(language=languages)
