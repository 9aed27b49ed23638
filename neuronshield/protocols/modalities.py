"""The published protocols for safety neurons of text and of pictures, side by side on the same requests with the same controls.

Papers disagree: Precise Shield, One Anchor and SS-Neurons report neurons that text and pictures share; "Do VLMs share safety neurons
across modalities?" finds none for pictures in ten models. Their protocols differ in what they call a safety neuron, in how they
choose it, and in what they compare it with. `modality` runs all of them on one model and one set of requests, and measures the same for
each:

    neurons       of each modality, and by round for the behavioural protocol         `selections`, `rounds`
    overlap       beside a benign null and the reliability of the selection           `selections`
    effect        of ablating the set of each modality in both of them, beside        `effects`
                  random and matched sets of the same size: margin, refusal mass,
                  refusals as judged and by their first words
    directions    how many are needed, and whether those of one modality act in       `eigenvectors`
                  the other one
    verdict       "shared, transfers", "separate", "none found", "too few requests    `verdicts`
                  to tell"

`ns.rules` has the formulas of the published rules; the module of each part says what a paper leaves open and what was chosen here.

Sources: Precise Shield (2026), arXiv 2604.08881; One Anchor (2026), 2607.27917; SS-Neurons, "Who Transfers Safety?" (2026), 2602.01283;
"Do VLMs share safety neurons across modalities?" (2026), 2608.30750.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from ..core.arguments import at_least, check_seed, one_of, require
from ..core.errors import InputError
from ..core.intervals import clustered_rate
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..core.sites import VALUES
from ..data.judging import Judge, check_judge
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..find.groups import Stats
from ..find.moments import capture, check_inputs
from ..model.engine import Engine
from ..model.engines import engine_of
from ..model.generation import settings
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from ..prove.answers import MAX_NEW_TOKENS, Grader
from .bench import Bench, Reader, open_bench, two_modalities
from .comparison import BEHAVIOURAL, NAMES, ModalityProtocol
from .effects import draw_controls, features_of, measure_effect
from .eigenvectors import measure_directions
from .rounds import find_causal
from .selections import RULES, Addresses, Pick, overlapped, pick_by_probe, pick_by_rule
from .tables import Effect, FoundSet, Outcome, Round, Side
from .verdicts import UNTESTED, Fall, verdict_of

__all__ = ["modality"]

Layers: TypeAlias = Float[np.ndarray, "n_layers width"]
#: Splits of prompts that have none: discover, confirm, train, test.
FRACTIONS = (0.4, 0.3, 0.0, 0.3)


def modality(
    model: Model,
    prompts: PromptSet,
    *,
    rho: float = 0.03,
    sites: Sequence[str] = ("neuron",),
    queries: int = 250,
    controls: int = 300,
    rounds: int = 3,
    draws: int = 99,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    judge: Judge | None = None,
    batch_size: int = 64,
    seed: int = 0,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> ModalityProtocol:
    """What each protocol finds in text and in pictures, with its verdict.

    >>> rows = prompts + ns.PromptSet.from_records(                               # the same requests with a picture
    ...     {"prompt": p.prompt, "label": p.label, "language": p.language, "pair_id": p.pair_id, "modality": "image",
    ...      "images": [np.zeros((6, 6, 3), dtype=np.uint8)]} for p in prompts)   # doctest: +SKIP
    >>> found = modality(vlm, rows, refusals=["sorry"], compliances=["sure"])     # doctest: +SKIP
    >>> list(found.verdicts)                                                      # doctest: +SKIP
    ['Precise Shield', 'One Anchor', 'SS-Neurons', 'behavioural', 'directions']

    Args:
        model: the model.
        prompts: harmful and benign prompts of text and of one modality of pictures (the first other one that there is). Those of split
            "discover" select, those of "confirm" confirm neurons one by one, and those of "test" measure effects; prompts without
            splits are dealt to them.
        rho: part of the neurons of a layer that the three rules rank first, before their set differences.
        sites: where the behavioural protocol reads neurons: "neuron", "gate", "up", "attention", one run each. The three rules read the
            site "neuron", whose column norms they need.
        queries: prompts of a label, modality and split, at most.
        controls: control neurons of a round of the behavioural protocol.
        rounds: of the behavioural protocol, at most.
        draws: control sets of each kind for the effect of a set; with fewer than 19 no effect can pass.
        refusals, compliances: prefixes instead of the model's own, for all languages or by language.
        judge: says of each answer whether it refuses (see `ns.judges`); without it the words do.
        batch_size: prompts a forward.
        seed: of every draw.
        engine: where margins and answers are computed: None for this process, "ray", or an engine.
        progress: whether bars are shown.

    Raises:
        InputError: an argument of another type, prompts of one modality, a split without one of the labels, an unknown site or one that
            the model does not have, a language without prefixes, or a judge that returns no verdict.
    """
    names, dealt = _checked(model, prompts, rho=rho, sites=sites, seed=seed)
    at_least(1, "modality", queries=queries, controls=controls, rounds=rounds, draws=draws, batch_size=batch_size)
    check_judge(judge, call="modality")
    openings = openings_of(model, dealt, refusals=refusals, compliances=compliances)
    reader = Reader(
        model, opening_tokens(model, openings), grader=Grader(openings, queries, judge), runner=engine_of(engine).on(model),
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    benches = [open_bench(reader, dealt, name, most=queries, seed=seed) for name in names]
    sides = tuple(_side(bench) for bench in benches)
    stats = capture(
        model, PromptSet(p for b in benches for p in b.prompts), batch_size=batch_size, seed=seed, progress=progress
    )
    outcomes = [
        _by_rule(reader, benches, sides, rule=rule, stats=stats, part=rho, draws=draws, seed=seed) for rule in RULES
    ]
    for site in dict.fromkeys(sites):
        at_site = benches if site == "neuron" else [bench.at(reader, site) for bench in benches]
        found = [find_causal(reader, b, site=site, rounds=rounds, controls=controls, seed=seed) for b in at_site]
        outcomes.append(_outcome(
            reader, at_site, sides, protocol=BEHAVIOURAL, sets=[frozenset(f.members) for f in found],
            missing={b.modality: f.missing for b, f in zip(at_site, found, strict=True) if f.missing},
            rounds=[row for f in found for row in f.rounds], pick=pick_by_probe(at_site),
            first=[frozenset(f.first) for f in found], norms=stats.down_norms if site == "neuron" else None, site=site,
            draws=draws, seed=seed,
        ))  # fmt: skip
    directions = measure_directions(reader, benches, sides, seed=seed)
    about = provenance(
        model, dealt, seen=[p for b in benches for p in b.prompts], seed=seed, generation=settings(model, MAX_NEW_TOKENS),
        rho=rho, queries=queries, controls=controls, rounds=rounds, draws=draws, judge=None if judge is None else judge.name,
    )  # fmt: skip
    return ModalityProtocol(
        names, sides, tuple(outcomes), directions=directions, n_layers=model.n_layers, margins=reader.work["margins"],
        answers=reader.work["answers"], provenance=about,
    )  # fmt: skip


def _checked(
    model: Model, prompts: PromptSet, *, rho: float, sites: Sequence[str], seed: int
) -> tuple[tuple[str, str], PromptSet]:
    """The two modalities, and their prompts with splits, once the arguments are what `modality` takes."""
    check_inputs("modality", model, prompts)
    check_seed(seed, call="modality")
    number = isinstance(rho, (int, float)) and not isinstance(rho, bool)
    if not number or not 0 < rho <= 1:
        raise InputError(f"modality: rho={rho!r:.40}: a part of the neurons of a layer, above 0 and at most 1")
    if isinstance(sites, str) or not sites:
        raise InputError(f"modality: sites={sites!r:.40}: give at least one, as in sites=['neuron']")
    for site in require(sites, Sequence, call="modality", name="sites"):
        one_of(site, VALUES, call="modality", name="sites")
    model.needs_here("modality")
    names = two_modalities(prompts)
    rows = PromptSet(p for p in prompts if p.modality in names)
    rows.require_both_labels("modality")
    return names, rows if any(p.split for p in rows) else rows.with_splits(seed=seed, fractions=FRACTIONS)


def _side(bench: Bench) -> Side:
    """A modality as the result describes it."""
    behaves, harmful, test = bench.behaves, bench.harmful, bench.test
    return Side(
        bench.modality, tuple(dict.fromkeys(str(p.cell) for p in bench.prompts)),
        n_refused=int((behaves & harmful).sum()), n_answered=int((behaves & ~harmful).sum()), n_harmful=int(harmful.sum()),
        n_benign=int((~harmful).sum()), n_confirm=len(bench.confirm.harmful), n_test=len(test.harmful),
        n_requests=len(set(test.requests)), difference=bench.difference,
        refused=clustered_rate(bench.answers.refused, list(test.requests)),
    )  # fmt: skip


def _by_rule(
    reader: Reader,
    benches: Sequence[Bench],
    sides: Sequence[Side],
    *,
    rule: str,
    stats: Stats,
    part: float,
    draws: int,
    seed: int,
) -> Outcome:
    """What a published rule finds."""
    pick = pick_by_rule(rule, benches, stats, part=part)
    sets = pick([np.ones(len(b.prompts), dtype=bool) for b in benches], [b.harmful for b in benches])
    if all(found is None for found in sets):
        why = "no cell has harmful and benign prompts in all the cells that the rule reads: its own, and those it joins (English, the other modality)"
        return Outcome(NAMES[rule], "neuron", (), overlap=None, rounds=(), effects=(), verdict=UNTESTED, reason=why)
    missing = {
        b.modality: "no cell in which the rule can choose" if found is None else "no neuron is chosen"
        for b, found in zip(benches, sets, strict=True)
        if not found
    }
    chosen = [found or frozenset() for found in sets]
    return _outcome(
        reader, benches, sides, protocol=NAMES[rule], sets=chosen, missing=missing, rounds=(), pick=pick, first=chosen,
        norms=stats.down_norms, site="neuron", draws=draws, seed=seed,
    )  # fmt: skip


def _outcome(
    reader: Reader,
    benches: Sequence[Bench],
    sides: Sequence[Side],
    *,
    protocol: str,
    sets: Sequence[Addresses],
    missing: dict[str, str],
    rounds: Sequence[Round],
    pick: Pick,
    first: Sequence[Addresses],
    norms: Layers | None,
    site: str,
    draws: int,
    seed: int,
) -> Outcome:
    """Overlap, effects and verdict of the sets of both modalities; `first` are those that `pick` gives."""
    features = features_of(benches, norms)
    n_layers, width = features.shape[1:]
    effects: list[Effect] = []
    for bench, members in zip(benches, sets, strict=True):
        if members:
            neurons = NeuronSet(members, n_layers=n_layers, d_mlp=width, site=site)
            drawn = draw_controls(reader.model, neurons, features, draws=draws, seed=seed)
            effects += [measure_effect(reader, drawn, source=bench.modality, target=target) for target in benches]
    falls = [Fall(e.source, e.target, margin=e.margin, verdict=e.verdict) for e in effects]
    word, reason = verdict_of(falls, sides, missing=missing)
    overlap = None
    if any(first) and protocol != NAMES["one_anchor"]:  # whose set is the same in both modalities by definition
        selected = "set" if list(first) == list(sets) else "candidates"
        overlap = overlapped(pick, benches, sets, selected=selected, seed=seed)
    found = tuple(FoundSet(b.modality, tuple(sorted(members))) for b, members in zip(benches, sets, strict=True))
    return Outcome(
        protocol,
        site,
        found,
        overlap=overlap,
        rounds=tuple(rounds),
        effects=tuple(effects),
        verdict=word,
        reason=reason,
    )
