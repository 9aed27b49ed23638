"""Rows of a comparison of protocols: one frozen dataclass a table.

Two modalities are compared, text and one of pictures. `source` is the modality whose requests selected neurons or directions,
`target` the modality on whose harmful requests their ablation is measured. A **fall** is clean minus ablated: positive where the
ablation lowers refusal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..core.statistics import Interval

__all__ = [
    "Answered", "DirectionPoint", "Directional", "Effect", "FoundSet", "Outcome", "Overlapped", "Round", "Side", "Spread",
]  # fmt: skip


class Spread(NamedTuple):
    """Mean, smallest and largest value over control sets, and how many there are."""

    mean: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Float[np.ndarray, " control"]) -> Spread:
        """The spread of one value a control set.

        >>> Spread.of(np.array([1.0, 2.0, 6.0]))
        Spread(mean=3.0, low=1.0, high=6.0, n=3)
        """
        return Spread(float(values.mean()), low=float(values.min()), high=float(values.max()), n=len(values))


class _Row:
    """A row that prints in one line."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({shown})"


def _short(value: Any) -> str:
    return str(value) if isinstance(value, Interval) else f"{value:.3g}" if isinstance(value, float) else repr(value)


@dataclass(frozen=True, repr=False)
class Side(_Row):
    """One of the two modalities: how many requests there are, and whether the model refuses them.

    Attributes:
        modality: "text", "image", "typographic" or "text+image".
        cells: its cells, such as "en/text".
        n_refused, n_answered: harmful prompts that are refused, and benign ones that are answered, among those that select: the
            two groups of the behavioural protocol.
        n_harmful, n_benign: all prompts that select, by label.
        n_confirm: harmful prompts that confirm neurons one by one.
        n_test: harmful prompts on which effects are measured.
        n_requests: independent requests among them.
        difference: refusal margin of harmful minus benign prompts on the test requests, in nats (clean logit difference).
        refused: share of the answers to the test requests that refuse.
    """

    modality: str
    cells: tuple[str, ...] = field(repr=False)
    n_refused: int
    n_answered: int
    n_harmful: int = field(repr=False)
    n_benign: int = field(repr=False)
    n_confirm: int = field(repr=False)
    n_test: int
    n_requests: int
    difference: Interval
    refused: Interval


@dataclass(frozen=True, repr=False)
class Round(_Row):
    """One round of the behavioural protocol.

    Attributes:
        modality: whose requests were used.
        number: 1 for the first; in later rounds what was confirmed before is clamped.
        candidates: neurons whose probe score passes the threshold.
        confirmed: those whose patch lowers the refusal mass beyond the control neurons.
        controls: control neurons that were patched.
        largest: the largest z of a candidate against the control neurons; NaN without candidates.
    """

    modality: str
    number: int
    candidates: int
    confirmed: int
    controls: int
    largest: float


@dataclass(frozen=True, repr=False)
class FoundSet(_Row):
    """The neurons that a protocol found on the requests of one modality.

    Attributes:
        modality: whose requests were used.
        members: (layer, index) of every neuron.
    """

    modality: str
    members: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def n(self) -> int:
        """Number of neurons."""
        return len(self.members)

    def __repr__(self) -> str:
        return f"FoundSet({self.modality}, {self.n} neurons)"


@dataclass(frozen=True, repr=False)
class Overlapped(_Row):
    """How much the neurons of two modalities overlap, and compared with what; each a Jaccard index, NaN where a set is empty.

    Attributes:
        jaccard: of the two sets that the protocol found.
        coefficient: the same as a part of the smaller set.
        across: mean of selections from different requests: one modality on one half of them, the other on the other half.
        reliability: of two selections of one modality from the two halves; geometric mean over the modalities.
        benign_null: as `jaccard`, where benign prompts of one half stand for harmful ones.
        selected: what the last three are of: "set", or "candidates" of the first round where the whole protocol is not run again.
    """

    jaccard: float
    coefficient: float
    across: float
    reliability: float
    benign_null: float
    selected: str = field(repr=False)


@dataclass(frozen=True, repr=False)
class Answered(_Row):
    """Generated answers to harmful test requests, clean and under ablation.

    Attributes:
        judged: fall of the share that refuses, by the judge or by how refusals are worded.
        keyword: fall of the share that starts with a refusal prefix.
        complied: rise of the share that does as asked (harmful compliance).
        control: fall of the judged share under the control set whose margin effect a set has to exceed for p <= 0.05.
        n: answers.
    """

    judged: Interval
    keyword: Interval
    complied: Interval
    control: Interval = field(repr=False)
    n: int

    @property
    def ratio(self) -> float | None:
        """The judged fall by the keyword fall; None where the keyword fall is 0 or unknown."""
        return self.judged.value / self.keyword.value if abs(self.keyword.value) > 1e-12 else None


@dataclass(frozen=True, repr=False)
class Effect(_Row):
    """What mean ablation of one set does to the harmful test requests of one modality.

    Attributes:
        source, target: modalities that selected the set, and that it is ablated in.
        n: neurons of the set.
        n_requests: independent requests of the target.
        margin: fall of the refusal margin, in nats.
        mass: fall of the first-token refusal mass, 0 to 1.
        controls: fall of the margin under ablation of control sets of as many neurons a layer, by kind.
        p: for each kind (1 + #{control >= set}) / (1 + controls).
        answers: what answers become; None where none are generated.
        verdict: "passed" (the fall is above 0 and above every kind of control at 0.05), "failed" or "too few requests to tell".
    """

    source: str
    target: str
    n: int
    n_requests: int = field(repr=False)
    margin: Interval
    mass: Interval
    controls: dict[str, Spread] = field(repr=False)
    p: dict[str, float] = field(repr=False)
    answers: Answered | None = field(repr=False)
    verdict: str

    @property
    def crosses(self) -> bool:
        """Whether the set is ablated in the other modality."""
        return self.source != self.target


@dataclass(frozen=True, repr=False)
class Outcome(_Row):
    """What one protocol found in the two modalities.

    Attributes:
        protocol: its name.
        site: where neurons are read: "neuron", "gate", "up" or "attention".
        sets: the neurons of each modality.
        overlap: of the two sets; None where nothing is selected, and for One Anchor, whose two sets are the same by definition.
        rounds: of the behavioural protocol; empty for the others.
        effects: of each set in its own and in the other modality.
        verdict: "shared, transfers", "separate", "transfers one way", "none found", "too few requests to tell" or "not tested".
        reason: why.
    """

    protocol: str
    site: str = field(repr=False)
    sets: tuple[FoundSet, ...]
    overlap: Overlapped | None = field(repr=False)
    rounds: tuple[Round, ...] = field(repr=False)
    effects: tuple[Effect, ...] = field(repr=False)
    verdict: str
    reason: str = field(repr=False)

    def effect(self, source: str, target: str) -> Effect | None:
        """The effect of the set of `source` in `target`; None where there is none."""
        return next((e for e in self.effects if (e.source, e.target) == (source, target)), None)


@dataclass(frozen=True, repr=False)
class DirectionPoint(_Row):
    """What projection ablation of k directions does to the harmful test requests of one modality.

    Attributes:
        source, target: modalities that gave the directions, and that they are ablated in.
        layer: whose output they are ablated from, from 0.
        k: directions.
        margin: fall of the refusal margin, in nats.
        mass: fall of the first-token refusal mass.
        random: fall of the margin under ablation of as many random directions.
        p: (1 + #{random >= directions}) / (1 + draws).
    """

    source: str
    target: str
    layer: int
    k: int
    margin: Interval
    mass: Interval
    random: Spread = field(repr=False)
    p: float


@dataclass(frozen=True, repr=False)
class Directional(_Row):
    """The analysis of directions in the two modalities.

    Attributes:
        points: the falls for growing numbers of directions.
        needed: by modality, the fewest of its directions at which its refusal margin falls by `share` of its largest fall, if that
            exceeds random directions; None where none do.
        share: see `needed`.
        verdict, reason: as for `Outcome`.
    """

    points: tuple[DirectionPoint, ...] = field(repr=False)
    needed: dict[str, int | None]
    share: float = field(repr=False)
    verdict: str
    reason: str = field(repr=False)

    def curve(self, source: str, target: str) -> tuple[DirectionPoint, ...]:
        """The points of the directions of `source` in `target`, by k."""
        return tuple(p for p in self.points if (p.source, p.target) == (source, target))
