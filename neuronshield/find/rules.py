r"""Published rules of selection, each by its name.

Every set says in `provenance["selection"]` how it was chosen. This is a **leaf**: the rule with its score, cell and sizes.
`run_leaf` chooses by a leaf again, from other moments (such as those of shuffled labels), and `grown` is the same leaf with
larger sizes, for next ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell
from .groups import Stats
from .scores import METHODS, contrast, score_pairs
from .selection import Scores, chosen

__all__ = ["grown", "run_leaf"]


def run_leaf(leaf: Mapping[str, Any], stats: Stats) -> tuple[NeuronSet, Float[np.ndarray, "n_layers d_mlp"]]:
    """The set that a leaf chooses from these moments, and the magnitude that its rule ranks by.

    The magnitude is -inf where the rule cannot choose a neuron: of the other sign, or among those that a set difference takes away.
    A size above the number of neurons there are takes all of them.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> neurons = ns.contrast(stats).top(k=8)["en/text"]
    >>> again, rank = run_leaf(neurons.provenance["selection"], stats)
    >>> again == neurons, rank.shape
    (True, (3, 29))

    Args:
        leaf: `provenance["selection"]` of a set of one rule in one cell.
        stats: moments from `capture`, or of the same shape.

    Raises:
        InputError: a score that needs the model (attribution, snip, change_score), or a cell without both labels.
    """
    scores = _leaf_scores(leaf, stats)
    ((name, value),) = leaf["size"].items()
    n_layers, d_mlp = scores.values.shape[1:]
    limit = {"k": n_layers * d_mlp, "per_layer": d_mlp, "fraction": 1.0}
    most = limit.get(name, n_layers * d_mlp * scores.params_per_neuron / scores.n_params)
    mask, rank = chosen(scores, leaf["cell"], size={name: min(value, most)}, sign=leaf["sign"])
    about = {**stats.provenance, **leaf, "selection": dict(leaf)}
    return NeuronSet(np.argwhere(mask), n_layers=n_layers, d_mlp=d_mlp, provenance=about), rank


def _leaf_scores(leaf: Mapping[str, Any], stats: Stats) -> Scores:
    """Scores of the cell of a leaf of `Scores.top`."""
    method, cell = leaf["method"], Cell.of(leaf["cell"])
    if method == "lape":
        return contrast(stats, method="lape")
    if method not in METHODS:
        raise InputError(f"selection by {method!r} needs the model: moments are not enough to repeat it")
    return score_pairs(stats, [cell], pairs=[stats[cell]], method=method)


def grown(leaf: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same leaf with its sizes multiplied by a factor.

    >>> grown({"rule": "top", "method": "sas", "cell": "en/text", "size": {"k": 5}, "sign": None}, 1.5)["size"]
    {'k': 8}

    Args:
        leaf: as for `run_leaf`.
        factor: by which sizes are multiplied, above 0; numbers of neurons are rounded up.
    """
    ((name, value),) = leaf["size"].items()
    return {**leaf, "size": {name: math.ceil(value * factor) if name in ("k", "per_layer") else value * factor}}
