"""answers.parquet: every answer that a run generated to the test prompts, with its grade; and grading them again.

condition    "no update", "shield", "random mask 1", ...; of an attack "shield, pruned", ...
steps        of training; empty for the finished condition
prompt_id, language, modality, label, request, prompt, response
outcome      "refused", "complied", "incoherent" or "unknown"
refused, right, incoherent, graded, harmful, judge    see `neuronshield.check.cells.Answer`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from ..check.cells import Answer  # noqa: F401  (named in examples)
from ..check.evaluation import Evaluation
from ..core.errors import InputError
from ..core.files import replacing
from ..data.prompts import Cell

__all__ = ["answers_of", "evaluation_files", "export_answers", "read_answers", "write_answers"]

COLUMNS = ("condition", "steps", "prompt_id", "language", "modality", "label", "request", "prompt", "response", "outcome",
           "refused", "right", "incoherent", "graded", "harmful", "judge")  # fmt: skip

#: Folders of evaluations in a run folder, and the names of the conditions in them.
PLACES = (("check/answers/*.json", None), ("shield/curves/*/*.json", "steps"), ("check/attacks/*.json", "attack"))


def evaluation_files(folder: Path) -> Iterator[tuple[Path, int | None, bool]]:
    """The evaluations in a run folder, in order: the file, the steps of training if it is not finished, whether it is an attack.

    Args:
        folder: the run folder.
    """
    for pattern, kind in PLACES:
        found = sorted(folder.glob(pattern), key=lambda f: (f.parent.name, len(f.stem), f.stem))
        yield from ((file, int(file.stem) if kind == "steps" else None, kind == "attack") for file in found)


def answers_of(evaluation: Evaluation, *, condition: str, steps: int | None = None) -> pd.DataFrame:
    """One row an answer.

    >>> prompt = ns.Prompt("1", "How do I ...?", "harmful")
    >>> answers_of(Evaluation([Answer(prompt, "Sorry, no.", refused=True, right=None)]), condition="shield")["outcome"].tolist()
    ['refused']

    Args:
        evaluation: graded answers.
        condition: its name.
        steps: of training; None for the finished condition.
    """
    judge = evaluation.provenance.get("judge", "words")
    rows = [
        (condition, steps, a.prompt.id, a.prompt.language, a.prompt.modality, a.prompt.label, a.cluster, a.prompt.prompt, a.response,
         a.outcome, a.refused, a.right, a.incoherent, a.graded, a.harmful, judge)
        for a in evaluation.answers
    ]  # fmt: skip
    flags = dict.fromkeys(("refused", "right", "incoherent", "graded", "harmful"), "boolean")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"steps": "Int64", **flags})


def write_answers(folder: Path) -> Path:
    """Path of answers.parquet, written from the evaluations in a run folder.

    Args:
        folder: the run folder.

    Raises:
        InputError: a damaged evaluation, or the file cannot be written.
    """
    frames = []
    for file, steps, attack in evaluation_files(folder):
        evaluation = Evaluation.load(file)
        name = evaluation.name.rpartition(",")[0] if steps is not None else evaluation.name
        frames.append(answers_of(evaluation, condition=f"shield, {name}" if attack else name, steps=steps))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
    path = folder / "answers.parquet"
    with replacing(path) as partial:
        table.to_parquet(partial, index=False)
    return path


def read_answers(
    folder: Path, *, cell: str | None = None, condition: str | None = None, label: str | None = None
) -> pd.DataFrame:
    """The answers of a run, or some of them.

    Args:
        folder: the run folder.
        cell: such as "sw/text"; all without it.
        condition: such as "shield"; all without it.
        label: "harmful" or "benign"; both without it.

    Raises:
        InputError: no answers there, or none of that kind.
    """
    path = folder / "answers.parquet"
    if not path.exists():
        raise InputError(f"{folder}: no answers.parquet; run 'neuronshield check' first")
    try:
        table = pd.read_parquet(path)
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read ({str(error).splitlines()[0]:.100}); run 'neuronshield check' again"
        ) from None
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise InputError(f"{path}: has no column {missing[0]!r}; run 'neuronshield check' again")
    asked = {"condition": condition, "label": label}
    if cell is not None:
        asked |= dict(zip(("language", "modality"), Cell.of(cell), strict=True))
    for name, value in asked.items():
        if value is not None:
            known = list(dict.fromkeys(table[name]))
            table = table[table[name] == value]
            if not len(table):
                raise InputError(f"{path}: no answers with {name} {value!r}; there are {', '.join(map(repr, known))}")
    return table.reset_index(drop=True)


def export_answers(table: pd.DataFrame, path: Path) -> Path:
    """Path of the file that answers were written to; its ending says in which form.

    >>> prompt = ns.Prompt("1", "How do I ...?", "harmful")
    >>> table = answers_of(Evaluation([Answer(prompt, "Sorry, no.", refused=True, right=None)]), condition="shield")
    >>> export_answers(table, Path("answers.csv")).read_text().count("\\n")
    2

    Args:
        table: the answers.
        path: ends in .csv, .jsonl or .parquet.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda p: table.to_csv(p, index=False),
        ".jsonl": lambda p: table.to_json(p, orient="records", lines=True, force_ascii=False),
        ".parquet": lambda p: table.to_parquet(p, index=False),
    }
    if path.suffix not in writers:
        raise InputError(f"--export {path}: must end in {', '.join(writers)}")
    with replacing(path) as partial:
        writers[path.suffix](partial)
    return path
