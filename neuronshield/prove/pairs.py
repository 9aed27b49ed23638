"""One experiment on twins: harmful prompts beside their benign twins, what every neuron did, and the margins.

Let M be the refusal margin (see `grade`) and gap = mean M(harmful) - mean M(benign twin). Effects are in units of
the gap: 1 means "all of what tells the twins apart". Intervals resample whole requests (`pair_id`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.statistics import Interval, ratio_of_means
from ..data.prompts import Cell, Prompt, PromptSet
from ..find.moments import record
from ..model.forward import margins, prepare
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import OpeningTokens

__all__ = ["ABLATIONS", "Lab", "twins"]


ABLATIONS = ("zero", "mean", "resample", "patch")


def twins(prompts: PromptSet, seed: int) -> tuple[list[tuple[Prompt, Prompt]], bool]:
    """Matched twins; without any, a random benign prompt of the same cell for each harmful one, and False."""
    pairs = prompts.pairs()
    if pairs:
        return pairs, True
    rng = np.random.default_rng(seed)
    for cell in prompts.cells():
        benign = list(prompts.where(label="benign").in_cells([cell]))
        harmful = list(prompts.where(label="harmful").in_cells([cell]))
        if benign and harmful:
            order = [int(i) for _ in range(len(harmful) // len(benign) + 1) for i in rng.permutation(len(benign))]
            pairs += [(h, benign[i]) for h, i in zip(harmful, order, strict=False)]
    if not pairs:
        raise InputError("verify: no cell (language x modality) has both harmful and benign prompts")
    return pairs, False


class Lab:
    """Twins, their activations at the last prompt token, and their clean margins.

    Attributes:
        harmful, benign: the twins, row by row; `clusters` and `cells` name each row's request and cell.
        act_h, act_b: [pair, n_layers, d_mlp].
        clean_h, clean_b, gaps: refusal margins [pair] and their difference.
        values: what each kind of ablation writes.
    """

    def __init__(
        self,
        model: Model,
        pairs: Sequence[tuple[Prompt, Prompt]],
        tokens: dict[str, OpeningTokens],
        *,
        seed: int = 0,
        batch_size: int = 64,
        progress: bool = False,
    ) -> None:
        self.model, self.tokens, self.seed, self.batch_size, self.progress = model, tokens, seed, batch_size, progress
        self.harmful, self.benign = [h for h, _ in pairs], [b for _, b in pairs]
        self.clusters = np.array([h.cluster for h in self.harmful], dtype=object)
        self.cells = np.array([str(h.cell) for h in self.harmful], dtype=object)
        self.act_h = record(model, self.harmful, batch_size=batch_size)
        self.act_b = record(model, self.benign, batch_size=batch_size)
        self.values: dict[str, Any] = {
            "zero": None,
            "mean": _cell_means(self.act_b, self.cells),
            "resample": self.act_b[_donors(self.cells, self.clusters, np.random.default_rng(seed))],
            "patch": self.act_b,
        }
        self._prepared: dict[str, Any] = {}
        self.clean_h = self.on_harmful([None])[0]
        self.clean_b = self.on_benign([None])[0]

    def rows(self, rows: Int[np.ndarray, " row"]) -> Lab:
        """The same experiment on some of its pairs; nothing is run again."""
        out = copy.copy(self)
        out._prepared = {}
        index = [int(i) for i in rows]
        out.harmful, out.benign = [self.harmful[i] for i in index], [self.benign[i] for i in index]
        for name in ("clusters", "cells", "act_h", "act_b", "clean_h", "clean_b"):
            setattr(out, name, getattr(self, name)[index])
        out.values = {k: None if v is None else v[index] for k, v in self.values.items()}
        return out

    # -- conditions -----------------------------------------------------------------------------------
    def ablate(self, neurons: NeuronSet, kind: str = "mean") -> Intervention:
        """Zero, benign mean of the cell, another benign prompt's value, or the benign twin's."""
        return Intervention(neurons, kind, self.values[kind])  # type: ignore[arg-type]

    def insert(self, neurons: NeuronSet) -> Intervention:
        """The harmful twin's values, for benign prompts."""
        return Intervention(neurons, "patch", self.act_h)

    def on_harmful(
        self, conditions: Sequence[Intervention | None], *, frozen: bool = False
    ) -> Float[np.ndarray, "condition pair"]:
        """Margins of the harmful prompts under each condition."""
        return self._read("harmful", conditions, frozen)

    def on_benign(self, conditions: Sequence[Intervention | None]) -> Float[np.ndarray, "condition pair"]:
        """The same of their benign twins."""
        return self._read("benign", conditions, False)

    def _read(
        self, side: str, conditions: Sequence[Intervention | None], frozen: bool
    ) -> Float[np.ndarray, "condition pair"]:
        prompts = self.harmful if side == "harmful" else self.benign
        if side not in self._prepared and len(conditions) > 2:  # everything here touches the last token only
            self._prepared[side] = prepare(self.model, prompts, batch_size=self.batch_size)
        return margins(
            self.model, prompts, conditions, self.tokens, batch_size=self.batch_size, progress=self.progress,
            desc="verify", frozen=frozen, prepared=self._prepared.get(side),
        )  # fmt: skip

    # -- effects --------------------------------------------------------------------------------------
    @property
    def gaps(self) -> Float[np.ndarray, " pair"]:
        return self.clean_h - self.clean_b

    @property
    def gap(self) -> Interval:
        """Mean gap with its interval."""
        return ratio_of_means(self.gaps, np.ones(len(self.gaps)), list(self.clusters), seed=self.seed)

    def effect(self, change: Float[np.ndarray, " pair"], rows: Any = slice(None)) -> Interval:
        """A change of margin as a share of the gap, with its interval over requests."""
        return ratio_of_means(change[rows], self.gaps[rows], list(self.clusters[rows]), seed=self.seed)

    def effects(self, change: Float[np.ndarray, "set pair"]) -> Float[np.ndarray, " set"]:
        """The same without intervals, for many sets at once."""
        gap = self.gaps.mean()
        return change.mean(axis=1) / gap if gap else np.full(len(change), np.nan)

    def paths(
        self, pairs: Sequence[tuple[int, int]], rests: Sequence[NeuronSet]
    ) -> tuple[Float[np.ndarray, "neuron pair"], Float[np.ndarray, "neuron pair"]]:
        """What ablating each neuron does to harmful prompts while its `rest` is ablated: as it is, and with norms frozen.

        Removing anything loud makes norms rescale what is left, and so moves the margin without any path to it; with
        norms frozen at the clean run only what is read further on counts.
        """
        index: dict[NeuronSet, int] = {}
        plan = []
        for pair, rest in zip(pairs, rests, strict=True):
            live, cut = NeuronSet(rest), NeuronSet(rest) | NeuronSet([pair])
            plan.append([index.setdefault(s, len(index)) for s in (live, cut)])
        conditions = [self.ablate(s) if len(s) else None for s in index]
        live, cut = np.array(plan).T
        free, frozen = self.on_harmful(conditions), self.on_harmful(conditions, frozen=True)
        return free[live] - free[cut], frozen[live] - frozen[cut]

    def by_cell(self) -> dict[Cell, Int[np.ndarray, " row"]]:
        """Rows of each cell."""
        return {Cell.of(c): np.flatnonzero(self.cells == c) for c in dict.fromkeys(self.cells)}


def _cell_means(acts: Float[Tensor, "pair n_layers d_mlp"], cells: np.ndarray) -> Float[Tensor, "pair n_layers d_mlp"]:
    """For each row the mean over all rows of its cell."""
    out = torch.empty_like(acts)
    for cell in dict.fromkeys(cells):
        rows = torch.from_numpy(np.flatnonzero(cells == cell))
        out[rows] = acts[rows].mean(dim=0)
    return out


def _donors(cells: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> list[int]:
    """For each row another row of its cell and of another request (itself only if there is no other)."""
    out = []
    for i in range(len(cells)):
        pool = np.flatnonzero((cells == cells[i]) & (clusters != clusters[i]))
        out.append(int(rng.choice(pool)) if len(pool) else i)
    return out
