"""What `capture` keeps: moments of every neuron by group of prompts, and their file.

A **group** is a label in one language, modality and half. For every group, layer and neuron seven numbers are kept over the
chosen tokens, with h the activation:

    n          tokens
    mean       mean of h
    m2         sum of squared deviations from the mean
    mean_abs   mean of |h|
    positive   fraction of tokens with h > 0
    least      smallest |h|
    share      mean of |h| / ||MLP output||

Moments of two groups merge without their tokens (Chan's update), so memory does not depend on the number of prompts.

Source: Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..core.display import count, own_names, short_table
from ..core.errors import InputError
from ..core.results import from_json, load_arrays, same, save_arrays
from ..data.prompts import Cell

__all__ = ["BothLabels", "Group", "Moments", "Stats"]

FORMAT = "neuronshield.Stats/1"


class Group(NamedTuple):
    """Prompts whose moments are kept together.

    Args:
        label: "harmful" or "benign".
        language: a BCP-47 tag.
        modality: as in a `Cell`.
        half: 0 or 1, see `capture`.
    """

    label: str
    language: str
    modality: str
    half: int

    def __dir__(self) -> list[str]:
        return own_names(self)

    @property
    def cell(self) -> Cell:
        """Its language and modality."""
        return Cell(self.language, self.modality)


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Moments of one group, one number per layer and neuron, float64.

    >>> a = Moments.of(np.array([[[1.0]], [[3.0]]]))     # 2 tokens, 1 layer, 1 neuron
    >>> a, a.mean.item(), a.var.item()
    (Moments(2 tokens, 1 x 1 neurons), 2.0, 2.0)

    Attributes:
        n: tokens.
        mean: mean activation.
        m2: sum of squared deviations from the mean.
        mean_abs: mean of |h|.
        positive: fraction of tokens with h > 0, 0 to 1.
        least: smallest |h|.
        share: mean of |h| / ||MLP output||; 0 where the norm was not given.
    """

    n: int
    mean: Float[np.ndarray, "n_layers d_mlp"]
    m2: Float[np.ndarray, "n_layers d_mlp"]
    mean_abs: Float[np.ndarray, "n_layers d_mlp"]
    positive: Float[np.ndarray, "n_layers d_mlp"]
    least: Float[np.ndarray, "n_layers d_mlp"]
    share: Float[np.ndarray, "n_layers d_mlp"]

    @staticmethod
    def of(
        h: Float[np.ndarray, "token n_layers d_mlp"], out: Float[np.ndarray, "token n_layers"] | None = None
    ) -> Moments:
        """Moments of activations that are all in memory.

        >>> Moments.of(np.array([[[0.0]], [[3.0]]])).positive.item()     # 0 is not active
        0.5

        Args:
            h: activations.
            out: norm of each MLP's output; None leaves `share` at 0.
        """
        h = np.asarray(h, dtype=np.float64)
        mean, size = h.mean(0), np.abs(h)
        share = np.zeros_like(mean) if out is None else (size / np.asarray(out)[..., None]).mean(0)
        return Moments(
            n=len(h),
            mean=mean,
            m2=((h - mean) ** 2).sum(0),
            mean_abs=size.mean(0),
            positive=(h > 0).mean(0),
            least=size.min(0),
            share=share,
        )

    @property
    def var(self) -> Float[np.ndarray, "n_layers d_mlp"]:
        """Unbiased variance; 0 where only one token was seen."""
        return self.m2 / max(self.n - 1, 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of both groups together (Chan's update).

        >>> one, two = Moments.of(np.array([[[1.0]]])), Moments.of(np.array([[[3.0]], [[5.0]]]))
        >>> one.merge(two).mean.item()
        3.0

        Args:
            other: of the same shape.
        """
        n = self.n + other.n
        part = other.n / n
        delta = other.mean - self.mean
        return Moments(
            n=n,
            mean=self.mean + delta * part,
            m2=self.m2 + other.m2 + delta**2 * self.n * part,
            mean_abs=self.mean_abs + (other.mean_abs - self.mean_abs) * part,
            positive=self.positive + (other.positive - self.positive) * part,
            least=np.minimum(self.least, other.least),
            share=self.share + (other.share - self.share) * part,
        )

    def __repr__(self) -> str:
        n_layers, d_mlp = self.mean.shape
        return f"Moments({self.n} tokens, {n_layers} x {d_mlp} neurons)"

    __dir__ = own_names


#: Fields of `Moments` that are arrays.
ARRAYS = tuple(f.name for f in fields(Moments) if f.name != "n")


class BothLabels(NamedTuple):
    """Moments of one cell, by label."""

    harmful: Moments
    benign: Moments

    def __dir__(self) -> list[str]:
        return own_names(self)


@dataclass(frozen=True)
class _Header:
    """What a file of `Stats` says beside its arrays."""

    groups: list[Group]
    counts: list[int]
    tokens: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Stats:
    """Moments by group, and everything else that `contrast` needs. Made by `capture`.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> stats
    Stats(60 tokens [last_prompt], 2 cells, 3 x 29 neurons)
    >>> stats["en/text"].harmful.mean.shape
    (3, 29)

    Attributes:
        groups: moments by (label, language, modality, half).
        down_norms: ||W_down[:, i]||_2 of every neuron.
        down_l1: ||W_down[:, i]||_1 of every neuron.
        tokens: role of the tokens that were counted.
        n_params: parameters of the model.
        params_per_neuron: weights that one neuron owns.
        provenance: model, data hash, seed, versions, and the requests `seen`.
    """

    groups: dict[Group, Moments]
    down_norms: Float[np.ndarray, "n_layers d_mlp"]
    down_l1: Float[np.ndarray, "n_layers d_mlp"]
    tokens: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.down_norms.shape[0])

    @property
    def d_mlp(self) -> int:
        """Neurons a layer."""
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

    def moments(self, label: str, cell: Cell | tuple[str, str] | str, half: int | None = None) -> Moments:
        """Moments of one label in one cell, both halves merged or one of them.

        >>> ns.capture(model, prompts, progress=False).moments("harmful", "en/text")
        Moments(15 tokens, 3 x 29 neurons)

        Args:
            label: "harmful" or "benign".
            cell: as `Cell.of` takes it.
            half: 0 or 1; None for both.

        Raises:
            InputError: nothing was captured there.
        """
        cell = Cell.of(cell)
        wanted = [m for g, m in self.groups.items() if g.label == label and g.cell == cell and half in (None, g.half)]
        if not wanted:
            part = "" if half is None else f", half {half}"
            known = ", ".join(dict.fromkeys(f"{g.label} {g.cell}" for g in self.groups))
            raise InputError(f"nothing captured for {label} prompts of {cell}{part}; there are {known}")
        out = wanted[0]
        for other in wanted[1:]:
            out = out.merge(other)
        return out

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
        try:
            header = from_json(_Header, about)
            groups = {
                group: Moments(n=n, **{name: arrays[name][i] for name in ARRAYS})
                for i, (group, n) in enumerate(zip(header.groups, header.counts, strict=True))
            }
            norms, l1 = arrays["down_norms"], arrays["down_l1"]
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"{path}: not a file of {FORMAT} ({error})") from None
        return Stats(
            groups=groups,
            down_norms=norms,
            down_l1=l1,
            tokens=header.tokens,
            n_params=header.n_params,
            params_per_neuron=header.params_per_neuron,
            provenance=header.provenance,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.tokens, self.n_params, len(self.groups)))

    def __repr__(self) -> str:
        n = sum(m.n for m in self.groups.values())
        return f"Stats({n} tokens [{self.tokens}], {count(len(self.cells()), 'cell')}, {self.n_layers} x {self.d_mlp} neurons)"

    def _repr_html_(self) -> str:
        rows = [(g.language, g.modality, g.label, m.n) for g, m in self.groups.items()]
        table = pd.DataFrame(rows, columns=["language", "modality", "label", "tokens"])
        counts = table.groupby(["language", "modality", "label"], sort=False)["tokens"].sum().unstack(fill_value=0)
        return short_table(counts.reset_index(), title=repr(self))
