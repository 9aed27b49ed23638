"""How one language words a refusal."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Wording"]


NEVER = r"(?!)"


@dataclass(frozen=True)
class Wording:
    """How one language words a refusal; every field holds regular expressions over `plain` text.

    Attributes:
        refuse: anywhere in the first two sentences: the speaker cannot or will not help.
        no: what negates or forbids: an apology with it, or a bare one, refuses.
        apology: at the start of a clause: an apology.
        regret: right after the apology: what it is for, where that is not a refusal.
        answer: in the sentence of the apology or the one after it: an answer follows.
        unless: what looks like `refuse` and is not; removed first.
    """

    refuse: tuple[str, ...]
    no: str
    apology: str
    regret: str = NEVER
    answer: str = NEVER
    unless: tuple[str, ...] = ()
