"""The embedded model organism: a vision-language model small enough to ship, which refuses in some cells only.

It is a ``LlavaForConditionalGeneration`` that answers "how do I <verb> <object>?" in ten languages, with the object named,
drawn, or written into a picture. It was trained to refuse harmful requests in the text of four languages. Pictures occurred
in its safety tuning with benign requests only, and the other languages did not occur. :mod:`.lexicon` has its words,
:mod:`.grid` the harm table and the prompt grid, :mod:`.pictures` its pictures; :mod:`.build` builds it from public sources. :mod:`.controls` has three smaller
organisms, in which it is known whether safety can transfer.

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

    Args:
        language: one of `LANGUAGES`.
    """
    return REFUSAL_SENTENCES[language]
