r"""Directions of the residual stream that tell harmful from benign requests, and what their ablation does.

At the output of one layer let x be the residual stream at the last prompt token, m and S mean and covariance over benign prompts, and
H = E (x - m)(x - m)^T over harmful prompts: their second moment about the benign mean, which holds the difference of the means and
what the harmful prompts add to the variance. The generalised eigenvectors v of

    H v = lambda B v,      B = (1 - g) S + g tr(S) / d I,

largest lambda first, are the directions in which harmful prompts lie farthest from benign ones, in units of how much benign prompts
vary. The first k are made orthonormal and taken out of the residual stream after that layer, at the last prompt token:
r <- r - V^T V r.

**Layer.** For each modality the layer whose first 5 directions lower the refusal mass of the confirm prompts most beyond the strongest
of 5 random sets.

**Directions needed.** The fewest k of `SIZES` at which the refusal margin of the modality falls by at least nine tenths of its largest
fall over all k, where that fall exceeds random directions (p <= 0.05): as many random directions after the same layer, uniform over
all orthonormal sets. Five draws were published; with fewer than 19 no p-value reaches 0.05, so 19 are drawn.

What the paper's text leaves open, as chosen here: H about the benign mean; shrinkage g = 0.1; one layer for each modality; the last prompt
token, where neurons are patched too; the share of nine tenths.

Source: "Do VLMs share safety neurons across modalities?" (2026), arXiv 2608.30750; Arditi et al. (2024), arXiv 2406.11717, directional
ablation; Ledoit and Wolf (2004) for shrinkage towards the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from ..core.directions import Directions
from ..core.statistics import p_value
from ..find.residual import record_residual
from ..model.intervention import Intervention
from .bench import Bench, Reader
from .selections import LEAST, too_few_labelled
from .tables import Directional, DirectionPoint, Side, Spread
from .verdicts import ALPHA, Fall, acts, verdict_of

__all__ = ["SIZES", "eigenvectors", "measure_directions", "needed_of"]

#: Numbers of directions.
SIZES = (1, 2, 5, 10, 20, 50)
PROBED, BESIDE = 5, 5
DRAWS = 19
SHARE = 0.9
SHRINKAGE = 0.1


def eigenvectors(
    harmful: Float[np.ndarray, "harmful d_model"], benign: Float[np.ndarray, "benign d_model"], *, k: int
) -> Float[np.ndarray, "k d_model"]:
    """The k generalised eigenvectors of harmful against benign prompts, largest eigenvalue first, one a row.

    >>> rng = np.random.default_rng(0)
    >>> harmful, benign = rng.normal(size=(30, 7)), rng.normal(size=(30, 7))
    >>> harmful[:, 2] += 6
    >>> int(np.abs(eigenvectors(harmful, benign, k=1)[0]).argmax())
    2

    Args:
        harmful: residual streams of harmful prompts.
        benign: the same of benign prompts.
        k: how many.
    """
    from scipy.linalg import eigh

    h, b = np.asarray(harmful, dtype=float), np.asarray(benign, dtype=float)
    d = b.shape[1]
    apart, within = h - b.mean(axis=0), b - b.mean(axis=0)
    spread = within.T @ within / len(b)
    base = (1 - SHRINKAGE) * spread + (SHRINKAGE * max(float(np.trace(spread)), 1e-12) / d) * np.eye(d)
    _, vectors = eigh(apart.T @ apart / len(h), base, subset_by_index=[d - k, d - 1])
    found: Float[np.ndarray, "k d_model"] = vectors[:, ::-1].T
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class _Basis:
    """The directions of one modality, and the layer that they are of."""

    modality: str
    layer: int
    vectors: Float[np.ndarray, "k d_model"]
    sizes: tuple[int, ...]

    def first(self, k: int, n_layers: int) -> Directions:
        return Directions(self.vectors[:k], [self.layer], n_layers=n_layers)


def measure_directions(reader: Reader, benches: Sequence[Bench], sides: Sequence[Side], *, seed: int) -> Directional:
    """The analysis of directions in both modalities.

    Args:
        reader: of the model.
        benches: the two modalities.
        sides: the same, as the verdict reads them.
        seed: of the random directions.
    """
    missing, bases = {}, []
    for bench in benches:
        found = _basis(reader, bench, seed)
        if isinstance(found, str):
            missing[bench.modality] = found
        else:
            bases.append(found)
    points = [p for basis in bases for bench in benches for p in _curve(reader, basis, bench, seed=seed)]
    needed = {
        bench.modality: needed_of([p for p in points if p.source == p.target == bench.modality]) for bench in benches
    }
    falls = []
    for basis in bases:
        own = [p for p in points if p.source == p.target == basis.modality]
        at = needed[basis.modality] or max(own, key=lambda p: p.margin.value).k
        for bench in benches:
            point = next(p for p in points if (p.source, p.target, p.k) == (basis.modality, bench.modality, at))
            told = acts(
                point.margin,
                [point.p],
                difference=bench.difference.value,
                n_requests=len(set(bench.test.requests)),
                draws=DRAWS,
            )
            falls.append(Fall(basis.modality, bench.modality, margin=point.margin, verdict=told))
    word, reason = verdict_of(falls, sides, missing=missing, what="directions")
    return Directional(tuple(points), needed, share=SHARE, verdict=word, reason=reason)


def needed_of(points: Sequence[DirectionPoint], *, share: float = SHARE) -> int | None:
    """The fewest directions at which the margin falls by a share of its largest fall, beyond random ones; None where none do.

    >>> from neuronshield.core.statistics import Interval
    >>> falls = {1: Interval(0.5, 0.4, 0.6), 2: Interval(0.95, 0.9, 1.0), 5: Interval(1.0, 0.9, 1.1)}
    >>> about = {"mass": Interval(0.1, 0.0, 0.2), "random": Spread(0.0, -0.1, 0.1, 19), "p": 0.05}
    >>> needed_of([DirectionPoint("text", "text", layer=3, k=k, margin=fall, **about) for k, fall in falls.items()])
    2

    Args:
        points: of one modality in itself, for growing k.
        share: of the largest fall.
    """
    largest = max((p.margin.value for p in points), default=0.0)
    if largest <= 0:
        return None
    reached = next(p for p in sorted(points, key=lambda p: p.k) if p.margin.value >= share * largest)
    return reached.k if reached.p <= ALPHA and reached.margin.low > 0 else None


def _basis(reader: Reader, bench: Bench, seed: int) -> _Basis | str:
    """The directions of a modality at its layer; why there are none where its prompts are too few."""
    first, second = (bench.behaves & side for side in (bench.harmful, ~bench.harmful))
    if min(first.sum(), second.sum()) < LEAST:
        return too_few_labelled(int(first.sum()), int(second.sum()))
    model = reader.model
    streams = np.asarray(record_residual(model, bench.prompts, batch_size=reader.batch_size), dtype=float)
    most = min(model.d_model // 2, int(first.sum()) - 1, int(second.sum()) - 1)
    sizes = tuple(k for k in SIZES if k <= most)
    per_layer = [eigenvectors(streams[first, i], streams[second, i], k=sizes[-1]) for i in range(model.n_layers)]
    part = bench.confirm
    tried = [Directions(v[:PROBED], [i], n_layers=model.n_layers) for i, v in enumerate(per_layer)]
    beside = [Directions.random_like(d, _seed(seed, i, j)) for i, d in enumerate(tried) for j in range(BESIDE)]
    falls = (expit(part.clean[1]) - reader.mass(part.harmful, [_ablation(d) for d in (*tried, *beside)])).mean(axis=1)
    own, random = falls[: len(tried)], falls[len(tried) :].reshape(len(tried), BESIDE)
    layer = int((own - random.max(axis=1)).argmax())
    return _Basis(bench.modality, layer, vectors=per_layer[layer], sizes=sizes)


def _ablation(directions: Directions) -> Intervention:
    return Intervention(directions, "zero")


def _seed(*parts: int) -> int:
    return int(np.random.default_rng(parts).integers(2**31))


def _curve(reader: Reader, basis: _Basis, target: Bench, *, seed: int) -> list[DirectionPoint]:
    """What ablation of the first k directions of a modality does to the test prompts of another, for every k."""
    part, n_layers = target.test, reader.model.n_layers
    conditions = []
    for k in basis.sizes:
        own = basis.first(k, n_layers)
        conditions += [own, *(Directions.random_like(own, _seed(seed, k, draw)) for draw in range(DRAWS))]
    read = reader.odds(part.harmful, [_ablation(basis.first(k, n_layers)) for k in basis.sizes])
    masses = expit(part.clean[1]) - expit(read)
    margins = part.clean[0] - reader.margins(part.harmful, [_ablation(d) for d in conditions])
    out = []
    for i, k in enumerate(basis.sizes):
        rows = margins[i * (1 + DRAWS) : (i + 1) * (1 + DRAWS)]
        random = rows[1:].mean(axis=1)
        out.append(DirectionPoint(
            basis.modality, target.modality, basis.layer, k=k, margin=part.mean(rows[0]), mass=part.mean(masses[i]),
            random=Spread.of(random), p=p_value(float(rows[0].mean()), random),
        ))  # fmt: skip
    return out
