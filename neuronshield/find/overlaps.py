"""Overlap: do languages and modalities share their safety neurons, and compared with what?

Two sets of k neurons out of N share k^2/N by chance, a few in a thousand, so "above chance" says nothing:
the same *topics* in two languages already share neurons. Two nulls say more, and both come from the halves
`capture` keeps apart:

    floor    the same selection on benign half 0 against benign half 1, in the same two cells: what the
             choice of requests alone makes two cells share
    ceiling  half 0 against half 1 of one cell with itself (harmful against benign each time): what a
             perfect match would score, given the noise of the selection

An overlap between cells means sharing when it lies clearly above the floor, and complete sharing when it
reaches the ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell
from .moments import Stats
from .scores import contrast, contrast_groups, score_pairs

__all__ = ["Overlap", "anchored", "jaccard", "overlap", "overlap_coefficient"]


def jaccard(a: NeuronSet, b: NeuronSet) -> float:
    """|a & b| / |a | b|; NaN if both are empty."""
    union = len(a | b)
    return len(a & b) / union if union else float("nan")


def overlap_coefficient(a: NeuronSet, b: NeuronSet) -> float:
    """|a & b| / min(|a|, |b|); NaN if either is empty."""
    smaller = min(len(a), len(b))
    return len(a & b) / smaller if smaller else float("nan")


@dataclass
class Overlap:
    """Overlap of every pair of cells, with its nulls.

    Attributes:
        cells: rows and columns; languages or modalities after `along`.
        jaccard, coefficient: of the cells' sets; the diagonal is 1.
        floor: Jaccard of the benign-versus-benign selections of the two cells.
        ceiling: for two cells the geometric mean of their split-half Jaccards.
        sets: the sets themselves.
    """

    cells: list[Any]
    jaccard: Float[np.ndarray, "cell cell"]
    coefficient: Float[np.ndarray, "cell cell"]
    floor: Float[np.ndarray, "cell cell"]
    ceiling: Float[np.ndarray, "cell cell"]
    sets: dict[Cell, NeuronSet]
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of different cells."""
        import pandas as pd

        rows = [
            {
                "a": str(self.cells[i]),
                "b": str(self.cells[j]),
                "jaccard": self.jaccard[i, j],
                "coefficient": self.coefficient[i, j],
                "floor": self.floor[i, j],
                "ceiling": self.ceiling[i, j],
            }
            for i in range(len(self.cells))
            for j in range(i + 1, len(self.cells))
        ]
        return pd.DataFrame(rows)

    def along(self, axis: str) -> Overlap:
        """Language x language (or modality x modality): the mean over cells that differ in that axis only.

        >>> overlap(stats, k=64).along("language").jaccard.shape    # doctest: +SKIP
        (10, 10)

        A pair that no cells of one language (modality) make is NaN.

        Raises:
            InputError: an axis that is neither "language" nor "modality", or it was taken already.
        """
        if axis not in ("language", "modality") or not self.sets:
            raise InputError(f"along({axis!r}): use 'language' or 'modality', once")
        other = "modality" if axis == "language" else "language"
        names = list(dict.fromkeys(getattr(c, axis) for c in self.cells))
        at = {(getattr(c, axis), getattr(c, other)): i for i, c in enumerate(self.cells)}
        rest = list(dict.fromkeys(getattr(c, other) for c in self.cells))

        def mean(matrix: np.ndarray) -> np.ndarray:
            out = np.full((len(names), len(names)), np.nan)
            for i, a in enumerate(names):
                for j, b in enumerate(names):
                    found = [matrix[at[a, r], at[b, r]] for r in rest if (a, r) in at and (b, r) in at]
                    found = [v for v in found if np.isfinite(v)]
                    out[i, j] = np.mean(found) if found else np.nan
            return out

        shared, part, floor, ceiling = map(mean, (self.jaccard, self.coefficient, self.floor, self.ceiling))
        return Overlap(names, shared, part, floor, ceiling, {}, self.method, self.provenance)

    def figure(self) -> go.Figure:
        """Three heatmaps on one scale: overlap, floor, ceiling."""
        from ..figures import overlap_heatmap

        names = [str(c) for c in self.cells]
        return overlap_heatmap(
            names, self.jaccard, benign_null=self.floor, split_half=self.ceiling, method=self.method
        )

    def to_dict(self) -> dict[str, Any]:
        """Matrices as nested lists (null where undefined)."""
        matrices = {n: getattr(self, n) for n in ("jaccard", "coefficient", "floor", "ceiling")}
        lists = {n: [[float(v) if np.isfinite(v) else None for v in row] for row in m] for n, m in matrices.items()}
        return {"cells": [str(c) for c in self.cells], "method": self.method, **lists}

    def __repr__(self) -> str:
        off = ~np.eye(len(self.cells), dtype=bool)
        if not off.any():
            return f"Overlap({self.method}, 1 cell)"
        shown = [f"{name} {np.nanmean(m[off]):.2f}" for name, m in
                 (("jaccard", self.jaccard), ("floor", self.floor), ("ceiling", self.ceiling))]  # fmt: skip
        return f"Overlap({self.method}, {len(self.cells)} cells, mean {', '.join(shown)})"

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False, float_format="{:.2f}".format)


def anchored(sets: dict[Cell, NeuronSet], anchor: Cell | tuple[str, str] = ("en", "text")) -> dict[Cell, NeuronSet]:
    """What each cell's set shares with the anchor's: the field's "shared" or "cross-lingual" safety neurons.

    >>> anchored(scores.top(k=64))[Cell("sw", "text")]         # doctest: +SKIP
    NeuronSet(9 neurons in 2 layers)

    An intersection is not empty by chance alone: read it beside `overlap`'s floor.

    Raises:
        InputError: no set of the anchor.

    Source: Precise Shield (2026), intersection with English.
    """
    anchor = Cell.of(anchor)
    if anchor not in sets:
        raise InputError(f"anchored: no set of {anchor}; there are {', '.join(map(str, sets))}")
    return {cell: neurons & sets[anchor] for cell, neurons in sets.items()}


def overlap(stats: Stats, *, method: str = "contribution", without: NeuronSet | None = None, **size: Any) -> Overlap:
    """Overlap between all cells that have both labels.

    >>> overlap(stats, method="contribution", k=64).jaccard.shape        # doctest: +SKIP

    Args:
        method: how neurons are scored (see `contrast`).
        without: neurons to take out of every set, floor and ceiling included: the language-bound ones, say
            (`contrast(stats, method="lape")`).
        **size: one of k, fraction, per_layer, param_fraction, as for `Scores.top`.

    Raises:
        InputError: as `contrast` and `Scores.top`; or a cell with requests in one half only.
    """
    scores = contrast(stats, method=method)
    cells = scores.cells
    sets = _without(scores.top(**size), without)
    for cell in cells:
        for label in ("harmful", "benign"):
            for half in (0, 1):
                try:
                    stats.moments(label, cell, half)
                except InputError:
                    raise InputError(
                        f"overlap: {cell} has too few {label} prompts for a split-half ceiling; give it at least 8"
                    ) from None
    halves = [_without(contrast_groups(stats, [(c, h) for c in cells], method).top(**size), without) for h in (0, 1)]
    benign = [(stats.moments("benign", c, 0), stats.moments("benign", c, 1)) for c in cells]
    null = _without(score_pairs(stats, cells, benign, method).top(**size), without)
    stable = np.array([jaccard(halves[0][c], halves[1][c]) for c in cells])
    return Overlap(
        cells,
        _matrix(cells, sets, jaccard),
        _matrix(cells, sets, overlap_coefficient),
        _matrix(cells, null, jaccard),
        np.sqrt(np.outer(stable, stable)),
        sets,
        method,
        stats.provenance,
    )


def _without(sets: dict[Cell, NeuronSet], without: NeuronSet | None) -> dict[Cell, NeuronSet]:
    return sets if without is None else {cell: neurons - without for cell, neurons in sets.items()}


def _matrix(cells: list[Cell], sets: dict[Cell, NeuronSet], measure: Any) -> Float[np.ndarray, "cell cell"]:
    return np.array([[measure(sets[a], sets[b]) for b in cells] for a in cells])
