"""A `View` of a model's neurons on a sample of prompts: what each reads, writes and does.

    reads     activations on every token (`activations`), and their mean on harmful minus benign prompts of each cell
    writes    promoted and suppressed tokens, and the direct effect on the refusal margin (`words`)
    does      normalised effect of ablating it alone: of a proof, or measured here on the pairs of the sample
    answers   as the model is, and with the set, a random set, or one neuron ablated (`replies`)

What is known of the neurons already (`Known`: a proof, captured moments, answers of a run) is taken from there. Whatever cannot be
measured is left out, and a note of the view says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.display import count
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.statistics import Interval
from ..data.prompts import Cell, Prompt, PromptSet
from ..find.groups import Stats
from ..find.signs import kind
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from ..prove.controls import random_like
from ..prove.pairs import MatchedPairs, match, measure
from ..prove.verdict import Proof
from .activations import Reading, chosen_neurons, readings
from .pictures import picture_views
from .replies import Answering, KnownAnswers
from .storage import three_digits
from .view import NeuronView, PromptView, SaidView, SharedView, View
from .words import Written, written_by

__all__ = ["ALONE", "Known", "gather"]

Address = tuple[int, int]

MOST = 128  # neurons of a view
LEAST = 16  # neurons that are shown however long the prompts are
VALUES = 300_000  # activations of a view, beyond which neurons are left out
ALONE = 16  # strongest neurons, whose answers with each of them ablated are generated


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of neurons and prompts already.

    Attributes:
        proof: effects, roles and signs of the neurons; its backup neurons are shown as well, and its verified set is the one that is
            ablated.
        stats: captured moments: means of harmful and benign prompts by cell.
        answers: answers by condition and prompt id.
        shared: neurons that cells share.
        title: of the page.
        about: where all this is from, such as "run of seed 0".
        notes: further notes.
    """

    proof: Proof | None = None
    stats: Stats | None = None
    answers: KnownAnswers = field(default_factory=dict)
    shared: tuple[SharedView, ...] = ()
    title: str = ""
    about: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """All that is known of each neuron that is shown."""

    effects: dict[Address, Interval]
    differences: dict[Address, dict[str, float | None]]
    writes: dict[Address, float | None]
    kinds: dict[Address, str]
    words: dict[Address, Written]
    statuses: dict[Address, str]


def gather(
    model: Model,
    neurons: NeuronSet,
    prompts: Sequence[Prompt],
    *,
    known: Known | None = None,
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> View:
    """What an explorer shows of neurons on these prompts.

    >>> from neuronshield.explorer.balance import balanced
    >>> view = gather(model, neurons, balanced(prompts, 8), max_new_tokens=3)
    >>> len(view.neurons), len(view.prompts), view.conditions
    (3, 8, ('as it is', 'set ablated', 'random set ablated'))

    Args:
        model: the model, loaded here.
        neurons: the set.
        prompts: the sample (`balanced`).
        known: what is known already.
        max_new_tokens: tokens of an answer, at most.
        batch_size: prompts a forward.
        seed: draws the random set, and the pairs where prompts have no matched ones.
        progress: show progress bars.

    Raises:
        InputError: neurons of another model, no prompts, or prompts that the model cannot read whole.
    """
    known = known or Known()
    members = chosen_neurons("explore", model, neurons)
    changed, random = _sets(model, members, known=known, seed=seed)
    wanted = members | known.proof.backups if known.proof is not None else members
    read = wanted | changed | random if random is not None else wanted | changed
    found = readings(model, prompts, read, batch_size=batch_size, progress=progress)
    means = _benign_means(model, found, read=read, stats=known.stats)
    notes: list[str] = []
    differences = _differences(found, read, stats=known.stats, notes=notes)
    shown, effects = _shown(
        model, found, wanted=wanted, differences=differences, proof=known.proof, notes=notes, seed=seed, batch_size=batch_size
    )  # fmt: skip
    facts = _facts(model, prompts, shown, differences=differences, effects=effects, proof=known.proof, notes=notes)
    answering = Answering(model, prompts, max_new_tokens, batch_size=batch_size, progress=progress, known=known.answers)
    answers = answering.all(changed, random, means=means)
    alone = answering.alone(shown[:ALONE], means=means)
    rows = {at: row for row, at in enumerate(read)}
    order = [rows[at] for at in shown]
    values = [three_digits(reading.values[order]) for reading in found]
    scales = np.max([np.abs(part).max(axis=1) for part in values], axis=0)
    views = []
    for i, (reading, part) in enumerate(zip(found, values, strict=True)):
        said = {
            name: given[i] if isinstance(given, list) else given.get(reading.prompt.id)
            for name, given in answers.items()
        }
        one = tuple(each[i] for each in alone) + (None,) * (len(shown) - len(alone))
        views.append(_prompt(reading, part, said, alone=one))
    notes += [f"{note.rstrip('.')}." for note in dict.fromkeys(reading.note for reading in found) if note]
    notes += _told(changed, random, alone, means=means, known=known)
    cells = list(dict.fromkeys(p.cell for p in prompts))
    about = [_counted(shown, facts), f"{count(len(prompts), 'prompt')} in {count(len(cells), 'cell')}", known.about]
    return View(
        title=known.title or f"Neurons of {model.id}",
        summary="; ".join(part for part in about if part),
        languages=tuple(dict.fromkeys(c.language for c in cells)),
        modalities=tuple(dict.fromkeys(c.modality for c in cells)),
        conditions=tuple(answers),
        neurons=tuple(_neuron(at, facts, float(scale)) for at, scale in zip(shown, scales, strict=True)),
        prompts=tuple(views),
        shared=known.shared,
        notes=(*notes, *known.notes),
    )


# -- sets and means ---------------------------------------------------------------------------------------
def _sets(model: Model, members: NeuronSet, *, known: Known, seed: int) -> tuple[NeuronSet, NeuronSet | None]:
    """The set that is ablated, and a random one; None where no other neurons are left."""
    verified = None if known.proof is None else known.proof.verified
    changed = verified if verified else members
    try:
        return changed, random_like(changed, model, seed=seed)
    except InputError:
        return changed, None


def _benign_means(
    model: Model, found: Sequence[Reading], *, read: NeuronSet, stats: Stats | None
) -> dict[Cell, Float[np.ndarray, "n_layers d_mlp"]]:
    """The benign mean of every neuron that is read, by cell: of the moments, else of the cell's benign prompts, else of all."""
    layer, index = np.array(list(read)).T
    benign = [r for r in found if r.prompt.label == "benign"]
    captured = set() if stats is None else set(stats.cells())
    out = {}
    for cell in dict.fromkeys(r.prompt.cell for r in found):
        if stats is not None and cell in captured:
            out[cell] = np.asarray(stats.moments("benign", cell).mean)
        elif mine := [r for r in benign if r.prompt.cell == cell] or benign:
            out[cell] = np.zeros((model.n_layers, model.d_mlp))
            out[cell][layer, index] = np.mean([r.values[:, -1] for r in mine], axis=0)
    if out:
        overall = np.mean(list(out.values()), axis=0)
        out |= {r.prompt.cell: overall for r in found if r.prompt.cell not in out}
    return out


# -- what is known of each neuron -------------------------------------------------------------------------
def _shown(
    model: Model, found: Sequence[Reading], *, wanted: NeuronSet, differences: dict[Address, dict[str, float | None]],
    proof: Proof | None, notes: list[str], seed: int, batch_size: int,
) -> tuple[list[Address], dict[Address, Interval]]:  # fmt: skip
    """The neurons of the view, strongest effect first, as many as a page can hold, and their effects.

    Without a proof effects are measured, of as many neurons as are shown: those that differ most between harmful and benign prompts.
    """
    effects = {} if proof is None else {m.neuron: m.alone for m in proof.members}

    def strength(at: Address) -> tuple[float, float]:
        effect = effects.get(at)
        value = -np.inf if effect is None or not np.isfinite(effect.value) else effect.value
        return value, sum(abs(d) for d in differences[at].values() if d is not None)

    most = min(MOST, max(LEAST, VALUES // sum(len(reading.tokens) for reading in found)))
    shown = sorted(wanted, key=strength, reverse=True)[:most]
    if len(shown) < len(wanted):
        by = "differ most between harmful and benign requests" if proof is None else "have the largest effects"
        notes.append(f"Of {count(len(wanted), 'neuron')} the {most} that {by} are shown.")
    if proof is None:
        prompts = [reading.prompt for reading in found]
        effects = _effects(model, prompts, NeuronSet(shown), notes=notes, seed=seed, batch_size=batch_size)
        shown.sort(key=strength, reverse=True)
    else:
        notes.append("Effects are those of the proof, on the requests that chose its members.")
    return shown, effects


def _facts(
    model: Model, prompts: Sequence[Prompt], shown: Sequence[Address], *, differences: dict[Address, dict[str, float | None]],
    effects: dict[Address, Interval], proof: Proof | None, notes: list[str],
) -> _Facts:  # fmt: skip
    members = {} if proof is None else {m.neuron: m for m in proof.members}
    words = _words(model, prompts, NeuronSet(shown), notes=notes, first=proof is not None)
    writes: dict[Address, float | None] = {at: w.refusal - w.compliance for at, w in words.items()}
    kinds = {}
    for at in shown:
        sign = members[at].sign if at in members else None
        if sign is not None and np.isfinite(sign.writes):
            writes[at], kinds[at] = sign.writes, sign.kind
        else:
            known_ones = [d for d in differences[at].values() if d is not None]
            kinds[at] = kind(float(np.mean(known_ones or [0.0])), writes.get(at) or 0.0)
    return _Facts(
        effects=effects, differences=differences, writes=writes, kinds=kinds, words=words,
        statuses={at: _status(at, proof) for at in shown},
    )  # fmt: skip


def _status(at: Address, proof: Proof | None) -> str:
    if proof is None:
        return "candidate"
    if at in proof.anti_refusal:
        return "anti-refusal"
    return "verified" if at in proof.verified else "backup" if at in proof.backups else "candidate"


def _differences(
    found: Sequence[Reading], read: NeuronSet, *, stats: Stats | None, notes: list[str]
) -> dict[Address, dict[str, float | None]]:
    """Mean on harmful minus mean on benign prompts at the last token, by cell: of the moments, else of the prompts shown."""
    layer, index = np.array(list(read)).T
    captured = set() if stats is None else set(stats.cells())
    by_cell: dict[str, Any] = {}
    here = False
    for cell in dict.fromkeys(r.prompt.cell for r in found):
        if stats is not None and cell in captured:
            both = stats[cell]
            by_cell[str(cell)] = (both.harmful.mean - both.benign.mean)[layer, index]
            continue
        sides = [
            [r.values[:, -1] for r in found if r.prompt.cell == cell and r.prompt.label == label]
            for label in ("harmful", "benign")
        ]
        both_there = all(sides)
        by_cell[str(cell)] = (
            np.mean(sides[0], axis=0) - np.mean(sides[1], axis=0) if both_there else [None] * len(layer)
        )
        here |= both_there
    if here:
        notes.append(
            "Differences between harmful and benign requests are those of the prompts shown, at the last token."
        )
    return {
        at: {cell: None if d[i] is None else float(d[i]) for cell, d in by_cell.items()} for i, at in enumerate(read)
    }


def _effects(
    model: Model, prompts: Sequence[Prompt], neurons: NeuronSet, *, notes: list[str], seed: int, batch_size: int
) -> dict[Address, Interval]:
    """The normalised effect of ablating each neuron alone, on the pairs shown; empty, and a note, where it cannot be measured."""
    try:
        tokens = opening_tokens(model, openings_of(model, prompts))
        pairs = measure(model, match(PromptSet(prompts), seed=seed)[0], tokens, seed=seed, batch_size=batch_size)
        pairs = _refusing(pairs)
        fall = pairs.harmful_margins - pairs.on_harmful([pairs.ablate(NeuronSet([at])) for at in neurons])
    except InputError as error:
        notes.append(
            f"The effect of ablating each neuron alone was not measured: {str(error).removeprefix('verify: ')}."
        )
        return {}
    if not pairs.clean_logit_difference.low > 0:
        notes.append(
            "The effect of ablating each neuron alone was not measured: the refusal margins of the harmful and the benign requests "
            "shown do not differ."
        )
        return {}
    notes.append(
        f"Effects are measured on {count(len(pairs), 'pair')} of the prompts shown, of cells in which the model tells harmful from "
        "benign requests; `verify` tests them against controls."
    )
    return {at: pairs.normalised_effect(change) for at, change in zip(neurons, fall, strict=True)}


def _refusing(pairs: MatchedPairs) -> MatchedPairs:
    """The pairs of cells in which far more harmful than benign prompts have a margin above 0; all where there is no such cell."""
    apart = np.zeros(len(pairs), dtype=bool)
    for rows in pairs.by_cell().values():
        apart[rows] = (pairs.harmful_margins[rows] > 0).mean() - (pairs.benign_margins[rows] > 0).mean() >= 0.5
    return pairs.take(np.flatnonzero(apart)) if apart.any() else pairs


def _words(
    model: Model, prompts: Sequence[Prompt], neurons: NeuronSet, *, notes: list[str], first: bool
) -> dict[Address, Written]:
    """What each neuron writes, over the languages that have prefixes; over the first of them only, where that is enough."""
    languages: list[str] = []
    missing: list[str] = []
    for language in dict.fromkeys(p.language for p in prompts):
        mine = [p for p in prompts if p.language == language]
        try:
            opening_tokens(model, openings_of(model, mine))
        except InputError as error:
            missing.append(f"What neurons add to prefixes of {language!r} is not known: {error}")
        else:
            languages.append(language)
    notes += [f"{note}{'' if languages else '; English prefixes are taken instead'}." for note in missing]
    chosen = [p for p in prompts if p.language in (languages[:1] if first else languages)]
    try:
        found = written_by(model, neurons, prompts=PromptSet(chosen) if chosen else None)
    except InputError as error:
        notes.append(f"What neurons write is not known: {error}.")
        return {}
    return {(w.layer, w.index): w for w in found}


# -- what is shown ----------------------------------------------------------------------------------------
def _neuron(at: Address, facts: _Facts, scale: float) -> NeuronView:
    words = facts.words.get(at)
    return NeuronView(
        *at, status=facts.statuses[at], effect=facts.effects.get(at), kind=facts.kinds[at], writes=facts.writes.get(at),
        promoted=tuple(token for token, _ in words.promoted) if words else (),
        suppressed=tuple(token for token, _ in words.suppressed) if words else (),
        differences=facts.differences[at], scale=scale,
    )  # fmt: skip


def _prompt(
    reading: Reading, values: Float[np.ndarray, "neuron token"], said: dict[str, SaidView | None], *,
    alone: tuple[SaidView | None, ...],
) -> PromptView:  # fmt: skip
    prompt = reading.prompt
    return PromptView(
        id=prompt.id, pair=prompt.pair_id or prompt.id, label=prompt.label, language=prompt.language, modality=prompt.modality,
        tokens=reading.tokens, pictures=picture_views(prompt, reading.grids), values=tuple(map(tuple, values.tolist())),
        answers={name: answer for name, answer in said.items() if answer is not None}, alone=alone,
    )  # fmt: skip


def _counted(shown: Sequence[Address], facts: _Facts) -> str:
    """Such as "64 neurons in layers 3 to 5: 34 verified, 30 candidate"."""
    layers = sorted({layer for layer, _ in shown})
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    kinds = [facts.statuses[at] for at in shown]
    parts = ", ".join(f"{kinds.count(status)} {status}" for status in dict.fromkeys(kinds))
    return f"{count(len(shown), 'neuron')} in {where}: {parts}"


def _told(
    changed: NeuronSet, random: NeuronSet | None, alone: Sequence[Any], *, means: dict[Cell, Any], known: Known
) -> list[str]:
    """How the answers came about."""
    name = "verified set" if known.proof is not None and len(known.proof.verified) else "set"
    to = "its mean on benign requests of the same language and modality" if means else "zero"
    told = [
        f"Set ablated: each neuron of the {name} ({count(len(changed), 'neuron')}) is set to {to}, at the last token of the prompt."
    ]
    if random is None:
        told.append("There is no answer with a random set ablated: a layer has too few other neurons.")
    else:
        told.append(
            f"Random set ablated: the same of {count(len(random), 'neuron')} drawn at random in the same layers."
        )
    if alone:
        told.append(f"This neuron ablated: known of {count(len(alone), 'neuron')} with the largest effect.")
    return told
