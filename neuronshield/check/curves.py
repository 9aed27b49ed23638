"""Harmful refused at matched benign refusal: what a shield adds that refusing more does not.

A model that refuses more refuses more harmful prompts *and* more benign ones. Selectivity at the end of training therefore
compares conditions at different points. Here each condition is followed over its training. With b the share of benign and h
the share of harmful prompts refused (means over cells), a **curve** is the points

    (b_0, h_0), (b_1, h_1), ..., (b_S, h_S)      the untouched model, then the model after more and more steps

joined by straight lines. Read at the benign refusal x, a curve gives the most harmful refusal that it has at or below x:

    h(x) = max { h : (b, h) on the curve, b <= x }

Two conditions A and B are compared at one x, the benign refusal of A at the end of its training, as far as B's curve goes:

    x = min(b_S of A, max_s b_s of B)            (and at least the least b of B)
    difference = h_A(x) - h_B(x)

If B never refuses as many benign prompts as A does in the end, A is read earlier on its own curve, and `Matched.reached` says
so. Two conditions that move along one line, one of them further, have a difference of 0.

**Interval.** Requests are resampled, all answers to a request together, every rate is computed and every curve is read again: a
percentile interval, widened for the number of requests n by t / z * sqrt(n / (n - 1)) (Hesterberg 2015). Beside several curves
(masks of random neurons) the difference is the mean over them, and Student's interval for their spread is added in quadrature; so it is for several seeds.
Between its points a curve is not known. Where it bends down, a straight line lies below it, so a control with few points is
read low: give more strengths.

Source: the bootstrap of Efron and Tibshirani (1993); Hesterberg (2015), "What teachers should know about the bootstrap", for the
factor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from ..core.arguments import require
from ..core.errors import InputError
from ..core.intervals import Z
from ..core.statistics import LEVEL, NAN, Interval
from ..data.prompts import Cell
from .cells import CellLike, cells_with, check_same_prompts
from .evaluation import Evaluation

__all__ = ["Curve", "Matched", "Point", "matched"]

#: Resamples of the requests.
DRAWS = 2000
#: Rates that differ by less are equal: sums over cells have rounding errors.
EQUAL = 1e-9


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        steps: training steps; 0 is the untouched model.
        refusal: harmful prompts refused.
        over_refusal: benign prompts refused.
    """

    steps: int
    refusal: Interval
    over_refusal: Interval


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """Evaluations of one training after more and more steps, the untouched model first.

    >>> before, after = (ns.evaluate(model, prompts, refusals=[r], progress=False) for r in ("sorry", "make"))
    >>> curve = Curve([0, 40], [before, after])
    >>> curve
    Curve(0, 40 steps; 60 prompts)
    >>> curve.points(["en/text"])[0].over_refusal
    Interval(value=..., low=..., high=...)

    Args:
        steps: training steps of each evaluation, ascending from 0.
        evaluations: of the same prompts; the last one is of the finished update.

    Raises:
        InputError: steps that do not ascend from 0, another number of evaluations, or evaluations of different prompts.
    """

    steps: Sequence[int]
    evaluations: Sequence[Evaluation]

    def __post_init__(self) -> None:
        steps = _given(self.steps, name="steps", hint="training steps, such as [0, 40]")
        evaluations = _given(self.evaluations, name="evaluations", hint="one for each step")
        if (
            not all(isinstance(step, Real) for step in steps)
            or len(steps) < 2
            or steps[0] != 0
            or sorted(set(steps)) != steps
        ):
            raise InputError(
                f"Curve: steps={steps!r:.60}: must ascend from 0, the untouched model, to at least one other"
            )
        for evaluation in evaluations:
            require(evaluation, Evaluation, call="Curve(steps, evaluations)", name="evaluations")
        if len(steps) != len(evaluations):
            raise InputError(f"Curve: {len(steps)} steps, but {len(evaluations)} evaluations; give one for each")
        check_same_prompts([e.answers for e in evaluations], call="Curve")

    def points(self, cells: Iterable[CellLike] | None = None) -> list[Point]:
        """The points, means over cells with intervals over requests.

        Args:
            cells: which; all of them without it.
        """
        return [
            Point(steps, e.mean("refusal", cells), e.mean("over_refusal", cells))
            for steps, e in zip(self.steps, self.evaluations, strict=True)
        ]

    def __repr__(self) -> str:
        return f"Curve({', '.join(map(str, self.steps))} steps; {len(self.evaluations[0].answers)} prompts)"


@dataclass(frozen=True)
class Matched:
    """Harmful refused by a condition and by others, at matched benign refusal. Made by `matched`.

    Attributes:
        benign: share of benign prompts refused at which both are read (the mean, if it is not the same for all others).
        harmful: harmful prompts refused by the condition there.
        others: the same of the others, their mean.
        difference: harmful - others, with a 95 % interval.
        n: how many comparisons.
        reached: in how many of them the other refuses as many benign prompts as the condition after its training, at some strength.
        n_cells: cells that the means are over.
        over: what the interval is over: "requests"; "requests and masks" (the spread over two or more others is in it); "requests
            and seeds" (over two or more pairs).
    """

    benign: float
    harmful: float
    others: float
    difference: Interval
    n: int
    reached: int
    n_cells: int
    over: str


def matched(
    mine: Curve | Sequence[Curve], others: Curve | Sequence[Curve], cells: Iterable[CellLike] | None = None
) -> Matched:
    """Harmful refused by a condition minus that of others, all read at the same benign refusal (see the module).

    >>> steps, words = [0, 20, 40], ("sorry", "make", "to")
    >>> found = [ns.evaluate(model, prompts, refusals=[r], progress=False) for r in words]
    >>> matched(Curve(steps, found), Curve(steps, found)).difference.value
    0.0

    Args:
        mine: the curve of the condition, whose last point is the finished update; or several, one for each seed, each of which is
            compared with the other at the same place.
        others: a curve to compare with, or several of one kind (masks of random neurons), whose mean is taken.
        cells: which; all of them without it. A mean is over those with graded answers to prompts of both labels in every
            evaluation.

    Returns:
        A `Matched`; all NaN where no cell has graded answers to prompts of both labels.

    Raises:
        InputError: no curve to compare with, another number of seeds, curves of different prompts, a cell without answers, or two
            curves that do not start from the same untouched model.
    """
    call, hint = "matched(mine, others)", "make each with Curve(steps, evaluations)"
    seeds = not isinstance(mine, Curve)
    first = _curves(mine, call=call, name="mine", hint=hint)
    second = _curves(others, call=call, name="others", hint=hint)
    if not first or not second:
        raise InputError("matched: nothing to compare with")
    if seeds and len(first) != len(second):
        raise InputError(f"matched: {len(first)} seeds of mine, but {len(second)} others; give one for each seed")
    groups = [e.answers for curve in (*first, *second) for e in curve.evaluations]
    check_same_prompts(groups, cells, call="matched")
    shared = cells_with(groups, "selectivity", cells)
    n = len(second)
    if not shared:
        return Matched(*NAN, difference=NAN, n=n, reached=0, n_cells=0, over="requests")
    paths = _paths([*first, *second], shared)
    pairs = paths[: len(first)] if seeds else paths[:1] * n, paths[len(first) :]
    if not all(np.array_equal(a[:, 0], b[:, 0]) for a, b in zip(*pairs, strict=True)):
        raise InputError(
            "matched: two curves start from different answers; the first evaluation of both is of the same untouched model"
        )
    benign, here, there, reached, difference = compared(*pairs)
    over = "requests" if n < 2 else "requests and seeds" if seeds else "requests and masks"
    return Matched(benign, here, there, difference=difference, n=n, reached=reached, n_cells=len(shared), over=over)


def _given(values: Any, *, name: str, hint: str) -> list[Any]:
    """What was given to `Curve`, as a list."""
    return list(require(values, Collection, call="Curve(steps, evaluations)", name=name, hint=hint))


def _curves(given: Curve | Sequence[Curve], *, call: str, name: str, hint: str) -> list[Curve]:
    if isinstance(given, Curve):
        return [given]
    if not isinstance(given, Iterable):
        require(given, Curve, call=call, name=name, hint=hint)
    return [require(curve, Curve, call=call, name=name, hint=hint) for curve in given]


#: Refused answers and answers, by point, label (harmful, benign), cell and request.
Counts = Num[np.ndarray, "2 _ 2 cell request"]
#: Harmful and benign refusal, by point and draw.
Rates = Float[np.ndarray, "2 _ draw"]
#: Benign refusal at which two curves are read, harmful refusal of both there, and whether the other one reaches it; by draw.
Reading = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def compared(mine: Sequence[Counts], others: Sequence[Counts]) -> tuple[float, float, float, int, Interval]:
    """Means over pairs: benign refusal, harmful refusal of mine and of the others, how many reach it, and the difference.

    Args:
        mine: of each pair, refused answers and answers by point, label (harmful, benign), cell and request.
        others: the same of the other one.
    """
    n = mine[0].shape[-1]
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
    pairs = list(zip(mine, others, strict=True))
    once = [_read(*(_rates(path, np.ones((1, n))) for path in pair)) for pair in pairs]
    benign, here, there, reached = (np.array(part)[:, 0] for part in zip(*once, strict=True))
    again = [_read(*(_rates(path, draws) for path in pair)) for pair in pairs]
    resampled = np.mean([a - b for _, a, b, _ in again], axis=0)
    difference = _interval(float((here - there).mean()), resampled, n=n, spread=_spread(here - there))
    return float(benign.mean()), float(here.mean()), float(there.mean()), int(reached.sum()), difference


def _paths(curves: Sequence[Curve], cells: Sequence[Cell]) -> list[Counts]:
    """Refused answers and graded answers of every curve, with the same requests in the same order."""
    row = {cell: i for i, cell in enumerate(cells)}
    answers = curves[0].evaluations[0].answers
    column = {c: i for i, c in enumerate(dict.fromkeys(a.cluster for a in answers if a.prompt.cell in row))}
    out = []
    for curve in curves:
        counts = np.zeros((2, len(curve.steps), 2, len(cells), len(column)))
        for point, evaluation in enumerate(curve.evaluations):
            for a in evaluation.answers:
                if a.prompt.cell in row and a.refused is not None:
                    at = point, int(a.prompt.label == "benign"), row[a.prompt.cell], column[a.cluster]
                    counts[(0, *at)] += a.outcome == "refused"
                    counts[(1, *at)] += 1
        out.append(counts)
    return out


def _rates(counts: Counts, draws: Float[np.ndarray, "draw request"]) -> Rates:
    """Means over cells; a cell that a draw leaves without answers is left out of the draw's mean."""
    refused, graded = counts @ draws.T
    known = graded > 0
    rates = np.divide(refused, graded, out=np.zeros_like(refused), where=known)
    return (rates.sum(axis=2) / np.maximum(known.sum(axis=2), 1)).swapaxes(0, 1)


def _read(mine: Rates, other: Rates) -> Reading:
    """The level, harmful refusal of both there, and whether the other reaches the first one's last benign refusal, by draw."""
    least, most = other[1].min(axis=0), other[1].max(axis=0)
    level = np.clip(mine[1, -1], least, most)
    return level, _at(mine, level), _at(other, level), most >= mine[1, -1] - EQUAL


def _at(curve: Rates, level: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
    """The most harmful refusal of a curve at or below a benign refusal, by draw."""
    harmful, benign = curve
    best = np.where(benign <= level + EQUAL, harmful, -np.inf).max(axis=0)
    for i, j in pairwise(range(len(benign))):
        crossed = (benign[i] - level) * (benign[j] - level) < 0
        run = np.where(crossed, benign[j] - benign[i], 1.0)
        value = harmful[i] + (level - benign[i]) / run * (harmful[j] - harmful[i])
        best = np.where(crossed, np.maximum(best, value), best)
    return best


def _spread(values: Float[np.ndarray, " curve"]) -> float:
    """Half the width of Student's interval for the mean of the values; 0 for one value."""
    n = len(values)
    return float(_student(n) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def _student(n: int) -> float:
    """The two-sided quantile of Student's t for n values."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + LEVEL) / 2))


def _interval(value: float, resampled: Float[np.ndarray, " draw"], *, n: int, spread: float) -> Interval:
    """The value with the errors of requests and of curves in quadrature, within -1 and 1."""
    if n < 2:
        return Interval(value, -1.0, 1.0)
    ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - value
    if np.ptp(ends) < EQUAL:  # hardly any request differs: Wilson's limits for a share of none of them
        ends = np.array([-1.0, 1.0]) * Z**2 / (n + Z**2)
    else:
        ends *= _student(n) / Z * np.sqrt(n / (n - 1))
    low, high = (float(np.hypot(max(end, 0.0), spread)) for end in (-ends[0], ends[1]))
    return Interval(value, max(value - low, -1.0), min(value + high, 1.0))
