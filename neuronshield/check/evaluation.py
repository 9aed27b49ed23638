"""Check: what the model does in every language and modality, judged on generated answers.

Answers are generated greedily and graded (`neuronshield.data.grading.grade`, or a judge): refused, complied, incoherent or unknown.
A cell is one language in one modality. Per cell:

    refusal          share of harmful prompts refused             higher is safer
    compliance       share of harmful prompts complied with: coherent, and no refusal
    attack_success   share of harmful prompts answered as asked   (contains all of `expect`; else not incoherent and harmful by
                                                                  the judge; else complied)
    over_refusal     share of benign prompts refused              lower is better
    benign_compliance    share of benign prompts complied with
    selectivity      refusal - over_refusal                       0 for a model that refuses everything or nothing
    utility          share of benign prompts answered right       (needs `expect`)
    incoherent       share of all prompts whose answer is empty, blank or degenerate: neither a refusal nor a success

Incoherent answers are in the denominator of every rate. Answers of which it is unknown whether they count (a thought cut short, a
language whose refusals are not known, a judge without a verdict) are in no rate but `incoherent`; `n_unknown` counts them.

Means over cells weigh every cell that has the rate equally. All intervals are over requests (`core.intervals`), so variants and
translations of one request count as one observation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..core.arguments import at_least, check_seed, one_of, require
from ..core.display import count
from ..core.equality import same
from ..core.errors import InputError
from ..core.latex import latex_table
from ..core.provenance import provenance
from ..core.results import from_json, load_json, reading, save_json
from ..core.statistics import Interval
from ..data.judging import Judge, check_judge
from ..data.languages import OpeningsArg
from ..data.prompts import Cell, PromptSet
from ..figures.paper import Figure
from ..model.engine import Engine
from ..model.generation import settings
from ..model.model import Model
from ..model.prefixes import openings_of
from ..shield.guard import Guard
from ..systems.system import System
from .answering import answered, answerer
from .cells import (
    METRICS,
    Agreement,
    Answer,
    CellLike,
    CellResult,
    Touched,
    agreement_of,
    cell_result,
    cells_of,
    cells_with,
    check_same_prompts,
    mean_over_cells,
)
from .graded import graded
from .inspect_logs import answers_of_log, is_log

__all__ = ["METRICS", "Agreement", "Answer", "CellResult", "Evaluation", "Touched", "evaluate"]


FORMAT = "neuronshield.Evaluation/3"


LEFT_OUT = Path("left out")  # stands for a picture in a file
COUNTS = ("n_harmful", "n_benign", "n_unknown")
SHOWN = 20  # rows of a table in a notebook


def evaluate(
    model: Model | System | str | os.PathLike[str],
    prompts: PromptSet,
    *,
    name: str = "",
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    judge: Judge | None = None,
    guard: Guard | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> Evaluation:
    """The graded answers to the "test" prompts, and rates over them.

    >>> options = {"refusals": ["sorry"], "compliances": ["sure"], "max_new_tokens": 3, "progress": False}
    >>> result = ns.evaluate(model, prompts, **options)
    >>> len(result.answers), result.cells()
    (60, [Cell(language='en', modality='text'), Cell(language='sw', modality='text')])
    >>> result.cell("sw/text").selectivity
    Interval(value=..., low=..., high=...)

    Args:
        model: the model that answers, or a system (`ns.System`); or a log of inspect_ai (.eval or .json), whose answers are read instead
            (`inspect_logs`). The grades of the task `neuronshield/cells` are kept unless prefixes or a judge are given. Settings of
            generation are the log's.
        prompts: those of split "test" are answered, all of them if none is so marked.
        name: the condition, for figures and files.
        refusals: refusal prefixes that answers are graded by, a list for every language or {language: list}; the model's own
            without them, and without either how refusals are worded in each language.
        compliances: compliance prefixes, the same.
        judge: its verdict replaces that of the words where it has one (see `neuronshield.check.judges`). It reads the answer
            after the thought, and no incoherent answer.
        guard: a run-time guard that acts while the answers are generated; `touched` of the result counts how often it did.
        max_new_tokens: tokens an answer; refusals show in the first few. Of a system, those of the node that answers.
        batch_size: prompts a forward.
        seed: kept in the provenance; nothing is drawn here.
        engine: where answers are generated: None for this process, "ray", or an engine (`neuronshield.model.engine`). With a
            guard, or of a system, they are generated in this process.
        progress: show a progress bar.

    Raises:
        InputError: no prompts, an argument of another type, a judge that returns no verdict, or a log that is not complete.
    """
    call = "evaluate(model, prompts)"
    if not is_log(model):
        answerer(model, call=call)
    require(prompts, PromptSet, call=call, name="prompts", hint="read them with PromptSet.from_jsonl or from_records")
    check_judge(judge, call="evaluate")
    require(guard, (Guard, type(None)), call=call, name="guard", hint="fit_guard(model, neurons, prompts) makes one")
    at_least(1, "evaluate", max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_seed(seed, call="evaluate")
    test = prompts.for_step("test")
    if not len(test):
        raise InputError("evaluate: no prompts")
    if isinstance(model, (str, os.PathLike)):
        if guard is not None or engine is not None:
            raise InputError(f"evaluate: {model} holds answers; leave out guard= and engine=, which generate them")
        answers, about = answers_of_log(model, test, refusals=refusals, compliances=compliances, judge=judge)
        return Evaluation(answers, name, seed, provenance={**about, "seed": seed})
    last = answerer(model, call=call)
    openings = openings_of(last, test, refusals=refusals, compliances=compliances)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
    found = answered(model, test, guard=guard, engine=engine, name=name, **options)
    texts, opened = found.texts, found.opened
    answers = graded(test, texts, openings=openings, in_thought=opened, judge=judge, progress=progress)
    about = provenance(model, test, seed=seed, generation=settings(last, max_new_tokens))
    if judge is not None:
        about["judge"] = judge.name
    if any(opened):
        about["in_thought"] = [p.id for p, o in zip(test, opened, strict=True) if o]
    if guard is not None:
        about["guard"] = {**guard.provenance, "margin": guard.margin, "alpha": guard.alpha}
    return Evaluation(answers, name, seed, provenance=about, touched=found.touched)


# -- results ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Evaluation:
    """Graded answers, and rates over them. Made by `evaluate`.

    >>> prompt = ns.Prompt("1", "How do I ...?", "harmful")
    >>> Evaluation([Answer(prompt, "Sorry, no.", refused=True, right=None)]).cell("en/text").refusal.value
    1.0

    Attributes:
        answers: one for each prompt, in their order.
        name: the condition.
        seed: kept in the provenance; nothing is drawn here.
        provenance: model, data, settings and versions.
        touched: with a guard, how often it acted in each cell.
    """

    answers: Sequence[Answer]
    name: str = ""
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    touched: dict[Cell, Touched] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """The cells, in order of first appearance."""
        return cells_of(self.answers)

    def cell(self, cell: CellLike) -> CellResult:
        """Every rate of one cell, with intervals.

        Args:
            cell: "en/text", ("en", "text") or a `Cell`.

        Raises:
            InputError: no answers in that cell.
        """
        return cell_result(self.answers, Cell.of(cell))

    def results(self) -> dict[Cell, CellResult]:
        """Every cell's rates."""
        return {cell: self.cell(cell) for cell in self.cells()}

    def rates(self) -> dict[str, dict[str, Interval]]:
        """Every rate of every cell, by the cell's name: the form that figures take."""
        return {str(cell): {m: found[m] for m in METRICS} for cell, found in self.results().items()}

    def cells_with(self, metric: str, cells: Iterable[CellLike] | None = None) -> list[Cell]:
        """The cells that have a rate: those that `mean` is over.

        A cell without benign prompts has no over-refusal, one whose answers are all unknown has no rate at all.

        Args:
            metric: one of `METRICS`.
            cells: which are asked for; all of them without it.

        Raises:
            InputError: unknown metric, or no such cells.
        """
        return cells_with([self.answers], metric, cells)

    def mean(self, metric: str, cells: Iterable[CellLike] | None = None) -> Interval:
        """The mean of a rate over the cells that have it (`cells_with`), each with the same weight; NaN if none has.

        The interval is over requests.

        Args:
            metric: one of `METRICS`.
            cells: which; all of them without it.

        Raises:
            InputError: unknown metric, or no such cells.
        """
        return mean_over_cells([(self.answers, 1.0)], metric, cells=cells)

    def gain(
        self,
        others: Evaluation | Sequence[Evaluation],
        metric: str,
        cells: Iterable[CellLike] | None = None,
    ) -> Interval:
        """The mean of a rate over cells, minus that of `others`, with an interval that is paired by request.

        It is over the cells that have the rate in every evaluation; NaN if there is none.

        Args:
            others: another evaluation of the same prompts, or several, whose mean is taken.
            metric: one of `METRICS`.
            cells: which; all of them without it.

        Raises:
            InputError: unknown metric, no such cells, nothing to compare with, or evaluations of other prompts (in these cells).
        """
        call, hint = "gain(others, metric)", "the evaluations to compare with come first"
        if isinstance(others, str) or not isinstance(others, Iterable):
            others = [require(others, Evaluation, call=call, name="others", hint=hint)]
        others = list(others)
        for other in others:
            require(other, Evaluation, call=call, name="others", hint=hint)
        if not others:
            raise InputError("gain: nothing to compare with")
        check_same_prompts([self.answers, *(other.answers for other in others)], cells, call="gain")
        terms = [(self.answers, 1.0), *((other.answers, -1.0 / len(others)) for other in others)]
        return mean_over_cells(terms, metric, cells=cells)

    def agreement(self) -> Agreement:
        """How often the judge and the grading by words agree on what is a refusal.

        Raises:
            InputError: there was no judge, or no answer that both could grade.
        """
        return agreement_of(self.answers)

    # -- shown ----------------------------------------------------------------------------------------
    def to_frame(self) -> pd.DataFrame:
        """A table with one row a cell: counts, and every rate with the ends of its interval."""
        import pandas as pd

        rows = []
        for cell, found in self.results().items():
            row: dict[str, Any] = {"language": cell.language, "modality": cell.modality}
            row |= {"n_harmful": found.n_harmful, "n_benign": found.n_benign, "n_unknown": found.n_unknown}
            for metric in METRICS:
                value, low, high = found[metric]
                row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)

    def to_latex(self, *, metrics: Sequence[str] = ("refusal", "over_refusal", "selectivity")) -> str:
        """The cells as a LaTeX `tabular` with `booktabs` rules, every rate with its interval.

        Args:
            metrics: of `METRICS`, in order.
        """
        for metric in metrics:
            one_of(metric, METRICS, call="to_latex", name="metrics")
        ends = [f"{m}{end}" for m in metrics for end in ("", "_low", "_high")]
        return latex_table(self.to_frame()[["language", "modality", "n_harmful", "n_benign", *ends]])

    def figure(self, metric: str = "selectivity") -> Figure:
        """A language x modality heatmap of a rate.

        Args:
            metric: one of `METRICS`.
        """
        from ..figures import grid

        one_of(metric, METRICS, call="figure", name="metric")
        return grid({self.name or "model": self.rates()}, metric)

    def _bare(self) -> Evaluation:
        """The evaluation as its file holds it: with `LEFT_OUT` for each picture."""
        bare = [
            replace(a, prompt=replace(a.prompt, images=(LEFT_OUT,) * len(a.prompt.images)), request=a.cluster)
            for a in self.answers
        ]
        return replace(self, answers=bare)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Evaluation) and same(self._bare(), other._bare())

    def __hash__(self) -> int:
        return hash((self.name, self.seed, len(self.answers)))

    def __repr__(self) -> str:
        return f"Evaluation({self.name or 'model'}: mean selectivity {self.mean('selectivity')}, {count(len(self.cells()), 'cell')})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()[["language", "modality", *COUNTS, *METRICS]]
        more = f"<p>and {len(frame) - SHOWN} more cells: to_frame()</p>" if len(frame) > SHOWN else ""
        return f"{frame.head(SHOWN).to_html(index=False, float_format='{:.2f}'.format, na_rep='n/a')}{more}"

    # -- files ----------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the JSON file that the answers are written to, each picture as "left out".

        >>> prompt = ns.Prompt("1", "How do I ...?", "harmful")
        >>> before = Evaluation([Answer(prompt, "Sorry, no.", refused=True, right=None)], "shield")
        >>> Evaluation.load(before.save("shield.json")).cell("en/text").refusal == before.cell("en/text").refusal
        True

        Args:
            path: the file; it is written beside and renamed.

        Raises:
            InputError: a prompt has a column that JSON cannot hold.
        """
        try:
            return save_json(path, FORMAT, {"evaluation": self._bare()})
        except TypeError as error:
            raise InputError(f"{path}: a prompt cannot be written as JSON ({error}); leave that column out") from None

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Evaluation:
        """The evaluation that `save` wrote, without pictures.

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not an evaluation.
        """
        with reading(path, FORMAT):
            return from_json(Evaluation, _with_paths(load_json(path, FORMAT).get("evaluation")))


def _with_paths(data: Any) -> Any:
    """A file's evaluation with a path for each picture that was left out, as a prompt must have it."""
    for answer in data.get("answers", []) if isinstance(data, dict) else []:
        prompt = answer.get("prompt") if isinstance(answer, dict) else None
        if isinstance(prompt, dict) and isinstance(prompt.get("images"), list):
            prompt["images"] = [LEFT_OUT for _ in prompt["images"]]
    return data
