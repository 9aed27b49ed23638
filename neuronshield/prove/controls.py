"""Control sets: other sets of neurons that a claim about a set must exceed.

    random      any neurons of the same layers                                            drawn
    matched     neurons of similar mean |h| and of similar norm of their W_down column    drawn
    permuted    what the set's own selection selects on shuffled labels                   drawn
    next rank   what the set's own selection selects next                                 one set
    general     the largest mean contribution on benign prompts                           one set
    language    the most language-bound neurons (LAPE)                                    one set

Each has as many neurons as the set. `random`, `matched`, `general` and `language` have as many per layer, and none of its members.

`permuted` runs the whole selection again (`find.reselection`), and may select members of the set: a set that was itself selected on
shuffled labels is then one more draw, and exceeds its controls at the nominal rate only. `next rank` is what the same rule
selects when its sizes are doubled, without the set. Both are selected over all layers, as the set was. Where the selection is not
known or cannot be run again, they are "permuted (contribution)" and "next rank (contribution)": the largest contributions
(`find.scores`) in the cells of the set, without its members. `Controls.missing` says why.

The last four select on prompts: the "discover" rows where there are any, otherwise the prompts of the test itself, which
favours the controls.

Source: Phipson and Smyth (2010), permutation p-values.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float

from ..core.arguments import check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell, PromptSet
from ..find.moments import Stats, capture
from ..find.reselection import Selection, leaves, pooled, selection_of
from ..find.scores import language_entropy
from ..model.model import Model
from ..model.places import width_of

__all__ = ["Controls", "Seed", "Source", "control_sets", "drawn_like", "matched_like", "random_like"]

#: Anything `numpy.random.default_rng` takes; a Generator goes on from its state.
Seed = int | Sequence[int] | np.random.Generator

PERMUTED, NEXT_RANK = "permuted", "next rank"
FALLBACK = "contribution"

MATCHED_POOL = 20

logger = logging.getLogger("neuronshield")


@dataclass(frozen=True)
class Controls:
    """Control sets by kind.

    Attributes:
        drawn: sets that are draws from a distribution: the p-value of the tested set is its rank among them.
        fixed: single sets: the tested set must exceed each of them.
        missing: kinds that could not be had, or only smaller than the set, and why.
        recovered: share of the set that its selection finds again on shuffled labels, mean over draws; None where it was not run.
    """

    drawn: dict[str, list[NeuronSet]]
    fixed: dict[str, NeuronSet] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    recovered: float | None = None

    def all(self) -> list[NeuronSet]:
        """Every set, drawn ones first."""
        return [s for sets in self.drawn.values() for s in sets] + list(self.fixed.values())

    @property
    def shuffled(self) -> list[NeuronSet]:
        """Sets that were selected on shuffled labels; empty if there are none."""
        return next((sets for kind, sets in self.drawn.items() if kind.startswith(PERMUTED)), [])

    def counts(self) -> dict[str, int]:
        """Number of sets of each kind."""
        return {**{k: len(v) for k, v in self.drawn.items()}, **dict.fromkeys(self.fixed, 1)}

    def __repr__(self) -> str:
        return f"Controls({', '.join(f'{n} {kind}' for kind, n in self.counts().items())})"


def random_like(neurons: NeuronSet, model: Model, *, seed: Seed = 0, leave_out: NeuronSet | None = None) -> NeuronSet:
    """A random set with as many neurons per layer and none of the members; all others of a layer where there are fewer.

    >>> random = ns.random_like(neurons, model, seed=1)
    >>> random.per_layer() == neurons.per_layer(), len(random & neurons)
    (True, 0)

    Args:
        neurons: the set.
        model: gives the number of layers and of neurons per layer.
        seed: an int, a sequence of ints, or a numpy Generator, which goes on from its state.
        leave_out: further neurons that are not drawn.

    Raises:
        InputError: arguments of another type, such as swapped ones, a set of another model, or a layer in which no other
            neuron is left.
    """
    call = "random_like(neurons, model)"
    require(neurons, NeuronSet, call=call, name="neurons")
    require(model, Model, call=call, name="model")
    require(leave_out, (NeuronSet, type(None)), call=call, name="leave_out")
    check_seed(seed, call="random_like", generator=True)
    neurons.check_model(model, any_site=True)
    found = drawn_like(neurons, model, seed=seed, leave_out=leave_out)
    held = found.per_layer()
    empty = [layer for layer in neurons.per_layer() if layer not in held]
    if empty:
        raise InputError(
            f"random_like: no neuron of layer {empty[0]} is left to draw; leave out fewer, or use a smaller set"
        )
    if len(found) < len(neurons):
        logger.warning("random_like: only %d neurons are left for a set of %d", len(found), len(neurons))
    return found


def drawn_like(neurons: NeuronSet, model: Model, *, seed: Seed = 0, leave_out: NeuronSet | None = None) -> NeuronSet:
    """The set that `random_like` draws, without its checks: layers with no other neuron have none.

    >>> drawn_like(neurons, model, seed=1) == ns.random_like(neurons, model, seed=1)
    True

    Args:
        neurons: the set.
        model: as in `random_like`.
        seed: as in `random_like`.
        leave_out: as in `random_like`.
    """
    rng = np.random.default_rng(seed)
    barred = (neurons | leave_out if leave_out else neurons).by_layer()
    pairs: list[tuple[int, int]] = []
    width = width_of(model, neurons.site)
    for layer, members in neurons.by_layer().items():
        pool = np.setdiff1d(np.arange(width), barred[layer])
        pairs += [(layer, int(i)) for i in rng.choice(pool, min(len(members), len(pool)), replace=False)]
    about = {"method": "random, same per layer"}
    return NeuronSet(pairs, n_layers=model.n_layers, d_mlp=width, provenance=about, site=neurons.site)


def matched_like(
    neurons: NeuronSet,
    features: Float[np.ndarray, "feature n_layers d_mlp"],
    *,
    draws: int,
    seed: Seed = 0,
    leave_out: NeuronSet | None = None,
) -> list[NeuronSet]:
    """`draws` sets in which each neuron is replaced by another of its layer that is similar in every feature.

    >>> features = np.random.default_rng(0).random((2, 3, 29))              # mean |h| and column norm [feature, n_layers, d_mlp]
    >>> [s.per_layer() == neurons.per_layer() for s in matched_like(neurons, features, draws=2)]
    [True, True]

    Features are compared as ranks within the layer. Replacements are drawn without replacement from the `MATCHED_POOL` (20)
    nearest that are still free.

    Args:
        neurons: the set.
        features: such as mean |h| and the norm of the W_down column.
        draws: number of sets.
        seed: an int, a sequence of ints, or a numpy Generator.
        leave_out: further neurons that are not drawn.
    """
    rng = np.random.default_rng(seed)
    _, n_layers, d_mlp = features.shape
    ranks = features.argsort(axis=2, kind="stable").argsort(axis=2, kind="stable").astype(float)
    barred = (neurons | leave_out if leave_out else neurons).by_layer()
    chosen: list[list[tuple[int, int]]] = [[] for _ in range(draws)]
    for layer, members in neurons.by_layer().items():
        near = {}
        for member in members:
            distance = np.abs(ranks[:, layer] - ranks[:, layer, member, None]).sum(axis=0)
            near[member] = np.setdiff1d(np.argsort(distance, kind="stable"), barred[layer], assume_unique=True)
        for pairs in chosen:
            taken: set[int] = set()
            for member in rng.permutation(members).tolist():
                nearest = near[member][: MATCHED_POOL + len(members)]
                pool = [int(i) for i in nearest if int(i) not in taken][:MATCHED_POOL]
                if not pool:  # fewer others than members
                    break
                choice = int(rng.choice(pool))
                taken.add(choice)
                pairs.append((layer, choice))
    about = {"method": "matched on |h| and norm"}
    return [NeuronSet(p, n_layers=n_layers, d_mlp=d_mlp, provenance=about, site=neurons.site) for p in chosen]


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """What the selecting controls of a set, and of parts of it, are selected from: read once, when it is first asked for.

    Attributes:
        model: the model.
        neurons: the set; its provenance says how it was selected.
        prompts: what is selected on.
        seed: of every draw.
        batch_size: prompts per forward.
    """

    model: Model
    neurons: NeuronSet
    prompts: PromptSet
    seed: int = 0
    batch_size: int = 32

    @cached_property
    def stats(self) -> Stats:
        """Moments of the prompts."""
        return capture(self.model, self.prompts, batch_size=self.batch_size, seed=self.seed, progress=False)

    @cached_property
    def selection(self) -> Selection:
        """The set's own selection; raises InputError where it cannot be run again."""
        return selection_of(self.model, self.neurons, self.prompts, stats=self.stats, batch_size=self.batch_size)

    @cached_property
    def contributions(self) -> Selection | None:
        """The largest contributions in the cells of the set, as far as they were captured; None without a cell of both labels."""
        said = self.neurons.provenance.get("cell", [])
        known = self.stats.cells()
        try:
            named = {Cell.of(c) for c in ([said] if isinstance(said, str) else said)}
        except InputError:
            named = set()
        cells = [c for c in known if c in named] or known
        if not cells:
            return None
        like = NeuronSet(self.neurons, provenance={"selection": pooled(FALLBACK, cells, len(self.neurons))})
        return selection_of(self.model, like, self.prompts, stats=self.stats, batch_size=self.batch_size)


def control_sets(
    neurons: NeuronSet,
    source: Source,
    *,
    features: Float[np.ndarray, "feature n_layers d_mlp"],
    draws: int,
) -> Controls:
    """All controls of a set, `draws` of each kind that is drawn.

    >>> neurons = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=4)["en/text"]
    >>> control_sets(neurons, Source(model, neurons, prompts), features=np.ones((2, 3, 29)), draws=4)
    Controls(4 random, 4 matched, 4 permuted, 1 next rank, 1 general, 1 language)

    Args:
        neurons: the set, or a part of it, which was selected by the same rule.
        source: what the selecting controls are selected from.
        features: mean |h| and norm of the W_down column of every neuron.
        draws: sets of each drawn kind.
    """
    model, stats, rng = source.model, source.stats, np.random.default_rng(source.seed)
    drawn = {
        "random": [drawn_like(neurons, model, seed=rng) for _ in range(draws)],
        "matched": matched_like(neurons, features, draws=draws, seed=rng),
    }
    benign = [m for g, m in stats.groups.items() if g.label == "benign"]
    general = sum(m.n * m.mean_abs.astype(np.float64) for m in benign) * stats.down_norms
    fixed = {"general": _best(neurons, model, score=np.asarray(general), name="largest on benign prompts")}
    missing: dict[str, str] = {}
    try:
        fixed["language"] = _best(neurons, model, score=-language_entropy(stats), name="LAPE")
    except InputError:
        missing["language"] = "language: needs prompts in two languages"
    selected = _selected(neurons, source, draws=draws, rng=rng)
    like = complete(Controls(drawn, fixed=fixed, missing=missing), neurons)
    return Controls(
        {**like.drawn, **selected.drawn}, fixed={**selected.fixed, **like.fixed}, missing={**selected.missing, **like.missing},
        recovered=selected.recovered,
    )  # fmt: skip


def complete(controls: Controls, neurons: NeuronSet) -> Controls:
    """The controls without kinds that have no neuron left in some layer of the set; smaller ones are noted in `missing`.

    Args:
        controls: control sets as drawn, of the kinds that keep the number of neurons of each layer.
        neurons: the set that they are controls for.
    """
    drawn, fixed, missing = dict(controls.drawn), dict(controls.fixed), dict(controls.missing)
    for kind, sets in {**drawn, **{k: [s] for k, s in fixed.items()}}.items():
        held = sets[0].by_layer()
        empty = [layer for layer in neurons.by_layer() if layer not in held]
        if empty:
            missing[kind] = f"{kind}: no neuron of layer {empty[0]} is left to draw from"
            drawn.pop(kind, None)
            fixed.pop(kind, None)
        elif len(sets[0]) < len(neurons):
            missing[kind] = f"{kind}: only {len(sets[0])} neurons are left for a set of {len(neurons)}"
    return replace(controls, drawn=drawn, fixed=fixed, missing=missing)


# -- controls that are selected as the set was --------------------------------------------------------------------
def _selected(neurons: NeuronSet, source: Source, *, draws: int, rng: np.random.Generator) -> Controls:
    """The set's own selection on shuffled labels, and its next ranks; the largest contributions where it cannot be run again."""
    n, missing, kinds = len(neurons), {}, (PERMUTED, NEXT_RANK)
    leave_out, recovered = None, None
    try:
        selection = source.selection
        shuffled = [selection.shuffled(rng, n=n) for _ in range(draws)]
        if not all(len(s) for s in shuffled):
            raise InputError("on shuffled labels the rule of the set selects no neuron")
        recovered = float(np.mean([len(s & neurons) / n for s in shuffled]))
    except InputError as error:
        missing = {kind: f"{kind}: {error}" for kind in kinds}
        kinds = (f"{PERMUTED} ({FALLBACK})", f"{NEXT_RANK} ({FALLBACK})")
        found = source.contributions
        if found is None:
            return Controls({}, missing=missing)
        selection, leave_out = (
            replace(found, tree=pooled(FALLBACK, [Cell.of(leaf["cell"]) for leaf in leaves(found.tree)], n)),
            neurons,
        )
        shuffled = [selection.shuffled(rng, n=n, leave_out=leave_out) for _ in range(draws)]
    following = selection.again(n=n, leave_out=neurons)
    sizes = {kinds[0]: min(map(len, shuffled)), kinds[1]: len(following)}
    missing |= {
        k: f"{k}: only {size} neurons can be selected for a set of {n}" for k, size in sizes.items() if size < n
    }
    return Controls(
        {kinds[0]: shuffled} if sizes[kinds[0]] else {}, fixed={kinds[1]: following} if len(following) else {},
        missing=missing, recovered=recovered,
    )  # fmt: skip


def _best(neurons: NeuronSet, model: Model, *, score: Float[np.ndarray, "n_layers d_mlp"], name: str) -> NeuronSet:
    """The best-scored neurons that are not in the set, as many per layer."""
    pairs: list[tuple[int, int]] = []
    for layer, members in neurons.by_layer().items():
        order = np.setdiff1d(np.argsort(-score[layer], kind="stable"), members, assume_unique=True)
        pairs += [(layer, int(i)) for i in order[: len(members)]]
    return NeuronSet(pairs, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance={"method": name})
