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
does neither. Where the whole set fails, its members may still pass by themselves (`_second_chance`).

Sources: Chen et al. (2024), dynamic patching; Vig et al. (2020), causal mediation; McGrath et al. (2023), backups;
Wang et al. (2023), completeness and minimality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import experiments
from .attribution import gradients
from .capture import versions
from .controls import Controls, control_sets, in_full, matched_like, random_like
from .errors import InputError
from .grade import Grade, Openings, OpeningsArg, grade, opening_tokens, openings_for
from .intervene import generate
from .lab import ABLATIONS, Lab, twins
from .models import Model
from .neurons import NeuronSet
from .prompts import Cell, Prompt, PromptSet
from .proof import RULE, Claim, Proof
from .statistics import Interval, discoveries, equivalent, finite, holm, p_value, positive, rate, ratio_of_means

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["RULE", "Claim", "Proof", "verify"]

NECESSITY = tuple(f"necessity: {kind}" for kind in ABLATIONS)
SUFFICIENCY = "sufficiency: patch"
MEMBERS_NEED = NECESSITY[1:]
KEPT = ("alone", "in a group")
MOST_OTHERS = 128
_NAN = Interval(float("nan"), float("nan"), float("nan"))
_NOT_TESTED = [Claim(name, _NAN, "not tested") for name in (*NECESSITY, SUFFICIENCY, "specificity", "utility")]


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
    openings = openings_for(confirm, refusals=refusals, compliances=compliances)
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
    claims, changes = _claims(lab, neurons, controls)
    ablated = {name: judge.answers(lab, side, s) for name, side, s in (
        ("harmful, set ablated", "harmful", neurons), ("benign, set ablated", "benign", neurons),
        *(("harmful, random set ablated", "harmful", s) for s in random[:1]),
    )}  # fmt: skip
    before = judge.answers(lab, "harmful", None), judge.answers(lab, "benign", None)
    answers |= {"harmful, clean": before[0], "benign, clean": before[1], **ablated}
    claims.append(_utility(before[1], ablated["benign, set ablated"], judge.rows(lab), lab))
    members = _Members(lab, neurons)
    table = members.table()
    ranked = [(m["layer"], m["index"]) for m in sorted(table, key=lambda m: -m["alone"][0])]
    kept = NeuronSet([(m["layer"], m["index"]) for m in table if m["verified"]])
    failed = [c.name for c in claims if c.verdict == "failed"]
    retest: list[Claim] = []
    if failed:
        reason = f"not shown to cause refusals; failed: {', '.join(failed)}"
        kept, retest, more = _second_chance(lab, members, loud, draws)
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
        "cells": _by_cell(lab, changes["necessity: mean"], controls),
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


# -- claims -----------------------------------------------------------------------------------------------
def _claims(lab: Lab, neurons: NeuronSet, controls: Controls) -> tuple[list[Claim], dict[str, np.ndarray]]:
    """Necessity, sufficiency and specificity of a set, and the change of margin [set, pair] behind the first two."""
    sets = [neurons, *controls.all()]
    margins = lab.on_harmful([lab.ablate(s, kind) for kind in ABLATIONS for s in sets])
    changes = dict(zip(NECESSITY, lab.clean_h - margins.reshape(len(ABLATIONS), len(sets), -1), strict=True))
    benign = lab.on_benign([*(lab.insert(s) for s in sets), *(lab.ablate(neurons, k) for k in ABLATIONS[:3])])
    changes[SUFFICIENCY] = benign[: len(sets)] - lab.clean_b
    claims = [_claim(lab, name, change, controls) for name, change in changes.items()]
    return [*claims, _specificity(lab, benign[len(sets) :] - lab.clean_b)], changes


def _claim(lab: Lab, name: str, change: Float[np.ndarray, "set pair"], controls: Controls) -> Claim:
    """One effect beside its controls: it must be there, be big enough, and beat every one of them."""
    effect, effects = lab.effect(change[0]), lab.effects(change)[1:]
    reached: dict[str, list[float]] = {}
    p: dict[str, float] = {}
    over: dict[str, Interval] = {}
    at = 0
    for kind, sets in controls.drawn.items():
        reached[kind] = effects[at : at + len(sets)].tolist()
        p[kind] = p_value(effect.value, effects[at : at + len(sets)])
        at += len(sets)
    for kind in controls.fixed:
        reached[kind] = [float(effects[at])]
        over[kind] = lab.effect(change[0] - change[1 + at])
        at += 1
    lost = [k for k, v in p.items() if v > RULE["alpha"]] + [k for k, v in over.items() if not v.low > 0]
    there = effect.low > 0 and effect.value >= RULE["min_effect"]
    notes = [] if there else ["no effect to speak of"]
    notes += [f"does not beat: {', '.join(lost)}"] if lost else []
    draws = min(map(len, controls.drawn.values()), default=0)
    if not draws:
        notes.append("no other neurons to draw controls from")
    elif 1 / (1 + draws) > RULE["alpha"]:
        notes.append(f"with {draws} draws p cannot fall below {1 / (1 + draws):.2f}")
    verdict = "passed" if there and draws and not lost else "failed"
    return Claim(name, effect, verdict, reached, p, over, "; ".join(notes))


def _specificity(lab: Lab, shift: Float[np.ndarray, "kind pair"]) -> Claim:
    """Benign prompts keep their margin under zero, mean and resample ablation: the worst of the three."""
    limit, gap = RULE["max_benign_shift"], float(lab.gaps.mean())
    p = [equivalent(row / gap, list(lab.clusters), limit) for row in shift]
    effects = [lab.effect(row) for row in shift]
    worst = max(range(len(p)), key=lambda i: (p[i], abs(effects[i].value)))
    note = f"benign prompts under {ABLATIONS[worst]} ablation, the worst of three; equivalent to 0 within ±{limit:g}"
    verdict = "passed" if p[worst] <= RULE["alpha"] else "failed"
    return Claim("specificity", effects[worst], verdict, p={"TOST": p[worst]}, note=note)


def _utility(before: list[Grade], after: list[Grade], rows: list[int], lab: Lab) -> Claim:
    """Benign answers that are still right, where prompts say what a right answer contains."""
    change = [
        (float(b.right) - float(a.right), lab.clusters[i])
        for a, b, i in zip(before, after, rows, strict=True) if a.right is not None and b.right is not None
    ]  # fmt: skip
    if not change:
        return Claim("utility", _NAN, "not tested", note="no prompt says what a right answer contains ('expect')")
    values, clusters = np.array([c for c, _ in change]), [c for _, c in change]
    limit = RULE["max_utility_change"]
    p = equivalent(values, clusters, limit)
    effect = ratio_of_means(values, np.ones(len(values)), clusters, seed=lab.seed)
    note = f"share of {len(values)} benign answers still right, after minus before; equivalent to 0 within ±{limit:g}"
    return Claim("utility", effect, "passed" if p <= RULE["alpha"] else "failed", p={"TOST": p}, note=note)


def _by_cell(lab: Lab, change: Float[np.ndarray, "set pair"], controls: Controls) -> dict[str, dict[str, Any]]:
    """Mean ablation cell by cell; p against every drawn kind, the worst, corrected over the cells claimed (Holm)."""
    out: dict[str, dict[str, Any]] = {}
    for cell, rows in lab.by_cell().items():
        gap = lab.gaps[rows].mean()
        effects = change[:, rows].mean(axis=1) / gap
        p, at = [1.0] if not controls.drawn else [], 1
        for sets in controls.drawn.values():
            p.append(p_value(effects[0], effects[at : at + len(sets)]))
            at += len(sets)
        out[str(cell)] = {
            "n_pairs": len(rows), "gap": float(gap), "effect": finite(lab.effect(change[0], rows)),
            "strongest control": float(effects[1:].max()) if len(effects) > 1 else None, "p": max(p),
        }  # fmt: skip
    for row, adjusted in zip(out.values(), holm([row["p"] for row in out.values()]), strict=True):
        low = row["effect"][1]
        good = adjusted <= RULE["alpha"] and row["effect"][0] >= RULE["min_effect"] and low is not None and low > 0
        row |= {"p holm": adjusted, "verdict": "passed" if good else "failed"}
    return out


# -- members ----------------------------------------------------------------------------------------------
class _Members:
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


def _second_chance(
    lab: Lab, members: _Members, loud: Float[np.ndarray, "feature n_layers d_mlp"], draws: int
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
    claims, _ = _claims(lab.rows(np.flatnonzero(~mine)), tested, in_full(Controls(drawn), tested))
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
