"""What `capture` keeps: moments of every neuron by group of prompts (see `running`), and their file.

A **group** is a label in one language, modality and fold of the requests.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import one_of, require
from ..core.display import count, short_table
from ..core.equality import same
from ..core.errors import InputError
from ..core.results import from_json, load_arrays, reading, save_arrays
from ..core.sites import VALUES, said_if_other
from ..data.prompts import Cell, Prompt
from .folds import folds_of
from .running import ARRAYS, BothLabels, Group, Moments, by_group, merged

__all__ = ["BothLabels", "Group", "Moments", "Stats"]

FORMAT = "neuronshield.Stats/2"


@dataclass(frozen=True)
class _Header:
    """What a file of `Stats` says beside its arrays."""

    groups: list[Group]
    counts: list[int]
    tokens: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any]
    site: str = said_if_other()


@dataclass(frozen=True, eq=False, repr=False)
class Stats:
    """Moments by group, and everything else that `contrast` needs. Made by `capture`.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> stats
    Stats(60 tokens [last_prompt], 2 cells, 3 x 29 neurons)
    >>> stats["en/text"].harmful.mean.shape
    (3, 29)

    Attributes:
        groups: moments by (label, language, modality, fold).
        down_norms: ||W_down[:, i]||_2 of every neuron; 1 at other sites, whose numbers own no column.
        down_l1: ||W_down[:, i]||_1 of every neuron; 1 at other sites.
        tokens: role of the tokens that were counted.
        n_params: parameters of the model.
        params_per_neuron: weights that one neuron owns.
        provenance: model, data hash, seed, versions, and the requests `seen`.
        site: which numbers of a layer were read (`neuronshield.core.sites`).
    """

    groups: dict[Group, Moments]
    down_norms: Float[np.ndarray, "n_layers d_mlp"]
    down_l1: Float[np.ndarray, "n_layers d_mlp"]
    tokens: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any] = field(default_factory=dict)
    site: str = "neuron"

    def __post_init__(self) -> None:
        one_of(self.site, VALUES, call="Stats", name="site")
        shape = np.shape(self.down_norms)
        others = {"down_l1": np.shape(self.down_l1)}
        others |= {f"{name} of {tuple(g)}": getattr(m, name).shape for g, m in self.groups.items() for name in ARRAYS}
        if wrong := next((name for name, other in others.items() if other != shape), None):
            raise InputError(f"Stats: {wrong} has shape {others[wrong]}, but down_norms {shape} (n_layers, d_mlp); "
                             "give moments and norms of one model")  # fmt: skip
        if not (np.isfinite(self.down_norms).all() and np.isfinite(self.down_l1).all()):
            raise InputError("Stats: norms of W_down that are not finite; check the checkpoint's weights")

    @staticmethod
    def of(
        activations: Float[Tensor | np.ndarray, "prompt n_layers d_mlp"],
        prompts: Sequence[Prompt],
        *,
        like: Stats,
        labels: Sequence[str] | None = None,
        output_norms: Float[Tensor | np.ndarray, "prompt n_layers"] | None = None,
    ) -> Stats:
        """Moments of recorded activations under any labels, such as shuffled ones.

        The time is that of a few passes over the activations. Give only the prompts of the cells that a selection reads.

        >>> stats = ns.capture(model, prompts, progress=False)
        >>> from neuronshield.find.moments import record
        >>> swapped = ["benign" if p.label == "harmful" else "harmful" for p in prompts]
        >>> Stats.of(record(model, prompts), prompts, like=stats, labels=swapped)
        Stats(60 tokens [last_prompt], 2 cells, 3 x 29 neurons)

        Args:
            activations: one vector a prompt, as `record` returns them.
            prompts: gives the cell and the fold of each row.
            like: gives the norms of W_down, the counts of parameters, the seed of the folds and the provenance.
            labels: "harmful" or "benign" for each row; None for the prompts' own.
            output_norms: ||MLP output|| of each row and layer, as `record_norms` returns them, which "cett" needs; None
                leaves `Moments.share` at 0.

        Raises:
            InputError: arguments of another type, rows of other numbers, activations of another model, or another label.
        """
        call = "Stats.of(activations, prompts)"
        require(
            like, Stats, call=f"{call[:-1]}, like=...)", name="like", hint="capture makes them: capture(model, prompts)"
        )
        for prompt in require(prompts, Sequence, call=call, name="prompts"):
            require(prompt, Prompt, call=call, name="every row of prompts", hint="PromptSet.from_records reads dicts")
        h = _array(call, "activations", activations)
        given = [p.label for p in prompts] if labels is None else list(labels)
        if not len(prompts) == len(given) == len(h) or not len(h):
            raise InputError(f"{call}: {len(h)} rows of activations, {len(prompts)} prompts and {len(given)} labels; "
                             "give one of each for every prompt")  # fmt: skip
        if h.shape[1:] != like.down_norms.shape:
            raise InputError(f"{call}: activations of {' x '.join(map(str, h.shape[1:]))} neurons, but like= has "
                             f"{like.n_layers} x {like.d_mlp}; record them from the same model")  # fmt: skip
        if wrong := next((label for label in given if label not in ("harmful", "benign")), None):
            raise InputError(f"{call}: a label {wrong!r:.40}; use 'harmful' or 'benign'")
        folds = folds_of(prompts, like.provenance.get("seed", 0))
        keys = [
            Group(label, p.language, p.modality, fold=fold)
            for label, p, fold in zip(given, prompts, folds, strict=True)
        ]
        present = list(dict.fromkeys(keys))
        number = {key: i for i, key in enumerate(present)}
        out = None if output_norms is None else _array(call, "output_norms", output_norms)
        if out is not None and out.shape != h.shape[:2]:
            raise InputError(
                f"{call}: output_norms of shape {out.shape}; give one for each of {h.shape[:2]} (prompts, layers)"
            )
        found = by_group(h, np.array([number[key] for key in keys]), out)
        return replace(like, groups=dict(zip(present, found, strict=True)), tokens="last_prompt")

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.down_norms.shape[0])

    @property
    def d_mlp(self) -> int:
        """Neurons a layer; d_model at the site "attention"."""
        return int(self.down_norms.shape[1])

    def cells(self) -> list[Cell]:
        """Cells in which both labels were seen: those that can be contrasted.

        >>> [str(cell) for cell in ns.capture(model, prompts, progress=False).cells()]
        ['en/text', 'sw/text']
        """
        seen = {(g.cell, g.label) for g in self.groups}
        cells = dict.fromkeys(g.cell for g in self.groups)
        return [c for c in cells if (c, "harmful") in seen and (c, "benign") in seen]

    def __getitem__(self, cell: Cell | tuple[str, str] | str) -> BothLabels:
        return BothLabels(self.moments("harmful", cell), self.moments("benign", cell))

    def moments(self, label: str, cell: Cell | tuple[str, str] | str, folds: Collection[int] | None = None) -> Moments:
        """Moments of one label in one cell, all folds merged or some of them, float64.

        >>> ns.capture(model, prompts, progress=False).moments("harmful", "en/text")
        Moments(15 tokens, 3 x 29 neurons)

        Args:
            label: "harmful" or "benign".
            cell: as `Cell.of` takes it.
            folds: such as {0, 3}; None for all.

        Raises:
            InputError: nothing was captured there, or a mean or variance that is not finite.
        """
        cell = Cell.of(cell)
        mine = [(g.fold, m) for g, m in self.groups.items() if g.label == label and g.cell == cell]
        wanted = [m for fold, m in mine if folds is None or fold in folds]
        if not wanted:
            part = "" if folds is None else f" in the folds {sorted(folds)}"
            known = ", ".join(dict.fromkeys(f"{g.label} {g.cell}" for g in self.groups))
            raise InputError(f"nothing captured for {label} prompts of {cell}{part}; there are {known}")
        with np.errstate(invalid="ignore", over="ignore"):
            found = merged(wanted)
        if (wrong := np.argwhere(~np.isfinite(found.mean + found.m2))).size:
            layer, index = wrong[0].tolist()
            raise InputError(f"{label} prompts of {cell}: the moments of neuron ({layer}, {index}) are not finite; "
                             "capture again, with dtype='float32' or 'bfloat16'")  # fmt: skip
        return found

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that the moments were written to.

        >>> stats = ns.capture(model, prompts, progress=False)
        >>> ns.Stats.load(stats.save("stats.safetensors"))
        Stats(60 tokens [last_prompt], 2 cells, 3 x 29 neurons)

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        """
        kept = list(self.groups.values())
        arrays = {name: np.stack([getattr(m, name) for m in kept]) for name in ARRAYS} if kept else {}
        header = _Header(
            groups=list(self.groups),
            counts=[m.n for m in kept],
            tokens=self.tokens,
            n_params=self.n_params,
            params_per_neuron=self.params_per_neuron,
            provenance=self.provenance,
            site=self.site,
        )
        arrays |= {"down_norms": self.down_norms, "down_l1": self.down_l1}
        return save_arrays(path, FORMAT, arrays=arrays, about=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Stats:
        """The moments that `save` wrote.

        >>> ns.Stats.load(ns.capture(model, prompts, progress=False).save("stats.safetensors")).tokens
        'last_prompt'

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not written by `Stats.save`.
        """
        arrays, about = load_arrays(path, FORMAT)
        with reading(path, FORMAT):
            header = from_json(_Header, about)
            counts = dict(zip(header.groups, header.counts, strict=True))
            kept = [list(arrays[name]) for name in ARRAYS] if counts else []
            if wrong := next((name for name in ARRAYS if counts and not np.isfinite(arrays[name]).all()), None):
                raise ValueError(f"{wrong!r} has values that are not finite")
            groups = {group: Moments(n, *moments) for (group, n), *moments in zip(counts.items(), *kept, strict=True)}
            return Stats(
                groups=groups,
                down_norms=arrays["down_norms"],
                down_l1=arrays["down_l1"],
                tokens=header.tokens,
                n_params=header.n_params,
                params_per_neuron=header.params_per_neuron,
                provenance=header.provenance,
                site=header.site,
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.tokens, self.n_params, len(self.groups)))

    def __repr__(self) -> str:
        n = sum(m.n for m in self.groups.values())
        what = "neurons" if self.site == "neuron" else f"numbers at site {self.site!r}"
        return f"Stats({n} tokens [{self.tokens}], {count(len(self.cells()), 'cell')}, {self.n_layers} x {self.d_mlp} {what})"

    def _repr_html_(self) -> str:
        rows = [(g.language, g.modality, g.label, m.n) for g, m in self.groups.items()]
        table = pd.DataFrame(rows, columns=["language", "modality", "label", "tokens"])
        counts = table.groupby(["language", "modality", "label"], sort=False)["tokens"].sum().unstack(fill_value=0)
        return short_table(counts.reset_index(), title=repr(self))


def _array(call: str, name: str, given: Any) -> np.ndarray:
    """Numbers of a tensor, an array or lists; of a type that numpy has."""
    try:
        tensor = torch.as_tensor(given).detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{call}: {name} must be a tensor or an array of numbers, got {type(given).__name__}"
        ) from None
