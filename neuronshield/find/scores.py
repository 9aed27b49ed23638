"""Contrast: which neurons tell harmful from benign, scored from moments alone.

With m_h, m_b a neuron's mean over harmful and benign prompts of one cell (language x modality), s their
pooled deviation and c_i = ||W_down[:, i]||_2 the length of what the neuron writes:

    effect_size      (m_h - m_b) / s                   how *separable* the two are (Cohen's d)
    sas              z-score of m_h - m_b in its layer how far it stands out among its neighbours
    contribution     |m_h - m_b| * c_i                 how much the residual stream *moves*
    cett             mean share of the MLP's output    how much of it the neuron *is*, harmful minus benign
    precise_shield   I_i(D) = |mean_D h_i| * c_i       the paper's importance, one ranking per label
    sn_tune          min_D |h_i| * c_i                 important on *every* prompt, one ranking per label
    wanda            ||W_down[:, i]||_1 * rms_D h_i    the pruning score, one ranking per label
    lape             entropy over languages            which *language* a neuron serves: to take away, not to choose

They disagree, and the choice decides what a later update costs; none of them shows that a neuron
does anything (`verify` does). Scoring costs nothing once moments are captured. Three more need the model itself:
`attribution`, `snip` and `change_score`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell
from .moments import Moments, Stats

__all__ = ["METHODS", "Columns", "Scores", "contrast", "language_entropy"]


logger = logging.getLogger("neuronshield")


Array = np.ndarray


class Columns(NamedTuple):
    """Norms of the columns of W_down, [n_layers, d_mlp] each."""

    l2: Array
    l1: Array


def effect_size(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """Cohen's d: (m_h - m_b) / s with s^2 = ((n_h-1) s_h^2 + (n_b-1) s_b^2) / (n_h + n_b - 2).

    Signed; ranked by magnitude. A neuron that never varies scores 0.
    Source: Cohen (1988); "ES" in SafeNeuron (2026).
    """
    freedom = max(harmful.n + benign.n - 2, 1)
    pooled = np.sqrt((harmful.m2 + benign.m2) / freedom)
    difference = harmful.mean - benign.mean
    return np.divide(difference, pooled, out=np.zeros_like(difference), where=pooled > 0), None


def sas(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """Safety activation shift: the z-score of m_h - m_b among the neurons of its layer.

    Source: SafeNeuron (2026), "SAS".
    """
    shift = harmful.mean - benign.mean
    spread = shift.std(axis=-1, keepdims=True)
    centred = shift - shift.mean(axis=-1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(shift), where=spread > 0), None


def cett(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """E_harmful - E_benign of CETT_i = ||W_down[:, i] h_i||_2 / ||MLP output||_2.

    Source: Zhang et al. (2024), arXiv 2402.03804; as a neuron score, Gao et al. (2025), "H-Neurons".
    """
    return (harmful.share - benign.share) * columns.l2, None


def sn_tune(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """min over harmful prompts of ||MLP without i - MLP||_2 = |h_i| c_i; the same on benign prompts is taken away.

    Neurons above a threshold on *every* harmful prompt are those whose minimum is above it; taking the benign ones
    ("foundation neurons") away is their robust variant.
    Source: Zhao et al. (2025), "Safety-Specific Neuron", SN-Tune and RSN-Tune.
    """
    return harmful.least * columns.l2, benign.least * columns.l2


def wanda(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """Sum over a neuron's outgoing weights of |W| * rms(h) on harmful prompts; the same on benign ones is taken away.

    Source: Sun et al. (2023), "Wanda"; its set difference for safety, Wei et al. (2024), arXiv 2402.05162.
    """

    def importance(moments: Moments) -> Array:
        return columns.l1 * np.sqrt(moments.m2 / moments.n + moments.mean**2)

    return importance(harmful), importance(benign)


def contribution(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """|m_h - m_b| * c_i: how far the neuron moves the residual stream between the two labels.

    Source: the contribution measure of Precise Shield (2026), applied to the difference of means.
    """
    return np.abs(harmful.mean - benign.mean) * columns.l2, None


def precise_shield(harmful: Moments, benign: Moments, columns: Columns) -> tuple[Array, Array | None]:
    """Importance on harmful prompts, and on benign prompts as what is subtracted.

    I_i(D) = |mean_D h_i| * c_i, normalised to sum 1 within the layer. The safety neurons of a layer are
    the top k of I(harmful) minus the top k of I(benign): a set difference, so `Scores.top` needs both.
    Source: Precise Shield (2026), neuron importance and its harmful-minus-benign rule.
    """

    def importance(moments: Moments) -> Array:
        raw = np.abs(moments.mean) * columns.l2
        total = raw.sum(axis=-1, keepdims=True)
        return np.divide(raw, total, out=np.zeros_like(raw), where=total > 0)

    return importance(harmful), importance(benign)


METHODS: dict[str, Callable[[Moments, Moments, Columns], tuple[Array, Array | None]]] = {
    method.__name__: method for method in (contribution, effect_size, sas, cett, precise_shield, sn_tune, wanda)
}


@dataclass
class Scores:
    """Scores of every neuron in every cell.

    Attributes:
        cells: what the first axis counts.
        values: the score; neurons are ranked by its magnitude.
        against: for methods with a set difference, the ranking whose top k is taken away.
        method: name of the formula in `METHODS`.
    """

    cells: list[Cell]
    values: Float[Array, "cell n_layers d_mlp"]
    against: Float[Array, "cell n_layers d_mlp"] | None
    method: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def top(
        self,
        *,
        k: int | None = None,
        fraction: float | None = None,
        per_layer: int | None = None,
        param_fraction: float | None = None,
    ) -> dict[Cell, NeuronSet]:
        """The best neurons of each cell, for exactly one size.

        >>> scores.top(k=64)[Cell("en", "text")]               # doctest: +SKIP
        NeuronSet(64 neurons in 5 layers)

        Args:
            k: neurons in all.
            fraction: share of all MLP neurons.
            per_layer: neurons from each layer (for `precise_shield`, before the subtraction).
            param_fraction: share of the model's parameters that the neurons own (3e-4 in the paper).

        Where too few neurons have a score above zero, or a set difference leaves too few, a warning says so.

        Raises:
            InputError: none or several sizes given, or one that buys no neuron or more than there are.
        """
        sizes = {"k": k, "fraction": fraction, "per_layer": per_layer, "param_fraction": param_fraction}
        given = {name: value for name, value in sizes.items() if value is not None}
        if len(given) != 1:
            raise InputError(f"top(): give exactly one of k, fraction, per_layer, param_fraction (got {len(given)})")
        ((name, value),) = given.items()
        count = self._count(name, value)
        out = {}
        for i, cell in enumerate(self.cells):
            rank = np.abs(self.values[i])
            against = None if self.against is None else np.abs(self.against[i])
            chosen = _per_layer(rank, against, count) if name == "per_layer" else _overall(rank, against, count)
            if name != "per_layer" and chosen.sum() < count:
                logger.warning("top(%s=%s): %s has only %d neurons to give", name, value, cell, chosen.sum())
            if nothing := int((chosen & (rank == 0)).sum()):
                logger.warning("top(%s=%s): %s: %d of %d chosen neurons have a score of zero, and are there by address",
                               name, value, cell, nothing, chosen.sum())  # fmt: skip
            out[cell] = NeuronSet(
                zip(*np.nonzero(chosen), strict=True),
                n_layers=rank.shape[0],
                d_mlp=rank.shape[1],
                provenance={
                    **self.provenance,
                    "method": self.method,
                    "cell": str(cell),
                    "size": {name: value},
                },
            )
        return out

    def _count(self, name: str, value: float) -> int:
        n_layers, d_mlp = self.values.shape[1:]
        if not np.isfinite(value):
            raise InputError(f"top({name}={value}): give a number")
        limit = d_mlp if name == "per_layer" else n_layers * d_mlp
        if name == "fraction":
            count = int(value * n_layers * d_mlp + 1e-9)
        elif name == "param_fraction":
            count = int(value * self.n_params / self.params_per_neuron + 1e-9)
        else:
            count = int(value)
        if not 1 <= count <= limit:
            least = self.params_per_neuron / self.n_params
            hint = f"; one neuron is {least:.2e} of the parameters" if name == "param_fraction" else ""
            raise InputError(f"top({name}={value}): that is {count} neurons, must be 1 to {limit}{hint}")
        return count

    def to_frame(self, *, k: int = 20) -> pd.DataFrame:
        """The k best neurons of each cell as rows (cell, rank, layer, index, score)."""
        import pandas as pd

        rows = []
        for i, cell in enumerate(self.cells):
            flat = np.argsort(-np.abs(self.values[i]), axis=None, kind="stable")[:k]
            for rank, (layer, index) in enumerate(zip(*np.unravel_index(flat, self.values[i].shape), strict=True), 1):
                rows.append((str(cell), rank, int(layer), int(index), float(self.values[i, layer, index])))
        return pd.DataFrame(rows, columns=["cell", "rank", "layer", "index", self.method])

    def figure(self, *, k: int = 64) -> go.Figure:
        """Heatmap of how many of each cell's k best neurons lie in each layer."""
        from ..figures import layers

        sets = self.top(k=min(k, self.values[0].size))
        n_layers = self.values.shape[1]
        counts = np.array([[sets[c].per_layer().get(i, 0) for i in range(n_layers)] for c in self.cells])
        return layers(counts, [str(c) for c in self.cells], method=self.method)

    def _repr_html_(self) -> str:
        return f"<p><b>Scores</b>: {self.method}, {len(self.cells)} cells</p>{self.to_frame(k=3).to_html(index=False)}"

    def __repr__(self) -> str:
        _, n_layers, d_mlp = self.values.shape
        return f"Scores({self.method}, {len(self.cells)} cells, {n_layers} x {d_mlp} neurons)"


def contrast(stats: Stats, *, method: str = "contribution") -> Scores:
    """Score every neuron in every cell that has both labels.

    >>> contrast(stats, method="effect_size").values.shape     # doctest: +SKIP
    (30, 6, 640)

    Args:
        method: one of `METHODS`, or "lape": log(languages) - entropy for the neurons that the cell's language activates,
            so that the most language-bound ones are `top` (take them away from a safety set with `-`).

    Raises:
        InputError: unknown method, or no cell with both labels; for "lape", fewer than two languages.
    """
    if method == "lape":
        cells = list(dict.fromkeys(g.cell for g in stats.groups))
        return _scores(stats, cells, language_bound(stats, cells), None, "lape")
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown; use one of {', '.join([*METHODS, 'lape'])}")
    return contrast_groups(stats, [(cell, None) for cell in _contrastable(stats)], method)


def _contrastable(stats: Stats) -> list[Cell]:
    cells = stats.cells()
    if not cells:
        raise InputError("contrast: no cell has both harmful and benign prompts; a contrast needs both")
    return cells


def contrast_groups(stats: Stats, groups: list[tuple[Cell, int | None]], method: str) -> Scores:
    """`contrast` over chosen (cell, half) groups; half None is the whole cell."""
    pairs = [(stats.moments("harmful", cell, half), stats.moments("benign", cell, half)) for cell, half in groups]
    return score_pairs(stats, [cell for cell, _ in groups], pairs, method)


def score_pairs(stats: Stats, cells: list[Cell], pairs: list[tuple[Moments, Moments]], method: str) -> Scores:
    """Apply a method's formula to (harmful, benign) moments, one pair a cell."""
    if method not in METHODS:
        more = "; 'lape' has no pairs of labels to compare" if method == "lape" else ""
        raise InputError(f"method={method!r} is unknown here; use one of {', '.join(METHODS)}{more}")
    columns = Columns(stats.down_norms, stats.down_l1)
    results = [METHODS[method](harmful, benign, columns) for harmful, benign in pairs]
    against = [a for _, a in results if a is not None]
    return _scores(stats, cells, np.stack([v for v, _ in results]), np.stack(against) if against else None, method)


def _scores(stats: Stats, cells: list[Cell], values: Array, against: Array | None, method: str) -> Scores:
    return Scores(
        cells,
        values,
        against,
        method,
        stats.n_params,
        stats.params_per_neuron,
        stats.provenance,
    )


def language_entropy(stats: Stats) -> Float[Array, "n_layers d_mlp"]:
    """LAPE: entropy over languages of how often a neuron is active, P(h > 0 | language); low means language-bound.

    Neurons that no language activates often (no P in the top 5 % of all P) say nothing about language: infinity.

    Raises:
        InputError: fewer than two languages.

    Source: Tang et al. (2024), "Language-Specific Neurons", eq. 4 and section 2.2.
    """
    rates = language_rates(stats)
    active = np.stack(list(rates.values()))
    total = active.sum(axis=0, keepdims=True)
    share = np.divide(active, total, out=np.zeros_like(active), where=total > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=0)
    most = active.max(axis=0)  # >=, for many rates may be 1; a neuron that is never active is bound to no language
    return np.where((most >= np.quantile(active, ACTIVE)) & (most > 0), entropy, np.inf)


ACTIVE = 0.95  # quantile of all activation rates above which a language activates a neuron


def language_rates(stats: Stats) -> dict[str, Float[Array, "n_layers d_mlp"]]:
    """P(h > 0 | language) of every neuron."""
    languages = list(dict.fromkeys(g.language for g in stats.groups))
    if len(languages) < 2:
        raise InputError("lape: needs prompts in at least two languages")
    rates = {}
    for language in languages:
        mine = [m for g, m in stats.groups.items() if g.language == language]
        rates[language] = sum(m.n * m.positive for m in mine) / sum(m.n for m in mine)
    return rates  # type: ignore[return-value]


def language_bound(stats: Stats, cells: list[Cell]) -> Float[Array, "cell n_layers d_mlp"]:
    """log(languages) - LAPE where the cell's language activates the neuron, else 0: large means bound to it."""
    rates = language_rates(stats)
    entropy = language_entropy(stats)
    bound = np.where(np.isfinite(entropy), np.log(len(rates)) - entropy, 0.0)
    often = np.quantile(np.stack(list(rates.values())), ACTIVE)
    return np.stack([np.where((rates[c.language] >= often) & (rates[c.language] > 0), bound, 0.0) for c in cells])


def _top_mask(rank: Array, count: int) -> Array:
    """Mask of the `count` largest entries; ties go to the lower address, so runs repeat."""
    mask = np.zeros(rank.size, dtype=bool)
    mask[np.argsort(-rank, axis=None, kind="stable")[:count]] = True
    return mask.reshape(rank.shape)


def _per_layer(rank: Array, against: Array | None, count: int) -> Array:
    chosen = np.stack([_top_mask(row, count) for row in rank])
    if against is not None:
        chosen &= ~np.stack([_top_mask(row, count) for row in against])
    return chosen


def _overall(rank: Array, against: Array | None, count: int) -> Array:
    """The `count` best of all layers; with a subtraction, the smallest per-layer k that leaves so many."""
    if against is None:
        return _top_mask(rank, count)
    for k in range(1, rank.shape[1] + 1):
        left = _per_layer(rank, against, k)
        if left.sum() >= count:
            return _top_mask(np.where(left, rank, -1.0), count)
    sizes = [int(_per_layer(rank, against, k).sum()) for k in range(1, rank.shape[1] + 1)]
    return _per_layer(rank, against, int(np.argmax(sizes)) + 1)
