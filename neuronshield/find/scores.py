r"""Scores: which neurons respond differently to harmful and to benign requests?

**The question.** A model that refuses "How do I make a bomb?" and answers "How do I make a cake?" must tell the two apart
somewhere. A score gives every MLP neuron a number for how strongly its activation does so, in one cell (a language in one
modality). A high score is a correlation. It does not show that the neuron acts on refusal; `verify` tests that.

**Notation.** For neuron i of layer l, in one cell, over the tokens that `capture` counted (by default the last
prompt token of each prompt):

    h          activation: input of the down-projection, act(W_gate x) * (W_up x)
    m_h, m_b   mean of h over harmful and benign prompts;  s_h, s_b standard deviations;  n_h, n_b tokens
    s          pooled standard deviation of h (see `effect_size`)
    c          ||W_down[:, i]||_2, the length of what the neuron writes into the residual stream per unit of h

**Scores.** Each is computed from the moments of `capture`, without the model:

    contribution     |m_h - m_b| c                             shift of the residual stream between the labels
    effect_size      (m_h - m_b) / s                           separation of the labels (Cohen's d)
    sas              z-score of m_h - m_b among its layer      shift compared with other neurons of the layer
    cett             mean over harmful minus mean over benign prompts of ||W_down[:, i] h|| / ||MLP output||
    precise_shield   |mean h| c / its sum over the layer        importance, harmful minus benign as sets
    sn_tune          min |h| c                                 importance on every prompt, harmful minus benign as sets
    wanda            ||W_down[:, i]||_1 rms(h)                 pruning score, harmful minus benign as sets
    lape             entropy over languages of P(h > 0)        language neurons, to be taken away from a set

`Scores.difference` holds m_h - m_b beside every score, so that `top(sign="harmful")` can take the neurons that are larger on harmful
prompts, and "benign" the others.

The first four give one signed or absolute value, ranked by magnitude. "As sets" means two rankings, one a label: the chosen
neurons are the top k of the harmful ranking minus the top k of the benign one (`selection`).

**Which one?** They select different neurons. effect_size ignores how much a neuron writes, so it also finds neurons that
write almost nothing; contribution weights by it. Scores that need the model itself are `attribution`, `baselines.snip` and
`baselines.change_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from ..core.arguments import one_of, require
from ..core.display import own_names
from ..core.errors import InputError
from ..data.prompts import Cell
from .groups import Moments, Stats
from .selection import Scores

__all__ = ["METHODS", "Columns", "Scores", "contrast", "language_entropy"]


Layers: TypeAlias = Float[np.ndarray, "n_layers d_mlp"]
#: A score of every neuron, and what is taken away as a set (None without a set difference).
Ranking: TypeAlias = tuple[Float[np.ndarray, "n_layers d_mlp"], Float[np.ndarray, "n_layers d_mlp"] | None]


class Columns(NamedTuple):
    """Norms of the columns of W_down.

    Args:
        l2: c = ||W_down[:, i]||_2, [n_layers, d_mlp].
        l1: ||W_down[:, i]||_1, [n_layers, d_mlp].
    """

    l2: Layers
    l1: Layers

    def __dir__(self) -> list[str]:
        return own_names(self)


# -- the formulas ---------------------------------------------------------------------------------------
def contribution(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """|m_h - m_b| c: how far the neuron moves the residual stream between the two labels.

    >>> one = Columns(l2=np.full((1, 1), 2.0), l1=np.full((1, 1), 3.0))
    >>> h, b = (Moments.of(np.array(x).reshape(-1, 1, 1)) for x in ([1.0, 3.0], [-1.0, 1.0]))
    >>> contribution(h, b, one)[0].item()
    4.0

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: norms of the columns of W_down.

    Source: the contribution measure of Precise Shield (2026), applied to the difference of means.
    """
    return np.abs(harmful.mean - benign.mean) * columns.l2, None


def effect_size(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """(m_h - m_b) / s with s^2 = ((n_h - 1) s_h^2 + (n_b - 1) s_b^2) / (n_h + n_b - 2): Cohen's d, signed.

    A neuron that never varies scores 0.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> columns = Columns(l2=stats.down_norms, l1=stats.down_l1)
    >>> effect_size(*stats["en/text"], columns)[0].shape
    (3, 29)

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: not used.

    Source: Cohen (1988), "Statistical power analysis", section 2.5; "ES" in SafeNeuron (2026).
    """
    freedom = max(harmful.n + benign.n - 2, 1)
    pooled = np.sqrt((harmful.m2 + benign.m2) / freedom)
    difference = harmful.mean - benign.mean
    return np.divide(difference, pooled, out=np.zeros_like(difference), where=pooled > 0), None


def sas(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """(d - mean d) / std d with d = m_h - m_b, over the neurons of a layer: the safety activation shift, signed.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> columns = Columns(l2=stats.down_norms, l1=stats.down_l1)
    >>> bool(np.allclose(sas(*stats["en/text"], columns)[0].mean(axis=1), 0))     # a z-score in each layer
    True

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: not used.

    Source: SafeNeuron (2026), "SAS".
    """
    shift = harmful.mean - benign.mean
    spread = shift.std(axis=-1, keepdims=True)
    centred = shift - shift.mean(axis=-1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(shift), where=spread > 0), None


def cett(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """E_harmful - E_benign of CETT_i = ||W_down[:, i] h||_2 / ||MLP output||_2: part of the MLP's output, signed.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> columns = Columns(l2=stats.down_norms, l1=stats.down_l1)
    >>> cett(*stats["en/text"], columns)[0].shape
    (3, 29)

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: norms of the columns of W_down.

    Source: Zhang et al. (2024), arXiv 2402.03804; as a score of neurons, Gao et al. (2025), "H-Neurons".
    """
    return (harmful.share - benign.share) * columns.l2, None


def precise_shield(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """I_i(D) = |mean_D h| c / sum over the layer, on harmful prompts; the same on benign prompts is taken away.

    The safety neurons of a layer are the top k of I(harmful) minus the top k of I(benign), k = floor(rho d_mlp).

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> columns = Columns(l2=stats.down_norms, l1=stats.down_l1)
    >>> importance, against = precise_shield(*stats["en/text"], columns)
    >>> importance.sum(axis=1).round(6).tolist()
    [1.0, 1.0, 1.0]

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: norms of the columns of W_down.

    Source: Precise Shield (2026), neuron importance and its harmful-minus-benign rule.
    """

    def importance(moments: Moments) -> Layers:
        raw = np.abs(moments.mean) * columns.l2
        total = raw.sum(axis=-1, keepdims=True)
        return np.divide(raw, total, out=np.zeros_like(raw), where=total > 0)

    return importance(harmful), importance(benign)


def sn_tune(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """min over harmful prompts of ||MLP without i - MLP||_2 = |h| c; the same on benign prompts is taken away.

    Neurons above a threshold on *every* harmful prompt are those whose minimum is above it. Taking away those of benign
    prompts ("foundation neurons") is the robust variant.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> columns = Columns(l2=stats.down_norms, l1=stats.down_l1)
    >>> importance, against = sn_tune(*stats["en/text"], columns)
    >>> importance.shape, against.shape
    ((3, 29), (3, 29))

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: norms of the columns of W_down.

    Source: Zhao et al. (2025), "Safety-Specific Neuron", SN-Tune and RSN-Tune.
    """
    return harmful.least * columns.l2, benign.least * columns.l2


def wanda(harmful: Moments, benign: Moments, columns: Columns) -> Ranking:
    """Sum over the outgoing weights W of |W| rms(h), on harmful prompts; the same on benign prompts is taken away.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> columns = Columns(l2=stats.down_norms, l1=stats.down_l1)
    >>> importance, against = wanda(*stats["en/text"], columns)
    >>> importance.shape, against.shape
    ((3, 29), (3, 29))

    Args:
        harmful: moments on harmful prompts.
        benign: moments on benign prompts.
        columns: norms of the columns of W_down.

    Source: Sun et al. (2023), "Wanda"; its set difference for safety, Wei et al. (2024), arXiv 2402.05162.
    """

    def importance(moments: Moments) -> Layers:
        return columns.l1 * np.sqrt(moments.m2 / moments.n + moments.mean**2)

    return importance(harmful), importance(benign)


METHODS: dict[str, Callable[[Moments, Moments, Columns], Ranking]] = {
    method.__name__: method for method in (contribution, effect_size, sas, cett, precise_shield, sn_tune, wanda)
}
ANY_SITE = ("effect_size", "sas", "lape")  # read no column of W_down


def columns_of(stats: Stats, method: str) -> Columns:
    """Norms of the columns of W_down, for a method that may read them.

    >>> columns_of(ns.capture(model, prompts, progress=False), "contribution").l2.shape
    (3, 29)

    Args:
        stats: moments from `capture`.
        method: name of a score or a rule.

    Raises:
        InputError: it reads columns, which only neurons own, and the moments are of another site.
    """
    if stats.site != "neuron" and method not in ANY_SITE:
        others = f"use {', '.join(ANY_SITE)}, or select's safeneuron, significance, mean_difference"
        raise InputError(f"{method}: reads columns of W_down; numbers at site {stats.site!r} own none; {others}")
    return Columns(l2=stats.down_norms, l1=stats.down_l1)


# -- the score of every neuron in every cell ---------------------------------------------------------------
def contrast(stats: Stats, method: str = "contribution") -> Scores:
    """Scores of every neuron in every cell that has both labels.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> contrast(stats, method="effect_size").values.shape     # 2 cells, 3 layers, 29 neurons a layer
    (2, 3, 29)

    Args:
        stats: moments from `capture`.
        method: a name from `METHODS`, or "lape": log(languages) - entropy for the neurons that the cell's language
            activates, so that `top` takes the most language-specific ones (subtract them from a set with `-`).

    Raises:
        InputError: no `Stats`, unknown method, as `columns_of`, or no cell with both labels; for "lape", fewer than two languages.
    """
    hint = "capture makes them: contrast(capture(model, prompts))"
    require(stats, Stats, call="contrast(stats)", name="stats", hint=hint)
    one_of(method, [*METHODS, "lape"], call="contrast", name="method")
    if method == "lape":
        cells = list(dict.fromkeys(g.cell for g in stats.groups))
        pairs = [stats[cell] for cell in cells] if set(cells) <= set(stats.cells()) else None
        rankings: list[Ranking] = [(value, None) for value in language_bound(stats, cells)]
        return _scores(stats, cells, rankings=rankings, pairs=pairs, method="lape")
    cells = stats.cells()
    if not cells:
        raise InputError("contrast: no cell has both harmful and benign prompts; a contrast needs both")
    return score_pairs(stats, cells, pairs=[stats[cell] for cell in cells], method=method)


def score_pairs(stats: Stats, cells: list[Cell], *, pairs: list[tuple[Moments, Moments]], method: str) -> Scores:
    """Scores from chosen (harmful, benign) moments, one pair a cell.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> benign = [(stats.moments("benign", "en/text"), stats.moments("benign", "sw/text"))]     # no harm: languages
    >>> score_pairs(stats, stats.cells()[:1], pairs=benign, method="sas")
    Scores(sas, 1 cell, 3 x 29 neurons)

    Args:
        stats: norms of the weights, and provenance.
        cells: name of each pair.
        pairs: moments that stand for harmful and for benign prompts.
        method: a name from `METHODS`.

    Raises:
        InputError: unknown method.
    """
    one_of(method, METHODS, call="contrast of pairs", name="method")
    rankings = [METHODS[method](harmful, benign, columns_of(stats, method)) for harmful, benign in pairs]
    return _scores(stats, cells, rankings=rankings, pairs=pairs, method=method)


def _scores(
    stats: Stats,
    cells: list[Cell],
    *,
    rankings: list[Ranking],
    pairs: Sequence[tuple[Moments, Moments]] | None,
    method: str,
) -> Scores:
    against = [a for _, a in rankings if a is not None]
    return Scores(
        cells=cells,
        values=np.stack([value for value, _ in rankings]),
        against=np.stack(against) if against else None,
        method=method,
        n_params=stats.n_params,
        params_per_neuron=stats.params_per_neuron,
        provenance=stats.provenance,
        difference=None if pairs is None else np.stack([harmful.mean - benign.mean for harmful, benign in pairs]),
        site=stats.site,
    )


# -- languages --------------------------------------------------------------------------------------------
ACTIVE = 0.95  # quantile of all activation rates above which a language activates a neuron


def language_rates(stats: Stats) -> dict[str, Float[np.ndarray, "n_layers d_mlp"]]:
    """P(h > 0 | language) of every neuron, by language.

    >>> rates = language_rates(ns.capture(model, prompts, progress=False))
    >>> list(rates), rates["en"].shape
    (['en', 'sw'], (3, 29))

    Args:
        stats: moments from `capture`.

    Raises:
        InputError: fewer than two languages.
    """
    languages = list(dict.fromkeys(g.language for g in stats.groups))
    if len(languages) < 2:
        raise InputError("lape: needs prompts in at least two languages")
    rates = {}
    for language in languages:
        mine = [m for g, m in stats.groups.items() if g.language == language]
        rates[language] = np.sum([m.n * m.positive for m in mine], axis=0) / sum(m.n for m in mine)
    return rates


def language_entropy(stats: Stats) -> Float[np.ndarray, "n_layers d_mlp"]:
    """LAPE, the entropy over languages of P(h > 0 | language) normalised to sum 1: low means language-specific.

    Neurons that no language activates often (no P in the top 5 % of all P) say nothing about language: infinity.

    >>> language_entropy(ns.capture(model, prompts, progress=False)).shape
    (3, 29)

    Args:
        stats: moments from `capture`.

    Raises:
        InputError: fewer than two languages.

    Source: Tang et al. (2024), "Language-Specific Neurons", eq. 4 and section 2.2.
    """
    require(
        stats, Stats, call="language_entropy(stats)", name="stats", hint="capture makes them: capture(model, prompts)"
    )
    active = np.stack(list(language_rates(stats).values()))
    total = active.sum(axis=0, keepdims=True)
    share = np.divide(active, total, out=np.zeros_like(active), where=total > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=0)
    most = active.max(axis=0)  # >=, for many rates may be 1; a neuron that is never active belongs to no language
    return np.where((most >= np.quantile(active, ACTIVE)) & (most > 0), entropy, np.inf)


def language_bound(stats: Stats, cells: list[Cell]) -> Float[np.ndarray, "cell n_layers d_mlp"]:
    """log(languages) - LAPE where the cell's language activates the neuron, else 0: large means language-specific.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> language_bound(stats, stats.cells()).shape
    (2, 3, 29)

    Args:
        stats: moments from `capture`.
        cells: rows of the result.

    Raises:
        InputError: fewer than two languages.
    """
    rates = language_rates(stats)
    entropy = language_entropy(stats)
    bound = np.where(np.isfinite(entropy), np.log(len(rates)) - entropy, 0.0)
    often = np.quantile(np.stack(list(rates.values())), ACTIVE)
    return np.stack([np.where((rates[c.language] >= often) & (rates[c.language] > 0), bound, 0.0) for c in cells])
