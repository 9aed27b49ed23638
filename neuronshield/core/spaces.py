"""What neurons belong to, and how they are named: the shape of a model, and (layer, index) pairs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from .arguments import require
from .errors import InputError

__all__ = ["NeuronSpace", "all_of", "hook", "pairs"]

T = TypeVar("T")


class NeuronSpace(Protocol):
    """What a neuron set asks of a model: its shape, its size, and which weights it has (`Model` is one)."""

    @property
    def id(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def n_params(self) -> int: ...
    @property
    def params_per_neuron(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


def pairs(given: Any) -> Iterator[tuple[int, int]]:
    """(layer, index) as Python ints, each checked.

    >>> list(pairs([(0, 3), (1, 5)]))
    [(0, 3), (1, 5)]

    Args:
        given: what a `NeuronSet` is made of.

    Raises:
        InputError: not pairs of whole numbers.
    """
    wanted = "NeuronSet(pairs): give (layer, index) pairs, as in NeuronSet([(0, 3), (1, 5)])"
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InputError(f"{wanted}; got {type(given).__name__}")
    for pair in given:
        try:
            layer, index = pair
            yield operator.index(layer), operator.index(index)
        except (TypeError, ValueError):
            raise InputError(f"{wanted}; got {pair!r:.60}") from None


def all_of(given: tuple[Any, ...], kind: type[T], *, call: str) -> list[T]:
    """The sets of a call; one mapping stands for its values.

    >>> all_of(({"a": neurons},), ns.NeuronSet, call="NeuronSet.union")
    [NeuronSet(3 neurons in 3 layers)]

    Args:
        given: what the call was given.
        kind: the class of a set.
        call: the function, for messages.

    Raises:
        InputError: no set, or something that is none.
    """
    found = list(given[0].values()) if len(given) == 1 and isinstance(given[0], Mapping) else list(given)
    if not found:
        raise InputError(f"{call} of no sets: pass at least one NeuronSet")
    hint = "unpack a list with *, and a mapping with *sets.values()"
    return [require(one, kind, call=f"{call}(*sets)", name="every set", hint=hint) for one in found]


def hook(members: list[int], value: float) -> Callable[..., Any]:
    """A TransformerLens hook that sets some neurons of a layer to a value.

    >>> hook([1], 0.0)(torch.ones(1, 3), hook=None)
    tensor([[1., 0., 1.]])

    Args:
        members: indices in the layer.
        value: the activation to set.
    """

    def ablate(activation: Any, hook: Any) -> Any:
        activation = activation.clone()
        activation[..., members] = value
        return activation

    return ablate
