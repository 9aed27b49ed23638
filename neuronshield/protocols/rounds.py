r"""The behavioural protocol: candidates of a probe, confirmed by patching, in rounds.

Each round, on the requests of one modality:

1. harmful prompts that the model refuses and benign ones that it answers are told apart by a probe in every layer (`probes`);
2. each candidate is **patched** alone: it gets its benign mean at the last prompt token of harmful prompts that had no part in the
   probe. Its effect is the mean fall of the first-token refusal mass;
3. its z is that of this effect against control neurons, drawn outside the candidates in proportion to the candidates of each layer;
   p = 1 - Phi(z), one-sided. Candidates at a false discovery rate of 0.05 (Benjamini and Hochberg) are **confirmed**;
4. what is confirmed is clamped to its benign mean, and the next round starts from the clamped model.

What the paper's text leaves open, as chosen here: labels are those of the unchanged model in every round; benign means are those of the
prompt's cell, over all benign prompts of the confirm split; a patch has to *lower* the refusal mass whatever the sign of the score,
for both signs are patched towards benign prompts; a round without candidates or confirmed neurons is the last one.

Source: "Do VLMs share safety neurons across modalities?" (2026), arXiv 2608.30750; Benjamini and Hochberg (1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from ..core.display import count
from ..core.neurons import NeuronSet
from ..core.statistics import LEAST as LEAST_P
from ..core.statistics import discoveries
from .bench import Bench, Reader
from .probes import candidates, probe_scores
from .selections import LEAST, too_few_labelled
from .tables import Round

__all__ = ["Found", "control_neurons", "discovered", "find_causal", "z_scores"]

#: False discovery rate of confirmed neurons.
RATE = 0.05
Address = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """What the behavioural protocol found in one modality.

    Attributes:
        rounds: one row a round.
        members: every confirmed neuron.
        first: the candidates of the first round.
        missing: why there is no neuron; "" where there is one.
    """

    rounds: tuple[Round, ...]
    members: tuple[Address, ...]
    first: tuple[Address, ...]
    missing: str


def find_causal(reader: Reader, bench: Bench, *, site: str, rounds: int, controls: int, seed: int) -> Found:
    """The neurons of one modality that the behavioural protocol confirms.

    Args:
        reader: of the model.
        bench: the modality, with values of the site.
        site: where neurons are read.
        rounds: at most.
        controls: control neurons of a round.
        seed: of the control neurons.
    """
    harmful, benign = (bench.behaves & side for side in (bench.harmful, ~bench.harmful))
    if min(harmful.sum(), benign.sum()) < LEAST:
        return Found((), (), (), missing=too_few_labelled(int(harmful.sum()), int(benign.sum())))
    rng = np.random.default_rng([seed, len(bench.modality)])
    clamped: list[Address] = []
    rows: list[Round] = []
    first: tuple[Address, ...] = ()
    for number in range(1, rounds + 1):
        values = bench.values if not clamped else bench.clamped(reader, _set(clamped, bench, site))
        mask = candidates(*probe_scores(values.numpy()[harmful], values.numpy()[benign]))
        for layer, index in clamped:
            mask[layer, index] = False
        tried = [(int(layer), int(index)) for layer, index in np.argwhere(mask)]
        first = tuple(tried) if number == 1 else first
        others = control_neurons(mask, clamped, n=controls, rng=rng)
        z = _patched(reader, bench, (tried, others), clamped=clamped, site=site) if tried and others else np.zeros(0)
        passed = discovered(z)
        confirmed = [at for at, ok in zip(tried, passed, strict=False) if ok]
        largest = float(z.max()) if len(z) else float("nan")
        rows.append(
            Round(bench.modality, number, len(tried), confirmed=len(confirmed), controls=len(others), largest=largest)
        )
        clamped += confirmed
        if not confirmed:
            break
    missing = "" if clamped else f"no confirmed neuron of {count(len(first), 'candidate')}" if first else "no candidate"
    return Found(tuple(rows), tuple(sorted(clamped)), first, missing=missing)


def _set(members: Sequence[Address], bench: Bench, site: str) -> NeuronSet:
    n_layers, width = bench.values.shape[1:]
    return NeuronSet(members, n_layers=n_layers, d_mlp=width, site=site)


def _patched(
    reader: Reader,
    bench: Bench,
    neurons: tuple[Sequence[Address], Sequence[Address]],
    *,
    clamped: Sequence[Address],
    site: str,
) -> Float[np.ndarray, " candidate"]:
    """z of the effect of patching each candidate against that of the control neurons, on top of what is clamped."""
    part, shape = bench.confirm, (bench, site)
    tried, others = neurons
    start = part.ablate(_set(clamped, *shape)) if clamped else None
    conditions = [part.ablate(_set([*clamped, at], *shape)) for at in (*tried, *others)]
    mass = reader.mass(part.harmful, [start, *conditions])
    effects = (mass[0] - mass[1:]).mean(axis=1)
    return z_scores(effects[: len(tried)], effects[len(tried) :])


def z_scores(
    effects: Float[np.ndarray, " candidate"], controls: Float[np.ndarray, " control"]
) -> Float[np.ndarray, " candidate"]:
    """(effect - mean of the controls) / their standard deviation; infinite where all controls are the same and the effect is larger.

    >>> z_scores(np.array([2.0, 0.0]), np.array([-1.0, 0.0, 1.0])).tolist()
    [2.0, 0.0]

    Args:
        effects: of candidates.
        controls: of control neurons.
    """
    spread = float(controls.std(ddof=1)) if len(controls) > 1 else 0.0
    above = effects - controls.mean()
    if not spread:
        return np.where(above > 0, np.inf, 0.0)
    return above / spread


def discovered(z: Float[np.ndarray, " candidate"]) -> Bool[np.ndarray, " candidate"]:
    """Which candidates are above the controls, one-sided, at a false discovery rate of 0.05.

    >>> discovered(np.array([4.0, 2.0, 0.1])).tolist()
    [True, True, False]

    Args:
        z: of each candidate.
    """
    found: Bool[np.ndarray, " candidate"] = discoveries(np.maximum(norm.sf(z), LEAST_P)) <= RATE
    return found & (z > 0)


def control_neurons(
    mask: Bool[np.ndarray, "n_layers width"], clamped: Sequence[Address], *, n: int, rng: np.random.Generator
) -> list[Address]:
    """Neurons outside the candidates and what is clamped, drawn in proportion to the candidates of each layer.

    >>> mask = np.zeros((2, 9), dtype=bool)
    >>> mask[0, :2], mask[1, 0] = True, True
    >>> [layer for layer, _ in control_neurons(mask, [], n=6, rng=np.random.default_rng(0))]
    [0, 0, 0, 0, 1, 1]

    Args:
        mask: the candidates.
        clamped: neurons that are clamped.
        n: how many, as far as there are so many.
        rng: draws.
    """
    per_layer = mask.sum(axis=1)
    if not per_layer.sum():
        return []
    barred = mask.copy()
    for layer, index in clamped:
        barred[layer, index] = True
    return [(layer, int(i)) for layer, share in _shares(per_layer, n) for i in _drawn(~barred[layer], share, rng)]


def _shares(per_layer: Int[np.ndarray, " layer"], n: int) -> Iterator[tuple[int, int]]:
    """Layers with their part of n, by largest remainders."""
    exact = per_layer / per_layer.sum() * n
    whole = np.floor(exact).astype(int)
    rest = np.argsort(whole - exact, kind="stable")[: n - int(whole.sum())]
    whole[rest] += 1
    yield from ((layer, int(k)) for layer, k in enumerate(whole) if k)


def _drawn(free: Bool[np.ndarray, " width"], k: int, rng: np.random.Generator) -> list[int]:
    pool = np.flatnonzero(free)
    return sorted(int(i) for i in rng.choice(pool, min(k, len(pool)), replace=False))
