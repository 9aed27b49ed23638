"""Selection: from the scores of every neuron to one set of neurons a cell.

`Scores` holds a score for every neuron in every cell. `Scores.top` takes the largest by magnitude; ties go to the lower
(layer, index). For a method with a **set difference** (`Scores.against`), the neurons of a layer that are chosen are

    top k of the score on harmful prompts  minus  top k of the score on benign prompts.

A size given for all layers together then takes the smallest k, the same in every layer, that leaves enough neurons.

`sign` keeps neurons of one side: those with m_h - m_b > 0 ("harmful") or < 0 ("benign"). The others are left out of the first
ranking; the ranking that is taken away stays whole.

Every set says in `provenance["selection"]` how it was chosen: rule, score, cell, size and sign. `rules.run_leaf` chooses by it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..core.arguments import at_least, one_of, require
from ..core.display import count, short_table
from ..core.equality import same
from ..core.errors import InputError
from ..core.latex import latex_table
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_arrays, reading, save_arrays
from ..core.sites import said_if_other
from ..data.prompts import Cell
from ..figures.paper import Figure
from .cells import CellSets, known_cell
from .ranking import Choice, overall, per_layer
from .set_sizes import named_size, size_of
from .signs import kind

__all__ = ["Scores", "chosen"]


logger = logging.getLogger("neuronshield")

FORMAT = "neuronshield.Scores/2"
SIZES = ("k", "fraction", "per_layer", "param_fraction")
SIGNS = ("harmful", "benign")
Layers: TypeAlias = Float[np.ndarray, "n_layers d_mlp"]


@dataclass(frozen=True)
class _Header:
    """What a file of `Scores` says beside its arrays."""

    cells: list[str]
    method: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any]
    site: str = said_if_other()


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
        difference: m_h - m_b, the mean activation on harmful prompts minus that on benign prompts; None where the score's prompts
            do not tell it (`snip`, `change_score`).
        site: which numbers of a layer are scored (`neuronshield.core.sites`).
    """

    cells: list[Cell]
    values: Float[np.ndarray, "cell n_layers d_mlp"]
    against: Float[np.ndarray, "cell n_layers d_mlp"] | None
    method: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any] = field(default_factory=dict)
    difference: Float[np.ndarray, "cell n_layers d_mlp"] | None = None
    site: str = "neuron"

    def __post_init__(self) -> None:
        call, kept = (
            "Scores(cells, values, ...)",
            {"values": self.values, "against": self.against, "difference": self.difference},
        )
        given = {name: array for name, array in kept.items() if array is not None or name == "values"}
        shapes = {name: require(array, np.ndarray, call=call, name=name).shape for name, array in given.items()}
        if len(set(shapes.values())) > 1 or len(shapes["values"]) != 3 or shapes["values"][0] != len(self.cells):
            raise InputError(
                f"{call}: {count(len(self.cells), 'cell')}, but {', '.join(f'{name} has shape {x}' for name, x in shapes.items())}; "
                "give [cell, n_layers, d_mlp] for all"
            )

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
        sign: str | None = None,
    ) -> CellSets:
        """The best neurons of each cell, for exactly one size.

        >>> sets = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=8)
        >>> sets
        CellSets(en/text: 8, sw/text: 8)
        >>> ns.NeuronSet.intersection(*sets.values()) == sets["en/text"] & sets["sw/text"]
        True
        >>> scores = ns.contrast(ns.capture(model, prompts, progress=False))
        >>> all(scores.difference[0][neuron] > 0 for neuron in scores.top(k=8, sign="harmful")["en/text"])
        True

        Args:
            *unnamed: nothing; the size is named.
            k: neurons in all.
            fraction: part of all MLP neurons, 0 to 1, rounded down.
            per_layer: neurons from each layer; with a set difference, before the subtraction.
            param_fraction: part of the model's parameters that the neurons own, 0 to 1, rounded down (3e-4 in Precise
                Shield).

            sign: "harmful" for neurons that are larger on harmful prompts (`difference` > 0), "benign" for those that are larger
                on benign ones; None for both.

        A warning is logged where fewer neurons are left than were asked for (by a set difference or a sign), and where neurons
        with a score of zero are chosen.

        Raises:
            InputError: no size, an unnamed one or several, or one that gives no neuron or more than there are; an unknown sign,
                or one of scores without `difference`; `param_fraction` of another site than "neuron".
        """
        if unnamed:
            raise InputError(f"top({unnamed[0]!r:.40}): name the size, as in top(k=64); one of {', '.join(SIZES)}")
        name, value = named_size("top()", dict(zip(SIZES, (k, fraction, per_layer, param_fraction), strict=True)))
        sets = {}
        for cell in self.cells:
            mask, rank = chosen(self, cell, size={name: value}, sign=sign)
            self._warn(cell, (mask, rank), size={name: value}, sign=sign)
            size = {name: size_of("top", name, value)}
            about = {"method": self.method, "cell": str(cell), "size": size}
            about = {**self.provenance, **about, "selection": {"rule": "top", **about, "sign": sign}}
            n_layers, d_mlp = mask.shape
            sets[cell] = NeuronSet(np.argwhere(mask), n_layers=n_layers, d_mlp=d_mlp, provenance=about, site=self.site)
        return CellSets(sets)

    def _warn(self, cell: Cell, choice: Choice, *, size: Mapping[str, Any], sign: str | None) -> None:
        """Say where fewer neurons are left than were asked for, and where neurons with a score of zero are chosen."""
        mask, rank = choice
        ((name, value),) = size.items()
        wanted = self._count(name, value) * (len(rank) if name == "per_layer" else 1)
        if mask.sum() < wanted and (sign is not None or name != "per_layer"):
            why = "a set difference" if sign is None else f"sign={sign!r}"
            logger.warning("top(%s=%s): %s: %s leaves only %d", name, value, cell, why, mask.sum())
        if zeros := int((mask & (rank == 0)).sum()):
            logger.warning("top(%s=%s): %s: %d of %d chosen neurons have a score of zero, and are selected by index "
                           "order (ties at zero)", name, value, cell, zeros, mask.sum())  # fmt: skip

    def _count(self, name: str, value: Any) -> int:
        """Neurons that a size asks for."""
        n_layers, d_mlp = self.values.shape[1:]
        size = size_of("top", name, value)
        if name == "param_fraction" and self.site != "neuron":
            raise InputError(
                f"top(param_fraction=...): the scores are of site {self.site!r}, whose numbers own no weights; use k="
            )
        count = int(size) if name in ("k", "per_layer") else int(min(size * self._unit(name), 1e18) + 1e-9)
        limit = d_mlp if name == "per_layer" else n_layers * d_mlp
        if not 1 <= count <= limit:
            least = self.params_per_neuron / self.n_params
            hint = f"; one neuron is {least:.2e} of the parameters" if name == "param_fraction" else ""
            raise InputError(f"top({name}={value}): that is {count} neurons, must be 1 to {limit}{hint}")
        return count

    def _unit(self, name: str) -> float:
        """Neurons that a fraction of 1 stands for."""
        return self.values[0].size if name == "fraction" else self.n_params / self.params_per_neuron

    def to_frame(self, *, k: int = 20, directions: Mapping[str, Layers] | None = None) -> pd.DataFrame:
        """The neurons of `top(k=k)` as rows (cell, rank, layer, index, score), best first, with their signs where directions are given.

        >>> scores = ns.contrast(ns.capture(model, prompts, progress=False))
        >>> scores.to_frame(k=4).shape
        (8, 5)
        >>> directions = ns.signs.directions(model, prompts, refusals=["sorry"], compliances=["sure"])
        >>> scores.to_frame(k=4, directions=directions).columns[5:].tolist()
        ['difference', 'writes', 'kind']

        Args:
            k: neurons a cell; all there are if that is fewer, and fewer where a set difference leaves fewer.
            directions: from `signs.directions`; adds `difference` (m_h - m_b), `writes` (what a unit of activation adds directly to
                the refusal margin, in logits) and `kind` (refusal-promoting, compliance-promoting or anti-refusal).

        Raises:
            InputError: directions of another model or without the language of a cell, or scores without `difference`.
        """
        at_least(1, "to_frame", k=k)
        rows = []
        for i, cell in enumerate(self.cells):
            mask, rank = chosen(self, cell, size={"k": min(k, self.values[i].size)})
            found = np.argwhere(mask)
            order = np.argsort(-rank[mask], kind="stable")  # ties go to the lower (layer, index), as in `top`
            for place, (layer, index) in enumerate(found[order].tolist(), 1):
                rows.append((str(cell), place, layer, index, float(self.values[i, layer, index])))
        table = pd.DataFrame(rows, columns=["cell", "rank", "layer", "index", self.method])
        return table if directions is None else table.assign(**self._signs(table, directions))

    def _signs(self, table: pd.DataFrame, directions: Mapping[str, Layers]) -> dict[str, list[Any]]:
        """Columns of `to_frame` that say what each neuron does."""
        if self.difference is None:
            raise InputError(
                f"to_frame(directions=...): {self.method} scores do not say on which prompts a neuron is larger"
            )
        call = "to_frame(directions=...)"
        if self.site != "neuron":
            raise InputError(
                f"{call}: the scores are of site {self.site!r}, which writes nothing by itself; leave them out"
            )
        require(directions, Mapping, call=call, name="directions", hint="signs.directions makes them, by language")
        if missing := [c for c in self.cells if c.language not in directions]:
            raise InputError(f"{call}: none for the language of {missing[0]}; there are {', '.join(directions)}")
        shape = self.values.shape[1:]
        if wrong := [c.language for c in self.cells if np.shape(directions[c.language]) != shape]:
            raise InputError(
                f"{call}: {wrong[0]!r} has {np.shape(directions[wrong[0]])} numbers for {shape} neurons (n_layers, d_mlp); "
                "compute them for this model"
            )
        at = {str(cell): i for i, cell in enumerate(self.cells)}
        places = list(zip(table["cell"], table["layer"], table["index"], strict=True))
        contrast = [float(self.difference[at[cell], layer, index]) for cell, layer, index in places]
        writes = [float(directions[Cell.of(cell).language][layer, index]) for cell, layer, index in places]
        return {
            "difference": contrast,
            "writes": writes,
            "kind": [kind(*pair) for pair in zip(contrast, writes, strict=True)],
        }

    def to_latex(self, *, k: int = 20) -> str:
        """The neurons of `top(k=k)` as a LaTeX `tabular` with `booktabs` rules.

        Args:
            k: neurons a cell.
        """
        return latex_table(self.to_frame(k=k), digits=3)

    def figure(self, *, k: int = 64) -> Figure:
        """A heatmap of how many of each cell's k best neurons lie in each layer.

        >>> figure = ns.contrast(ns.capture(model, prompts, progress=False)).figure(k=8)
        >>> figure.data[0].z.shape
        (2, 3)

        Args:
            k: neurons a cell.
        """
        from ..figures import layers

        at_least(1, "figure", k=k)
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
        kept = {"values": self.values, "against": self.against, "difference": self.difference}
        arrays = {name: array for name, array in kept.items() if array is not None}
        header = _Header(
            cells=[str(c) for c in self.cells],
            method=self.method,
            n_params=self.n_params,
            params_per_neuron=self.params_per_neuron,
            provenance=self.provenance,
            site=self.site,
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
        with reading(path, FORMAT):
            header = from_json(_Header, about)
            if np.isnan(arrays["values"]).any():
                raise ValueError("a score is not a number")
            return Scores(
                cells=[Cell.of(c) for c in header.cells],
                values=arrays["values"],
                against=arrays.get("against"),
                method=header.method,
                n_params=header.n_params,
                params_per_neuron=header.params_per_neuron,
                provenance=header.provenance,
                difference=arrays.get("difference"),
                site=header.site,
            )

    def _repr_html_(self) -> str:
        return short_table(self.to_frame(k=3), title=repr(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scores) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.method, self.n_params, tuple(self.cells)))

    def __repr__(self) -> str:
        _, n_layers, d_mlp = self.values.shape
        what = "neurons" if self.site == "neuron" else f"numbers at site {self.site!r}"
        return f"Scores({self.method}, {count(len(self.cells), 'cell')}, {n_layers} x {d_mlp} {what})"


def chosen(
    scores: Scores, cell: Cell | tuple[str, str] | str, *, size: Mapping[str, Any], sign: str | None = None
) -> Choice:
    """The mask [n_layers, d_mlp] of the neurons that `Scores.top` takes in one cell, and the magnitude that it ranks by.

    >>> scores = ns.contrast(ns.capture(model, prompts, progress=False))
    >>> mask, rank = chosen(scores, "en/text", size={"k": 8}, sign="benign")
    >>> mask.shape, int(mask.sum()), bool((rank[mask] > 0).all())
    ((3, 29), 8, True)

    The magnitude is -inf where a neuron cannot be chosen: of the other sign, or among those that a set difference takes away.

    Args:
        scores: scores of every neuron.
        cell: as `Cell.of` takes it.
        size: one size of `Scores.top`, by name.
        sign: as for `Scores.top`.

    Raises:
        InputError: as `Scores.top`.
    """
    ((name, value),) = size.items()
    count = scores._count(name, value)
    at = scores.cells.index(known_cell(cell, scores.cells, "scores"))
    rank = np.abs(scores.values[at])
    if sign is not None:
        one_of(sign, SIGNS, call="top", name="sign")
        if scores.difference is None:
            raise InputError(
                f"top(sign={sign!r}): {scores.method} scores do not say on which prompts a neuron is larger; leave sign out"
            )
        rank = np.where(scores.difference[at] * (1 if sign == "harmful" else -1) > 0, rank, -np.inf)
    against = None if scores.against is None else np.abs(scores.against[at])
    mask, rank = (per_layer if name == "per_layer" else overall)(rank, against, count)
    return mask, rank
