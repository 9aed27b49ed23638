"""Reading the MLP weights of a model: counts, the columns that neurons write, their norms, a fingerprint.

Neuron i of a layer owns row i of W_up (and of W_gate, where there is one) and column i of W_down. Everything here is read from
the weights that act in the forward pass, however they are stored (see `neuronshield.model.projection`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from .experts import Projection
from .families import Site
from .projection import (
    acting_weight,
    adapter_parameters,
    device_of,
    is_conv1d,
    is_plain,
    out_in,
    packed_as,
    refusal,
    stored_in,
)

__all__ = [
    "check_adapters",
    "check_loaded",
    "check_projections",
    "count_params",
    "down_norms",
    "down_weight",
    "dtype_name",
    "fingerprint",
    "held_back",
    "input_device",
    "is_conv1d",
    "is_offloaded",
    "out_in",
    "packing",
    "params_per_neuron",
    "projections_of",
]

BY_TOKEN = ("XLORA", "POLY", "ADAPTION_PROMPT", "CARTRIDGE")  # kinds of adapters whose weights depend on the token
SAMPLED_ROWS = 4  # rows of each W_down that the fingerprint reads


class Addressed(Protocol):
    """What is asked of a model here (`Model` is one)."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def site(self) -> Site: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    def linear(self, layer: int, name: str) -> nn.Module: ...


# -- one model --------------------------------------------------------------------------------------------
def check_projections(family: str, layers: Sequence[nn.Module], site: Site) -> None:
    """Raise unless the MLP projections of every layer have weights that can be told, each its own.

    >>> check_projections("Llama", model.module.model.layers, model.site)

    Args:
        family: the model's class, for the message.
        layers: the decoder layers.
        site: where the MLP is in each of them.

    Raises:
        InputError: one that has not, named by its layer.
    """
    seen: dict[int, int] = {}
    for layer, owner in enumerate(layers):
        for path in dict.fromkeys(p for p in site if p is not None):
            linear = owner.get_submodule(path)
            if why := refusal(linear):
                raise InputError(
                    f"{family}: {path!r} of layer {layer} is a {type(linear).__name__}, and {why}; not supported: load the "
                    "model in bfloat16, whole and unpacked"
                )
        down = owner.get_submodule(site.down)
        if (first := seen.setdefault(id(down._parameters.get("weight", down)), layer)) != layer:
            raise InputError(f"{family}: layers {first} and {layer} share one {site.down!r} (tied); not supported")


def check_loaded(family: str, module: nn.Module) -> None:
    """Raise unless every tensor of a model has values here, or accelerate brings them: any other would be what memory holds.

    >>> check_loaded("Llama", model.module)

    Args:
        family: the model's class, for the message.
        module: the model.

    Raises:
        InputError: a tensor without values, by its name.
    """
    brought = {id(part) for m in module.modules() if hasattr(m, "_hf_hook") for part in m.modules()}
    for name, part in module.named_modules():
        own = [*part._parameters.items(), *part._buffers.items()]
        empty = next((key for key, value in own if value is not None and value.is_meta), None)
        if empty is not None and id(part) not in brought:
            full = f"{name}.{empty}" if name else empty
            raise InputError(f"{family}: {full!r} was not loaded (it is on the meta device); load the model whole")


def check_adapters(family: str, module: nn.Module) -> None:
    """Raise if an adapter of PEFT does more than change weights: virtual tokens, or weights that depend on the token.

    >>> check_adapters("Llama", model.module)

    Args:
        family: the model's class, for the message.
        module: the model.

    Raises:
        InputError: such an adapter.
    """
    configs = getattr(module, "peft_config", None)
    for name, config in (configs if isinstance(configs, dict) else {}).items():
        kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
        by_token = kind in BY_TOKEN or getattr(config, "alora_invocation_tokens", None)
        if getattr(config, "is_prompt_learning", False) or by_token:
            raise InputError(
                f"{family}: adapter {name!r} ({kind}) {'depends on the token' if by_token else 'adds virtual tokens'}, which "
                "is more than a change of weights; load the model without it"
            )


def packing(model: Addressed) -> str | None:
    """ "nf4", "int8" or another name if MLP weights are packed; None if each is a number of its own.

    >>> packing(model) is None
    True

    Args:
        model: the model.
    """
    found = (packed_as(linear) for _, linear in projections_of(model))
    return next((name for name in found if name is not None), None)


def projections_of(model: Addressed) -> Iterator[tuple[str, nn.Module]]:
    """(name, projection) of every MLP projection of the language backbone, a fused one once.

    >>> [name for name, _ in projections_of(model)][:2]
    ['0.mlp.down_proj', '0.mlp.up_proj']

    Args:
        model: the model.
    """
    for layer in range(model.n_layers):
        for path in dict.fromkeys(p for p in model.site if p is not None):
            yield f"{layer}.{path}", model.linear(layer, path)


def is_offloaded(model: Addressed) -> bool:
    """Whether weights are on the meta device, and accelerate brings their values for a forward pass.

    >>> is_offloaded(model)
    False

    Args:
        model: the model.
    """
    return any(p.is_meta for p in model.module.parameters())


def input_device(module: nn.Module) -> torch.device:
    """Where the inputs of a model go: to its embeddings, or where accelerate brings these.

    >>> input_device(model.module)
    device(type='cpu')

    Args:
        module: a transformers model.
    """
    embeddings: nn.Module = module.get_input_embeddings()  # type: ignore[operator]
    return device_of(embeddings)


def held_back(model: Addressed) -> str | None:
    """Why the MLP weights cannot be changed one by one, and what to do; None if they can.

    >>> held_back(model) is None
    True

    Args:
        model: the model.
    """
    if (packed := packing(model)) is not None:
        return f"is loaded in {packed}, whose weights cannot be changed one by one; load it in bfloat16"
    if adapter_parameters(model.module):
        return "has an adapter that is not merged; merge it first (merge_and_unload of peft gives a model without adapters)"
    if is_offloaded(model):
        return "has weights that are offloaded; load it whole, on one device or over several GPUs"
    odd = next((name for name, linear in projections_of(model) if not is_plain(linear)), None)
    if odd is not None:
        return f"computes the weight of {odd!r} from other tensors; make it a plain parameter first"
    return None


def dtype_name(model: Addressed) -> str:
    """Name of the dtype of the MLP weights: a torch dtype's, or what `packing` says.

    >>> dtype_name(model)
    'float32'

    Args:
        model: the model.
    """
    return packing(model) or stored_in(model.linear(0, model.site.down))


def count_params(model: Addressed) -> int:
    """Number of all parameters: tied ones once, packed ones as many as they unpack to, without those of adapters.

    >>> count_params(model) == sum(p.numel() for p in model.module.parameters())
    True

    Args:
        model: the model.
    """
    counted = adapter_parameters(model.module)
    total = 0
    for part in model.module.modules():
        own = [*part.parameters(recurse=False)]
        sized = hasattr(part, "in_features") or hasattr(part, "infeatures")
        if sized and not hasattr(part, "base_layer") and packed_as(part) is not None:
            rows, columns = out_in(part)
            total += rows * columns + (rows if getattr(part, "bias", None) is not None else 0)
            counted.update(map(id, own))
        total += sum(p.numel() for p in own if id(p) not in counted)
        counted.update(map(id, own))
    return total


def params_per_neuron(model: Addressed) -> int:
    """Weights that one neuron owns, which a masked update trains: its gate and up rows and its down column. No biases.

    >>> params_per_neuron(model) == 3 * model.d_model           # gated
    True

    Args:
        model: the model.
    """
    return model.d_model * (2 + (model.site.gate is not None))


def down_weight(model: Addressed, layer: int) -> Float[Tensor, "d_model d_mlp"]:
    """W_down of a layer, one column a neuron, whichever way the family stores it.

    >>> down_weight(model, 1).shape
    torch.Size([20, 29])

    Args:
        model: the model.
        layer: the layer, from 0.
    """
    return acting_weight(model.linear(layer, model.site.down))


def down_norms(model: Addressed, order: int = 2) -> Float[Tensor, "n_layers d_mlp"]:
    """c_i = ||W_down[:, i]|| of every neuron, float64 on the CPU.

    >>> down_norms(model).shape
    torch.Size([3, 29])

    Args:
        model: the model.
        order: 2 or 1, the order of the norm.
    """
    norms = [down_weight(model, layer).detach().double().norm(order, dim=0).cpu() for layer in range(model.n_layers)]
    return torch.stack(norms)


def fingerprint(model: Addressed, samples: Sequence[Tensor] | None = None) -> str:
    """Short hash of the shape and of a sample of the MLP weights: tells two checkpoints apart.

    >>> len(fingerprint(model))
    16

    Args:
        model: the model.
        samples: the first `SAMPLED_ROWS` rows of each W_down, for weights that are not here; default reads them.
    """
    digest = hashlib.sha256(f"{model.n_layers},{model.d_mlp},{model.d_model},{count_params(model)}".encode())
    for layer in range(model.n_layers):
        sample = _first_rows(model, layer) if samples is None else samples[layer]
        digest.update(sample.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _first_rows(model: Addressed, layer: int) -> Tensor:
    """The first `SAMPLED_ROWS` rows of a layer's W_down."""
    linear = model.linear(layer, model.site.down)
    if isinstance(linear, Projection):
        return linear.first_rows(SAMPLED_ROWS)
    return down_weight(model, layer)[:SAMPLED_ROWS]
