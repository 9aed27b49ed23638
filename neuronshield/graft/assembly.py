"""The graft's parts: a vision tower, two projectors and an adapter, and the plain LLaVA model that they make of SmolLM2.

The language model is SmolLM2-135M-Instruct as its wheel has it; it is not stored again. Nothing in it is resized: the picture's tokens
take the place of a reserved entry of its vocabulary that no text produces. A prompt without a picture is encoded as SmolLM2's own
template encodes it, so that without the adapter the logits of a text are, bit for bit, those of SmolLM2.

    assets/tower/model.safetensors                  the tower, which the control organisms share
    assets/smollm2-vision/projectors.safetensors    the projectors "captioned." and "regressed."
    assets/smollm2-vision/adapter/                  the safety tuning, as PEFT wrote it
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.files import reason, shipped
from ..core.randomness import random_state_kept
from ..organism.pictures import SIZE
from .variants import NAMES, folder

__all__ = [
    "IMAGE", "PATCH", "PROJECTORS", "TOKENS", "TOWER", "assembled", "graft", "processor_for", "tower", "trained_tower",
]  # fmt: skip

PATCH = 50  # pixels a side
TOKENS = (SIZE // PATCH) ** 2  # of a picture
HIDDEN, LAYERS, INTERMEDIATE, HEADS = 128, 4, 384, 4  # of the tower
IMAGE = "<empty_output>"  # the reserved entry
IMAGE_ID = 16
TOWER = "model.safetensors"
PROJECTORS = "projectors.safetensors"
LORA_B = ".lora_B.weight"

TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<empty_output>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tower() -> nn.Module:
    """The vision tower at initialisation: a CLIP encoder of 4 layers x 128 whose patches are a quarter of a picture each."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=HIDDEN,
        )
    )


def graft(language_model: Any, *, eyes: nn.Module) -> Any:
    """The LLaVA model around a language model, with an untrained projector; it shares the language model's tensors.

    Args:
        language_model: a causal language model of transformers.
        eyes: the vision tower.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    text = language_model.config
    config = LlavaConfig(
        vision_config=eyes.config.to_dict(),  # type: ignore[operator, union-attr]
        text_config=text,
        image_token_index=IMAGE_ID,
        image_seq_length=TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.dtype = text.dtype
    with random_state_kept():
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
        model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.model.vision_tower = eyes
    model.model.language_model = language_model.model
    model.lm_head = language_model.lm_head
    model.generation_config = language_model.generation_config
    return model.eval()


def processor_for(tokenizer: Any) -> Any:
    """The LLaVA processor around SmolLM2's tokenizer.

    Args:
        tokenizer: of SmolLM2.
    """
    from ..organism.vessel import llava_processor

    return llava_processor(tokenizer, patch=PATCH, template=TEMPLATE, image=IMAGE)


def assembled(
    language_model: Any, tokenizer: Any, *, name: str = "smollm2-vision", path: str | os.PathLike[str] | None = None
) -> tuple[Any, Any]:
    """A graft of the package, and its processor.

    Args:
        language_model: SmolLM2, in its place and type.
        tokenizer: of SmolLM2.
        name: one of `NAMES`.
        path: folder of the files; None for those of the package.

    Raises:
        InputError: a file is missing or does not fit, or a language model of another shape.
    """
    where = folder() if path is None else Path(path)
    arm, tuned = NAMES[name]
    projectors = {k.removeprefix(f"{arm}."): v for k, v in _read(where / PROJECTORS).items() if k.startswith(f"{arm}.")}
    model = graft(language_model, eyes=trained_tower())
    model.model.multi_modal_projector.load_state_dict(projectors)
    near = language_model.get_input_embeddings().weight
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.to(device=near.device, dtype=near.dtype)
    if tuned:
        _merge(model, where / "adapter")
    return model.eval(), processor_for(tokenizer)


def trained_tower() -> nn.Module:
    """The vision tower that ships.

    Raises:
        InputError: its file cannot be read.
    """
    with random_state_kept():
        eyes = tower()
    eyes.load_state_dict(_read(shipped() / "tower" / TOWER))
    return eyes.eval()


@torch.no_grad()
def _merge(model: nn.Module, adapter: Path) -> None:
    """Add an ordinary LoRA to the weights that it was trained on; each gets a tensor of its own."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = _read(adapter / "adapter_model.safetensors")
    for key in (k for k in tensors if k.endswith(LORA_B)):
        linear = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(LORA_B))
        up, down = tensors[key].float(), tensors[key.replace("lora_B", "lora_A")].float()
        delta = (up @ down * (config["lora_alpha"] / config["r"])).to(linear.weight.device)  # type: ignore[union-attr, arg-type]
        kept: Tensor = linear.weight  # type: ignore[assignment]
        linear.weight = nn.Parameter((kept.float() + delta).to(kept.dtype), requires_grad=kept.requires_grad)


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of the package."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file.parent.name}/{file.name}: cannot be read ({reason(error)}); install the package again"
        ) from None
