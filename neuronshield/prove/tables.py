"""Rows of a proof: one frozen dataclass per table.

Effects are normalised (see `pairs`): 1 is the clean logit difference. An `Interval` is an estimate with its 95 % interval.
`random` is a `Spread` over random control sets, or None where there are none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..core.statistics import NAN, Interval
from ..find.signs import Sign

#: Conditions under which answers are generated; those of a control have its kind before them ("random set ablated").
CLEAN, SET_ABLATED, SET_INSERTED = "clean", "set ablated", "set inserted"

#: What a member may be called; "" is none of them. Members with one of the first two are verified.
ALONE, IN_A_GROUP, ANTI_REFUSAL = "alone", "in a group", "anti-refusal"


class Spread(NamedTuple):
    """Mean, smallest and largest value over control sets."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Float[np.ndarray, " set"]) -> Spread | None:
        """The spread of one value per control set; None without sets.

        >>> Spread.of(np.array([1.0, 2.0, 6.0]))
        Spread(mean=3.0, low=1.0, high=6.0)
        """
        return Spread(float(values.mean()), float(values.min()), float(values.max())) if len(values) else None


class Row:
    """A row that prints in one line."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({shown})"


def _short(value: Any) -> str:
    if isinstance(value, (Interval, Spread)):
        return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


#: Verdict of a claim that has fewer independent requests than its test needs to pass at all.
TOO_FEW = "too few requests to tell"

#: What a claim is measured on: the refusal margin at the first answer token, or generated answers.
MARGIN, ANSWERS = "margin", "answers"


@dataclass(frozen=True, repr=False)
class Claim(Row):
    """One claim about a set: its effect, what its controls reached, and its verdict.

    >>> claim = Claim("necessity: mean", Interval(0.6, 0.5, 0.7), "passed", {"random": [0.1, 0.2]}, {"random": 0.33})
    >>> claim, claim.strongest_control, claim.worst_p
    (Claim(name='necessity: mean', effect=0.60 [0.50, 0.70], verdict='passed'), ('random', 0.2), 0.33)

    Attributes:
        name: of a margin claim "necessity: zero" (mean, resample, patch), "sufficiency: patch" or "specificity"; of a claim about
            answers "refusals: necessity", "refusals: sufficiency", "refusals: coherence" or "utility".
        effect: normalised effect; for answers a change of a share: of those that refuse (necessity: the smaller of the fall of refusals
            and the rise of harmful compliance), that are incoherent, or that are right.
        verdict: "passed", "failed", "not tested", or "too few requests to tell" (the test could not pass with so few).
        controls: the effect of every control set, by kind; for answers of one set of each kind.
        p: for each kind that is drawn, (1 + #{control >= effect}) / (1 + draws); for answers the sign-flip test of each change; for
            equivalence, the TOST p ("TOST").
        over: for each single control set (for answers also for the drawn ones), the set's effect minus the control's, paired over
            requests.
        note: why it failed, or what was measured.
        measure: "margin" or "answers".
    """

    name: str
    effect: Interval
    verdict: str
    controls: dict[str, list[float]] = field(default_factory=dict, repr=False)
    p: dict[str, float] = field(default_factory=dict, repr=False)
    over: dict[str, Interval] = field(default_factory=dict, repr=False)
    note: str = field(default="", repr=False)
    measure: str = field(default=MARGIN, repr=False)

    @property
    def strongest_control(self) -> tuple[str, float] | None:
        """Kind and effect of the control set with the largest effect; None without controls."""
        best = [(kind, max(values)) for kind, values in self.controls.items() if values]
        return max(best, key=lambda item: item[1]) if best else None

    @property
    def worst_p(self) -> float | None:
        """The largest p over kinds of control; None without any."""
        return max(self.p.values()) if self.p else None

    @staticmethod
    def untested(name: str, note: str = "", *, measure: str = MARGIN) -> Claim:
        """A claim that could not be tested."""
        return Claim(name, NAN, "not tested", note=note, measure=measure)


@dataclass(frozen=True, repr=False)
class CellEffect(Row):
    """Mean ablation in one cell (language x modality).

    Attributes:
        n_pairs: pairs of the cell.
        clean_logit_difference: mean refusal margin of harmful minus benign prompts, in nats.
        effect: normalised effect of mean ablation of the set.
        strongest_control: the largest normalised effect of a control set; None without controls.
        p: the largest over drawn kinds of control; `p_holm` corrected over cells (Holm).
        verdict: "passed" or "failed".
    """

    n_pairs: int
    clean_logit_difference: float = field(repr=False)
    effect: Interval
    strongest_control: float | None = field(repr=False)
    p: float = field(repr=False)
    p_holm: float
    verdict: str


@dataclass(frozen=True, repr=False)
class Member(Row):
    """One neuron of the set: the effect of ablating it in three contexts, and its role.

    Attributes:
        layer, index: the neuron.
        alone: normalised effect of ablating it alone.
        last: its additional effect once all other members and the backup neurons are ablated.
        after_peers: its additional effect once the members and backups of its own and earlier layers are ablated.
        alone_frozen_norms: as `alone`, with every norm at its clean scale.
        role: "alone" (lowers the refusal margin when ablated alone), "in a group" (only, or more than twice as much, when others
            are ablated too), "anti-refusal" (ablation raises the margin), or "".
        verified: belongs to `Proof.verified`.
        sign: on which prompts its activation is larger, and whether it writes towards refusal or compliance.

    Effects and role are measured on the requests that choose members.
    """

    layer: int
    index: int
    alone: Interval
    last: Interval = field(repr=False)
    after_peers: Interval = field(repr=False)
    alone_frozen_norms: Interval = field(repr=False)
    role: str
    verified: bool
    sign: Sign | None = field(default=None, repr=False)

    @property
    def neuron(self) -> tuple[int, int]:
        """(layer, index)."""
        return self.layer, self.index


@dataclass(frozen=True, repr=False)
class Retest(Row):
    """The members that lower refusal, chosen on one third of the requests and tested as a set on the other two thirds.

    Attributes:
        claims: the same claims as of the whole set, against the same kinds of control, on the requests that did not choose.
        n_members: members tested.
        n_backups: backup neurons ablated with them.
        n_chosen_on: requests that chose the members.
        n_requests: requests that tested them.
        passed: whether every claim held.
    """

    claims: tuple[Claim, ...] = field(repr=False)
    n_members: int
    n_backups: int
    n_chosen_on: int
    n_requests: int
    passed: bool


@dataclass(frozen=True, repr=False)
class Wording(Row):
    """Change of refusals under mean ablation of the set, by two measures: what the answers are, and how they begin.

    Attributes:
        judged: fall of the share of answers to harmful prompts that refuse.
        keyword: fall of the share of them that start with a refusal prefix of the margin.
        more: the second minus the first, paired over requests.
        only_wording: the first words of answers change, and it is not shown that refusals do.
    """

    judged: Interval
    keyword: Interval
    more: Interval = field(repr=False)
    only_wording: bool

    @property
    def ratio(self) -> float | None:
        """The judged change by the keyword change; None where the keyword change is 0 or unknown."""
        return self.judged.value / self.keyword.value if abs(self.keyword.value) > 1e-12 else None


@dataclass(frozen=True, repr=False)
class Cost(Row):
    """What a proof took.

    Attributes:
        margins: refusal margins computed: forwards of one prompt, most of them of a part of the model.
        answers: answers generated.
    """

    margins: int
    answers: int


@dataclass(frozen=True, repr=False)
class ShuffledMembers(Row):
    """Members that lower the margin when ablated alone: of the tested set of `n`, and of each of the sets selected on shuffled labels."""

    set: int
    shuffled: tuple[int, ...]
    n: int

    def __str__(self) -> str:
        mean, most = float(np.mean(self.shuffled)), max(self.shuffled)
        return f"{self.set} of {self.n}; from sets chosen on shuffled labels: mean {mean:.1f}, max {most}"


@dataclass(frozen=True, repr=False)
class DosePoint(Row):
    """One point of the dose-response curve: change of the margin when the set's values are multiplied by alpha.

    Attributes:
        alpha: the factor; 0 ablates, 1 is the clean model.
        harmful, benign: normalised change of the margin on harmful prompts and on their matched benign prompts.
        random: the change on harmful prompts for random sets.
    """

    alpha: float
    harmful: Interval
    benign: Interval
    random: Spread | None = field(repr=False)


@dataclass(frozen=True, repr=False)
class SizePoint(Row):
    """Normalised effect of ablating the `size` strongest members; `random`: sets of as many neurons of the same layers."""

    size: int
    effect: Interval
    random: Spread | None = field(repr=False)


@dataclass(frozen=True, repr=False)
class Minimal(Row):
    """The smallest number of strongest members (`size` of `of`) with at least `share` of the whole set's effect."""

    size: int
    share: float
    of: int


@dataclass(frozen=True, repr=False)
class GroupEffect(Row):
    """Effect of the set without one group: `without` it, and what is `lost` by leaving out its `n` neurons."""

    group: str
    n: int
    without: Interval
    lost: Interval


@dataclass(frozen=True, repr=False)
class Completeness(Row):
    """How much of the clean logit difference remains when only the set keeps its values.

    Attributes:
        frame: which other neurons are at their benign mean: "all layers", or "its layers".
        share: of what is lost when every neuron of the frame is ablated, the part that the set retains (0 to 1).
        random: the same for random sets.
        without_set: normalised effect of ablating every neuron of the frame, the set included.
    """

    frame: str
    share: Interval
    random: Spread | None = field(repr=False)
    without_set: Interval = field(repr=False)


@dataclass(frozen=True, repr=False)
class BackupRound(Row):
    """Normalised effect of ablating the set, or the set with its backup candidates (`n`, `random`: as many random ones)."""

    ablated: str
    n: int
    effect: Interval
    random: Spread | None = field(repr=False)


@dataclass(frozen=True, repr=False)
class Activity(Row):
    """How active the set is on prompts of one label and outcome, over all cells.

    Attributes:
        label: "harmful" or "benign".
        outcome: "refused" or "answered", by the sign of the clean margin.
        n: prompts.
        activity: 0 as on answered benign prompts, 1 as on refused harmful ones, each less the benign mean of its cell.
        effect: normalised effect of mean ablation.
        random: activity of random sets.
    """

    label: str
    outcome: str
    n: int
    activity: Interval
    effect: Interval
    random: Spread | None = field(repr=False)


@dataclass(frozen=True, repr=False)
class CrossCellEffect(Row):
    """Normalised change of benign margins of cell `target` when harmful values of cell `source` are written into them, and the activity of
    the set on the target's own harmful prompts, less the benign mean there: 1 as in the source, 0 without response."""

    source: str
    target: str
    n: int
    effect: Interval
    random: Spread | None = field(repr=False)
    activity: Interval


@dataclass(frozen=True, repr=False)
class AnswerRate(Row):
    """Generated answers to prompts of a label under a condition. The three shares are of the answers that could be graded.

    Attributes:
        label: "harmful" or "benign".
        condition: "clean", "set ablated", "set inserted" (at its harmful values), or the same of a control ("random set ablated").
        n: answers.
        refused: share that refuse.
        complied: share that do as asked: harmful compliance where the prompt is harmful.
        incoherent: share that are empty, blank or degenerate.
        n_unknown: answers that could not be graded.
    """

    label: str
    condition: str
    n: int
    refused: Interval
    complied: Interval
    incoherent: Interval
    n_unknown: int

    def __repr__(self) -> str:
        shares = ", ".join(f"{getattr(self, k).value:.2f} {k}" for k in ("refused", "complied", "incoherent"))
        return f"AnswerRate({self.n} {self.label}, {self.condition}: {shares})"


@dataclass(frozen=True)
class Experiments:
    """Tables of all experiments (see `experiments`); empty where the verdict is "not tested"."""

    dose_response: tuple[DosePoint, ...] = ()
    size: tuple[SizePoint, ...] = ()
    minimal: Minimal | None = None
    groups: tuple[GroupEffect, ...] = ()
    completeness: tuple[Completeness, ...] = ()
    backups: tuple[BackupRound, ...] = ()
    recognition: tuple[Activity, ...] = ()
    cross_cell: tuple[CrossCellEffect, ...] = ()

    def __repr__(self) -> str:
        done = [f.name for f in fields(self) if getattr(self, f.name)]
        return f"Experiments({', '.join(done)})"


@dataclass(frozen=True)
class ControlSummary:
    """Which control sets there were.

    Attributes:
        sets: number of sets of each kind.
        missing: kinds that could not be had, or only smaller than the set, and why.
        recovered: share of the set that the selection finds again on shuffled labels, mean over draws; None where it was not run.
    """

    sets: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    recovered: float | None = None
