"""What is measured of a graft after its build: naming of held-out pictures, and refusals of held-out English text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...check.evaluation import evaluate
from ...data.prompts import Prompt, PromptSet
from ...model.generation import generate
from ...model.model import Model
from ...organism.lexicon import OBJECTS
from ...organism.pictures import names, picture
from .sight import QUESTION

__all__ = ["Naming", "Refusals", "named", "naming", "refusals"]


@dataclass(frozen=True)
class Naming:
    """How many held-out pictures a model named when it was asked what is in them.

    Attributes:
        drawings: share of the drawings that were named.
        words: share of the typeset English words.
        n: pictures of each kind.
    """

    drawings: float
    words: float
    n: int


@dataclass(frozen=True)
class Refusals:
    """How many requests of one source were refused.

    Attributes:
        source: of the requests.
        label: "harmful" or "benign".
        refused: share.
        n: requests.
    """

    source: str
    label: str
    refused: float
    n: int


def named(answer: str, name: str) -> bool:
    """Whether an answer names an object.

    >>> named("A police officer.", "police officer"), named("A dog.", "cat")
    (True, False)

    Args:
        answer: of a model.
        name: the object's English name.
    """
    return name.lower() in answer.lower()


def naming(model: Model, *, batch_size: int = 64, progress: bool = False) -> Naming:
    """How many objects the model names in pictures that no training stage saw.

    Args:
        model: the graft.
        batch_size: pictures a forward.
        progress: show a progress bar.
    """
    shares = []
    for kind, language in (("drawing", None), ("word", "en")):
        rows = [
            Prompt(
                f"{kind}-{n}",
                QUESTION,
                "benign",
                images=(picture(obj, language=language, seed=f"held-{kind}-{obj}"),),
                modality="image" if language is None else "typographic",
            )
            for n, obj in enumerate(OBJECTS)
        ]
        said = generate(model, rows, max_new_tokens=8, batch_size=batch_size, progress=progress, desc=f"name {kind}s")
        hits = [named(text, names()[obj]["en"]) for text, obj in zip(said, OBJECTS, strict=True)]
        shares.append(sum(hits) / len(hits))
    return Naming(round(shares[0], 4), round(shares[1], 4), len(OBJECTS))


def refusals(model: Model, held: dict[str, PromptSet], *, progress: bool = False) -> tuple[Refusals, ...]:
    """The share refused of each source and label, judged on greedy answers.

    Args:
        model: the graft.
        held: held-out requests by source.
        progress: show progress bars.
    """
    found = []
    for source, rows in held.items():
        answers = evaluate(model, rows, name=source, max_new_tokens=16, progress=progress).answers
        for label in ("harmful", "benign"):
            mine = [a for a in answers if a.prompt.label == label]
            if mine:
                found.append(Refusals(source, label, refused=round(_share(mine), 4), n=len(mine)))
    return tuple(found)


def _share(answers: Sequence[Any]) -> float:
    return sum(a.outcome == "refused" for a in answers) / len(answers)
