"""Control sets: sets of neurons that could have won, and must not.

Each has as many neurons per layer as the set it is a control for (or all that are left), and none of its members:

    random      any neurons                                                           drawn
    matched     as loud, in mean |h| and in column norm both                          drawn
    permuted    what the same selection finds when harmful and benign are shuffled    drawn
    next rank   what the same selection ranks next                                    one set
    general     the loudest on benign prompts                                         one set
    language    most bound to one language (LAPE)                                     one set

The last four need prompts to select on: the "discover" rows where there are any, otherwise the prompts of the
test itself, which favours the controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell, PromptSet
from ..find.moments import Moments, Stats, capture, record
from ..find.scores import METHODS, Columns, contrast, language_entropy
from ..model.model import Model

__all__ = ["Controls", "control_sets", "matched_like", "random_like"]


MATCHED_POOL = 20


@dataclass
class Controls:
    """Control sets by kind; `missing` says which could not be had, or only smaller than the set, and why.

    Attributes:
        drawn: sets that are draws from a distribution: the set's p-value is its rank among them.
        fixed: single sets: the set must beat each of them.
        recovered: share of the set that selection on shuffled labels finds again, mean over draws.
    """

    drawn: dict[str, list[NeuronSet]]
    fixed: dict[str, NeuronSet] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    recovered: float | None = None

    def all(self) -> list[NeuronSet]:
        """Every set, drawn ones first."""
        return [s for sets in self.drawn.values() for s in sets] + list(self.fixed.values())


def random_like(
    neurons: NeuronSet, model: Model, rng: np.random.Generator, *, leave_out: NeuronSet | None = None
) -> NeuronSet:
    """As many other neurons per layer, drawn at random; all others where there are fewer."""
    barred = (neurons | leave_out if leave_out else neurons).by_layer()
    pairs: list[tuple[int, int]] = []
    for layer, members in neurons.by_layer().items():
        pool = np.setdiff1d(np.arange(model.d_mlp), barred[layer])
        pairs += [(layer, int(i)) for i in rng.choice(pool, min(len(members), len(pool)), replace=False)]
    return _named(pairs, model, "random, same per layer")


def matched_like(
    neurons: NeuronSet,
    loud: Float[np.ndarray, "feature n_layers d_mlp"],
    draws: int,
    rng: np.random.Generator,
    *,
    leave_out: NeuronSet | None = None,
) -> list[NeuronSet]:
    """For each neuron another of its layer that is like it in every feature (mean |h|, column norm), `draws` times.

    Features are compared as ranks within the layer. Partners are drawn without replacement from the `MATCHED_POOL`
    nearest that are still free.
    """
    _, n_layers, d_mlp = loud.shape
    ranks = loud.argsort(axis=2, kind="stable").argsort(axis=2, kind="stable").astype(float)
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
                pool = [int(i) for i in near[member][: MATCHED_POOL + len(members)] if int(i) not in taken][
                    :MATCHED_POOL
                ]
                if not pool:  # fewer others than members
                    break
                choice = int(rng.choice(pool))
                taken.add(choice)
                pairs.append((layer, choice))
    return [
        NeuronSet(p, n_layers=n_layers, d_mlp=d_mlp, provenance={"method": "matched on |h| and norm"}) for p in chosen
    ]


def control_sets(
    model: Model,
    neurons: NeuronSet,
    select: PromptSet,
    loud: Float[np.ndarray, "feature n_layers d_mlp"],
    *,
    draws: int,
    seed: int = 0,
    batch_size: int = 32,
) -> Controls:
    """All controls of a set, `draws` of each kind that is drawn.

    Args:
        select: prompts that the selecting controls select on.
        loud: mean |h| and column norm of every neuron.
    """
    rng = np.random.default_rng(seed)
    drawn = {
        "random": [random_like(neurons, model, rng) for _ in range(draws)],
        "matched": matched_like(neurons, loud, draws, rng),
    }
    out = Controls(drawn)
    stats = capture(model, select, batch_size=batch_size, seed=seed, progress=False)
    try:
        cells = _cells_of(neurons, stats)
    except InputError as error:
        out.missing |= {"permuted": str(error), "next rank": str(error)}
    else:
        method = neurons.provenance.get("method")
        method = method if method in METHODS and method != "cett" else "contribution"  # needs more than activations
        scores = contrast(stats, method=method)
        score = sum(np.abs(scores.values[scores.cells.index(c)]) for c in cells)
        out.fixed["next rank"] = _best(neurons, model, np.asarray(score), f"next ranks of {method}")
        drawn["permuted"], out.recovered = _permuted(
            model, neurons, select.in_cells(cells), method, draws, rng, batch_size
        )
    benign = [m for g, m in stats.groups.items() if g.label == "benign"]
    general = sum(m.n * m.mean_abs for m in benign) * stats.down_norms
    out.fixed["general"] = _best(neurons, model, general, "loudest on benign prompts")
    try:
        out.fixed["language"] = _best(neurons, model, -language_entropy(stats), "LAPE")
    except InputError:
        out.missing["language"] = "language: needs prompts in two languages"
    return in_full(out, neurons)


def in_full(controls: Controls, neurons: NeuronSet) -> Controls:
    """Drop what has no neuron left in some layer of the set, and say so; say too what is smaller than the set."""
    layers = neurons.by_layer()
    for kind, sets in {**controls.drawn, **{k: [s] for k, s in controls.fixed.items()}}.items():
        held = sets[0].by_layer()
        empty = [layer for layer in layers if layer not in held]
        if empty:
            controls.missing[kind] = f"{kind}: no neuron of layer {empty[0]} is left to draw from"
            controls.drawn.pop(kind, None), controls.fixed.pop(kind, None)
        elif len(sets[0]) < len(neurons):
            controls.missing[kind] = f"{kind}: only {len(sets[0])} neurons are left for a set of {len(neurons)}"
    return controls


def _cells_of(neurons: NeuronSet, stats: Stats) -> list[Cell]:
    """The cells a set was selected in, as far as they were captured; all of them where it does not say."""
    said = neurons.provenance.get("cell", [])
    named = {Cell.of(c) for c in ([said] if isinstance(said, str) else said)}
    known = stats.cells()
    cells = [c for c in known if c in named] or known
    if not cells:
        raise InputError("needs harmful and benign prompts of one cell to select on")
    return cells


def _best(neurons: NeuronSet, model: Model, score: Float[np.ndarray, "n_layers d_mlp"], name: str) -> NeuronSet:
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
    method: str,
    draws: int,
    rng: np.random.Generator,
    batch_size: int,
) -> tuple[list[NeuronSet], float]:
    """Re-run the selection with shuffled labels: twins swap sides by a coin, other prompts within their cell."""
    act = record(model, rows, batch_size=batch_size).numpy()
    layers = list(neurons.by_layer())
    act = act[:, layers]
    columns = Columns(model.down_norms().numpy()[layers], model.down_norms(1).numpy()[layers])
    where = {id(p): i for i, p in enumerate(rows)}
    label = np.array([p.label == "harmful" for p in rows])
    twins = np.array([(where[id(h)], where[id(b)]) for h, b in rows.pairs()], dtype=int).reshape(-1, 2)
    alone = np.setdiff1d(np.arange(len(rows)), twins)
    cell = np.array([str(p.cell) for p in rows])
    sets, found = [], []
    for _ in range(draws):
        shuffled = label.copy()
        swap = twins[rng.random(len(twins)) < 0.5]
        shuffled[swap] = label[swap[:, ::-1]]
        for name in dict.fromkeys(cell):
            mine = alone[cell[alone] == name]
            shuffled[mine] = rng.permutation(label[mine])
        score = np.zeros((model.n_layers, model.d_mlp))
        for name in dict.fromkeys(cell):
            harmful, benign = (act[(cell == name) & (shuffled == side)] for side in (True, False))
            if len(harmful) and len(benign):
                score[layers] += np.abs(METHODS[method](Moments.of(harmful), Moments.of(benign), columns)[0])
        sets.append(_best(neurons, model, score, "selected on shuffled labels"))
        again = {
            (layer, int(i))
            for layer, members in neurons.by_layer().items()
            for i in np.argsort(-score[layer], kind="stable")[: len(members)]
        }
        found.append(len(again & set(neurons)) / len(neurons))
    return sets, float(np.mean(found))


def _named(pairs: Sequence[tuple[int, int]], model: Model, method: str) -> NeuronSet:
    return NeuronSet(pairs, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance={"method": method})
