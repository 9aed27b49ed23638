"""Directions of the residual stream: what a projection takes out, or sets.

The residual stream is what a decoder layer hands on to the next one, [d_model] numbers a token. `Directions` are k orthonormal vectors of
that space, meant at the output of one or more layers. With V their matrix [k, d_model], the **coordinates** of a residual stream r are V r, and
the projection that takes them out leaves r - V^T V r. `neuronshield.model.intervention.Intervention` applies this and other changes of the
coordinates.

Sources: Arditi et al. (2024), "Refusal in Language Models Is Mediated by a Single Direction", arXiv 2406.11717 (directional ablation).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .arguments import check_seed, require
from .errors import InputError
from .results import from_json, load_arrays, reading, save_arrays
from .spaces import NeuronSpace

__all__ = ["Directions"]

FORMAT = "neuronshield.Directions/1"
SAME = 1e-5  # of the entries of V V^T: vectors this close to orthonormal stay as they are
LEAST = 1e-6  # part of a vector that must be left after the vectors before it are taken out


@dataclass(frozen=True)
class _Header:
    """What a file of directions says beside its vectors."""

    layers: list[int]
    n_layers: int | None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Directions:
    """Orthonormal directions of the residual stream at the output of some layers.

    >>> directions = Directions(np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), layers=(1, 2), n_layers=3)
    >>> directions, directions.vectors.tolist()
    (Directions(2 of 3 dimensions, after layers 1, 2), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

    Args:
        vectors: one vector a row, [k, d_model], k at least 1. They are made orthonormal in their order (Gram-Schmidt), so that the first
            j always span what the first j that were given span; rows that are orthonormal already stay as they are. Kept as
            float32.
        layers: numbers of the layers after which they are meant, from 0; kept ascending.
        n_layers: layers of the model; None if it is not known.
        provenance: anything JSON can hold about where they came from; a "fingerprint" in it must be the model's.

    Raises:
        InputError: vectors that are no numbers, not finite, or depend on the ones before them; no layer, or one outside the model.
    """

    vectors: Any  # Float[np.ndarray, "k d_model"] once made
    layers: Sequence[int]
    n_layers: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    #: What `Intervention` asks of what it changes.
    site = "residual"

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", _orthonormal(self.vectors))
        object.__setattr__(self, "layers", _layers(self.layers, self.n_layers))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.vectors.shape[1])

    def by_layer(self) -> dict[int, list[int]]:
        """Numbers of the vectors, by layer: all of them at each.

        >>> Directions(np.eye(2, 5), layers=[1]).by_layer()
        {1: [0, 1]}
        """
        return {layer: list(range(len(self))) for layer in self.layers}

    def check_model(self, model: NeuronSpace) -> None:
        """Raise unless the directions can belong to this model.

        >>> Directions(np.eye(1, model.d_model), layers=[0]).check_model(model)

        Args:
            model: the model whose shape and weights are compared.

        Raises:
            InputError: another width, a layer the model has not, or provenance of other weights.
        """
        if (
            self.d_model != model.d_model
            or self.n_layers not in (None, model.n_layers)
            or self.layers[-1] >= model.n_layers
        ):
            known = "" if self.n_layers is None else f" of {self.n_layers} layers"
            raise InputError(
                f"the directions are of {self.d_model} dimensions{known}, after layers {', '.join(map(str, self.layers))}; {model.id!r} "
                f"has {model.d_model} dimensions and {model.n_layers} layers: find directions on this model"
            )
        weights = self.provenance.get("fingerprint")
        if weights is not None and weights != model.fingerprint:
            raise InputError(
                f"the directions were found in {self.provenance.get('model')!r} with other weights ({weights}, not "
                f"{model.fingerprint}): find directions on this model"
            )

    @staticmethod
    def random_like(directions: Directions, seed: int) -> Directions:
        """As many random directions after the same layers, uniform over all orthonormal sets: the control of an ablation.

        >>> Directions.random_like(Directions(np.eye(2, 5), layers=[1]), seed=0)
        Directions(2 of 5 dimensions, after layer 1)

        Args:
            directions: whose number, width and layers are copied.
            seed: of the draw.

        Raises:
            InputError: no directions, or a wrong seed.
        """
        call = "Directions.random_like(directions, seed)"
        require(directions, Directions, call=call, name="directions")
        check_seed(seed, call=call)
        drawn = np.random.default_rng(seed).standard_normal(directions.vectors.shape)
        about: dict[str, Any] = {k: v for k, v in directions.provenance.items() if k in ("model", "fingerprint")}
        about |= {"method": "random", "seed": seed}
        return Directions(drawn, directions.layers, n_layers=directions.n_layers, provenance=about)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that the directions were written to.

        >>> directions = Directions(np.eye(2, 5), layers=[1])
        >>> Directions.load(directions.save("directions.safetensors")) == directions
        True

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        """
        header = _Header(list(self.layers), self.n_layers, self.provenance)
        return save_arrays(path, FORMAT, arrays={"vectors": self.vectors}, about=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Directions:
        """The directions that `save` wrote.

        >>> Directions.load(Directions(np.eye(2, 5), layers=[1]).save("directions.safetensors"))
        Directions(2 of 5 dimensions, after layer 1)

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not written by `Directions.save`.
        """
        arrays, about = load_arrays(path, FORMAT)
        with reading(path, FORMAT):
            return Directions(arrays["vectors"], **vars(from_json(_Header, about)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Directions):
            return False
        return self.layers == other.layers and np.array_equal(self.vectors, other.vectors)

    def __hash__(self) -> int:
        return hash((self.layers, self.vectors.tobytes()))

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.layers)) if len(self.layers) <= 8 else f"{self.layers[0]} to {self.layers[-1]}"
        return (
            f"Directions({len(self)} of {self.d_model} dimensions, after layer{'s' * (len(self.layers) > 1)} {where})"
        )


def _orthonormal(given: Any) -> Float[np.ndarray, "k d_model"]:
    """The rows made orthonormal in their order, float32."""
    call = "Directions(vectors, layers)"
    try:
        rows = np.asarray(given)
        kept, rows = rows.astype(np.float32, order="C"), rows.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{call}: vectors must be numbers [k, d_model], got {type(given).__name__}") from None
    if rows.ndim != 2 or not 1 <= len(rows) <= rows.shape[1]:
        raise InputError(f"{call}: vectors have shape {rows.shape}; give [k, d_model], k from 1 to d_model")
    if not np.isfinite(rows).all():
        raise InputError(f"{call}: vectors are not finite everywhere")
    if np.abs(rows @ rows.T - np.eye(len(rows))).max() <= SAME:
        return kept
    q, r = np.linalg.qr(rows.T)
    left, size = np.abs(np.diag(r)), np.linalg.norm(rows, axis=1)
    if (wrong := np.flatnonzero(left <= LEAST * size)).size:
        what = "is zero" if not size[wrong[0]] else "lies in the span of the vectors before it"
        raise InputError(f"{call}: vector {wrong[0]} {what}; give independent vectors")
    return (q * np.sign(np.diag(r)) + 0.0).T.astype(np.float32, order="C")  # no -0


def _layers(given: Any, n_layers: int | None) -> tuple[int, ...]:
    """Layer numbers ascending, each once."""
    call = "Directions(vectors, layers)"
    try:
        layers = tuple(sorted({operator.index(layer) for layer in given}))
    except TypeError:
        raise InputError(f"{call}: layers={given!r:.60}; give layer numbers, as in layers=[1, 2]") from None
    if not layers or layers[0] < 0 or (n_layers is not None and layers[-1] >= n_layers):
        most = "" if n_layers is None else f" to {n_layers - 1}"
        raise InputError(f"{call}: layers={list(layers)}; give at least one layer, numbered from 0{most}")
    return layers
