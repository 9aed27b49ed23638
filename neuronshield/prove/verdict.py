"""The verdict on a set: the rule that is fixed beforehand, the proof, and the sentence that states its reason.

`verify` makes a `Proof`. This module holds what a proof consists of and how it is shown, saved and read back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..core.display import count
from ..core.errors import InputError
from ..core.files import write_text
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_json, to_json
from .tables import TOO_FEW, AnswerRate, CellEffect, Claim, ControlSummary, Experiments, Member, Retest

__all__ = ["RULE", "Claim", "Proof", "Rule"]

FORMAT = "neuronshield.Proof/2"


@dataclass(frozen=True)
class Rule:
    """What a claim must show to pass; fixed before any result is seen.

    Attributes:
        alpha: level of every test, against each kind of control.
        min_effect: least normalised effect; the interval must exclude 0 as well.
        max_benign_shift: benign margins must be equivalent to the clean ones within this normalised effect.
        max_utility_change: share of benign answers that are right must be equivalent within this.
        min_refusal: refused harmful minus refused benign prompts; below it there is no refusal to explain.
        material: a member's effect must be at least this share of the largest in its layer, and of `min_effect`.
    """

    alpha: float = 0.05
    min_effect: float = 0.10
    max_benign_shift: float = 0.25
    max_utility_change: float = 0.10
    min_refusal: float = 0.10
    material: float = 0.05


#: The rule in force.
RULE = Rule()


def reason_of(claims: Sequence[Claim], *, retest: Retest | None, n_backups: int) -> str:
    """The sentence that states why a set passed or failed.

    >>> from neuronshield.core.statistics import Interval
    >>> from neuronshield.prove.verdict import Claim, reason_of
    >>> effect = Interval(0.02, -0.1, 0.1)
    >>> reason_of([Claim("specificity", effect, "failed")], retest=None, n_backups=2)
    'not shown to cause refusals; failed: specificity; self-repair: 2 backup neurons outside the set'

    Args:
        claims: of the whole set.
        retest: of its members by themselves, where the set failed.
        n_backups: backup neurons outside the set.
    """
    parts = [_verdict_reason(claims)]
    if retest is not None:
        parts.append(_retest_reason(retest))
    if n_backups:
        parts.append(f"self-repair: {count(n_backups, 'backup neuron')} outside the set")
    return "; ".join(parts)


def _verdict_reason(claims: Sequence[Claim]) -> str:
    failed, few = failed_of(claims), too_few_of(claims)
    if not failed and not few:
        return (
            "ablating the set lowers the refusal margin, inserting it raises it, and benign margins stay as they were"
        )
    said = [f"failed: {', '.join(failed)}"] * bool(failed) + [f"{TOO_FEW}: {', '.join(few)}"] * bool(few)
    return f"not shown to cause refusals; {'; '.join(said)}"


def _retest_reason(retest: Retest) -> str:
    failed = ", ".join(open_of(retest.claims))
    if not retest.passed:
        members = count(retest.n_members, "member")
        return f"also failed by the {members} that lower the margin one by one or in a group: {failed}"
    backups = f" together with {count(retest.n_backups, 'backup')}" if retest.n_backups else ""
    others = (
        f" (controls drawn without {count(retest.n_excluded, 'other neuron')} that also lower it)"
        if retest.n_excluded
        else ""
    )
    also = f", without these claims: {failed}" if failed else ""
    return (
        f"{retest.n_members} of its members{backups}, selected on half of the requests, lower the refusal margin on the other half"
        f"{others}{also}"
    )


def failed_of(claims: Sequence[Claim]) -> list[str]:
    """Names of the claims that failed."""
    return [c.name for c in claims if c.verdict == "failed"]


def too_few_of(claims: Sequence[Claim]) -> list[str]:
    """Names of the claims that have too few requests to tell."""
    return [c.name for c in claims if c.verdict == TOO_FEW]


def open_of(claims: Sequence[Claim]) -> list[str]:
    """Names of the claims that were tested and did not pass: those that failed, then those with too few requests."""
    return [*failed_of(claims), *too_few_of(claims)]


@dataclass(frozen=True, eq=False)
class Proof:
    """What `verify` found. Prints as a table; `verified` is the set that may be trained, possibly empty.

    >>> proof = ns.verify(model, neurons, prompts, draws=1, refusals=["sorry"], compliances=["sure"], progress=False)
    >>> proof.passed, proof.n_pairs, list(proof.to_frame().columns[:4])
    (False, 15, ['claim', 'effect', 'low', 'high'])

    Attributes:
        neurons: the set that was tested.
        verified: its members that lower the refusal margin, alone or in a group; empty unless the set passed, or those members,
            selected on half of the requests, passed necessity by themselves on the other half (`retest`).
        anti_refusal: members whose ablation *raises* the refusal margin.
        backups: neurons outside the set that gain an effect once it is ablated (self-repair).
        passed: whether every claim of `rule` held.
        reason: why, in one sentence.
        claims: one per claim.
        retest: the same for members by themselves, where the whole set failed; None where it passed or none lowers refusal.
        cells: effect of mean ablation by cell ("en/text").
        members: one row per neuron of the set.
        experiments: tables of every experiment.
        answers: refusal rates of generated answers, clean and under ablation.
        n_pairs: pairs of the claims; `paired`: whether they are matched pairs.
        draws: control sets per kind that is drawn.
        controls: numbers of control sets, and which are missing.
        provenance: model, data hash, seed, versions.
        rule: the rule that was applied.
    """

    neurons: NeuronSet
    verified: NeuronSet
    anti_refusal: NeuronSet
    backups: NeuronSet
    passed: bool
    reason: str
    claims: tuple[Claim, ...]
    n_pairs: int
    draws: int
    paired: bool
    retest: Retest | None = None
    cells: dict[str, CellEffect] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    experiments: Experiments = field(default_factory=Experiments)
    answers: tuple[AnswerRate, ...] = ()
    controls: ControlSummary = field(default_factory=ControlSummary)
    provenance: dict[str, Any] = field(default_factory=dict)
    rule: Rule = RULE

    @property
    def word(self) -> str:
        """ "passed", "no", "too few requests to tell" (no claim failed, and one has too few) or "not tested"."""
        if self.passed:
            return "passed"
        if failed_of(self.claims):
            return "no"
        return TOO_FEW if too_few_of(self.claims) else "not tested"

    # -- shown ----------------------------------------------------------------------------------------
    def to_frame(self) -> pd.DataFrame:
        """One row per claim: effect with its interval, strongest control and its kind, largest p, verdict, note."""
        import pandas as pd

        rows = []
        for c in self.claims:
            kind, control = c.strongest_control or ("", None)
            rows.append({
                "claim": c.name, "effect": c.effect.value, "low": c.effect.low, "high": c.effect.high,
                "strongest_control": control, "kind": kind, "p": c.worst_p, "verdict": c.verdict, "note": c.note,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def figure(self, what: str = "claims") -> go.Figure:
        """A figure of the claims beside every control set, or of an experiment.

        Args:
            what: "claims", "dose_response", "size" or "cross_cell".

        Raises:
            InputError: an unknown name, or an experiment that was not done.
        """
        from ..figures import proof_figure

        return proof_figure(self.to_dict(), what)

    def __str__(self) -> str:
        table = self.to_frame().to_string(index=False, float_format="{:.2f}".format, formatters={"p": _p}, na_rep="")
        return f"{self.word.upper()}: {self.reason}\n{table}"

    def __repr__(self) -> str:
        return f"Proof({self.word}, {len(self.verified)} of {len(self.neurons)} verified)"

    def _repr_html_(self) -> str:
        counts = (
            f"{len(self.verified)} of {len(self.neurons)} neurons verified, {len(self.anti_refusal)} anti-refusal, "
            f"{len(self.backups)} backups; {self.n_pairs} pairs, {self.draws} draws per kind of control"
        )
        head = f"<p><b>{escape(self.word.capitalize())}.</b> {escape(self.reason)}.<br>{escape(counts)}.</p>"
        table = self.to_frame().to_html(index=False, float_format="{:.2f}".format, formatters={"p": _p}, na_rep="")
        return head + table

    # -- kept -----------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; `word` is added. `Proof.from_dict` reads it back."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"word": self.word, **{k: _set_json(v) if k in SETS else to_json(v) for k, v in own.items()}}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Proof:
        """The proof that `to_dict` turned into `data`; an infinite bound, which JSON cannot hold, is read back as NaN.

        Raises:
            InputError: a missing, unknown or ill-typed field.
        """
        kinds = get_type_hints(Proof)
        if not isinstance(data, dict) or set(data) - {"word"} != set(kinds):
            odd = sorted(set(kinds) ^ (set(data) - {"word"})) if isinstance(data, dict) else [type(data).__name__]
            raise InputError(f"Proof: not written by Proof.to_dict: {odd[0]!r} is missing or unknown")
        read: dict[str, Any] = {
            k: _set_from(data[k]) if k in SETS else from_json(kind, data[k]) for k, kind in kinds.items()
        }
        return Proof(**read)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proof) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.neurons, self.reason, self.draws))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the proof as one JSON file (beside its place, then renamed); returns the path.

        >>> proof = ns.verify(model, neurons, prompts, draws=1, refusals=["sorry"], compliances=["sure"], progress=False)
        >>> ns.Proof.load(proof.save("proof.json")).to_dict() == proof.to_dict()
        True

        Args:
            path: the file.
        """
        text = json.dumps({"format": FORMAT, **self.to_dict()}, ensure_ascii=False, allow_nan=False)
        return write_text(path, text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Proof:
        """The proof that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not a proof of this version.
        """
        data = load_json(path, FORMAT)
        try:
            return Proof.from_dict(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


#: Fields of a proof that are neuron sets.
SETS = ("neurons", "verified", "anti_refusal", "backups")


def _set_json(neurons: NeuronSet) -> dict[str, Any]:
    return {
        "members": [list(pair) for pair in neurons], "n_layers": neurons.n_layers, "d_mlp": neurons.d_mlp,
        "provenance": to_json(neurons.provenance),
    }  # fmt: skip


def _set_from(data: Any) -> NeuronSet:
    try:
        about = {k: data[k] for k in ("n_layers", "d_mlp", "provenance")}
        return NeuronSet([tuple(pair) for pair in data["members"]], **about)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"Proof: not a neuron set written by Proof.to_dict ({error})") from None


def _p(value: float) -> str:
    """A p-value with three decimals, or "< 0.001"."""
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
