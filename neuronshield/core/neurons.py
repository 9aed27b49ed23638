"""Sets of neurons: what every step passes to the next.

A **neuron** (layer l, index i) is coordinate i of the input of layer l's MLP down-projection:
`act(W_gate x) * (W_up x)` in a gated MLP, `act(W_up x)` in a plain one. TransformerLens calls the same number
`blocks.{l}.mlp.hook_post`. Papers differ in what they call a neuron (some rank the sign of the gate, some rows of weights).
A set therefore carries its provenance beside its members: model, revision, data hash, method, neuron value, seed, versions.

A set is immutable. `|`, `&`, `-` and `^` work as on Python sets and record both parents. `provenance["selection"]`, where it is
known, says how the set was selected, so that the selection can be run again (`find.reselection`): {"rule": ..., "cell": ...}, or
{"op": "&", "of": [...]} for a combination.

A set may also name numbers at another site of the layer (`neuronshield.core.sites`): (l, i) is then number i of layer l there.
"""

from __future__ import annotations

import functools
import operator
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .arguments import one_of
from .cards import CARD, set_card
from .display import short_table
from .errors import InputError
from .files import write_text
from .provenance import combined_provenance
from .repositories import Commit, committed, downloaded
from .results import from_json, load_arrays, reading, save_arrays
from .sites import VALUES, said_if_other
from .spaces import NeuronSpace, all_of, hook
from .spaces import pairs as checked_pairs

__all__ = ["NeuronSet"]

FORMAT = "neuronshield.NeuronSet/2"
FILE = "neurons.safetensors"


@dataclass(frozen=True)
class _Header:
    """What a file of neurons says beside its members."""

    n_layers: int | None
    d_mlp: int | None
    provenance: dict[str, Any] = field(default_factory=dict)
    site: str = said_if_other()


class NeuronSet:
    """An immutable set of (layer, index) pairs with its provenance.

    >>> a = NeuronSet([(0, 3), (1, 5)], n_layers=2, d_mlp=8)
    >>> b = NeuronSet([(1, 5), (1, 6)], n_layers=2, d_mlp=8)
    >>> list(a & b), len(a | b), (0, 3) in a - b
    ([(1, 5)], 3, True)

    In a mixture of experts of w neurons each, `divmod(index, w)` is the expert and its neuron (`neuronshield.model.experts`).

    Args:
        pairs: (layer, index) pairs of whole numbers; both count from 0, duplicates collapse.
        n_layers: layers of the model the neurons belong to; None if it is not known.
        d_mlp: neurons a layer of that model; d_model at the site "attention". When the shape is given, members are checked
            against it, and so are the two sides of `|`, `&`, `-`, `^`.
        provenance: anything JSON can hold about where the set came from.
        site: "neuron", "gate", "up" or "attention" (see `neuronshield.core.sites`); None for that of `pairs`, which is "neuron"
            unless they are a set of another.

    Raises:
        InputError: something that is not pairs, a pair outside the shape, an unknown site, or two sets of different shapes or
            sites combined.
    """

    __slots__ = ("_members", "d_mlp", "n_layers", "provenance", "site")

    def __init__(
        self,
        pairs: Iterable[tuple[int, int]] = (),
        *,
        n_layers: int | None = None,
        d_mlp: int | None = None,
        provenance: dict[str, Any] | None = None,
        site: str | None = None,
    ) -> None:
        for name, size in (("n_layers", n_layers), ("d_mlp", d_mlp)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise InputError(
                    f"NeuronSet({name}={size!r:.20}): must be a whole number from 1, or None if it is not known"
                )
        members = frozenset(checked_pairs(pairs))
        for layer, index in members:
            if min(layer, index) < 0 and None in (n_layers, d_mlp):
                raise InputError(f"neuron ({layer}, {index}): layers and indices are whole numbers that count from 0")
            if layer < 0 or index < 0 or layer >= (n_layers or layer + 1) or index >= (d_mlp or index + 1):
                raise InputError(
                    f"neuron ({layer}, {index}) lies outside {n_layers} layers x {d_mlp} neurons; "
                    "was the set made for another model?"
                )
        self._members = members
        self.n_layers = n_layers
        self.d_mlp = d_mlp
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.site = getattr(pairs, "site", "neuron") if site is None else site
        one_of(self.site, VALUES, call="NeuronSet", name="site")

    # -- a set of pairs -------------------------------------------------------------------------------
    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, pair: object) -> bool:
        return pair in self._members

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeuronSet) and (self._members, self.site) == (other._members, other.site)

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
            raise InputError(
                f"neurons {op} ...: cannot combine a NeuronSet with {type(other).__name__}; wrap its pairs in NeuronSet(...)"
            )
        shapes = {(s.n_layers, s.d_mlp) for s in (self, other) if s.d_mlp is not None}
        if len(shapes) > 1:
            raise InputError(f"cannot combine neuron sets of models with different shapes: {sorted(shapes)}")
        if self.site != other.site:
            raise InputError(f"neurons {op} ...: cannot combine a set at site {self.site!r} with one at {other.site!r}")
        n_layers, d_mlp = shapes.pop() if shapes else (None, None)
        about = combined_provenance(self.provenance, other.provenance, op=op)
        members = operator(self._members, other._members)
        return NeuronSet(members, n_layers=n_layers, d_mlp=d_mlp, provenance=about, site=self.site)

    @staticmethod
    def intersection(*sets: NeuronSet | Mapping[Any, NeuronSet]) -> NeuronSet:
        """Neurons that are in every one of `sets`.

        >>> NeuronSet.intersection(NeuronSet([(0, 1), (0, 2)]), NeuronSet([(0, 2)]))
        NeuronSet(1 neuron in 1 layer)

        Args:
            *sets: neuron sets, or one mapping of them, such as what `Scores.top` returns.

        Raises:
            InputError: no set, or something that is not a NeuronSet.
        """
        return functools.reduce(operator.and_, all_of(sets, NeuronSet, call="NeuronSet.intersection"))

    @staticmethod
    def union(*sets: NeuronSet | Mapping[Any, NeuronSet]) -> NeuronSet:
        """Neurons that are in at least one of `sets`.

        >>> NeuronSet.union({"a": NeuronSet([(0, 1), (0, 2)]), "b": NeuronSet([(0, 2)])})
        NeuronSet(2 neurons in 1 layer)

        Args:
            *sets: neuron sets, or one mapping of them.

        Raises:
            InputError: no set, or something that is not a NeuronSet.
        """
        return functools.reduce(operator.or_, all_of(sets, NeuronSet, call="NeuronSet.union"))

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
        """Members in each layer as {layer: count}; a random control copies these counts.

        >>> NeuronSet([(1, 5), (0, 3), (1, 2)]).per_layer()
        {0: 1, 1: 2}
        """
        return {layer: len(indices) for layer, indices in self.by_layer().items()}

    def param_fraction(self, model: NeuronSpace) -> float:
        """Weights owned by these neurons (gate row, up row, down column) over all parameters of the model, 0 to 1.

        `masked_update` trains these weights: 3 * d_model a neuron in a gated MLP. Biases are not among them.

        >>> round(neurons.param_fraction(model), 4)
        0.0154

        Args:
            model: the model the neurons belong to.

        Raises:
            InputError: not a model, or a set of another site than "neuron".
        """
        self.needs_neurons("param_fraction(model)")
        if not hasattr(model, "params_per_neuron"):
            raise InputError(
                f"param_fraction(model): model must be a model, got {type(model).__name__}; load one with ns.load"
            )
        return len(self) * model.params_per_neuron / model.n_params

    def needs_neurons(self, call: str) -> None:
        """Raise unless the set is at the site "neuron".

        >>> neurons.needs_neurons("masked_update")

        Args:
            call: what needs them, for the message.

        Raises:
            InputError: it is at another site.
        """
        if self.site != "neuron":
            what = f"{self.site!r} ({VALUES[self.site]})"
            raise InputError(f"{call}: the set is at site {what}; this needs neurons, the numbers at site 'neuron'")

    def check_model(self, model: NeuronSpace, *, any_site: bool = False) -> None:
        """Raise unless the set can belong to this model.

        >>> neurons.check_model(model)

        Args:
            model: the model whose shape and weights are compared.
            any_site: take sets of other sites than "neuron" too.

        Raises:
            InputError: another shape, a neuron the model has not, provenance of other weights, or another site.
        """
        if not any_site:
            self.needs_neurons(f"neurons of {model.id!r}")
        width = model.d_model if self.site == "attention" else model.d_mlp
        shape, other = (model.n_layers, width), (self.n_layers, self.d_mlp)
        if None not in other and other != shape:
            raise InputError(
                f"the neuron set is of a model of {other[0]} layers x {other[1]} neurons; {model.id!r} has "
                f"{shape[0]} x {shape[1]}: select neurons on this model"
            )
        for layer, index in self:
            if layer >= model.n_layers or index >= width:
                raise InputError(
                    f"neuron ({layer}, {index}) does not exist in {model.id!r} "
                    f"({model.n_layers} layers x {width}); was the set made for another model?"
                )
        weights = self.provenance.get("fingerprint")
        if weights is not None and weights != model.fingerprint:
            raise InputError(
                f"the neuron set was found in {self.provenance.get('model')!r} with other weights ({weights}, not "
                f"{model.fingerprint}): select neurons on this model (or carry the members over: NeuronSet(list(neurons)))"
            )

    def to_transformer_lens(self, *, value: float = 0.0) -> list[tuple[str, Callable[..., Any]]]:
        """Hooks that set these neurons to `value` at every position, for TransformerLens' `run_with_hooks(fwd_hooks=...)`.

        It has no hook at the neurons of a mixture of experts.

        >>> [name for name, _ in NeuronSet([(0, 3), (4, 1)]).to_transformer_lens()]
        ['blocks.0.mlp.hook_post', 'blocks.4.mlp.hook_post']

        Args:
            value: the activation to set, in the units of the model's activations.

        Raises:
            InputError: an empty set, or a set of another site than "neuron".
        """
        self.needs_neurons("to_transformer_lens")
        if not self:
            raise InputError("to_transformer_lens: hooks on an empty neuron set do nothing; pass at least one neuron")
        return [(f"blocks.{layer}.mlp.hook_post", hook(members, value)) for layer, members in self.by_layer().items()]

    def to_frame(self) -> pd.DataFrame:
        """One row a neuron, columns `layer` and `index`.

        >>> neurons.to_frame().shape
        (3, 2)
        """
        return pd.DataFrame(list(self), columns=["layer", "index"])

    def __repr__(self) -> str:
        n, layers = len(self), len(self.per_layer())
        site = "" if self.site == "neuron" else f", site={self.site!r}"
        return f"NeuronSet({n} neuron{'' if n == 1 else 's'} in {layers} layer{'' if layers == 1 else 's'}{site})"

    def _repr_html_(self) -> str:
        shown = {
            layer: ", ".join(map(str, indices[:16])) + (" ..." if len(indices) > 16 else "")
            for layer, indices in self.by_layer().items()
        }
        table = pd.DataFrame(
            {"layer": list(shown), "neurons": list(self.per_layer().values()), "index": list(shown.values())}
        )
        return short_table(table, title=f"{self!r} {self.provenance.get('method', '')}".strip())

    # -- files ----------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the safetensors file that the set and its provenance were written to.

        >>> NeuronSet.load(neurons.save("neurons.safetensors")) == neurons
        True

        Args:
            path: the file; its folder is made if it is missing. The file is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
            TypeError: provenance that JSON cannot hold.
        """
        pairs = np.array(list(self), dtype=np.int32).reshape(-1, 2)
        header = _Header(self.n_layers, self.d_mlp, self.provenance, site=self.site)
        return save_arrays(path, FORMAT, arrays={"layer": pairs[:, 0], "index": pairs[:, 1]}, about=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> NeuronSet:
        """The set that `save` wrote.

        >>> NeuronSet.load(neurons.save("neurons.safetensors"))
        NeuronSet(3 neurons in 3 layers)

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not a neuron set.
        """
        arrays, about = load_arrays(path, FORMAT)
        with reading(path, FORMAT):
            header = from_json(_Header, about)
            pairs = zip(arrays["layer"].tolist(), arrays["index"].tolist(), strict=True)
            return NeuronSet(pairs, **vars(header))

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> Commit:
        """The commit of the set, with a card, to a repository of the Hugging Face hub; `from_hub` reads it.

        >>> neurons.push_to_hub("me/neurons")
        Traceback (most recent call last):
            ...
        neuronshield.core.errors.InputError: NeuronSet.push_to_hub('me/neurons'): HF_HUB_OFFLINE forbids asking the hub

        Args:
            repo_id: the repository, "user/name"; it is made if it is missing.
            private: whether a repository that is made is private; one that exists stays as it is.
            token: of the hub; None for the one that `hf auth login` or HF_TOKEN gave. It is written nowhere.

        Raises:
            InputError: what `neuronshield.core.repositories.committed` refuses.
        """

        def write(folder: Path) -> None:
            self.save(folder / FILE)
            write_text(folder / CARD, set_card(self))

        return committed(write, repo_id, call="NeuronSet.push_to_hub", message=repr(self), private=private, token=token)

    @staticmethod
    def from_hub(repo_id: str, *, revision: str | None = None, token: str | None = None) -> NeuronSet:
        """The set in a repository that `push_to_hub` wrote, of a set or of a masked update.

        >>> NeuronSet.from_hub("me/neurons")
        Traceback (most recent call last):
            ...
        neuronshield.core.errors.InputError: NeuronSet.from_hub('me/neurons'): it is not in the cache, and HF_HUB_OFFLINE ...

        Args:
            repo_id: the repository, "user/name".
            revision: commit, tag or branch; default the newest commit.
            token: of the hub; None for the one that `hf auth login` or HF_TOKEN gave.

        Raises:
            InputError: no such repository, none of a set, a damaged file, or the hub does not answer and it is not in the cache.
        """
        return NeuronSet.load(
            downloaded(repo_id, [FILE], call="NeuronSet.from_hub", revision=revision, token=token) / FILE
        )
