"""Matched control sets: other sets of neurons that a claim about a set must exceed.

Each has as many neurons per layer as the set it is a control for (or all that are left), and none of its members:

    random      any neurons                                                               drawn
    matched     neurons of similar mean |h| and of similar norm of their W_down column    drawn
    permuted    what the same selection selects when harmful and benign are shuffled      drawn
    next rank   what the same selection ranks next                                        one set
    general     the largest mean contribution on benign prompts                           one set
    language    the most language-bound neurons (LAPE)                                    one set

The last four select on prompts: the "discover" rows where there are any, otherwise the prompts of the test itself, which
favours the controls.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from ..core.arguments import check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell, PromptSet
from ..find.moments import Moments, Stats, capture, record
from ..find.scores import METHODS, Columns, contrast, language_entropy
from ..model.model import Model

__all__ = ["Controls", "Seed", "control_sets", "drawn_like", "matched_like", "random_like"]

#: Anything `numpy.random.default_rng` takes; a Generator goes on from its state.
Seed = int | Sequence[int] | np.random.Generator

MATCHED_POOL = 20

logger = logging.getLogger("neuronshield")


@dataclass(frozen=True)
class Controls:
    """Control sets by kind.

    Attributes:
        drawn: sets that are draws from a distribution: the p-value of the tested set is its rank among them.
        fixed: single sets: the tested set must exceed each of them.
        missing: kinds that could not be had, or only smaller than the set, and why.
        recovered: share of the set that the selection finds again on shuffled labels, mean over draws.
    """

    drawn: dict[str, list[NeuronSet]]
    fixed: dict[str, NeuronSet] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    recovered: float | None = None

    def all(self) -> list[NeuronSet]:
        """Every set, drawn ones first."""
        return [s for sets in self.drawn.values() for s in sets] + list(self.fixed.values())

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
    neurons.check_model(model)
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
    for layer, members in neurons.by_layer().items():
        pool = np.setdiff1d(np.arange(model.d_mlp), barred[layer])
        pairs += [(layer, int(i)) for i in rng.choice(pool, min(len(members), len(pool)), replace=False)]
    return _named(pairs, model, "random, same per layer")


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
    return [NeuronSet(p, n_layers=n_layers, d_mlp=d_mlp, provenance=about) for p in chosen]


def control_sets(
    model: Model,
    neurons: NeuronSet,
    select: PromptSet,
    *,
    features: Float[np.ndarray, "feature n_layers d_mlp"],
    draws: int,
    seed: int = 0,
    batch_size: int = 32,
) -> Controls:
    """All controls of a set, `draws` of each kind that is drawn.

    >>> control_sets(model, neurons, prompts, features=np.ones((2, 3, 29)), draws=4)
    Controls(4 random, 4 matched, 4 permuted, 1 next rank, 1 general, 1 language)

    Args:
        model: the model.
        neurons: the set; its provenance names the method and the cells of its selection.
        select: prompts that the selecting controls select on.
        features: mean |h| and norm of the W_down column of every neuron.
        draws: sets of each drawn kind.
        seed: of every draw.
        batch_size: prompts per forward.
    """
    rng = np.random.default_rng(seed)
    drawn = {
        "random": [drawn_like(neurons, model, seed=rng) for _ in range(draws)],
        "matched": matched_like(neurons, features, draws=draws, seed=rng),
    }
    fixed: dict[str, NeuronSet] = {}
    missing: dict[str, str] = {}
    recovered = None
    stats = capture(model, select, batch_size=batch_size, seed=seed, progress=False)
    try:
        cells = _cells_of(neurons, stats)
    except InputError as error:
        missing |= {"permuted": str(error), "next rank": str(error)}
    else:
        method = neurons.provenance.get("method")
        method = method if method in METHODS and method != "cett" else "contribution"  # needs more than activations
        scores = contrast(stats, method=method)
        score = sum(np.abs(scores.values[scores.cells.index(c)]) for c in cells)
        fixed["next rank"] = _best(neurons, model, score=np.asarray(score), name=f"next ranks of {method}")
        drawn["permuted"], recovered = _permuted(
            model, neurons, select.in_cells(cells), method=method, draws=draws, rng=rng, batch_size=batch_size
        )
    benign = [m for g, m in stats.groups.items() if g.label == "benign"]
    general = sum(m.n * m.mean_abs for m in benign) * stats.down_norms
    fixed["general"] = _best(neurons, model, score=general, name="largest on benign prompts")
    try:
        fixed["language"] = _best(neurons, model, score=-language_entropy(stats), name="LAPE")
    except InputError:
        missing["language"] = "language: needs prompts in two languages"
    return complete(Controls(drawn, fixed=fixed, missing=missing, recovered=recovered), neurons)


def complete(controls: Controls, neurons: NeuronSet) -> Controls:
    """The controls without kinds that have no neuron left in some layer of the set; smaller ones are noted in `missing`.

    Args:
        controls: control sets as drawn.
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
    return Controls(drawn, fixed=fixed, missing=missing, recovered=controls.recovered)


def _cells_of(neurons: NeuronSet, stats: Stats) -> list[Cell]:
    """The cells a set was selected in, as far as they were captured; all of them where it does not say."""
    said = neurons.provenance.get("cell", [])
    named = {Cell.of(c) for c in ([said] if isinstance(said, str) else said)}
    known = stats.cells()
    cells = [c for c in known if c in named] or known
    if not cells:
        raise InputError("needs harmful and benign prompts of one cell to select on")
    return cells


def _best(neurons: NeuronSet, model: Model, *, score: Float[np.ndarray, "n_layers d_mlp"], name: str) -> NeuronSet:
    """The best-scored neurons that are not in the set, as many per layer."""
    pairs: list[tuple[int, int]] = []
    for layer, members in neurons.by_layer().items():
        order = np.setdiff1d(np.argsort(-score[layer], kind="stable"), members, assume_unique=True)
        pairs += [(layer, int(i)) for i in order[: len(members)]]
    return _named(pairs, model, name)


def _permuted(
    model: Model,
    neurons: NeuronSet,
    rows: PromptSet,
    *,
    method: str,
    draws: int,
    rng: np.random.Generator,
    batch_size: int,
) -> tuple[list[NeuronSet], float]:
    """The selection on shuffled labels, `draws` times: matched pairs swap labels at random, other prompts within their cell."""
    act = record(model, rows, batch_size=batch_size).numpy()
    layers = list(neurons.by_layer())
    act = act[:, layers]
    columns = Columns(model.down_norms().numpy()[layers], model.down_norms(1).numpy()[layers])
    where = {id(p): i for i, p in enumerate(rows)}
    label = np.array([p.label == "harmful" for p in rows])
    matched = np.array([(where[id(h)], where[id(b)]) for h, b in rows.pairs()], dtype=int).reshape(-1, 2)
    alone = np.setdiff1d(np.arange(len(rows)), matched)
    cell = np.array([str(p.cell) for p in rows])
    sets, found = [], []
    for _ in range(draws):
        shuffled = label.copy()
        swap = matched[rng.random(len(matched)) < 0.5]
        shuffled[swap] = label[swap[:, ::-1]]
        for name in dict.fromkeys(cell):
            mine = alone[cell[alone] == name]
            shuffled[mine] = rng.permutation(label[mine])
        score = np.zeros((model.n_layers, model.d_mlp))
        for name in dict.fromkeys(cell):
            harmful, benign = (act[(cell == name) & (shuffled == side)] for side in (True, False))
            if len(harmful) and len(benign):
                score[layers] += np.abs(METHODS[method](Moments.of(harmful), Moments.of(benign), columns)[0])
        sets.append(_best(neurons, model, score=score, name="selected on shuffled labels"))
        again = {
            (layer, int(i))
            for layer, members in neurons.by_layer().items()
            for i in np.argsort(-score[layer], kind="stable")[: len(members)]
        }
        found.append(len(again & set(neurons)) / len(neurons))
    return sets, float(np.mean(found))


def _named(pairs: Sequence[tuple[int, int]], model: Model, method: str) -> NeuronSet:
    return NeuronSet(pairs, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance={"method": method})
