"""What is left of a shield under someone who knows how it was made.

    pruned        safety neurons are found again *on the shielded model* and their W_down columns set to zero
                  (NeuroStrike's way), beside as many random neurons of the same layers
    fine-tuned    a short fine-tune on benign prompts only, taught to answer them (a LoRA of rank 8 on every MLP)

`attack` runs them and evaluates each on the "test" prompts; `relearn` is the defence that SafeNeuron proposes: freeze
(and silence) the safety neurons while the rest learns safety again, find again, and repeat, so that no small set
carries all of it.

Sources: NeuroStrike (2025), pruning; Qi et al. (2024), benign fine-tuning erodes alignment; SafeNeuron (2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from torch import nn

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..find.moments import capture
from ..find.scores import contrast
from ..model.answers import Example, examples
from ..model.families import PARTS
from ..model.model import Model
from ..model.weights import is_conv1d
from ..prove.controls import random_like
from ..shield.adapter import attach, merge, places, shared_copy, with_module
from ..shield.training import ADAMW, Options, fit
from ..shield.update import Training, Update, masked_update
from .evaluation import Evaluation, evaluate

__all__ = ["Round", "attack", "attacked", "find_again", "finetune", "prune", "relearn"]


def find_again(
    model: Model, prompts: PromptSet, k: int, *, method: str = "contribution", progress: bool = False
) -> NeuronSet:
    """The k neurons that separate harmful from benign best over all cells of the "discover" prompts.

    Scores are divided by their largest in each cell, so that every cell has a say.
    """
    scores = contrast(capture(model, prompts, progress=progress), method=method)
    size = np.abs(scores.values)
    peak = size.max(axis=(1, 2), keepdims=True)
    pooled = np.divide(size, peak, out=np.zeros_like(size), where=peak > 0).mean(axis=0)
    if not 1 <= k <= pooled.size:
        raise InputError(f"find_again: k={k}, must be 1 to {pooled.size}")
    best = np.argsort(-pooled, axis=None, kind="stable")[:k]
    return NeuronSet(
        zip(*np.unravel_index(best, pooled.shape), strict=True), n_layers=model.n_layers, d_mlp=model.d_mlp,
        provenance={**scores.provenance, "method": method, "cell": "all", "size": {"k": k}},
    )  # fmt: skip


def prune(model: Model, neurons: NeuronSet) -> Model:
    """The model without these neurons: their W_down columns are zero, at every token.

    >>> prune(model, neurons).down_weight(3)[:, 17].abs().max()        # doctest: +SKIP
    tensor(0.)
    """
    neurons.check_model(model)
    model.needs_weights("prune")
    module = shared_copy(model.module)
    for layer, own in neurons.by_layer().items():
        linear: Any = module.get_submodule(f"{model.layers_path}.{layer}.{model.site.down}")
        weight = linear.weight.detach().clone()
        (weight.T if is_conv1d(linear) else weight)[:, own] = 0.0
        linear.weight = nn.Parameter(weight, requires_grad=False)
    return with_module(model, module)


def finetune(
    model: Model, prompts: PromptSet, *, steps: int = 40, lr: float = 1e-3, batch_size: int = 16, seed: int = 0,
    progress: bool = False,
) -> Model:  # fmt: skip
    """A short fine-tune on the benign "train" prompts: their `target`, else the model's own answer, by cross-entropy.

    Raises:
        InputError: no benign prompts.
    """
    model.needs_weights("finetune")
    rows = prompts.for_step("train")
    data = [
        Example(e.prompt, e.response)
        for e in examples(
            model, PromptSet(p for p in rows if p.label == "benign"), progress=progress, labels=("benign",)
        )
    ]
    adapter = attach(model, places(model, None, PARTS), 8, hot=False, seed=seed)
    options = Options(steps, lr, batch_size, 1.0, ADAMW, 1, False, None, seed, progress)
    fit(model, adapter.peft_model, adapter.parameters(), data, options, about={})
    return merge(model, adapter.modules(), adapter.places)


def attack(
    model: Model,
    prompts: PromptSet,
    *,
    k: int = 64,
    steps: int = 40,
    lr: float = 1e-3,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    max_new_tokens: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Evaluation]:
    """Evaluate a shielded model as it is and under every attack.

    >>> left = attack(update.model, prompts, k=64)             # doctest: +SKIP
    >>> left["pruned"].mean("refusal")                         # doctest: +SKIP
    Interval(value=0.31, low=0.27, high=0.35)

    Args:
        model: the shielded model.
        prompts: "discover" rows are what neurons are found on again, "train" rows what is fine-tuned on, "test" rows
            what is measured.
        k: neurons pruned.
        steps, lr: of the benign fine-tune.

    Returns:
        {"as it is", "pruned", "random pruned", "fine-tuned": Evaluation}

    Raises:
        InputError: as `capture`, `evaluate`.
    """
    models = attacked(model, prompts, k=k, steps=steps, lr=lr, seed=seed, progress=progress)
    return {
        name: evaluate(
            m, prompts, name=name, refusals=refusals, compliances=compliances, max_new_tokens=max_new_tokens, seed=seed,
            progress=progress,
        )
        for name, m in models.items()
    }  # fmt: skip


def attacked(
    model: Model,
    prompts: PromptSet,
    *,
    k: int,
    steps: int = 40,
    lr: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Model]:
    """The model as it is and after every attack (see `attack`)."""
    found = find_again(model, prompts, k, progress=progress)
    return {
        "as it is": model,
        "pruned": prune(model, found),
        "random pruned": prune(model, random_like(found, model, np.random.default_rng(seed))),
        "fine-tuned": finetune(model, prompts, steps=steps, lr=lr, seed=seed, progress=progress),
    }


@dataclass
class Round:
    """One round of `relearn`: the neurons that were frozen, and the update of all others."""

    neurons: NeuronSet
    update: Update


def relearn(
    model: Model,
    prompts: PromptSet,
    *,
    k: int = 64,
    rounds: int = 2,
    rank: int = 8,
    zeroed: bool = True,
    method: str = "contribution",
    **training: Unpack[Training],
) -> list[Round]:
    """SafeNeuron's way: find k safety neurons, freeze (and silence) them while the rest learns safety, find again.

    >>> hardened = relearn(model, prompts, rounds=2)[-1].update.model          # doctest: +SKIP

    Raises:
        InputError: as `capture` and `masked_update`; fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"relearn: rounds={rounds}: must be at least 1")
    out: list[Round] = []
    for _ in range(rounds):
        found = find_again(model, prompts, k, method=method)
        update = masked_update(
            model, found, prompts, train="rest", rank=rank, zeroed=zeroed, allow_unproven=True, **training
        )
        out.append(Round(found, update))
        model = update.model
    return out
