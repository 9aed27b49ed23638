"""A sample of a run's answers with their prompts and pictures, for a page that cannot hold them all."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.errors import InputError
from ..data.pictures import image_bytes, read_image
from ..data.records import to_prompts
from ..data.sources import jsonl_rows, parquet_rows
from .answer_files import read_answers
from .conditions import BASE, SHIELD
from .own_prompts import OWNERS, own_records
from .settings import Settings, read_settings

__all__ = ["Said", "Shown", "picture_uris", "prompt_rows", "requests_by_split", "sample_answers"]

#: Answers that a page embeds.
MOST = 200
#: Pixels of the longer side of a picture on a page, and its JPEG quality.
SIDE, QUALITY = 128, 70
#: Pictures shown of one prompt.
PICTURES = 4


@dataclass(frozen=True)
class Said:
    """One answer: under which condition, its text, and how it was graded."""

    condition: str
    text: str
    outcome: str


@dataclass(frozen=True)
class Shown:
    """One prompt of the sample with its answers.

    Attributes:
        id: of the prompt.
        cell: language and modality.
        label: "harmful" or "benign".
        prompt: its text.
        answers: under some of the conditions.
    """

    id: str
    cell: str
    label: str
    prompt: str
    answers: tuple[Said, ...]


def sample_answers(folder: Path, *, most: int = MOST) -> tuple[list[Shown], int]:
    """A sample of the answers of finished conditions, and how many answers answers.parquet has; none without that file.

    Of each cell one request is taken, another one in each cell, by position and not by outcome: its harmful and its benign
    prompt. Both are shown under no update, under the shield, and under other conditions in turn, so that every condition occurs.

    Args:
        folder: the run folder.
        most: answers; with very many cells some are left out.

    Raises:
        InputError: answers.parquet is damaged.
    """
    if not (folder / "answers.parquet").exists():
        return [], 0
    table = read_answers(folder)
    done = table[table["steps"].isna()].drop_duplicates(["prompt_id", "condition"])
    done = done.assign(cell=done["language"].astype(str) + "/" + done["modality"].astype(str))
    chosen = _prompts(done)[:most]
    names = [n for n in (BASE, SHIELD) if n in set(done["condition"])]
    others = [n for n in dict.fromkeys(done["condition"]) if n not in names]
    each = max(1, (most - len(others)) // max(len(chosen), 1))
    by_prompt = dict(list(done[done["prompt_id"].isin(chosen)].groupby("prompt_id", sort=False)))
    rare = Counter(n for rows in by_prompt.values() for n in rows["condition"])
    used: Counter[str] = Counter()
    shown = []
    for number, key in enumerate(chosen):
        rows = {row.condition: row for row in by_prompt[key].itertuples(index=False)}
        first = [n for n in names if n in rows]
        first = first if each > 1 else ([n for n in names[number % 2 :] if n in rows] or list(rows))[:1]
        there = sorted((n for n in others if n in rows), key=lambda n: (used[n], rare[n]))
        more = there[: max(each - len(first), int(number < len(others) or not first))]
        used.update(more)
        row = next(iter(rows.values()))
        said = tuple(Said(str(n), _text(rows[n].response), _text(rows[n].outcome)) for n in (*first, *more))
        shown.append(Shown(str(key), row.cell, label=_text(row.label), prompt=_text(row.prompt), answers=said))
    return shown, len(table)


def _text(value: Any) -> str:
    """A text of a file; "" where it has none."""
    return value if isinstance(value, str) else "" if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _prompts(done: pd.DataFrame) -> list[Any]:
    """Ids: of each cell another request, its harmful and its benign prompt."""
    rows = done.drop_duplicates("prompt_id")[["prompt_id", "cell", "label", "request"]].astype({"request": str})
    chosen = []
    for number, (_, cell) in enumerate(rows.groupby("cell", sort=False)):
        both = cell.groupby("request")["label"].nunique()
        requests = sorted(both[both == both.max()].index)
        mine = cell[cell["request"] == requests[number % len(requests)]]
        for label in dict.fromkeys(["harmful", "benign", *cell["label"]]):
            found = mine[mine["label"] == label] if (mine["label"] == label).any() else cell[cell["label"] == label]
            chosen += list(found["prompt_id"])[:1]
    return chosen


# -- prompts --------------------------------------------------------------------------------------------------
def prompt_rows(folder: Path) -> pd.DataFrame | None:
    """prompts.parquet of a run; None where there is none.

    Args:
        folder: the run folder.

    Raises:
        InputError: it is damaged.
    """
    path = folder / "prompts.parquet"
    if not path.exists():
        return None
    try:
        return pd.read_parquet(path, columns=["id", "split", "request", "images"])
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]:.100})") from None


def requests_by_split(rows: pd.DataFrame | None) -> dict[str, int]:
    """How many independent requests each split has; nothing where the prompts are not known.

    Args:
        rows: of `prompt_rows`.
    """
    if rows is None:
        return {}
    return {str(split): int(n) for split, n in rows.groupby("split")["request"].nunique().items()}


def picture_uris(folder: Path, rows: pd.DataFrame | None, ids: Collection[str]) -> dict[str, list[str | None]]:
    """Small JPEG pictures of some prompts as `data:` URIs, by prompt; None for a picture that cannot be read any more.

    A run keeps the hashes of its pictures, not the pictures. They are read again from the file of the prompts, or drawn again for
    the organism, and shown if they have the same hash.

    Args:
        folder: the run folder.
        rows: of `prompt_rows`.
        ids: of the prompts.
    """
    if rows is None:
        return {}
    mine = rows[rows["id"].isin(list(ids))]
    wanted = {
        str(row.id): [str(h) for h in row.images][:PICTURES] for row in mine.itertuples(index=False) if len(row.images)
    }
    found: dict[str, str] = {}
    if wanted:
        try:
            for picture in _pictures(folder, set(wanted)):
                found.setdefault(hashlib.sha256(image_bytes(picture)).hexdigest()[:16], _uri(picture))
        except InputError:
            pass  # the file is gone or has changed: the page says so
    return {key: [found.get(h) for h in hashes] for key, hashes in wanted.items()}


def _pictures(folder: Path, ids: Collection[str]) -> Iterator[Any]:
    """The pictures of some prompts, from where the run had them."""
    settings = Settings(**read_settings(folder / "run.toml"))
    if settings.prompts is None and settings.model in OWNERS:
        for row in own_records(
            settings.model, seed=settings.seed, splits=["test"], modalities=["image", "typographic"]
        ):
            if row["id"] in ids:
                yield from row["images"]
    elif settings.prompts is not None:
        path = Path(settings.prompts)
        read = parquet_rows if path.suffix.lower() == ".parquet" else jsonl_rows
        kept = [(where, row) for where, row in read(path) if str(row.get("id", next(iter(ids)))) in ids]
        for prompt in to_prompts(kept, path.parent):
            yield from prompt.images


def _uri(picture: Any) -> str:
    image = read_image(picture, "image")
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
