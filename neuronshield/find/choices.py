"""The choice that each published rule makes in one cell: formulas of the table in `rules`.

Every function takes the moments, the cell and the rule's options, and returns the mask [n_layers, d_mlp] of the chosen neurons with the
magnitude that the rule ranks by, -inf where the rule cannot choose a neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.statistics import discoveries
from ..data.prompts import Cell
from .groups import Stats
from .ranking import Choice, per_layer, places
from .scores import METHODS, columns_of, effect_size, sas
from .selection import Scores, chosen

__all__ = [
    "ANCHOR", "global_difference", "mean_difference", "one_anchor", "precise_shield", "safeneuron", "set_difference",
    "significance", "ss_neurons",
]  # fmt: skip

#: The language that one_anchor and ss_neurons intersect with.
ANCHOR = "en"
Options = Mapping[str, Any]


def safeneuron(stats: Stats, cell: Cell, options: Options) -> Choice:
    """{d > tau} or {z > tau_z and m_h > m_b}, ranked by the larger of d / tau and z / tau_z.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = safeneuron(stats, ns.Cell("en", "text"), {"tau": 0.5, "tau_z": 1.0})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: tau and tau_z, thresholds above 0.

    Source: SafeNeuron (2026), arXiv 2602.12158.
    """
    harmful, benign = stats[cell]
    columns = columns_of(stats, "sas")
    d, z = (method(harmful, benign, columns)[0] for method in (effect_size, sas))
    higher = harmful.mean > benign.mean
    mask = (d > options["tau"]) | ((z > options["tau_z"]) & higher)
    return mask, np.where(higher, np.maximum(d / options["tau"], z / options["tau_z"]), -np.inf)


def precise_shield(stats: Stats, cell: Cell, options: Options) -> Choice:
    """Per layer the top k of the importance on harmful prompts minus the top k of that on benign prompts, k = floor(rho d_mlp).

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = precise_shield(stats, ns.Cell("en", "text"), {"rho": 0.2})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: rho, 0 to 1.

    Raises:
        InputError: a part that is less than one neuron.

    Source: Precise Shield (2026), arXiv 2604.08881.
    """
    rho = options["rho"]
    return _difference(stats, cell, rule="precise_shield", method="precise_shield", parts=(rho, rho))


def one_anchor(stats: Stats, cell: Cell, options: Options) -> Choice:
    """`precise_shield` in every modality of the cell's language and of English, intersected.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = one_anchor(stats, ns.Cell("en", "text"), {"rho": 0.5, "modalities": ["text"]})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: rho, 0 to 1, and modalities, a list.

    Raises:
        InputError: a part that is less than one neuron.

    Source: One Anchor (2026), arXiv 2607.27917.
    """
    rows = [Cell(language, m) for language in dict.fromkeys((cell.language, ANCHOR)) for m in options["modalities"]]
    return _intersection([precise_shield(stats, row, options) for row in rows])


def ss_neurons(stats: Stats, cell: Cell, options: Options) -> Choice:
    """Top p of the squared change of the MLP's output on harmful minus on benign prompts, intersected with the same of English.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = ss_neurons(stats, ns.Cell("en", "text"), {"p": 0.2})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: p, 0 to 1.

    Raises:
        InputError: a part that is less than one neuron.

    Source: Zhang et al. (2026), "Who Transfers Safety?", arXiv 2602.01283.
    """

    columns = columns_of(stats, "ss_neurons")

    def monolingual(row: Cell) -> Choice:
        # E ||MLP without i - MLP||^2
        rank, against = ((m.m2 / m.n + m.mean**2) * columns.l2**2 for m in stats[row])
        return per_layer(rank, against, _part("ss_neurons", "p", options["p"], of=stats.d_mlp))

    return _intersection([monolingual(row) for row in dict.fromkeys((cell, Cell(ANCHOR, cell.modality)))])


def set_difference(stats: Stats, cell: Cell, options: Options) -> Choice:
    """Per layer the top p of a score on harmful prompts minus the top q of it on benign prompts.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = set_difference(stats, ns.Cell("en", "text"), {"p": 0.2, "q": 0.1, "method": "wanda"})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: p and q, 0 to 1, and method, a score with a set difference.

    Raises:
        InputError: a part that is less than one neuron.

    Source: Wei et al. (2024), arXiv 2402.05162, section 3.3.
    """
    parts = (options["p"], options["q"])
    return _difference(stats, cell, rule="set_difference", method=options["method"], parts=parts)


def global_difference(stats: Stats, cell: Cell, options: Options) -> Choice:
    """The top p of a score on harmful prompts minus the top q of it on benign prompts, of all layers together.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = global_difference(stats, ns.Cell("en", "text"), {"p": 0.2, "q": 0.1, "method": "wanda"})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: p and q, 0 to 1, and method, a score with a set difference.

    Raises:
        InputError: a part that is less than one neuron.

    Source: Wei et al. (2024), arXiv 2402.05162, section 3.3, without its layers.
    """
    parts = (options["p"], options["q"])
    return _difference(stats, cell, rule="global_difference", method=options["method"], parts=parts, whole=True)


def significance(stats: Stats, cell: Cell, options: Options) -> Choice:
    """Neurons whose means differ at a false discovery rate q: Welch's t-test, two-sided, ranked by -log10 p.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = significance(stats, ns.Cell("en", "text"), {"q": 0.5})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: q, the false discovery rate, 0 to 1.

    Raises:
        InputError: fewer than two tokens of a label.

    Source: Welch (1947); Benjamini and Hochberg (1995).
    """
    from scipy.special import stdtr

    harmful, benign = stats[cell]
    if min(harmful.n, benign.n) < 2:
        raise InputError(f"select('significance'): {cell}: needs at least 2 harmful and 2 benign prompts")
    parts = [m.var / m.n for m in (harmful, benign)]
    variance, difference = sum(parts), harmful.mean - benign.mean
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(difference) / np.sqrt(variance)
        freedom = variance**2 / sum(part**2 / (m.n - 1) for part, m in zip(parts, (harmful, benign), strict=True))
    flat = ~(variance > 0)  # a neuron that never varies within a label
    t = np.where(flat, np.where(difference == 0, 0.0, np.inf), t)
    p = np.maximum(2 * stdtr(np.where(flat, harmful.n + benign.n - 2, freedom), -t), np.finfo(float).tiny)
    return discoveries(p.ravel()).reshape(p.shape) <= options["q"], -np.log10(p)


def mean_difference(stats: Stats, cell: Cell, options: Options) -> Choice:
    """The largest |m_h - m_b|, for one size of `Scores.top`.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> mask, rank = mean_difference(stats, ns.Cell("en", "text"), {"k": 8})
    >>> mask.shape, bool((rank[mask] > -np.inf).all())
    ((3, 29), True)

    Args:
        stats: moments from `capture`.
        cell: the cell.
        options: one size of `Scores.top`.

    Raises:
        InputError: as `Scores.top`.

    Source: Arditi et al. (2024), arXiv 2406.11717, difference in means.
    """
    difference = stats[cell].harmful.mean - stats[cell].benign.mean
    scores = Scores(
        [cell], difference[None], None, method="mean_difference", n_params=stats.n_params,
        params_per_neuron=stats.params_per_neuron, site=stats.site,
    )  # fmt: skip
    return chosen(scores, cell, size=options)


# -- parts ------------------------------------------------------------------------------------------------
def _part(rule: str, name: str, value: float, *, of: int) -> int:
    """Whole neurons of a part, at least one if it is above 0."""
    count = int(value * of + 1e-9)
    if value and not count:
        raise InputError(f"select({rule!r}): {name}={value:g} of {of} neurons is less than one neuron")
    return count


def _difference(
    stats: Stats, cell: Cell, *, rule: str, method: str, parts: tuple[float, float], whole: bool = False
) -> Choice:
    """The top p on harmful prompts minus the top q on benign ones, per layer or of all layers together."""
    rank, against = METHODS[method](*stats[cell], columns_of(stats, method))
    assert against is not None
    shape = rank.shape
    if whole:
        rank, against = rank.reshape(1, -1), against.reshape(1, -1)
    names = ("rho", "rho") if rule == "precise_shield" else ("p", "q")
    count, less = (_part(rule, name, part, of=rank.shape[1]) for name, part in zip(names, parts, strict=True))
    mask, rank = per_layer(rank, against, count, less=less)
    return mask.reshape(shape), rank.reshape(shape)


def _intersection(choices: list[Choice]) -> Choice:
    """Neurons that are chosen in every cell, ranked by the worst of their places in their layer: 1 for the first, towards 0.

    Places are those among the neurons that can be chosen. A neuron that has a magnitude of 0 in a cell has no place there but by its
    index, and is ranked 0.
    """
    d_mlp = choices[0][0].shape[1]
    mask = np.logical_and.reduce([m for m, _ in choices])
    rank = 1 - np.max([places(rank) for _, rank in choices], axis=0) / d_mlp
    rank = np.where(np.logical_or.reduce([r == 0 for _, r in choices]), 0.0, rank)
    barred = np.logical_or.reduce([rank == -np.inf for _, rank in choices])
    return mask, np.where(barred, -np.inf, rank)
