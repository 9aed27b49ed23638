"""Selection: from the scores of every neuron to one set of neurons a cell.

`Scores` holds a score for every neuron in every cell. `Scores.top` takes the largest by magnitude; ties go to the lower
(layer, index). For a method with a **set difference** (`Scores.against`), the neurons of a layer that are chosen are

    top k of the score on harmful prompts  minus  top k of the score on benign prompts.

A size given for all layers together then takes the smallest k, the same in every layer, that leaves enough neurons.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from ..core.arguments import at_least, require
from ..core.display import count, short_table
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_arrays, same, save_arrays
from ..data.prompts import Cell
from .cells import CellSets, known_cell

__all__ = ["Scores"]


logger = logging.getLogger("neuronshield")

FORMAT = "neuronshield.Scores/1"
SIZES = ("k", "fraction", "per_layer", "param_fraction")


@dataclass(frozen=True)
class _Header:
    """What a file of `Scores` says beside its arrays."""

    cells: list[str]
    method: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of every neuron in every cell.

    >>> scores = ns.contrast(ns.capture(model, prompts, progress=False), method="contribution")
    >>> scores, scores["en/text"].shape
    (Scores(contribution, 2 cells, 3 x 29 neurons), (3, 29))

    Attributes:
        cells: names of the first axis.
        values: the score; neurons are ranked by its magnitude.
        against: for methods with a set difference, the score whose top k is taken away; None for the others.
        method: name of the formula.
        n_params: parameters of the model.
        params_per_neuron: weights that one neuron owns.
        provenance: model, data hash, versions, and the requests `seen`.
    """

    cells: list[Cell]
    values: Float[np.ndarray, "cell n_layers d_mlp"]
    against: Float[np.ndarray, "cell n_layers d_mlp"] | None
    method: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, cell: Cell | tuple[str, str] | str) -> Float[np.ndarray, "n_layers d_mlp"]:
        return self.values[self.cells.index(known_cell(cell, self.cells, "scores"))]

    def __contains__(self, cell: object) -> bool:
        try:
            return Cell.of(cell) in self.cells  # type: ignore[arg-type]
        except InputError:
            return False

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def top(
        self,
        *unnamed: Any,
        k: int | None = None,
        fraction: float | None = None,
        per_layer: int | None = None,
        param_fraction: float | None = None,
    ) -> CellSets:
        """The best neurons of each cell, for exactly one size.

        >>> sets = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=8)
        >>> sets
        CellSets(en/text: 8, sw/text: 8)
        >>> ns.NeuronSet.intersection(*sets.values()) == sets["en/text"] & sets["sw/text"]
        True

        Args:
            *unnamed: nothing; the size is named.
            k: neurons in all.
            fraction: part of all MLP neurons, 0 to 1, rounded down.
            per_layer: neurons from each layer; with a set difference, before the subtraction.
            param_fraction: part of the model's parameters that the neurons own, 0 to 1, rounded down (3e-4 in Precise
                Shield).

        A warning is logged where a set difference leaves too few neurons, and where neurons with a score of zero are chosen.

        Raises:
            InputError: no size, an unnamed one or several, or one that gives no neuron or more than there are.
        """
        if unnamed:
            raise InputError(f"top({unnamed[0]!r:.40}): name the size, as in top(k=64); one of {', '.join(SIZES)}")
        sizes = (k, fraction, per_layer, param_fraction)
        given = {name: size for name, size in zip(SIZES, sizes, strict=True) if size is not None}
        if len(given) != 1:
            raise InputError(f"top(): give exactly one of {', '.join(SIZES)} (got {len(given)})")
        ((name, value),) = given.items()
        count = self._count(name, value)
        sets = {}
        for i, cell in enumerate(self.cells):
            rank = np.abs(self.values[i])
            against = None if self.against is None else np.abs(self.against[i])
            chosen = _per_layer(rank, against, count) if name == "per_layer" else _overall(rank, against, count)
            if name != "per_layer" and chosen.sum() < count:
                logger.warning("top(%s=%s): %s: a set difference leaves only %d", name, value, cell, chosen.sum())
            if zeros := int((chosen & (rank == 0)).sum()):
                logger.warning("top(%s=%s): %s: %d of %d chosen neurons have a score of zero, and are selected by index "
                               "order (ties at zero)", name, value, cell, zeros, chosen.sum())  # fmt: skip
            about = {**self.provenance, "method": self.method, "cell": str(cell), "size": {name: value}}
            n_layers, d_mlp = rank.shape
            sets[cell] = NeuronSet(np.argwhere(chosen), n_layers=n_layers, d_mlp=d_mlp, provenance=about)
        return CellSets(sets)

    def _count(self, name: str, value: Any) -> int:
        """Neurons that a size asks for."""
        n_layers, d_mlp = self.values.shape[1:]
        if name in ("k", "per_layer"):
            if not hasattr(value, "__index__") or isinstance(value, bool):
                raise InputError(f"top({name}={value!r:.40}): give a whole number of neurons")
            count = int(value)
        else:
            require(value, (int, float), call=f"top({name}=...)", name=name)
            if not np.isfinite(value):
                raise InputError(f"top({name}={value}): give a number")
            count = int(value * self._unit(name) + 1e-9)
        limit = d_mlp if name == "per_layer" else n_layers * d_mlp
        if not 1 <= count <= limit:
            least = self.params_per_neuron / self.n_params
            hint = f"; one neuron is {least:.2e} of the parameters" if name == "param_fraction" else ""
            raise InputError(f"top({name}={value}): that is {count} neurons, must be 1 to {limit}{hint}")
        return count

    def _unit(self, name: str) -> float:
        """Neurons that a fraction of 1 stands for."""
        return self.values[0].size if name == "fraction" else self.n_params / self.params_per_neuron

    def to_frame(self, *, k: int = 20) -> pd.DataFrame:
        """The k best neurons of each cell as rows (cell, rank, layer, index, score).

        >>> ns.contrast(ns.capture(model, prompts, progress=False)).to_frame(k=4).shape
        (8, 5)

        Args:
            k: neurons a cell.
        """
        at_least(1, "to_frame", k=k)
        rows = []
        for i, cell in enumerate(self.cells):
            flat = np.argsort(-np.abs(self.values[i]), axis=None, kind="stable")[:k]
            for rank, (layer, index) in enumerate(zip(*np.unravel_index(flat, self.values[i].shape), strict=True), 1):
                rows.append((str(cell), rank, int(layer), int(index), float(self.values[i, layer, index])))
        return pd.DataFrame(rows, columns=["cell", "rank", "layer", "index", self.method])

    def figure(self, *, k: int = 64) -> go.Figure:
        """A heatmap of how many of each cell's k best neurons lie in each layer.

        >>> figure = ns.contrast(ns.capture(model, prompts, progress=False)).figure(k=8)
        >>> figure.data[0].z.shape
        (2, 3)

        Args:
            k: neurons a cell.
        """
        from ..figures import layers

        sets = self.top(k=min(k, self.values[0].size))
        n_layers = self.values.shape[1]
        counts = np.array([[sets[c].per_layer().get(i, 0) for i in range(n_layers)] for c in self.cells])
        return layers(counts, [str(c) for c in self.cells], method=self.method)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that the scores were written to.

        >>> scores = ns.contrast(ns.capture(model, prompts, progress=False))
        >>> ns.Scores.load(scores.save("scores.safetensors"))
        Scores(contribution, 2 cells, 3 x 29 neurons)

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        """
        arrays = {"values": self.values} | ({} if self.against is None else {"against": self.against})
        header = _Header(
            cells=[str(c) for c in self.cells],
            method=self.method,
            n_params=self.n_params,
            params_per_neuron=self.params_per_neuron,
            provenance=self.provenance,
        )
        return save_arrays(path, FORMAT, arrays=arrays, about=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Scores:
        """The scores that `save` wrote.

        >>> scores = ns.contrast(ns.capture(model, prompts, progress=False))
        >>> ns.Scores.load(scores.save("scores.safetensors")).top(k=8) == scores.top(k=8)
        True

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not written by `Scores.save`.
        """
        arrays, about = load_arrays(path, FORMAT)
        header = from_json(_Header, about)
        if "values" not in arrays or len(arrays["values"]) != len(header.cells):
            raise InputError(f"{path}: not a file of {FORMAT} (its arrays do not fit its cells)")
        return Scores(
            cells=[Cell.of(c) for c in header.cells],
            values=arrays["values"],
            against=arrays.get("against"),
            method=header.method,
            n_params=header.n_params,
            params_per_neuron=header.params_per_neuron,
            provenance=header.provenance,
        )

    def _repr_html_(self) -> str:
        return short_table(self.to_frame(k=3), title=repr(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scores) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.method, self.n_params, tuple(self.cells)))

    def __repr__(self) -> str:
        _, n_layers, d_mlp = self.values.shape
        return f"Scores({self.method}, {count(len(self.cells), 'cell')}, {n_layers} x {d_mlp} neurons)"


# -- the largest of a ranking ---------------------------------------------------------------------------
def _top_mask(rank: Float[np.ndarray, "..."], count: int) -> Bool[np.ndarray, "..."]:
    """Mask of the `count` largest entries; ties go to the lower (layer, index), so runs repeat."""
    mask = np.zeros(rank.size, dtype=bool)
    mask[np.argsort(-rank, axis=None, kind="stable")[:count]] = True
    return mask.reshape(rank.shape)


def _per_layer(
    rank: Float[np.ndarray, "n_layers d_mlp"], against: Float[np.ndarray, "n_layers d_mlp"] | None, count: int
) -> Bool[np.ndarray, "n_layers d_mlp"]:
    """The `count` best of each layer, minus the `count` best of the other ranking."""
    chosen = np.stack([_top_mask(row, count) for row in rank])
    if against is not None:
        chosen &= ~np.stack([_top_mask(row, count) for row in against])
    return chosen


def _overall(
    rank: Float[np.ndarray, "n_layers d_mlp"], against: Float[np.ndarray, "n_layers d_mlp"] | None, count: int
) -> Bool[np.ndarray, "n_layers d_mlp"]:
    """The `count` best of all layers; with a set difference, of the smallest per-layer k that leaves so many."""
    if against is None:
        return _top_mask(rank, count)
    for k in range(1, rank.shape[1] + 1):
        left = _per_layer(rank, against, k)
        if left.sum() >= count:
            return _top_mask(np.where(left, rank, -1.0), count)
    sizes = [int(_per_layer(rank, against, k).sum()) for k in range(1, rank.shape[1] + 1)]
    return _per_layer(rank, against, int(np.argmax(sizes)) + 1)
