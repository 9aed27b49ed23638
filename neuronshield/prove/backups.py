"""Self-repair: neurons outside a set that gain an effect once the set is ablated (backup neurons).

The set is ablated, neurons are selected again by attribution under that ablation, those are ablated too, and so on for three
rounds. A candidate is a backup where ablating it has a larger effect with the set ablated than without (McGrath et al. 2023).

>>> from neuronshield.model.prefixes import opening_tokens, openings_of
>>> from neuronshield.prove.pairs import match, measure
>>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
>>> pairs = measure(model, match(prompts, seed=0)[0], tokens)
>>> search = search_backups(pairs, neurons)
>>> search.more.shape == (2, len(search.tried), 30)
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..core.statistics import discoveries, positive
from ..find.attribution import gradients
from .controls import drawn_like
from .experiments import BESIDE
from .pairs import MatchedPairs
from .tables import BackupRound, Spread
from .verdict import RULE

__all__ = ["BackupSearch", "search_backups"]

MOST_BACKUPS = 64  # candidates in each round
ROUNDS = 3


@dataclass(frozen=True)
class BackupSearch:
    """Candidates for backup neurons of a set, and what each does because the set is ablated. Made by `search_backups`.

    Attributes:
        tried: neurons that attribution selects once the set is ablated.
        more: additional effect of ablating each, beyond its effect alone: on top of the set, and on top of the set and all other
            candidates.
        frozen: the same with norms frozen.
        rounds: the set ablated, and the set with all candidates.
    """

    tried: tuple[tuple[int, int], ...]
    more: Float[np.ndarray, "test neuron pair"]
    frozen: Float[np.ndarray, "test neuron pair"]
    rounds: tuple[BackupRound, ...]

    def found(self, pairs: MatchedPairs, *, least: float, alpha: float) -> NeuronSet:
        """Candidates with an additional effect (Benjamini-Hochberg) of at least `least`.

        Args:
            pairs: matched pairs.
            least: normalised effect, with norms frozen.
            alpha: level of the false discovery rate.
        """
        shape: dict[str, Any] = {"n_layers": pairs.model.n_layers, "d_mlp": pairs.model.d_mlp}
        if not self.tried:
            return NeuronSet([], **shape)
        p = [[positive(m, list(pairs.requests)) for m in test] for test in self.more]
        q = discoveries(np.array(p).ravel()).reshape(2, -1)
        effect = self.frozen.mean(axis=2) / pairs.differences.mean()
        least = max(least, RULE.material * float(effect.max()))
        good = ((q <= alpha) & (effect >= least)).any(axis=0)
        return NeuronSet([pair for pair, ok in zip(self.tried, good, strict=True) if ok], **shape)

    def __repr__(self) -> str:
        return f"BackupSearch({len(self.tried)} candidates)"


def search_backups(pairs: MatchedPairs, neurons: NeuronSet) -> BackupSearch:
    """Ablate the set, select by attribution under that ablation, ablate those too, and again: backups of backups.

    Args:
        pairs: matched pairs.
        neurons: the set.
    """
    tried = _candidates(pairs, neurons)
    if not len(tried):
        nothing = np.empty((2, 0, len(pairs)))
        return BackupSearch((), more=nothing, frozen=nothing, rounds=())
    model = pairs.model
    rng = np.random.default_rng(pairs.seed)
    others = [drawn_like(tried, model, seed=rng, leave_out=neurons) for _ in range(BESIDE)]
    change = pairs.harmful_margins - pairs.on_harmful([pairs.ablate(neurons | s) for s in (neurons, tried, *others)])
    members, whole = list(tried), neurons | tried
    contexts = [
        [NeuronSet([])] * len(members),
        [neurons] * len(members),
        [whole - NeuronSet([p]) for p in members],
        [tried - NeuronSet([p]) for p in members],  # the same without ablating the set
    ]
    free, frozen = zip(*(pairs.added_effects(members, context) for context in contexts), strict=True)
    random = Spread.of(pairs.normalised_effects(change[2:]))
    rounds = (
        BackupRound("the set", len(neurons), effect=pairs.normalised_effect(change[0]), random=None),
        BackupRound(
            "the set and its backup candidates", len(tried), effect=pairs.normalised_effect(change[1]), random=random
        ),
    )
    return BackupSearch(tuple(members), more=_because(*free), frozen=_because(*frozen), rounds=rounds)


def _candidates(pairs: MatchedPairs, neurons: NeuronSet) -> NeuronSet:
    """Neurons whose attribution rises once the set, and then the candidates so far, are ablated."""
    model, mean = pairs.model, pairs.rows.mean_values
    shape: dict[str, Any] = {"n_layers": model.n_layers, "d_mlp": model.d_mlp}

    def attributed(cut: NeuronSet | None) -> Float[np.ndarray, "n_layers d_mlp"]:
        condition = pairs.ablate(cut) if cut else None
        slope, act = gradients(model, pairs.rows.harmful, pairs.tokens, condition=condition)
        return (slope * (act - mean)).double().mean(dim=0).numpy()

    before, tried = attributed(None), NeuronSet([], **shape)
    for least in (0.0, *(ROUNDS - 1) * [RULE.material * RULE.min_effect]):
        rise = (attributed(neurons | tried) - before) / float(pairs.differences.mean())
        for layer, index in neurons | tried:
            rise[layer, index] = -np.inf
        order = np.argsort(-rise, axis=None, kind="stable")[: min(max(len(neurons), 8), MOST_BACKUPS)]
        new = [(int(la), int(i)) for la, i in zip(*np.unravel_index(order, rise.shape), strict=True)]
        new = [at for at in new if rise[at] > least]
        if not new:
            break
        tried |= NeuronSet(new, **shape)
    return tried


def _because(
    alone: Float[np.ndarray, "neuron pair"],
    on_top: Float[np.ndarray, "neuron pair"],
    last: Float[np.ndarray, "neuron pair"],
    other: Float[np.ndarray, "neuron pair"],
) -> Float[np.ndarray, "test neuron pair"]:
    """What each does because the set is ablated; an anti-refusal neuron that falls silent does nothing.

    Args:
        alone: effect of ablating it alone; `on_top`: in addition to the set.
        last: in addition to the set and the other candidates; `other`: in addition to the other candidates only.
    """
    first = np.minimum(on_top, on_top - alone)
    return np.stack([first, np.minimum(np.minimum(last, last - alone), last - other)])
