"""What each protocol selects in the two modalities, and how far two selections agree.

The published rules (`find.rules`) choose a set for each cell, by the labels of the prompts. The set of a modality is the union of the
sets of its cells; cells without all the cells that a rule joins with them (English, the other modality) have none. The behavioural protocol selects **candidates** by a probe (`probes`), by what the model does: harmful prompts that
it refuses against benign ones that it answers.

Two modalities that are asked the same requests share noise, and no selection finds the same neurons twice. So each selection is run
again on halves of the requests (`find.folds` deals them, the same in both modalities):

    across        one modality on one half, the other modality on the other half
    reliability   one modality on either half; geometric mean over the two modalities
    benign null   as the whole selection, with benign prompts of one half in place of harmful ones and of the other half of benign ones

Overlap of two modalities is beyond noise where it exceeds the benign null, and complete where `across` reaches the reliability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool

from ..data.prompts import Prompt
from ..find.folds import SPLITS, folds_of
from ..find.groups import Stats
from ..find.rules import cells_read, run_leaf
from .bench import Bench
from .probes import candidates, probe_scores
from .tables import Overlapped

__all__ = ["LEAST", "RULES", "Addresses", "Masks", "Pick", "overlapped", "pick_by_probe", "pick_by_rule"]

#: The published rules, by the names of `find.rules`, with the option that is a part of the neurons of a layer.
RULES = {"precise_shield": "rho", "one_anchor": "rho", "ss_neurons": "p"}
#: Prompts of either group that a probe takes.
LEAST = 8

Addresses: TypeAlias = frozenset[tuple[int, int]]
#: Which prompts of each modality are used, or stand for harmful ones.
Masks: TypeAlias = Sequence[Bool[np.ndarray, " _"]]
#: From the prompts that are used, and those that stand for harmful ones, the neurons of each modality; None where there are too few.
Pick: TypeAlias = Callable[[Masks, Masks], tuple[Addresses | None, ...]]


def pick_by_rule(rule: str, benches: Sequence[Bench], stats: Stats, *, part: float) -> Pick:
    """The selection of a published rule in both modalities.

    Args:
        rule: a name from `RULES`.
        benches: the two modalities.
        stats: gives the norms of W_down.
        part: of the neurons of a layer, that the rule ranks first.
    """
    options: dict[str, object] = {RULES[rule]: part}
    if rule == "one_anchor":
        options["modalities"] = [bench.modality for bench in benches]
    values = torch.cat([bench.values for bench in benches])
    prompts = [p for bench in benches for p in bench.prompts]

    def pick(used: Masks, high: Masks) -> tuple[Addresses | None, ...]:
        rows = np.flatnonzero(np.concatenate(used))
        labels = np.where(np.concatenate(high), "harmful", "benign")
        chosen: list[Prompt] = [prompts[int(i)] for i in rows]
        moments = Stats.of(values[torch.from_numpy(rows)], chosen, like=stats, labels=labels[rows].tolist())
        found: list[Addresses | None] = []
        for bench in benches:
            cells = [c for c in moments.cells() if c.modality == bench.modality]
            leaves = [{"rule": rule, "cell": str(cell), "options": options} for cell in cells]
            ready = [leaf for leaf in leaves if set(cells_read(leaf)) <= set(map(str, moments.cells()))]
            members = frozenset(at for leaf in ready for at in run_leaf(leaf, moments)[0])
            found.append(members if ready else None)
        return tuple(found)

    return pick


def pick_by_probe(benches: Sequence[Bench]) -> Pick:
    """The candidates of the behavioural protocol in both modalities.

    Args:
        benches: the two modalities.
    """

    def pick(used: Masks, high: Masks) -> tuple[Addresses | None, ...]:
        found: list[Addresses | None] = []
        for bench, mine, harmful in zip(benches, used, high, strict=True):
            first, second = (mine & bench.behaves & side for side in (harmful, ~harmful))
            if min(first.sum(), second.sum()) < LEAST:
                found.append(None)
                continue
            values = bench.values.numpy()
            mask = candidates(*probe_scores(values[first], values[second]))
            found.append(frozenset((int(layer), int(index)) for layer, index in np.argwhere(mask)))
        return tuple(found)

    return pick


def too_few_labelled(refused: int, answered: int) -> str:
    """Why a probe is not fitted.

    >>> too_few_labelled(3, 20)
    'too few: 3 harmful prompts refused and 20 benign ones answered, at least 8 of each are needed'

    Args:
        refused: harmful prompts that the model refuses.
        answered: benign prompts that it answers.
    """
    return f"too few: {refused} harmful prompts refused and {answered} benign ones answered, at least {LEAST} of each are needed"


def overlapped(
    pick: Pick, benches: Sequence[Bench], sets: Sequence[Addresses], *, selected: str, seed: int
) -> Overlapped:
    """How far the sets of two modalities agree, and two selections from different requests.

    Args:
        pick: the selection.
        benches: the two modalities.
        sets: what the protocol found in each.
        selected: what `pick` gives: "set" or "candidates".
        seed: of the folds.
    """
    flat = folds_of([p for bench in benches for p in bench.prompts], seed)
    folds = np.split(np.array(flat), np.cumsum([len(bench.prompts) for bench in benches])[:-1])
    across: list[float] = []
    own: list[list[float]] = [[] for _ in benches]
    null: list[float] = []
    for split in SPLITS:
        inside = [np.isin(fold, sorted(split[0])) for fold in folds]
        one, other = (pick(rows, [b.harmful for b in benches]) for rows in (inside, [~x for x in inside]))
        across += [_jaccard(one[0], other[1]), _jaccard(other[0], one[1])]
        for kept, *halves in zip(own, one, other, strict=True):
            kept.append(_jaccard(*halves))
        null.append(_jaccard(*pick([~b.harmful for b in benches], inside)))
    smaller = min(map(len, sets))
    return Overlapped(
        jaccard=_jaccard(*sets), coefficient=len(sets[0] & sets[1]) / smaller if smaller else float("nan"),
        across=_mean(across), reliability=float(np.sqrt(np.prod([_mean(kept) for kept in own]))), benign_null=_mean(null),
        selected=selected,
    )  # fmt: skip


def _jaccard(a: Addresses | None, b: Addresses | None) -> float:
    """NaN where a set is missing or both are empty."""
    return len(a & b) / len(a | b) if a is not None and b is not None and a | b else float("nan")


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")
