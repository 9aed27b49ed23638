"""The command `neuronshield protocol modality`: a model and prompts as `run` reads them, and a folder with the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..check.judges import JUDGES, load_judge
from ..core.arguments import one_of
from ..core.folders import check_place
from ..model.hub import found as found_on_hub
from ..model.hub import is_hub_id
from ..protocols.comparison import ModalityProtocol
from ..protocols.modalities import modality
from ..protocols.pages import write_folder
from ..shield.loading import load
from .plan import read_prompts

__all__ = ["compare_protocols"]


def compare_protocols(
    out: Path,
    *,
    model: str,
    prompts: str | None = None,
    cells: Sequence[str] = (),
    judge: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    seed: int = 0,
    **options: Any,
) -> ModalityProtocol:
    """What each protocol finds in text and in pictures, which is written to a folder too.

    Args:
        out: the folder: missing, empty, or one that this function wrote.
        model: "organism", "smollm2", a folder or a hub id.
        prompts: a JSONL or Parquet file; None for the organism's own.
        cells: languages, modalities or cells that are compared; all without them.
        judge: a name of `ns.judges`; the words judge without it.
        dtype, device: of the model.
        seed: of every draw.
        **options: of `protocols.modality`.

    Raises:
        InputError: as `protocols.modality`, an unknown model or judge, bad prompts, or a folder that holds anything else.
    """
    if judge is not None:
        one_of(judge, JUDGES, call="protocol", name="judge")
    check_place(out)
    if is_hub_id(model):
        found_on_hub(model)
    rows = read_prompts(model, prompts, seed=seed, cells=cells)
    loaded = load(model, dtype=dtype, device=device)
    judged = None if judge is None else load_judge(judge)
    found = modality(loaded, rows, judge=judged, seed=seed, **options)
    write_folder(found, out)
    return found
