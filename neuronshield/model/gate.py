"""The gate of `load`: what a model must be so that its numbers mean what they say, and the refusal by name of what is not.

A model that passes is a decoder that reads a prompt from left to right and gives the next token's logits, whose forward needs
nothing but the prompt, whose embedding has a row for each of the tokenizer's tokens, and whose processor, if it takes pictures,
lets the model place them: every picture becomes tokens of one known id in the prompt. Each check raises an `InputError` that
names the model's class, the reason and the way out.

The checks read classes, configs and signatures; only `check_pictures` encodes a prompt, one with a 64 x 64 picture. None runs
the model.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
from torch import nn

from ..core.errors import InputError
from ..data.prompts import PromptSet
from .families import image_token_id, traits
from .model import Model

__all__ = ["check_module", "check_pictures", "check_processor", "output_head"]


#: Arguments of a forward that take pictures.
PICTURES = re.compile(r"pixel|image|patches")

#: Classes of checkpoints whose weights are no language model's, whatever class they are loaded as.
NO_LANGUAGE_MODEL = re.compile(
    r"For\w*Classification$|ForQuestionAnswering$|ForMultipleChoice$|ForMaskedLM$|Reward\w*$"
)


def check_module(module: nn.Module) -> None:
    """Nothing, if a module is a causal language model whose forward needs only a prompt.

    >>> check_module(model.module)
    >>> check_module(model.module.model)
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: LlamaModel: it has no language-model head, ...

    A module that has no config is not judged here; its layers are then named by hand.

    Args:
        module: a transformers model, or a PEFT model of one.

    Raises:
        InputError: an encoder-decoder, a model that reads in both directions, one without a language-model head, or one whose
            forward needs more than a prompt.
    """
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(f"{type(module).__name__}: it runs copies of a model; pass the model in it (module.module)")
    base = _inside(module)
    config = getattr(base, "config", None)
    if config is None:
        return
    family = type(base).__name__
    _check_decoder(family, base, config)
    _check_head(family, base, config)
    needed = [
        p.name
        for p in _arguments(base)
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "input_ids"
    ]
    if needed:
        raise InputError(
            f"{family}: its forward cannot do without {' and '.join(needed)}, which not every prompt has; models that need "
            "more than token ids and optional pictures are not supported"
        )


def _inside(module: nn.Module) -> Any:
    """The transformers model of a PEFT model; any other module itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]


def _arguments(base: nn.Module) -> list[inspect.Parameter]:
    """Arguments of a module's forward, by its class: an instance's own may be another library's wrapper of it."""
    return list(inspect.signature(type(base).forward).parameters.values())[1:]


def _check_decoder(family: str, base: nn.Module, config: Any) -> None:
    """Raise unless the last token of a prompt is followed by the answer: not in encoder-decoders and encoders."""
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "decoder", "language_config"))]
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        raise InputError(
            f"{family}: it is an encoder-decoder: its encoder reads the prompt, and the neurons of its decoder read no token of "
            "it, so they have no values at prompt tokens; use a decoder-only model"
        )
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sees_all = (
        getattr(text, "use_bidirectional_attention", None) in (True, "all") or getattr(text, "is_causal", True) is False
    )
    prefix = traits(config).answer_token_type == 1  # there it is the prompt alone that sees all of itself
    bidirectional = (
        (sees_all and not prefix)
        or (_is_encoder(text) and not getattr(text, "is_decoder", False))
        or "Diffusion" in family
    )
    if bidirectional:
        raise InputError(
            f"{family}: it reads in both directions (an encoder, an embedding or a diffusion model), so a prompt's tokens see "
            "the answer; use a causal language model"
        )


def _is_encoder(config: Any) -> bool:
    """Whether a config's family is an encoder's, which is a causal decoder only if its config says `is_decoder`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _check_head(family: str, base: Any, config: Any) -> None:
    """Raise unless there is a head that gives the next token's logits, and the checkpoint was one of a language model."""
    if output_head(base) is None:
        raise InputError(
            f"{family}: it has no language-model head, so it gives no answers (a base, embedding, reward or classification "
            "model); load the ...ForCausalLM or ...ForConditionalGeneration class of its family"
        )
    saved = getattr(config, "architectures", None) or []
    if saved and all(NO_LANGUAGE_MODEL.search(name) for name in saved):
        raise InputError(
            f"{family}: the checkpoint was saved as {saved[0]}, which gives no answers (a reward, classification or "
            "masked-language model); load the language model that it was made from"
        )


def output_head(module: nn.Module) -> nn.Module | None:
    """The head that gives the logits of the next token; None without one.

    >>> output_head(vlm.module).out_features == vlm.module.lm_head.out_features
    True

    Args:
        module: a transformers model; some families keep the head in their `language_model`.
    """
    owners: list[Any] = [module, getattr(module, "language_model", None)]
    heads = (part.get_output_embeddings() for part in owners if hasattr(part, "get_output_embeddings"))
    return next((head for head in heads if head is not None), None)


def check_processor(module: nn.Module, processor: Any) -> None:
    """Nothing, if a processor and a module belong together.

    >>> check_processor(model.module, vlm.processor)
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: LlamaForCausalLM: it takes no pictures, and the LlavaProcessor prepares them; ...

    Args:
        module: a transformers model, or a PEFT model of one.
        processor: its processor, or a bare tokenizer: then a model that takes pictures is used on text.

    Raises:
        InputError: an image processor without a tokenizer, a processor of pictures for a model that takes none or that has no
            known image token, or a tokenizer with more tokens than the model's embedding has rows.
    """
    base = _inside(module)
    config = getattr(base, "config", None)
    if config is None:
        return
    family, kind = type(base).__name__, type(processor).__name__
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "decode"):
        raise InputError(f"{family}: the {kind} has no tokenizer; pass the whole processor, or a tokenizer")
    rows = _embedding_rows(base)
    tokens = getattr(tokenizer, "vocab_size", None)
    if rows is not None and isinstance(tokens, int) and tokens > rows:
        raise InputError(
            f"{family}: its embedding has {rows} rows and the tokenizer ({type(tokenizer).__name__}) has {tokens} tokens; "
            "the tokenizer is another model's"
        )
    if getattr(processor, "image_processor", None) is None:
        return
    if not any(PICTURES.search(p.name) for p in _arguments(base)):
        raise InputError(
            f"{family}: it takes no pictures, and the {kind} prepares them; pass its tokenizer (processor=processor.tokenizer)"
        )
    if image_token_id(config, processor) is None:
        raise _no_pictures(
            family, kind, "neither its config nor its processor names the token that stands for a picture"
        )


def _no_pictures(family: str, kind: str, reason: str) -> InputError:
    return InputError(
        f"{family}: pictures are not supported with its {kind}: {reason}; to use the model on text, pass the tokenizer alone "
        "(processor=processor.tokenizer)"
    )


def _embedding_rows(base: Any) -> int | None:
    """Number of token ids that a model's embedding knows; None if it does not say."""
    try:
        return int(base.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def check_pictures(model: Model) -> None:
    """Nothing, if a picture beside a word becomes placeholder tokens that the model reads, or if no pictures are taken.

    >>> check_pictures(vlm)

    Args:
        model: the model.

    Raises:
        InputError: its processor cannot encode the picture, or places no token of the id that the model reads.
    """
    if not model.takes_images:
        return
    from PIL import Image

    from .encoding import collate

    grey = np.broadcast_to(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (64, 64, 3))
    row = {"id": "a 64 x 64 picture", "prompt": "what is this", "label": "benign", "modality": "image"}
    try:
        collate(model, list(PromptSet.from_records([{**row, "images": [Image.fromarray(grey.copy())]}])))
    except Exception as error:  # whatever a processor says of a plain picture is the reason
        family, kind = type(model.module).__name__, type(model.processor).__name__
        raise _no_pictures(family, kind, str(error)) from error
