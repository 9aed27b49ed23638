"""Prove: does the model's refusal really run through these neurons?

Contrast finds neurons that *differ* between harmful and benign prompts. This module asks what refusal
*does* when they are changed, on prompts that had no part in choosing them, beside sets that could have
won. Let M be the refusal margin (see `grade`) and gap = mean M(harmful) - mean M(benign twin). Effects
are in units of the gap: 1 means "all of what tells the twins apart".

    necessity    (M(harmful) - M(harmful, set ablated)) / gap     zero, benign mean, resampled from another
                 benign prompt of the cell, or patched from the benign twin
    sufficiency  (M(benign, set from the harmful twin) - M(benign)) / gap
    specificity  (M(benign, set ablated) - M(benign)) / gap        must stay near 0

Controls are drawn `draws` times, as many neurons per layer as the set: *random* ones, and ones *matched*
on how loudly they speak (mean |h| times column norm). p = (1 + #{control >= set}) / (1 + draws).
Intervals resample whole requests (`pair_id`), so translations of one request count once.

The verdict is fixed before looking (`RULE`). It demands every claim at once, so no correction over claims
is needed (intersection-union test, Berger 1982); over a set's members Benjamini-Hochberg is used.
`proof.verified` holds the members whose own ablation lowers refusal; a set that fails leaves it empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .capture import record, versions
from .errors import InputError
from .grade import Openings, OpeningsArg, grade, opening_tokens, openings_for
from .intervene import Intervention, generate, margins
from .models import Model
from .neurons import NeuronSet
from .prompts import Cell, Prompt, PromptSet
from .statistics import Interval, finite, p_value, rate, ratio_of_means

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["RULE", "Claim", "Proof", "verify"]

#: The pre-set rule: what a claim must show to pass.
RULE = {
    "alpha": 0.05,  # against each kind of control
    "min_effect": 0.10,  # of the gap, and the interval must exclude 0
    "max_benign_shift": 0.25,  # of the gap, the whole interval inside it
    "min_refusal": 0.10,  # refused harmful minus refused benign, else there is nothing to explain
}
ABLATIONS = ("zero", "mean", "resample", "patch")
MATCHED_POOL = 20


@dataclass(frozen=True)
class Claim:
    """One claim, its effect (share of the gap), its controls and what became of it."""

    name: str
    effect: Interval
    random: list[float]
    matched: list[float]
    p_random: float | None
    p_matched: float | None
    verdict: str
    note: str = ""

    @property
    def strongest_control(self) -> float | None:
        """The largest effect any control had: what a sceptic compares with."""
        both = [*self.random, *self.matched]
        return max(both) if both else None


_NONE = Interval(float("nan"), float("nan"), float("nan"))
_NOT_TESTED = [
    Claim(name, _NONE, [], [], None, None, "not tested")
    for name in (*(f"necessity: {k}" for k in ABLATIONS), "sufficiency: patch", "specificity")
]


@dataclass
class Proof:
    """What `verify` found. Prints as a table; `verified` is what passed, possibly nothing.

    Attributes:
        passed: whether every claim of the rule held.
        verified: members with an effect of their own, if the set passed; otherwise empty.
        claims: one row a claim.
        cells: effect of mean ablation per cell.
        members: effect of ablating each neuron alone, its p and adjusted q.
        answers: refusal rates in graded answers, before and after ablation.
    """

    neurons: NeuronSet
    verified: NeuronSet
    passed: bool
    reason: str
    claims: list[Claim]
    cells: dict[Cell, dict[str, Any]]
    members: list[dict[str, Any]]
    answers: dict[str, Interval]
    n_pairs: int
    draws: int
    paired: bool
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a claim."""
        import pandas as pd

        rows = [
            {
                "claim": c.name,
                "effect": c.effect.value,
                "low": c.effect.low,
                "high": c.effect.high,
                "strongest control": c.strongest_control,
                "p random": c.p_random,
                "p matched": c.p_matched,
                "verdict": c.verdict,
                "note": c.note,
            }
            for c in self.claims
        ]
        return pd.DataFrame(rows)

    def figure(self) -> go.Figure:
        """Effects beside their controls."""
        from .plots import ablation

        return ablation(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "passed": self.passed,
            "reason": self.reason,
            "n_neurons": len(self.neurons),
            "n_verified": len(self.verified),
            "n_pairs": self.n_pairs,
            "draws": self.draws,
            "paired": self.paired,
            "rule": RULE,
            "claims": [
                {
                    "claim": c.name,
                    "effect": finite(c.effect),
                    "random": c.random,
                    "matched": c.matched,
                    "p_random": c.p_random,
                    "p_matched": c.p_matched,
                    "verdict": c.verdict,
                    "note": c.note,
                }
                for c in self.claims
            ],
            "cells": {str(cell): row for cell, row in self.cells.items()},
            "members": self.members,
            "answers": {name: finite(value) for name, value in self.answers.items()},
            "provenance": self.provenance,
        }

    def __str__(self) -> str:
        head = f"{'PASSED' if self.passed else 'NO'}: {self.reason}"
        return f"{head}\n{self.to_frame().to_string(index=False, float_format='{:.2f}'.format)}"

    def __repr__(self) -> str:
        return f"Proof({'passed' if self.passed else 'no'}, {len(self.verified)} of {len(self.neurons)} verified)"

    def _repr_html_(self) -> str:
        from html import escape

        head = f"<p><b>{'Passed' if self.passed else 'No'}.</b> {escape(self.reason)}</p>"
        return head + self.to_frame().to_html(index=False, float_format="{:.2f}".format)


def verify(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    draws: int = 20,
    seed: int = 0,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    graded: int = 24,
    batch_size: int = 64,
    progress: bool = True,
) -> Proof:
    """Test a set of neurons on the "confirm" prompts (all of them, if none is so marked).

    >>> proof = verify(model, shared, prompts)                 # doctest: +SKIP
    >>> proof.passed, proof.verified                           # doctest: +SKIP
    (True, NeuronSet(31 neurons in 4 layers))

    Args:
        neurons: the candidates, usually from `Scores.top`.
        prompts: harmful and benign prompts; twins share `pair_id`. Without pairs each harmful prompt is
            set against a random benign one of its cell, and the proof says so.
        draws: control sets of each kind.
        refusals, compliances: openings that replace the built-in ones (see `grade`).
        graded: pairs whose answers are generated and graded as well.

    Raises:
        InputError: an empty set, a set of another model, prompts that selection saw, only one label,
            a language without openings, or openings that tokenise to nothing.

    Source: the checks of Chen et al. (2024, dynamic patching) and of the causal-mediation literature
    (Vig et al. 2020), with matched controls added.
    """
    if not len(neurons):
        raise InputError("verify: the neuron set is empty; select neurons first (scores.top)")
    if draws < 1:
        raise InputError(f"verify: draws={draws}; at least 1 control draw is needed")
    confirm = prompts.for_step("confirm")
    _refuse_seen(neurons, confirm)
    confirm.require_both_labels("verify")
    pairs, paired = _pair(confirm, seed)
    openings = openings_for(confirm, refusals=refusals, compliances=compliances)
    lab = _Lab(model, neurons, pairs, draws, seed, batch_size, progress, opening_tokens(model, openings))
    answers = {name: _refused(lab, openings, graded, side) for name, side in _CLEAN.items()}
    reason = _nothing_to_explain(lab, answers)
    claims, cells, members, passed = _NOT_TESTED, {}, [], False
    if not reason:
        lab.run()
        claims, cells, members = lab.claims(), lab.cells(), lab.members()
        for name, (side, control) in _ABLATED.items():
            answers[name] = _refused(lab, openings, graded, side, neurons if control == "set" else lab.random[0])
        passed, reason = _judge(claims)
    kept = [(m["layer"], m["index"]) for m in members if m["verified"]] if passed else []
    about = {**neurons.provenance, "verified_on": confirm.hash(), "verify_seed": seed, "draws": draws}
    about["seen"] = sorted({*neurons.provenance.get("seen", []), *(p.cluster for p in confirm)})
    verified = NeuronSet(kept, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance=about)
    provenance = {**model.provenance(), "data": confirm.hash(), "seed": seed, "versions": versions()}
    return Proof(
        neurons, verified, passed, reason, claims, cells, members, answers, len(pairs), draws, paired, provenance
    )


def _refuse_seen(neurons: NeuronSet, confirm: PromptSet) -> None:
    seen = set(neurons.provenance.get("seen", []))
    again = [p for p in confirm if p.cluster in seen]
    if again:
        raise InputError(
            f"verify: {len(again)} of {len(confirm)} prompts were seen when the neurons were selected (first: id "
            f"{again[0].id!r}); confirm on other requests, or mark them with a 'split' column (prompts.with_splits())"
        )


def _pair(confirm: PromptSet, seed: int) -> tuple[list[tuple[Prompt, Prompt]], bool]:
    """Matched twins; without any, a random benign prompt of the same cell for each harmful one."""
    pairs = confirm.pairs()
    if pairs:
        return pairs, True
    rng = np.random.default_rng(seed)
    for cell in confirm.cells():
        benign = list(confirm.where(label="benign").in_cells([cell]))
        harmful = list(confirm.where(label="harmful").in_cells([cell]))
        if benign and harmful:
            order = [int(i) for _ in range(len(harmful) // len(benign) + 1) for i in rng.permutation(len(benign))]
            pairs += [(h, benign[i]) for h, i in zip(harmful, order, strict=False)]
    if not pairs:
        raise InputError("verify: no cell (language x modality) has both harmful and benign prompts")
    return pairs, False


def _nothing_to_explain(lab: _Lab, answers: dict[str, Interval]) -> str:
    """Why there is no refusal to test, or "" if there is: neither answers nor first tokens tell the labels apart."""
    graded = answers["harmful, clean"].value - answers["benign, clean"].value
    first = float((lab.clean_h > 0).mean() - (lab.clean_b > 0).mean())
    if max(graded, first) < RULE["min_refusal"]:
        return (
            f"not tested: the model refuses harmful prompts no more than benign ones (graded answers {graded:+.2f}, "
            f"first tokens {first:+.2f}), so there is no refusal to explain"
        )
    if not lab.gap.low > 0:
        return f"not tested: the refusal margin does not separate harmful from benign prompts (gap {lab.gap})"
    return ""


def _judge(claims: Sequence[Claim]) -> tuple[bool, str]:
    """The rule of this module, applied."""
    failed = [c.name for c in claims if c.verdict != "passed"]
    if failed:
        return False, f"not shown to cause refusals; failed: {', '.join(failed)}"
    return True, "ablating the set removes refusals, inserting it creates them, and benign prompts stay as they were"


_CLEAN = {"harmful, clean": "harmful", "benign, clean": "benign"}
_ABLATED = {
    "harmful, set ablated": ("harmful", "set"),
    "harmful, random set ablated": ("harmful", "random"),
    "benign, set ablated": ("benign", "set"),
}


def _refused(lab: _Lab, openings: Openings, graded: int, side: str, ablated: NeuronSet | None = None) -> Interval:
    """Share of generated answers that are refusals, clean or under mean ablation; the same pairs each time."""
    rows = np.random.default_rng(lab.seed).permutation(len(lab.harmful))[:graded].tolist()
    prompts = [(lab.harmful if side == "harmful" else lab.benign)[i] for i in rows]
    edit = None if ablated is None else Intervention(ablated, "mean", lab.values["mean"][rows])
    texts = generate(
        lab.model, prompts, intervention=edit, max_new_tokens=24, batch_size=lab.batch_size, progress=lab.progress
    )
    return rate(sum(grade(p, t, openings).refused for p, t in zip(prompts, texts, strict=True)), len(rows))


class _Lab:
    """One experiment: the twins, their activations, the control sets, and the margins under all of it."""

    def __init__(
        self,
        model: Model,
        neurons: NeuronSet,
        pairs: list[tuple[Prompt, Prompt]],
        draws: int,
        seed: int,
        batch_size: int,
        progress: bool,
        tokens: Any,
    ) -> None:
        self.model, self.neurons, self.seed, self.batch_size = model, neurons, seed, batch_size
        self.progress, self.tokens = progress, tokens
        self.harmful = [h for h, _ in pairs]
        self.benign = [b for _, b in pairs]
        self.clusters = [h.cluster for h in self.harmful]
        Intervention(neurons, "zero").check(model, len(pairs))
        rng = np.random.default_rng(seed)
        act_h = record(model, self.harmful, batch_size=batch_size)
        act_b = record(model, self.benign, batch_size=batch_size)
        loud = (torch.cat([act_h, act_b]).abs().mean(0).double() * model.down_norms()).numpy()
        self.random = [random_like(neurons, model, rng) for _ in range(draws)]
        self.matched = [matched_like(neurons, loud, rng) for _ in range(draws)]
        self.values: dict[str, Any] = {
            "zero": None,
            "mean": _cell_means(act_b, self.benign),
            "resample": act_b[_donors(self.benign, rng)],
            "patch": act_b,
        }
        self.sets = [neurons, *self.random, *self.matched]
        self.act_h = act_h
        self.clean_h = self._margins(self.harmful, [None])[0]
        self.clean_b = self._margins(self.benign, [None])[0]
        self.gaps = self.clean_h - self.clean_b
        self.gap = ratio_of_means(self.gaps, np.ones_like(self.gaps), self.clusters, seed=seed)

    def run(self) -> None:
        """Every margin the claims need: [kind][set, pair]."""
        kinds = [(k, s) for k in ABLATIONS for s in self.sets]
        alone = [NeuronSet([pair]) for pair in self.neurons]
        conditions = [Intervention(s, k, self.values[k]) for k, s in kinds]  # type: ignore[arg-type]
        conditions += [Intervention(s, "mean", self.values["mean"]) for s in alone]
        m = self._margins(self.harmful, conditions)
        n = len(self.sets)
        self.ablated = {k: m[i * n : (i + 1) * n] for i, k in enumerate(ABLATIONS)}
        self.alone = m[len(kinds) :]
        conditions = [Intervention(s, "patch", self.act_h) for s in self.sets]
        conditions += [Intervention(self.neurons, k, self.values[k]) for k in ABLATIONS[:3]]  # type: ignore[arg-type]
        m = self._margins(self.benign, conditions)
        self.inserted, self.benign_ablated = m[:n], m[n:]

    def _margins(self, prompts: list[Prompt], conditions: Sequence[Intervention | None]) -> np.ndarray:
        return margins(
            self.model, prompts, conditions, self.tokens, batch_size=self.batch_size, progress=self.progress, desc="verify"
        )  # fmt: skip

    def effect(self, change: Float[np.ndarray, " pair"], rows: Any = slice(None)) -> Interval:
        """A change of margin as a share of the gap, with its interval over requests."""
        clusters = list(np.array(self.clusters, dtype=object)[rows])
        return ratio_of_means(change[rows], self.gaps[rows], clusters, seed=self.seed)

    def claims(self) -> list[Claim]:
        out = [self._claim(f"necessity: {k}", self.clean_h - self.ablated[k]) for k in ABLATIONS]
        out.append(self._claim("sufficiency: patch", self.inserted - self.clean_b))
        shifts = [self.effect(row - self.clean_b) for row in self.benign_ablated]
        worst = max(range(3), key=lambda i: max(abs(shifts[i].low), abs(shifts[i].high)))
        limit = RULE["max_benign_shift"]
        inside = -limit <= shifts[worst].low and shifts[worst].high <= limit
        note = f"benign prompts under {ABLATIONS[worst]} ablation, the worst of three; must lie within ±{limit:g}"
        out.append(Claim("specificity", shifts[worst], [], [], None, None, "passed" if inside else "failed", note))
        return out

    def _claim(self, name: str, change: Float[np.ndarray, "set pair"]) -> Claim:
        effect = self.effect(change[0])
        scale = self.gaps.mean()
        effects = change.mean(axis=1) / scale if scale else np.full(len(change), np.nan)
        random, matched = effects[1 : 1 + len(self.random)], effects[1 + len(self.random) :]
        p_random, p_matched = p_value(effect.value, random), p_value(effect.value, matched)
        good = effect.low > 0 and effect.value >= RULE["min_effect"] and max(p_random, p_matched) <= RULE["alpha"]
        verdict, least = "passed" if good else "failed", 1 / (1 + len(self.random))
        note = f"with {len(self.random)} draws p cannot fall below {least:.2f}" if least > RULE["alpha"] else ""
        return Claim(name, effect, random.tolist(), matched.tolist(), p_random, p_matched, verdict, note)

    def cells(self) -> dict[Cell, dict[str, Any]]:
        """Mean ablation, cell by cell, beside the mean of the random sets."""
        out = {}
        cells = np.array([str(p.cell) for p in self.harmful])
        for cell in dict.fromkeys(p.cell for p in self.harmful):
            rows = np.flatnonzero(cells == str(cell))
            change = self.clean_h - self.ablated["mean"]
            scale = self.gaps[rows].mean()
            random = change[1 : 1 + len(self.random)][:, rows].mean(axis=1) / scale
            out[cell] = {
                "n_pairs": len(rows),
                "gap": float(scale),
                "effect": finite(self.effect(change[0], rows)),
                "random": float(random.mean()),
                "random_max": float(random.max()),
            }
        return out

    def members(self) -> list[dict[str, Any]]:
        """Each neuron ablated alone: effect, one-sided p over requests, Benjamini-Hochberg q."""
        from scipy.stats import false_discovery_control

        change = self.clean_h - self.alone
        effects = [self.effect(row) for row in change]
        p = np.array([_one_sided(row, self.clusters) for row in change])
        q = false_discovery_control(p) if len(p) else p
        rows = []
        for (layer, index), effect, p_i, q_i in zip(self.neurons, effects, p, q, strict=True):
            opposes = effect.high < 0 and self.gap.low > 0
            keep = bool(q_i <= RULE["alpha"] and effect.value > 0)
            rows.append(
                {"layer": layer, "index": index, "effect": finite(effect), "p": float(p_i), "q": float(q_i),
                 "verified": keep, "opposing": bool(opposes)}
            )  # fmt: skip
        return rows


def random_like(neurons: NeuronSet, model: Model, rng: np.random.Generator) -> NeuronSet:
    """As many random neurons per layer as `neurons` has, none of them its own."""
    pairs: list[tuple[int, int]] = []
    for layer, members in neurons.by_layer().items():
        others = np.setdiff1d(np.arange(model.d_mlp), members)
        pool = others if len(others) >= len(members) else np.arange(model.d_mlp)
        pairs += [(layer, int(i)) for i in rng.choice(pool, len(members), replace=False)]
    return NeuronSet(pairs, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance={"method": "random, same per layer"})


def matched_like(neurons: NeuronSet, loud: Float[np.ndarray, "n_layers d_mlp"], rng: np.random.Generator) -> NeuronSet:
    """For each neuron one of its layer that speaks about as loudly (mean |h| x column norm), none of the set.

    Partners are drawn without replacement from the `MATCHED_POOL` nearest in rank that are still free.
    """
    pairs: list[tuple[int, int]] = []
    n_layers, d_mlp = loud.shape
    for layer, members in neurons.by_layer().items():
        taken = set(members)
        log = np.log(loud[layer] + 1e-12)
        for member in members:
            near = [int(i) for i in np.argsort(np.abs(log - log[member]), kind="stable") if int(i) not in taken]
            pool = near[:MATCHED_POOL] or [int(rng.integers(d_mlp))]
            choice = int(rng.choice(pool))
            taken.add(choice)
            pairs.append((layer, choice))
    return NeuronSet(pairs, n_layers=n_layers, d_mlp=d_mlp, provenance={"method": "matched on loudness"})


def _cell_means(
    acts: Float[Tensor, "pair n_layers d_mlp"], prompts: Sequence[Prompt]
) -> Float[Tensor, "pair n_layers d_mlp"]:
    """For each row the mean over all rows of its cell."""
    out = torch.empty_like(acts)
    for cell in dict.fromkeys(p.cell for p in prompts):
        rows = [i for i, p in enumerate(prompts) if p.cell == cell]
        out[rows] = acts[rows].mean(dim=0)
    return out


def _donors(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[int]:
    """For each row another row of its cell and of another request (itself only if there is no other)."""
    out = []
    for i, p in enumerate(prompts):
        pool = [j for j, q in enumerate(prompts) if q.cell == p.cell and q.cluster != p.cluster]
        out.append(int(rng.choice(pool)) if pool else i)
    return out


def _one_sided(change: Float[np.ndarray, " pair"], clusters: Sequence[str]) -> float:
    """p of "the mean change is positive": a t-test over requests (1 where nothing changes at all)."""
    from scipy.stats import ttest_1samp

    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[c] for c in clusters])
    means = np.bincount(where, change) / np.bincount(where)
    if len(means) < 2 or np.ptp(means) == 0:
        return 0.0 if len(means) > 1 and means[0] > 0 else 1.0
    return float(ttest_1samp(means, 0.0, alternative="greater").pvalue)
