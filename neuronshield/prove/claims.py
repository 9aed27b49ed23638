"""Claims about a set: necessity, sufficiency, specificity and utility, each beside its control sets (see `verify`).

>>> from neuronshield.model.prefixes import opening_tokens, openings_of
>>> from neuronshield.prove.pairs import match, measure
>>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
>>> pairs = measure(model, match(prompts, seed=0)[0], tokens)
>>> controls = Controls({"random": [ns.random_like(neurons, model, seed=i) for i in range(3)]})
>>> claims, changes = measure_claims(pairs, neurons, controls)
>>> len(claims), changes["necessity: mean"].shape              # the set, then three controls, on 30 pairs
(6, (4, 30))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

from ..core.display import count
from ..core.intervals import ratio_of_means
from ..core.neurons import NeuronSet
from ..core.statistics import Interval, equivalent, holm, least_requests, p_value
from ..data.grading import Grade
from .controls import Controls
from .pairs import ABLATIONS, MatchedPairs
from .tables import TOO_FEW, CellEffect, Claim
from .verdict import RULE

__all__ = ["NECESSITY", "SUFFICIENCY", "effects_by_cell", "measure_claims", "measure_effect", "measure_utility"]

NECESSITY = tuple(f"necessity: {kind}" for kind in ABLATIONS)
NECESSITY_MEAN = NECESSITY[ABLATIONS.index("mean")]
SUFFICIENCY, SPECIFICITY, UTILITY = "sufficiency: patch", "specificity", "utility"


def measure_claims(
    pairs: MatchedPairs, neurons: NeuronSet, controls: Controls
) -> tuple[list[Claim], dict[str, Float[np.ndarray, "set pair"]]]:
    """Necessity, sufficiency and specificity of a set, and the changes of margin behind the first two.

    Args:
        pairs: matched pairs of the cells where the model refuses.
        neurons: the set.
        controls: its control sets.

    Returns:
        The claims; and for every necessity and sufficiency claim [set, pair], the tested set first, then `controls.all()`.
    """
    sets = [neurons, *controls.all()]
    margins = pairs.on_harmful([pairs.ablate(s, kind) for kind in ABLATIONS for s in sets])
    by_kind = margins.reshape(len(ABLATIONS), len(sets), -1)
    changes = dict(zip(NECESSITY, pairs.harmful_margins - by_kind, strict=True))
    spared = [k for k in ABLATIONS if k != "patch"]  # patching a benign prompt from itself changes nothing
    benign = pairs.on_benign([*(pairs.insert(s) for s in sets), *(pairs.ablate(neurons, k) for k in spared)])
    changes[SUFFICIENCY] = benign[: len(sets)] - pairs.benign_margins
    claims = [measure_effect(pairs, name, change=change, controls=controls) for name, change in changes.items()]
    return [*claims, measure_specificity(pairs, benign[len(sets) :] - pairs.benign_margins)], changes


def measure_effect(
    pairs: MatchedPairs, name: str, *, change: Float[np.ndarray, "set pair"], controls: Controls
) -> Claim:
    """One effect beside its controls. It passes if all of this holds:

    - its interval excludes 0, and it is at least `RULE.min_effect`;
    - against every drawn kind of control p = (1 + #{control >= effect}) / (1 + draws) <= `RULE.alpha`;
    - against every single control set the interval of the paired difference lies above 0;
    - there is a drawn kind of control.

    With fewer requests than the test of a positive mean needs, it is "too few requests to tell".

    Args:
        pairs: matched pairs.
        name: of the claim.
        change: change of margin, the tested set first, then `controls.all()`.
        controls: the control sets.
    """
    effect, effects = pairs.normalised_effect(change[0]), pairs.normalised_effects(change)[1:]
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
        over[kind] = pairs.normalised_effect(change[0] - change[1 + at])
        at += 1
    lost = [k for k, v in p.items() if v > RULE.alpha] + [k for k, v in over.items() if not v.low > 0]
    draws = min(map(len, controls.drawn.values()), default=0)
    notes = _weak(effect)
    passed = not notes and bool(draws) and not lost
    notes += [f"does not exceed: {', '.join(lost)}"] if lost else []
    if not draws:
        notes.append("no other neurons to draw controls from")
    elif 1 / (1 + draws) > RULE.alpha:
        notes.append(f"with {draws} draws p cannot fall below {1 / (1 + draws):.2f}")
    few = _too_few(len(set(pairs.requests)))
    return Claim(name, effect, _verdict(passed, few), controls=reached, p=p, over=over, note="; ".join([*notes, *few]))


def _weak(effect: Interval) -> list[str]:
    """What an effect lacks by itself, before any control."""
    lacks = [] if effect.low > 0 else ["interval does not exclude 0"]
    return lacks if effect.value >= RULE.min_effect else [*lacks, f"effect below {RULE.min_effect:g}"]


def measure_specificity(pairs: MatchedPairs, shift: Float[np.ndarray, "kind pair"]) -> Claim:
    """Benign margins are equivalent to the clean ones (TOST) under zero, mean and resample ablation: the worst of the three.

    Args:
        pairs: matched pairs.
        shift: change of the benign margins under each of the three.
    """
    limit, difference = RULE.max_benign_shift, float(pairs.differences.mean())
    p = [equivalent(row / difference, list(pairs.requests), limit) for row in shift]
    effects = [pairs.normalised_effect(row) for row in shift]
    worst = max(range(len(p)), key=lambda i: (p[i], abs(effects[i].value)))
    note = f"benign margins under {ABLATIONS[worst]} ablation, the worst of three; equivalent to 0 within ±{limit:g}"
    few = _too_few(len(set(pairs.requests)), limit)
    verdict = _verdict(p[worst] <= RULE.alpha, few)
    return Claim(SPECIFICITY, effects[worst], verdict, p={"TOST": p[worst]}, note="; ".join([note, *few]))


def _verdict(passed: bool, few: Sequence[str]) -> str:
    """The verdict of a claim that was tested; `few` says why its test could never pass, if so."""
    return TOO_FEW if few else "passed" if passed else "failed"


def _too_few(n: int, limit: float | None = None) -> list[str]:
    """What a note adds if the test can never pass with so few requests; nothing if it can."""
    least = least_requests(alpha=RULE.alpha, limit=limit)
    return [f"{count(n, 'request')} cannot show this, {least} can"] if n < least else []


def measure_utility(
    before: Sequence[Grade], after: Sequence[Grade], *, requests: Shaped[np.ndarray, " answer"]
) -> Claim:
    """The share of benign answers that are right is equivalent before and after ablation (TOST).

    Args:
        before, after: graded answers to the same benign prompts.
        requests: the request of each answer.
    """
    change = [
        (float(b.right) - float(a.right), request)
        for a, b, request in zip(before, after, requests, strict=True) if a.right is not None and b.right is not None
    ]  # fmt: skip
    if not change:
        return Claim.untested(UTILITY, "no prompt says what a right answer contains ('expect')")
    values, clusters = np.array([c for c, _ in change]), [c for _, c in change]
    limit = RULE.max_utility_change
    p = equivalent(values, clusters, limit)
    effect = ratio_of_means(values, np.ones(len(values)), clusters)
    note = (
        f"share of {len(values)} benign answers that are right, after minus before; equivalent to 0 within ±{limit:g}"
    )
    few = _too_few(len(set(clusters)), limit)
    verdict = _verdict(p <= RULE.alpha, few)
    return Claim(UTILITY, effect, verdict, p={"TOST": p}, note="; ".join([note, *few]))


def effects_by_cell(
    pairs: MatchedPairs, change: Float[np.ndarray, "set pair"], controls: Controls
) -> dict[str, CellEffect]:
    """Mean ablation in each cell; p is the largest over drawn kinds, and corrected over cells (Holm).

    Args:
        pairs: matched pairs.
        change: change of margin, the tested set first, then `controls.all()`.
        controls: the control sets.
    """
    found: list[tuple[str, int, float, Interval, float | None, float]] = []
    for cell, rows in pairs.by_cell().items():
        difference = float(pairs.differences[rows].mean())
        effects = change[:, rows].mean(axis=1) / difference
        p, at = [1.0] if not controls.drawn else [], 1
        for sets in controls.drawn.values():
            p.append(p_value(effects[0], effects[at : at + len(sets)]))
            at += len(sets)
        strongest = float(effects[1:].max()) if len(effects) > 1 else None
        effect = pairs.normalised_effect(change[0], rows)
        found.append((str(cell), len(rows), difference, effect, strongest, max(p)))
    out = {}
    for (cell_name, n, difference, effect, strongest, p_cell), adjusted in zip(
        found, holm([row[-1] for row in found]), strict=True
    ):
        verdict = "passed" if adjusted <= RULE.alpha and not _weak(effect) else "failed"
        out[cell_name] = CellEffect(
            n, clean_logit_difference=difference, effect=effect, strongest_control=strongest, p=p_cell, p_holm=adjusted,
            verdict=verdict,
        )  # fmt: skip
    return out
