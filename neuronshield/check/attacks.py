"""White-box attacks on a shielded model, and a defence by repeated training.

An attacker who has the weights and knows the method can

    prune        find the safety neurons again on the shielded model and set their W_down columns to zero (NeuroStrike); the
                 control prunes as many random neurons of the same layers
    fine-tune    train shortly on benign prompts with answers (a LoRA of rank 8 on every MLP): Qi et al. (2024) showed that
                 this alone erodes alignment

`attack` applies both and evaluates each result on the "test" prompts. `relearn` is the defence of SafeNeuron: freeze (and
zero) the safety neurons while the rest learns safety, find safety neurons again, and repeat, so that no small set carries all
of it.

Sources: NeuroStrike (2025), pruning; Qi et al. (2024), benign fine-tuning; SafeNeuron (2026), `relearn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from torch import nn

from ..core.arguments import at_least, one_of, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..find.moments import capture
from ..find.reselection import pooled, reselect
from ..find.scores import METHODS
from ..model.answers import Example, examples
from ..model.families import PARTS
from ..model.model import Model, require_model
from ..model.weights import is_conv1d
from ..prove.controls import drawn_like
from ..shield.adapter import attach, merge, places, shared_copy, with_module
from ..shield.training import TrainingConfig, TrainingOptions, fit, training_config
from ..shield.update import Update, about_run
from ..shield.variants import frozen_set_update
from .evaluation import Evaluation, evaluate

__all__ = ["Round", "attack", "attacked", "find_again", "finetune", "prune", "relearn"]


#: Names of the models that `attacked` gives.
AS_IT_IS, PRUNED, RANDOM_PRUNED, FINE_TUNED = "as it is", "pruned", "random pruned", "fine-tuned"


#: The benign fine-tune of `attack`: short, and gentle enough that answers stay fluent.
FINE_TUNE = TrainingConfig(steps=40, lr=1e-3)


FINE_TUNE_RANK = 8


def find_again(
    model: Model, prompts: PromptSet, k: int, *, method: str = "contribution", progress: bool = False
) -> NeuronSet:
    """The k neurons that a contrast of harmful and benign prompts selects over all cells: an attacker's selection.

    Of the k best neurons of each cell, the k with the largest sum over cells of the score are kept. The scores of a cell are divided by
    their largest, so that every cell has the same weight; a score with a set difference subtracts it in every cell.

    >>> len(ns.attacks.find_again(model, prompts, 7))
    7

    Args:
        model: the model, normally a shielded one.
        prompts: those of split "discover" are used, all of them if none is so marked.
        k: how many neurons.
        method: a score of `contrast`.
        progress: show a progress bar.

    Raises:
        InputError: k outside 1 to all neurons, an unknown method, or as `capture`.
    """
    one_of(method, METHODS, call="find_again", name="method")
    stats = capture(model, prompts, progress=progress)
    if not 1 <= k <= model.n_layers * model.d_mlp:
        raise InputError(f"find_again: k={k}, must be 1 to {model.n_layers * model.d_mlp}")
    if not stats.cells():
        raise InputError("find_again: no cell has both harmful and benign prompts; a contrast needs both")
    tree = pooled(method, stats.cells(), k)
    found = reselect(tree, stats, n=k)
    about = {**stats.provenance, "method": method, "cell": "all", "size": {"k": k}, "selection": tree}
    return NeuronSet(found, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance=about)


def prune(model: Model, neurons: NeuronSet) -> Model:
    """The model without these neurons: their W_down columns are zero.

    >>> ns.attacks.prune(model, neurons).down_weight(0)[:, 3].abs().max().item()
    0.0

    Args:
        model: the model; it is not changed.
        neurons: what is pruned.

    Raises:
        InputError: a set of another model, or packed weights.
    """
    require(neurons, NeuronSet, call="prune(model, neurons)", name="neurons")
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
    model: Model,
    prompts: PromptSet,
    *,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> Model:
    """The model after a fine-tune on the benign "train" prompts only: their `target`, else its own answer, by cross-entropy.

    >>> ns.attacks.finetune(model, prompts, steps=2, lr=1e-3, progress=False)
    Model(...)

    Args:
        model: the model; it is not changed.
        prompts: the benign ones of split "train" are used, all benign ones if none is so marked.
        config: training settings; the defaults of `TrainingConfig` without them. `attack` uses 40 steps of 1e-3.
        **changes: fields of `TrainingConfig` for this call; `objective` can be "supervised" only.

    Raises:
        InputError: no benign prompts, or an unknown keyword.

    Source: Qi et al. (2024), benign fine-tuning.
    """
    settings = training_config("finetune", config, changes, objectives=("supervised",), also=("config",))
    require(model, Model, call="finetune(model, prompts)", name="model")
    require(prompts, PromptSet, call="finetune(model, prompts)", name="prompts")
    model.needs_weights("finetune")
    benign = PromptSet(p for p in prompts.for_step("train") if p.label == "benign")
    answered = examples(model, benign, progress=settings.progress, labels=("benign",))
    data = [Example(e.prompt, e.response) for e in answered]
    about = about_run(model, benign, config=settings, facts={"train": "finetune", "rank": FINE_TUNE_RANK})
    adapter = attach(model, places(model, None, PARTS), FINE_TUNE_RANK, hot=False, seed=settings.seed)
    fit(model, adapter.peft_model, parameters=adapter.parameters(), data=data, config=settings, about=about)
    return merge(model, adapter.modules(), adapter.places)


def attack(
    model: Model,
    prompts: PromptSet,
    *,
    k: int = 64,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    max_new_tokens: int = 32,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> dict[str, Evaluation]:
    """Evaluations of a shielded model as it is and after every attack: {"as it is", "pruned", "random pruned", "fine-tuned"}.

    >>> options = {"refusals": ["sorry"], "compliances": ["sure"], "max_new_tokens": 2, "progress": False}
    >>> left = ns.attacks.attack(model, prompts, k=3, steps=2, **options)
    >>> list(left)
    ['as it is', 'pruned', 'random pruned', 'fine-tuned']

    Args:
        model: the shielded model.
        prompts: neurons are found again on the "discover" rows, the fine-tune uses the "train" rows, and the "test" rows are
            measured.
        k: neurons pruned.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own without them.
        compliances: compliance prefixes, the same.
        max_new_tokens: tokens an answer.
        config: settings of the benign fine-tune; 40 steps of 1e-3 without them. Their seed also draws the random neurons.
        **changes: fields of `TrainingConfig` for this call.

    Raises:
        InputError: as `capture`, `finetune` and `evaluate`.
    """
    require_model(model, call="attack(model, prompts)")
    own = ("k", "refusals", "compliances", "max_new_tokens", "config")
    settings = training_config("attack", config or FINE_TUNE, changes, objectives=("supervised",), also=own)
    models = attacked(model, prompts, k=k, config=settings)
    return {
        name: evaluate(
            m, prompts, name=name, refusals=refusals, compliances=compliances, max_new_tokens=max_new_tokens,
            seed=settings.seed, progress=settings.progress,
        )
        for name, m in models.items()
    }  # fmt: skip


def attacked(
    model: Model,
    prompts: PromptSet,
    *,
    k: int,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> dict[str, Model]:
    """The model as it is and after every attack, by the names of `attack`.

    >>> list(ns.attacks.attacked(model, prompts, k=3, steps=1, progress=False))
    ['as it is', 'pruned', 'random pruned', 'fine-tuned']

    Args:
        model: the shielded model.
        prompts: as in `attack`.
        k: neurons pruned.
        config: settings of the benign fine-tune; 40 steps of 1e-3 without them.
        **changes: fields of `TrainingConfig` for this call.

    Raises:
        InputError: as `capture` and `finetune`.
    """
    settings = training_config(
        "attacked", config or FINE_TUNE, changes, objectives=("supervised",), also=("k", "config")
    )
    found = find_again(model, prompts, k, progress=settings.progress)
    return {
        AS_IT_IS: model,
        PRUNED: prune(model, found),
        RANDOM_PRUNED: prune(model, drawn_like(found, model, seed=settings.seed)),
        FINE_TUNED: finetune(model, prompts, config=settings),
    }


@dataclass(frozen=True, eq=False)
class Round:
    """One round of `relearn`.

    Attributes:
        neurons: the neurons that were frozen.
        update: the update of all others.
    """

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
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> list[Round]:
    """The rounds of finding k safety neurons, freezing them, and training the rest; the last one has the hardened model.

    >>> done = ns.attacks.relearn(model, prompts, k=5, rounds=2, rank=2, steps=1, progress=False)
    >>> [len(r.neurons) for r in done]
    [5, 5]

    Args:
        model: the model; it is not changed.
        prompts: neurons are found on the "discover" rows, the rest is trained on the "train" rows.
        k: neurons found and frozen each round.
        rounds: how many.
        rank: rank of the LoRA on the rest.
        zeroed: the frozen neurons are zero while the rest learns.
        method: a score of `contrast`.
        refusals: refusal prefixes; the model's own without them (see `masked_update`).
        compliances: compliance prefixes, the same.
        config: training settings of each round.
        **changes: fields of `TrainingConfig` for this call.

    Raises:
        InputError: as `capture` and `frozen_set_update`; fewer than one round.

    Source: SafeNeuron (2026).
    """
    own = ("k", "rounds", "rank", "zeroed", "method", "refusals", "compliances", "config")
    settings = training_config("relearn", config, changes, objectives=("supervised",), also=own)
    at_least(1, "relearn", rounds=rounds)
    out: list[Round] = []
    for _ in range(rounds):
        found = find_again(model, prompts, k, method=method)
        update = frozen_set_update(
            model, found, prompts, rank=rank, zeroed=zeroed, refusals=refusals, compliances=compliances, config=settings
        )
        out.append(Round(found, update))
        model = update.model
    return out
