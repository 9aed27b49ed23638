"""Running traces elsewhere: on NDIF (https://ndif.us), whose servers hold models that fit no machine of yours.

`load(hub_id, remote=True)` builds the model without weights and asks nobody yet; each trace is sent with its source, run there, and
only what it saves comes back: moments, not activations. Norms, fingerprint and dtype of the weights are asked once, on first use.
`load(..., remote="local")` sends a trace through the same serialisation and runs it here, with this package hidden, which shows
that it would run there.

One forward pass can be run there: `capture`, `record`, `attribution`, and logits under an intervention. What changes weights,
generates, or holds norms (`masked_update`, `generate`, `verify`) needs the model here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from .families import Site
from .running import running, wrapped
from .weights import SAMPLED_ROWS, is_conv1d

__all__ = ["Facts", "facts", "wrap"]


WHOLE = {"float64", "float32", "bfloat16", "float16"}  # dtypes in which each weight is a number of its own


class Facts(NamedTuple):
    """What weights tell that are not here.

    Attributes:
        norms: ||W_down[:, i]|| of every neuron, by order (1 and 2).
        samples: the first rows of each layer's W_down, for the fingerprint.
        dtype: name of the weights' dtype.
    """

    norms: dict[int, Float[Tensor, "n_layers d_mlp"]]
    samples: list[Tensor]
    dtype: str


def wrap(model: str | nn.Module, processor: Any, *, multimodal: bool, **options: Any) -> Any:
    """nnsight's wrapper of a model that can be traced elsewhere.

    >>> type(wrap(model.module, model.processor, multimodal=False)).__name__
    'TransformersModel'

    Args:
        model: a hub id, whose weights are not loaded, or a module that is here.
        processor: its processor or tokenizer.
        multimodal: whether it takes pictures.
        **options: what loading its config needs (revision, trust_remote_code).
    """
    nnsight.register("neuronshield")  # our own functions in a trace travel by their source
    task = "image-text-to-text" if multimodal else "text-generation"
    given = {"processor" if multimodal else "tokenizer": processor}
    if isinstance(model, str):
        return nnsight.TransformersModel(model, task=task, **given, **options)
    return wrapped(model, lambda: nnsight.TransformersModel(model, task=task, **given, **options))


class Traced(Protocol):
    """What is asked of a model here (`Model` is one)."""

    @property
    def id(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def remote(self) -> bool | str: ...
    @property
    def site(self) -> Site: ...
    @property
    def traced(self) -> Any: ...
    @property
    def envoys(self) -> list[Any]: ...
    @property
    def there(self) -> dict[str, Any]: ...
    def linear(self, layer: int, name: str) -> nn.Module: ...


def facts(model: Traced) -> Facts:
    """What the weights tell, asked where they are.

    >>> there = ns.load(model.module, processor=model.processor, remote="local")
    >>> facts(there).dtype
    'float32'

    Args:
        model: a model that is traced elsewhere.

    Raises:
        InputError: nobody there answers for this model, or its weights are packed there.
    """
    envoys = model.envoys
    turned = is_conv1d(model.linear(0, model.site.down))
    try:
        ids = torch.ones(1, 1, dtype=torch.long)
        with running(model), torch.no_grad(), model.traced.trace(input_ids=ids, **model.there) as tracer:
            ones, twos, samples = nnsight.save([]), nnsight.save([]), nnsight.save([])
            dtypes = nnsight.save([])
            for envoy in envoys:
                dtypes.append(str(envoy.weight.dtype))
                weight = envoy.weight.detach()
                weight = weight.T if turned else weight
                ones.append(weight.double().norm(1, dim=0).cpu())
                twos.append(weight.double().norm(2, dim=0).cpu())
                samples.append(weight[:SAMPLED_ROWS].float().cpu())
            tracer.stop()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"remote={model.remote!r}: {model.id!r} could not be asked ({reason}); does nnsight.ndif.status() list it, and is "
            "NDIF_API_KEY set?"
        ) from error
    found = {name.removeprefix("torch.") for name in dtypes}
    if odd := sorted(found - WHOLE):
        raise InputError(
            f"remote={model.remote!r}: the MLP weights of {model.id!r} are packed there ({odd[0]}), and cannot be read from here; "
            "ask for a model that is served in bfloat16, or load it here"
        )
    return Facts({1: torch.stack(list(ones)), 2: torch.stack(list(twos))}, list(samples), sorted(found)[0])
