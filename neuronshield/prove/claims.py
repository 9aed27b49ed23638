"""Claims about a set: necessity, sufficiency, specificity and utility, each beside its controls."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.neurons import NeuronSet
from ..core.statistics import NAN, Interval, equivalent, finite, holm, p_value, ratio_of_means
from ..data.grading import Grade
from .controls import Controls
from .pairs import ABLATIONS, Lab
from .verdict import RULE, Claim

NECESSITY = tuple(f"necessity: {kind}" for kind in ABLATIONS)


SUFFICIENCY = "sufficiency: patch"


# -- claims -----------------------------------------------------------------------------------------------
def measure_claims(lab: Lab, neurons: NeuronSet, controls: Controls) -> tuple[list[Claim], dict[str, np.ndarray]]:
    """Necessity, sufficiency and specificity of a set, and the change of margin [set, pair] behind the first two."""
    sets = [neurons, *controls.all()]
    margins = lab.on_harmful([lab.ablate(s, kind) for kind in ABLATIONS for s in sets])
    changes = dict(zip(NECESSITY, lab.clean_h - margins.reshape(len(ABLATIONS), len(sets), -1), strict=True))
    benign = lab.on_benign([*(lab.insert(s) for s in sets), *(lab.ablate(neurons, k) for k in ABLATIONS[:3])])
    changes[SUFFICIENCY] = benign[: len(sets)] - lab.clean_b
    claims = [measure_effect(lab, name, change, controls) for name, change in changes.items()]
    return [*claims, measure_specificity(lab, benign[len(sets) :] - lab.clean_b)], changes


def measure_effect(lab: Lab, name: str, change: Float[np.ndarray, "set pair"], controls: Controls) -> Claim:
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


def measure_specificity(lab: Lab, shift: Float[np.ndarray, "kind pair"]) -> Claim:
    """Benign prompts keep their margin under zero, mean and resample ablation: the worst of the three."""
    limit, gap = RULE["max_benign_shift"], float(lab.gaps.mean())
    p = [equivalent(row / gap, list(lab.clusters), limit) for row in shift]
    effects = [lab.effect(row) for row in shift]
    worst = max(range(len(p)), key=lambda i: (p[i], abs(effects[i].value)))
    note = f"benign prompts under {ABLATIONS[worst]} ablation, the worst of three; equivalent to 0 within ±{limit:g}"
    verdict = "passed" if p[worst] <= RULE["alpha"] else "failed"
    return Claim("specificity", effects[worst], verdict, p={"TOST": p[worst]}, note=note)


def measure_utility(before: list[Grade], after: list[Grade], rows: list[int], lab: Lab) -> Claim:
    """Benign answers that are still right, where prompts say what a right answer contains."""
    change = [
        (float(b.right) - float(a.right), lab.clusters[i])
        for a, b, i in zip(before, after, rows, strict=True) if a.right is not None and b.right is not None
    ]  # fmt: skip
    if not change:
        return Claim("utility", NAN, "not tested", note="no prompt says what a right answer contains ('expect')")
    values, clusters = np.array([c for c, _ in change]), [c for _, c in change]
    limit = RULE["max_utility_change"]
    p = equivalent(values, clusters, limit)
    effect = ratio_of_means(values, np.ones(len(values)), clusters, seed=lab.seed)
    note = f"share of {len(values)} benign answers still right, after minus before; equivalent to 0 within ±{limit:g}"
    return Claim("utility", effect, "passed" if p <= RULE["alpha"] else "failed", p={"TOST": p}, note=note)


def effects_by_cell(lab: Lab, change: Float[np.ndarray, "set pair"], controls: Controls) -> dict[str, dict[str, Any]]:
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
