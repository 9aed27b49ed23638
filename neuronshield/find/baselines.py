"""Baselines: scores of the literature that need the model itself; each returns `Scores`, as `contrast` does.

    snip           sum over a neuron's weights of E |W * dL/dW|, L the loss of the reference answer (Wei et al. 2024)
    change_score   RMS over answer tokens of the difference between the activations of two models (Chen et al. 2024)

`attribution` is a third. Scores that moments are enough for are in `scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..core.provenance import provenance
from ..core.sites import NEURON_VALUE
from ..data.languages import OpeningsArg
from ..data.prompts import Cell, Prompt, PromptSet
from ..model.answers import Example, answer_loss, examples
from ..model.encoding import Batch, batches
from ..model.experts import matrix, owners
from ..model.families import PARTS
from ..model.forward import read_layers
from ..model.generation import generate
from ..model.model import Model
from .moments import check_inputs
from .selection import Scores

__all__ = ["change_score", "snip"]


def snip(
    model: Model,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    progress: bool = True,
) -> Scores:
    """SNIP of every neuron in every cell, on harmful "discover" prompts; the same on benign ones is taken away.

    I_i = sum over the weights W of neuron i (gate and up rows, down column) of E_prompt |W * dL/dW|, with L the mean
    negative log-likelihood of the answer: `target`, or else a refusal (harmful) or the model's own answer (benign). The
    expectation of an absolute value takes one backward a prompt.

    >>> snip(model, prompts, progress=False).top(k=8)["en/text"]
    NeuronSet(8 neurons in ... layers)

    Args:
        model: with weights that are neither packed nor remote.
        prompts: harmful and benign prompts.
        refusals: refusal prefixes, a list for every language or {language: list}; the built-in ones by default.
        compliances: compliance prefixes, the same.
        progress: show a progress bar.

    Raises:
        InputError: arguments of another type, packed weights, only one label, or a language without a refusal.

    Source: Lee et al. (2019), "SNIP"; Wei et al. (2024), arXiv 2402.05162, eq. 1 and its set difference.
    """
    check_inputs("snip", model, prompts)
    model.needs_weights("snip")
    chosen = prompts.for_step("discover")
    chosen.require_both_labels("snip")
    data = examples(model, chosen, refusals=refusals, compliances=compliances)
    labels: dict[Cell, set[str]] = {cell: set() for cell in chosen.cells()}
    for example in data:
        labels[example.prompt.cell].add(example.prompt.label)
    cells = [cell for cell, found in labels.items() if len(found) == 2]
    if not cells:
        raise InputError("snip: no cell has both harmful and benign prompts; a contrast needs both")
    mean = _mean_sensitivity(model, [e for e in data if e.prompt.cell in cells], progress=progress)
    return Scores(
        cells=cells,
        values=np.stack([mean["harmful", c] for c in cells]),
        against=np.stack([mean["benign", c] for c in cells]),
        method="snip",
        n_params=model.n_params,
        params_per_neuron=model.params_per_neuron,
        provenance=provenance(model, chosen, seen=chosen, tokens="response", neuron_value=NEURON_VALUE),
    )


def _mean_sensitivity(
    model: Model, data: Sequence[Example], *, progress: bool
) -> dict[tuple[str, Cell], Float[np.ndarray, "n_layers d_mlp"]]:
    """Mean of `_sensitivity` by label and cell; weights ask for a gradient meanwhile."""
    total: dict[tuple[str, Cell], np.ndarray] = {}
    count: Counter[tuple[str, Cell]] = Counter()
    weights = _weights(model)
    flat = list({id(w): w for ws in weights for linear, _ in ws for w in _held(linear)}.values())
    asked = [w.requires_grad for w in flat]
    try:
        for w in flat:
            w.requires_grad_(True)
        for example in tqdm(data, desc="snip", unit="prompt", disable=not progress, leave=False):
            key = (example.prompt.label, example.prompt.cell)
            total[key] = total.get(key, 0) + _sensitivity(model, weights, example.prompt, response=example.response)
            count[key] += 1
    finally:
        for w, before in zip(flat, asked, strict=True):
            w.requires_grad_(before)
    return {key: value / count[key] for key, value in total.items()}


def _weights(model: Model) -> list[list[tuple[torch.nn.Module, str]]]:
    """Each layer's projections with the part they are; a fused projection once, as "fused"."""
    out = []
    for layer in range(model.n_layers):
        found: dict[str, str] = {}
        for part in PARTS:
            path = getattr(model.site, part)
            if path is not None:
                found[path] = "fused" if path in found else part
        out.append([(model.linear(layer, path), part) for path, part in found.items()])
    return out


def _held(linear: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that hold a projection's weight."""
    return [getattr(module, name) for module, name in owners(linear)]


def _sensitivity(
    model: Model, weights: list[list[tuple[torch.nn.Module, str]]], prompt: Prompt, *, response: str
) -> Float[np.ndarray, "n_layers d_mlp"]:
    """|W * dL/dW| of one prompt, summed over each neuron's weights."""
    (batch,) = batches(model, [prompt], batch_size=1, responses=[response])
    flat = list({id(w): w for ws in weights for linear, _ in ws for w in _held(linear)}.values())
    with torch.enable_grad():
        slopes = torch.autograd.grad(answer_loss(model, batch).sum(), flat, allow_unused=True)
    slope = dict(zip(map(id, flat), slopes, strict=True))
    out = np.zeros((model.n_layers, model.d_mlp))
    for layer, ws in enumerate(weights):
        for linear, part in ws:
            held = _held(linear)
            grads = [slope[id(w)] for w in held]
            if any(grad is None for grad in grads):  # a layer that does not run for this prompt
                continue
            rows = matrix(linear, [(w.detach() * grad).abs().float() for w, grad in zip(held, grads, strict=True)])
            per = rows.sum(dim=0) if part == "down" else rows.sum(dim=1)
            out[layer] += (per.view(2, -1).sum(dim=0) if part == "fused" else per).double().cpu().numpy()
    return out


def change_score(
    model: Model,
    other: Model,
    prompts: PromptSet,
    *,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """RMS over the answer's tokens of the difference between two models' activations, in every cell.

    The answer is what `model` generates greedily. Both models read the same prompt and answer. A token counts where it is
    predicted: from the last prompt token to the last but one. All prompts of the "discover" split count, of either label.

    >>> change_score(model, model, prompts[:4], max_new_tokens=2, progress=False).values.any().item()
    False

    Args:
        model: the model that answers.
        other: the model it is compared with.
        prompts: the prompts.
        max_new_tokens: length of an answer.
        batch_size: prompts in a forward.
        progress: show a progress bar.

    Raises:
        InputError: arguments of another type, models of different shapes or dtypes (the difference would be rounding), or
            no prompts.

    Source: Chen et al. (2024), "Finding Safety Neurons in Large Language Models", eq. 3 (generation-time contrast).
    """
    require(other, Model, call="change_score(model, other, prompts)", name="other", hint="the model that is compared")
    check_inputs("change_score", model, prompts)
    at_least(1, "change_score", max_new_tokens=max_new_tokens, batch_size=batch_size)
    _check_comparable(model, other)
    chosen = prompts.for_step("discover")
    if not len(chosen):
        raise InputError("change_score: no prompts")
    cells = chosen.cells()
    answers = generate(model, chosen, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    values = _rms_difference(model, other, chosen, answers=answers, batch_size=batch_size)
    about = provenance(
        model, chosen, seen=chosen, tokens="response", neuron_value=NEURON_VALUE, against=other.provenance()
    )
    return Scores(
        cells=cells,
        values=np.stack([values[c] for c in cells]),
        against=None,
        method="change_score",
        n_params=model.n_params,
        params_per_neuron=model.params_per_neuron,
        provenance=about,
    )


def _rms_difference(
    model: Model, other: Model, prompts: PromptSet, *, answers: list[str], batch_size: int
) -> dict[Cell, Float[np.ndarray, "n_layers d_mlp"]]:
    """RMS of the difference between two models, over the tokens at which the answers are predicted, by cell."""
    squares = {c: np.zeros((model.n_layers, model.d_mlp)) for c in prompts.cells()}
    count = dict.fromkeys(squares, 0)
    for batch in batches(model, list(prompts), batch_size=batch_size, responses=answers):
        where = batch.roles["response"] | batch.roles["last_prompt"]
        where &= ~_final(batch)  # nothing is predicted from the end-of-sequence token
        row = where.nonzero()[:, 0].cpu()
        difference = _read(model, batch, where) - _read(other, batch, where)
        owner = [prompts[batch.rows[int(i)]].cell for i in row]
        for cell in dict.fromkeys(owner):
            keep = torch.tensor([o == cell for o in owner])
            squares[cell] += (
                reduce(difference[:, keep] ** 2, "layer token neuron -> layer neuron", "sum").double().numpy()
            )
            count[cell] += int(keep.sum())
    return {cell: np.sqrt(square / count[cell]) for cell, square in squares.items()}


def _check_comparable(model: Model, other: Model) -> None:
    if model.dtype != other.dtype:
        raise InputError(f"change_score: models in {model.dtype} and {other.dtype}; load both in one dtype")
    mine, theirs = ((m.n_layers, m.d_mlp, m.d_model) for m in (model, other))
    if mine != theirs:
        raise InputError(f"change_score: models of different shapes, {mine} and {theirs} (n_layers, d_mlp, d_model)")


def _final(batch: Batch) -> Tensor:
    """The last answer token of each row."""
    answer = batch.roles["response"]
    following = torch.zeros_like(answer)
    following[:, :-1] = answer[:, 1:]
    return answer & ~following


def _read(model: Model, batch: Batch, where: Tensor) -> Float[Tensor, "layer token d_mlp"]:
    """Every layer's neurons at the chosen tokens, float32."""
    silent = torch.zeros(int(where.sum()), model.d_mlp, dtype=torch.float32)

    def chosen(layer: int, h: Tensor, envoy: Any) -> Tensor:
        return h[where.to(h.device)].float().cpu()

    layers = read_layers(model, batch, chosen)
    return torch.stack([silent if h is None else h for h in layers])
