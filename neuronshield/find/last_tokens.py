"""What the layers of a model have at the last prompt token of each prompt: the loop that recording shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import require
from ..core.errors import InputError
from ..data.prompts import Prompt
from ..model.encoding import Batch, batches
from ..model.forward import read_layers
from ..model.model import Model

__all__ = ["at_last", "check_rows", "not_finite_activations"]


def check_rows(call: str, model: Any, prompts: Any) -> None:
    """Raise unless a call was given a model and a sequence of prompts, in this order.

    >>> check_rows("record", model, prompts[:4])

    Args:
        call: the function, for the message.
        model: what was given first.
        prompts: what was given second.

    Raises:
        InputError: other types, or the two swapped.
    """
    call = f"{call}(model, prompts)"
    require(model, Model, call=call, name="model", hint="the model comes first" if isinstance(prompts, Model) else "")
    require(prompts, Sequence, call=call, name="prompts", hint="a PromptSet, or a list of prompts")
    for prompt in prompts:
        require(prompt, Prompt, call=call, name="every row of prompts", hint="PromptSet.from_records reads dicts")


def at_last(
    model: Model,
    prompts: Sequence[Prompt],
    value: Callable[[Tensor, Any, Tensor], Tensor],
    *,
    width: int,
    batch_size: int,
    site: str = "neuron",
) -> Float[Tensor, "prompt n_layers width"]:
    """What `value` gives for each layer at the last prompt token of each prompt, float32.

    >>> at_last(model, prompts[:4], lambda h, envoy, last: h[last].float(), width=29, batch_size=2).shape
    torch.Size([4, 3, 29])

    Args:
        model: the model.
        prompts: the rows, in order.
        value: called inside the trace as `value(h, envoy, mask)`, with what a layer has at the site [batch, pos, ...], nnsight's name
            of the module there, and which tokens are meant [batch, pos]; gives [batch, width].
        width: numbers that it gives.
        batch_size: prompts in a forward.
        site: as for `read_layers`.

    Raises:
        InputError: a value that is not finite, a site that the model does not have, or too little memory.
    """
    out = torch.empty(len(prompts), model.n_layers, width, dtype=torch.float32)
    for batch in batches(model, prompts, batch_size=batch_size):
        mask = batch.roles["last_prompt"]
        silent = torch.zeros(len(mask), width, dtype=torch.float32, device=mask.device)

        def last(layer: int, h: Tensor, envoy: Any, mask: Tensor = mask) -> Tensor:
            return value(h, envoy, mask.to(h.device)).to(mask.device)

        layers = [silent if part is None else part for part in read_layers(model, batch, last, site=site)]
        out[batch.rows] = rearrange(layers, "layer prompt neuron -> prompt layer neuron").cpu()
        if not bool(out[batch.rows].isfinite().all()):
            raise InputError(
                f"record: {not_finite_activations(model, prompts, batch, tokens='last_prompt', site=site)}"
            )
    return out


def not_finite_activations(model: Model, prompts: Sequence[Prompt], batch: Batch, *, tokens: str, site: str) -> str:
    """What is said of a batch with activations, or their squares, that are not finite: the first layer, and one prompt.

    >>> from neuronshield.model.encoding import collate
    >>> not_finite_activations(model, prompts, collate(model, prompts[:2]), tokens="last_prompt", site="neuron")
    "layer 0 has activations that are not finite on prompt '...'; load with dtype='float32' or 'bfloat16', or check the ..."

    Args:
        model: the model.
        prompts: all prompts; `batch.rows` says which are in the batch.
        batch: the batch.
        tokens: role of the tokens that were read.
        site: where they were read.
    """
    mask = batch.roles[tokens]

    def wrong(layer: int, h: Tensor, envoy: Any) -> Tensor:
        here = mask.to(h.device)[..., None]
        return (~(h.float() ** 2).isfinite() & here).flatten(1).any(dim=1).to(mask.device)

    found = read_layers(model, batch, wrong, site=site)
    layer, rows = next(((i, x) for i, x in enumerate(found) if x is not None and bool(x.any())), (0, mask.any(dim=1)))
    return (
        f"layer {layer} has activations that are not finite on prompt {prompts[batch.rows[int(rows.int().argmax())]].id!r}; "
        "load with dtype='float32' or 'bfloat16', or check the checkpoint's weights"
    )
