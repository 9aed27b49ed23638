"""From a set to its members: which neurons lower the refusal margin, alone or in a group, which raise it, and which back them up.

Neurons that back each other up have no effect one at a time. So every member is ablated in three contexts:

    alone         nothing else ablated
    last          all other members and the backup neurons ablated already: shows what those compensated for
    after peers   the members and backups of its own and earlier layers ablated already: the same, with later readers intact

A member's role is decided with norms frozen, since any neuron of large norm rescales all logits through the final norm. Tests
over members are corrected together (Benjamini and Hochberg 1995).

Roles and backups come from one third of the requests (`MatchedPairs.split`). They choose members; whether what they chose causes
refusals is tested on the other two thirds (`verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..core.statistics import discoveries, positive
from ..find.signs import Sign
from .backups import BackupSearch, search_backups
from .pairs import MatchedPairs
from .tables import ALONE, ANTI_REFUSAL, IN_A_GROUP, Member
from .verdict import RULE

__all__ = ["Members", "measure_members", "verified_only"]

KEPT = (ALONE, IN_A_GROUP)


@dataclass(frozen=True)
class Members:
    """Effects of every member of a set in three contexts. Made by `measure_members`.

    Attributes:
        pairs: the matched pairs that choose.
        neurons: the members, in order.
        free: fall of the harmful margin [context, neuron, pair]; contexts are alone, last, after peers.
        frozen: the same with norms frozen.
        search: the search for backup neurons.
        least_backup: normalised effect that a backup must have.
    """

    pairs: MatchedPairs
    neurons: tuple[tuple[int, int], ...]
    free: Float[np.ndarray, "context neuron pair"]
    frozen: Float[np.ndarray, "context neuron pair"]
    search: BackupSearch
    least_backup: float

    def backups(self) -> NeuronSet:
        """Neurons outside the set that gain an effect once it is ablated."""
        return self.search.found(self.pairs, least=self.least_backup, alpha=RULE.alpha)

    def kept(self) -> NeuronSet:
        """The members that lower the refusal margin, alone or in a group."""
        return NeuronSet([at for at, role in zip(self.neurons, self.roles(), strict=True) if role in KEPT])

    def roles(self) -> list[str]:
        """The role of each member: "alone", "in a group", "anti-refusal" or "".

        A backup may overcompensate, so that ablating the member alone *raises* refusal. If its effect with the backups ablated
        is larger, the member still promotes refusal. It is anti-refusal only where it opposes refusal on balance.
        """
        requests, path = list(self.pairs.requests), self.frozen
        q = discoveries(np.array([[positive(c, requests) for c in test] for test in path]).ravel()).reshape(3, -1)
        q_against = discoveries(np.array([positive(-c, requests) for c in path[0]]))
        effect = path.mean(axis=2) / self.pairs.differences.mean()
        roles = []
        for i, (layer, _) in enumerate(self.neurons):
            near = [la == layer for la, _ in self.neurons]
            least = RULE.material * np.maximum(effect[:, near].max(axis=1), RULE.min_effect)
            counts = (q[:, i] <= RULE.alpha) & (effect[:, i] >= least)
            together = effect[1:, i][counts[1:]].max(initial=0)
            if counts[0] and effect[0, i] >= together / 2:
                roles.append(ALONE)
            elif together > max(0, -effect[0, i]):
                roles.append(IN_A_GROUP)
            elif q_against[i] <= RULE.alpha and effect[0, i] <= -least[0]:
                roles.append(ANTI_REFUSAL)
            else:
                roles.append("")
        return roles

    def table(self, signs: Sequence[Sign]) -> list[Member]:
        """One row per member; none is verified yet.

        Args:
            signs: of each member.
        """
        effect = self.pairs.normalised_effect
        return [
            Member(
                layer, index, alone=effect(self.free[0, i]), last=effect(self.free[1, i]),
                after_peers=effect(self.free[2, i]), alone_frozen_norms=effect(self.frozen[0, i]), role=role,
                verified=False, sign=sign,
            )
            for i, ((layer, index), role, sign) in enumerate(zip(self.neurons, self.roles(), signs, strict=True))
        ]  # fmt: skip

    def __repr__(self) -> str:
        return f"Members({len(self.neurons)} neurons, {len(self.pairs)} pairs)"


def measure_members(pairs: MatchedPairs, neurons: NeuronSet) -> Members:
    """Every member ablated in three contexts, and the search for backup neurons.

    Args:
        pairs: the matched pairs that choose, of the cells where the model refuses.
        neurons: the set.
    """
    members = list(neurons)
    alone, alone_frozen = pairs.added_effects(members, [NeuronSet([])] * len(members))
    search = search_backups(pairs, neurons)
    largest = float(alone_frozen.mean(axis=1).max()) / float(pairs.differences.mean())
    least = RULE.material * max(largest, RULE.min_effect)
    group = NeuronSet(neurons) | NeuronSet(search.found(pairs, least=least, alpha=RULE.alpha))
    upto = {la: NeuronSet([p for p in group if p[0] <= la]) for la in neurons.by_layer()}
    last, last_frozen = pairs.added_effects(members, [group - NeuronSet([p]) for p in members])
    peers, peers_frozen = pairs.added_effects(members, [upto[p[0]] - NeuronSet([p]) for p in members])
    return Members(
        pairs, tuple(members), free=np.stack([alone, last, peers]),
        frozen=np.stack([alone_frozen, last_frozen, peers_frozen]), search=search, least_backup=least,
    )  # fmt: skip


def verified_only(table: list[Member], verified: NeuronSet) -> tuple[Member, ...]:
    """The rows with `verified` true for the given neurons only.

    Args:
        table: of `Members.table`.
        verified: the verified set.
    """
    return tuple(replace(m, verified=m.neuron in verified) for m in table)
