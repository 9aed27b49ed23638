"""What an explorer shows, as plain data: neurons, prompts with their tokens, answers, and cells.

`neuronshield.explorer.gather` makes a `View` from a model or a finished run, `neuronshield.explorer.page` draws it. Nothing here
reads a model, so a view can be saved, drawn again and tested without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.statistics import Interval

__all__ = ["AS_IT_IS", "NeuronView", "PictureView", "PromptView", "SaidView", "SharedView", "TokenView", "View"]

#: The condition without any intervention.
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class NeuronView:
    """One neuron.

    Attributes:
        layer: its layer.
        index: its coordinate in the input of the layer's down-projection.
        status: "verified", "candidate", "anti-refusal" or "backup".
        effect: normalised effect of ablating it alone, with its interval; None where it was not measured.
        kind: "refusal-promoting", "compliance-promoting", "anti-refusal", or "" where that is not known.
        writes: what a unit of its activation adds directly to the refusal margin, in logits; None where that is not known.
        promoted: tokens whose logits a unit of its activation raises most.
        suppressed: tokens whose logits it lowers most.
        differences: mean activation on harmful prompts minus that on benign prompts, by cell; None where a cell lacks a label.
        scale: largest magnitude of its activation on the prompts shown; colours are relative to it.
    """

    layer: int
    index: int
    status: str
    effect: Interval | None
    kind: str
    writes: float | None
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    differences: Mapping[str, float | None]
    scale: float


@dataclass(frozen=True)
class TokenView:
    """One token of a prompt.

    Attributes:
        text: the token as text; "" for one that stands for a part of a picture.
        role: "template", "text" or "image".
        image: number of the picture whose features it stands for; None for other tokens.
        row: row of its patch in the picture's grid of tokens, from the top; None where that is not known.
        column: column of its patch, from the left.
    """

    text: str
    role: str
    image: int | None = None
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class PictureView:
    """One picture.

    Attributes:
        source: the picture as a `data:` URI.
        grid: rows and columns of its tokens; None where their order is not known.
        box: left, top, right and bottom edge of what the grid covers, as fractions of the picture's width and height.
    """

    source: str
    grid: tuple[int, int] | None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class SaidView:
    """One answer.

    Attributes:
        text: the answer.
        outcome: "refused", "complied", "incoherent", or "" where it was not graded.
    """

    text: str
    outcome: str


@dataclass(frozen=True)
class PromptView:
    """One prompt with its tokens, activations and answers.

    Attributes:
        id: of the prompt.
        pair: of the matched pair; the prompt's id where it has none.
        label: "harmful" or "benign".
        language: BCP-47.
        modality: "text", "image", "typographic" or "text+image".
        tokens: the tokens as the model reads them, without padding.
        pictures: its pictures.
        values: activation [neuron, token], rounded to three significant digits, in the order of the view's neurons.
        answers: by condition of the view; those with a neuron ablated by (layer, index) are in `alone`.
        alone: the answer with one neuron ablated, in the order of the view's neurons, None where it is not known; empty without any.
    """

    id: str
    pair: str
    label: str
    language: str
    modality: str
    tokens: tuple[TokenView, ...]
    pictures: tuple[PictureView, ...]
    values: tuple[tuple[float, ...], ...]
    answers: Mapping[str, SaidView]
    alone: tuple[SaidView | None, ...] = ()

    @property
    def cell(self) -> str:
        """Language and modality, such as "en/text"."""
        return f"{self.language}/{self.modality}"


@dataclass(frozen=True)
class SharedView:
    """The neurons that two cells share.

    Attributes:
        cells: the two cells.
        overlap: (overlap - benign null) / (reliability - benign null) with its interval; None where too few requests tell.
        neurons: those in the best of both cells, as (layer, index).
    """

    cells: tuple[str, str]
    overlap: Interval | None
    neurons: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class View:
    """All that an explorer shows.

    Attributes:
        title: such as "Safety neurons of organism".
        summary: one line of facts: how many neurons of what status, which layers, which run.
        languages: BCP-47, in the order of the columns.
        modalities: in the order of the rows.
        conditions: names of `PromptView.answers`, `AS_IT_IS` first.
        neurons: strongest effect first.
        prompts: matched pairs one after the other, harmful first.
        shared: pairs of cells; empty where no overlap was measured.
        notes: sentences about what is not known or was left out, such as a picture whose patch order is not known.
    """

    title: str
    summary: str
    languages: tuple[str, ...]
    modalities: tuple[str, ...]
    conditions: tuple[str, ...]
    neurons: tuple[NeuronView, ...]
    prompts: tuple[PromptView, ...]
    shared: tuple[SharedView, ...] = ()
    notes: tuple[str, ...] = ()
