"""Claims about the refusal margin: necessity, sufficiency and specificity of a set beside its control sets (see `verify`).

Claims about generated answers are in `answer_claims`.

>>> from neuronshield.model.prefixes import opening_tokens, openings_of
>>> from neuronshield.prove.pairs import match, measure
>>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
>>> pairs = measure(model, match(prompts, seed=0)[0], tokens)
>>> controls = Controls({"random": [ns.random_like(neurons, model, seed=i) for i in range(3)]})
>>> margins = measure_margins(pairs, neurons, controls)
>>> margins.changes["necessity: mean"].shape                   # the set, then three controls, on 30 pairs
(4, 30)
>>> [c.name for c in measure_claims(pairs, margins, controls)][-2:]
['sufficiency: patch', 'specificity']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..core.display import count
from ..core.neurons import NeuronSet
from ..core.statistics import Interval, equivalent, holm, least_requests, p_value
from .controls import Controls
from .pairs import ABLATIONS, MatchedPairs
from .tables import TOO_FEW, CellEffect, Claim
from .verdict import RULE

__all__ = [
    "MARGIN_CLAIMS", "NECESSITY", "SUFFICIENCY", "Margins", "effects_by_cell", "measure_claims", "measure_effect",
    "measure_margins", "measure_specificity", "too_few", "verdict_of_test",
]  # fmt: skip

NECESSITY = tuple(f"necessity: {kind}" for kind in ABLATIONS)
NECESSITY_MEAN = NECESSITY[ABLATIONS.index("mean")]
SUFFICIENCY, SPECIFICITY = "sufficiency: patch", "specificity"
#: Claims that are measured on the refusal margin, in order.
MARGIN_CLAIMS = (*NECESSITY, SUFFICIENCY, SPECIFICITY)


@dataclass(frozen=True, eq=False)
class Margins:
    """Changes of the refusal margin under every condition of the margin claims. Made by `measure_margins`.

    Attributes:
        changes: for every necessity and sufficiency claim [set, pair], the tested set first, then `controls.all()`.
        benign_shift: change of the benign margins under zero, mean and resample ablation of the set.
    """

    changes: dict[str, Float[np.ndarray, "set pair"]]
    benign_shift: Float[np.ndarray, "kind pair"]

    def take(self, rows: Int[np.ndarray, " row"]) -> Margins:
        """The same of some pairs."""
        return Margins({k: v[:, rows] for k, v in self.changes.items()}, self.benign_shift[:, rows])

    def __repr__(self) -> str:
        return f"Margins({', '.join(self.changes)})"


def measure_margins(pairs: MatchedPairs, neurons: NeuronSet, controls: Controls) -> Margins:
    """Margins under ablation and insertion of a set and of its controls.

    Args:
        pairs: matched pairs of the cells where the model refuses.
        neurons: the set.
        controls: its control sets.
    """
    sets = [neurons, *controls.all()]
    margins = pairs.on_harmful([pairs.ablate(s, kind) for kind in ABLATIONS for s in sets])
    by_kind = margins.reshape(len(ABLATIONS), len(sets), -1)
    changes = dict(zip(NECESSITY, pairs.harmful_margins - by_kind, strict=True))
    spared = [k for k in ABLATIONS if k != "patch"]  # patching a benign prompt from itself changes nothing
    benign = pairs.on_benign([*(pairs.insert(s) for s in sets), *(pairs.ablate(neurons, k) for k in spared)])
    changes[SUFFICIENCY] = benign[: len(sets)] - pairs.benign_margins
    return Margins(changes, benign[len(sets) :] - pairs.benign_margins)


def measure_claims(pairs: MatchedPairs, margins: Margins, controls: Controls) -> list[Claim]:
    """The margin claims: necessity, sufficiency and specificity of a set.

    Args:
        pairs: matched pairs of the cells where the model refuses.
        margins: of the set and its controls on these pairs.
        controls: its control sets.
    """
    claims = [measure_effect(pairs, k, change=change, controls=controls) for k, change in margins.changes.items()]
    return [*claims, measure_specificity(pairs, margins.benign_shift)]


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
    few = too_few(pairs.requests)
    return Claim(
        name, effect, verdict_of_test(passed, few), controls=reached, p=p, over=over, note="; ".join([*notes, *few])
    )


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
    few = too_few(pairs.requests, limit)
    verdict = verdict_of_test(p[worst] <= RULE.alpha, few)
    return Claim(SPECIFICITY, effects[worst], verdict, p={"TOST": p[worst]}, note="; ".join([note, *few]))


def verdict_of_test(passed: bool, few: Sequence[str]) -> str:
    """The verdict of a claim that was tested.

    Args:
        passed: whether all that it needs was shown.
        few: what `too_few` says.
    """
    return TOO_FEW if few else "passed" if passed else "failed"


def too_few(requests: Shaped[np.ndarray, " row"], limit: float | None = None) -> list[str]:
    """What a note adds if the test of a claim can never pass with so few requests; nothing if it can.

    >>> too_few(np.array(["a", "b"])), too_few(np.array([str(i) for i in range(29)]), 0.1)
    (['2 requests cannot show this, 5 can'], [])

    Args:
        requests: the request of each row.
        limit: of a claim of equivalence; None where a mean is claimed to be above 0.
    """
    n, least = len(set(requests)), least_requests(alpha=RULE.alpha, limit=limit)
    return [f"{count(n, 'request')} cannot show this, {least} can"] if n < least else []


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
