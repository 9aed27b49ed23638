"""A verdict people can read: each claim, its effect and interval, its strongest control, p, and the word.

`verify` makes a `Proof`; this module only says what it holds and how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..core.neurons import NeuronSet
from ..core.statistics import Interval, finite

__all__ = ["RULE", "Claim", "Proof"]


#: The pre-set rule: what a claim must show to pass.
RULE = {
    "alpha": 0.05,  # against each kind of control, and for every test
    "min_effect": 0.10,  # of the gap, and the interval must exclude 0
    "max_benign_shift": 0.25,  # of the gap: benign margins are equivalent within it
    "max_utility_change": 0.10,  # share of benign answers still right: equivalent within it
    "min_refusal": 0.10,  # refused harmful minus refused benign, else there is nothing to explain
    "material": 0.05,  # a member must carry this share of what the strongest of its layer does, and of min_effect
}


@dataclass(frozen=True)
class Claim:
    """One claim, its effect (share of the gap), what its controls reached, and what became of it.

    Attributes:
        controls: effect of every control set, by kind.
        p: for each kind that was drawn, (1 + #{control >= effect}) / (1 + draws); for equivalence, the TOST p.
        over: for each single control set, effect minus its effect, paired over requests.
    """

    name: str
    effect: Interval
    verdict: str
    controls: dict[str, list[float]] = field(default_factory=dict)
    p: dict[str, float] = field(default_factory=dict)
    over: dict[str, Interval] = field(default_factory=dict)
    note: str = ""

    @property
    def strongest_control(self) -> tuple[str, float] | None:
        """Kind and effect of the control that came closest: what a sceptic compares with."""
        best = [(kind, max(values)) for kind, values in self.controls.items() if values]
        return max(best, key=lambda item: item[1]) if best else None

    @property
    def worst_p(self) -> float | None:
        """The largest p over kinds of control."""
        return max(self.p.values()) if self.p else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "claim": self.name, "effect": finite(self.effect), "controls": self.controls, "p": self.p,
            "over": {k: finite(v) for k, v in self.over.items()}, "verdict": self.verdict, "note": self.note,
        }  # fmt: skip


@dataclass
class Proof:
    """What `verify` found. Prints as a table; `verified` is what passed, possibly nothing.

    Attributes:
        neurons: the set that was tested.
        passed: whether the set showed every claim of `RULE`.
        verified: its members with a confirmed effect of their own, alone or in a group; empty unless the set passed, or
            those members, chosen on half of the requests, passed necessity by themselves on the other half (`retest`).
        opposing: members whose ablation *raises* refusal.
        backups: neurons outside the set that stand in for it once it is ablated.
        claims: one row a claim; `retest` the same for the kept members, where the whole set failed.
        cells: effect of mean ablation per cell, p corrected for the number of cells (Holm).
        members: each neuron's effect, alone and last of all, and the word for it.
        experiments: rows of every function of `experiments`.
        answers: rates in generated answers, before and after ablation.
        controls: kinds of control, how many sets of each, and what is missing and why.
    """

    neurons: NeuronSet
    verified: NeuronSet
    opposing: NeuronSet
    backups: NeuronSet
    passed: bool
    reason: str
    claims: list[Claim]
    retest: list[Claim]
    cells: dict[str, dict[str, Any]]
    members: list[dict[str, Any]]
    experiments: dict[str, list[dict[str, Any]]]
    answers: dict[str, Interval]
    n_pairs: int
    draws: int
    paired: bool
    controls: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a claim."""
        import pandas as pd

        rows = []
        for c in self.claims:
            best = c.strongest_control
            rows.append({
                "claim": c.name, "effect": c.effect.value, "low": c.effect.low, "high": c.effect.high,
                "strongest control": best[1] if best else None, "which": best[0] if best else "", "p": c.worst_p,
                "verdict": c.verdict, "note": c.note,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def figure(self, what: str = "claims") -> go.Figure:
        """ "claims" (effects beside every control), "dose", "size" or "crossing"."""
        from ..figures import proof_figure

        return proof_figure(self.to_dict(), what)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "n_neurons": len(self.neurons),
            "n_verified": len(self.verified),
            "opposing": [list(p) for p in self.opposing],
            "backups": [list(p) for p in self.backups],
            "n_pairs": self.n_pairs,
            "draws": self.draws,
            "paired": self.paired,
            "rule": RULE,
            "claims": [c.to_dict() for c in self.claims],
            "retest": [c.to_dict() for c in self.retest],
            "cells": self.cells,
            "members": self.members,
            "experiments": self.experiments,
            "answers": {name: finite(value) for name, value in self.answers.items()},
            "controls": self.controls,
            "provenance": self.provenance,
        }

    @property
    def word(self) -> str:
        """Passed, no, or not tested."""
        if self.passed:
            return "passed"
        return "not tested" if all(c.verdict == "not tested" for c in self.claims) else "no"

    def __str__(self) -> str:
        table = self.to_frame().to_string(index=False, float_format="{:.2f}".format, formatters={"p": _p}, na_rep="")
        return f"{self.word.upper()}: {self.reason}\n{table}"

    def __repr__(self) -> str:
        return f"Proof({self.word}, {len(self.verified)} of {len(self.neurons)} verified)"

    def _repr_html_(self) -> str:
        head = f"<p><b>{escape(self.word.capitalize())}.</b> {escape(self.reason)}</p>"
        table = self.to_frame().to_html(index=False, float_format="{:.2f}".format, formatters={"p": _p}, na_rep="")
        return head + table


def _p(value: float) -> str:
    """A p-value as people write it."""
    return "" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
