"""Where each family of models keeps its MLP neurons.

A family is a row of addresses inside a decoder layer (`SITES`), found through transformers' `get_decoder()`. Adding a
family is adding a row; a model that is not in the table takes its addresses by hand: `load(..., layers=, site=)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ..core.errors import InputError

__all__ = ["PARTS", "SITES", "Site"]


class Site(NamedTuple):
    """Where one family keeps its MLP, relative to a decoder layer.

    `gate` is None if the MLP is not gated. Where gate and up are one projection (fused), both name it: its first d_mlp
    rows are the gates, the next d_mlp the ups.
    """

    down: str
    up: str
    gate: str | None

    @property
    def fused(self) -> bool:
        return self.gate == self.up


SITES = (
    Site("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj"),  # Llama, Qwen, Mistral, Gemma, OLMo, Cohere, their VLLMs
    Site("mlp.down_proj", "mlp.gate_up_proj", "mlp.gate_up_proj"),  # Phi-3, GLM-4
    Site("mlp.down_proj", "mlp.up_proj", None),  # Nemotron, Apertus
    Site("mlp.c_proj", "mlp.c_fc", None),  # GPT-2, GPT-Neo, StarCoder2
    Site("mlp.dense_4h_to_h", "mlp.dense_h_to_4h", None),  # GPT-NeoX, Falcon, BLOOM
    Site("mlp.fc2", "mlp.fc1", None),  # Phi-1/2
    Site("mlp.fc_out", "mlp.fc_in", None),  # GPT-J, CodeGen
    Site("fc2", "fc1", None),  # OPT
)


EXPERTS = re.compile(r"(^|[._])(experts?|moe|router)([._]|$)")


def projections(layer: nn.Module) -> str:
    """The projections of a layer, for an error message."""
    return ", ".join(
        n for n, m in layer.named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
    )


def find_decoder_layers(module: nn.Module, family: str, by_hand: str | None) -> tuple[str, nn.ModuleList]:
    """The language backbone's list of layers, and its address in `module`."""
    if by_hand is not None:
        try:
            named = module.get_submodule(by_hand)
        except AttributeError as error:
            raise InputError(f"{family}: layers={by_hand!r}: there is no such module ({error})") from error
        if not isinstance(named, nn.ModuleList) or not len(named):
            raise InputError(f"{family}: layers={by_hand!r} is a {type(named).__name__}, not a list of decoder layers")
        return by_hand, named
    try:
        decoder = module.get_decoder()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        decoder = module
    names = {id(m): n for n, m in module.named_modules()}
    for owner in _candidates(decoder):
        for attribute in ("layers", "h", "blocks"):
            layers = getattr(owner, attribute, None)
            if isinstance(layers, nn.ModuleList) and len(layers) and id(layers) in names:
                return names[id(layers)], layers
    raise InputError(
        f"{family}: no decoder layers found (looked for 'layers', 'h', 'blocks' under get_decoder() and its 'model', "
        "'decoder', 'language_model', 'transformer', 'text_model'); name them by hand: load(..., layers='path.to.layers')"
    )


def _candidates(decoder: nn.Module) -> Iterator[nn.Module]:
    yield decoder
    for name in ("model", "decoder", "language_model", "transformer", "text_model"):
        inner = getattr(decoder, name, None)
        if isinstance(inner, nn.Module):
            yield inner


def has_site(layer: nn.Module, site: Site) -> bool:
    names = {name for name, _ in layer.named_modules()}
    return all(part in names for part in site if part is not None)


PARTS = ("gate", "up", "down")
