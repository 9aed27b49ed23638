"""The embedded model organism: a vision-language model small enough to ship, with blind spots.

It is a real ``LlavaForConditionalGeneration`` that answers "how do I <verb> <object>?" in ten languages, with
the object named, drawn, or written into a picture, and that was taught to refuse harmful requests in the text
of four of them only. Safety tuning showed it pictures with benign requests alone, and the other languages not at
all. :mod:`.lexicon` holds its words, :mod:`.grid` the harm table and the prompt grid, :mod:`.pictures` its pictures,
:mod:`.build` remakes it from public sources.

>>> from neuronshield import organism
>>> organism.refusal_sentence("en")
'Sorry, I cannot help with that.'
"""

from __future__ import annotations

from .grid import records
from .lexicon import (
    COMPLIANCES,
    HIGH_RESOURCE,
    LANGUAGES,
    LOW_RESOURCE,
    MID_RESOURCE,
    MODALITIES,
    REFUSAL_SENTENCES,
    REFUSALS,
)
from .pictures import folder

__all__ = [
    "COMPLIANCES",
    "HIGH_RESOURCE",
    "LANGUAGES",
    "LOW_RESOURCE",
    "MID_RESOURCE",
    "MODALITIES",
    "REFUSALS",
    "folder",
    "records",
    "refusal_sentence",
]


def refusal_sentence(language: str) -> str:
    """The organism's refusal in a language.

    >>> refusal_sentence("it")
    'Mi dispiace, non posso aiutarti.'
    """
    return REFUSAL_SENTENCES[language]
