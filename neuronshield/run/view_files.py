"""The view of a run's neurons: a file of step check, which the report and `ns.explore` read without a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ..explorer.page import fragment
from ..explorer.replies import KnownAnswers
from ..explorer.storage import load_view
from ..explorer.view import AS_IT_IS, SaidView, View
from .answer_files import read_answers
from .conditions import BASE, SHIELD
from .manifest import Manifest, read_manifest

__all__ = ["SHIELDED", "VIEW", "known_answers", "report_part", "saved_view"]

#: The file, relative to the run folder.
VIEW = "check/view.safetensors"
#: The condition of the shielded model.
SHIELDED = "shielded"


def saved_view(folder: Path, manifest: Manifest | None = None) -> View | None:
    """The view of a run, with its answers as they are graded now; None where step check did not leave one.

    Args:
        folder: the run folder.
        manifest: of the folder, where it was read already.

    Raises:
        InputError: a damaged file.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    step = None if manifest is None else manifest.steps.get("check")
    if step is None or VIEW not in step.files or not (folder / VIEW).exists():
        return None
    view = load_view(folder / VIEW)
    known = known_answers(folder, {p.id for p in view.prompts})
    prompts = [
        replace(p, answers={**p.answers, **{name: said[p.id] for name, said in known.items() if p.id in said}})
        for p in view.prompts
    ]
    return replace(view, prompts=tuple(prompts))


def known_answers(folder: Path, ids: Collection[str]) -> KnownAnswers:
    """The answers of a run to some prompts: as the model is, and shielded; empty before step check.

    Args:
        folder: the run folder.
        ids: of the prompts.

    Raises:
        InputError: answers.parquet is damaged.
    """
    if not (folder / "answers.parquet").exists():
        return {}
    table = read_answers(folder)
    mine = table[table["steps"].isna() & table["prompt_id"].isin(list(ids))]
    out: dict[str, dict[str, SaidView]] = {}
    for row in mine.itertuples(index=False):
        name = {BASE: AS_IT_IS, SHIELD: SHIELDED}.get(str(row.condition))
        if name is not None:
            outcome = "" if row.outcome == "unknown" else str(row.outcome)
            out.setdefault(name, {})[str(row.prompt_id)] = SaidView(str(row.response), outcome)
    return out


def report_part(folder: Path) -> str:
    """The explorer of a run as HTML for its report; empty where step check did not leave a view.

    Args:
        folder: the run folder.

    Raises:
        InputError: as `saved_view`.
    """
    view = saved_view(folder)
    return "" if view is None else fragment(view)
