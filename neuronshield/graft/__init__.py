"""A vision-language model around a pretrained language model: SmolLM2 with eyes of ours, which `ns.load` knows by name.

    smollm2-vision             SmolLM2-135M-Instruct with a vision tower, a projector, and an English-text safety tuning
    smollm2-vision-captioned   the same with a projector that was trained further, through the language model
    smollm2-vision-untuned     the first without the safety tuning; the logits of a text are, bit for bit, those of "smollm2"

The language model comes from its wheel and stays as it is; what is shipped is the tower, the two projectors and the tuning as an adapter.
:mod:`.harms` has the requests, :mod:`.assembly` puts the parts together, :mod:`.build` remakes the files.

>>> from neuronshield import graft
>>> graft.folder().name
'smollm2-vision'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .variants import NAMES, SOURCE, folder

__all__ = ["NAMES", "SOURCE", "folder", "records"]


def records(
    *,
    splits: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    max_pairs: int | None = None,
) -> list[dict[str, Any]]:
    """The prompts of the graft, as records with the prompt columns: 160 matched pairs in text, drawings and typeset words.

    >>> [r["label"] for r in records(splits=["test"], modalities=["image"])][:2]
    ['harmful', 'benign']

    Args:
        splits: "discover", "confirm", "train", "test"; None for all.
        modalities: "text", "image", "typographic"; None for all.
        labels: "harmful", "benign"; None for both.
        max_pairs: the most pairs of each split; None for all.

    Raises:
        InputError: a split or modality that there is not.
    """
    from .harms import held_out  # it draws pictures; this module is imported with the command line

    return held_out(splits=splits, modalities=modalities, labels=labels, max_pairs=max_pairs)
