"""Two methods related to the masked update: a LoRA masked by rows, and training everything except the set.

    masked_lora         dW = B A on W_gate and W_up, rank r, where the rows of B outside the set are zero. This is the form in
                        Precise Shield (2026). It trains k rows of B, and all of A; W_down is not trained. The row space of
                        the update has rank r, where `masked_update` gives each neuron a direction of its own.
    frozen_set_update   the complement: the set keeps its bits, and all other MLP rows and columns learn by a LoRA of rank r.
                        SafeNeuron (2026) uses this to spread safety over more neurons: with the known safety neurons frozen
                        (and, with `zeroed=True`, silent during training), refusal has to be learnt elsewhere.

`neuronshield.check.attacks.relearn` repeats the second method with newly found neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.arguments import at_least
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..model.families import PARTS
from ..model.model import Model
from .adapter import Adapter, attach, places
from .subject import check_budget, check_subject, present_parts, warn_unproven
from .training import TrainingConfig, TrainingOptions, training_config
from .update import Update, train_adapter

__all__ = ["frozen_set_update", "masked_lora"]


def masked_lora(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    rank: int = 8,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    budget: float | None = None,
    allow_unproven: bool = False,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> Update:
    """An update of the W_gate and W_up rows of `neurons` by a LoRA whose B is masked to these rows.

    >>> update = masked_lora(model, neurons, prompts, rank=2, steps=2, allow_unproven=True, progress=False)
    >>> update.trained            # 2 projections x (3 rows of B + 3 layers x 20 columns of A), rank 2
    252

    Args:
        model: the model; it is not changed.
        neurons: the neurons that learn.
        prompts: those of split "train" are used, all of them if none is so marked.
        rank: rank of the LoRA.
        refusals: refusal prefixes; the model's own without them (see `masked_update`).
        compliances: compliance prefixes, the same.
        budget: the largest share of the parameters that may be trained.
        allow_unproven: do not warn when the set has not passed `verify`.
        config: training settings; the defaults of `TrainingConfig` without them.
        **changes: fields of `TrainingConfig` for this call.

    Raises:
        InputError: as `masked_update`; a rank below 1 or above that of the projections.

    Source: Precise Shield (2026), masked LoRA-B.
    """
    call = "masked_lora"
    settings = training_config(
        call, config, changes, also=("rank", "refusals", "compliances", "budget", "allow_unproven", "config")
    )
    check_subject(f"{call}(model, neurons, prompts)", model, neurons, prompts=prompts)
    _check_rank(call, rank, model)
    parts = present_parts(call, model, ("gate", "up"))
    adapter = attach(model, places(model, neurons, parts), rank, hot=False, seed=settings.seed)
    check_budget(call, adapter, len(neurons), budget=budget)
    if not allow_unproven:
        warn_unproven(call, neurons)
    return train_adapter(
        adapter, neurons, prompts, config=settings, refusals=refusals, compliances=compliances,
        form=f"LoRA of rank {rank}, B masked to the set's rows, on {' and '.join(parts)}",
        facts={"train": call, "parts": list(parts), "rank": rank},
    )  # fmt: skip


def frozen_set_update(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    rank: int = 8,
    zeroed: bool = False,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> Update:
    """An update of all MLP weights except those of `neurons`, by a LoRA; the set keeps its bits.

    >>> update = frozen_set_update(model, neurons, prompts, rank=2, steps=2, progress=False)
    >>> changed = (update.model.down_weight(0) != model.down_weight(0)).any(dim=0)      # [d_mlp]
    >>> (~changed).nonzero().flatten().tolist()
    [3]

    Args:
        model: the model; it is not changed.
        neurons: the neurons that stay as they are.
        prompts: those of split "train" are used, all of them if none is so marked.
        rank: rank of the LoRA, the same on every MLP projection.
        zeroed: the set's activations are zero in every training forward of the updated model.
        refusals: refusal prefixes; the model's own without them (see `masked_update`).
        compliances: compliance prefixes, the same.
        config: training settings; the defaults of `TrainingConfig` without them.
        **changes: fields of `TrainingConfig` for this call; `objective` can be "supervised" only.

    Raises:
        InputError: as `masked_update`; a rank below 1 or above that of the projections.

    Source: SafeNeuron (2026).
    """
    call = "frozen_set_update"
    settings = training_config(
        call, config, changes, objectives=("supervised",),
        also=("rank", "zeroed", "refusals", "compliances", "config"),
    )  # fmt: skip
    check_subject(f"{call}(model, neurons, prompts)", model, neurons, prompts=prompts)
    _check_rank(call, rank, model)
    parts = present_parts(call, model, PARTS)
    adapter = attach(model, places(model, neurons, parts, outside=True), rank, hot=False, seed=settings.seed)
    return train_adapter(
        adapter, neurons, prompts, config=settings, refusals=refusals, compliances=compliances,
        form=f"the rest of the MLPs by LoRA of rank {rank}, the set {'zeroed and ' if zeroed else ''}frozen",
        facts={"train": call, "parts": list(parts), "rank": rank, "zeroed": zeroed},
        held=_Zeroed(adapter, neurons) if zeroed else None,
    )  # fmt: skip


def _check_rank(call: str, rank: int, model: Model) -> None:
    """Raise unless a factor of this rank is no larger than the projections need."""
    at_least(1, call, rank=rank)
    whole = min(model.d_model, model.d_mlp)
    if rank > whole:
        raise InputError(f"{call}: rank={rank}: the MLP projections have rank {whole}; use a rank of at most {whole}")


class _Zeroed:
    """While entered, the set's activations are zero in the trained model's forwards."""

    def __init__(self, adapter: Adapter, neurons: NeuronSet) -> None:
        self.members = neurons.by_layer()
        model = adapter.model
        inner: Any = adapter.peft_model.base_model
        self.modules = {
            layer: inner.model.get_submodule(f"{model.layers_path}.{layer}.{model.site.down}") for layer in self.members
        }

    def __enter__(self) -> None:
        self.handles = [m.register_forward_pre_hook(self._hook(layer)) for layer, m in self.modules.items()]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, layer: int) -> Callable[..., Any]:
        own = torch.tensor(self.members[layer])

        def zero(module: nn.Module, args: tuple[Float[Tensor, "*batch d_mlp"], ...]) -> tuple[Tensor, ...]:
            h = args[0].clone()
            h[..., own.to(h.device)] = 0.0
            return (h, *args[1:])

        return zero
