"""Activations of neurons on every token of prompts: what each neuron reads.

A batch is one traced forward, of which the chosen neurons alone are kept. Padding is left out. Each token comes with its text and
its role (see `spans`), each image token with its place in the picture (see `patches`).

    frame     one row a (prompt, token, neuron): `activations`
    arrays    [neuron, token] of each prompt, with its tokens and grids: `readings`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from ..model.encoding import Batch, as_prompts, batches, check_prompts
from ..model.encodings import encoded_rows
from ..model.engine import Context, Engine, Result, Unit, shards
from ..model.engines import engine_of
from ..model.forward import read_layers
from ..model.model import Model, require_model
from .patches import Grid, Patch, patches_of
from .spans import roles_of, token_texts
from .view import TokenView

__all__ = [
    "COLUMNS",
    "Reading",
    "activations",
    "activations_of",
    "chosen_neurons",
    "readings",
    "tokens_of",
    "values_of",
]

#: Columns of the frame.
COLUMNS = ("prompt", "position", "token", "role", "image", "row", "column", "layer", "index", "value")
BATCHES = 4  # of a unit


@dataclass(frozen=True, eq=False)
class Reading:
    """What neurons read in one prompt.

    Attributes:
        prompt: the prompt.
        tokens: as the model reads them, without padding.
        grids: the grid of each picture; None where the order of its tokens is not known.
        note: what is not known of image tokens, as a sentence; empty where all is.
        values: activations, in the order of the set.
    """

    prompt: Prompt
    tokens: tuple[TokenView, ...]
    grids: tuple[Grid | None, ...]
    note: str
    values: Float[np.ndarray, "neuron token"]


def activations(
    model: Model,
    prompts: str | Prompt | Iterable[str | Prompt],
    neurons: NeuronSet,
    *,
    batch_size: int = 32,
    engine: Engine | str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """One row for every token of every prompt and every neuron.

    >>> frame = activations(model, prompts[:4], neurons)
    >>> frame.shape, frame.columns.tolist()
    ((66, 10), ['prompt', 'position', 'token', 'role', 'image', 'row', 'column', 'layer', 'index', 'value'])
    >>> frame.pivot_table("value", ["layer", "index"], "prompt", aggfunc="max").shape
    (3, 4)

    The columns are the prompt's id; the token's position from 0, text and role ("template", "text" or "image"); the number of its
    picture, and its row and column in that picture's grid (missing where they do not apply or are not known); the neuron; and its
    activation. A character that is split over several tokens is the text of the last of them. Rows are in the order of the prompts, then of
    tokens, then of neurons. All of it is held in memory: for many prompts use `top_prompts`.

    Args:
        model: the model.
        prompts: a prompt, a string, or several of either.
        neurons: the neurons to read.
        batch_size: prompts in a forward.
        engine: where forwards are computed: None for this process, "ray", or an engine (`neuronshield.model.engine`).
        progress: show a progress bar.

    Raises:
        InputError: arguments of another type, neurons of another model, no prompts, a prompt that the model cannot read whole,
            or an activation that is not finite.
    """
    rows = as_prompts(model, prompts, call="activations")
    found = readings(model, rows, neurons, batch_size=batch_size, engine=engine, progress=progress)
    members = np.array(list(neurons), dtype=np.int64).reshape(-1, 2)
    return pd.concat([_frame(reading, members) for reading in found], ignore_index=True)


def _frame(reading: Reading, members: np.ndarray) -> pd.DataFrame:
    n, tokens = len(members), reading.tokens

    def each(values: Sequence[Any], dtype: str) -> Any:
        return pd.array(values, dtype=dtype).repeat(n)

    columns = {
        "prompt": pd.array([reading.prompt.id] * len(tokens) * n, dtype="str"),
        "position": np.arange(len(tokens)).repeat(n),
        "token": each([t.text for t in tokens], "str"), "role": each([t.role for t in tokens], "str"),
        "image": each([t.image for t in tokens], "Int64"), "row": each([t.row for t in tokens], "Int64"),
        "column": each([t.column for t in tokens], "Int64"),
        "layer": np.tile(members[:, 0], len(tokens)), "index": np.tile(members[:, 1], len(tokens)),
        "value": reading.values.T.reshape(-1),
    }  # fmt: skip
    return pd.DataFrame({name: columns[name] for name in COLUMNS})


def readings(
    model: Model,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    *,
    batch_size: int = 32,
    engine: Engine | str | None = None,
    progress: bool = False,
) -> list[Reading]:
    """What neurons read in each prompt, in the order of the prompts.

    >>> first = readings(model, prompts[:4], neurons)[0]
    >>> first.values.shape, [token.text for token in first.tokens]
    ((3, 5), ['how', ' do', ' i', ' make', ' bomb'])

    Args:
        model: the model.
        prompts: the prompts.
        neurons: the neurons to read.
        batch_size: prompts in a forward.
        engine: as for `activations`.
        progress: show a progress bar.

    Raises:
        InputError: as `activations`.
    """
    members = chosen_neurons("activations", model, neurons)
    at_least(1, "activations", batch_size=batch_size)
    if not len(prompts):
        raise InputError("activations: no prompts")
    check_prompts(model, prompts)
    options = {"neurons": [list(pair) for pair in members], "batch_size": batch_size}
    plan = shards(prompts, batch_size, batches=BATCHES)
    units = (Unit(f"{__name__}:activations_of", tuple(prompts[i] for i in rows), options=options) for rows in plan)
    results = engine_of(engine).on(model).map(units, desc="read", progress=progress, total=len(prompts))
    out: list[Reading | None] = [None] * len(prompts)
    for rows, (arrays, lengths) in zip(plan, results, strict=True):
        parts = np.split(arrays["values"], np.cumsum(lengths)[:-1], axis=1)
        for row, values in zip(rows, parts, strict=True):
            out[row] = Reading(prompts[row], *tokens_of(model, prompts[row]), values)
    return [reading for reading in out if reading is not None]


def chosen_neurons(call: str, model: Model, neurons: NeuronSet) -> NeuronSet:
    """The neurons that a call was given, checked to be the model's.

    >>> chosen_neurons("activations", model, neurons)
    NeuronSet(3 neurons in 3 layers)

    Args:
        call: the function, for the message.
        model: what was given as the model.
        neurons: what was given as the neurons.

    Raises:
        InputError: other types, no neurons, neurons of another model, or a set of another site than "neuron".
    """
    require_model(model, call=f"{call}(model, ...)")
    require(neurons, NeuronSet, call=f"{call}(...)", name="neurons", hint="wrap (layer, index) pairs in NeuronSet(...)")
    neurons.needs_neurons(call)
    if not len(neurons):
        raise InputError(f"{call}: the set has no neurons")
    return NeuronSet(neurons, n_layers=model.n_layers, d_mlp=model.d_mlp)


def tokens_of(model: Model, prompt: Prompt) -> tuple[tuple[TokenView, ...], tuple[Grid | None, ...], str]:
    """The tokens of a prompt, the grid of each of its pictures, and what is not known of its image tokens.

    >>> tokens_of(model, prompts[0])[0][4]
    TokenView(text=' bomb', role='text', image=None, row=None, column=None)

    Args:
        model: the model.
        prompt: the prompt.

    Raises:
        InputError: the model cannot read it whole.
    """
    (row,) = encoded_rows(model, [prompt])
    texts = token_texts(model, row.tokens["input_ids"].tolist())
    roles = roles_of(model, prompt, row, texts=texts)
    found = patches_of(model, prompt, row)
    places = [found.tokens.get(i, Patch()) for i in range(len(texts))]
    tokens = [TokenView(t, role, *place) for t, role, place in zip(texts, roles, places, strict=True)]
    return tuple(tokens), found.grids, found.note


def activations_of(model: Model, unit: Unit, context: Context) -> Result:
    """Activations on all tokens of a unit's prompts, one after the other, and the number of tokens of each.

    >>> unit = Unit("", tuple(prompts[:3]), options={"neurons": [[0, 3], [2, 7]], "batch_size": 2})
    >>> arrays, lengths = activations_of(model, unit, Context())
    >>> arrays["values"].shape, lengths
    ((2, 16), [5, 5, 6])

    Args:
        model: the model.
        unit: prompts, with options "neurons" and "batch_size".
        context: is told of batches that are done.

    Raises:
        InputError: as `activations`.
    """
    parts: list[Any] = [None] * len(unit.prompts)
    members = NeuronSet(map(tuple, unit.options["neurons"]))  # type: ignore[arg-type]
    for batch in batches(model, unit.prompts, batch_size=unit.options["batch_size"]):
        for row, values in zip(batch.rows, values_of(model, batch, members), strict=True):
            parts[row] = values
        context.tick(len(batch.rows))
    return {"values": np.concatenate(parts, axis=1)}, [part.shape[1] for part in parts]


def values_of(model: Model, batch: Batch, neurons: NeuronSet) -> Iterator[Float[np.ndarray, "neuron token"]]:
    """Activations of neurons on the prompt tokens of each row of a batch, in float32.

    >>> from neuronshield.model.encoding import collate
    >>> [values.shape for values in values_of(model, collate(model, prompts[:3]), neurons)]
    [(3, 5), (3, 5), (3, 6)]

    Args:
        model: the model.
        batch: prompts.
        neurons: the neurons to read.

    Raises:
        InputError: an activation that is not finite.
    """
    by_layer, mask = neurons.by_layer(), batch.roles["prompt"].cpu()

    def chosen(layer: int, h: Tensor, envoy: Any) -> Tensor:
        return h[..., by_layer.get(layer, [])].detach().float().cpu()

    found = read_layers(model, batch, chosen)
    for row, prompt in enumerate(batch.ids):
        parts = []
        for layer, members in by_layer.items():
            part = found[layer]
            here = np.zeros((int(mask[row].sum()), len(members)), np.float32)  # a layer that does not run is silent
            parts.append((here if part is None else part[row][mask[row]].numpy()).T)
            if not np.isfinite(parts[-1]).all():
                raise InputError(
                    f"activations: layer {layer} has activations that are not finite on prompt {prompt!r}; load with "
                    "dtype='float32' or 'bfloat16', or check the checkpoint's weights"
                )
        yield np.concatenate(parts)
