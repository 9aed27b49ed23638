"""Scores of the literature that need the model itself, on the interface of `contrast`: each gives `Scores`.

    snip           sum over a neuron's weights of E |W * dL/dW|, L the loss of the reference answer (Wei et al.)
    change_score   RMS over answer tokens of the difference between two models (Chen et al.)

`attribution` is the third. What moments are enough for is in `contrast`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import InputError
from ..core.neurons import NEURON_VALUE
from ..core.provenance import versions
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.answers import answer_loss, examples
from ..model.encoding import Batch, batches
from ..model.families import PARTS
from ..model.generation import generate
from ..model.model import Model, by_row
from ..model.weights import is_conv1d
from .scores import Scores

__all__ = ["change_score", "snip"]


def snip(
    model: Model,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    progress: bool = True,
) -> Scores:
    """SNIP of every neuron in every cell, over the "discover" prompts: harmful, and benign as what is taken away.

    >>> snip(model, prompts).top(k=64)[Cell("en", "text")]     # doctest: +SKIP
    NeuronSet(64 neurons in 4 layers)

    I_i = sum over the weights W of neuron i (gate and up rows, down column) of E_prompt |W * dL/dW|, with L the mean
    negative log-likelihood of the answer: `target`, else a refusal (harmful) or what the model says (benign). One
    backward a prompt, as the expectation of an absolute value asks for.

    Raises:
        InputError: packed weights, only one label, or a language without a refusal.

    Source: Lee et al. (2019), "SNIP"; Wei et al. (2024), arXiv 2402.05162, eq. 1 and its set difference.
    """
    model.needs_weights("snip")
    chosen = prompts.for_step("discover")
    chosen.require_both_labels("snip")
    data = examples(model, chosen, refusals=refusals, compliances=compliances)
    cells = [
        c
        for c in dict.fromkeys(p.cell for p in chosen)
        if len({e.prompt.label for e in data if e.prompt.cell == c}) == 2
    ]
    if not cells:
        raise InputError("snip: no cell has both harmful and benign prompts; a contrast needs both")
    total = {(label, c): np.zeros((model.n_layers, model.d_mlp)) for label in ("harmful", "benign") for c in cells}
    count = dict.fromkeys(total, 0)
    weights = _weights(model)
    flat = [w for ws in weights for w, _ in ws]
    asked = [w.requires_grad for w in flat]
    try:
        for w in flat:
            w.requires_grad_(True)
        for example in tqdm(data, desc="snip", unit="prompt", disable=not progress, leave=False):
            key = (example.prompt.label, example.prompt.cell)
            if key in total:
                total[key] += _sensitivity(model, weights, example.prompt, example.response)
                count[key] += 1
    finally:
        for w, before in zip(flat, asked, strict=True):
            w.requires_grad_(before)
    mean = {key: total[key] / count[key] for key in total}
    return Scores(
        cells,
        np.stack([mean["harmful", c] for c in cells]),
        np.stack([mean["benign", c] for c in cells]),
        "snip",
        model.n_params,
        model.params_per_neuron,
        _about(model, chosen, "response"),
    )


def _weights(model: Model) -> list[list[tuple[torch.nn.Parameter, str]]]:
    """Each layer's weights with the part they are; a fused projection once, as "fused"."""
    out = []
    for layer in range(model.n_layers):
        found: dict[str, str] = {}
        for part in PARTS:
            path = getattr(model.site, part)
            if path is not None:
                found[path] = "fused" if path in found else part
        out.append([(model.linear(layer, path).weight, part) for path, part in found.items()])
    return out  # type: ignore[return-value]


def _sensitivity(
    model: Model, weights: list[list[tuple[torch.nn.Parameter, str]]], prompt: Prompt, response: str
) -> Float[np.ndarray, "n_layers d_mlp"]:
    """|W * dL/dW| of one prompt, summed over each neuron's weights."""
    (batch,) = batches(model, [prompt], batch_size=1, responses=[response])
    flat = [w for ws in weights for w, _ in ws]
    with torch.enable_grad():
        slopes = torch.autograd.grad(answer_loss(model, batch).sum(), flat, allow_unused=True)
    slope = dict(zip(map(id, flat), slopes, strict=True))
    out = np.zeros((model.n_layers, model.d_mlp))
    turned = is_conv1d(model.linear(0, model.site.down))
    for layer, ws in enumerate(weights):
        for w, part in ws:
            grad = slope[id(w)]
            if grad is None:  # a layer that does not run for this prompt
                continue
            size = (w.detach() * grad).abs().float()
            rows = size.T if turned else size  # [out, in]
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

    >>> change_score(shielded, model, prompts).top(k=64)       # doctest: +SKIP

    The answer is what `model` says (greedy), up to `max_new_tokens`; both models read the same prompt and answer, and a
    token counts where it is predicted, from the last prompt token on. All prompts of the "discover" split count, of
    either label.

    Raises:
        InputError: models of different shapes or dtypes (a difference would be of rounding), or no prompts.

    Source: Chen et al. (2024), "Finding Safety Neurons in Large Language Models", eq. 3 (generation-time contrast).
    """
    mine, theirs = model.dtype, other.dtype
    if mine != theirs:
        raise InputError(f"change_score: models in {mine} and {theirs}; load both in one dtype")
    shapes = [(m.n_layers, m.d_mlp, m.d_model) for m in (model, other)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"change_score: models of different shapes, {shapes[0]} and {shapes[1]} (n_layers, d_mlp, d_model)"
        )
    chosen = prompts.for_step("discover")
    if not len(chosen):
        raise InputError("change_score: no prompts")
    cells = list(dict.fromkeys(p.cell for p in chosen))
    answers = generate(model, chosen, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    squares = {c: np.zeros((model.n_layers, model.d_mlp)) for c in cells}
    count = dict.fromkeys(cells, 0)
    for batch in batches(model, list(chosen), batch_size=batch_size, responses=answers):
        where = batch.roles["response"] | batch.roles["last_prompt"]
        where &= ~_final(batch)  # nothing is predicted from the end-of-sequence token
        row = where.nonzero()[:, 0].cpu()
        difference = [a - b for a, b in zip(_read(model, batch, where), _read(other, batch, where), strict=True)]
        owner = [chosen[batch.rows[int(i)]].cell for i in row]
        for cell in dict.fromkeys(owner):
            keep = torch.tensor([o == cell for o in owner])
            squares[cell] += np.stack([(d[keep] ** 2).sum(dim=0).double().numpy() for d in difference])
            count[cell] += int(keep.sum())
    values = np.stack([np.sqrt(squares[c] / count[c]) for c in cells])
    about = {**_about(model, chosen, "response"), "against": other.provenance()}
    return Scores(cells, values, None, "change_score", model.n_params, model.params_per_neuron, about)


def _final(batch: Batch) -> Tensor:
    """The last answer token of each row."""
    answer = batch.roles["response"]
    following = torch.zeros_like(answer)
    following[:, :-1] = answer[:, 1:]
    return answer & ~following


def _read(model: Model, batch: Batch, where: Tensor) -> Iterator[Float[Tensor, "token d_mlp"]]:
    """Every layer's neurons at the chosen tokens, float32."""
    idle = model.idle(batch.encoding)
    n = int(where.sum())
    with torch.no_grad(), model.traced.trace(**batch.encoding, **model.there) as tracer:
        kept = nnsight.save([])
        for layer, envoy in enumerate(model.envoys):
            if layer in idle:
                kept.append(torch.zeros(n, model.d_mlp))
                continue
            h = by_row(envoy.input, len(where))
            kept.append(h[where.to(h.device)].float().cpu())
        tracer.stop()
    yield from list(kept)


def _about(model: Model, rows: PromptSet, tokens: str) -> dict[str, Any]:
    return {
        **model.provenance(), "data": rows.hash(), "tokens": tokens, "neuron_value": NEURON_VALUE, "versions": versions(),
        "seen": sorted({p.cluster for p in rows}),
    }  # fmt: skip
