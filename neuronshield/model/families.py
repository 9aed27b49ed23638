"""How families of models differ: where each keeps its MLP neurons, and what else it does in its own way.

`SITES` has the addresses of the MLP inside a decoder layer; the layers are found through transformers' `get_decoder()`.
Adding a family is adding a row; a model that is in no row takes its addresses by hand: `load(..., layers=, site=)`.
`TRAITS` has a row for each family that departs from the others in what its forward pass reads or runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError

__all__ = [
    "ATTENTION", "PARTS", "SITES", "TRAITS", "Site", "Traits", "attention_of", "by_row", "idle_layers", "image_token_id", "traits",
]  # fmt: skip


class Site(NamedTuple):
    """Where one family keeps its MLP, relative to a decoder layer.

    >>> Site("mlp.down_proj", "mlp.gate_up_proj", "mlp.gate_up_proj").fused
    True

    Attributes:
        down: the down-projection, whose input is the neurons.
        up: the up-projection.
        gate: the gate projection; None if the MLP is not gated. Where gate and up are one projection (fused), both name it:
            its first d_mlp rows are the gates, the next d_mlp the ups.
    """

    down: str
    up: str
    gate: str | None

    @property
    def fused(self) -> bool:
        """Whether gate and up are one projection."""
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
    Site("feed_forward.down_proj", "feed_forward.up_proj", "feed_forward.gate_proj"),  # Falcon-H1, Bamba
    Site("feed_forward.w2", "feed_forward.w3", "feed_forward.w1"),  # LFM2
    Site("shared_mlp.output_linear", "shared_mlp.input_linear", "shared_mlp.input_linear"),  # Granite 4 hybrid
    Site("mlp_block.down_proj", "mlp_block.up_proj", "mlp_block.gate_proj"),  # RecurrentGemma
)


#: Addresses of the output projection of attention in a decoder layer, by family; a layer has at most one of them.
ATTENTION = (
    "self_attn.o_proj",  # Llama, Qwen, Mistral, Gemma, Phi-3, and most others
    "cross_attn.o_proj",  # Llama 3.2 Vision, in the layers that read the picture
    "self_attn.dense",  # Phi-1/2
    "self_attn.out_proj",  # OPT, XGLM, LFM2
    "self_attention.dense",  # Falcon, BLOOM
    "attention.dense",  # GPT-NeoX
    "attn.c_proj",  # GPT-2
    "attn.out_proj",  # GPT-J, CodeGen
    "attn.attention.out_proj",  # GPT-Neo
    "temporal_block.o_proj",  # RecurrentGemma
)


PARTS = ("gate", "up", "down")


class Traits(NamedTuple):
    """What a family does in its own way; the defaults are what the others do.

    Attributes:
        answer_token_type: `token_type_ids` of an answer's tokens, and of a prompt without pictures.
        picture_layers: attribute of the text config that lists the decoder layers which run only where there is a picture.
    """

    answer_token_type: int = 0
    picture_layers: str | None = None


#: Families that depart from the defaults, by the `model_type` of their config.
TRAITS = {
    "paligemma": Traits(answer_token_type=1),  # 0 is its prefix, all of which sees all of itself
    "mllama": Traits(picture_layers="cross_attention_layers"),  # Llama 3.2 Vision
    "mllama_text_model": Traits(picture_layers="cross_attention_layers"),
}


def traits(config: Any) -> Traits:
    """What the family of a config does in its own way.

    >>> traits(model.module.config)
    Traits(answer_token_type=0, picture_layers=None)

    Args:
        config: a transformers config.
    """
    return TRAITS.get(getattr(config, "model_type", ""), Traits())


#: Attributes of a config that may hold the id of the image placeholder token, in this order.
IMAGE_TOKEN = (
    "image_token_id",
    "image_token_index",
    "img_context_token_id",
    "image_patch_id",
    "media_placeholder_token_id",
)


def image_token_id(config: Any, processor: Any = None) -> int | None:
    """Id of the placeholder token that stands for image features; None if there is none.

    >>> image_token_id(vlm.module.config), image_token_id(model.module.config)
    (4, None)

    The config is asked first, then the configs inside it (Phi-4 multimodal keeps the id with its vision tower's), then the
    processor.

    Args:
        config: a transformers config.
        processor: its processor, asked if no config says; a bare tokenizer is not.
    """
    for part in _configs(config):
        for name in IMAGE_TOKEN:
            value = part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)
            if isinstance(value, int) and value >= 0:
                return value
    return _processors_image_token(processor) if getattr(processor, "image_processor", None) is not None else None


def _configs(config: Any) -> Iterator[Any]:
    """A config, and then every config and every table inside it."""
    yield config
    inside = list(config.values() if isinstance(config, Mapping) else vars(config).values())
    for value in inside:
        if isinstance(value, Mapping) or hasattr(value, "model_type"):
            yield from _configs(value)


def _processors_image_token(processor: Any) -> int | None:
    """The id that a processor or its tokenizer gives the placeholder."""
    tokenizer = getattr(processor, "tokenizer", None)
    named = [getattr(owner, "image_token_id", None) for owner in (processor, tokenizer)]
    token = str(getattr(processor, "image_token", ""))
    if token in tokenizer.get_vocab():  # type: ignore[union-attr]
        named.append(tokenizer.convert_tokens_to_ids(token))  # type: ignore[union-attr]
    return next((i for i in named if isinstance(i, int) and i >= 0), None)


def idle_layers(config: Any, n_layers: int, encoding: Mapping[str, Any]) -> list[int]:
    """Decoder layers that do not run for a batch.

    >>> idle_layers(model.module.config, 3, {"input_ids": torch.ones(1, 4)})
    []

    Args:
        config: a transformers config.
        n_layers: number of decoder layers.
        encoding: what the forward is given; with "pixel_values" every layer runs.
    """
    attribute = traits(config).picture_layers
    if attribute is None or "pixel_values" in encoding:
        return []
    listed = getattr(config.get_text_config(), attribute, None) or []
    return [layer for layer in range(n_layers) if layer in listed]


def kept_logits(config: Any, n: int) -> int | Tensor:
    """What a forward's `logits_to_keep` is given so that it computes the logits at the last n tokens, and every layer all tokens.

    >>> kept_logits(model.module.config, 2)
    2

    Where upper layers share the keys of lower ones (Gemma 4 E), a number lets them leave out the other tokens, whose neurons
    would go unread; positions do not.

    Args:
        config: a transformers config.
        n: tokens.
    """
    return torch.arange(-n, 0) if getattr(config.get_text_config(), "num_kv_shared_layers", 0) else n


def by_row(h: Tensor, rows: int) -> Float[Tensor, "batch pos d_mlp"]:
    """MLP activations with their batch axis, also where a family flattens batch and position before its MLP (OPT); a view.

    >>> by_row(torch.zeros(6, 29), 2).shape
    torch.Size([2, 3, 29])

    Args:
        h: activations [batch, pos, d_mlp], or [batch * pos, d_mlp].
        rows: rows of the batch.
    """
    return h if h.ndim == 3 else h.unflatten(0, (rows, -1))


# -- finding the layers -----------------------------------------------------------------------------------
EXPERTS = re.compile(r"(^|[._])(experts?|moe)([._]|$)|(^|\.)router(\.|$)")


def projections(layer: nn.Module) -> str:
    """Names of the projections of a layer, for an error message.

    >>> projections(model.module.model.layers[0])
    'self_attn.q_proj, ..., mlp.gate_proj, mlp.up_proj, mlp.down_proj'

    Args:
        layer: a decoder layer.
    """
    return ", ".join(
        n for n, m in layer.named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
    )


def find_decoder_layers(module: nn.Module, family: str, by_hand: str | None) -> tuple[str, nn.ModuleList]:
    """Address in `module` of the language backbone's list of layers, and the list.

    >>> path, layers = find_decoder_layers(model.module, "Llama", None)
    >>> path, len(layers)
    ('model.layers', 3)

    Args:
        module: a transformers model.
        family: its name, for messages.
        by_hand: the address, if the caller named it.

    Raises:
        InputError: there is none, or the named one is no list of layers.
    """
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
            if not isinstance(layers, nn.ModuleList) or id(layers) not in names:
                continue
            if not len(layers):
                raise InputError(f"{family}: its list of decoder layers, {names[id(layers)]!r}, is empty")
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


def attention_of(layer: nn.Module) -> str | None:
    """Address of the output projection of the attention block in a layer; None if it has no block that is known.

    >>> attention_of(model.module.model.layers[0])
    'self_attn.o_proj'

    Args:
        layer: a decoder layer.
    """
    names = {name for name, _ in layer.named_modules()}
    return next((address for address in ATTENTION if address in names), None)


def has_site(layer: nn.Module, site: Site) -> bool:
    """Whether a layer has modules at all of a site's addresses.

    >>> has_site(model.module.model.layers[0], SITES[0])
    True

    Args:
        layer: a decoder layer.
        site: the addresses.
    """
    names = {name for name, _ in layer.named_modules()}
    return all(part in names for part in site if part is not None)
