"""Selecting again: the whole selection of a set, from other moments.

`provenance["selection"]` of a set says how it was selected. A **leaf** is one rule in one cell (`rules`); a node
{"op": "&", "of": [...]} combines selections as the sets were combined:

    &    in every part          |    in at least one
    -    in the first, in none of the others          ^    in an odd number of parts

`reselect` runs the tree on any `Stats`. A control that is "selected on shuffled labels" is selected by the same tree from
shuffled labels (`shuffling`), and next ranks are what the same tree selects with larger sizes. Both know the complete rule, with
its set difference and its intersection over cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.arguments import at_least, check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Cell, Prompt, PromptSet
from ..model.encoding import Role
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from .attribution import gradients, mean_attribution
from .groups import Group, Stats
from .moments import ROLES, capture, check_inputs, record, record_moments, record_norms
from .rules import cells_read, grown, run_leaf, within
from .selection import Scores, chosen
from .shuffling import shuffled_labels

__all__ = ["Selection", "leaves", "pooled", "reselect", "selection_of", "shuffled_sets"]

Tree: TypeAlias = Mapping[str, Any]
#: What runs one leaf: its set, and the magnitude that its rule ranks by.
RunLeaf: TypeAlias = Callable[[Tree], tuple[NeuronSet, Float[np.ndarray, "n_layers d_mlp"]]]

OPERATORS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "&": np.logical_and, "|": np.logical_or, "^": np.logical_xor, "-": lambda a, b: a & ~b,
}  # fmt: skip
#: Scores whose selection is not run again, and why.
NOT_AGAIN = {
    "snip": "its loss is that of another answer for each label",
    "change_score": "it compares two models, and does not read the labels",
}
MOST_GROWTH = 2**64  # of thresholds, which have no largest; every other size ends at all neurons


# -- the tree -----------------------------------------------------------------------------------------------
def leaves(tree: Tree) -> Iterator[Tree]:
    """The leaves of a selection tree, from left to right.

    >>> a, b = ({"rule": "top", "cell": cell} for cell in ("en/text", "sw/text"))
    >>> [leaf["cell"] for leaf in leaves({"op": "&", "of": [a, b]})]
    ['en/text', 'sw/text']

    Args:
        tree: `provenance["selection"]`.
    """
    if "op" not in tree:
        yield tree
        return
    for part in tree["of"]:
        yield from leaves(part)


def pooled(method: str, cells: Sequence[Cell], k: int) -> Tree:
    """The tree that takes the k best of each cell; `reselect(tree, stats, n=k)` keeps the k of them that are best over all cells.

    >>> tree = pooled("sas", [ns.Cell("en", "text"), ns.Cell("sw", "text")], 7)
    >>> len(reselect(tree, ns.capture(model, prompts, progress=False), n=7))
    7

    Args:
        method: a score of `contrast`.
        cells: the cells.
        k: neurons.
    """
    parts = [{"rule": "top", "method": method, "cell": str(c), "size": {"k": k}, "sign": None} for c in cells]
    return parts[0] if len(parts) == 1 else {"op": "|", "of": parts}


def reselect(tree: Tree, stats: Stats, *, n: int | None = None, leave_out: NeuronSet | None = None) -> NeuronSet:
    """The set that a selection tree selects from these moments.

    >>> sets = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=8)
    >>> both = sets["en/text"] & sets["sw/text"]
    >>> stats = ns.capture(model, prompts, progress=False)
    >>> reselect(both.provenance["selection"], stats) == both
    True
    >>> len(reselect(both.provenance["selection"], stats, n=5, leave_out=both))     # the next five
    5

    With `n`, the n best are kept: by the sum over leaves of the magnitude that each leaf ranks by, divided by its largest. If the
    tree selects fewer, the sizes of its leaves are doubled until there are n (except of what is taken away by "-"). There may be
    fewer than n where a rule cannot choose so many.

    Args:
        tree: `provenance["selection"]` of a set.
        stats: moments from `capture`, or of the same shape.
        n: neurons; None for what the tree selects.
        leave_out: neurons that are not selected.

    Raises:
        InputError: as `rules.run_leaf`.
    """
    require(tree, Mapping, call="reselect(tree, stats)", name="tree", hint="neurons.provenance['selection']")
    require(stats, Stats, call="reselect(tree, stats)", name="stats")
    found = _select(tree, partial(run_leaf, stats=stats), n=n, leave_out=leave_out)
    shape: dict[str, Any] = {"n_layers": found.n_layers, "d_mlp": found.d_mlp}
    return NeuronSet(list(found), **shape, provenance=found.provenance, site=stats.site)


def _select(tree: Tree, run: RunLeaf, *, n: int | None, leave_out: NeuronSet | None) -> NeuronSet:
    """`reselect`, with any way to run a leaf."""
    require(leave_out, (NeuronSet, type(None)), call="reselect", name="leave_out")
    if n is not None:
        at_least(0, "reselect", n=n)
    barred = leave_out or NeuronSet()
    best: tuple[np.ndarray, np.ndarray] | None = None
    factor = 1
    while True:
        left: list[int] = []
        mask, rank = _run(tree, run, factor=factor, left=left)
        mask &= ~_mask(NeuronSet(barred, n_layers=mask.shape[0], d_mlp=mask.shape[1]), mask.shape)
        if best is None or mask.sum() > best[0].sum():
            best = mask, rank
        if n is None or mask.sum() >= n or not any(left) or factor >= MOST_GROWTH:
            break
        factor *= 2
    mask, rank = best
    n_layers, d_mlp = mask.shape
    found = np.argwhere(mask)
    if n is not None:
        order = np.argsort(-rank[mask], kind="stable")[:n]  # ties go to the lower (layer, index)
        found = found[order]
    return NeuronSet(found, n_layers=n_layers, d_mlp=d_mlp, provenance={"selection": dict(tree)})


def _run(
    tree: Tree, run: RunLeaf, *, factor: float, left: list[int]
) -> tuple[Bool[np.ndarray, "n_layers d_mlp"], Float[np.ndarray, "n_layers d_mlp"]]:
    """Mask and summed rank of a tree whose leaves have grown; `left` gets the neurons that every leaf that grew could still choose.

    A leaf with nothing left chooses no other neuron at a larger size: what a set difference takes away only grows with it.
    """
    if "op" not in tree:
        neurons, rank = run(tree if factor == 1 else grown(tree, factor))
        left.append(int((rank > -np.inf).sum()) - len(neurons))
        return _mask(neurons, rank.shape), _scaled(rank)
    first, *others = tree["of"]
    mask, rank = _run(first, run, factor=factor, left=left)
    for part in others:
        taken = tree["op"] == "-"
        other, own = _run(part, run, factor=1 if taken else factor, left=[] if taken else left)
        mask = OPERATORS[tree["op"]](mask, other)
        rank = rank if taken else rank + own
    return mask, rank


def _mask(neurons: NeuronSet, shape: tuple[int, ...]) -> Bool[np.ndarray, "n_layers d_mlp"]:
    mask = np.zeros(shape, dtype=bool)
    for layer, members in neurons.by_layer().items():
        mask[layer, members] = True
    return mask


def _scaled(rank: Float[np.ndarray, "n_layers d_mlp"]) -> Float[np.ndarray, "n_layers d_mlp"]:
    """Magnitudes divided by the largest; 0 where the rule cannot choose a neuron."""
    out = np.where(rank == -np.inf, 0.0, rank)
    peak = out.max(initial=0.0)
    return out / peak if 0 < peak < np.inf else out


# -- the selection of a set, run again ---------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The selection of a set, with what it read of every prompt, so that it can be run on any labels. Made by `selection_of`.

    Attributes:
        tree: `provenance["selection"]` of the set.
        prompts: the rows of the cells that it reads.
        stats: moments of all prompts with their own labels.
        stats_of: moments of the rows with other labels.
        slopes: dM/dh and h of every neuron on every row, for attribution; None without it.
    """

    tree: Tree
    prompts: tuple[Prompt, ...]
    stats: Stats
    stats_of: Callable[[Sequence[str]], Stats]
    slopes: tuple[Float[Tensor, "prompt n_layers d_mlp"], Float[Tensor, "prompt n_layers d_mlp"]] | None = None

    def __repr__(self) -> str:
        return f"Selection({len(list(leaves(self.tree)))} leaves, {len(self.prompts)} prompts)"

    def again(
        self, labels: Sequence[str] | None = None, *, n: int | None = None, leave_out: NeuronSet | None = None
    ) -> NeuronSet:
        """The set that is selected with these labels (None: the prompts' own).

        Args:
            labels: "harmful" or "benign" for each row.
            n: as for `reselect`.
            leave_out: as for `reselect`.
        """
        labels = [p.label for p in self.prompts] if labels is None else labels
        return _select(self.tree, self._runs(labels), n=n, leave_out=leave_out)

    def shuffled(self, rng: np.random.Generator, *, n: int, leave_out: NeuronSet | None = None) -> NeuronSet:
        """The n neurons that are selected on shuffled labels.

        Args:
            rng: draws the labels.
            n: as for `reselect`.
            leave_out: as for `reselect`.
        """
        return self.again(shuffled_labels(self.prompts, rng), n=n, leave_out=leave_out)

    def _runs(self, labels: Sequence[str]) -> RunLeaf:
        known: list[Stats] = []

        def run(leaf: Tree) -> tuple[NeuronSet, Float[np.ndarray, "n_layers d_mlp"]]:
            if leaf.get("method") == "lape":  # reads no labels
                return run_leaf(leaf, self.stats)
            if leaf.get("method") == "attribution":
                return self._attributed(leaf, labels)
            if not known:
                known.append(self.stats_of(labels))
            return run_leaf(leaf, known[0])

        return run

    def _attributed(self, leaf: Tree, labels: Sequence[str]) -> tuple[NeuronSet, Float[np.ndarray, "n_layers d_mlp"]]:
        """The formula of `attribution` on the pairs that these labels make."""
        assert self.slopes is not None
        slope, act = self.slopes
        benign: dict[tuple[str | None, Cell], int] = {
            (p.pair_id, p.cell): i
            for i, p in enumerate(self.prompts)
            if labels[i] == "benign" and p.pair_id is not None
        }
        pairs = [
            (i, benign[p.pair_id, p.cell]) for i, p in enumerate(self.prompts)
            if labels[i] == "harmful" and str(p.cell) == leaf["cell"] and (p.pair_id, p.cell) in benign
        ]  # fmt: skip
        if not pairs:
            raise InputError(f"attribution: no matched pair in {leaf['cell']}")
        h, b = (list(side) for side in zip(*pairs, strict=True))
        cells, values, difference = mean_attribution(slope[h], act[h] - act[b], [self.prompts[i].cell for i in h])
        scores = Scores(
            cells=cells, values=values, against=None, method="attribution", n_params=self.stats.n_params,
            params_per_neuron=self.stats.params_per_neuron, difference=difference,
        )  # fmt: skip
        mask, rank = chosen(scores, leaf["cell"], size=within(leaf["size"], self.stats), sign=leaf["sign"])
        return NeuronSet(np.argwhere(mask), n_layers=mask.shape[0], d_mlp=mask.shape[1]), rank


def selection_of(
    model: Model, neurons: NeuronSet, prompts: PromptSet, *, stats: Stats | None = None, batch_size: int = 32
) -> Selection:
    """The selection of a set, with what it reads of these prompts: one recording of the cells that it was selected in.

    >>> neurons = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=8)["en/text"]
    >>> selection = selection_of(model, neurons, prompts)
    >>> selection, selection.again() == neurons
    (Selection(1 leaves, 30 prompts), True)

    Args:
        model: the model.
        neurons: the set.
        prompts: rows to select on: those of split "discover", all of them if none is so marked.
        stats: moments of `prompts` over the tokens that the set was selected on; captured if they are not given.
        batch_size: prompts in a forward.

    Raises:
        InputError: how the set was selected is not known, or its selection cannot be run again: it reads answers or another model
            (snip, change_score), or cells that these prompts do not have.
    """
    call = "selection_of(model, neurons, prompts)"
    require(neurons, NeuronSet, call=call, name="neurons").needs_neurons(call)
    check_inputs("selection_of", model, prompts)
    require(stats, (Stats, type(None)), call=call, name="stats", hint="capture makes them: capture(model, prompts)")
    if neurons.d_mlp is not None and (neurons.n_layers, neurons.d_mlp) != (model.n_layers, model.d_mlp):
        raise InputError(f"{call}: the set is of {neurons.n_layers} layers x {neurons.d_mlp} neurons, but {model.id!r} has "
                         f"{model.n_layers} x {model.d_mlp}: select neurons on this model")  # fmt: skip
    tree = neurons.provenance.get("selection")
    if not tree:
        raise InputError("how the set was selected is not known (no 'selection' in its provenance)")
    methods = {leaf.get("method", leaf["rule"]) for leaf in leaves(tree)}
    if wrong := sorted(methods & NOT_AGAIN.keys()):
        raise InputError(f"selection by {wrong[0]!r} is not run again on other labels: {NOT_AGAIN[wrong[0]]}")
    tokens = neurons.provenance.get("tokens", "last_prompt")
    if tokens not in ROLES:
        raise InputError(
            f"the set was selected on tokens of several roles ({tokens}), so its selection cannot be run again"
        )
    prefixes = neurons.provenance.get("prefixes", {})
    if not isinstance(prefixes, dict):
        raise InputError("the set joins attributions with different prefixes, so its selection cannot be run again")
    rows = prompts.for_step("discover")
    if stats is None or stats.tokens != tokens:
        stats = capture(model, rows, tokens=tokens, batch_size=batch_size, progress=False)
    openings = openings_of(model, rows, **prefixes) if "attribution" in methods else None
    read = {name for leaf in leaves(tree) for name in cells_read(leaf)}
    rows = rows.in_cells([cell for cell in rows.cells() if str(cell) in read])
    slopes = gradients(model, rows, opening_tokens(model, openings), batch_size=batch_size) if openings else None
    stats_of = _reader(model, rows, stats, methods=methods, batch_size=batch_size)
    selection = Selection(tree, tuple(rows), stats, stats_of=stats_of, slopes=slopes)
    selection.again()  # a leaf that cannot be run is found here
    return selection


def _reader(
    model: Model, rows: PromptSet, stats: Stats, *, methods: set[str], batch_size: int
) -> Callable[[Sequence[str]], Stats]:
    """What gives moments of the rows under any labels, from one recording."""
    if not methods - {"attribution", "lape"}:
        return lambda _: stats
    if stats.tokens == "last_prompt":
        values = record(model, rows, batch_size=batch_size)
        norms = record_norms(model, rows, batch_size=batch_size) if "cett" in methods else None
        return lambda labels: Stats.of(values, rows, like=stats, labels=labels, output_norms=norms)
    each = record_moments(model, rows, tokens=cast(Role, stats.tokens), batch_size=batch_size)

    def relabelled(labels: Sequence[str]) -> Stats:
        groups = {
            Group(label, p.language, p.modality, fold=row): m
            for row, (p, label, m) in enumerate(zip(rows, labels, each, strict=True)) if m is not None
        }  # fmt: skip
        return replace(stats, groups=groups)

    return relabelled


def shuffled_sets(
    model: Model, neurons: NeuronSet, prompts: PromptSet, *, draws: int, seed: int = 0, batch_size: int = 32
) -> list[NeuronSet]:
    """Sets of as many neurons that the selection of `neurons` selects on shuffled labels; they may share members with it.

    >>> neurons = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=8)["en/text"]
    >>> [len(s) for s in shuffled_sets(model, neurons, prompts, draws=3)]
    [8, 8, 8]

    Args:
        model: the model.
        neurons: the set.
        prompts: rows to select on, as for `selection_of`.
        draws: sets.
        seed: of the labels.
        batch_size: prompts in a forward.

    Raises:
        InputError: as `selection_of`.
    """
    at_least(1, "shuffled_sets", draws=draws, batch_size=batch_size)
    check_seed(seed, call="shuffled_sets")
    selection, rng = selection_of(model, neurons, prompts, batch_size=batch_size), np.random.default_rng(seed)
    return [selection.shuffled(rng, n=len(neurons)) for _ in range(draws)]
