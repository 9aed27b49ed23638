"""Overlap: do languages and modalities share their safety neurons, and compared with what?

Two random sets of k neurons out of N share k^2/N of them, a few in a thousand. "More than chance" therefore says little: two cells
that are asked the same requests share noise, and neurons that vary much are selected whatever is compared. And no overlap
reaches 1, for a selection from other requests of the *same* cell would not find the same neurons. Three references are computed,
each from the folds of requests that `capture` keeps apart (`comparisons` has the formulas):

    permutation null    the same selection with the labels of half of the folds swapped, the same in all cells: what cells share
                        through their common requests where the labels do not differ
    benign null         the same selection on benign prompts of one half of the requests against benign prompts of the other
    reliability         what two samples of the same cell, each as large as this one, would share: complete sharing

One number says how much is shared:

    shared = (overlap - noise) / (reliability - noise)

0 for unrelated neurons, 1 for the same neurons. Its three parts are measured on halves of the requests, and no request is in both
halves. Taken from the Jaccard indices of the whole sample, the same formula does not recover a known share: cells without a common
neuron get less than 0, cells with the same neurons more than 1 (docs, "How the verdict was tested"). The interval is a jackknife over the
folds. Where reliability minus noise is too small, the number of requests is too small to tell, and `shared` is NaN.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..core.arguments import require
from ..core.display import count, short_table
from ..core.equality import same
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_arrays, reading, save_arrays, to_json
from ..data.prompts import Cell
from ..figures.paper import Figure
from .cells import CellSets, SetHeader, anchored, pack, unpack
from .comparisons import Shared, interval_of, jaccards, mean_of, reliabilities, shared_of
from .groups import Stats
from .parts import Rule, parts_of
from .scores import contrast
from .selection import SIZES

__all__ = ["Overlap", "anchored", "jaccard", "overlap", "overlap_coefficient"]

FORMAT = "neuronshield.Overlap/2"
SAMPLED = ("permuted", "excess", "attainable")  # [sample, cell, cell]; the others [cell, cell]
ARRAYS = ("jaccard", "coefficient", "benign_null", "reliability", *SAMPLED, "size", "pairs")
#: What tables and JSON hold of every pair.
MEASURES = (
    "jaccard", "coefficient", "benign_null", "permutation_null", "p", "reliability", "shared", "shared_low", "shared_high",
    "pairs",
)  # fmt: skip
AXES = ("language", "modality")


def jaccard(a: NeuronSet, b: NeuronSet) -> float:
    """|a & b| / |a | b|, 0 to 1; NaN if both are empty.

    >>> jaccard(neurons, ns.NeuronSet([(0, 3)]))
    0.3333333333333333

    Args:
        a: a set.
        b: another.

    Raises:
        InputError: something that is not a NeuronSet, or sets of different shapes.
    """
    union = len(NeuronSet.union(a, b))
    return len(a & b) / union if union else float("nan")


def overlap_coefficient(a: NeuronSet, b: NeuronSet) -> float:
    """|a & b| / min(|a|, |b|), 0 to 1; NaN if either is empty.

    >>> overlap_coefficient(neurons, ns.NeuronSet([(0, 3)]))
    1.0

    Args:
        a: a set.
        b: another.
    """
    both, smaller = len(NeuronSet.intersection(a, b)), min(len(a), len(b))
    return both / smaller if smaller else float("nan")


@dataclass(frozen=True)
class _Header:
    """What a file of an `Overlap` says beside its arrays."""

    cells: list[str]
    method: str
    sets: list[SetHeader]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Overlap:
    """Overlap of every pair of cells, with its references. Made by `overlap`.

    >>> found = overlap(ns.capture(model, prompts, progress=False), k=8)
    >>> found.cells, found.shared.shape
    ([Cell(language='en', modality='text'), Cell(language='sw', modality='text')], (2, 2))

    Attributes:
        cells: rows and columns; languages or modalities after `along`.
        jaccard: Jaccard index of the two cells' sets, 0 to 1; the diagonal is 1.
        coefficient: overlap coefficient of the two cells' sets; the diagonal is 1.
        benign_null: mean Jaccard index of the benign-against-benign selections of the two cells.
        reliability: Jaccard index of two selections from samples as large as these, if both cells had the same neurons:
            geometric mean of the cells' own. NaN where unknown.
        permuted: Jaccard index of the two cells' selections under each swap of labels.
        excess: numerator of `shared`: row 0 the estimate, row 1 + i the estimate without fold i.
        attainable: denominator of `shared`, the same rows.
        size: neurons a set, the geometric mean of the two.
        pairs: pairs of cells that `shared` is of: those with enough requests to tell.
        sets: the set of each cell; none after `along`.
        method: the score.
        provenance: as of the moments.
    """

    cells: list[Any]
    jaccard: Float[np.ndarray, "cell cell"]
    coefficient: Float[np.ndarray, "cell cell"]
    benign_null: Float[np.ndarray, "cell cell"]
    reliability: Float[np.ndarray, "cell cell"]
    permuted: Float[np.ndarray, "swap cell cell"]
    excess: Float[np.ndarray, "replicate cell cell"]
    attainable: Float[np.ndarray, "replicate cell cell"]
    size: Float[np.ndarray, "cell cell"]
    pairs: Int[np.ndarray, "cell cell"]
    sets: Mapping[Cell, NeuronSet]
    method: str
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def permutation_null(self) -> Float[np.ndarray, "cell cell"]:
        """Mean Jaccard index under swapped labels; NaN where no swap leaves enough requests of each label."""
        return mean_of(self.permuted)

    @property
    def p(self) -> Float[np.ndarray, "cell cell"]:
        """Share of swaps, the real labels included, with a Jaccard index at least as large; NaN without a swap.

        A small p says that the cells share more than they would if the labels did not differ; a large one does not say why.
        """
        known = np.isfinite(self.permuted)
        n = known.sum(axis=0)
        reached = (np.where(known, self.permuted, -1) >= self.jaccard - 1e-12).sum(axis=0)
        return np.where(n > 0, (1 + reached) / (1 + n), np.nan)

    @property
    def shared(self) -> Float[np.ndarray, "cell cell"]:
        """Share of neurons in common: 0 for unrelated neurons, 1 for the same; NaN where there are too few requests to tell."""
        return self._interval()[0]

    @property
    def shared_low(self) -> Float[np.ndarray, "cell cell"]:
        """Lower end of the 95 % interval of `shared`."""
        return self._interval()[1]

    @property
    def shared_high(self) -> Float[np.ndarray, "cell cell"]:
        """Upper end of the 95 % interval of `shared`."""
        return self._interval()[2]

    def _interval(self) -> tuple[Float[np.ndarray, "cell cell"], ...]:
        return interval_of(Shared(self.excess, self.attainable), self.size)

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of different cells: a, b, the measures, and `shared` with its interval.

        >>> overlap(ns.capture(model, prompts, progress=False), k=8).to_frame().shape
        (1, 12)
        """
        pairs = [(i, j) for i in range(len(self.cells)) for j in range(i + 1, len(self.cells))]
        measures = {name: getattr(self, name) for name in MEASURES}
        rows = [
            (str(self.cells[i]), str(self.cells[j]), *(float(matrix[i, j]) for matrix in measures.values()))
            for i, j in pairs
        ]
        return pd.DataFrame(rows, columns=["a", "b", *MEASURES])

    def along(self, axis: str) -> Overlap:
        """Language x language (or modality x modality): the mean over pairs of cells that differ in that axis only.

        Of `shared`, numerators and denominators are averaged, over the pairs of cells with enough requests to tell. A pair that no two
        cells of one language (modality) make is NaN.

        >>> overlap(ns.capture(model, prompts, progress=False), k=8).along("language").cells
        ['en', 'sw']

        Args:
            axis: "language" or "modality".

        Raises:
            InputError: another axis, or it was taken already.
        """
        if axis not in AXES or not all(isinstance(cell, Cell) for cell in self.cells):
            raise InputError(f"along({axis!r}): use 'language' or 'modality', once")
        other = "modality" if axis == "language" else "language"
        names = list(dict.fromkeys(getattr(c, axis) for c in self.cells))
        at = {(getattr(c, axis), getattr(c, other)): i for i, c in enumerate(self.cells)}
        rest = list(dict.fromkeys(getattr(c, other) for c in self.cells))
        pairs = {
            (i, j): [(at[a, r], at[b, r]) for r in rest if (a, r) in at and (b, r) in at]
            for i, a in enumerate(names) for j, b in enumerate(names)
        }  # fmt: skip

        def mean(array: Float[np.ndarray, "*any cell cell"]) -> Float[np.ndarray, "*any name name"]:
            out = np.full((*array.shape[:-2], len(names), len(names)), np.nan)
            for (i, j), found in pairs.items():
                if found:
                    out[..., i, j] = mean_of(np.stack([array[..., x, y] for x, y in found]))
            return out

        arrays = {name: getattr(self, name) for name in ARRAYS if name != "pairs"}
        unknown = ~np.isfinite(self.shared)
        for name in ("excess", "attainable"):  # without a fold that a pair does not have, the pair is as it is
            filled = np.where(np.isfinite(arrays[name]), arrays[name], arrays[name][:1])
            arrays[name] = np.where(unknown, np.nan, filled)
        matrices = {name: mean(array) for name, array in arrays.items()}
        told = [
            [sum(int(self.pairs[place]) for place in pairs[i, j]) for j in range(len(names))] for i in range(len(names))
        ]
        matrices["pairs"] = np.array(told)
        return Overlap(cells=names, **matrices, sets={}, method=self.method, provenance=self.provenance)

    def figure(self) -> Figure:
        """Heatmaps of `shared`: language x language and modality x modality, sorted, with intervals on hover.

        >>> overlap(ns.capture(model, prompts, progress=False), k=8).figure().data[0].y
        ('en/text', 'sw/text')
        """
        from ..figures import overlap_heatmap

        return overlap_heatmap(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Cells, method and measures as JSON can hold them (None where undefined), and the same along either axis.

        >>> list(overlap(ns.capture(model, prompts, progress=False), k=8).to_dict())[:4]
        ['cells', 'method', 'jaccard', 'coefficient']
        """
        measures = {name: to_json(getattr(self, name)) for name in MEASURES}
        out = {"cells": [str(c) for c in self.cells], "method": self.method, **measures}
        if all(isinstance(cell, Cell) for cell in self.cells):
            axes = [axis for axis in AXES if len({getattr(c, axis) for c in self.cells}) > 1]
            out["along"] = {axis: self.along(axis).to_dict() for axis in axes}
        return out

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that arrays and sets were written to.

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
        arrays = {**members, **{name: getattr(self, name) for name in ARRAYS}}
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
        with reading(path, FORMAT):
            header = from_json(_Header, about)
            for name in ARRAYS:
                like = arrays["excess" if name == "attainable" else name].shape
                if arrays[name].shape != like or like[int(name in SAMPLED) :] != (len(header.cells),) * 2:
                    raise ValueError(f"{name!r} does not fit {len(header.cells)} cells")
            return Overlap(
                cells=[Cell.of(name) if "/" in name else name for name in header.cells],
                **{name: arrays[name] for name in ARRAYS},
                sets=unpack(arrays, header.sets), method=header.method, provenance=header.provenance,
            )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overlap) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.method, tuple(self.cells)))

    def __repr__(self) -> str:
        off = ~np.eye(len(self.cells), dtype=bool)
        if not off.any():
            return f"Overlap({self.method}, 1 cell)"
        parts = [("jaccard", self.jaccard), ("permutation null", self.permutation_null), ("shared", self.shared)]
        means = [(name, values[off][np.isfinite(values[off])]) for name, values in parts]
        shown = ", ".join(f"{name} {values.mean():.2f}" if len(values) else f"{name} n/a" for name, values in means)
        return f"Overlap({self.method}, {count(len(self.cells), 'cell')}, mean {shown})"

    def _repr_html_(self) -> str:
        return short_table(self.to_frame().sort_values("jaccard", ascending=False), title=repr(self))


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

    Each cell is selected 155 times, from parts of its requests. A reference is NaN where a cell has too few requests: about 16
    are needed, and more where the selection is unreliable.

    Args:
        stats: moments from `capture`.
        method: how neurons are scored (see `contrast`); all but "lape".
        without: neurons to take out of every set, those of all references included, such as the language neurons of
            `contrast(stats, method="lape")`.
        k: as for `Scores.top`.
        fraction: as for `Scores.top`.
        per_layer: as for `Scores.top`.
        param_fraction: as for `Scores.top`.

    Raises:
        InputError: as `contrast` and `Scores.top`.
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
        without = NeuronSet(without, n_layers=stats.n_layers, d_mlp=stats.d_mlp, provenance=without.provenance)
    sizes: dict[str, Any] = dict(zip(SIZES, (k, fraction, per_layer, param_fraction), strict=True))
    if sum(size is not None for size in sizes.values()) != 1:
        raise InputError(f"overlap(stats): give the size of the sets, exactly one of {', '.join(SIZES)}, as in k=64")
    if method == "lape":
        raise InputError(
            "overlap(method='lape'): LAPE compares languages, not labels; take its neurons out with without="
        )
    scores = contrast(stats, method)
    sets = scores.top(**sizes)
    if without is not None:
        sets = CellSets({cell: neurons - without for cell, neurons in sets.items()})
    rule = Rule(stats, method, {name: size for name, size in sizes.items() if size is not None}, without=without)
    parts = [parts_of(stats, cell, rule) for cell in scores.cells]
    shared = shared_of(parts, stats.n_layers * stats.d_mlp)
    own = reliabilities(parts)
    both = np.sqrt(np.outer(own, own))
    members = np.array([len(part.whole) for part in parts], dtype=float)
    size = np.sqrt(np.outer(members, members))
    return Overlap(
        cells=scores.cells,
        jaccard=jaccards([part.whole for part in parts]),
        coefficient=np.array([[overlap_coefficient(a, b) for b in sets.values()] for a in sets.values()]),
        benign_null=mean_of(
            np.stack([jaccards(found) for found in zip(*(part.benign for part in parts), strict=True)])
        ),
        reliability=both / (2 - both),
        permuted=np.stack([jaccards(found) for found in zip(*(part.permuted for part in parts), strict=True)]),
        excess=shared.excess,
        attainable=shared.attainable,
        size=size,
        pairs=np.isfinite(interval_of(shared, size)[0]).astype(int),
        sets=sets,
        method=method,
        provenance=stats.provenance,
    )
