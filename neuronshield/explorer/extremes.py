"""The prompts on which each neuron is strongest and weakest, out of as many prompts as there are.

Prompts are read in shards of 512, each a unit of work for an engine (`model.engine`). A shard gives back the k best of its prompts for each
neuron, label and end, and these are merged into the k best so far. Memory therefore does not depend on the number of prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..core.arguments import at_least, one_of, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.columns import LABELS
from ..data.prompts import Prompt, PromptSet
from ..data.streams import PromptStream
from ..model.encoding import Role, batches, check_prompts
from ..model.engine import Context, Engine, Result, Unit
from ..model.engines import engine_of
from ..model.forward import read_layers
from ..model.model import Model
from .activations import chosen_neurons

__all__ = ["STRONGEST", "WEAKEST", "extremes_of", "top_prompts"]

STRONGEST, WEAKEST = "strongest", "weakest"
ENDS = (STRONGEST, WEAKEST)
ROLES = ("last_prompt", "prompt", "image", "text")
COLUMNS = ("layer", "index", "label", "end", "rank", "prompt", "cell", "value")
SHARD = 512  # prompts


def top_prompts(
    model: Model,
    prompts: PromptSet | PromptStream,
    neurons: NeuronSet,
    k: int = 20,
    *,
    tokens: Role = "last_prompt",
    batch_size: int = 32,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The k strongest and the k weakest prompts of each neuron among harmful and among benign ones.

    >>> frame = top_prompts(model, prompts, neurons, k=2, progress=False)
    >>> frame.shape, frame.columns.tolist()
    ((24, 8), ['layer', 'index', 'label', 'end', 'rank', 'prompt', 'cell', 'value'])

    `end` is "strongest" or "weakest", `rank` counts from 1, `prompt` is the id, `cell` such as "en/text", and `value` the activation. The
    weakest have the lowest values, which may be negative. With fewer than 2 k prompts of a label some are at both ends. Of equal values the
    prompt that comes first has the better rank.

    Args:
        model: the model.
        prompts: all of them are read. A `PromptStream` is read once, a few rows at a time.
        neurons: the neurons to read.
        k: prompts at each end.
        tokens: role of the tokens that count: the last token of the prompt, all of it, its image tokens, or its other tokens. A prompt's value is
            the largest over them; a prompt without such a token is left out.
        batch_size: prompts in a forward.
        engine: where shards are computed: None for this process, "ray", or an engine (`neuronshield.model.engine`).
        progress: show a progress bar.

    Raises:
        InputError: arguments of another type, neurons of another model, no prompts, no prompt with a token of the role, or an activation that is
            not finite.
    """
    members = chosen_neurons("top_prompts", model, neurons)
    hint = (
        "the prompts come before the neurons"
        if isinstance(prompts, NeuronSet)
        else "PromptSet.from_records reads dicts"
    )
    require(prompts, (PromptSet, PromptStream), call="top_prompts(model, prompts, neurons)", name="prompts", hint=hint)
    one_of(tokens, ROLES, call="top_prompts", name="tokens")
    at_least(1, "top_prompts", k=k, batch_size=batch_size)
    if isinstance(prompts, PromptSet):
        check_prompts(model, prompts)
    options = {"neurons": [list(pair) for pair in members], "k": k, "tokens": tokens, "batch_size": batch_size}
    units = (Unit(f"{__name__}:extremes_of", rows, options=options) for rows in _shards(prompts))
    total = len(prompts) if isinstance(prompts, PromptSet) else None
    best: dict[tuple[str, str], _Best] = {}
    seen = 0
    for arrays, about in engine_of(engine).on(model).map(units, desc="read", progress=progress, total=total):
        seen += len(about)
        names = np.empty(len(about), dtype=object)
        names[:] = [tuple(each) for each in about]
        for label in LABELS:
            for end in ENDS:
                if f"{label} {end}" in arrays:
                    new = _Best(arrays[f"{label} {end}"], names[arrays[f"{label} {end} rows"]])
                    old = best.get((label, end))
                    best[label, end] = new if old is None else old.merged(new, k, end=end)
    if not best:
        raise InputError(
            f"top_prompts: no prompt has a token of role {tokens!r}" if seen else "top_prompts: no prompts"
        )
    return _frame(best, members)


class _Best:
    """The best prompts so far, [rank, neuron]: their values, and their (id, cell)."""

    def __init__(self, values: Float[np.ndarray, "rank neuron"], names: Shaped[np.ndarray, "rank neuron"]) -> None:
        self.values, self.names = values, names

    def merged(self, other: _Best, k: int, *, end: str) -> _Best:
        """The best k of both; of equal ones those that came first."""
        values = np.concatenate([self.values, other.values])
        rows = _order(values, k, end=end)
        names = np.concatenate([self.names, other.names])
        return _Best(np.take_along_axis(values, rows, axis=0), np.take_along_axis(names, rows, axis=0))


def _order(values: Float[np.ndarray, "row neuron"], k: int, *, end: str) -> Any:
    """Rows of the best k of each column, the best first, [rank, neuron]."""
    return np.argsort(-values if end == STRONGEST else values, axis=0, kind="stable")[:k]


def _shards(prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, ...]]:
    rows = iter(prompts)
    while shard := tuple(islice(rows, SHARD)):
        yield shard


def _frame(best: dict[tuple[str, str], _Best], members: NeuronSet) -> pd.DataFrame:
    rows = [
        (layer, index, label, end, rank, *each.names[rank - 1, column], float(each.values[rank - 1, column]))
        for column, (layer, index) in enumerate(members)
        for (label, end), each in sorted(best.items(), key=lambda item: (LABELS.index(item[0][0]), item[0][1]))
        for rank in range(1, len(each.values) + 1)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def extremes_of(model: Model, unit: Unit, context: Context) -> Result:
    """The best prompts of a unit at each end, by label, and the id and cell of all its prompts: the work of `top_prompts`.

    >>> options = {"neurons": [[0, 3], [2, 7]], "k": 2, "tokens": "last_prompt", "batch_size": 32}
    >>> arrays, about = extremes_of(model, Unit("", tuple(prompts[:10]), options=options), Context())
    >>> arrays["harmful strongest"].shape, about[0]
    ((2, 2), ['en-text-0-0-harmful', 'en/text'])

    Args:
        model: the model.
        unit: prompts, with options "neurons", "k", "tokens" and "batch_size".
        context: is told of batches that are done.

    Raises:
        InputError: as `top_prompts`.
    """
    options = unit.options
    members = NeuronSet((layer, index) for layer, index in options["neurons"])
    values = np.full((len(unit.prompts), len(members)), -np.inf, dtype=np.float32)
    there = np.zeros(len(unit.prompts), dtype=bool)
    for batch in batches(model, unit.prompts, batch_size=options["batch_size"]):
        mask = batch.roles[options["tokens"]]

        def largest(layer: int, h: Tensor, envoy: Any, mask: Tensor = mask) -> Tensor:
            here = h[..., members.by_layer().get(layer, [])].float()
            return here.masked_fill(~mask.to(h.device)[..., None], -torch.inf).amax(dim=1).detach().cpu()

        found = read_layers(model, batch, largest)
        parts = [
            torch.zeros(len(batch.rows), len(indices)) if found[layer] is None else found[layer]
            for layer, indices in members.by_layer().items()
        ]
        values[batch.rows] = torch.cat(parts, dim=1).numpy()  # type: ignore[arg-type]
        there[batch.rows] = mask.any(dim=1).cpu().numpy()
        context.tick(len(batch.rows))
    _check_finite(unit.prompts, values[there], there)
    arrays: dict[str, Any] = {}
    for label in LABELS:
        mine = np.flatnonzero(there & np.array([p.label == label for p in unit.prompts]))
        for end in ENDS if len(mine) else ():
            rows = _order(values[mine], options["k"], end=end)
            arrays[f"{label} {end}"] = np.take_along_axis(values[mine], rows, axis=0)
            arrays[f"{label} {end} rows"] = mine[rows]
    return arrays, [[p.id, str(p.cell)] for p in unit.prompts]


def _check_finite(prompts: tuple[Prompt, ...], values: Float[np.ndarray, "row neuron"], there: Any) -> None:
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        prompt = prompts[int(np.flatnonzero(there)[int(wrong.argmax())])]
        raise InputError(
            f"top_prompts: activations that are not finite on prompt {prompt.id!r}; load with dtype='float32' or 'bfloat16', "
            "or check the checkpoint's weights"
        )
