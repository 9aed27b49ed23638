"""What each step found: cards for the first screen of the report, and one sentence a step for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.results import from_json
from ..core.statistics import Interval
from ..find.overlaps import AXES
from ..prove.tables import TOO_FEW, Claim
from .conditions import BASE, LORA, RANDOM_MASKS, SHIELD, over
from .page import capital, interval, known, num, signed
from .sections import OverlapTable, Sections, sections_of
from .transfer import transfer

__all__ = ["STEPS", "Card", "cards", "headlines", "summary"]

#: The steps and the questions that they answer.
STEPS = {
    "find": "Which neurons respond differently to harmful and benign requests?",
    "prove": "Do refusals depend on these neurons?",
    "shield": "Can safety be raised by training only them?",
    "check": "Did safety transfer, and at what change in over-refusal and utility?",
}

#: The claim whose effect stands for the proof: that about answers, where it was tested, else that about the margin.
HEADLINE_CLAIMS = ("refusals: necessity", "necessity: mean")

#: What a result is: "good", "bad", "open" (too few requests to tell, or not tested), "plain" (no verdict), "none" (not run).
Tone = str


@dataclass(frozen=True)
class Card:
    """What a step found, at a glance.

    Attributes:
        step: its name.
        tone: "good", "bad", "open" (too few requests to tell, or not tested), "plain" (no verdict) or "none" (not run yet).
        sentence: for a terminal, all of it.
        verdict: in words.
        value: the number, without its interval; "n/a" where there is none.
        ends: its interval, "" where it has none.
        about: what the number is.
        control: the strongest control.
        cost: what the step took.
        requests: independent requests.
    """

    step: str
    tone: Tone
    sentence: str = ""
    verdict: str = "not run yet"
    value: str = ""
    ends: str = ""
    about: str = ""
    control: str = ""
    cost: str = ""
    requests: str = ""


def summary(results: dict[str, Any]) -> str:
    """One line per step that has been run, for a terminal.

    Args:
        results: what `results.json` holds.

    Raises:
        InputError: fields that are missing or of another type.
    """
    return "\n".join(f"{name:7} {text}" for name, _, text in headlines(results))


def headlines(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(step, tone, sentence) of the steps that have been run.

    Args:
        results: what `results.json` holds.
    """
    return [(card.step, card.tone, card.sentence) for card in cards(sections_of(results), {}) if card.tone != "none"]


def cards(found: Sections, requests: Mapping[str, int]) -> list[Card]:
    """A card for every step, also for those that have not been run.

    Args:
        found: the results.
        requests: independent requests by split, where they are known.
    """
    told: dict[str, Callable[[Sections, Mapping[str, int]], Card]] = {
        "find": _find, "prove": _prove, "shield": _shield, "check": _check,
    }  # fmt: skip
    return [
        Card(step, "none") if getattr(found, step) is None else tell(found, requests) for step, tell in told.items()
    ]


def _number(values: Interval, spec: str = ".2f") -> dict[str, str]:
    """A number and its interval, apart."""
    ends = f"[{num(values.low, spec)}, {num(values.high, spec)}]" if known(values.low) or known(values.high) else ""
    return {"value": num(values.value, spec), "ends": ends}


def _requests(requests: Mapping[str, int], split: str) -> str:
    return f"{requests[split]} ({split})" if split in requests else "n/a"


def _seconds(found: Sections, step: str) -> list[str]:
    return [f"{found.seconds[step]:.0f} s"] if step in found.seconds else []


def _find(found: Sections, requests: Mapping[str, int]) -> Card:
    assert found.find is not None
    f = found.find
    where = f"model already refuses in {', '.join(f.refusing_cells)}" if f.refusing_cells else "model refuses nowhere"
    verdict = f"{f.n_neurons} candidate neurons ({f.param_fraction:.3%} of the parameters)"
    facts: dict[str, str] = {
        "value": "n/a",
        "about": "share of neurons in common; one cell, or too few requests to tell",
    }
    if least := _least_shared(f.overlap):
        axis, (a, b), values, null = least
        facts = {**_number(values), "about": f"{a} × {b}: share of neurons in common, the least of two {axis}"}
        facts["control"] = f"benign null: Jaccard index {num(null[0])}; of these two {num(null[1])}"
    cost = ", ".join([*_seconds(found, "find"), f"{found.prompts.n:,} prompts read"])
    return Card(
        "find", "plain", sentence=f"{verdict}; {where}", verdict=f"{verdict}. The {where}.", cost=cost, requests=_requests(requests, "discover"), **facts
    )  # fmt: skip


#: What two of an axis are called.
PLURAL = {"language": "languages", "modality": "modalities", "cell": "cells"}


def _least_shared(table: dict[str, Any] | None) -> tuple[str, tuple[str, str], Interval, tuple[float, float]] | None:
    """The two languages (else modalities, else cells) that share least: names, share, and Jaccard indices (benign null, theirs)."""
    if table is None:
        return None
    overlap = from_json(OverlapTable, table)
    for axis, one in [*((a, overlap.along[a]) for a in AXES if a in overlap.along), ("cell", overlap)]:
        n = len(one.cells)
        pairs = [(one.shared[i][j], i, j) for i in range(n) for j in range(i + 1, n) if known(one.shared[i][j])]
        if pairs:
            value, i, j = min(pairs)
            share = Interval(value, one.shared_low[i][j], one.shared_high[i][j])
            return PLURAL[axis], (one.cells[i], one.cells[j]), share, (one.benign_null[i][j], one.jaccard[i][j])
    return None


def strongest(claim: Claim) -> str:
    """The control set with the largest effect, and its kind; "n/a" without controls.

    Args:
        claim: with its controls.
    """
    best = claim.strongest_control
    return f"{best[1]:.2f} ({best[0]})" if best else "n/a"


def _prove(found: Sections, requests: Mapping[str, int]) -> Card:
    """Verdict, effect with its interval, strongest control, requests, and cost."""
    assert found.prove is not None
    p = found.prove
    reason, *more = p.reason.split("; ")  # the section below has all of it
    said = [
        reason if reason.startswith(f"{p.word}:") else f"{p.word}: {reason}",
        *(part for part in more[:1] if part.startswith("failed: ")),
    ]
    verdict = "; ".join(said)
    if p.verified:
        said.append(f"{len(p.verified)} of {len(p.neurons)} neurons verified")
    claims = {c.name: c for c in p.claims if known(c.effect.value)}
    facts: dict[str, str] = {"value": "n/a", "about": "no effect was measured"}
    if name := next((c for c in HEADLINE_CLAIMS if c in claims), None):
        control = strongest(claims[name])
        said.append(f"{name} {interval(claims[name].effect)}, " + (f"strongest control {control}" if control != "n/a" else "no control"))  # fmt: skip
        about = "fall of refusals under ablation (or rise of harmful compliance, the smaller)"
        facts = {
            **_number(claims[name].effect),
            "about": about if name == HEADLINE_CLAIMS[0] else f"{name}: normalised effect",
        }
        facts["control"] = control
    said += [f"{a.question}: {a.word}" for a in transfer(found) if a.question != "transfer"]
    cost = ", ".join(
        [*_seconds(found, "prove"), *(f"{getattr(p.cost, what):,} {what}" for what in ("margins", "answers"))]
    )
    said.append(f"{p.n_requests} requests; {cost}")
    verified = f"{len(p.verified)} of {len(p.neurons)} neurons verified."
    tone = "good" if p.passed else "open" if p.word in (TOO_FEW, "not tested") else "bad"
    return Card(
        "prove", tone, sentence="; ".join(said), verdict=f"{capital(verdict)}. {verified}", cost=cost, requests=f"{p.n_requests} (confirm)", **facts
    )  # fmt: skip


def _shield(found: Sections, requests: Mapping[str, int]) -> Card:
    assert found.shield is not None
    s = found.shield
    main = s.conditions[SHIELD]
    proven = "proven" if s.proven else "candidate, NOT proven,"
    share = f"{main.trained:,} numbers, {main.param_fraction:.3%} of the parameters"
    sentence = f"{s.neurons} {proven} neurons trained: {share}"
    facts: dict[str, str] = {"value": "n/a", "about": "gain in selectivity: step check has not been run"}
    if found.check is not None:
        gains = found.check.gains_in_selectivity
        facts = {
            **_number(gains[over(BASE)], "+.2f"),
            "about": "gain in selectivity over no update, at the end of training",
        }
        over_controls = {name: gains[over(name)] for name in (RANDOM_MASKS, LORA)}
        name = min(over_controls, key=lambda n: (not known(over_controls[n].value), over_controls[n].value))
        facts["control"] = f"{name}: the shield gains {signed(over_controls[name])} over it"
    cost = ", ".join([*_seconds(found, "shield"), f"{s.steps} steps a condition"])
    return Card(
        "shield",
        "plain",
        sentence=sentence,
        verdict=f"{sentence}.",
        cost=cost,
        requests=_requests(requests, "train"),
        **facts,
    )


def _check(found: Sections, requests: Mapping[str, int]) -> Card:
    """The shield beside its controls at matched benign refusal."""
    assert found.check is not None
    c = found.check
    masks, lora = (c.matched[over(name)] for name in (RANDOM_MASKS, LORA))
    cells = "cells it did not train on" if c.compared_on == "untrained" else "all cells (none was held out)"
    facts = {
        "cost": ", ".join(_seconds(found, "check")) or "n/a", "requests": _requests(requests, "test"),
        "about": "more harmful prompts refused than by masks of random neurons, at the same benign refusal",
        "control": f"plain LoRA: {signed(lora.difference)}",
    }  # fmt: skip
    crossed = next((a for a in transfer(found) if a.question == "transfer"), None)
    said = f"{crossed.question}: {crossed.word} ({crossed.reason}); " if crossed else ""
    if not known(masks.difference.value):
        why = f"{said}{cells}: the shield cannot be compared with masks of random neurons at the same benign refusal"
        return Card("check", "open", sentence=why, verdict=capital(why) + ".", value="n/a", **facts)
    verb = "beats" if c.beats_random_mask else "does NOT beat"
    sentence = (
        f"{said}{cells}: at the same benign refusal ({num(masks.benign)}) the shield refuses {num(masks.harmful)} of harmful prompts and "
        f"{masks.n} mask{'s' * (masks.n != 1)} of random neurons {num(masks.others)}; it {verb} them "
        f"({signed(masks.difference)}); over plain LoRA {signed(lora.difference)}"
    )
    verdict = f"On {cells} the shield {verb} masks of random neurons."
    if crossed:
        verdict = f"Transfer: {crossed.word}. {verdict}"
    tone = "good" if c.beats_random_mask else "bad"
    return Card("check", tone, sentence=sentence, verdict=verdict, **_number(masks.difference, "+.2f"), **facts)
