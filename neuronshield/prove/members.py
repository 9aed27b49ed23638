"""From a set to its members: which neurons lower refusal, alone or together, which raise it, and which back the set up."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..core.statistics import discoveries, finite, positive
from ..find.attribution import gradients
from . import experiments
from .claims import NECESSITY, measure_claims
from .controls import Controls, in_full, matched_like, random_like
from .pairs import Lab
from .verdict import RULE, Claim

MEMBERS_NEED = NECESSITY[1:]


KEPT = ("alone", "in a group")


MOST_OTHERS = 128


# -- members ----------------------------------------------------------------------------------------------
class Members:
    """Every member ablated in three places of the queue, and what stands in for the set.

    alone   by itself
    last    after all other members and the backups: what they covered for shows
    peers   after those of its own and earlier layers: what they covered for shows, and who reads it is still there
    """

    def __init__(self, lab: Lab, neurons: NeuronSet) -> None:
        self.lab, self.neurons, self.pairs = lab, neurons, list(neurons)
        alone, alone_path = lab.paths(self.pairs, [NeuronSet([])] * len(self.pairs))
        self.again = experiments.backups(lab, neurons)
        strongest = float(alone_path.mean(axis=1).max()) / float(lab.gaps.mean())
        self.floor = RULE["material"] * max(strongest, RULE["min_effect"])
        self.backups = self.standing_in()
        group = NeuronSet(neurons) | NeuronSet(self.backups)
        upto = {la: NeuronSet([p for p in group if p[0] <= la]) for la in neurons.by_layer()}
        last, last_path = lab.paths(self.pairs, [group - NeuronSet([p]) for p in self.pairs])
        peers, peers_path = lab.paths(self.pairs, [upto[p[0]] - NeuronSet([p]) for p in self.pairs])
        self.free = np.stack([alone, last, peers])
        self.path = np.stack([alone_path, last_path, peers_path])

    def standing_in(self, rows: Any = slice(None)) -> NeuronSet:
        """Neurons outside the set that stand in for it once it is ablated, from the given pairs."""
        return self.again.found(self.lab, self.floor, RULE["alpha"], rows)

    def decide(self, rows: Any = slice(None)) -> list[str]:
        """For each member "alone", "in a group" (where it does more than twice as much), "opposing" or "", from the given pairs.

        A backup may overdo it, so that ablating the first one alone *raises* refusal; if it does more when they are gone, it
        is still for refusal. An opposer is against it on balance.
        """
        clusters, path = list(self.lab.clusters[rows]), self.path[:, :, rows]
        q = discoveries(np.array([[positive(c, clusters) for c in test] for test in path]).ravel()).reshape(3, -1)
        q_against = discoveries(np.array([positive(-c, clusters) for c in path[0]]))
        share = path.mean(axis=2) / self.lab.gaps[rows].mean()
        words = []
        for i, (layer, _) in enumerate(self.pairs):
            near = [la == layer for la, _ in self.pairs]
            floor = RULE["material"] * np.maximum(share[:, near].max(axis=1), RULE["min_effect"])
            does = (q[:, i] <= RULE["alpha"]) & (share[:, i] >= floor)
            together = share[1:, i][does[1:]].max(initial=0)
            if does[0] and share[0, i] >= together / 2:
                words.append("alone")
            elif together > max(0, -share[0, i]):
                words.append("in a group")
            elif q_against[i] <= RULE["alpha"] and share[0, i] <= -floor[0]:
                words.append("opposing")
            else:
                words.append("")
        return words

    def table(self) -> list[dict[str, Any]]:
        """One row a member."""
        return [
            {
                "layer": layer, "index": index,
                **{name: finite(self.lab.effect(self.free[t, i])) for t, name in enumerate(("alone", "last", "after its peers"))},
                "alone, norms frozen": finite(self.lab.effect(self.path[0, i])),
                "how": word, "verified": word in KEPT, "opposing": word == "opposing",
            }
            for i, ((layer, index), word) in enumerate(zip(self.pairs, self.decide(), strict=True))
        ]  # fmt: skip


def retest_members(
    lab: Lab, members: Members, loud: Float[np.ndarray, "feature n_layers d_mlp"], draws: int
) -> tuple[NeuronSet, list[Claim], str]:
    """Members chosen on one half of the requests, tested by themselves (with the backups) on the other half.

    They must lower refusal more than controls do under each ablation that stays among values the model knows. Zero often
    does not, and that they are enough, or spare benign prompts, is a claim about a set: both are shown, not asked.
    A set that is only part of what causes refusal is matched by the other parts. They are no controls here: neurons
    that, on the first half, lower refusal by themselves as members do are not drawn, and are counted in the reason.
    """
    rng = np.random.default_rng(lab.seed)
    clusters = sorted(set(lab.clusters))
    if len(clusters) < 4:
        return NeuronSet([]), [], ""
    mine = np.isin(lab.clusters, [clusters[i] for i in rng.permutation(len(clusters))[: len(clusters) // 2]])
    rows = np.flatnonzero(mine)
    words = members.decide(rows)
    kept = NeuronSet([p for p, w in zip(members.pairs, words, strict=True) if w in KEPT])
    if not len(kept):
        return kept, [], ""
    tested = kept | NeuronSet(members.standing_in(rows)) if "in a group" in words else kept
    others = _other_causes(lab.rows(rows), tested)
    drawn = {
        "random": [random_like(tested, lab.model, rng, leave_out=others) for _ in range(draws)],
        "matched": matched_like(tested, loud, draws, rng, leave_out=others),
    }
    claims, _ = measure_claims(lab.rows(np.flatnonzero(~mine)), tested, in_full(Controls(drawn), tested))
    failed = [c.name for c in claims if c.verdict == "failed"]
    lost = [name for name in failed if name in MEMBERS_NEED]
    if lost:
        more = f". Nor is it shown for the {len(kept)} members that lower refusal; failed: {', '.join(lost)}"
        return NeuronSet([]), claims, more
    more = f". But {len(kept)} of its members, chosen on half of the requests, lower refusal on the other half too"
    more += f", together with {len(tested) - len(kept)} backups" if len(tested) > len(kept) else ""
    more += f", beside controls without {len(others)} other neurons that lower it as well" if len(others) else ""
    more += f"; of them too these failed: {', '.join(failed)}" if failed else ""
    return kept, claims, more


def _other_causes(lab: Lab, neurons: NeuronSet) -> NeuronSet:
    """Neurons of the same layers that lower refusal by themselves: the most promising by attribution, ablated one by one."""
    slope, act = gradients(lab.model, lab.harmful, lab.tokens)
    felt = (slope * (act - lab.values["mean"])).double().mean(dim=0).numpy() / float(lab.gaps.mean())
    least = RULE["material"] * RULE["min_effect"]
    pool = [
        (layer, int(i)) for layer in neurons.by_layer() for i in np.flatnonzero(felt[layer] >= least / 2)
        if (layer, int(i)) not in neurons
    ]  # fmt: skip
    pool = sorted(pool, key=lambda at: -felt[at])[:MOST_OTHERS]
    if not pool:
        return NeuronSet([])
    _, path = lab.paths(pool, [NeuronSet([])] * len(pool))
    q = discoveries(np.array([positive(c, list(lab.clusters)) for c in path]))
    share = path.mean(axis=1) / float(lab.gaps.mean())
    return NeuronSet([at for at, q_i, s in zip(pool, q, share, strict=True) if q_i <= RULE["alpha"] and s >= least])
