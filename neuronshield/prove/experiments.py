"""What else a set is asked before anyone says "causal": each function one experiment, its rows beside random sets.

    dose          scale the set by alpha from -1 to 2: does refusal follow, step by step?
    size          its strongest 1, 2, 4, ... members: how few carry most of the effect (minimality)?
    groups        the set without one layer (or one quarter) of it: where does the effect live?
    completeness  only the set kept, every other neuron at its benign mean: is the set enough?
    backups       ablate the set, find again, ablate again: does something stand in for it?
    recognition   is it active where harm is known but not refused, or where refusal happens?
    crossing      values of a refusing cell written into benign prompts of another cell: does refusal carry over?

All effects are shares of the refusal gap (see `lab`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..core.statistics import bootstrap, discoveries, finite, positive
from ..data.prompts import Cell
from ..find.attribution import gradients
from ..model.intervention import Intervention
from .controls import random_like
from .pairs import Lab
from .verdict import RULE

__all__ = ["ALPHAS", "Backups", "backups", "completeness", "crossing", "dose", "groups", "recognition", "size"]


ALPHAS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


BESIDE = 20  # random sets beside each experiment


ENOUGH = 0.9  # share of the set's effect that counts as "most of it"


MOST_BACKUPS = 64  # tried in each round


ROUNDS = 3


Rows = list[dict[str, Any]]


def dose(lab: Lab, neurons: NeuronSet, random: Sequence[NeuronSet]) -> Rows:
    """Change of the margin when the set's values are multiplied by alpha: [alpha, harmful, benign, random]."""
    conditions = [Intervention(s, "scale", a) for a in ALPHAS for s in (neurons, *random[:BESIDE])]
    harmful = lab.on_harmful(conditions).reshape(len(ALPHAS), -1, len(lab.harmful)) - lab.clean_h
    benign = lab.on_benign([Intervention(neurons, "scale", a) for a in ALPHAS]) - lab.clean_b
    return [
        {
            "alpha": alpha,
            "harmful": finite(lab.effect(mine[0])),
            "benign": finite(lab.effect(other)),
            "random": _span(lab.effects(mine[1:])),
        }
        for alpha, mine, other in zip(ALPHAS, harmful, benign, strict=True)
    ]


def size(lab: Lab, ranked: Sequence[tuple[int, int]], draws: int = BESIDE) -> Rows:
    """Effect of ablating the strongest n members, n = 1, 2, 4, ...; random sets of the same layers beside each."""
    n = len(ranked)
    sizes = sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n), round(0.75 * n) or 1})
    rng = np.random.default_rng(lab.seed)
    sets: dict[int, list[NeuronSet]] = {}
    for k in sizes:
        best = NeuronSet(ranked[:k], n_layers=lab.model.n_layers, d_mlp=lab.model.d_mlp)
        beside = [random_like(best, lab.model, rng) for _ in range(draws)]
        sets[k] = [best, *(s for s in beside if len(s) == k)]
    change = lab.clean_h - lab.on_harmful([lab.ablate(s) for of_size in sets.values() for s in of_size])
    parts = np.split(change, np.cumsum([len(s) for s in sets.values()])[:-1])
    return [
        {"size": k, "effect": finite(lab.effect(c[0])), "random": _span(lab.effects(c[1:]))}
        for k, c in zip(sizes, parts, strict=True)
    ]


def enough(rows: Rows) -> int:
    """The smallest size on a size curve that has most of the whole set's effect."""
    return next(int(r["size"]) for r in rows if r["effect"][0] >= ENOUGH * rows[-1]["effect"][0] or r is rows[-1])


def groups(lab: Lab, neurons: NeuronSet, ranked: Sequence[tuple[int, int]]) -> Rows:
    """Effect of the set without one group of it: its layers, or its quarters by strength if it has one layer only."""
    layers = neurons.by_layer()
    if len(layers) > 1:
        parts = {f"layer {layer}": [(layer, i) for i in members] for layer, members in layers.items()}
    elif len(ranked) >= 4:
        quarters = np.array_split(np.arange(len(ranked)), 4)
        parts = {f"quarter {q}": [ranked[i] for i in rows] for q, rows in enumerate(quarters, 1)}
    else:
        return []
    without = [neurons - NeuronSet(part) for part in parts.values()]
    change = lab.clean_h - lab.on_harmful([lab.ablate(s) for s in (neurons, *without)])
    return [
        {
            "group": name,
            "n": len(part),
            "without": finite(lab.effect(left)),
            "lost": finite(lab.effect(change[0] - left)),
        }
        for (name, part), left in zip(parts.items(), change[1:], strict=True)
    ]


def completeness(lab: Lab, neurons: NeuronSet, random: Sequence[NeuronSet]) -> Rows:
    """Share of the gap that is left when only the set (or the set's whole layers) keeps its own values.

    All other neurons, at the last prompt token, are at their benign means: 0 means that the set alone does nothing,
    1 that it needs no other. Two frames: every layer, and the set's own layers.
    """
    n_layers, d_mlp = lab.model.n_layers, lab.model.d_mlp
    own = list(neurons.by_layer())
    out: Rows = []
    for frame, layers in (("all layers", list(range(n_layers))), ("its layers", own)):
        if out and len(own) == n_layers:
            break
        every = NeuronSet([(la, i) for la in layers for i in range(d_mlp)], n_layers=n_layers, d_mlp=d_mlp)
        kept = [every - NeuronSet(s) for s in (neurons, *random[:BESIDE])]
        if not len(kept[0]):  # the set is all there is
            continue
        margins = lab.on_harmful([lab.ablate(every), *(lab.ablate(s) for s in kept)])
        floor, change = margins[0], margins[1:] - margins[0]
        whole = lab.clean_h - floor
        share = float(change[0].mean() / whole.mean())
        spread = bootstrap_ratio(lab, change[0], whole)
        out.append({"frame": frame, "share": [share, *spread[1:]], "random": _span(change[1:].mean(axis=1) / whole.mean()),
                    "without any": finite(lab.effect(whole))})  # fmt: skip
    return out


def bootstrap_ratio(lab: Lab, top: Float[np.ndarray, " pair"], bottom: Float[np.ndarray, " pair"]) -> list[Any]:
    """mean(top) / mean(bottom) with its interval over requests, for JSON."""
    from ..core.statistics import ratio_of_means

    return finite(ratio_of_means(top, bottom, list(lab.clusters), seed=lab.seed))


@dataclass
class Backups:
    """What may stand in for a set once it is ablated.

    Attributes:
        tried: neurons that were found again under the ablation.
        more: what ablating each does on top of the set, and on top of the set and all else that was tried, over what it
            does alone [test, neuron, pair]; `path` with norms frozen.
        rows: the set ablated, and the set with all that was tried.
    """

    tried: list[tuple[int, int]]
    more: Float[np.ndarray, "test neuron pair"]
    path: Float[np.ndarray, "test neuron pair"]
    rows: Rows

    def found(self, lab: Lab, floor: float, alpha: float, rows: Any = slice(None)) -> NeuronSet:
        """Those that do more then than alone (Benjamini-Hochberg), by at least `floor` of the gap."""
        shape: dict[str, Any] = {"n_layers": lab.model.n_layers, "d_mlp": lab.model.d_mlp}
        if not self.tried:
            return NeuronSet([], **shape)
        p = [[positive(m[rows], list(lab.clusters[rows])) for m in test] for test in self.more]
        q = discoveries(np.array(p).ravel()).reshape(2, -1)
        share = self.path[:, :, rows].mean(axis=2) / lab.gaps.mean()
        floor = max(floor, RULE["material"] * float(share.max()))
        return NeuronSet(
            [pair for pair, ok in zip(self.tried, ((q <= alpha) & (share >= floor)).any(axis=0), strict=True) if ok],
            **shape,
        )


def backups(lab: Lab, neurons: NeuronSet) -> Backups:
    """Ablate the set, find again by attribution under that ablation, ablate again; so for stand-ins of stand-ins."""
    model, mean = lab.model, lab.values["mean"]
    shape: dict[str, Any] = {"n_layers": model.n_layers, "d_mlp": model.d_mlp}

    def felt(cut: NeuronSet | None) -> Float[np.ndarray, "n_layers d_mlp"]:
        slope, act = gradients(model, lab.harmful, lab.tokens, condition=lab.ablate(cut) if cut else None)
        return (slope * (act - mean)).double().mean(dim=0).numpy()

    before, tried = felt(None), NeuronSet([], **shape)
    for least in (0.0, *(ROUNDS - 1) * [RULE["material"] * RULE["min_effect"]]):
        rise = (felt(neurons | tried) - before) / float(lab.gaps.mean())
        for layer, index in neurons | tried:
            rise[layer, index] = -np.inf
        order = np.argsort(-rise, axis=None, kind="stable")[: min(max(len(neurons), 8), MOST_BACKUPS)]
        new = [(int(la), int(i)) for la, i in zip(*np.unravel_index(order, rise.shape), strict=True)]
        new = [at for at in new if rise[at] > least]
        if not new:
            break
        tried |= NeuronSet(new, **shape)
    if not len(tried):
        nothing = np.empty((2, 0, len(lab.harmful)))
        return Backups([], nothing, nothing, [])
    rng = np.random.default_rng(lab.seed)
    others = [random_like(tried, model, rng, leave_out=neurons) for _ in range(BESIDE)]
    margins = lab.on_harmful([lab.ablate(neurons | s) for s in (neurons, tried, *others)])
    pairs, whole = list(tried), neurons | tried
    alone, alone_path = lab.paths(pairs, [NeuronSet([])] * len(pairs))
    on_top, path = lab.paths(pairs, [neurons] * len(pairs))
    last, last_path = lab.paths(pairs, [whole - NeuronSet([p]) for p in pairs])
    other, other_path = lab.paths(pairs, [tried - NeuronSet([p]) for p in pairs])  # and had the set not been ablated?
    table = [
        {
            "ablated": "the set", "n": len(neurons), "effect": finite(lab.effect(lab.clean_h - margins[0])), "random": None,
        },
        {
            "ablated": "the set and what is found again", "n": len(tried),
            "effect": finite(lab.effect(lab.clean_h - margins[1])),
            "random": _span(lab.effects(lab.clean_h - margins[2:])),
        },
    ]  # fmt: skip
    more = _standing(alone, on_top, last, other)
    return Backups(pairs, more, _standing(alone_path, path, last_path, other_path), table)


def _standing(alone: np.ndarray, on_top: np.ndarray, last: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each does because the set is ablated [test, neuron, pair]; an opposer that falls silent does nothing."""
    first = np.minimum(on_top, on_top - alone)
    return np.stack([first, np.minimum(np.minimum(last, last - alone), last - other)])


def recognition(lab: Lab, neurons: NeuronSet, random: Sequence[NeuronSet], gap: float) -> Rows:
    """How active the set is on prompts sorted by what they are and what became of them.

    Activity is a mean over members of (h - m0) / (m1 - m0), weighted by how far each moves the residual, where m0 are
    means over answered benign prompts (activity 0) and m1 over refused harmful ones (activity 1). Harmful prompts
    that were *answered* tell recognition (near 1: it knows of the harm) from execution (near 0: it says no).
    Refused and answered are told by the sign of the margin. The effect of ablation is in units of `gap`, that of the
    cells where the model refuses.
    """
    act = np.concatenate([lab.act_h.numpy(), lab.act_b.numpy()])
    norms = lab.model.down_norms().numpy()
    clusters = np.concatenate([lab.clusters, lab.clusters])
    harmful = np.arange(len(act)) < len(lab.harmful)
    refused = np.concatenate([lab.clean_h, lab.clean_b]) > 0
    high, low = harmful & refused, ~harmful & ~refused
    if not high.any() or not low.any():
        return []

    def activity(members: NeuronSet) -> Float[np.ndarray, " prompt"]:
        layer, index = np.array(list(members)).T
        h, c = act[:, layer, index].astype(np.float64), norms[layer, index]
        m0, m1 = h[low].mean(axis=0), h[high].mean(axis=0)
        weight = c * np.abs(m1 - m0)
        return ((h - m0) * c * np.sign(m1 - m0)).sum(axis=1) / max(float(weight.sum()), 1e-12)

    mine = activity(neurons)
    others = np.stack([activity(s) for s in random[:BESIDE]]) if random else np.empty((0, len(act)))
    margins = np.concatenate([lab.on_harmful([lab.ablate(neurons)])[0], lab.on_benign([lab.ablate(neurons)])[0]])
    change = (np.concatenate([lab.clean_h, lab.clean_b]) - margins) / gap
    out: Rows = []
    for label, word in ((harmful, "harmful"), (~harmful, "benign")):
        for happened, verb in ((refused, "refused"), (~refused, "answered")):
            rows = label & happened
            if len(set(clusters[rows])) >= 3:
                out.append({
                    "prompts": f"{word}, {verb}", "n": int(rows.sum()), "activity": _mean(mine[rows], clusters[rows], lab.seed),
                    "effect": _mean(change[rows], clusters[rows], lab.seed), "random": _span(others[:, rows].mean(axis=1)),
                })  # fmt: skip
    return out


def crossing(lab: Lab, neurons: NeuronSet, random: Sequence[NeuronSet], sources: Sequence[Cell]) -> Rows:
    """Harmful values of each source cell, written into the benign twins of every cell: [source, target, effect, random].

    Effects are shares of the source's own gap. Language to language, modality to modality; a source into itself is the
    ordinary sufficiency.
    """
    rows_of = lab.by_cell()
    sets = [neurons, *random[:5]]
    conditions, donated = [], []
    for source in sources:
        donor = {lab.clusters[i]: int(i) for i in rows_of[source]}
        mine = np.array([i for i, c in enumerate(lab.clusters) if c in donor])
        value = lab.act_b.clone()
        value[mine] = lab.act_h[[donor[lab.clusters[i]] for i in mine]]
        conditions += [Intervention(s, "patch", value) for s in sets]
        donated.append(mine)
    changes = (lab.on_benign(conditions) - lab.clean_b).reshape(len(sources), len(sets), -1)
    out: Rows = []
    for source, mine, change in zip(sources, donated, changes, strict=True):
        gap = float(lab.gaps[rows_of[source]].mean())
        for target, rows in rows_of.items():
            both = np.intersect1d(rows, mine)
            if len(both):
                out.append({
                    "source": str(source), "target": str(target), "n": len(both),
                    "effect": _mean(change[0][both] / gap, lab.clusters[both], lab.seed),
                    "random": _span(change[1:][:, both].mean(axis=1) / gap),
                })  # fmt: skip
    return out


def _mean(values: Float[np.ndarray, " row"], clusters: np.ndarray, seed: int) -> list[Any]:
    """Mean and interval over clusters, for JSON."""
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[c] for c in clusters])
    top, n = np.bincount(where, values, len(index)), np.bincount(where, minlength=len(index))
    return finite(bootstrap(lambda w: (w @ top) / (w @ n), list(clusters), seed=seed)[0])


def _span(values: Float[np.ndarray, " set"]) -> list[float] | None:
    """Mean, smallest and largest over control sets."""
    return [float(values.mean()), float(values.min()), float(values.max())] if len(values) else None
