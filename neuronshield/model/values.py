"""What an intervention sets: the kinds of intervention, which values each takes, and the set or directions as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.directions import Directions
from ..core.errors import InputError
from ..core.neurons import NeuronSet

__all__ = ["KINDS", "KINDS_OF_DIRECTIONS", "checked_value", "subject_from_json", "subject_to_json"]

KINDS = ("zero", "mean", "resample", "scale", "clamp", "patch")
NDIMS = {"scale": (0,), "clamp": (0, 2)}  # axes a value may have; the other kinds have 2 or 3
SHAPES = {0: "a number", 2: "[n_layers, d_mlp]", 3: "[prompt, n_layers, d_mlp]"}
#: The same of directions.
NDIMS_OF_DIRECTIONS = {"zero": (), "scale": (0,), "clamp": (0, 1, 2), "mean": (0, 1, 2)}
KINDS_OF_DIRECTIONS = tuple(NDIMS_OF_DIRECTIONS)
SHAPES_OF_DIRECTIONS = {0: "a number", 1: "[k]", 2: "[prompt, k]"}


def checked_value(subject: NeuronSet | Directions, kind: str, value: Any) -> Tensor:
    """The value of an intervention as float32 on the CPU.

    >>> checked_value(neurons, "clamp", 1.5)
    tensor(1.5000)

    Args:
        subject: what is changed.
        kind: one of `KINDS`, not "zero".
        value: as for `Intervention`.

    Raises:
        InputError: no numbers, of another shape, or not finite.
    """
    of_directions = isinstance(subject, Directions)
    wanted = NDIMS_OF_DIRECTIONS[kind] if of_directions else NDIMS.get(kind, (2, 3))
    shapes = SHAPES_OF_DIRECTIONS if of_directions else SHAPES
    if np.iscomplexobj(value) or (isinstance(value, Tensor) and value.is_complex()):
        raise InputError(f"kind={kind!r}: value is complex; expected real numbers")
    try:
        out = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"kind={kind!r}: value is a {type(value).__name__}; expected {' or '.join(shapes[n] for n in wanted)}"
        ) from None
    if out.ndim not in wanted:
        raise InputError(
            f"kind={kind!r}: value has shape {tuple(out.shape)}; expected {' or '.join(shapes[n] for n in wanted)}"
        )
    if isinstance(subject, Directions):
        if out.ndim and out.shape[-1] != len(subject):
            raise InputError(
                f"kind={kind!r}: value has shape {tuple(out.shape)}; its last axis must be the {len(subject)} directions"
            )
    else:
        shape = (subject.n_layers, subject.d_mlp)
        if out.ndim and any(n not in (None, m) for n, m in zip(shape, out.shape[-2:], strict=True)):
            raise InputError(
                f"kind={kind!r}: value has shape {tuple(out.shape)}; its last two axes must be the {shape[0]} layers "
                f"and {shape[1]} neurons of the model that the neuron set is of"
            )
    if not torch.isfinite(out).all():
        raise InputError(f"kind={kind!r}: value is not finite everywhere")
    return out


def subject_to_json(neurons: NeuronSet | Directions, *, by_neuron: bool) -> dict[str, Any]:
    """What is changed, as JSON can hold it.

    >>> subject_to_json(neurons, by_neuron=False)["neurons"]
    [[0, 3], [1, 5], [2, 7]]

    Args:
        neurons: the set, or directions.
        by_neuron: the intervention has a value for each neuron, which only a set that knows its shape can place.

    Raises:
        InputError: a value for each neuron, and a set that does not know its shape.
    """
    if isinstance(neurons, Directions):
        about = {"directions": neurons.vectors.tolist(), "layers": list(neurons.layers), "n_layers": neurons.n_layers}
        return {**about, "provenance": neurons.provenance}
    if by_neuron and None in (neurons.d_mlp, neurons.n_layers):
        raise InputError("to_json: the neuron set does not know its shape; give it n_layers= and d_mlp=")
    site = {} if neurons.site == "neuron" else {"site": neurons.site}
    shape = {"n_layers": neurons.n_layers, "d_mlp": neurons.d_mlp}
    return {**site, **shape, "provenance": neurons.provenance, "neurons": [list(pair) for pair in neurons]}


def subject_from_json(about: dict[str, Any]) -> NeuronSet | Directions:
    """What `subject_to_json` described.

    >>> subject_from_json(subject_to_json(neurons, by_neuron=False)) == neurons
    True

    Args:
        about: its fields, among others.
    """
    shape = {"n_layers": about["n_layers"], "provenance": about["provenance"]}
    if "directions" in about:
        return Directions(np.array(about["directions"], dtype=np.float32), about["layers"], **shape)
    return NeuronSet(about["neurons"], d_mlp=about["d_mlp"], site=about.get("site", "neuron"), **shape)
