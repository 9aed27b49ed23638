"""Prove: does the model's refusal really run through these neurons?

Contrast finds neurons that *differ* between harmful and benign prompts. This module asks what refusal *does* when
they are changed, on prompts that had no part in choosing them, beside sets that could have won. With M the refusal
margin and gap = mean M(harmful) - mean M(benign twin), in units of the gap:

    necessity    (M(harmful) - M(harmful, set ablated)) / gap     zero, benign mean, resampled from another
                 benign prompt of the cell, or patched from the benign twin: all four must agree
    sufficiency  (M(benign, set from the harmful twin) - M(benign)) / gap
    specificity  (M(benign, set ablated) - M(benign)) / gap       equivalent to 0 (TOST), under three ablations
    utility      benign answers still right, after - before       equivalent to 0 (TOST), where that can be graded

Every effect must beat every kind of control (`controls`): p = (1 + #{control >= set}) / (1 + draws) against kinds
that are drawn, a paired interval above 0 against single sets. Intervals resample whole requests (`pair_id`). Cells
where the model does not refuse have nothing to explain; they are left out of the claims and used in `experiments`.

The verdict is fixed before looking (`RULE`). It demands every claim at once, so no correction over claims is needed
(intersection-union test, Berger 1982); over cells Holm's is used, over members Benjamini-Hochberg's.

From a set to its members: each is ablated alone, *last* (after all others and the set's backups), and after those of its
own and earlier layers, so that neurons that back each other up are seen as the group they are. A member is kept if one
of these lowers refusal, materially, and not merely by rescaling all logits (which any loud neuron does through the final
norm). One whose ablation raises refusal is reported as opposing. A neuron that reads harm and has no path to the answer
does neither. Where the whole set fails, its members may still pass by themselves (`retest_members`).

Sources: Chen et al. (2024), dynamic patching; Vig et al. (2020), causal mediation; McGrath et al. (2023), backups;
Wang et al. (2023), completeness and minimality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..core.statistics import NAN, rate
from ..data.grading import Grade, Openings, grade
from ..data.languages import OpeningsArg
from ..data.prompts import Cell, Prompt, PromptSet
from ..model.generation import generate
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from . import experiments
from .claims import NECESSITY, SUFFICIENCY, effects_by_cell, measure_claims, measure_utility
from .controls import control_sets
from .members import Members, retest_members
from .pairs import Lab, twins
from .verdict import RULE, Claim, Proof

__all__ = ["verify"]


_NOT_TESTED = [Claim(name, NAN, "not tested") for name in (*NECESSITY, SUFFICIENCY, "specificity", "utility")]


def verify(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    draws: int = 200,
    seed: int = 0,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    graded: int = 48,
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
            set against a random benign one of its cell, and the proof says so. "discover" rows, if there are any,
            are what the controls that select are selected on.
        draws: control sets of each kind that is drawn; a draw costs one partial forward of the prompts a claim. Take
            fewer where that is dear (below 19 nothing can pass).
        refusals, compliances: openings that replace the built-in ones (see `grade`).
        graded: pairs whose answers are generated and graded as well.
        batch_size: prompts a forward.

    Raises:
        InputError: an empty set, a set of another model, prompts that selection saw, only one label,
            a language without openings, or openings that tokenise to nothing.
    """
    if not len(neurons):
        raise InputError("verify: the neuron set is empty; select neurons first (scores.top)")
    if draws < 1:
        raise InputError(f"verify: draws={draws}; at least 1 control draw is needed")
    model.needs_here("verify")
    neurons.check_model(model)
    confirm = prompts.for_step("confirm")
    _refuse_seen(neurons, confirm)
    confirm.require_both_labels("verify")
    pairs, paired = twins(confirm, seed)
    openings = openings_of(model, confirm, refusals=refusals, compliances=compliances)
    tokens = opening_tokens(model, openings)
    lab = Lab(model, pairs, tokens, seed=seed, batch_size=batch_size, progress=progress)
    judge = _Judge(model, openings, graded, seed, batch_size, progress)
    cells, answers, reason = _refusing(lab, judge)
    out: dict[str, Any] = {
        "neurons": neurons, "verified": [], "opposing": [], "backups": [],
        "passed": False, "reason": reason, "claims": list(_NOT_TESTED), "retest": [], "cells": {}, "members": [],
        "experiments": {}, "n_pairs": len(lab.harmful), "draws": draws, "paired": paired,
        "provenance": {**model.provenance(), "data": confirm.hash(), "seed": seed, "versions": versions()},
    }  # fmt: skip
    if not reason:
        select = prompts.where(split="discover")
        out |= _prove(lab, neurons, cells, select if len(select) else confirm, draws, judge, answers)
    about = {**neurons.provenance, "tested_on": confirm.hash(), "verify_seed": seed, "draws": draws}
    about["seen"] = sorted({*neurons.provenance.get("seen", []), *(p.cluster for p in confirm)})
    for name in ("verified", "opposing", "backups"):
        mine = about | ({"verified_on": confirm.hash(), "proof": out["reason"]} if name == "verified" else {})
        out[name] = NeuronSet(out[name], n_layers=model.n_layers, d_mlp=model.d_mlp, provenance=mine)
    return Proof(answers={k: rate(sum(v.refused for v in vs), len(vs)) for k, vs in answers.items()}, **out)


def _prove(
    everywhere: Lab,
    neurons: NeuronSet,
    cells: list[Cell],
    select: PromptSet,
    draws: int,
    judge: _Judge,
    answers: dict[str, list[Grade]],
) -> dict[str, Any]:
    """Claims, members, experiments and the verdict, on the cells where the model refuses."""
    lab = everywhere.rows(np.flatnonzero(np.isin(everywhere.cells, [str(c) for c in cells])))
    model = lab.model
    loud = np.stack([torch.cat([lab.act_h, lab.act_b]).abs().mean(0).double().numpy(), model.down_norms().numpy()])
    controls = control_sets(model, neurons, select, loud, draws=draws, seed=lab.seed, batch_size=lab.batch_size)
    random = controls.drawn.get("random", [])
    claims, changes = measure_claims(lab, neurons, controls)
    ablated = {name: judge.answers(lab, side, s) for name, side, s in (
        ("harmful, set ablated", "harmful", neurons), ("benign, set ablated", "benign", neurons),
        *(("harmful, random set ablated", "harmful", s) for s in random[:1]),
    )}  # fmt: skip
    before = judge.answers(lab, "harmful", None), judge.answers(lab, "benign", None)
    answers |= {"harmful, clean": before[0], "benign, clean": before[1], **ablated}
    claims.append(measure_utility(before[1], ablated["benign, set ablated"], judge.rows(lab), lab))
    members = Members(lab, neurons)
    table = members.table()
    ranked = [(m["layer"], m["index"]) for m in sorted(table, key=lambda m: -m["alone"][0])]
    kept = NeuronSet([(m["layer"], m["index"]) for m in table if m["verified"]])
    failed = [c.name for c in claims if c.verdict == "failed"]
    retest: list[Claim] = []
    if failed:
        reason = f"not shown to cause refusals; failed: {', '.join(failed)}"
        kept, retest, more = retest_members(lab, members, loud, draws)
        reason += more
    else:
        reason = "ablating the set removes refusals, inserting it creates them, and benign prompts stay as they were"
    for m in table:  # what the set as a whole did not earn, its members have not either
        m["verified"] = (m["layer"], m["index"]) in kept
    if len(members.backups):
        reason += f"; {len(members.backups)} other neurons stand in for it once it is ablated"
    by_size = experiments.size(lab, ranked)
    return {
        "passed": not failed, "reason": reason, "claims": claims, "retest": retest,
        "verified": kept, "opposing": [(m["layer"], m["index"]) for m in table if m["opposing"]],
        "backups": members.backups, "members": table, "n_pairs": len(lab.harmful),
        "cells": effects_by_cell(lab, changes["necessity: mean"], controls),
        "experiments": {
            "dose": experiments.dose(lab, neurons, random),
            "size": by_size,
            "minimal": [{"size": experiments.enough(by_size), "share": experiments.ENOUGH, "of": len(neurons)}],
            "groups": experiments.groups(lab, neurons, ranked),
            "completeness": experiments.completeness(lab, neurons, random),
            "backups": members.again.rows,
            "recognition": experiments.recognition(everywhere, neurons, random, float(lab.gaps.mean())),
            "crossing": experiments.crossing(everywhere, neurons, random, cells),
        },
        "controls": {
            "sets": {**{k: len(v) for k, v in controls.drawn.items()}, **dict.fromkeys(controls.fixed, 1)},
            "missing": controls.missing, "recovered on shuffled labels": controls.recovered,
        },
    }  # fmt: skip


def _refuse_seen(neurons: NeuronSet, confirm: PromptSet) -> None:
    seen = set(neurons.provenance.get("seen", []))
    again = [p for p in confirm if p.cluster in seen]
    if again:
        raise InputError(
            f"verify: {len(again)} of {len(confirm)} prompts were seen when the neurons were selected (first: id "
            f"{again[0].id!r}); confirm on other requests, or mark them with a 'split' column (prompts.with_splits())"
        )


# -- is there anything to explain? --------------------------------------------------------------------------
@dataclass
class _Judge:
    """Generates and grades answers of a fixed sample of twins."""

    model: Model
    openings: Openings
    graded: int
    seed: int
    batch_size: int
    progress: bool

    def rows(self, lab: Lab) -> list[int]:
        """The twins that are answered."""
        return [int(i) for i in np.random.default_rng(self.seed).permutation(len(lab.harmful))[: self.graded]]

    def answers(self, lab: Lab, side: str, ablated: NeuronSet | None) -> list[Grade]:
        """Graded answers, clean or under mean ablation; the same twins each time."""
        part = lab.rows(np.array(self.rows(lab)))
        prompts: list[Prompt] = part.harmful if side == "harmful" else part.benign
        texts = generate(
            self.model, prompts, intervention=None if ablated is None else part.ablate(ablated), max_new_tokens=24,
            batch_size=self.batch_size, progress=self.progress,
        )  # fmt: skip
        return [grade(p, t, self.openings) for p, t in zip(prompts, texts, strict=True)]


def _refusing(lab: Lab, judge: _Judge) -> tuple[list[Cell], dict[str, list[Grade]], str]:
    """Cells where harmful prompts are refused more than benign ones, by first tokens or else by graded answers.

    Cells that refuse less than half as often as the one that refuses most are left to the experiments.
    """
    first = {}
    for cell, rows in lab.by_cell().items():
        first[cell] = float((lab.clean_h[rows] > 0).mean() - (lab.clean_b[rows] > 0).mean())
    best = max(first.values())
    apart = [c for c, share in first.items() if share >= max(RULE["min_refusal"], best / 2)]
    cells = [c for c in apart if lab.rows(lab.by_cell()[c]).gap.low > 0]
    if cells:
        return cells, {}, ""
    answers = {f"{side}, clean": judge.answers(lab, side, None) for side in ("harmful", "benign")}
    refused = {k: sum(v.refused for v in vs) / len(vs) for k, vs in answers.items()}
    more = refused["harmful, clean"] - refused["benign, clean"]
    if more < RULE["min_refusal"]:
        return [], answers, (
            f"not tested: the model refuses harmful prompts no more than benign ones (graded answers {more:+.2f}, "
            f"first tokens {best:+.2f}), so there is no refusal to explain"
        )  # fmt: skip
    if not lab.gap.low > 0:
        return [], answers, (
            f"not tested: the refusal margin does not separate harmful from benign prompts (gap {lab.gap})"
        )  # fmt: skip
    return list(lab.by_cell()), answers, ""
