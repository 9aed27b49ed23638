"""From a set to its members: which neurons lower the refusal margin, alone or in a group, which raise it, and which back them up.

Neurons that back each other up have no effect one at a time. So every member is ablated in three contexts:

    alone         nothing else ablated
    last          all other members and the backup neurons ablated already: shows what those compensated for
    after peers   the members and backups of its own and earlier layers ablated already: the same, with later readers intact

A member's role is decided with norms frozen, since any neuron of large norm rescales all logits through the final norm. Tests
over members are corrected together (Benjamini and Hochberg 1995).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..core.statistics import discoveries, positive
from ..find.attribution import gradients
from .backups import BackupSearch, search_backups
from .claims import NECESSITY, measure_claims
from .controls import Controls, complete, drawn_like, matched_like
from .pairs import MatchedPairs
from .tables import ALONE, ANTI_REFUSAL, IN_A_GROUP, Member, Retest
from .verdict import RULE, open_of

__all__ = ["Members", "measure_members", "retest_members"]

#: Claims that verified members must pass by themselves: zero ablation often leaves the values that the model knows.
MEMBERS_NEED = NECESSITY[1:]
VERIFIED = (ALONE, IN_A_GROUP)
MOST_OTHERS = 128


@dataclass(frozen=True)
class Members:
    """Effects of every member of a set in three contexts. Made by `measure_members`.

    Attributes:
        pairs: matched pairs.
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

    def backups(self, rows: Any = slice(None)) -> NeuronSet:
        """Neurons outside the set that gain an effect once it is ablated, judged on the given pairs."""
        return self.search.found(self.pairs, least=self.least_backup, alpha=RULE.alpha, rows=rows)

    def roles(self, rows: Any = slice(None)) -> list[str]:
        """The role of each member, judged on the given pairs: "alone", "in a group", "anti-refusal" or "".

        A backup may overcompensate, so that ablating the member alone *raises* refusal. If its effect with the backups ablated
        is larger, the member still promotes refusal. It is anti-refusal only where it opposes refusal on balance.

        Args:
            rows: which pairs count.
        """
        requests, path = list(self.pairs.requests[rows]), self.frozen[:, :, rows]
        q = discoveries(np.array([[positive(c, requests) for c in test] for test in path]).ravel()).reshape(3, -1)
        q_against = discoveries(np.array([positive(-c, requests) for c in path[0]]))
        effect = path.mean(axis=2) / self.pairs.differences[rows].mean()
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

    def table(self) -> list[Member]:
        """One row per member; `verified` says that its role is "alone" or "in a group"."""
        effect = self.pairs.normalised_effect
        return [
            Member(
                layer, index, alone=effect(self.free[0, i]), last=effect(self.free[1, i]),
                after_peers=effect(self.free[2, i]), alone_frozen_norms=effect(self.frozen[0, i]), role=role,
                verified=role in VERIFIED,
            )
            for i, ((layer, index), role) in enumerate(zip(self.neurons, self.roles(), strict=True))
        ]  # fmt: skip

    def __repr__(self) -> str:
        return f"Members({len(self.neurons)} neurons, {len(self.pairs)} pairs)"


def measure_members(pairs: MatchedPairs, neurons: NeuronSet) -> Members:
    """Every member ablated in three contexts, and the search for backup neurons.

    Args:
        pairs: matched pairs of the cells where the model refuses.
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


def retest_members(
    members: Members, *, features: Float[np.ndarray, "feature n_layers d_mlp"], draws: int
) -> tuple[NeuronSet, Retest | None]:
    """Members selected on one half of the requests and tested by themselves, with the backups, on the other half.

    They must exceed their controls under mean, resample and patch ablation. Zero ablation, sufficiency and specificity are
    claims about a whole set; they are reported and not required. Neurons that lower the margin by themselves on the first
    half are excluded from the controls and counted, since they are causes as well and not controls.

    Args:
        members: of the set that failed.
        features: mean |h| and norm of the W_down column of every neuron.
        draws: control sets of each kind.

    Returns:
        The members that may be verified, and the test; None where no member lowers refusal or there are fewer than 4 requests.
    """
    pairs = members.pairs
    rng = np.random.default_rng(pairs.seed)
    requests = sorted(set(pairs.requests))
    if len(requests) < 4:
        return NeuronSet([]), None
    half = [requests[i] for i in rng.permutation(len(requests))[: len(requests) // 2]]
    first = np.isin(pairs.requests, half)
    rows = np.flatnonzero(first)
    roles = members.roles(rows)
    kept = NeuronSet([p for p, role in zip(members.neurons, roles, strict=True) if role in VERIFIED])
    if not len(kept):
        return kept, None
    tested = kept | NeuronSet(members.backups(rows)) if IN_A_GROUP in roles else kept
    others = _other_causes(pairs.take(rows), tested)
    drawn = {
        "random": [drawn_like(tested, pairs.model, seed=rng, leave_out=others) for _ in range(draws)],
        "matched": matched_like(tested, features, draws=draws, seed=rng, leave_out=others),
    }
    claims, _ = measure_claims(pairs.take(np.flatnonzero(~first)), tested, complete(Controls(drawn), tested))
    passed = not set(open_of(claims)) & set(MEMBERS_NEED)
    retest = Retest(
        tuple(claims), n_members=len(kept), n_backups=len(tested) - len(kept), n_excluded=len(others), passed=passed
    )
    return kept if passed else NeuronSet([]), retest


def verified_only(table: list[Member], verified: NeuronSet) -> tuple[Member, ...]:
    """The rows with `verified` true for the given neurons only: members stay unverified unless the set or its retest passed."""
    return tuple(replace(m, verified=m.neuron in verified) for m in table)


def _other_causes(pairs: MatchedPairs, neurons: NeuronSet) -> NeuronSet:
    """Other neurons of the same layers that lower the margin by themselves: candidates by attribution, ablated one by one."""
    slope, act = gradients(pairs.model, pairs.rows.harmful, pairs.tokens)
    mean = pairs.rows.mean_values
    attributed = (slope * (act - mean)).double().mean(dim=0).numpy() / float(pairs.differences.mean())
    least = RULE.material * RULE.min_effect
    pool = [
        (layer, int(i)) for layer in neurons.by_layer() for i in np.flatnonzero(attributed[layer] >= least / 2)
        if (layer, int(i)) not in neurons
    ]  # fmt: skip
    pool = sorted(pool, key=lambda at: -attributed[at])[:MOST_OTHERS]
    if not pool:
        return NeuronSet([])
    _, frozen = pairs.added_effects(pool, [NeuronSet([])] * len(pool))
    q = discoveries(np.array([positive(c, list(pairs.requests)) for c in frozen]))
    effect = frozen.mean(axis=1) / float(pairs.differences.mean())
    return NeuronSet([at for at, q_i, e in zip(pool, q, effect, strict=True) if q_i <= RULE.alpha and e >= least])
