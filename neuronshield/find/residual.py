"""The residual stream after chosen layers, at the last prompt token: what directions are found from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import at_least, one_of
from ..core.errors import InputError
from ..data.prompts import Prompt
from ..model.model import Model
from .last_tokens import at_last, check_rows

__all__ = ["record_residual"]


def record_residual(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    tokens: str = "last_prompt",
    batch_size: int = 32,
) -> Float[np.ndarray, "prompt layer d_model"]:
    """What layers hand on at the last prompt token of each prompt (float32): the output of each, where `Directions` are changed.

    A layer that does not run for a prompt (`Model.idle`) gives 0.

    >>> record_residual(model, prompts[:4], layers=[0, 2]).shape
    (4, 2, 20)

    Args:
        model: the model.
        prompts: the rows, in order.
        layers: numbers of the layers, from 0, in the order of the result; None for all.
        tokens: "last_prompt", the only role that is one token a prompt.
        batch_size: prompts in a forward.

    Raises:
        InputError: arguments of another type, layers that the model does not have, a model whose layers hand on more than one
            stream, a value that is not finite, or too little memory.
    """
    call = "record_residual"
    check_rows(call, model, prompts)
    one_of(tokens, ("last_prompt",), call=call, name="tokens")
    at_least(1, call, batch_size=batch_size)
    wanted = list(range(model.n_layers)) if layers is None else list(layers)
    if not wanted or any(layer not in range(model.n_layers) for layer in wanted):
        raise InputError(f"{call}: layers={wanted!r:.60}; {model.id!r} has layers 0 to {model.n_layers - 1}")

    def value(h: Tensor, envoy: Any, last: Tensor) -> Tensor:
        return h[last].detach().float()

    found = at_last(model, prompts, value, width=model.d_model, batch_size=batch_size, site="residual")
    return found[:, wanted].numpy()
