"""The prompts of the models that ship: which models have prompts of their own, and those of a job without a file of prompts."""

from __future__ import annotations

from typing import Any

from .. import graft
from ..organism import controls

__all__ = ["GRAFT_PAIRS", "OWNERS", "job_records", "own_records"]

#: Names of the models that have prompts of their own.
OWNERS: tuple[str, ...] = (*controls.CELLS_OF, *graft.NAMES)

#: Matched pairs a cell and split of an organism's own prompts. Those of "test" that are left are confirmed on as well, so that of 48
#: requests one third chooses members and 32 test them: the claim of utility takes 29.
ORGANISM_PAIRS = 32

#: And of the graft's, whose forward is fifty times as expensive.
GRAFT_PAIRS = 16


def own_records(name: str, *, seed: int = 0, **choice: Any) -> list[dict[str, Any]]:
    """The prompts of a model that ships, as records with the prompt columns.

    >>> [own_records(name, splits=["test"], modalities=["text"], max_pairs=1)[0]["source"] for name in OWNERS[:2]]
    ['organism', 'organism-shared']

    Args:
        name: one of `OWNERS`.
        seed: of the order of pairs; the graft's have one order.
        choice: "splits", "modalities", "labels", "max_pairs".

    Raises:
        InputError: a split or modality that there is not.
    """
    return graft.records(**choice) if name in graft.NAMES else controls.records_of(name, seed=seed, **choice)


def job_records(name: str, *, seed: int) -> list[dict[str, Any]]:
    """The prompts of the main job on a model that ships, with splits.

    >>> sorted({row["split"] for row in job_records("organism-shared", seed=0)})
    ['confirm', 'discover', 'test', 'train']

    Args:
        name: one of `OWNERS`.
        seed: of the choice of an organism's prompts.
    """
    if name in graft.NAMES:
        return own_records(name, max_pairs=GRAFT_PAIRS)
    rows = own_records(name, seed=seed, max_pairs=ORGANISM_PAIRS)
    used = {row["pair_id"] for row in rows}
    rest = own_records(name, seed=seed, splits=["test"])
    return [*rows, *({**row, "split": "confirm"} for row in rest if row["pair_id"] not in used)]
