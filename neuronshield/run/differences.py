"""Runs, compared: overlaps of their neuron sets, and differences of their effects with intervals. `ns.compare(a, b)`.

Rates of runs that answered the same test prompts are compared paired by request. Everything else (effects of a proof, rates on other
prompts) is compared as if the runs were independent, from the two intervals (Zou and Donner 2008); where runs share requests that
interval is too wide rather than too narrow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..check.cells import METRICS
from ..check.evaluation import Evaluation
from ..core.display import own_names, short_table
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.statistics import NAN, Interval, difference
from ..figures.paper import Figure
from .conditions import SHIELD
from .opened import Run, open_run

__all__ = ["Measured", "RunComparison", "Shared", "compare_runs"]

#: Sets of a run that are compared.
SETS = ("candidates", "verified")


@dataclass(frozen=True)
class Shared:
    """What two runs' sets have in common.

    Attributes:
        a, b: names of the runs.
        which: "candidates" or "verified".
        sizes: of both sets.
        shared: neurons in both; None for models of different shapes.
        expected: how many two random sets of these sizes share.
        p: probability that random sets share at least as many (hypergeometric).
    """

    a: str
    b: str
    which: str
    sizes: tuple[int, int]
    shared: int | None
    expected: float
    p: float


@dataclass(frozen=True)
class Measured:
    """One measure in one run.

    Attributes:
        measure: its name.
        run: name of the run.
        value: with its interval; NaN where the run lacks it.
        difference: to the first run; NaN for the first run itself.
        paired: the difference is paired by request.
    """

    measure: str
    run: str
    value: Interval
    difference: Interval
    paired: bool = False


@dataclass(frozen=True)
class RunComparison:
    """Runs, compared with the first of them. Made by `ns.compare`.

    Attributes:
        names: of the runs.
        differ: fields of the studies and settings in which they differ, with the value of each run.
        shared: overlaps of every two runs' sets.
        measured: every measure of every run.
    """

    names: tuple[str, ...]
    differ: dict[str, tuple[str, ...]]
    shared: tuple[Shared, ...]
    measured: tuple[Measured, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a measure and run: value, difference to the first run, both with the ends of their intervals."""
        rows = [
            {
                "measure": m.measure, "run": m.run, "value": m.value.value, "low": m.value.low, "high": m.value.high,
                "difference": m.difference.value, "difference_low": m.difference.low, "difference_high": m.difference.high,
                "paired": m.paired,
            }
            for m in self.measured
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def overlaps(self) -> pd.DataFrame:
        """One row for every two runs and kind of set."""
        rows = [
            {
                "set": s.which, "a": s.a, "b": s.b, "size_a": s.sizes[0], "size_b": s.sizes[1], "shared": s.shared,
                "expected": s.expected, "p": s.p,
            }
            for s in self.shared
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """Every measure of every run with its interval."""
        from ..figures import compared_runs

        rows = [
            (m.measure, m.run, (m.value.value, m.value.low, m.value.high))
            for m in self.measured
            if not math.isnan(m.value.value)
        ]
        return compared_runs(rows, self.names)

    __dir__ = own_names

    def __str__(self) -> str:
        lines = [
            f"{name}: {', '.join(f'{n} {v}' for n, v in zip(self.names, values, strict=True))}"
            for name, values in self.differ.items()
        ]
        for s in self.shared:
            found = (
                "models of other shapes" if s.shared is None else f"{s.shared} of {s.sizes[0]} and {s.sizes[1]} shared"
            )
            chance = "" if s.shared is None else f", {s.expected:.1f} by chance (p = {max(s.p, 1e-300):.2g})"
            lines.append(f"{s.which}, {s.a} and {s.b}: {found}{chance}")
        for m in self.measured:
            change = (
                ""
                if math.isnan(m.difference.value)
                else f"; difference {_signed(m.difference)}{' (paired)' if m.paired else ''}"
            )
            lines.append(f"{m.measure}, {m.run}: {m.value}{change}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return short_table(self.overlaps(), title="Sets") + short_table(self.to_frame(), title="Measures", rows=40)


def compare_runs(*runs: Run | str | os.PathLike[str]) -> RunComparison:
    """Two or more runs, compared with the first. This is `ns.compare`.

    >>> ns.compare("seed-0", "seed-1").overlaps()                               # doctest: +SKIP

    Args:
        *runs: run folders, or what `ns.open` gave.

    Raises:
        InputError: fewer than two, no run in a folder, or the same run twice.
    """
    if len(runs) < 2:
        raise InputError("compare: give two runs or more, such as compare('seed-0', 'seed-1')")
    found = [r if isinstance(r, Run) else open_run(r) for r in runs]
    if len({r.folder.resolve() for r in found}) < len(found):
        raise InputError("compare: the same run was given twice")
    names = _names([r.folder for r in found])
    pairs = [(i, j) for i in range(len(found)) for j in range(i + 1, len(found))]
    shared = [
        _shared(getattr(found[i], which), getattr(found[j], which), names=(names[i], names[j]), which=which)
        for which in SETS if all(_has(r, which) for r in found) for i, j in pairs
    ]  # fmt: skip
    return RunComparison(
        names, _differ(found), tuple(shared), measured=(*_effects(found, names), *_rates(found, names))
    )


def _has(run: Run, which: str) -> bool:
    return {"candidates": "find", "verified": "prove"}[which] in run.steps


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [f.resolve().parts for f in folders]
    n = next(n for n in range(1, 99) if len({p[-n:] for p in parts}) == len(parts))
    return tuple("/".join(p[-n:]) for p in parts)


def _differ(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    told = [{**vars(r.settings), **vars(r.study)} for r in runs]  # of what both have, the study's is no path
    return {
        name: tuple(str(t[name]) for t in told) for name in told[0]
        if name != "adapter" and len({str(t[name]) for t in told}) > 1
    }  # fmt: skip


def _shared(a: NeuronSet, b: NeuronSet, *, names: tuple[str, str], which: str) -> Shared:
    sizes = (len(a), len(b))
    if (a.n_layers, a.d_mlp) != (b.n_layers, b.d_mlp) or a.n_layers is None or a.d_mlp is None:
        return Shared(*names, which, sizes, shared=None, expected=float("nan"), p=float("nan"))
    from scipy.stats import hypergeom

    n, both = a.n_layers * a.d_mlp, len(set(a) & set(b))
    p = float(hypergeom.sf(both - 1, n, *sizes)) if both else 1.0
    return Shared(*names, which, sizes, shared=both, expected=sizes[0] * sizes[1] / n, p=p)


def _effects(runs: Sequence[Run], names: Sequence[str]) -> list[Measured]:
    """The effect of every claim of the proofs."""
    if not all("prove" in r.steps for r in runs):
        return []
    effects = [{c.name: c.effect for c in r.proof.claims} for r in runs]
    out = []
    for name in effects[0]:
        values = [e.get(name, NAN) for e in effects]
        out += [
            Measured(name, n, v, difference=NAN if i == 0 else difference(v, values[0]))
            for i, (n, v) in enumerate(zip(names, values, strict=True))
        ]  # fmt: skip
    return [m for m in out if not all(math.isnan(o.value.value) for o in out if o.measure == m.measure)]


def _rates(runs: Sequence[Run], names: Sequence[str]) -> list[Measured]:
    """Mean rates of the shields, over the cells that all runs have."""
    if not all("check" in r.steps for r in runs):
        return []
    found = [r.evaluations[SHIELD] for r in runs]
    cells = [c for c in found[0].cells() if all(c in e.cells() for e in found)]
    if not cells:
        return []
    out = []
    for metric in METRICS:
        values = [e.mean(metric, cells) for e in found]
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            paired = i > 0 and _same_prompts(found[i], found[0])
            change = found[i].gain(found[0], metric, cells) if paired else difference(value, values[0])
            change = change if i else NAN
            out.append(Measured(f"shield: {metric.replace('_', ' ')}", name, value, difference=change, paired=paired))
    return out


def _same_prompts(a: Evaluation, b: Evaluation) -> bool:
    return [x.prompt for x in a.answers] == [x.prompt for x in b.answers]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
