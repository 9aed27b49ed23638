"""Prove: do the model's refusals depend on a set of neurons?

A contrast (`find`) selects neurons that *differ* between harmful and benign prompts. Whether refusals depend on them is a causal
question. `verify` changes the neurons and measures the refusal margin, on requests that had no part in selecting them, and does the
same with matched control sets.

**Measure.** M is the refusal margin at the first answer token, logsumexp(refusal prefixes) - logsumexp(compliance prefixes). Prompts
come in matched pairs, a harmful one and a benign one of the same request (`pair_id`). With D = mean M(harmful) - mean M(benign), the
clean logit difference, effects are normalised by D:

    necessity    [M(harmful) - M(harmful, set ablated)] / D
                 four ablations: zero; the benign mean of the cell; the value of a random benign prompt of the cell and of another
                 request (resample); the value of the matched benign prompt (patch). All four must agree.
    sufficiency  [M(benign, set at its value on the matched harmful prompt) - M(benign)] / D
    specificity  [M(benign, set ablated) - M(benign)] / D, equivalent to 0 (TOST) under the first three ablations
    utility      share of benign answers that are right, after minus before, equivalent to 0 (TOST), where it can be graded

These are claims about the margin. Refusal rates of generated answers are reported beside them (`Proof.answers`).

**Controls.** Necessity and sufficiency must exceed every kind of matched control set (`controls`): p = (1 + #{control >= set}) /
(1 + draws) against kinds that are drawn, and a paired interval above 0 against single sets.

**Rule.** `RULE` is fixed beforehand and demands every claim at once, so no correction over claims is needed (intersection-union
test). Over cells Holm's correction is used, over members Benjamini and Hochberg's. Intervals are over whole requests (`core.intervals`).
Cells where the model does not refuse have nothing to explain: they are left out of the claims and used in the experiments.

**Members.** Each member is ablated alone, after all others and the backup neurons, and after those of its own and earlier layers, so
that neurons that back each other up are found as a group (`members`). A member is verified if one of these lowers the margin, by
a material amount, with norms frozen. One whose ablation raises the margin is an anti-refusal neuron. Members stay unverified
unless the set passes, or they pass by themselves on held-out requests (`retest_members`).

Sources: Vig et al. (2020), causal mediation; Wang et al. (2023), completeness and minimality; Chen et al. (2024), dynamic patching of
safety neurons; McGrath et al. (2023), self-repair; Phipson and Smyth (2010), permutation p-values; Schuirmann (1987), TOST;
Berger (1982), intersection-union tests; Holm (1979); Benjamini and Hochberg (1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..core.arguments import at_least, check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..data.grading import Grade
from ..data.languages import OpeningsArg
from ..data.prompts import LABELS, Cell, PromptSet
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from . import experiments
from .claims import (
    NECESSITY,
    NECESSITY_MEAN,
    SPECIFICITY,
    SUFFICIENCY,
    UTILITY,
    effects_by_cell,
    measure_claims,
    measure_utility,
)
from .controls import control_sets
from .members import Members, measure_members, retest_members, verified_only
from .pairs import MatchedPairs, match, measure
from .refusals import Grader, answer_rate, refusing_cells
from .tables import ANTI_REFUSAL, CLEAN, RANDOM_ABLATED, SET_ABLATED, AnswerRate, Claim, ControlSummary, Experiments
from .verdict import Proof, open_of, reason_of

__all__ = ["verify"]


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
    """A `Proof` of whether refusals depend on a set, tested on the "confirm" prompts (all of them, if none is so marked).

    >>> proof = ns.verify(model, neurons, prompts, draws=1, refusals=["sorry"], compliances=["sure"], progress=False)
    >>> proof, len(proof.claims)                # three arbitrary neurons of a random model
    (Proof(no, 0 of 3 verified), 7)

    Args:
        model: the model.
        neurons: the set, usually of `Scores.top`; its provenance names the requests that selected it.
        prompts: harmful and benign prompts; matched pairs share `pair_id`. Without any matched pair each harmful prompt is paired with a
            random benign one of its cell, and `Proof.paired` is False. "discover" rows, if there are any, are what selecting controls
            select on.
        draws: control sets of each kind that is drawn. A draw costs one partial forward of every pair per claim. With fewer than 19
            no claim can pass.
        seed: of every draw.
        refusals, compliances: prefixes instead of the model's own (`model.prefixes`), for all languages or by language.
        graded: pairs whose answers are generated (24 tokens) and graded; they are spread over requests.
        batch_size: prompts per forward.
        progress: whether bars are shown.

    Raises:
        InputError: an argument of another type, an empty set, a set of another model, prompts that selection has seen, only one label,
            a language without prefixes, or prefixes without a token of their own.
    """
    confirm = _confirmed_on(model, neurons, prompts)
    at_least(1, "verify", draws=draws, graded=graded, batch_size=batch_size)
    check_seed(seed, call="verify")
    found, paired = match(confirm, seed=seed)
    openings = openings_of(model, confirm, refusals=refusals, compliances=compliances)
    tokens = opening_tokens(model, openings)
    pairs = measure(model, found, tokens, seed=seed, batch_size=batch_size, progress=progress)
    discover = prompts.where(split="discover")
    test = _Test(
        neurons, confirm, select=discover if len(discover) else confirm.marked("discover"), grader=Grader(openings, graded), draws=draws,
        paired=paired,
    )  # fmt: skip
    cells, answers, untested = refusing_cells(pairs, test.grader)
    return _untested(test, pairs, answers=answers, reason=untested) if untested else _tested(test, pairs, cells)


def _confirmed_on(model: Model, neurons: NeuronSet, prompts: PromptSet) -> PromptSet:
    """The prompts to test on, once the arguments are what `verify` takes."""
    call = "verify(model, neurons, prompts)"
    require(model, Model, call=call, name="model", hint="load one with ns.load")
    require(neurons, NeuronSet, call=call, name="neurons", hint="pass one set, such as scores.top(k=64)['en/text']")
    require(
        prompts, PromptSet, call=call, name="prompts", hint="read them with ns.PromptSet.from_jsonl or from_records"
    )
    if not len(neurons):
        raise InputError("verify: the neuron set is empty; select neurons first (scores.top)")
    model.needs_here("verify")
    neurons.check_model(model)
    confirm = prompts.for_step("confirm")
    seen = set(neurons.provenance.get("seen", []))
    if again := [p for p in confirm if p.cluster in seen]:
        raise InputError(
            f"verify: {len(again)} of {len(confirm)} prompts were seen when the neurons were selected (first: id "
            f"{again[0].id!r}); confirm on other requests, or mark them with a 'split' column (prompts.with_splits())"
        )
    confirm.require_both_labels("verify")
    return confirm


# -- the proof ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Test:
    """What is tested, on what, and how."""

    neurons: NeuronSet
    confirm: PromptSet
    select: PromptSet
    grader: Grader
    draws: int
    paired: bool

    def proof(
        self,
        pairs: MatchedPairs,
        *,
        reason: str,
        verified: Iterable[tuple[int, int]] = (),
        anti_refusal: Iterable[tuple[int, int]] = (),
        backups: Iterable[tuple[int, int]] = (),
        **found: Any,
    ) -> Proof:
        """The proof, with sets that know what they were tested on and a verified set that knows that it was verified."""
        data = self.confirm.hash()
        own = self.neurons.provenance
        about = {**own, "tested_on": data, "verify_seed": pairs.seed, "draws": self.draws}
        about["seen"] = sorted({*own.get("seen", []), *(p.cluster for p in self.confirm)})
        if "seen" not in own or own.get("seen_incomplete"):
            about["seen_incomplete"] = True
            reason += "; the requests that selected the set are not known, so they may be among those it was tested on"
        shape = {"n_layers": pairs.model.n_layers, "d_mlp": pairs.model.d_mlp}
        return Proof(
            self.neurons,
            verified=NeuronSet(verified, **shape, provenance={**about, "verified_on": data, "proof": reason}),
            anti_refusal=NeuronSet(anti_refusal, **shape, provenance=about),
            backups=NeuronSet(backups, **shape, provenance=about), reason=reason, n_pairs=len(pairs), draws=self.draws,
            paired=self.paired, provenance=provenance(pairs.model, self.confirm, seed=pairs.seed), **found,
        )  # fmt: skip


def _untested(test: _Test, pairs: MatchedPairs, *, answers: dict[str, list[Grade]], reason: str) -> Proof:
    """The proof where there is no refusal to explain."""
    names = (*NECESSITY, SUFFICIENCY, SPECIFICITY, UTILITY)
    asked = pairs.requests[test.grader.rows(pairs)]
    rates = tuple(answer_rate(label, CLEAN, grades, requests=asked) for label, grades in answers.items())
    claims = tuple(Claim.untested(name) for name in names)
    return test.proof(pairs, reason=reason, passed=False, claims=claims, answers=rates)


def _tested(test: _Test, everywhere: MatchedPairs, cells: Sequence[Cell]) -> Proof:
    """Claims, members, experiments and the verdict, on the cells where the model refuses."""
    pairs = everywhere.take(np.flatnonzero(np.isin(everywhere.rows.cells, [str(c) for c in cells])))
    features = _features(pairs)
    controls = control_sets(
        pairs.model, test.neurons, test.select, features=features, draws=test.draws, seed=pairs.seed,
        batch_size=pairs.batch_size,
    )  # fmt: skip
    random = controls.drawn.get("random", [])
    claims, changes = measure_claims(pairs, test.neurons, controls)
    utility, answers = _answers(test, pairs, random)
    claims.append(utility)
    members = measure_members(pairs, test.neurons)
    table = members.table()
    kept, retest = NeuronSet([m.neuron for m in table if m.verified]), None
    passed = not open_of(claims)
    if not passed:
        kept, retest = retest_members(members, features=features, draws=test.draws)
    backups = members.backups()
    ranked = [m.neuron for m in sorted(table, key=lambda m: -m.alone.value)]
    return test.proof(
        pairs, reason=reason_of(claims, retest=retest, n_backups=len(backups)), verified=kept, backups=backups,
        anti_refusal=[m.neuron for m in table if m.role == ANTI_REFUSAL], passed=passed,
        claims=tuple(claims), retest=retest, cells=effects_by_cell(pairs, changes[NECESSITY_MEAN], controls),
        members=verified_only(table, kept),
        experiments=_experiments(members, everywhere, ranked=ranked, random=random, cells=cells), answers=answers,
        controls=ControlSummary(controls.counts(), missing=controls.missing, recovered=controls.recovered),
    )  # fmt: skip


def _features(pairs: MatchedPairs) -> Float[np.ndarray, "feature n_layers d_mlp"]:
    """Mean |h| over all prompts, and the norm of the W_down column: what matched controls are matched on."""
    values = torch.cat([pairs.rows.harmful_values, pairs.rows.benign_values])
    return np.stack([values.abs().mean(0).double().numpy(), pairs.model.down_norms().numpy()])


def _answers(test: _Test, pairs: MatchedPairs, random: Sequence[NeuronSet]) -> tuple[Claim, tuple[AnswerRate, ...]]:
    """The claim of utility, and refusal rates of generated answers: clean, set ablated, and one random set ablated."""
    grader = test.grader
    grades: dict[tuple[str, str], list[Grade]] = {}
    for label in LABELS:
        grades[label, CLEAN] = grader.answers(pairs, label)
        grades[label, SET_ABLATED] = grader.answers(pairs, label, ablated=test.neurons)
    if random:
        grades["harmful", RANDOM_ABLATED] = grader.answers(pairs, "harmful", ablated=random[0])
    before, after = grades["benign", CLEAN], grades["benign", SET_ABLATED]
    asked = pairs.requests[grader.rows(pairs)]
    utility = measure_utility(before, after, requests=asked)
    rates = (answer_rate(label, condition, found, requests=asked) for (label, condition), found in grades.items())
    return utility, tuple(rates)


def _experiments(
    members: Members,
    everywhere: MatchedPairs,
    *,
    ranked: Sequence[tuple[int, int]],
    random: Sequence[NeuronSet],
    cells: Sequence[Cell],
) -> Experiments:
    """Every experiment: on the cells where the model refuses; recognition and cross-cell patching on all cells."""
    pairs = members.pairs
    neurons = NeuronSet(members.neurons, n_layers=pairs.model.n_layers, d_mlp=pairs.model.d_mlp)
    by_size = experiments.size(pairs, ranked)
    return Experiments(
        dose_response=experiments.dose_response(pairs, neurons, random),
        size=by_size,
        minimal=experiments.minimal(by_size),
        groups=experiments.groups(pairs, neurons, ranked),
        completeness=experiments.completeness(pairs, neurons, random),
        backups=members.search.rounds,
        recognition=experiments.recognition(everywhere, neurons, random, difference=float(pairs.differences.mean())),
        cross_cell=experiments.cross_cell(everywhere, neurons, random, sources=cells),
    )
