"""One neuron set for each cell: what a selection returns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.arguments import require
from ..core.display import short_table
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_arrays, reading, save_arrays
from ..core.sites import said_if_other
from ..data.prompts import Cell

__all__ = ["CellSets", "anchored", "known_cell", "pack", "unpack"]

FORMAT = "neuronshield.CellSets/1"


@dataclass(frozen=True)
class SetHeader:
    """What a file says of one set beside its members.

    Attributes:
        cell: as "en/text".
        n_layers: layers of the model.
        d_mlp: neurons a layer.
        provenance: of the set.
        site: of the set.
    """

    cell: str
    n_layers: int | None
    d_mlp: int | None
    provenance: dict[str, Any] = field(default_factory=dict)
    site: str = said_if_other()


class CellSets(Mapping[Cell, NeuronSet]):
    """A neuron set for each cell, in order: a mapping whose keys may be written "en/text".

    >>> sets = CellSets({"en/text": neurons, "sw/text": neurons})
    >>> sets["sw/text"], "ko/text" in sets, [str(cell) for cell in sets]
    (NeuronSet(3 neurons in 3 layers), False, ['en/text', 'sw/text'])

    Args:
        sets: the set of each cell; cells as `Cell.of` takes them.

    Raises:
        InputError: something that is not a cell, or not a neuron set.
    """

    def __init__(self, sets: Mapping[Any, NeuronSet]) -> None:
        require(sets, Mapping, call="CellSets(sets)", name="sets", hint="{cell: NeuronSet}")
        self._sets = {
            Cell.of(c): require(s, NeuronSet, call="CellSets(sets)", name=f"sets[{c!r}]") for c, s in sets.items()
        }

    def __getitem__(self, cell: Cell | tuple[str, str] | str) -> NeuronSet:
        return self._sets[known_cell(cell, self._sets, "sets")]

    def __contains__(self, cell: object) -> bool:
        try:
            return Cell.of(cell) in self._sets  # type: ignore[arg-type]
        except InputError:
            return False

    def get(self, cell: Any, default: Any = None) -> Any:
        """The set of a cell, or `default` where there is none.

        >>> CellSets({"en/text": neurons}).get("sw/text") is None
        True

        Args:
            cell: as `Cell.of` takes it.
            default: what is returned without one.
        """
        known = cell in self
        return self[cell] if known else default

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that all sets were written to.

        >>> CellSets.load(CellSets({"en/text": neurons}).save("sets.safetensors"))
        CellSets(en/text: 3)

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        """
        arrays, headers = pack(self)
        return save_arrays(path, FORMAT, arrays=arrays, about=headers)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> CellSets:
        """The sets that `save` wrote.

        >>> CellSets.load(CellSets({"en/text": neurons}).save("sets.safetensors"))["en/text"] == neurons
        True

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not written by `CellSets.save`.
        """
        arrays, about = load_arrays(path, FORMAT)
        with reading(path, FORMAT):
            return unpack(arrays, from_json(list[SetHeader], about))

    def __repr__(self) -> str:
        shown = [f"{cell}: {len(neurons)}" for cell, neurons in list(self.items())[:4]]
        more = f", {len(self) - 4} more" if len(self) > 4 else ""
        return f"CellSets({', '.join(shown)}{more})"

    def _repr_html_(self) -> str:
        rows = [(str(cell), len(s), len(s.per_layer())) for cell, s in self.items()]
        return short_table(pd.DataFrame(rows, columns=["cell", "neurons", "layers"]), title=f"{len(self)} neuron sets")


def known_cell(cell: Any, known: Iterable[Cell], name: str) -> Cell:
    """The cell, if it is one of those that are known.

    >>> known_cell("en/text", [ns.Cell("en", "text")], "sets")
    Cell(language='en', modality='text')

    Args:
        cell: as `Cell.of` takes it.
        known: the cells there are.
        name: what was indexed, for the message.

    Raises:
        InputError: no cell, or not a known one; the known ones are named.
    """
    found = Cell.of(cell)
    cells = list(known)
    if found not in cells:
        names = ", ".join(map(str, cells[:12])) + (f", {len(cells) - 12} more" if len(cells) > 12 else "")
        raise InputError(f"{name}[{str(found)!r}]: no such cell; there are {names}")
    return found


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


def pack(sets: CellSets) -> tuple[dict[str, np.ndarray], list[SetHeader]]:
    """Members of all sets as one array [member, (set, layer, index)], and what is said of each set.

    >>> pack(CellSets({"en/text": neurons}))[0]["members"].tolist()
    [[0, 0, 3], [0, 1, 5], [0, 2, 7]]

    Args:
        sets: one a cell.
    """
    members = [(i, layer, index) for i, neurons in enumerate(sets.values()) for layer, index in neurons]
    headers = [
        SetHeader(str(cell), s.n_layers, s.d_mlp, provenance=s.provenance, site=s.site) for cell, s in sets.items()
    ]
    return {"members": np.array(members, dtype=np.int32).reshape(-1, 3)}, headers


def unpack(arrays: Mapping[str, np.ndarray], headers: list[SetHeader]) -> CellSets:
    """The sets that `pack` took apart.

    >>> unpack(*pack(CellSets({"en/text": neurons})))
    CellSets(en/text: 3)

    Args:
        arrays: holds "members".
        headers: what is said of each set.

    Raises:
        KeyError, IndexError, TypeError, ValueError: members that do not fit the sets; `reading` names the file.
    """
    members: list[list[tuple[int, int]]] = [[] for _ in headers]
    for i, layer, index in arrays["members"].tolist():
        if i < 0:
            raise IndexError(f"set {i}")
        members[i].append((layer, index))
    if len({h.cell for h in headers}) < len(headers):
        raise ValueError("two sets are of the same cell")
    return CellSets(
        {
            h.cell: NeuronSet(pairs, n_layers=h.n_layers, d_mlp=h.d_mlp, provenance=h.provenance, site=h.site)
            for h, pairs in zip(headers, members, strict=True)
        }
    )
