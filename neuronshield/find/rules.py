r"""Published rules of selection, each by its name: `select("one_anchor", stats, rho=0.01)`.

A score ranks neurons; a **rule** says which of them are the set. Notation as in `scores`: m_h, m_b means of h over harmful and benign
prompts of a cell, c the norm of the neuron's column of W_down, d_mlp neurons a layer. top_k(x) are the k neurons of a layer with the
largest x.

    rule               the set of a cell                                                     options            source
    safeneuron         {d > tau} or {z > tau_z and m_h > m_b}; d effect size, z SAS          tau, tau_z = tau   SafeNeuron (2026)
    precise_shield     top_k(I_harmful) - top_k(I_benign), k = floor(rho d_mlp),             rho                Precise Shield (2026)
                       I = |m| c / its sum over the layer
    one_anchor         per language the precise_shield sets of all modalities intersected,   rho, modalities    One Anchor (2026)
                       then with those of English
    ss_neurons         top_k(J_harmful) - top_k(J_benign), k = floor(p d_mlp),               p = 0.03           SS-Neurons (2026)
                       J = E[h^2] c^2, intersected with the set of English
    set_difference     top_k(x_harmful) - top_j(x_benign), k = floor(p d_mlp),               p, q, method       Wei et al. (2024)
                       j = floor(q d_mlp), x of a score with a set difference
    global_difference  the same, largest of all layers together                              p, q, method       Wei et al. (2024)
    significance       Welch's t-test of m_h against m_b in two-sided form, for all          q                  Welch (1947); Benjamini
                       neurons of the cell, at false discovery rate q                                           and Hochberg (1995)
    mean_difference    largest |m_h - m_b|                                                   one size of        Arditi et al. (2024)
                                                                                             `Scores.top`

Papers that rank attention neurons too are restated for MLP neurons. SafeNeuron freezes its set and trains the rest
(`shield.variants.frozen_set_update`); Precise Shield and One Anchor train theirs by a LoRA on W_gate and W_up whose B is masked by rows
(`shield.variants.masked_lora`). `significance` counts tokens as independent: capture one token a prompt.

**Again.** Every set says in `provenance["selection"]` how it was chosen: a **leaf** with the rule, its cell, and its options or size.
`run_leaf` chooses by a leaf again, from other moments (such as those of shuffled labels), and `grown` is the same leaf with larger
sizes, for next ranks.

Sources: SafeNeuron, arXiv 2602.12158; Precise Shield, 2604.08881; One Anchor, 2607.27917; SS-Neurons, "Who Transfers Safety?",
2602.01283; Wei et al., "Assessing the Brittleness of Safety Alignment", 2402.05162; Arditi et al., "Refusal in Language Models Is Mediated by
a Single Direction", 2406.11717 (difference in means).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..core.arguments import one_of, require, unknown_keywords
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import MODALITIES, Cell
from . import choices
from .cells import CellSets
from .choices import ANCHOR, Options
from .groups import Stats
from .ranking import Choice
from .scores import METHODS, contrast, score_pairs
from .selection import SIZES, Scores, chosen
from .set_sizes import named_size, size_of

__all__ = ["RULES", "cells_read", "grown", "run_leaf", "select", "within"]


logger = logging.getLogger("neuronshield")

DIFFERENCES = ("precise_shield", "sn_tune", "wanda")  # scores with a ranking of their own for each label


# -- options ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Option:
    """A number that a rule takes.

    Attributes:
        says: what it is, with its range.
        least, most: its range; `least` itself is not allowed where `above` is true.
        default: without it; None if it has to be given.
        wider: what makes a set larger: 1 a larger number, -1 a smaller one.
    """

    says: str
    least: float = 0.0
    most: float = float(np.finfo(float).max)
    default: float | None = None
    above: bool = True
    wider: int = 1

    def check(self, call: str, name: str, value: Any) -> float:
        """The number, if it is one and in range."""
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not number or not self.least <= value <= self.most or (self.above and value == self.least):
            raise InputError(f"{call}: {name}={value!r:.40}: {self.says}")
        return float(value)

    def times(self, value: float, factor: float) -> float:
        """The number of a rule that chooses more, within its range."""
        return min(value * factor**self.wider, self.most)


PART = Option("a part of the neurons, above 0 and at most 1", most=1.0)
TAKEN = Option("a part of the neurons, 0 to 1", most=1.0, above=False)
THRESHOLD = Option("a threshold above 0", wider=-1)
LEVEL = Option("a false discovery rate, above 0 and at most 1", most=1.0)


@dataclass(frozen=True)
class Rule:
    """A rule and what it takes.

    Attributes:
        choose: from moments, a cell and options, which neurons are chosen and by what magnitude they are ranked.
        options: numbers by name.
        joins: whether a set joins several cells: those of English, and ("modalities") those of all modalities of a language.
    """

    choose: Callable[[Stats, Cell, Options], Choice]
    options: Mapping[str, Option]
    joins: str = ""


#: Every published rule by its name.
RULES: dict[str, Rule] = {
    "safeneuron": Rule(choices.safeneuron, {"tau": THRESHOLD, "tau_z": THRESHOLD}),
    "precise_shield": Rule(choices.precise_shield, {"rho": PART}),
    "one_anchor": Rule(choices.one_anchor, {"rho": PART}, joins="modalities"),
    "ss_neurons": Rule(choices.ss_neurons, {"p": Option(PART.says, most=1.0, default=0.03)}, joins="language"),
    "set_difference": Rule(choices.set_difference, {"p": PART, "q": TAKEN}),
    "global_difference": Rule(choices.global_difference, {"p": PART, "q": TAKEN}),
    "significance": Rule(choices.significance, {"q": LEVEL}),
    "mean_difference": Rule(choices.mean_difference, {}),
}
#: Options that are not numbers in a range.
OTHERS: dict[str, tuple[str, ...]] = {
    "one_anchor": ("modalities",),
    "set_difference": ("method",),
    "global_difference": ("method",),
    "mean_difference": SIZES,
}


# -- choosing by them -----------------------------------------------------------------------------------------
def select(rule: str, stats: Stats, **options: Any) -> CellSets:
    """The set that a published rule chooses in each cell.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> select("set_difference", stats, p=0.2, q=0.1)
    CellSets(en/text: ..., sw/text: ...)
    >>> select("ss_neurons", stats, p=0.2)["sw/text"] - select("ss_neurons", stats, p=0.2)["en/text"]
    NeuronSet(0 neurons in 0 layers)

    Args:
        rule: a name from `RULES`.
        stats: moments from `capture`.
        **options: of the rule, as in the table of this module. `tau`, `tau_z`: thresholds above 0. `rho`, `p`, `q`: parts of the
            neurons of a layer (global_difference: of all layers), rounded down to whole neurons, at least one; q = 0 takes nothing
            away. `q` of significance: the false discovery rate, 0 to 1. `method`: "precise_shield" (the default), "sn_tune" or "wanda". `modalities`: those that
            have to agree, ["text", "image"] by default; a language that lacks one has no set.

    Raises:
        InputError: an unknown rule or option, one that is missing or out of range, no cell with both labels, or no English cell for
            a rule that needs it.
    """
    require(rule, str, call="select(rule, stats)", name="rule", hint=f"one of {', '.join(RULES)}")
    one_of(rule, RULES, call="select", name="rule")
    require(stats, Stats, call="select(rule, stats)", name="stats", hint="capture makes them: capture(model, prompts)")
    given = _options(rule, options)
    cells = _cells(rule, stats, given)
    if rule == "significance" and stats.tokens != "last_prompt":
        logger.warning("select('significance'): tokens=%r counts several tokens of a prompt as independent, so more neurons pass than q "
                       "allows; capture(model, prompts, tokens='last_prompt') counts one a prompt", stats.tokens)  # fmt: skip
    sets = {}
    for cell in cells:
        leaf = {"rule": rule, "cell": str(cell), "options": given}
        mask, rank = RULES[rule].choose(stats, cell, given)
        if zeros := int((mask & (rank == 0)).sum()):
            logger.warning("select(%r): %s: %d of %d chosen neurons have a score of zero, and are selected by index order "
                           "(ties at zero)", rule, cell, zeros, mask.sum())  # fmt: skip
        sets[cell] = _set(leaf, stats, mask)
    return CellSets(sets)


def run_leaf(leaf: Mapping[str, Any], stats: Stats) -> tuple[NeuronSet, Float[np.ndarray, "n_layers d_mlp"]]:
    """The set that a leaf chooses from these moments, and the magnitude that its rule ranks by.

    The magnitude is -inf where the rule cannot choose a neuron: of the other sign, or among those that a set difference takes away.
    A size above the number of neurons there are takes all of them.

    >>> stats = ns.capture(model, prompts, progress=False)
    >>> neurons = ns.contrast(stats).top(k=8)["en/text"]
    >>> again, rank = run_leaf(neurons.provenance["selection"], stats)
    >>> again == neurons, rank.shape
    (True, (3, 29))

    Args:
        leaf: `provenance["selection"]` of a set of one rule in one cell.
        stats: moments from `capture`, or of the same shape.

    Raises:
        InputError: an unknown rule, a score that needs the model (attribution, snip, change_score), or a cell without both labels.
    """
    one_of(leaf.get("rule"), ["top", *RULES], call="run_leaf(leaf, stats)", name="rule")
    if leaf["rule"] == "top":
        scores = _leaf_scores(leaf, stats)
        mask, rank = chosen(scores, leaf["cell"], size=within(leaf["size"], stats), sign=leaf["sign"])
    else:
        mask, rank = RULES[leaf["rule"]].choose(stats, Cell.of(leaf["cell"]), within(leaf["options"], stats))
    return _set(leaf, stats, mask), rank


def grown(leaf: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The same leaf with larger sizes: sizes and parts are multiplied by a factor, thresholds divided by it.

    >>> grown({"rule": "top", "method": "sas", "cell": "en/text", "size": {"k": 5}, "sign": None}, 1.5)["size"]
    {'k': 8}
    >>> grown({"rule": "safeneuron", "cell": "en/text", "options": {"tau": 1.5, "tau_z": 3.0}}, 1.5)["options"]
    {'tau': 1.0, 'tau_z': 2.0}

    Args:
        leaf: as for `run_leaf`.
        factor: above 0; numbers of neurons are rounded up, and parts stop at 1.
    """
    name = "size" if leaf["rule"] == "top" else "options"
    known = {} if leaf["rule"] == "top" else RULES[leaf["rule"]].options
    return {**leaf, name: {key: _larger(key, value, factor, known=known) for key, value in leaf[name].items()}}


def cells_read(leaf: Mapping[str, Any]) -> list[str]:
    """Names of the cells that a leaf reads: its own, and those that a rule joins with it.

    >>> cells_read({"rule": "ss_neurons", "cell": "sw/text", "options": {"p": 0.03}})
    ['sw/text', 'en/text']

    Args:
        leaf: as for `run_leaf`.
    """
    cell = Cell.of(leaf["cell"])
    joins = RULES[leaf["rule"]].joins if leaf["rule"] != "top" else ""
    languages = [cell.language, ANCHOR] if joins else [cell.language]
    modalities = leaf["options"]["modalities"] if joins == "modalities" else [cell.modality]
    return list(dict.fromkeys(str(Cell(language, m)) for language in languages for m in modalities))


def within(sizes: Mapping[str, Any], stats: Stats) -> dict[str, Any]:
    """Sizes of `Scores.top`, each the largest there is where it asks for more neurons than there are.

    >>> within({"per_layer": 40}, ns.capture(model, prompts, progress=False))
    {'per_layer': 29}

    Args:
        sizes: by name; other names stay as they are.
        stats: tells how many neurons there are.
    """
    n = stats.n_layers * stats.d_mlp
    most = {
        "k": n,
        "per_layer": stats.d_mlp,
        "fraction": 1.0,
        "param_fraction": n * stats.params_per_neuron / stats.n_params,
    }
    return {name: min(value, most[name]) if name in most else value for name, value in sizes.items()}


# -- parts ------------------------------------------------------------------------------------------------
def _options(rule: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a rule as JSON can hold them, each checked, with what is left out filled in."""
    call, known = f"select({rule!r})", RULES[rule].options
    names = [*known, *OTHERS.get(rule, ())]
    unknown_keywords(given, names, call)
    out: dict[str, Any] = {}
    for name, option in known.items():
        default = out["tau"] if name == "tau_z" else option.default
        if name not in given and default is None:
            raise InputError(f"{call}: give {name}=, {option.says}; its options are {', '.join(names)}")
        out[name] = option.check(call, name, given.get(name, default))
    if rule == "mean_difference":
        name, value = named_size(call, {size: given.get(size) for size in SIZES})
        out[name] = size_of(f"{call}: top", name, value)
    if "method" in OTHERS.get(rule, ()):
        out["method"] = given.get("method", DIFFERENCES[0])
        one_of(out["method"], DIFFERENCES, call=call, name="method")
    if rule == "one_anchor":
        out["modalities"] = _modalities(call, given.get("modalities", ("text", "image")))
    return out


def _modalities(call: str, given: Any) -> list[str]:
    """Different modalities, in the order of `MODALITIES`, so that the order in which they are given changes nothing."""
    names = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for name in names:
        one_of(name, MODALITIES, call=call, name="modalities")
    if len(found := [name for name in MODALITIES if name in names]) < 2:
        raise InputError(f"{call}: modalities={given!r:.60}: give at least two, as in ['text', 'image']")
    return found


def _cells(rule: str, stats: Stats, options: Options) -> list[Cell]:
    """The cells that the rule has a set for."""
    cells = stats.cells()
    if not cells:
        raise InputError(f"select({rule!r}): no cell has both harmful and benign prompts")
    joins = RULES[rule].joins
    if joins == "language":
        cells = [cell for cell in cells if Cell(ANCHOR, cell.modality) in cells]
    if joins == "modalities":
        full = {c.language for c in cells if {Cell(c.language, m) for m in options["modalities"]} <= set(cells)}
        cells = [c for c in cells if ANCHOR in full and c.language in full and c.modality in options["modalities"]]
    if not cells:
        wanted = ", ".join(f"{ANCHOR}/{m}" for m in options["modalities"]) if joins == "modalities" else f"{ANCHOR}/..."
        known = ", ".join(map(str, stats.cells()))
        raise InputError(
            f"select({rule!r}): intersects with English: needs {wanted} with both labels; there are {known}"
        )
    return cells


def _set(leaf: Mapping[str, Any], stats: Stats, mask: np.ndarray) -> NeuronSet:
    """The neurons of a mask, with their provenance."""
    read = cells_read(leaf)
    about = {
        "method": leaf.get("method", leaf["rule"]), "cell": read[0] if len(read) == 1 else read,
        "size": dict(leaf.get("size") or leaf["options"]), "selection": dict(leaf),
    }  # fmt: skip
    n_layers, d_mlp = mask.shape
    given = {**stats.provenance, **about}
    return NeuronSet(np.argwhere(mask), n_layers=n_layers, d_mlp=d_mlp, provenance=given, site=stats.site)


def _leaf_scores(leaf: Mapping[str, Any], stats: Stats) -> Scores:
    """Scores of the cell of a leaf of `Scores.top`."""
    method, cell = leaf["method"], Cell.of(leaf["cell"])
    if method == "lape":
        return contrast(stats, method="lape")
    if method not in METHODS:
        raise InputError(f"selection by {method!r} needs the model: moments are not enough to repeat it")
    return score_pairs(stats, [cell], pairs=[stats[cell]], method=method)


def _larger(name: str, value: Any, factor: float, *, known: Mapping[str, Option]) -> Any:
    """One size or option of a leaf, grown."""
    if name in known:
        return known[name].times(value, factor)
    if name in SIZES:
        return math.ceil(value * factor) if name in ("k", "per_layer") else value * factor
    return value
