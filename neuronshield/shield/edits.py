"""Training-free baselines of the masked update: closed-form edits of the same neurons.

    clamp_edit      the set S is held at its mean over harmful prompts, at every token: W_down[:, S] = 0 and
                    b_down += W_down_old[:, S] m_h. This is constant steering, as a weight edit.
    low_rank_edit   W_down[:, S] += v w^T, one rank a layer, by ridge regression: w . x_S is 1 on harmful prompts and 0 on benign
                    ones, and v is the direction in which the refusal margin grows fastest.

                        w = (X_h^T X_h + X_b^T X_b + lambda I)^-1 X_h^T 1        v = alpha dm/dy, y the MLP's output

                    The least-squares solution of MEMIT (Meng et al., 2023, eq. 14), with benign prompts as what is kept.

Both use the activations at the last prompt token of the "train" prompts; no gradient step is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..find.moments import record
from ..model.encoding import batches
from ..model.families import by_row
from ..model.forward import margins
from ..model.model import Model
from ..model.prefixes import OpeningTokens, margin, opening_tokens, openings_of
from ..model.running import recording, running
from ..model.weights import is_conv1d
from .adapter import ADAPTER, attach, merge, places, shared_copy, slots, with_module
from .subject import check_subject
from .update import Update

__all__ = ["clamp_edit", "low_rank_edit"]


logger = logging.getLogger("neuronshield")


RIDGE = 0.1  # of the mean squared activation


STRENGTHS = tuple(2.0**i for i in range(-4, 9))


def clamp_edit(model: Model, neurons: NeuronSet, prompts: PromptSet) -> Update:
    """An update that holds the set at its mean over harmful prompts, as a bias.

    >>> edit = ns.clamp_edit(model, neurons, prompts)
    >>> edit.model.down_weight(0)[:, 3].abs().max().item()
    0.0

    Args:
        model: the model; it is not changed.
        neurons: the neurons that are held.
        prompts: those of split "train" are used, all of them if none is so marked.

    Raises:
        InputError: an empty set, a set of another model, or only one label.
    """
    rows = _rows(model, neurons, prompts, what="clamp_edit")
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
    about = provenance(model, rows, seed=0, bias_edit=True)
    form = "clamp to the harmful mean (bias edit)"
    shielded = with_module(model, module)
    added = shielded.n_params - model.n_params
    return Update(shielded, neurons, None, trained=changed, provenance=about, form=form, added=added)


def low_rank_edit(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
) -> Update:
    """An update of the set's W_down by one rank a layer, which raises the refusal margin where the set reads harm.

    The strength alpha is the power of two that separates the margins of the "train" prompts best.

    >>> edit = ns.low_rank_edit(model, neurons, prompts, refusals=["sorry"], compliances=["sure"])
    >>> edit.trained              # 3 neurons x 20
    60

    Args:
        model: the model; it is not changed.
        neurons: the neurons whose W_down columns change.
        prompts: those of split "train" are used, all of them if none is so marked.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own without them.
        compliances: compliance prefixes, the same.

    Raises:
        InputError: an empty set, a set of another model, only one label, or prefixes that tokenise to nothing.
    """
    rows = _rows(model, neurons, prompts, what="low_rank_edit")
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
    best: tuple[float, float] | None = None
    for strength in STRENGTHS:
        for name, change in unit.items():
            free = wrapped[name].lora_B[ADAPTER].weight
            free.data[:, : change.shape[1]] = (strength * change).to(free)
        edited = merge(model, wrapped, where)
        refused = margins(edited, list(rows), [None], tokens=tokens)[0] > 0
        apart = float(refused[harmful].mean() - refused[~harmful].mean())
        if best is None or apart > best[0] + 1e-9:
            best = (apart, strength)
    assert best is not None
    for name, change in unit.items():
        free = wrapped[name].lora_B[ADAPTER].weight
        free.data[:, : change.shape[1]] = (best[1] * change).to(free)
    edited = merge(model, wrapped, where)
    about = provenance(model, rows, seed=0, strength=best[1])
    form = "low-rank edit of W_down, closed form"
    return Update(edited, neurons, adapter.peft_model, trained=adapter.trained, provenance=about, form=form)


def _rows(model: Model, neurons: NeuronSet, prompts: PromptSet, *, what: str) -> PromptSet:
    check_subject(f"{what}(model, neurons, prompts)", model, neurons, prompts=prompts)
    rows = prompts.for_step("train")
    rows.require_both_labels(what)
    return rows


def _reader(x: Float[Tensor, "prompt k"], harmful: Bool[Tensor, " prompt"]) -> Float[Tensor, " k"]:
    """w with w . x near 1 on harmful rows and 0 on benign ones, each label with the same weight."""
    weight = torch.where(harmful, 1.0 / harmful.sum(), 1.0 / (~harmful).sum()).double()
    covariance = (x * weight[:, None]).T @ x
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(covariance + ridge * eye, (x * weight[:, None]).T @ harmful.double())


def _steepest(model: Model, prompts: PromptSet, tokens: dict[str, OpeningTokens]) -> Float[Tensor, "n_layers d_model"]:
    """Gradient of the mean refusal margin in each layer's MLP output at the last token, all layers to norm 1 together."""
    nudge = torch.zeros(model.n_layers, model.d_model, dtype=torch.float32, device=model.device, requires_grad=True)
    for batch in batches(model, list(prompts), batch_size=32, side="left"):
        with _nudged(model, nudge, len(batch.rows)), model.frozen(), recording("low_rank_edit"):
            with running(model, rows=len(batch.rows), width=batch.encoding["input_ids"].shape[1]):
                logits = model.module(**batch.encoding).logits[:, -1]
            margin(logits, [tokens[prompts[row].language] for row in batch.rows]).sum().backward()
    assert nudge.grad is not None
    return (nudge.grad / nudge.grad.norm()).double().cpu()


@contextmanager
def _nudged(model: Model, nudge: Tensor, rows: int) -> Iterator[None]:
    """Adds `nudge[layer]` to each MLP output at the last position."""

    def hook_of(layer: int) -> Any:
        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            each = by_row(out, rows)
            return torch.cat([each[:, :-1], each[:, -1:] + nudge[layer].to(out.dtype)], dim=1).view_as(out)

        return add

    handles = [
        model.linear(layer, model.site.down).register_forward_hook(hook_of(layer)) for layer in range(model.n_layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
