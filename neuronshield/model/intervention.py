"""Interventions as data: which neurons, what they become, where, for which prompts.

An `Intervention` travels as JSON (an nnsight edit cannot be saved). `answer_logits`, `margins` and `generate` apply it. Its `kind`
says what becomes of a neuron's value h_i:

    zero       h_i <- 0
    mean       h_i <- its mean over other prompts        value [n_layers, d_mlp], or one row a prompt
    resample   h_i <- what it was on another prompt      value [prompt, n_layers, d_mlp]
    patch      h_i <- what it was in a donor run         value [prompt, n_layers, d_mlp]
    clamp      h_i <- a constant                         value a number, or [n_layers, d_mlp]
    scale      h_i <- alpha * h_i                        value alpha

`positions` names tokens by their role: "last_prompt", "prompt", "image", "text", "response" (every generated token that
is read again) or "all" (prompt and response). `cells` restricts it to prompts of those cells.

A set at another site (`NeuronSet.site`) is changed there, by the same kinds. `Directions` of the residual stream r with matrix V are
changed by their coordinates V r, after each of their layers; what is orthogonal to them stays as it is:

    zero         V r <- 0, so that r <- r - V^T V r
    mean, clamp  V r <- values                           value a number, [k], or [prompt, k]
    scale        V r <- alpha * V r                      value alpha
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import one_of, require
from ..core.directions import Directions
from ..core.equality import same
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import load_json, reading, save_json
from ..data.prompts import Cell, Prompt
from .model import Model
from .places import width_of
from .values import KINDS, KINDS_OF_DIRECTIONS, checked_value, subject_from_json, subject_to_json

__all__ = ["KINDS", "POSITIONS", "Intervention", "require_intervention"]

POSITIONS = ("last_prompt", "prompt", "image", "text", "response", "all")
FORMAT = "neuronshield.Intervention/1"


class Means(Protocol):
    """Means of a group of prompts, as `Stats.moments(label, cell)` gives them."""

    @property
    def mean(self) -> np.ndarray:
        """Mean activation of every neuron, [n_layers, d_mlp]."""


class Captured(Protocol):
    """What `capture` returns, as far as it is asked here (`Stats` is one)."""

    def moments(self, label: str, cell: Any) -> Means:
        """Moments of one label in one cell."""


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """Which neurons become what, at which tokens of which prompts.

    >>> Intervention(neurons, "scale", 0.5, positions="all", cells=["en/text"])
    Intervention(scale by 0.5, 3 neurons in 3 layers, positions='all', cells=['en/text'])
    >>> mean = Intervention(neurons, "mean", torch.arange(87.0).reshape(3, 29))
    >>> Intervention.from_json(mean.to_json()).value[1, 5].item()
    34.0

    Args:
        neurons: the set that is changed, at its site; or `Directions` of the residual stream.
        kind: "zero", "mean", "resample", "scale", "clamp" or "patch"; of directions, not "resample" or "patch".
        value: none for "zero"; a number for "scale"; a number or [n_layers, d_mlp] for "clamp"; otherwise
            [n_layers, d_mlp] or [prompt, n_layers, d_mlp] (float32, torch or numpy), as `Stats.moments(...).mean`
            and `record` give it; at the site "attention" d_model in place of d_mlp. Only the entries of `neurons` are read. Of k
            directions, a number, [k] or [prompt, k].
        positions: role of the tokens it touches.
        cells: cells of the prompts it touches; None for all.

    Raises:
        InputError: no neuron set or an empty one, an unknown kind, position or cell, or a value that is missing, not finite
            or of the wrong shape.
    """

    neurons: NeuronSet | Directions
    kind: Literal["zero", "mean", "resample", "scale", "clamp", "patch"]
    value: Any = None
    positions: Literal["last_prompt", "prompt", "image", "text", "response", "all"] = "last_prompt"
    cells: Sequence[Cell | str] | None = None

    def __post_init__(self) -> None:
        require(
            self.neurons, (NeuronSet, Directions), call="Intervention(neurons, kind)", name="neurons",
            hint="the neuron set comes first" if isinstance(self.kind, NeuronSet) else "NeuronSet(pairs) makes one",
        )  # fmt: skip
        if not len(self.neurons):
            raise InputError("an intervention on an empty neuron set does nothing; pass at least one neuron")
        known, of = (KINDS, "") if isinstance(self.neurons, NeuronSet) else (KINDS_OF_DIRECTIONS, " of directions")
        one_of(self.kind, known, call=f"Intervention{of}", name="kind")
        one_of(self.positions, POSITIONS, call="Intervention", name="positions")
        if (self.value is None) != (self.kind == "zero"):
            hint = "; Intervention.mean_of(neurons, stats, prompts) makes one from captured means"
            raise InputError(
                f"kind={self.kind!r} {'takes no' if self.kind == 'zero' else 'needs a'} value"
                f"{hint if self.kind == 'mean' else ''}"
            )
        if self.cells is not None:
            if not self.cells:
                raise InputError("cells=[] touches no prompt; pass cells, or None for all")
            given = [self.cells] if isinstance(self.cells, (str, Cell)) else self.cells
            object.__setattr__(self, "cells", tuple(Cell.of(c) for c in given))
        if self.value is not None:
            object.__setattr__(self, "value", checked_value(self.neurons, self.kind, self.value))

    @classmethod
    def mean_of(
        cls,
        neurons: NeuronSet,
        stats: Captured,
        prompts: Iterable[Prompt] | None = None,
        *,
        label: str = "benign",
        cell: Cell | str | None = None,
        positions: Literal["last_prompt", "prompt", "image", "text", "response", "all"] = "last_prompt",
        cells: Sequence[Cell | str] | None = None,
    ) -> Intervention:
        """The intervention that sets neurons to their captured mean: each prompt gets the mean of its own cell.

        >>> stats = ns.capture(model, prompts, progress=False)
        >>> ns.Intervention.mean_of(neurons, stats, prompts[:8]).value.shape
        torch.Size([8, 3, 29])
        >>> ns.Intervention.mean_of(neurons, stats, cell="en/text").value.shape
        torch.Size([3, 29])

        Args:
            neurons: the set that is changed.
            stats: what `capture` returned.
            prompts: the prompts that it will be applied to, in this order; not needed with `cell`.
            label: whose mean, "benign" or "harmful".
            cell: one cell, whose mean every prompt gets.
            positions: role of the tokens it touches.
            cells: cells of the prompts it touches; None for all.

        Raises:
            InputError: neither prompts nor a cell, means of another site, or nothing was captured for the label in a cell.
        """
        call = "Intervention.mean_of(neurons, stats, prompts)"
        require(neurons, NeuronSet, call=call, name="neurons")
        if not hasattr(stats, "moments"):
            raise InputError(f"{call}: stats must be what capture returns, got {type(stats).__name__}")
        if (site := getattr(stats, "site", "neuron")) != neurons.site:
            raise InputError(
                f"{call}: the set is at site {neurons.site!r}, the means are of site {site!r}; capture them there"
            )
        if cell is not None:
            value = np.asarray(stats.moments(label, Cell.of(cell)).mean)
        elif prompts is None:
            raise InputError(f"{call}: give the prompts it is for (each gets the mean of its cell), or cell=")
        else:
            if isinstance(prompts, (str, Cell)):
                raise InputError(f"{call}: prompts must be prompts, got {str(prompts)!r:.60}; for one cell pass cell=")
            rows = list(require(prompts, Iterable, call=call, name="prompts"))
            for row in rows:
                require(row, Prompt, call=call, name="every prompt", hint="pass a PromptSet or a list of prompts")
            if not rows:
                raise InputError(f"{call}: no prompts")
            means = {c: np.asarray(stats.moments(label, c).mean) for c in dict.fromkeys(p.cell for p in rows)}
            value = np.stack([means[p.cell] for p in rows])
        return cls(neurons, "mean", value, positions=positions, cells=cells)

    def check(self, model: Model, prompts: Sequence[Prompt]) -> None:
        """Raise unless its value and cells fit this model and these prompts.

        >>> Intervention(neurons, "clamp", 1.5).check(model, prompts)

        Args:
            model: the model it will be applied to.
            prompts: the prompts.

        Raises:
            InputError: a value of another shape, cells that no prompt is of, or a site that the model does not have.
        """
        call = "Intervention.check(model, prompts)"
        require(model, Model, call=call, name="model", hint="the model comes first")
        require(prompts, Sequence, call=call, name="prompts", hint="pass a PromptSet or a list of prompts")
        width = width_of(model, self.neurons.site)
        if self.value is not None and self.value.ndim:
            shape = tuple(self.value.shape)
            one = (len(self.neurons),) if isinstance(self.neurons, Directions) else (model.n_layers, width)
            if shape not in (one, (len(prompts), *one)):
                raise InputError(f"value has shape {shape}; expected {one} or {(len(prompts), *one)}")
        if self.cells is not None and not any(p.cell in self.cells for p in prompts):
            raise InputError(f"no prompt is of the cells it names ({', '.join(map(str, self.cells))})")

    def new(self, layer: int, members: list[int], rows: list[int]) -> Float[Tensor, "rows k"] | float:
        """What the members of one layer become on some prompts: [rows or 1, k] or a number (for "scale": their factor).

        >>> Intervention(neurons, "patch", torch.zeros(60, 3, 29)).new(1, [5], rows=[7, 9]).shape
        torch.Size([2, 1])

        Args:
            layer: the layer, from 0.
            members: indices of neurons of that layer, [k].
            rows: row numbers of the prompts.
        """
        if self.value is None:
            return 0.0
        if not self.value.ndim:
            return float(self.value)
        if isinstance(self.neurons, Directions):
            return self.value[rows] if self.by_prompt else self.value[None]
        return self.value[:, layer, members][rows] if self.by_prompt else self.value[layer, members][None]

    @property
    def by_prompt(self) -> bool:
        """Whether its value has a row for each prompt."""
        return self.value is not None and self.value.ndim == (2 if isinstance(self.neurons, Directions) else 3)

    def basis(self, device: torch.device) -> Float[Tensor, "k d_model"] | None:
        """The vectors of its directions; None of a neuron set.

        >>> Intervention(neurons, "zero").basis(torch.device("cpu")) is None
        True

        Args:
            device: where they go.
        """
        # a copy: what a product rounds to may depend on where numpy put the numbers
        return torch.tensor(self.neurons.vectors, device=device) if isinstance(self.neurons, Directions) else None

    # -- files ----------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """All of it as a JSON text; of the values, those of its neurons.

        >>> Intervention(neurons, "clamp", 1.5).to_json()
        '{"format": "neuronshield.Intervention/1", "kind": "clamp", ...}'

        Raises:
            InputError: per-neuron values and a set that does not know its model's shape.
        """
        value = self._member_values()
        about = {
            "format": FORMAT, "kind": self.kind, "positions": self.positions,
            "cells": None if self.cells is None else [str(c) for c in self.cells],
            **subject_to_json(self.neurons, by_neuron=value is not None and bool(value.ndim)),
            "value": None if value is None else value.tolist(),
        }  # fmt: skip
        return json.dumps(about, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Intervention:
        """The intervention that `to_json` wrote.

        >>> Intervention.from_json(Intervention(neurons, "zero").to_json())
        Intervention(zero, 3 neurons in 3 layers, positions='last_prompt')

        Args:
            text: JSON.

        Raises:
            InputError: not JSON, or not an intervention of this version.
        """
        try:
            about = json.loads(text)
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']!r}")
            neurons, value = subject_from_json(about), about["value"]
            if isinstance(value, list) and isinstance(neurons, NeuronSet):
                short = torch.tensor(value, dtype=torch.float32)
                value = torch.zeros(*short.shape[:-1], about["n_layers"], about["d_mlp"], dtype=torch.float32)
                layer, index = torch.tensor(list(neurons)).T
                value[..., layer, index] = short
            return Intervention(neurons, about["kind"], value, positions=about["positions"], cells=about["cells"])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not an intervention written by to_json ({error})") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the JSON file that it was written to; `load` reads it back.

        >>> Intervention.load(Intervention(neurons, "clamp", 1.5).save("clamp.json"))
        Intervention(clamp to 1.5, 3 neurons in 3 layers, positions='last_prompt')

        Args:
            path: the file; it is written beside and renamed.

        Raises:
            InputError: as `to_json`, or the file cannot be written.
        """
        return save_json(path, FORMAT, {k: v for k, v in json.loads(self.to_json()).items() if k != "format"})

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Intervention:
        """The intervention that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: no such file, damaged, or not an intervention.
        """
        with reading(path, FORMAT):
            return Intervention.from_json(json.dumps({"format": FORMAT, **load_json(path, FORMAT)}))

    def _member_values(self) -> Tensor | None:
        """The value, or of per-neuron values those of the members, the only ones that are used: [k] or [prompt, k]."""
        if self.value is None or not self.value.ndim or isinstance(self.neurons, Directions):
            return self.value
        layer, index = torch.tensor(list(self.neurons)).T
        return self.value[..., layer, index]

    def with_value(self, value: Tensor) -> Intervention:
        """The same intervention with another value of the same kind, which is not checked again.

        >>> Intervention(neurons, "clamp", 1.5).with_value(torch.tensor(2.5))
        Intervention(clamp to 2.5, 3 neurons in 3 layers, positions='last_prompt')

        Args:
            value: such as some rows of its own.
        """
        out = copy.copy(self)
        object.__setattr__(out, "value", value)
        return out

    @property
    def digest(self) -> str:
        """Hash of all that decides what it does: equal for equal interventions.

        >>> Intervention(neurons, "clamp", 1.5).digest == Intervention(neurons, "clamp", 2.5).digest
        False
        """
        told = hashlib.sha256(f"{self.kind} {self.positions} {self.cells and list(map(str, self.cells))} ".encode())
        if isinstance(self.neurons, Directions):
            told.update(
                f"{self.neurons.layers} {self.neurons.vectors.shape} ".encode() + self.neurons.vectors.tobytes()
            )
        else:
            told.update(b"" if self.neurons.site == "neuron" else self.neurons.site.encode())
            told.update(np.array(list(self.neurons), dtype=np.int64).tobytes())
        if (values := self._member_values()) is not None:
            value = values.numpy()
            told.update(f"{value.shape}".encode())
            told.update(np.ascontiguousarray(value).tobytes())
        return told.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervention):
            return False
        mine, its = ((i.neurons, i.kind, i.positions, i.cells, i._member_values()) for i in (self, other))
        return same(mine, its)

    def __hash__(self) -> int:
        return hash((self.neurons, self.kind, self.positions, self.cells))

    def __repr__(self) -> str:
        shown = ""
        if self.value is not None:
            what = f"{float(self.value):g}" if not self.value.ndim else f"[{', '.join(map(str, self.value.shape))}]"
            shown = f" {'by' if self.kind == 'scale' else 'to'} {what}"
        where = f", positions={self.positions!r}" + (f", cells={[str(c) for c in self.cells]}" if self.cells else "")
        return f"Intervention({self.kind}{shown}, {repr(self.neurons).partition('(')[2][:-1]}{where})"


def require_intervention(value: Any, call: str) -> None:
    """Raise unless a value is an `Intervention` or None.

    >>> require_intervention(None, "generate")

    Args:
        value: what was given.
        call: the function, for the message.

    Raises:
        InputError: something else.
    """
    hint = "wrap the neurons: Intervention(neurons, 'zero')"
    require(value, (Intervention, type(None)), call=f"{call}(..., intervention=)", name="intervention", hint=hint)
