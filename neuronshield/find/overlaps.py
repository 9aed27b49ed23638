"""Overlap: do languages and modalities share their safety neurons, and compared with what?

Two random sets of k neurons out of N share k^2/N of them, a few in a thousand. "More than chance" therefore says little:
prompts about the same *topics* in two languages already share neurons. Two references say more. Both are computed from the
halves that `capture` keeps apart:

    benign null              the same selection on benign half 0 against benign half 1, in the same two cells: what two
                             cells share without any harm, through the choice of requests alone
    split-half reliability   harmful against benign in half 0, compared with the same in half 1: what complete sharing
                             would reach, given the noise of the selection

An overlap shows sharing where it lies clearly above the benign null, and complete sharing where it reaches the split-half
reliability.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from ..core.arguments import require
from ..core.display import count, short_table
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_arrays, same, save_arrays, to_json
from ..data.prompts import Cell
from .cells import CellSets, SetHeader, known_cell, pack, unpack
from .folds import SPLITS
from .groups import Stats
from .scores import contrast, score_pairs
from .selection import SIZES

__all__ = ["Overlap", "anchored", "jaccard", "overlap", "overlap_coefficient"]

FORMAT = "neuronshield.Overlap/1"
MATRICES = ("jaccard", "coefficient", "benign_null", "split_half")


def jaccard(a: NeuronSet, b: NeuronSet) -> float:
    """|a & b| / |a | b|, 0 to 1; NaN if both are empty.

    >>> jaccard(neurons, ns.NeuronSet([(0, 3)]))
    0.3333333333333333

    Args:
        a: a set.
        b: another.
    """
    union = len(a | b)
    return len(a & b) / union if union else float("nan")


def overlap_coefficient(a: NeuronSet, b: NeuronSet) -> float:
    """|a & b| / min(|a|, |b|), 0 to 1; NaN if either is empty.

    >>> overlap_coefficient(neurons, ns.NeuronSet([(0, 3)]))
    1.0

    Args:
        a: a set.
        b: another.
    """
    smaller = min(len(a), len(b))
    return len(a & b) / smaller if smaller else float("nan")


@dataclass(frozen=True)
class _Header:
    """What a file of an `Overlap` says beside its arrays."""

    cells: list[str]
    method: str
    sets: list[SetHeader]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Overlap:
    """Overlap of every pair of cells, with its two references. Made by `overlap`.

    Attributes:
        cells: rows and columns; languages or modalities after `along`.
        jaccard: of the two cells' sets; the diagonal is 1.
        coefficient: overlap coefficient of the two cells' sets; the diagonal is 1.
        benign_null: Jaccard of the benign-against-benign selections of the two cells.
        split_half: geometric mean of the two cells' split-half Jaccards.
        sets: the set of each cell; none after `along`.
        method: the score.
        provenance: as of the moments.
    """

    cells: list[Any]
    jaccard: Float[np.ndarray, "cell cell"]
    coefficient: Float[np.ndarray, "cell cell"]
    benign_null: Float[np.ndarray, "cell cell"]
    split_half: Float[np.ndarray, "cell cell"]
    sets: Mapping[Cell, NeuronSet]
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of different cells: a, b and the four measures, 0 to 1.

        >>> overlap(ns.capture(model, prompts, progress=False), k=8).to_frame().shape
        (1, 6)
        """
        pairs = [(i, j) for i in range(len(self.cells)) for j in range(i + 1, len(self.cells))]
        rows = [
            (str(self.cells[i]), str(self.cells[j]), *(float(getattr(self, name)[i, j]) for name in MATRICES))
            for i, j in pairs
        ]
        return pd.DataFrame(rows, columns=["a", "b", *MATRICES])

    def along(self, axis: str) -> Overlap:
        """Language x language (or modality x modality): the mean over pairs of cells that differ in that axis only.

        A pair that no two cells of one language (modality) make is NaN.

        >>> overlap(ns.capture(model, prompts, progress=False), k=8).along("language").cells
        ['en', 'sw']

        Args:
            axis: "language" or "modality".

        Raises:
            InputError: another axis, or it was taken already.
        """
        if axis not in ("language", "modality") or not all(isinstance(cell, Cell) for cell in self.cells):
            raise InputError(f"along({axis!r}): use 'language' or 'modality', once")
        other = "modality" if axis == "language" else "language"
        names = list(dict.fromkeys(getattr(c, axis) for c in self.cells))
        at = {(getattr(c, axis), getattr(c, other)): i for i, c in enumerate(self.cells)}
        rest = list(dict.fromkeys(getattr(c, other) for c in self.cells))

        def mean(matrix: Float[np.ndarray, "cell cell"]) -> Float[np.ndarray, "name name"]:
            out = np.full((len(names), len(names)), np.nan)
            for i, a in enumerate(names):
                for j, b in enumerate(names):
                    found = [matrix[at[a, r], at[b, r]] for r in rest if (a, r) in at and (b, r) in at]
                    found = [v for v in found if np.isfinite(v)]
                    out[i, j] = np.mean(found) if found else np.nan
            return out

        matrices = {name: mean(getattr(self, name)) for name in MATRICES}
        return Overlap(cells=names, **matrices, sets={}, method=self.method, provenance=self.provenance)

    def figure(self) -> go.Figure:
        """Three heatmaps on one scale: overlap, benign null, split-half reliability.

        >>> len(overlap(ns.capture(model, prompts, progress=False), k=8).figure().data)
        3
        """
        from ..figures import overlap_heatmap

        names = [str(c) for c in self.cells]
        return overlap_heatmap(
            names, self.jaccard, benign_null=self.benign_null, split_half=self.split_half, method=self.method
        )

    def to_dict(self) -> dict[str, Any]:
        """Cells, method and matrices as JSON can hold them (None where undefined).

        >>> list(overlap(ns.capture(model, prompts, progress=False), k=8).to_dict())
        ['cells', 'method', 'jaccard', 'coefficient', 'benign_null', 'split_half']
        """
        matrices = {name: to_json(getattr(self, name)) for name in MATRICES}
        return {"cells": [str(c) for c in self.cells], "method": self.method, **matrices}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that matrices and sets were written to.

        >>> found = overlap(ns.capture(model, prompts, progress=False), k=8)
        >>> ns.Overlap.load(found.save("overlap.safetensors")).sets == found.sets
        True

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        """
        members, sets = pack(CellSets(self.sets))
        header = _Header(cells=[str(c) for c in self.cells], method=self.method, sets=sets, provenance=self.provenance)
        arrays = {**members, **{name: getattr(self, name) for name in MATRICES}}
        return save_arrays(path, FORMAT, arrays=arrays, about=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Overlap:
        """The overlap that `save` wrote.

        >>> found = overlap(ns.capture(model, prompts, progress=False), k=8)
        >>> ns.Overlap.load(found.save("overlap.safetensors")).cells == found.cells
        True

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not written by `Overlap.save`.
        """
        arrays, about = load_arrays(path, FORMAT)
        header = from_json(_Header, about)
        n = len(header.cells)
        if any(name not in arrays or arrays[name].shape != (n, n) for name in MATRICES):
            raise InputError(f"{path}: not a file of {FORMAT} (its arrays do not fit its cells)")
        return Overlap(
            cells=[Cell.of(name) if "/" in name else name for name in header.cells],
            **{name: arrays[name] for name in MATRICES},
            sets=unpack(arrays, header.sets, path),
            method=header.method,
            provenance=header.provenance,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overlap) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.method, tuple(self.cells)))

    def __repr__(self) -> str:
        off = ~np.eye(len(self.cells), dtype=bool)
        if not off.any():
            return f"Overlap({self.method}, 1 cell)"
        means = [np.nanmean(m[off]) for m in (self.jaccard, self.benign_null, self.split_half)]
        shown = "mean jaccard {:.2f}, benign null {:.2f}, split half {:.2f}".format(*means)
        return f"Overlap({self.method}, {count(len(self.cells), 'cell')}, {shown})"

    def _repr_html_(self) -> str:
        return short_table(self.to_frame().sort_values("jaccard", ascending=False), title=repr(self))


def anchored(sets: Mapping[Cell, NeuronSet], anchor: Cell | tuple[str, str] | str = ("en", "text")) -> CellSets:
    """The neurons that each cell's set shares with the anchor's: "shared" or "cross-lingual" safety neurons.

    An intersection may be larger than 0 without any sharing of safety: compare it with the benign null of `overlap`.

    >>> sets = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=8)
    >>> anchored(sets, "en/text")["sw/text"] == sets["sw/text"] & sets["en/text"]
    True

    Args:
        sets: one a cell, as `Scores.top` returns them.
        anchor: the cell that all are intersected with.

    Raises:
        InputError: no sets, or none of the anchor.

    Source: Precise Shield (2026), intersection with English.
    """
    found = CellSets(require(sets, Mapping, call="anchored(sets)", name="sets", hint="such as scores.top(k=64)"))
    shared = found[known_cell(anchor, found, "sets")]
    return CellSets({cell: neurons & shared for cell, neurons in found.items()})


def overlap(
    stats: Stats,
    *,
    method: str = "contribution",
    without: NeuronSet | None = None,
    k: int | None = None,
    fraction: float | None = None,
    per_layer: int | None = None,
    param_fraction: float | None = None,
) -> Overlap:
    """Overlap between all cells that have both labels, for exactly one size of the sets.

    >>> found = overlap(ns.capture(model, prompts, progress=False), method="contribution", k=8)
    >>> found.jaccard.shape, found.sets["en/text"]
    ((2, 2), NeuronSet(8 neurons in ... layers))

    Args:
        stats: moments from `capture`.
        method: how neurons are scored (see `contrast`); all but "lape".
        without: neurons to take out of every set, those of both references included, such as the language neurons of
            `contrast(stats, method="lape")`.
        k: as for `Scores.top`.
        fraction: as for `Scores.top`.
        per_layer: as for `Scores.top`.
        param_fraction: as for `Scores.top`.

    Raises:
        InputError: as `contrast` and `Scores.top`; or a cell with requests in one half only.
    """
    require(
        stats,
        Stats,
        call="overlap(stats)",
        name="stats",
        hint="capture makes them: overlap(capture(model, prompts), k=64)",
    )
    if without is not None:
        require(without, NeuronSet, call="overlap(stats, without=...)", name="without")
    sizes: dict[str, Any] = dict(zip(SIZES, (k, fraction, per_layer, param_fraction), strict=True))
    if sum(size is not None for size in sizes.values()) != 1:
        raise InputError(f"overlap(stats): give the size of the sets, exactly one of {', '.join(SIZES)}, as in k=64")
    cells = contrast(stats, method).cells
    _check_halves(stats, cells)

    def select(pairs: Callable[[Cell], Any]) -> CellSets:
        sets = score_pairs(stats, cells, pairs=[pairs(cell) for cell in cells], method=method).top(**sizes)
        return sets if without is None else CellSets({cell: neurons - without for cell, neurons in sets.items()})

    def half(i: int) -> CellSets:
        return select(lambda cell: (stats.moments("harmful", cell, SPLITS[0][i]), stats.moments("benign", cell, SPLITS[0][i])))

    sets, halves = select(lambda cell: stats[cell]), (half(0), half(1))
    null = select(lambda cell: (stats.moments("benign", cell, SPLITS[0][0]), stats.moments("benign", cell, SPLITS[0][1])))
    stable = np.array([jaccard(halves[0][cell], halves[1][cell]) for cell in cells])
    return Overlap(
        cells=cells,
        jaccard=_matrix(sets, jaccard),
        coefficient=_matrix(sets, overlap_coefficient),
        benign_null=_matrix(null, jaccard),
        split_half=np.sqrt(np.outer(stable, stable)),
        sets=sets,
        method=method,
        provenance=stats.provenance,
    )


def _check_halves(stats: Stats, cells: list[Cell]) -> None:
    seen = {(g.label, g.cell, int(g.fold in SPLITS[0][1])) for g in stats.groups}
    for cell in cells:
        for label in ("harmful", "benign"):
            if not {(label, cell, 0), (label, cell, 1)} <= seen:
                raise InputError(
                    f"overlap: {cell} has too few {label} prompts for a split-half reliability; give it at least 8"
                )


def _matrix(sets: CellSets, measure: Callable[[NeuronSet, NeuronSet], float]) -> Float[np.ndarray, "cell cell"]:
    return np.array([[measure(a, b) for b in sets.values()] for a in sets.values()])
