"""What each step found, in one sentence: the first screen of the report, and what a terminal shows."""

from __future__ import annotations

from typing import Any

from .conditions import LORA, RANDOM_MASKS, SHIELD, over
from .page import interval, num, signed
from .sections import check_results

__all__ = ["headlines", "summary"]


#: The claim whose effect stands for the proof: that about answers, where it was tested, else that about the margin.
HEADLINE_CLAIMS = ("refusals: necessity", "necessity: mean")


def summary(results: dict[str, Any]) -> str:
    """One line per step that has been run, for a terminal.

    Args:
        results: what `results.json` holds.

    Raises:
        InputError: fields that are missing or of another type.
    """
    check_results(results)
    return "\n".join(f"{name:7} {text}" for name, _, text in headlines(results))


def headlines(r: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(step, tone, sentence) of the steps that have been run.

    Args:
        r: what `results.json` holds.
    """
    told = {"find": _find, "prove": _prove, "shield": _shield, "check": _check}
    return [(name, *tell(r)) for name, tell in told.items() if name in r]


def _find(r: dict[str, Any]) -> tuple[str, str]:
    f = r["find"]
    cells = ", ".join(f["refusing_cells"])
    where = f"model already refuses in {cells}" if cells else "model refuses nowhere"
    return "plain", f"{f['n_neurons']} candidate neurons ({f['param_fraction']:.3%} of the parameters); {where}"


def _prove(r: dict[str, Any]) -> tuple[str, str]:
    """Verdict, effect with its interval, strongest control, requests, and cost."""
    p = r["prove"]
    n, of = len(p["verified"]["members"]), len(p["neurons"]["members"])
    reason, *more = p["reason"].split("; ")  # the section below has all of it
    said = [f"{p['word']}: {reason}", *(part for part in more[:1] if part.startswith("failed: "))]
    if n:
        said.append(f"{n} of {of} neurons verified")
    claims = {c["name"]: c for c in p["claims"] if c["effect"][0] is not None}
    if name := next((c for c in HEADLINE_CLAIMS if c in claims), None):
        best = max(((max(v), kind) for kind, v in claims[name]["controls"].items() if v), default=None)
        strongest = f"strongest control {num(best[0])} ({best[1]})" if best else "no control"
        said.append(f"{name} {interval(claims[name]['effect'])}, {strongest}")
    cost = [f"{r['seconds']['prove']:.0f} s"] if "prove" in r.get("seconds", {}) else []
    cost += [f"{p['cost'][what]} {what}" for what in ("margins", "answers")]
    said.append(f"{p['n_requests']} requests; {', '.join(cost)}")
    return "good" if p["passed"] else "bad", "; ".join(said)


def _shield(r: dict[str, Any]) -> tuple[str, str]:
    s = r["shield"]
    main = s["conditions"][SHIELD]
    proven = "proven" if s["proven"] else "candidate, NOT proven,"
    share = f"{main['trained']} numbers, {main['param_fraction']:.3%} of the parameters"
    return "plain", f"{s['neurons']} {proven} neurons trained: {share}"


def _check(r: dict[str, Any]) -> tuple[str, str]:
    """The shield beside its controls at matched benign refusal."""
    c = r["check"]
    masks, lora = (c["matched"][over(name)] for name in (RANDOM_MASKS, LORA))
    cells = "cells it did not train on" if c["compared_on"] == "untrained" else "all cells (none was held out)"
    if masks["difference"][0] is None:
        return "bad", f"{cells}: the shield cannot be compared with masks of random neurons at the same benign refusal"
    verb = "beats" if c["beats_random_mask"] else "does NOT beat"
    return "good" if c["beats_random_mask"] else "bad", (
        f"{cells}: at the same benign refusal ({num(masks['benign'])}) the shield refuses {num(masks['harmful'])} of harmful prompts and "
        f"{masks['n']} mask{'s' * (masks['n'] != 1)} of random neurons {num(masks['others'])}; it {verb} them "
        f"({signed(masks['difference'])}); over plain LoRA {signed(lora['difference'])}"
    )
