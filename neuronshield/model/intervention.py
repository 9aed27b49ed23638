"""Interventions as data: which neurons, what they become, where, for which prompts.

An `Intervention` travels as JSON (an nnsight edit cannot be saved); `intervene` applies it. Its `kind` says what becomes
of a neuron's value h_i:

    zero       h_i <- 0
    mean       h_i <- its mean over other prompts        value [n_layers, d_mlp], or one row a prompt
    resample   h_i <- what it was on another prompt      value [prompt, n_layers, d_mlp]
    patch      h_i <- what it was in a donor run         value [prompt, n_layers, d_mlp]
    clamp      h_i <- a constant                         value a number, or [n_layers, d_mlp]
    scale      h_i <- alpha * h_i                        value alpha

`positions` names tokens by their role: "last_prompt", "prompt", "image", "text", "response" (every generated token that
is read again) or "all" (prompt and response). `cells` restricts it to prompts of those cells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell, Prompt
from .model import Model

__all__ = ["KINDS", "POSITIONS", "Intervention"]


KINDS = ("zero", "mean", "resample", "scale", "clamp", "patch")


POSITIONS = ("last_prompt", "prompt", "image", "text", "response", "all")


FORMAT = "neuronshield.Intervention/1"


@dataclass(frozen=True, eq=False)
class Intervention:
    """Which neurons, what, where.

    >>> import torch
    >>> neurons = NeuronSet([(0, 3), (1, 5)], n_layers=2, d_mlp=8)
    >>> half = Intervention(neurons, "scale", 0.5, positions="all", cells=["en/text"])
    >>> mean = Intervention(neurons, "mean", torch.arange(16.0).reshape(2, 8))
    >>> Intervention.from_json(mean.to_json()).value[1, 5].item()
    13.0

    Args:
        neurons: the set that is changed.
        kind: "zero", "mean", "resample", "scale", "clamp" or "patch".
        value: none for "zero"; a number for "scale"; a number or [n_layers, d_mlp] for "clamp"; otherwise
            [n_layers, d_mlp] or [prompt, n_layers, d_mlp] (float32, torch or numpy), as `Stats.moments(...).mean`
            and `record` give it. Only the entries of `neurons` are read.
        positions: role of the tokens it touches.
        cells: cells of the prompts it touches; None for all.

    Raises:
        InputError: an empty set, an unknown kind, position or cell, or a value that is missing, not finite or of
            the wrong shape.
    """

    neurons: NeuronSet
    kind: Literal["zero", "mean", "resample", "scale", "clamp", "patch"]
    value: Any = None
    positions: Literal["last_prompt", "prompt", "image", "text", "response", "all"] = "last_prompt"
    cells: Sequence[Cell | str] | None = None

    def __post_init__(self) -> None:
        if not len(self.neurons):
            raise InputError("an intervention on an empty neuron set does nothing; pass at least one neuron")
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        if self.positions not in POSITIONS:
            raise InputError(f"positions={self.positions!r} is unknown; use one of {', '.join(POSITIONS)}")
        if (self.value is None) != (self.kind == "zero"):
            raise InputError(f"kind={self.kind!r} {'takes no' if self.kind == 'zero' else 'needs a'} value")
        if self.cells is not None:
            if not self.cells:
                raise InputError("cells=[] touches no prompt; pass cells, or None for all")
            object.__setattr__(self, "cells", tuple(Cell.of(c) for c in self.cells))
        if self.value is None:
            return
        value = torch.as_tensor(self.value, dtype=torch.float32).detach().cpu()
        wanted = {"scale": (0,), "clamp": (0, 2)}.get(self.kind, (2, 3))
        if value.ndim not in wanted:
            what = {0: "a number", 2: "[n_layers, d_mlp]", 3: "[prompt, n_layers, d_mlp]"}
            raise InputError(
                f"kind={self.kind!r}: value has shape {tuple(value.shape)}; expected {' or '.join(what[n] for n in wanted)}"
            )
        if not torch.isfinite(value).all():
            raise InputError(f"kind={self.kind!r}: value is not finite everywhere")
        object.__setattr__(self, "value", value)

    def check(self, model: Model, prompts: Sequence[Prompt]) -> None:
        """Raise unless its value and cells fit this model and these prompts."""
        if self.value is not None and self.value.ndim:
            shape, neurons = tuple(self.value.shape), (model.n_layers, model.d_mlp)
            if shape not in (neurons, (len(prompts), *neurons)):
                raise InputError(f"value has shape {shape}; expected {neurons} or {(len(prompts), *neurons)}")
        if self.cells is not None and not any(p.cell in self.cells for p in prompts):
            raise InputError(f"no prompt is of the cells it names ({', '.join(map(str, self.cells))})")

    def new(self, layer: int, members: list[int], rows: list[int]) -> Float[Tensor, "rows k"] | float:
        """What the members of one layer become on the prompts in `rows` (for "scale": their factor)."""
        if self.value is None:
            return 0.0
        if not self.value.ndim:
            return float(self.value)
        if self.value.ndim == 2:
            return self.value[layer, members][None]
        return self.value[:, layer, members][rows]

    # -- files ----------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """All of it as JSON; of the values, those of its neurons.

        Raises:
            InputError: per-neuron values and a set that does not know its model's shape.
        """
        value = self.value
        if value is not None and value.ndim:
            if self.neurons.d_mlp is None or self.neurons.n_layers is None:
                raise InputError("to_json: the neuron set does not know its shape; give it n_layers= and d_mlp=")
            layer, index = torch.tensor(list(self.neurons)).T
            value = value[..., layer, index]
        about = {
            "format": FORMAT, "kind": self.kind, "positions": self.positions,
            "cells": None if self.cells is None else [str(c) for c in self.cells],
            "n_layers": self.neurons.n_layers, "d_mlp": self.neurons.d_mlp, "provenance": self.neurons.provenance,
            "neurons": [list(pair) for pair in self.neurons], "value": None if value is None else value.tolist(),
        }  # fmt: skip
        return json.dumps(about, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Intervention:
        """Read what `to_json` wrote.

        Raises:
            InputError: not JSON, or not an intervention of this version.
        """
        try:
            about = json.loads(text)
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']!r}")
            neurons = NeuronSet(
                about["neurons"], n_layers=about["n_layers"], d_mlp=about["d_mlp"], provenance=about["provenance"]
            )
            value = about["value"]
            if isinstance(value, list):
                short = torch.tensor(value)
                value = torch.zeros(*short.shape[:-1], about["n_layers"], about["d_mlp"])
                layer, index = torch.tensor(list(neurons)).T
                value[..., layer, index] = short
            return Intervention(neurons, about["kind"], value, about["positions"], about["cells"])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not an intervention written by to_json ({error})") from None
