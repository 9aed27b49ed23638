"""Sets of neurons: what every step passes to the next.

A **neuron** (layer l, index i) is coordinate i of the input of layer l's MLP down-projection:
`act(W_gate x) * (W_up x)` in a gated MLP, `act(W_up x)` in a plain one. TransformerLens calls the same
number `blocks.{l}.mlp.hook_post`. Papers differ silently (some rank the gate's sign, some rows of
weights), so a set carries, beside its members, where it came from: model, revision, data hash, method,
the neuron value, seed and versions.

A set is immutable; `|`, `&`, `-` and `^` work as on Python sets and record both parents.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from .errors import InputError
from .files import replacing

__all__ = ["NEURON_VALUE", "NeuronSet"]


NEURON_VALUE = "input of the MLP down-projection, act(W_gate x) * (W_up x) (TransformerLens hook_post)"


class NeuronSpace(Protocol):
    """What a neuron set asks of a model: its shape, its size, and which weights it has (`Model` is one)."""

    @property
    def id(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def params_per_neuron(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


class NeuronSet:
    """An immutable set of (layer, index) pairs with its provenance.

    >>> a = NeuronSet([(0, 3), (1, 5)], n_layers=2, d_mlp=8)
    >>> b = NeuronSet([(1, 5), (1, 6)], n_layers=2, d_mlp=8)
    >>> list(a & b), len(a | b), (0, 3) in a - b
    ([(1, 5)], 3, True)

    Args:
        pairs: (layer, index) pairs; layers count from 0, duplicates collapse.
        n_layers, d_mlp: shape of the model the neurons belong to. When given, members are checked
            against it, and so are the two sides of `|`, `&`, `-`, `^`.
        provenance: anything JSON can hold about where the set came from.

    Raises:
        InputError: a pair outside the shape, or two sets of different shapes combined.
    """

    __slots__ = ("_members", "d_mlp", "n_layers", "provenance")

    def __init__(
        self,
        pairs: Iterable[tuple[int, int]] = (),
        *,
        n_layers: int | None = None,
        d_mlp: int | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        members = frozenset((int(layer), int(index)) for layer, index in pairs)
        for layer, index in members:
            if layer < 0 or index < 0 or layer >= (n_layers or layer + 1) or index >= (d_mlp or index + 1):
                raise InputError(
                    f"neuron ({layer}, {index}) lies outside {n_layers} layers x {d_mlp} neurons; "
                    "was the set made for another model?"
                )
        self._members = members
        self.n_layers = n_layers
        self.d_mlp = d_mlp
        self.provenance: dict[str, Any] = dict(provenance or {})

    # -- a set of pairs -------------------------------------------------------------------------------
    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, pair: object) -> bool:
        return pair in self._members

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeuronSet) and self._members == other._members

    def __hash__(self) -> int:
        return hash(self._members)

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, frozenset.union, "|")

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, frozenset.intersection, "&")

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, frozenset.difference, "-")

    def __xor__(self, other: NeuronSet) -> NeuronSet:
        return self._combine(other, frozenset.symmetric_difference, "^")

    def _combine(self, other: NeuronSet, operator: Callable[..., frozenset[tuple[int, int]]], op: str) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            raise TypeError(f"cannot combine a NeuronSet with {type(other).__name__}")
        shapes = {(s.n_layers, s.d_mlp) for s in (self, other) if s.d_mlp is not None}
        if len(shapes) > 1:
            raise InputError(f"cannot combine neuron sets of models with different shapes: {sorted(shapes)}")
        n_layers, d_mlp = shapes.pop() if shapes else (None, None)
        about = _merge_provenance([self.provenance, other.provenance], op)
        proven = ["verified_on" in s.provenance for s in (self, other)]
        if not {"&": any(proven), "-": proven[0]}.get(op, all(proven)):  # a member of neither proven set is not proven
            for key in ("verified_on", "verify_seed", "draws", "proof"):
                about.pop(key, None)
        return NeuronSet(operator(self._members, other._members), n_layers=n_layers, d_mlp=d_mlp, provenance=about)

    @staticmethod
    def intersection(*sets: NeuronSet) -> NeuronSet:
        """Neurons that are in every one of `sets`.

        >>> NeuronSet.intersection(NeuronSet([(0, 1), (0, 2)]), NeuronSet([(0, 2)]))
        NeuronSet(1 neuron in 1 layer)
        """
        if not sets:
            raise InputError("intersection of no sets: pass at least one NeuronSet")
        out = sets[0]
        for other in sets[1:]:
            out = out & other
        return out

    @staticmethod
    def union(*sets: NeuronSet) -> NeuronSet:
        """Neurons that are in at least one of `sets`."""
        if not sets:
            raise InputError("union of no sets: pass at least one NeuronSet")
        out = sets[0]
        for other in sets[1:]:
            out = out | other
        return out

    # -- views ----------------------------------------------------------------------------------------
    def by_layer(self) -> dict[int, list[int]]:
        """Members as {layer: sorted indices}, layers ascending.

        >>> NeuronSet([(1, 5), (0, 3), (1, 2)]).by_layer()
        {0: [3], 1: [2, 5]}
        """
        out: dict[int, list[int]] = defaultdict(list)
        for layer, index in self:
            out[layer].append(index)
        return dict(out)

    def per_layer(self) -> dict[int, int]:
        """How many members each layer has: what a fair random control must copy."""
        return {layer: len(indices) for layer, indices in self.by_layer().items()}

    def param_fraction(self, model: NeuronSpace) -> float:
        """Weights owned by these neurons (their gate row, up row, down column) / all parameters.

        This is what `masked_update` trains: for a gated MLP without biases 3 * d_model a neuron.
        """
        return len(self) * model.params_per_neuron / model.n_params

    def check_model(self, model: NeuronSpace) -> None:
        """Raise unless the set can be of this model.

        Raises:
            InputError: another shape, a neuron the model has not, or provenance of other weights.
        """
        shape, other = (model.n_layers, model.d_mlp), (self.n_layers, self.d_mlp)
        if None not in other and other != shape:
            raise InputError(
                f"the neuron set is of a model of {other[0]} layers x {other[1]} neurons; {model.id!r} has "
                f"{shape[0]} x {shape[1]}: select neurons on this model"
            )
        for layer, index in self:
            if layer >= model.n_layers or index >= model.d_mlp:
                raise InputError(
                    f"neuron ({layer}, {index}) does not exist in {model.id!r} "
                    f"({model.n_layers} layers x {model.d_mlp}); was the set made for another model?"
                )
        weights = self.provenance.get("fingerprint")
        if weights is not None and weights != model.fingerprint:
            raise InputError(
                f"the neuron set was found in {self.provenance.get('model')!r} with other weights ({weights}, not "
                f"{model.fingerprint}): select neurons on this model (or carry the members over: NeuronSet(list(neurons)))"
            )

    def to_transformer_lens(self, *, value: float = 0.0) -> list[tuple[str, Callable[..., Any]]]:
        """Hooks that set these neurons to `value` at every position, as TransformerLens takes them.

        >>> bridge.run_with_hooks(ids, fwd_hooks=neurons.to_transformer_lens())        # doctest: +SKIP
        >>> [name for name, _ in NeuronSet([(0, 3), (4, 1)]).to_transformer_lens()]
        ['blocks.0.mlp.hook_post', 'blocks.4.mlp.hook_post']
        """

        def hook_of(members: list[int]) -> Callable[..., Any]:
            def ablate(activation: Any, hook: Any) -> Any:
                activation = activation.clone()
                activation[..., members] = value
                return activation

            return ablate

        return [(f"blocks.{layer}.mlp.hook_post", hook_of(members)) for layer, members in self.by_layer().items()]

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron, columns `layer` and `index`."""
        import pandas as pd

        return pd.DataFrame(list(self), columns=["layer", "index"])

    def __repr__(self) -> str:
        n, layers = len(self), len(self.per_layer())
        return f"NeuronSet({n} neuron{'' if n == 1 else 's'} in {layers} layer{'' if layers == 1 else 's'})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{layer}</td><td>{len(indices)}</td><td>{', '.join(map(str, indices[:24]))}"
            f"{' …' if len(indices) > 24 else ''}</td></tr>"
            for layer, indices in self.by_layer().items()
        )
        about = escape(str(self.provenance.get("method", "")))
        return (
            f"<p><b>{escape(repr(self))}</b> {about}</p><table><thead><tr><th>layer</th><th>neurons</th>"
            f"<th>index</th></tr></thead><tbody>{rows}</tbody></table>"
        )

    # -- files ----------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set and its provenance as one safetensors file (beside first, then renamed)."""
        from safetensors.numpy import save_file

        pairs = np.array(list(self), dtype=np.int32).reshape(-1, 2)
        tensors = {"layer": np.ascontiguousarray(pairs[:, 0]), "index": np.ascontiguousarray(pairs[:, 1])}
        about = {
            "format": "neuronshield.NeuronSet/1",
            "n_layers": self.n_layers,
            "d_mlp": self.d_mlp,
            "provenance": self.provenance,
        }
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={"neuronshield": json.dumps(about)})
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> NeuronSet:
        """Read a set that `save` wrote.

        Raises:
            InputError: no such file, or not a neuron set.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})["neuronshield"])
                pairs = zip(file.get_tensor("layer"), file.get_tensor("index"), strict=True)
                return NeuronSet(
                    pairs,
                    n_layers=about["n_layers"],
                    d_mlp=about["d_mlp"],
                    provenance=about["provenance"],
                )
        except FileNotFoundError:
            raise InputError(f"{path}: no such neuron set") from None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: not a neuron set written by NeuronSet.save ({error})") from None


def _merge_provenance(parents: list[dict[str, Any]], op: str) -> dict[str, Any]:
    """What both parents agree on stays; what they disagree on is listed; the prompts seen add up."""
    known = [p for p in parents if p]
    if not known:
        return {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for parent in known for key in parent):
        values: list[Any] = []
        for parent in known:
            if key in parent and parent[key] not in values:
                values.append(parent[key])
        if key == "seen":
            merged[key] = sorted({item for value in values for item in value})
        elif key == "operation":
            continue
        else:
            merged[key] = values[0] if len(values) == 1 else sorted(map(str, values))
    merged["operation"] = op
    return merged
