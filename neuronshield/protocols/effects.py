"""What mean ablation of a set does in its own and in the other modality, beside control sets of the same size.

Every neuron of the set gets the benign mean of the prompt's cell, at the last prompt token of harmful test requests. Measured are the
refusal margin, the first-token refusal mass, and generated answers: refusals as judged, answers that begin with a refusal prefix,
and harmful compliance. Controls are drawn, none of them with a member of the set:

    random     other neurons of the same layers
    matched    neurons of similar mean |value| and, at the site "neuron", of similar norm of their W_down column

Answers of a control are those of the random set whose margin effect the set has to exceed for p <= 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import expit

from ..core.intervals import clustered_difference
from ..core.neurons import NeuronSet
from ..core.statistics import Interval, p_value
from ..model.model import Model
from ..prove.answers import level_draw
from ..prove.controls import drawn_like, matched_like
from .bench import Bench, Reader
from .tables import Answered, Effect, Spread
from .verdicts import ALPHA, acts

__all__ = ["Drawn", "draw_controls", "features_of", "measure_effect"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A set and its control sets.

    Attributes:
        neurons: the set.
        controls: control sets by kind; a kind is missing where a layer of the set has no other neuron left.
    """

    neurons: NeuronSet
    controls: dict[str, list[NeuronSet]]

    def __repr__(self) -> str:
        return f"Drawn({self.neurons!r}, {', '.join(f'{len(v)} {k}' for k, v in self.controls.items())})"


def draw_controls(
    model: Model, neurons: NeuronSet, features: Float[np.ndarray, "feature n_layers width"], *, draws: int, seed: int
) -> Drawn:
    """A set with its random and matched control sets.

    >>> features = np.random.default_rng(0).random((2, 3, 29))
    >>> drawn = draw_controls(model, neurons, features, draws=5, seed=0)
    >>> drawn, len(drawn.controls["random"][0] & neurons)
    (Drawn(NeuronSet(3 neurons in 3 layers), 5 random, 5 matched), 0)

    Args:
        model: the model.
        neurons: the set.
        features: what matched neurons are similar in, such as mean |value| and the norm of the W_down column.
        draws: sets of each kind.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    kinds = {
        "random": [drawn_like(neurons, model, seed=rng) for _ in range(draws)],
        "matched": matched_like(neurons, features, draws=draws, seed=rng),
    }
    return Drawn(neurons, {kind: sets for kind, sets in kinds.items() if all(len(s) == len(neurons) for s in sets)})


def measure_effect(reader: Reader, drawn: Drawn, *, source: str, target: Bench, answers: bool = True) -> Effect:
    """What ablation of a set does to the harmful test requests of a modality.

    Args:
        reader: of the model.
        drawn: the set and its controls.
        source: the modality that selected the set.
        target: the modality that it is ablated in, with values of the set's site.
        answers: whether answers are generated.
    """
    part = target.test
    sets = [drawn.neurons, *(s for kind in drawn.controls.values() for s in kind)]
    falls = part.clean[0] - reader.margins(part.harmful, [part.ablate(s) for s in sets])
    means = falls.mean(axis=1)
    by_kind: dict[str, Float[np.ndarray, " control"]] = {}
    at = 1
    for kind, controls in drawn.controls.items():
        by_kind[kind] = means[at : at + len(controls)]
        at += len(controls)
    p = {kind: p_value(float(means[0]), values) for kind, values in by_kind.items()}
    mass = expit(part.clean[1]) - reader.mass(part.harmful, [part.ablate(drawn.neurons)])[0]
    n_requests, margin = len(set(part.requests)), part.mean(falls[0])
    told = None
    if answers:
        levels = {kind: drawn.controls[kind][level_draw(values, ALPHA)] for kind, values in by_kind.items()}
        told = _answered(reader, target, drawn.neurons, control=levels.get("random"))
    return Effect(
        source, target.modality, n=len(drawn.neurons), n_requests=n_requests, margin=margin, mass=part.mean(mass),
        controls={kind: Spread.of(values) for kind, values in by_kind.items()}, p=p, answers=told,
        verdict=acts(margin, list(p.values()), difference=target.difference.value, n_requests=n_requests, draws=min(map(len, by_kind.values()), default=0)),
    )  # fmt: skip


def _answered(reader: Reader, target: Bench, neurons: NeuronSet, *, control: NeuronSet | None) -> Answered:
    part, before = target.test, target.answers
    after = reader.answers(part.harmful, part.ablate(neurons))
    judged = _fall(before.refused, after.refused, part.requests)
    other = Interval(float("nan"), float("nan"), float("nan"))
    if control is not None:
        other = _fall(before.refused, reader.answers(part.harmful, part.ablate(control)).refused, part.requests)
    return Answered(
        judged=judged, keyword=_fall(before.prefixed, after.prefixed, part.requests),
        complied=_fall(after.complied, before.complied, part.requests), control=other, n=len(part.harmful),
    )  # fmt: skip


def _fall(
    before: Float[np.ndarray, " answer"], after: Float[np.ndarray, " answer"], requests: Shaped[np.ndarray, " answer"]
) -> Interval:
    """The share before minus the share after, paired over requests."""
    known = list(requests)
    return clustered_difference(before, known, b=after, clusters_b=known)


def features_of(
    benches: Sequence[Bench], norms: Float[np.ndarray, "n_layers width"] | None
) -> Float[np.ndarray, "_ n_layers width"]:
    """Mean |value| over the prompts that select, and the norm of the W_down column where there is one.

    Args:
        benches: the two modalities.
        norms: of the columns of W_down; None at another site than "neuron".
    """
    values = np.concatenate([np.abs(bench.values.numpy()) for bench in benches])
    mean = values.astype(float).mean(axis=0)
    return np.stack([mean] if norms is None else [mean, norms.astype(float)])
