"""How many members the test of members keeps of sets that were selected on shuffled labels, beside the tested set.

A selection of large activations finds causes of refusal on any labels, so that single members are kept of sets that were selected by
chance as well. How many says what the kept members of the tested set owe to its selection.

Sources: Benjamini and Hochberg (1995); Phipson and Smyth (2010).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from ..core.neurons import NeuronSet
from ..core.statistics import discoveries, positive
from .pairs import MatchedPairs
from .tables import ShuffledMembers
from .verdict import RULE

__all__ = ["kept_on_shuffled"]

#: Sets on shuffled labels whose members are ablated one by one.
SETS = 5


def kept_on_shuffled(
    pairs: MatchedPairs, neurons: NeuronSet, shuffled: Sequence[NeuronSet], *, sets: int = SETS
) -> ShuffledMembers:
    """Members that lower the refusal margin when they are ablated alone: of the set, and of sets selected on shuffled labels.

    >>> from neuronshield.model.prefixes import opening_tokens, openings_of
    >>> from neuronshield.prove.pairs import match, measure
    >>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
    >>> pairs = measure(model, match(prompts, seed=0)[0], tokens)
    >>> found = kept_on_shuffled(pairs, neurons, [ns.random_like(neurons, model, seed=i) for i in range(2)])
    >>> found.n, len(found.shuffled)
    (3, 2)

    A member is kept if its effect with norms frozen passes the test over members (Benjamini and Hochberg) and is material, as in
    `Members.roles` for the context "alone". Each neuron is ablated once, whatever the number of sets that hold it.

    Args:
        pairs: the matched pairs that choose members.
        neurons: the set.
        shuffled: sets that its selection selected on shuffled labels (`Controls.shuffled`).
        sets: how many of them are used, the first.
    """
    used = [neurons, *shuffled[:sets]]
    every = sorted(set().union(*used))
    margins = pairs.on_harmful([None, *(pairs.ablate(NeuronSet([at])) for at in every)], frozen=True)
    change = dict(zip(every, margins[0] - margins[1:], strict=True))
    requests, difference = list(pairs.requests), float(pairs.differences.mean())
    p = {at: positive(c, requests) for at, c in change.items()}
    effect = {at: float(c.mean()) / difference for at, c in change.items()}

    def kept(members: NeuronSet) -> int:
        own = list(members)
        return int(alone_kept(own, np.array([p[at] for at in own]), np.array([effect[at] for at in own])).sum())

    first, *others = (kept(members) for members in used)
    return ShuffledMembers(first, shuffled=tuple(others), n=len(neurons))


def alone_kept(
    members: Sequence[tuple[int, int]], p: Float[np.ndarray, " neuron"], effect: Float[np.ndarray, " neuron"]
) -> Bool[np.ndarray, " neuron"]:
    """Which members pass: q <= alpha, and a material share of the largest effect in their layer.

    >>> alone_kept([(0, 1), (0, 2), (1, 4)], np.array([0.001, 0.001, 0.5]), np.array([0.4, 0.01, 0.3])).tolist()
    [True, False, False]

    Args:
        members: the neurons.
        p: of the test that ablation lowers the margin.
        effect: normalised effects.
    """
    if not len(members):
        return np.zeros(0, dtype=bool)
    layers = np.array([layer for layer, _ in members])
    largest = np.array([effect[layers == layer].max() for layer in layers])
    least = RULE.material * np.maximum(largest, RULE.min_effect)
    return (discoveries(p) <= RULE.alpha) & (effect >= least)
