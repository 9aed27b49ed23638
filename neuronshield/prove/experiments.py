"""Experiments on a set, each beside random sets; the results are tables of rows (see `tables`).

    dose_response   the set's values scaled by alpha from -1 to 2: does the refusal margin follow?
    size            the strongest 1, 2, 4, ... members ablated: how few have most of the effect (minimality)?
    groups          the set without one layer (or one quarter) of it: which group has the effect?
    completeness    only the set keeps its values, every other neuron is at its benign mean: is the set enough?
    recognition     is the set active on harmful prompts that are answered, or only where the model refuses?
    cross_cell      harmful values of a refusing cell written into benign prompts of another cell: does refusal transfer?

Effects are normalised: a change of the refusal margin divided by the clean logit difference (see `pairs`).

The search for backup neurons is in `backups`. Every experiment takes matched pairs, a set, and random sets beside it:

>>> from neuronshield.model.prefixes import opening_tokens, openings_of
>>> from neuronshield.prove.pairs import match, measure
>>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
>>> pairs = measure(model, match(prompts, seed=0)[0], tokens)
>>> random = [ns.random_like(neurons, model, seed=i) for i in range(2)]
>>> [p.alpha for p in dose_response(pairs, neurons, random)]
[-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
>>> [p.size for p in size(pairs, list(neurons), draws=1)], [g.group for g in groups(pairs, neurons, list(neurons))]
([1, 2, 3], ['layer 0', 'layer 1', 'layer 2'])
>>> [c.frame for c in completeness(pairs, neurons, random)]
['all layers']
>>> [(e.source, e.target) for e in cross_cell(pairs, neurons, random, sources=[ns.Cell("en", "text")])]
[('en/text', 'en/text'), ('en/text', 'sw/text')]

Sources: Wang et al. (2023), completeness and minimality; Zhang and Nanda (2024), patching and its normalisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from ..core.intervals import ratio_of_means
from ..core.neurons import NeuronSet
from ..core.statistics import Interval
from ..data.prompts import Cell
from ..model.intervention import Intervention
from .controls import drawn_like
from .pairs import MatchedPairs
from .tables import (
    Activity,
    Completeness,
    CrossCellEffect,
    DosePoint,
    GroupEffect,
    Minimal,
    SizePoint,
    Spread,
)

__all__ = [
    "ALPHAS",
    "completeness",
    "cross_cell",
    "dose_response",
    "groups",
    "minimal",
    "recognition",
    "size",
]

#: Factors of the dose-response curve.
ALPHAS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
BESIDE = 20  # random sets beside each experiment
BESIDE_CELLS = 5  # random sets beside cross-cell patching, per source cell
ENOUGH = 0.9  # share of the set's effect that counts as most of it


# -- how much, how few, which group ---------------------------------------------------------------------------
def dose_response(
    pairs: MatchedPairs, neurons: NeuronSet, random: Sequence[NeuronSet], *, alphas: Sequence[float] = ALPHAS
) -> tuple[DosePoint, ...]:
    """The dose-response curve: normalised change of the margin when the set's values are multiplied by alpha.

    Args:
        pairs: matched pairs.
        neurons: the set.
        random: random sets, all of which are used.
        alphas: the factors.
    """
    conditions = [Intervention(s, "scale", a) for a in alphas for s in (neurons, *random)]
    harmful = pairs.on_harmful(conditions).reshape(len(alphas), -1, len(pairs)) - pairs.harmful_margins
    benign = pairs.on_benign([Intervention(neurons, "scale", a) for a in alphas]) - pairs.benign_margins
    return tuple(
        DosePoint(
            alpha, harmful=pairs.normalised_effect(mine[0]), benign=pairs.normalised_effect(other),
            random=Spread.of(pairs.normalised_effects(mine[1:])),
        )
        for alpha, mine, other in zip(alphas, harmful, benign, strict=True)
    )  # fmt: skip


def size(pairs: MatchedPairs, ranked: Sequence[tuple[int, int]], *, draws: int = BESIDE) -> tuple[SizePoint, ...]:
    """Normalised effect of ablating the strongest n members, n = 1, 2, 4, ..., three quarters, all.

    Args:
        pairs: matched pairs.
        ranked: the members, the strongest first.
        draws: random sets of the same layers beside each.
    """
    n = len(ranked)
    sizes = sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n), round(0.75 * n) or 1})
    rng = np.random.default_rng(pairs.seed)
    sets: dict[int, list[NeuronSet]] = {}
    for k in sizes:
        best = NeuronSet(ranked[:k], n_layers=pairs.model.n_layers, d_mlp=pairs.model.d_mlp)
        beside = [drawn_like(best, pairs.model, seed=rng) for _ in range(draws)]
        sets[k] = [best, *(s for s in beside if len(s) == k)]
    change = pairs.harmful_margins - pairs.on_harmful([pairs.ablate(s) for of_size in sets.values() for s in of_size])
    parts = np.split(change, np.cumsum([len(s) for s in sets.values()])[:-1])
    return tuple(
        SizePoint(k, pairs.normalised_effect(c[0]), Spread.of(pairs.normalised_effects(c[1:])))
        for k, c in zip(sizes, parts, strict=True)
    )


def minimal(points: Sequence[SizePoint]) -> Minimal:
    """The smallest size with at least 90 % of the whole set's effect.

    Args:
        points: of `size`; the last is the whole set.
    """
    whole = points[-1]
    enough = next(p.size for p in points if p.effect.value >= ENOUGH * whole.effect.value or p is whole)
    return Minimal(enough, ENOUGH, whole.size)


def groups(pairs: MatchedPairs, neurons: NeuronSet, ranked: Sequence[tuple[int, int]]) -> tuple[GroupEffect, ...]:
    """Normalised effect of the set without one of its layers, or without one quarter by strength if it has one layer only.

    Args:
        pairs: matched pairs.
        neurons: the set.
        ranked: its members, the strongest first.
    """
    layers = neurons.by_layer()
    if len(layers) > 1:
        parts = {f"layer {layer}": [(layer, i) for i in members] for layer, members in layers.items()}
    elif len(ranked) >= 4:
        quarters = np.array_split(np.arange(len(ranked)), 4)
        parts = {f"quarter {q}": [ranked[i] for i in rows] for q, rows in enumerate(quarters, 1)}
    else:
        return ()
    without = [neurons - NeuronSet(part) for part in parts.values()]
    change = pairs.harmful_margins - pairs.on_harmful([pairs.ablate(s) for s in (neurons, *without)])
    return tuple(
        GroupEffect(
            name, len(part), without=pairs.normalised_effect(left), lost=pairs.normalised_effect(change[0] - left)
        )
        for (name, part), left in zip(parts.items(), change[1:], strict=True)
    )


def completeness(pairs: MatchedPairs, neurons: NeuronSet, random: Sequence[NeuronSet]) -> tuple[Completeness, ...]:
    """What remains of the clean logit difference when only the set keeps its values.

    All other neurons of a frame (every layer, or the set's own layers) are at their benign means at the last prompt token.
    A share of 0 means that the set alone retains nothing, 1 that it needs no other neuron of the frame.

    Args:
        pairs: matched pairs.
        neurons: the set.
        random: random sets; the first 20 are used.
    """
    n_layers, d_mlp = pairs.model.n_layers, pairs.model.d_mlp
    own = list(neurons.by_layer())
    frames = {"all layers": list(range(n_layers))} | ({"its layers": own} if len(own) < n_layers else {})
    out = []
    for frame, layers in frames.items():
        every = NeuronSet([(la, i) for la in layers for i in range(d_mlp)], n_layers=n_layers, d_mlp=d_mlp)
        kept = [every - NeuronSet(s) for s in (neurons, *random[:BESIDE])]
        if not len(kept[0]):  # the set is the whole frame
            continue
        margins = pairs.on_harmful([pairs.ablate(every), *(pairs.ablate(s) for s in kept)])
        lowest, change = margins[0], margins[1:] - margins[0]
        whole = pairs.harmful_margins - lowest
        spread = ratio_of_means(change[0], whole, list(pairs.requests))
        share = Interval(float(change[0].mean() / whole.mean()), spread.low, spread.high)
        random_share = Spread.of(change[1:].mean(axis=1) / whole.mean())
        out.append(Completeness(frame, share, random_share, without_set=pairs.normalised_effect(whole)))
    return tuple(out)


# -- recognition and transfer ---------------------------------------------------------------------------------
def recognition(
    pairs: MatchedPairs, neurons: NeuronSet, random: Sequence[NeuronSet], *, difference: float
) -> tuple[Activity, ...]:
    """How active the set is on harmful and benign prompts that are refused or answered (by the sign of the clean margin).

    Activity is a mean over members of (h - m0) / (m1 - m0), weighted by how far each moves the residual stream, where m0 are
    means over answered benign prompts (activity 0) and m1 over refused harmful ones (activity 1). h is taken less its mean over the
    benign prompts of its cell, so that what differs between languages or modalities whatever is asked does not count. On harmful prompts
    that are answered, activity near 1 means that the set responds to harm, near 0 that it is active only where the model refuses.

    Args:
        pairs: matched pairs of all cells.
        neurons: the set.
        random: random sets; the first 20 are used.
        difference: clean logit difference of the cells where the model refuses: the unit of the effects.
    """
    rows = pairs.rows
    requests = np.concatenate([rows.requests, rows.requests])
    harmful = np.arange(len(requests)) < len(pairs)
    clean = np.concatenate([rows.harmful_margins, rows.benign_margins])
    refused = clean > 0
    high, low = harmful & refused, ~harmful & ~refused
    if not high.any() or not low.any():
        return ()

    def activity(members: NeuronSet) -> Float[np.ndarray, " prompt"]:
        h = np.concatenate([_values(pairs, members, label) for label in ("harmful", "benign")])
        return _activity(pairs, members, h, quiet=h[low].mean(axis=0), loud=h[high].mean(axis=0))

    mine = activity(neurons)
    others = np.stack([activity(s) for s in random[:BESIDE]]) if random else np.empty((0, len(requests)))
    ablated = [pairs.ablate(neurons)]
    margins = np.concatenate([pairs.on_harmful(ablated)[0], pairs.on_benign(ablated)[0]])
    change = (clean - margins) / difference
    out = []
    for label, outcome, which in _outcomes(harmful, refused):
        if len(set(requests[which])) >= 3:
            out.append(Activity(
                label, outcome, n=int(which.sum()), activity=_mean(mine[which], requests[which]),
                effect=_mean(change[which], requests[which]), random=Spread.of(others[:, which].mean(axis=1)),
            ))  # fmt: skip
    return tuple(out)


def _outcomes(
    harmful: Shaped[np.ndarray, " prompt"], refused: Shaped[np.ndarray, " prompt"]
) -> Iterator[tuple[str, str, Any]]:
    """(label, outcome, which prompts)."""
    for label, mine in (("harmful", harmful), ("benign", ~harmful)):
        for outcome, happened in (("refused", refused), ("answered", ~refused)):
            yield label, outcome, mine & happened


def cross_cell(
    pairs: MatchedPairs, neurons: NeuronSet, random: Sequence[NeuronSet], *, sources: Sequence[Cell]
) -> tuple[CrossCellEffect, ...]:
    """Cross-cell patching: harmful values of each source cell, written into the benign prompts of every cell.

    The donor is the harmful prompt of the same request in the source cell. Effects are divided by the source's own clean
    logit difference. A source into itself is the claim of sufficiency.

    What is written acts whether or not the target cell ever has such values by itself. So each row also has the set's activity
    on the harmful prompts of the target: the mean over members of h, less its benign mean in the target, with the member's sign in the
    source and weighted by how far it moves the residual stream, divided by the same of the source (which has 1).

    Args:
        pairs: matched pairs of all cells.
        neurons: the set.
        random: random sets; the first 5 are used.
        sources: cells where the model refuses.
    """
    rows_of = pairs.by_cell()
    sets = [neurons, *random[:BESIDE_CELLS]]
    conditions, donated = [], []
    for source in sources:
        donor = {pairs.requests[i]: int(i) for i in rows_of[source]}
        mine = np.array([i for i, request in enumerate(pairs.requests) if request in donor])
        value = pairs.rows.benign_values.clone()
        value[mine] = pairs.rows.harmful_values[[donor[pairs.requests[i]] for i in mine]]
        conditions += [Intervention(s, "patch", value) for s in sets]
        donated.append(mine)
    changes = (pairs.on_benign(conditions) - pairs.benign_margins).reshape(len(sources), len(sets), -1)
    h = _values(pairs, neurons, "harmful")
    out = []
    for source, mine, change in zip(sources, donated, changes, strict=True):
        difference = float(pairs.differences[rows_of[source]].mean())
        loud = h[rows_of[source]].mean(axis=0)
        activity = _activity(pairs, neurons, h, quiet=np.zeros_like(loud), loud=loud)
        for target, rows in rows_of.items():
            both = np.intersect1d(rows, mine)
            if len(both):
                out.append(CrossCellEffect(
                    str(source), str(target), n=len(both),
                    effect=_mean(change[0][both] / difference, pairs.requests[both]),
                    random=Spread.of(change[1:][:, both].mean(axis=1) / difference),
                    activity=_mean(activity[rows], pairs.requests[rows]),
                ))  # fmt: skip
    return tuple(out)


def _values(pairs: MatchedPairs, members: NeuronSet, label: str) -> Float[np.ndarray, "pair member"]:
    """The values of a set on the prompts of a label, less their benign mean in the cell."""
    layer, index = np.array(list(members)).T
    values = pairs.rows.harmful_values if label == "harmful" else pairs.rows.benign_values
    return (values[:, layer, index] - pairs.rows.mean_values[:, layer, index]).numpy().astype(np.float64)


def _activity(
    pairs: MatchedPairs,
    members: NeuronSet,
    h: Float[np.ndarray, "row member"],
    *,
    quiet: Float[np.ndarray, " member"],
    loud: Float[np.ndarray, " member"],
) -> Float[np.ndarray, " row"]:
    """The activity of a set in each row: 0 at the values `quiet`, 1 at `loud`, each member by how far it moves the residual stream."""
    layer, index = np.array(list(members)).T
    c, change = pairs.model.down_norms().numpy()[layer, index], loud - quiet
    return ((h - quiet) * c * np.sign(change)).sum(axis=1) / max(float((c * np.abs(change)).sum()), 1e-12)


def _mean(values: Float[np.ndarray, " row"], requests: Shaped[np.ndarray, " row"]) -> Interval:
    """Mean over rows and its interval over requests."""
    return ratio_of_means(values, np.ones(len(values)), list(requests))
