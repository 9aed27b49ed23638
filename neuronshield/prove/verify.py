"""Prove: do the model's refusals depend on a set of neurons?

A contrast (`find`) selects neurons that *differ* between harmful and benign prompts. Whether refusals depend on them is a causal
question. `verify` changes the neurons and measures the refusal margin and generated answers, on requests that had no part in
selecting them, and does the same with control sets.

**Margin claims.** M is the refusal margin at the first answer token, logsumexp(refusal prefixes) - logsumexp(compliance prefixes).
Prompts come in matched pairs, a harmful one and a benign one of the same request (`pair_id`). With D = mean M(harmful) - mean
M(benign), the clean logit difference, effects are normalised by D:

    necessity    [M(harmful) - M(harmful, set ablated)] / D
                 four ablations: zero; the benign mean of the cell; the value of a random benign prompt of the cell and of another
                 request (resample); the value of the matched benign prompt (patch). All four must agree.
    sufficiency  [M(benign, set at its value on the matched harmful prompt) - M(benign)] / D
    specificity  [M(benign, set ablated) - M(benign)] / D, equivalent to 0 (TOST) under the first three ablations

**Claims about answers.** A refusal in other words is still one, so refusal itself is judged on answers to a sample of the pairs
(`answer_claims`): refused, complied, or incoherent.

    refusals: necessity     under mean ablation refusals of harmful prompts fall, and harmful compliance rises
    refusals: sufficiency   with the set at its harmful values refusals of benign prompts rise
    refusals: coherence     under mean ablation incoherent answers rise by no more than a limit
    utility                 share of benign answers that are right, after minus before, equivalent to 0 (TOST), where it can be graded

A set under whose ablation answers start in other words while they still refuse controls the wording of refusals, not refusal.

**Controls.** Necessity and sufficiency must exceed every kind of control set (`controls`): p = (1 + #{control >= set}) /
(1 + draws) against kinds that are drawn, and a paired interval above 0 against single sets. For answers, one set of each drawn
kind answers: the one whose margin effect a set must exceed for p <= alpha.

**Rule.** `RULE` is fixed beforehand and demands every claim at once, so no correction over claims is needed (intersection-union
test). Over cells Holm's correction is used, over members Benjamini and Hochberg's. Intervals are over whole requests (`core.intervals`).
A claim whose test could never pass with so few requests is "too few requests to tell", neither passed nor failed. Cells where the
model does not refuse have nothing to explain: they are left out of the claims and used in the experiments.

**Members.** One third of the requests chooses members: each is ablated alone, after all others and the backup neurons, and after
those of its own and earlier layers, so that neurons that back each other up are found as a group (`members`). A member is chosen if
one of these lowers the margin, by a material amount, with norms frozen. One whose ablation raises the margin is an anti-refusal
neuron. The chosen members, with the backup neurons if they need them, are then tested as a set on the other two thirds: by every
claim, against the same kinds of control. Only if they pass are they `Proof.verified`; else the whole set is, if it passed; else
nothing is, and the chosen members are `Proof.candidates`.

Sources: Vig et al. (2020), causal mediation; Wang et al. (2023), completeness and minimality; Chen et al. (2024), dynamic patching of
safety neurons; McGrath et al. (2023), self-repair; Phipson and Smyth (2010), permutation p-values; Schuirmann (1987), TOST;
Berger (1982), intersection-union tests; Holm (1979); Benjamini and Hochberg (1995).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..core.arguments import at_least, check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..core.results import to_json
from ..data.judging import Judge, check_judge
from ..data.languages import OpeningsArg
from ..data.prompts import Cell, PromptSet
from ..find.signs import Sign, signs_of
from ..model.engine import Engine
from ..model.engines import engine_of
from ..model.generation import settings
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from . import experiments
from .answer_claims import ANSWER_CLAIMS, measure_wording
from .answers import MAX_NEW_TOKENS, Answers, Grader, answer_rate
from .claims import MARGIN_CLAIMS, NECESSITY_MEAN, effects_by_cell
from .controls import Controls, Source, control_sets
from .evidence import Evidence, measure_evidence
from .members import Members, measure_members, verified_only
from .pairs import MatchedPairs, match, measure
from .refusals import refusing_cells
from .requirements import log_requirements, requirements
from .shuffled import kept_on_shuffled
from .tables import (
    ANSWERS,
    ANTI_REFUSAL,
    CLEAN,
    IN_A_GROUP,
    MARGIN,
    Claim,
    ControlSummary,
    Cost,
    Experiments,
    Retest,
)
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
    judge: Judge | None = None,
    graded: int = 48,
    batch_size: int = 64,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> Proof:
    """A `Proof` of whether refusals depend on a set, tested on the "confirm" prompts (all of them, if none is so marked).

    >>> proof = ns.verify(model, neurons, prompts, draws=1, refusals=["sorry"], compliances=["sure"], progress=False)
    >>> proof, len(proof.claims)                # three arbitrary neurons of a random model
    (Proof(no, 0 of 3 verified), 10)

    Args:
        model: the model.
        neurons: the set, usually of `Scores.top`; its provenance names the requests that selected it.
        prompts: harmful and benign prompts; matched pairs share `pair_id`. Without any matched pair harmful prompts are paired with
            random benign ones of their cell, none twice, and `Proof.paired` is False. "discover" rows, if there are any, are what selecting controls
            select on.
        draws: control sets of each kind that is drawn. A draw costs one partial forward of every pair per claim. With fewer than 19
            no claim can pass.
        seed: of every draw.
        refusals, compliances: prefixes of the margin instead of the model's own (`model.prefixes`), for all languages or by language.
        judge: says of each answer whether it refuses and whether it is harmful (see `ns.judges`). Without it, and where it judges
            harm only, an answer refuses if it starts with a refusal prefix or is worded as a refusal, and complies if it contains what the
            prompt's `expect` says, or without that if it is coherent and no refusal.
        graded: pairs whose answers are generated (24 tokens) and graded; they are spread over requests. A set takes 5 answers a pair,
            and 2 for each kind of control; the chosen members take as many on two thirds of the pairs.
        batch_size: prompts per forward.
        engine: where margins and answers are computed: None for this process, "ray", or an engine (`neuronshield.model.engine`).
        progress: whether bars are shown.

    Raises:
        InputError: an argument of another type, an empty set, a set of another model, prompts that selection has seen, only one label,
            a language without prefixes, prefixes without a token of their own, or a judge that returns no verdict.
    """
    confirm = _confirmed_on(model, neurons, prompts)
    at_least(1, "verify", draws=draws, graded=graded, batch_size=batch_size)
    check_seed(seed, call="verify")
    check_judge(judge, call="verify")
    log_requirements(requirements(confirm, graded=graded))
    found, paired = match(confirm, seed=seed)
    openings = openings_of(model, confirm, refusals=refusals, compliances=compliances)
    tokens = opening_tokens(model, openings)
    runner = engine_of(engine).on(model)
    pairs = measure(model, found, tokens, seed=seed, batch_size=batch_size, progress=progress, runner=runner)
    discover = prompts.where(split="discover")
    test = _Test(
        neurons, confirm, select=discover if len(discover) else confirm.marked("discover"), grader=Grader(openings, graded, judge), draws=draws,
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

    def proof(self, pairs: MatchedPairs, *, reason: str, kept: _Kept, **found: Any) -> Proof:
        """The proof, with sets that know what they were tested on; only a verified set says that it was verified."""
        data = self.confirm.hash()
        own = {k: v for k, v in self.neurons.provenance.items() if k not in ("verified_on", "proof", "claims")}
        unknown = "seen" not in own or own.get("seen_incomplete")
        if unknown:
            reason += "; the requests that selected the set are not known, so they may be among those it was tested on"
        about = {**own, "tested_on": data, "verify_seed": pairs.seed, "draws": self.draws, "verdict": reason}
        about["claims"] = [_brief(claim) for claim in found.get("claims", ()) if claim.verdict != "not tested"]
        about["seen"] = sorted({*own.get("seen", []), *(p.cluster for p in self.confirm)})
        if unknown:
            about["seen_incomplete"] = True
        shape: dict[str, Any] = {"n_layers": pairs.model.n_layers, "d_mlp": pairs.model.d_mlp}
        verified = {**about, "verified_on": data, "proof": reason} if kept.verified else about
        made = provenance(pairs.model, self.confirm, seed=pairs.seed, generation=settings(pairs.model, MAX_NEW_TOKENS))
        if self.grader.judge is not None:
            made["judge"] = self.grader.judge.name
        return Proof(
            self.neurons,
            verified=NeuronSet(kept.verified, **shape, provenance=verified),
            candidates=NeuronSet(kept.candidates, **shape, provenance=about),
            anti_refusal=NeuronSet(kept.anti_refusal, **shape, provenance=about),
            backups=NeuronSet(kept.backups, **shape, provenance=about), reason=reason, n_pairs=len(pairs),
            n_requests=len(set(pairs.requests)), draws=self.draws, paired=self.paired,
            cost=Cost(margins=pairs.work["margins"], answers=pairs.work["answers"]), provenance=made, **found,
        )  # fmt: skip


def _brief(claim: Claim) -> dict[str, Any]:
    """A claim as the provenance of a tested set holds it."""
    best = claim.strongest_control
    control = f"{best[1]:.2f} ({best[0]})" if best else "none"
    return {"name": claim.name, "effect": to_json(claim.effect), "control": control, "verdict": claim.verdict}


@dataclass(frozen=True)
class _Kept:
    """What became of the members."""

    verified: Sequence[tuple[int, int]] = ()
    candidates: Sequence[tuple[int, int]] = ()
    anti_refusal: Sequence[tuple[int, int]] = ()
    backups: Sequence[tuple[int, int]] = ()


def _untested(test: _Test, pairs: MatchedPairs, *, answers: dict[str, Answers], reason: str) -> Proof:
    """The proof where there is no refusal to explain."""
    asked = pairs.requests[test.grader.rows(pairs)]
    rates = tuple(answer_rate(label, CLEAN, found, requests=asked) for label, found in answers.items())
    claims = [Claim.untested(name, measure=MARGIN) for name in MARGIN_CLAIMS]
    claims += [Claim.untested(name, measure=ANSWERS) for name in ANSWER_CLAIMS]
    return test.proof(pairs, reason=reason, kept=_Kept(), passed=False, claims=tuple(claims), answers=rates)


def _tested(test: _Test, everywhere: MatchedPairs, cells: Sequence[Cell]) -> Proof:
    """Claims, members, experiments and the verdict, on the cells where the model refuses."""
    pairs = everywhere.take(np.flatnonzero(np.isin(everywhere.rows.cells, [str(c) for c in cells])))
    source = Source(pairs.model, test.neurons, test.select, seed=pairs.seed, batch_size=pairs.batch_size)
    draw = partial(control_sets, source=source, features=_features(pairs), draws=test.draws)
    controls = draw(test.neurons)
    evidence = measure_evidence(pairs, test.neurons, controls, grader=test.grader, sample=test.grader.rows(pairs))
    claims, wording = evidence.claims(), measure_wording(evidence.sheet)
    choosing = pairs.split()[0]
    members = measure_members(choosing, test.neurons)
    shuffled = kept_on_shuffled(choosing, test.neurons, controls.shuffled) if controls.shuffled else None
    retest = _retest(test, evidence, members=members, draw=draw)
    passed = not open_of(claims)
    chosen = members.kept()
    verified = list(chosen) if retest and retest.passed else list(test.neurons) if passed else []
    table = verified_only(members.table(_signs(pairs, test.neurons)), NeuronSet(verified))
    kept = _Kept(
        verified, candidates=[] if retest and retest.passed else list(chosen),
        anti_refusal=[m.neuron for m in table if m.role == ANTI_REFUSAL], backups=list(members.backups()),
    )  # fmt: skip
    experiments = _experiments(
        members, pairs=pairs, everywhere=everywhere, random=controls.drawn.get("random", []), cells=cells
    )
    return test.proof(
        pairs, reason=reason_of(claims, wording=wording, retest=retest, n_backups=len(kept.backups)), kept=kept,
        passed=passed, claims=claims, retest=retest, wording=wording, shuffled=shuffled,
        cells=effects_by_cell(pairs, evidence.margins.changes[NECESSITY_MEAN], controls), members=table,
        experiments=experiments, answers=evidence.sheet.rates(),
        controls=ControlSummary(controls.counts(), missing=controls.missing, recovered=controls.recovered),
    )  # fmt: skip


def _retest(
    test: _Test, evidence: Evidence, *, members: Members, draw: Callable[[NeuronSet], Controls]
) -> Retest | None:
    """The chosen members as a set, with the backups that they need, on the requests that did not choose them."""
    chosen, backups = members.kept(), NeuronSet([])
    if not len(chosen):
        return None
    if IN_A_GROUP in members.roles():
        backups = NeuronSet(members.backups())
    testing = evidence.of_requests(evidence.pairs.split()[1])
    if len(backups) or chosen != test.neurons:
        shape: dict[str, Any] = {"n_layers": test.neurons.n_layers, "d_mlp": test.neurons.d_mlp}
        tested = NeuronSet([*chosen, *backups], **shape, provenance=test.neurons.provenance)
        testing = measure_evidence(testing.pairs, tested, draw(tested), grader=test.grader, sample=testing.sample)
    claims = testing.claims()
    return Retest(
        claims, n_members=len(chosen), n_backups=len(backups), n_chosen_on=len(set(members.pairs.requests)),
        n_requests=len(set(testing.pairs.requests)), passed=not open_of(claims),
    )  # fmt: skip


def _signs(pairs: MatchedPairs, neurons: NeuronSet) -> tuple[Sign, ...]:
    """The signs of every member, from the activations of the pairs."""
    difference = (pairs.rows.harmful_values - pairs.rows.benign_values).double().mean(dim=0).numpy()
    return signs_of(pairs.model, neurons, pairs.rows.harmful, tokens=pairs.tokens, difference=difference)


def _features(pairs: MatchedPairs) -> Float[np.ndarray, "feature n_layers d_mlp"]:
    """Mean |h| over all prompts, and the norm of the W_down column: what matched controls are matched on."""
    values = torch.cat([pairs.rows.harmful_values, pairs.rows.benign_values])
    return np.stack([values.abs().mean(0).double().numpy(), pairs.model.down_norms().numpy()])


def _experiments(
    members: Members,
    *,
    pairs: MatchedPairs,
    everywhere: MatchedPairs,
    random: Sequence[NeuronSet],
    cells: Sequence[Cell],
) -> Experiments:
    """Every experiment: on the cells where the model refuses; recognition and cross-cell patching on all cells.

    Members are ranked by their effects on the requests that choose them, and ablated in that order on the others.
    """
    neurons = NeuronSet(members.neurons, n_layers=pairs.model.n_layers, d_mlp=pairs.model.d_mlp)
    strength = members.free[0].mean(axis=1)
    ranked = [members.neurons[i] for i in np.argsort(-strength, kind="stable")]
    others = pairs.split()[1]
    by_size = experiments.size(others, ranked)
    return Experiments(
        dose_response=experiments.dose_response(pairs, neurons, random[: experiments.BESIDE]),
        size=by_size,
        minimal=experiments.minimal(by_size),
        groups=experiments.groups(others, neurons, ranked),
        completeness=experiments.completeness(pairs, neurons, random),
        backups=members.search.rounds,
        recognition=experiments.recognition(everywhere, neurons, random, difference=float(pairs.differences.mean())),
        cross_cell=experiments.cross_cell(everywhere, neurons, random, sources=cells),
    )
