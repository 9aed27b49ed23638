"""Training-free rivals of the masked update, on the same interface: what closed formulas can do with the same neurons.

    clamp_edit      the set is held at its mean on harmful prompts, everywhere: W_down[:, S] = 0 and
                    b_down += W_down_old[:, S] m_h. The steering that most run-time methods amount to, as a weight edit.
    low_rank_edit   W_down[:, S] += v w^T, one rank a layer, by ridge regression: w reads 1 from the set on harmful
                    prompts and 0 on benign ones, v points where the refusal margin grows fastest.

                        w = (X_h^T X_h + X_b^T X_b + lambda I)^-1 X_h^T 1        v = alpha dm/dy, y the MLP's output

                    The least-squares solution of MEMIT (Meng et al., 2023, eq. 14) with benign prompts as what is kept.

Both read the last prompt token of the "train" prompts and no gradient step is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..find.moments import record
from ..model.encoding import batches
from ..model.forward import margins
from ..model.model import Model
from ..model.prefixes import OpeningTokens, margin, opening_tokens, openings_of
from ..model.weights import is_conv1d
from .adapter import ADAPTER, attach, merge, places, shared_copy, slots, with_module
from .update import Update

__all__ = ["clamp_edit", "low_rank_edit"]


logger = logging.getLogger("neuronshield")


RIDGE = 0.1  # of the mean squared activation


STRENGTHS = tuple(2.0**i for i in range(-4, 9))


def clamp_edit(model: Model, neurons: NeuronSet, prompts: PromptSet) -> Update:
    """Hold the set at its mean over harmful prompts, as a bias.

    >>> clamp_edit(model, proof.verified, prompts).model       # doctest: +SKIP

    Raises:
        InputError: an empty set, a set of another model, or no harmful prompts.
    """
    rows = _rows(model, neurons, prompts, "clamp_edit")
    activations = record(model, [p for p in rows if p.label == "harmful"]).mean(dim=0)
    module = shared_copy(model.module)
    changed = 0
    for layer, own in neurons.by_layer().items():
        linear: Any = module.get_submodule(f"{model.layers_path}.{layer}.{model.site.down}")
        weight = linear.weight.detach().clone()
        columns = weight.T if is_conv1d(linear) else weight
        shift = columns[:, own] @ activations[layer, own].to(columns)
        columns[:, own] = 0.0
        bias = torch.zeros_like(shift) if linear.bias is None else linear.bias.detach().clone()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = nn.Parameter(bias + shift, requires_grad=False)
        changed += len(own) * len(shift) + len(shift)
    about = {**model.provenance(), "data": rows.hash(), "seed": 0, "versions": versions(), "bias_edit": True}
    return Update(
        with_module(model, module), neurons, None, changed, [], 0, about, "clamp to the harmful mean (bias edit)"
    )


def low_rank_edit(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
) -> Update:
    """Write a refusal into the set's W_down where the set says harm, by one rank a layer.

    The strength alpha is the power of two that separates the margins of the "train" prompts best.

    Raises:
        InputError: an empty set, a set of another model, only one label, or openings that tokenise to nothing.
    """
    rows = _rows(model, neurons, prompts, "low_rank_edit")
    tokens = opening_tokens(model, openings_of(model, rows, refusals=refusals, compliances=compliances))
    harmful = np.array([p.label == "harmful" for p in rows])
    activations = record(model, list(rows))
    directions = _steepest(model, PromptSet(p for p in rows if p.label == "harmful"), tokens)
    where = places(model, neurons, ("down",))
    adapter = attach(model, where, slots(where), hot=True, seed=0)
    wrapped = adapter.modules()
    unit: dict[str, Tensor] = {}
    for place in where:
        assert place.own is not None
        w = _reader(activations[:, place.layer, place.own].double(), torch.from_numpy(harmful))
        unit[place.name] = torch.outer(directions[place.layer], w).float()
    best: tuple[float, float, Model] | None = None
    for strength in STRENGTHS:
        for name, change in unit.items():
            free = wrapped[name].lora_B[ADAPTER].weight
            free.data[:, : change.shape[1]] = (strength * change).to(free)
        edited = merge(model, wrapped, where)
        refused = margins(edited, list(rows), [None], tokens)[0] > 0
        apart = float(refused[harmful].mean() - refused[~harmful].mean())
        if best is None or apart > best[0] + 1e-9:
            best = (apart, strength, edited)
    assert best is not None
    for name, change in unit.items():
        free = wrapped[name].lora_B[ADAPTER].weight
        free.data[:, : change.shape[1]] = (best[1] * change).to(free)
    about = {**model.provenance(), "data": rows.hash(), "seed": 0, "versions": versions(), "strength": best[1]}
    form = "low-rank edit of W_down, closed form"
    return Update(best[2], neurons, adapter.peft_model, adapter.trained, [], 0, about, form)


def _rows(model: Model, neurons: NeuronSet, prompts: PromptSet, what: str) -> PromptSet:
    if not len(neurons):
        raise InputError(f"{what}: the neuron set is empty; there is nothing to edit")
    neurons.check_model(model)
    model.needs_weights(what)
    rows = prompts.for_step("train")
    rows.require_both_labels(what)
    return rows


def _reader(x: Float[Tensor, "prompt k"], harmful: Tensor) -> Float[Tensor, " k"]:
    """w: reads 1 on harmful rows and 0 on benign ones, each label counting equally."""
    weight = torch.where(harmful, 1.0 / harmful.sum(), 1.0 / (~harmful).sum()).double()
    covariance = (x * weight[:, None]).T @ x
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(covariance + ridge * eye, (x * weight[:, None]).T @ harmful.double())


def _steepest(model: Model, prompts: PromptSet, tokens: dict[str, OpeningTokens]) -> Float[Tensor, "n_layers d_model"]:
    """Gradient of the mean refusal margin in each layer's MLP output at the last token, all layers to norm 1 together."""
    nudge = torch.zeros(model.n_layers, model.d_model, dtype=torch.float32, device=model.device, requires_grad=True)
    for batch in batches(model, list(prompts), batch_size=32, side="left"):
        with _nudged(model, nudge), model.frozen(), torch.enable_grad():
            logits = model.module(**batch.encoding).logits[:, -1]
            margin(logits, [tokens[prompts[row].language] for row in batch.rows]).sum().backward()
    assert nudge.grad is not None
    return (nudge.grad / nudge.grad.norm()).double().cpu()


@contextmanager
def _nudged(model: Model, nudge: Tensor) -> Iterator[None]:
    """Adds `nudge[layer]` to each MLP output at the last position."""

    def hook_of(layer: int) -> Any:
        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return torch.cat([out[:, :-1], out[:, -1:] + nudge[layer].to(out.dtype)], dim=1)

        return add

    handles = [
        model.linear(layer, model.site.down).register_forward_hook(hook_of(layer)) for layer in range(model.n_layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
