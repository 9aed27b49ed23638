"""Matched pairs: a harmful prompt beside a benign one, their activations, their clean refusal margins, and effects.

Let M be the refusal margin (see `model.prefixes`). The **clean logit difference** is mean M(harmful) - mean M(benign) of the
unchanged model. A **normalised effect** is a change of the margin divided by the clean logit difference: 1 means that the
change is as large as the whole difference between harmful and benign prompts (Wang et al. 2023 normalise so). Intervals are over
whole requests (`pair_id`), since translations of one request are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..core.errors import InputError
from ..core.intervals import ratio_of_means
from ..core.neurons import NeuronSet
from ..core.statistics import Interval
from ..data.prompts import Cell, Prompt, PromptSet
from ..find.moments import record
from ..model.engine import InProcess, Runner
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import OpeningTokens
from ..model.units import run_margins

__all__ = ["ABLATIONS", "Ablation", "MatchedPairs", "PairRows", "match", "measure"]

#: What an ablation writes: zero, the benign mean of the cell, the value of another benign prompt, or of the matched one.
Ablation = Literal["zero", "mean", "resample", "patch"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


def match(prompts: PromptSet, *, seed: int) -> tuple[list[tuple[Prompt, Prompt]], bool]:
    """(harmful, benign) pairs, and True if they are matched (same `pair_id` and cell).

    Without any matched pair, harmful prompts get random benign prompts of their cell, and False. No benign request is used twice in a
    cell, so that pairs are as independent as harmful requests are; of more harmful prompts than that a random part is taken.

    >>> from neuronshield.prove.pairs import match
    >>> found, matched = match(prompts, seed=0)
    >>> len(found), matched
    (30, True)

    Args:
        prompts: harmful and benign prompts.
        seed: of the random matching.

    Raises:
        InputError: no cell has both labels.
    """
    pairs = prompts.pairs()
    if pairs:
        return pairs, True
    rng = np.random.default_rng(seed)
    for cell in prompts.cells():
        benign = list({p.cluster: p for p in prompts.where(label="benign").in_cells([cell])}.values())
        harmful = list(prompts.where(label="harmful").in_cells([cell]))
        order = rng.permutation(len(benign))[: len(harmful)]
        if len(harmful) > len(order):
            harmful = [harmful[int(i)] for i in np.sort(rng.permutation(len(harmful))[: len(order)])]
        pairs += [(h, benign[int(i)]) for h, i in zip(harmful, order, strict=True)]
    if not pairs:
        raise InputError("verify: no cell (language x modality) has both harmful and benign prompts")
    return pairs, False


@dataclass(frozen=True, eq=False)
class PairRows:
    """What is known of each pair; every field has one entry per pair, and `take` cuts every field.

    Attributes:
        harmful, benign: the prompts.
        requests: the request (`pair_id`) of each pair; intervals are over requests.
        cells: the cell's name, such as "en/text".
        harmful_values, benign_values: every neuron at the last prompt token.
        mean_values: the benign mean of the pair's cell; `donor_values`: the values of another benign prompt of the cell.
        harmful_margins, benign_margins: clean refusal margins, in nats.
    """

    harmful: tuple[Prompt, ...]
    benign: tuple[Prompt, ...]
    requests: Shaped[np.ndarray, " pair"]
    cells: Shaped[np.ndarray, " pair"]
    harmful_values: Float[Tensor, "pair n_layers d_mlp"]
    benign_values: Float[Tensor, "pair n_layers d_mlp"]
    mean_values: Float[Tensor, "pair n_layers d_mlp"]
    donor_values: Float[Tensor, "pair n_layers d_mlp"]
    harmful_margins: Float[np.ndarray, " pair"]
    benign_margins: Float[np.ndarray, " pair"]

    def take(self, rows: Sequence[int] | Int[np.ndarray, " row"]) -> PairRows:
        """The same of some pairs, in the order of `rows`."""
        index = [int(i) for i in rows]

        def cut(value: Any) -> Any:
            return tuple(value[i] for i in index) if isinstance(value, tuple) else value[index]

        return type(self)(**{f.name: cut(getattr(self, f.name)) for f in fields(self)})

    def __repr__(self) -> str:
        return f"PairRows({len(self.harmful)} pairs in {len(set(self.cells))} cells)"


@dataclass(frozen=True, eq=False)
class MatchedPairs:
    """Matched pairs of one model: runs conditions on them and measures effects. Made by `measure`.

    >>> from neuronshield.model.prefixes import opening_tokens, openings_of
    >>> from neuronshield.prove.pairs import match, measure
    >>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
    >>> pairs = measure(model, match(prompts, seed=0)[0], tokens)
    >>> pairs, pairs.on_harmful([pairs.ablate(neurons, "zero")]).shape
    (MatchedPairs(30 pairs in 2 cells), (1, 30))

    Attributes:
        model: the model.
        tokens: first tokens of refusal and compliance prefixes, by language.
        rows: prompts, activations and clean margins, pair by pair.
        seed: of every draw.
        batch_size: prompts per forward.
        progress: whether bars are shown.
        runner: computes margins and answers: an engine with the model on it.
        work: how many "margins" were computed and "answers" generated; shared with what `take` returns.
    """

    model: Model
    tokens: dict[str, OpeningTokens]
    rows: PairRows
    seed: int = 0
    batch_size: int = 64
    progress: bool = False
    runner: Runner | None = None
    work: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.runner is None:
            object.__setattr__(self, "runner", InProcess().on(self.model))

    def take(self, rows: Sequence[int] | Int[np.ndarray, " row"]) -> MatchedPairs:
        """The same experiment on some of its pairs; no forward is run."""
        return replace(self, rows=self.rows.take(rows))

    def __len__(self) -> int:
        return len(self.rows.harmful)

    def __repr__(self) -> str:
        return f"MatchedPairs({len(self)} pairs in {len(set(self.rows.cells))} cells)"

    @property
    def requests(self) -> Shaped[np.ndarray, " pair"]:
        """The request of each pair."""
        return self.rows.requests

    @property
    def harmful_margins(self) -> Float[np.ndarray, " pair"]:
        """Clean margins of the harmful prompts."""
        return self.rows.harmful_margins

    @property
    def benign_margins(self) -> Float[np.ndarray, " pair"]:
        """Clean margins of the benign prompts."""
        return self.rows.benign_margins

    def by_cell(self) -> dict[Cell, Int[np.ndarray, " row"]]:
        """Rows of each cell."""
        return {Cell.of(c): np.flatnonzero(self.rows.cells == c) for c in dict.fromkeys(self.rows.cells)}

    def split(self) -> tuple[MatchedPairs, MatchedPairs]:
        """One third of the requests with all their pairs, drawn by the seed, and the other two thirds.

        The first part chooses members, the second tests them. It has at least one request; where there is only one in all, both parts
        are the same, and no claim about it can pass.

        >>> from neuronshield.model.prefixes import opening_tokens, openings_of
        >>> from neuronshield.prove.pairs import match, measure
        >>> tokens = opening_tokens(model, openings_of(model, prompts, refusals=["sorry"], compliances=["sure"]))
        >>> measure(model, match(prompts, seed=0)[0], tokens).split()
        (MatchedPairs(10 pairs in 2 cells), MatchedPairs(20 pairs in 2 cells))
        """
        requests = sorted(set(self.requests))
        order = np.random.default_rng(self.seed).permutation(len(requests))
        if len(requests) == 1:
            return self, self
        first = np.isin(self.requests, [requests[i] for i in order[: max(1, len(requests) // 3)]])
        return self.take(np.flatnonzero(first)), self.take(np.flatnonzero(~first))

    # -- conditions -----------------------------------------------------------------------------------
    def ablate(self, neurons: NeuronSet, kind: Ablation = "mean") -> Intervention:
        """The intervention that ablates `neurons` at the last prompt token of each pair's prompts."""
        rows = self.rows
        values = {"zero": None, "mean": rows.mean_values, "resample": rows.donor_values, "patch": rows.benign_values}
        return Intervention(neurons, kind, values[kind])

    def insert(self, neurons: NeuronSet) -> Intervention:
        """The intervention that writes the harmful prompt's values into its benign prompt."""
        return Intervention(neurons, "patch", self.rows.harmful_values)

    def on_harmful(
        self, conditions: Sequence[Intervention | None], *, frozen: bool = False
    ) -> Float[np.ndarray, "condition pair"]:
        """Margins of the harmful prompts under each condition (None: clean).

        Args:
            conditions: interventions at the last prompt token.
            frozen: whether every norm of the residual stream keeps its clean scale.
        """
        return self._margins("harmful", conditions, frozen=frozen)

    def on_benign(self, conditions: Sequence[Intervention | None]) -> Float[np.ndarray, "condition pair"]:
        """Margins of the benign prompts under each condition (None: clean)."""
        return self._margins("benign", conditions)

    def _margins(
        self, label: str, conditions: Sequence[Intervention | None], *, frozen: bool = False
    ) -> Float[np.ndarray, "condition pair"]:
        prompts = self.rows.harmful if label == "harmful" else self.rows.benign
        self.work["margins"] += (len(conditions) + frozen) * len(prompts)
        return run_margins(
            self.runner, self.model, prompts, conditions=conditions, tokens=self.tokens, batch_size=self.batch_size,  # type: ignore[arg-type]
            progress=self.progress, desc="verify", frozen=frozen,
        )  # fmt: skip

    # -- effects --------------------------------------------------------------------------------------
    @property
    def differences(self) -> Float[np.ndarray, " pair"]:
        """Clean margin of the harmful minus the benign prompt, pair by pair."""
        return self.rows.harmful_margins - self.rows.benign_margins

    @property
    def clean_logit_difference(self) -> Interval:
        """Mean of `differences`, with its interval."""
        return ratio_of_means(self.differences, np.ones(len(self)), list(self.requests))

    def normalised_effect(self, change: Float[np.ndarray, " pair"], rows: Any = slice(None)) -> Interval:
        """mean(change) / clean logit difference over `rows`, with its interval over requests."""
        return ratio_of_means(change[rows], self.differences[rows], list(self.requests[rows]))

    def normalised_effects(self, change: Float[np.ndarray, "set pair"]) -> Float[np.ndarray, " set"]:
        """The same for many sets, without intervals."""
        difference = self.differences.mean()
        return change.mean(axis=1) / difference if difference else np.full(len(change), np.nan)

    def added_effects(
        self, members: Sequence[tuple[int, int]], ablated: Sequence[NeuronSet]
    ) -> tuple[Float[np.ndarray, "neuron pair"], Float[np.ndarray, "neuron pair"]]:
        """Fall of the harmful margin when each neuron is ablated in addition to its set: as it is, and with norms frozen.

        Removing any neuron of large norm makes the norms rescale the rest of the residual stream, and so moves the margin
        without a path to it. With norms frozen at the clean run only what later layers and the head read counts.

        Args:
            members: the neurons.
            ablated: for each, the set that is ablated already; may be empty.
        """
        index: dict[NeuronSet, int] = {}
        plan = []
        for member, already in zip(members, ablated, strict=True):
            before, after = NeuronSet(already), NeuronSet(already) | NeuronSet([member])
            plan.append([index.setdefault(s, len(index)) for s in (before, after)])
        conditions = [self.ablate(s) if len(s) else None for s in index]
        before_at, after_at = np.array(plan).T
        free, frozen = self.on_harmful(conditions), self.on_harmful(conditions, frozen=True)
        return free[before_at] - free[after_at], frozen[before_at] - frozen[after_at]


def measure(
    model: Model,
    pairs: Sequence[tuple[Prompt, Prompt]],
    tokens: dict[str, OpeningTokens],
    *,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
    runner: Runner | None = None,
) -> MatchedPairs:
    """Pairs with their activations and clean margins: two recordings and two forwards of every prompt.

    Args:
        model: the model.
        pairs: (harmful, benign) prompts.
        tokens: first tokens of refusal and compliance prefixes, by language.
        seed: draws the donors of resampling.
        batch_size: prompts per forward.
        progress: whether bars are shown.
        runner: an engine with the model on it; None for this process.
    """
    harmful, benign = tuple(h for h, _ in pairs), tuple(b for _, b in pairs)
    requests = np.array([h.cluster for h in harmful], dtype=object)
    cells = np.array([str(h.cell) for h in harmful], dtype=object)
    benign_values = record(model, benign, batch_size=batch_size)
    unknown = np.zeros(len(pairs))
    rows = PairRows(
        harmful, benign, requests=requests, cells=cells,
        harmful_values=record(model, harmful, batch_size=batch_size), benign_values=benign_values,
        mean_values=_cell_means(benign_values, cells),
        donor_values=benign_values[donors(cells, requests, np.random.default_rng(seed))],
        harmful_margins=unknown, benign_margins=unknown,
    )  # fmt: skip
    out = MatchedPairs(model, tokens, rows, seed=seed, batch_size=batch_size, progress=progress, runner=runner)
    clean = out.on_harmful([None])[0], out.on_benign([None])[0]
    return replace(out, rows=replace(rows, harmful_margins=clean[0], benign_margins=clean[1]))


def _cell_means(
    values: Float[Tensor, "pair n_layers d_mlp"], cells: Shaped[np.ndarray, " pair"]
) -> Float[Tensor, "pair n_layers d_mlp"]:
    """For each row the mean over all rows of its cell."""
    out = torch.empty_like(values)
    for cell in dict.fromkeys(cells):
        rows = torch.from_numpy(np.flatnonzero(cells == cell))
        out[rows] = values[rows].mean(dim=0)
    return out


def donors(
    cells: Shaped[np.ndarray, " pair"], requests: Shaped[np.ndarray, " pair"], rng: np.random.Generator
) -> list[int]:
    """For each row a random row of its cell and of another request (itself only if there is no other).

    >>> from neuronshield.prove.pairs import donors
    >>> donors(np.array(["en/text"] * 3), np.array(["a", "a", "b"]), np.random.default_rng(0))[:2]
    [2, 2]

    Args:
        cells: the cell of each row.
        requests: the request of each row.
        rng: draws.
    """
    out = []
    for i in range(len(cells)):
        pool = np.flatnonzero((cells == cells[i]) & (requests != requests[i]))
        out.append(int(rng.choice(pool)) if len(pool) else i)
    return out
