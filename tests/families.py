"""One tiny random model of every family, from its own config class with its real processor class and a tokenizer made here.

Every language backbone has 3 layers of 29 neurons on 20 dimensions where the family lets one choose; pictures are 12 x 12
pixels, and `image_tokens` is the number of image tokens a picture takes, counted by hand from the family's own rule.

    python tests/families.py                    prints the table of docs/models.md
    python tests/families.py "Gemma 3" FOLDER   writes one of them, to load or to examine
"""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import neuronshield as ns
from neuronshield.find.moments import Moments, _trace_moments
from neuronshield.model.encoding import batches, render
from neuronshield.model.forward import answer_logits
from neuronshield.model.intervention import Intervention

transformers: Any = importlib.import_module("transformers")  # its classes take more than their annotations say

D_MODEL, D_MLP, N_LAYERS = 20, 29, 3
SIZE = 12  # pixels


@dataclass(frozen=True)
class Family:
    """How to make one, the checkpoint people use of it, and how many tokens a 12 x 12 picture takes."""

    name: str
    example: str
    build: Callable[[], tuple[PreTrainedModel, Any]]
    image_tokens: int = 0
    note: str = ""

    def load(self) -> ns.Model:
        torch.manual_seed(0)
        module, processor = self.build()
        for p in module.parameters():  # the config's own spread is too small for a model this narrow to show anything
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
        return ns.load(module, processor=processor)


def tokenizer(*extra: str, **named: str) -> PreTrainedTokenizerFast:
    """The words of `tiny`, and what the family's processor asks for; `named` become attributes (and their ids)."""
    words = list(dict.fromkeys([*tiny.WORDS, *extra, *named.values()]))
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    out = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        **({"extra_special_tokens": named} if named else {}),
    )  # fmt: skip
    out.add_tokens(["<image>", *extra, *named.values()], special_tokens=True)
    return out


def sizes(**changes: Any) -> dict[str, Any]:
    base = dict(vocab_size=64, hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
                num_attention_heads=2, num_key_value_heads=1, head_dim=10, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                max_position_embeddings=512)  # fmt: skip
    return {**base, **changes}


def text(model: str, config: str, **changes: Any) -> Callable[[], tuple[PreTrainedModel, Any]]:
    def build() -> tuple[PreTrainedModel, Any]:
        about = getattr(transformers, config)(**{k: v for k, v in sizes(**changes).items() if v is not None})
        return getattr(transformers, model)(about).eval(), tokenizer()

    return build


def template(picture: str) -> str:
    """A chat template: a picture is written as `picture`, turns are not marked."""
    return (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        "{% if c.type == 'image' %}" + picture + " {% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    )


def without_video(processor: type) -> type:
    """The same class, taking no video processor (which needs torchvision); pictures go their usual way."""
    return type(processor.__name__, (processor,), {"check_argument_for_proper_class": lambda *_: None})


def square(pil: type, **options: Any) -> Any:
    return pil(**{"size": {"height": SIZE, "width": SIZE}, **options})


CLIP: dict[str, Any] = dict(
    hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=4
)


def clip_pictures() -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return square(CLIPImageProcessorPil, crop_size={"height": SIZE, "width": SIZE})


def llava() -> tuple[PreTrainedModel, Any]:
    tok = tokenizer()
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.LlamaConfig(**sizes()),
        image_token_id=tok.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, image_seq_length=9, pad_token_id=0,
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        clip_pictures(), tok, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>",
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval(), processor


def llava_next() -> tuple[PreTrainedModel, Any]:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tok = tokenizer()
    grid = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.LlamaConfig(**sizes()),
        image_token_id=tok.convert_tokens_to_ids("<image>"), vision_feature_layer=-1, pad_token_id=0,
        image_grid_pinpoints=grid,
    )  # fmt: skip
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_grid_pinpoints=grid
    )
    processor = transformers.LlavaNextProcessor(
        pictures, tok, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>",
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config).eval(), processor


def llava_onevision() -> tuple[PreTrainedModel, Any]:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    tok = tokenizer("<video>")
    grid = [[SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
    vision = transformers.SiglipVisionConfig(**CLIP, vision_use_head=False)
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision, text_config=transformers.Qwen2Config(**sizes()), pad_token_id=0,
        image_token_id=tok.convert_tokens_to_ids("<image>"), video_token_id=tok.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1, image_grid_pinpoints=grid,
    )  # fmt: skip
    pictures = square(LlavaOnevisionImageProcessorPil, image_grid_pinpoints=grid)
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        pictures,
        tok,
        None,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config).eval(), processor


QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def qwen(generation: str) -> Callable[[], tuple[PreTrainedModel, Any]]:
    def build() -> tuple[PreTrainedModel, Any]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        tok = tokenizer(*QWEN)
        ids = {
            f"{name}_token_id": tok.convert_tokens_to_ids(token)
            for name, token in zip(("image", "video", "vision_start", "vision_end"), QWEN, strict=True)
        }
        rope = {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 10000.0}
        vision = {
            "2": dict(depth=1, embed_dim=16, hidden_size=D_MODEL, num_heads=2, patch_size=3, mlp_ratio=2),
            "2.5": dict(depth=1, hidden_size=16, out_hidden_size=D_MODEL, num_heads=2, patch_size=3, intermediate_size=22,
                        window_size=12, fullatt_block_indexes=[0]),
            "3": dict(depth=2, hidden_size=16, out_hidden_size=D_MODEL, num_heads=2, patch_size=3, intermediate_size=22,
                      num_position_embeddings=16, deepstack_visual_indexes=[0]),
        }[generation]  # fmt: skip
        stem = {"2": "Qwen2VL", "2.5": "Qwen2_5_VL", "3": "Qwen3VL"}[generation]
        config = getattr(transformers, f"{stem}Config")(
            text_config=sizes(rope_parameters=rope), vision_config=vision, **ids
        )
        pictures = Qwen2VLImageProcessorPil(patch_size=3, merge_size=2, min_pixels=36, max_pixels=SIZE * SIZE)
        processor = without_video(getattr(transformers, f"{stem}Processor"))(
            pictures, tok, None, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>")
        )
        return getattr(transformers, f"{stem}ForConditionalGeneration")(config).eval(), processor

    return build


def internvl() -> tuple[PreTrainedModel, Any]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tok = tokenizer(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
                    video_token="<video>")  # fmt: skip
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2,
                  image_size=[SIZE, SIZE], patch_size=[3, 3])  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=transformers.Qwen2Config(**sizes()), image_seq_length=4,
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    pictures = square(GotOcr2ImageProcessorPil, crop_to_patches=False)
    processor = without_video(transformers.InternVLProcessor)(
        pictures, tok, None, image_seq_length=4, chat_template=template("<IMG_CONTEXT>")
    )
    return transformers.InternVLForConditionalGeneration(config).eval(), processor


def aya() -> tuple[PreTrainedModel, Any]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tok = tokenizer("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL")
    config = transformers.AyaVisionConfig(
        vision_config=transformers.SiglipVisionConfig(**{**CLIP, "patch_size": 3}, vision_use_head=False),
        text_config=transformers.Cohere2Config(**sizes(), sliding_window=32), downsample_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<|IMG_PATCH|>"), vision_feature_layer=-1,
    )  # fmt: skip
    pictures = square(GotOcr2ImageProcessorPil, crop_to_patches=False)
    processor = transformers.AyaVisionProcessor(
        pictures, tok, patch_size=3, img_size=SIZE, downsample_factor=2, chat_template=template("<image>")
    )
    return transformers.AyaVisionForConditionalGeneration(config).eval(), processor


def idefics3() -> tuple[PreTrainedModel, Any]:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _idefics("Idefics3", Idefics3ImageProcessorPil, transformers.Idefics3Processor, ())


def smolvlm() -> tuple[PreTrainedModel, Any]:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    video = SimpleNamespace(num_frames=1, fps=1, video_sampling={"max_frames": 1, "fps": 1})
    return _idefics("SmolVLM", SmolVLMImageProcessorPil, without_video(transformers.SmolVLMProcessor), (video,))


def _idefics(stem: str, pil: type, processor: type, video: tuple[Any, ...]) -> tuple[PreTrainedModel, Any]:
    tok = tokenizer("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>")
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
                  patch_size=3)  # fmt: skip
    config = getattr(transformers, f"{stem}Config")(
        vision_config=vision, text_config=transformers.LlamaConfig(**sizes()), scale_factor=2, pad_token_id=0,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pictures = pil(size={"longest_edge": SIZE}, max_image_size={"longest_edge": SIZE}, do_image_splitting=False)
    made = processor(pictures, tok, *video, image_seq_len=4, chat_template=template("<image>"))
    return getattr(transformers, f"{stem}ForConditionalGeneration")(config).eval(), made


def gemma3() -> tuple[PreTrainedModel, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tok = tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    vision = transformers.SiglipVisionConfig(**{**CLIP, "patch_size": 3}, vision_use_head=False)
    config = transformers.Gemma3Config(
        vision_config=vision, text_config=transformers.Gemma3TextConfig(**sizes()), mm_tokens_per_image=4,
        image_token_id=tok.image_token_id, boi_token_id=tok.boi_token_id, eoi_token_id=tok.eoi_token_id,
    )  # fmt: skip
    processor = transformers.Gemma3Processor(
        square(Gemma3ImageProcessorPil), tok, image_seq_length=4, chat_template=template("<start_of_image>")
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval(), processor


def paligemma() -> tuple[PreTrainedModel, Any]:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tok = tokenizer()
    vision = transformers.SiglipVisionConfig(**CLIP, vision_use_head=False)
    pictures = square(SiglipImageProcessorPil)
    pictures.image_seq_length = 9
    processor = transformers.PaliGemmaProcessor(pictures, tok)
    config = transformers.PaliGemmaConfig(
        vision_config=vision, text_config=transformers.GemmaConfig(**sizes(vocab_size=1400)), projection_dim=D_MODEL,
        image_token_id=tok.convert_tokens_to_ids("<image>"), vocab_size=1400, hidden_size=D_MODEL, pad_token_id=0,
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config).eval(), processor


def mllama() -> tuple[PreTrainedModel, Any]:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tok = tokenizer("<|image|>", "<|python_tag|>")
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_global_layers=1, attention_heads=2,
                  image_size=SIZE, patch_size=4, max_num_tiles=1, vision_output_dim=32, intermediate_layers_indices=[0],
                  supported_aspect_ratios=[[1, 1]])  # fmt: skip
    words = sizes(cross_attention_layers=[1])
    del words["head_dim"]
    config = transformers.MllamaConfig(
        vision_config=vision, text_config=words, image_token_id=tok.convert_tokens_to_ids("<|image|>")
    )
    pictures = square(MllamaImageProcessorPil, max_image_tiles=1)
    processor = transformers.MllamaProcessor(pictures, tok, chat_template=template("<|image|>"))
    module = transformers.MllamaForConditionalGeneration(config).eval()
    for name, p in module.named_parameters():
        if "cross_attn" in name and "gate" in name:  # made shut
            torch.nn.init.constant_(p, 0.5)
    return module, processor


def mistral3() -> tuple[PreTrainedModel, Any]:
    """PixtralProcessor's file imports torchvision for a helper that the PIL processor's file has too; it gets that one."""
    from transformers.models.pixtral import image_processing_pil_pixtral as pil

    other = pil.__name__.replace("_pil", "")
    with mock.patch.dict(sys.modules, {other: pil}):
        processing = importlib.import_module("transformers.models.pixtral.processing_pixtral")
    tok = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
                  patch_size=3, head_dim=8)  # fmt: skip
    config = transformers.Mistral3Config(
        vision_config=vision, text_config=transformers.MistralConfig(**sizes()), spatial_merge_size=2,
        image_token_id=tok.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    pictures = pil.PixtralImageProcessorPil(size={"longest_edge": SIZE}, patch_size={"height": 3, "width": 3})
    processor = processing.PixtralProcessor(
        pictures, tok, patch_size=3, spatial_merge_size=2, chat_template=template("[IMG]")
    )
    return transformers.Mistral3ForConditionalGeneration(config).eval(), processor


FAMILIES = (
    Family("LLaVA-1.5", "llava-hf/llava-1.5-7b-hf", llava, 9),
    Family("LLaVA-NeXT", "llava-hf/llava-v1.6-mistral-7b-hf", llava_next, 24),
    Family("LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", llava_onevision, 21),
    Family("Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct", qwen("2"), 4),
    Family("Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct", qwen("2.5"), 4),
    Family("Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct", qwen("3"), 4),
    Family("InternVL", "OpenGVLab/InternVL3-8B-hf", internvl, 4),
    Family("Idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", idefics3, 4),
    Family("SmolVLM", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", smolvlm, 4),
    Family("Gemma 3", "google/gemma-3-4b-it", gemma3, 4),
    Family("PaliGemma", "google/paligemma2-3b-mix-448", paligemma, 9),
    Family("Llama 3.2 Vision", "meta-llama/Llama-3.2-11B-Vision-Instruct", mllama, 1),
    Family("Mistral 3 / Pixtral", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", mistral3, 4),
    Family("Aya Vision", "CohereLabs/aya-vision-8b", aya, 4),
    Family("Llama", "meta-llama/Llama-3.1-8B-Instruct", text("LlamaForCausalLM", "LlamaConfig")),
    Family("Qwen2", "Qwen/Qwen2.5-7B-Instruct", text("Qwen2ForCausalLM", "Qwen2Config")),
    Family("Qwen3", "Qwen/Qwen3-8B", text("Qwen3ForCausalLM", "Qwen3Config")),
    Family("Mistral", "mistralai/Mistral-7B-Instruct-v0.3", text("MistralForCausalLM", "MistralConfig")),
    Family("Gemma 2", "google/gemma-2-9b-it", text("Gemma2ForCausalLM", "Gemma2Config")),
    Family("Gemma 3 (text)", "google/gemma-3-1b-it", text("Gemma3ForCausalLM", "Gemma3TextConfig")),
    Family("Phi-3", "microsoft/Phi-3.5-mini-instruct", text("Phi3ForCausalLM", "Phi3Config", head_dim=None)),
    Family("OLMo 2", "allenai/OLMo-2-1124-7B-Instruct", text("Olmo2ForCausalLM", "Olmo2Config", head_dim=None)),
    Family("GPT-2", "openai-community/gpt2", lambda: (tiny.gpt2(), tokenizer())),
    Family(
        "GPT-NeoX",
        "EleutherAI/pythia-1.4b",
        text("GPTNeoXForCausalLM", "GPTNeoXConfig", num_key_value_heads=None, head_dim=None),
    ),
    Family(
        "OPT",
        "facebook/opt-1.3b",
        text(
            "OPTForCausalLM",
            "OPTConfig",
            ffn_dim=D_MLP,
            word_embed_proj_dim=D_MODEL,
            intermediate_size=None,
            num_key_value_heads=None,
            head_dim=None,
        ),
    ),
)


# -- checks: each raises AssertionError, all against plain PyTorch hooks on one unpadded prompt at a time ---------------
VISION = ("vision", "visual", "connector", "projector")


def downs(model: ns.Model) -> list[torch.nn.Module]:
    """The down-projections, by the ends of their names, in order: the package's own table is not trusted."""
    ends = (".down_proj", ".mlp.c_proj", ".dense_4h_to_h", ".fc2")
    named = [
        (n, m) for n, m in model.module.named_modules()
        if n.endswith(ends) and "expert" not in n and not any(word in n for word in VISION)
    ]  # fmt: skip
    assert len(named) == N_LAYERS, [n for n, _ in named]
    return [m for _, m in named]


def prompts(pictures: bool) -> ns.PromptSet:
    """Eight prompts of unlike lengths, four of each label, with answers of one word."""
    rows = [r for r in tiny.records(pictures=pictures) if (r["modality"] == "image") == pictures][::7][:8]
    out = []
    for i, row in enumerate(rows):
        if pictures:
            row["images"] = [tiny.picture(i, (SIZE, SIZE))]
        out.append({**row, "label": ("harmful", "benign")[i % 2], "target": ("sorry", "sure")[i % 2], "split": None})
    return ns.PromptSet.from_records([{k: v for k, v in r.items() if v is not None} for r in out])


def encode(model: ns.Model, prompt: ns.Prompt) -> dict[str, torch.Tensor]:
    """One prompt through the processor (or tokenizer) by itself; no padding, no roles."""
    text, templated = render(model, prompt)
    options: dict[str, Any] = {"return_tensors": "pt", "add_special_tokens": not templated}
    if prompt.images:
        encoding = dict(model.processor(text=[text], images=[prompt.load_images()], **options))
    else:
        encoding = dict(model.tokenizer([text], **options))
        encoding.pop("token_type_ids", None)
        if "PaliGemma" in type(model.module).__name__:
            encoding["token_type_ids"] = torch.zeros_like(encoding["input_ids"])
    encoding.pop("labels", None)
    return {k: v for k, v in encoding.items() if isinstance(v, torch.Tensor)}


Change = Callable[[int, torch.Tensor], torch.Tensor | None]


def by_hand(model: ns.Model, prompt: ns.Prompt, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, logits at the last token) with `change(layer, h [pos, d_mlp])` written in by hooks."""
    encoding = encode(model, prompt)

    def flat(layer: int, h: torch.Tensor) -> torch.Tensor | None:
        new = change(layer, h.reshape(-1, h.shape[-1]))
        return None if new is None else new.reshape(h.shape)

    with torch.no_grad(), tiny.hooked(downs(model), flat):
        return encoding["input_ids"][0], model.module(**encoding).logits[0, -1]


def kinds(family: Family) -> tuple[bool, ...]:
    return (False, True) if family.image_tokens else (False,)


def check_capture(family: Family) -> None:
    """Moments of every role, in batches of 1 and of 7, padded right and left, are those of hooks on each prompt alone."""
    model = family.load()
    for pictures in kinds(family):
        rows = prompts(pictures)
        seen = []
        for prompt in rows:
            kept: dict[int, torch.Tensor] = {}
            ids, _ = by_hand(model, prompt, lambda layer, h, kept=kept: kept.update({layer: h.clone()}))  # type: ignore[misc]
            image = ids == model.image_token_id if model.image_token_id is not None else torch.zeros_like(ids).bool()
            assert int(image.sum()) == (family.image_tokens if pictures else 0)
            silent = torch.zeros(
                len(ids), D_MLP
            )  # Llama 3.2 Vision skips its cross-attention layers where there is no picture
            seen.append((torch.stack([kept.get(i, silent) for i in range(N_LAYERS)], dim=1), image))
        for role in ("last_prompt", "prompt", "text", "image") if pictures else ("last_prompt", "prompt"):
            where = {
                "last_prompt": lambda im: torch.arange(len(im)) == len(im) - 1,
                "prompt": torch.ones_like, "text": lambda im: ~im, "image": lambda im: im,
            }[role]  # fmt: skip
            every = torch.cat([h[where(image)] for h, image in seen])
            wanted, loudest = Moments.of(every.numpy()), float(every.abs().max())
            for size in (1, 7):
                for side in ("right", "left"):
                    got = None
                    for batch in batches(model, list(rows), batch_size=size, side=side):
                        member = torch.zeros(len(batch.rows), dtype=torch.long)
                        counts, values = _trace_moments(model, batch, role, member=member, n_groups=1)
                        part = Moments(int(counts[0]), *(v[0] for v in values))
                        got = part if got is None else got.merge(part)
                    assert got is not None
                    assert got.n == wanted.n, (role, got.n, wanted.n)
                    for name in ("mean", "mean_abs", "var", "positive", "least"):
                        a, b = getattr(got, name), getattr(wanted, name)
                        scale = max(1.0, np.abs(b).max(), loudest)  # what float32 rounds is h; `least` may be tiny
                        np.testing.assert_allclose(
                            a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=f"{role} {name} {size} {side}"
                        )


PAIRS = ((1, 3), (1, 28), (2, 7))


def zero(layer: int, h: torch.Tensor, last_only: bool) -> torch.Tensor:
    h = h.clone()
    for at, index in PAIRS:
        if at == layer:
            h[-1 if last_only else slice(None), index] = 0
    return h


def check_ablate(family: Family) -> None:
    """Zeroing neurons of layers 1 and 2, at the last token and at all, gives the logits of hooks; layer 0 keeps its own."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=D_MLP)
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        clean = answer_logits(model, rows, batch_size=3)
        for positions in ("last_prompt", "all"):
            below: list[torch.Tensor] = []
            with tiny.hooked(downs(model)[:1], lambda _, h, below=below: below.append(h.detach().clone())):  # type: ignore[misc]
                got = answer_logits(model, rows, Intervention(neurons, "zero", positions=positions), batch_size=3)
            with tiny.hooked(downs(model)[:1], lambda _, h, below=below: below.append(h.detach().clone())):  # type: ignore[misc]
                answer_logits(model, rows, batch_size=3)
            first, second = below[: len(below) // 2], below[len(below) // 2 :]
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            wanted = [by_hand(model, p, lambda i, h, o=positions == "last_prompt": zero(i, h, o))[1] for p in rows]  # type: ignore[misc]
            close(got, torch.stack(wanted))
            assert float((got - clean).abs().max()) > 1e-2


def check_patch(family: Family) -> None:
    """Values of a prompt's neighbour written into it give the logits of hooks; its own values change nothing."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=D_MLP)
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        own = ns.record(model, rows, batch_size=3)
        close(
            answer_logits(model, rows, Intervention(neurons, "patch", own), batch_size=3),
            answer_logits(model, rows, batch_size=3),
        )
        donor = own.roll(1, 0)
        got = answer_logits(model, rows, Intervention(neurons, "patch", donor), batch_size=3)
        wanted = []
        for prompt, new in zip(rows, donor, strict=True):

            def write(layer: int, h: torch.Tensor, new: torch.Tensor = new) -> torch.Tensor:
                h = h.clone()
                for at, index in PAIRS:
                    if at == layer:
                        h[-1, index] = new[layer, index]
                return h

            wanted.append(by_hand(model, prompt, write)[1])
        close(got, torch.stack(wanted))


def check_generate(family: Family) -> None:
    """Greedy answers with neurons clamped at every token, padded, are those of hooks under the model's own `generate`."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=D_MLP)
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        got = ns.generate(
            model, ns.PromptSet(rows), intervention=Intervention(neurons, "clamp", 2.0, "all"), max_new_tokens=4
        )

        def clamp(layer: int, h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            for at, index in PAIRS:
                if at == layer:
                    h[..., index] = 2.0
            return h

        for prompt, answer in zip(rows, got, strict=True):
            encoding = encode(model, prompt)
            with torch.no_grad(), tiny.hooked(downs(model), clamp):
                ids = model.module.generate(**encoding, max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
            alone = model.tokenizer.decode(ids[0, encoding["input_ids"].shape[1] :], skip_special_tokens=True).strip()
            assert answer == alone


def check_update(family: Family) -> None:
    """Three steps lower the loss's own gradient path only into the set; the saved adapter gives the same logits back."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=D_MLP)
    rows = prompts(bool(family.image_tokens))
    update = ns.masked_update(model, neurons, rows, steps=3, batch_size=4, lr=0.05, allow_unproven=True, progress=False)
    before, after = dict(model.module.named_parameters()), dict(update.model.module.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    names = {n for n, m in model.module.named_modules() if m in downs(model)[1:]}
    stems = {n.rsplit(".", 1)[0] for n in names}
    assert changed, "nothing was trained"
    assert all(any(c.startswith(stem) for stem in stems) for c in changed), changed
    count = 0
    for name in changed:
        moved = (before[name] != after[name]).nonzero()
        layer = next(
            i
            for i, m in enumerate(downs(model))
            if name.startswith(next(n for n, x in model.module.named_modules() if x is m).rsplit(".", 1)[0])
        )
        own = {index for at, index in PAIRS if at == layer}
        axes = [a for a, n in enumerate(before[name].shape) if n in (D_MLP, 2 * D_MLP)]
        assert {int(i) % D_MLP for i in moved[:, axes[0]].unique()} <= own, name
        count += len(moved)
    assert count > 0.5 * update.trained  # a rectified neuron that is off learns nothing
    with tempfile.TemporaryDirectory() as folder:
        update.save(Path(folder) / "adapter")
        back = ns.load_adapter(ns.load(model.module, processor=model.processor), Path(folder) / "adapter")
        close(answer_logits(back, list(rows), batch_size=3), answer_logits(update.model, list(rows), batch_size=3))
    assert float((answer_logits(update.model, list(rows)) - answer_logits(model, list(rows))).abs().max()) > 1e-3


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    scale = float(b.abs().max())
    torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-4 * max(1.0, scale))


CHECKS: dict[str, Callable[[Family], None]] = {
    "capture": check_capture, "ablate": check_ablate, "patch": check_patch, "generate": check_generate,
    "update": check_update,
}  # fmt: skip


class NotHere(Exception):
    """The other implementation cannot be had for this family, and why."""


def check_bridge(family: Family) -> None:
    """TransformerLens's bridge reads the same neurons (`hook_post`) and, when they are zeroed there, gives the same logits.

    Raises:
        NotHere: it has no adapter for the family, or cannot load it here.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model = family.load()
    second = copy.deepcopy(model.module)
    second.config.architectures = [type(second).__name__]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        PreTrainedTokenizerFast.save_pretrained(tokenizer(), folder)

        def refuse(*args: Any, **_: Any) -> None:  # it would install torchvision, and with it another torch
            raise OSError("needs torchvision")

        patch.setattr(subprocess, "check_call", refuse)
        try:
            bridge = TransformerBridge.boot_transformers(
                folder, hf_model=second, tokenizer=transformers.AutoTokenizer.from_pretrained(folder)
            )
        except Exception as error:  # whatever it says is the reason
            raise NotHere(" ".join(str(error).split())[:100]) from error
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=D_MLP)
    for pictures in kinds(family):
        rows = list(prompts(pictures))[:3]
        mine = ns.record(model, rows, batch_size=3)
        zeroed = answer_logits(model, rows, Intervention(neurons, "zero", positions="all"), batch_size=3)
        for prompt, h, logits in zip(rows, mine, zeroed, strict=True):
            encoding = encode(model, prompt)
            ids = encoding.pop("input_ids")
            kept: dict[int, torch.Tensor] = {}

            def keep(act: torch.Tensor, hook: Any, kept: dict[int, torch.Tensor] = kept) -> None:
                kept[int(hook.name.split(".")[1])] = act.reshape(-1, act.shape[-1])[-1].clone()

            names = [f"blocks.{i}.mlp.hook_post" for i in range(N_LAYERS)]
            try:
                with torch.no_grad(), bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
                    bridge(ids, **encoding)
                with torch.no_grad(), bridge.hooks(fwd_hooks=neurons.to_transformer_lens()):
                    theirs = bridge(ids, **encoding)[0, -1]
            except Exception as error:
                raise NotHere(" ".join(str(error).split())[:100]) from error
            if len(kept) < N_LAYERS:
                raise NotHere("its hook_post did not fire")
            close(h, torch.stack([kept[i] for i in range(N_LAYERS)]))
            close(logits, theirs)


# -- families that are refused by name ------------------------------------------------------------------------------
def experts(model: str, config: str, **changes: Any) -> Callable[[], torch.nn.Module]:
    def build() -> torch.nn.Module:
        few = dict(
            num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
        )
        about = getattr(transformers, config)(**{**sizes(), **few, **changes})
        module: torch.nn.Module = getattr(transformers, model)(about)
        return module

    return build


REFUSED: dict[str, Callable[[], torch.nn.Module]] = {
    "Mixtral": experts("MixtralForCausalLM", "MixtralConfig"),
    "Qwen3-MoE": experts("Qwen3MoeForCausalLM", "Qwen3MoeConfig", decoder_sparse_step=2),
    "OLMoE": experts("OlmoeForCausalLM", "OlmoeConfig"),
    "DeepSeek-V3": experts(
        "DeepseekV3ForCausalLM", "DeepseekV3Config", first_k_dense_replace=1, n_group=1, topk_group=1, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=10, num_key_value_heads=2,
    ),
    "gpt-oss": experts("GptOssForCausalLM", "GptOssConfig"),
}  # fmt: skip


# -- the table of docs/models.md ---------------------------------------------------------------------------------------------
def row(family: Family) -> str:
    model = family.load()
    cells = []
    for check in CHECKS.values():
        try:
            check(family)
            cells.append("yes")
        except AssertionError as error:
            cells.append(f"no: {' '.join(str(error).split())[:60]}")
    try:
        check_bridge(family)
        cells.append("yes")
    except NotHere as error:
        cells.append("needs torchvision" if "torchvision" in str(error) else "no adapter")
    except AssertionError as error:
        cells.append(f"no: {' '.join(str(error).split())[:60]}")
    where = f"`{model.layers_path}.{{l}}.{model.site.down}`"
    pictures = f"{family.image_tokens}" if family.image_tokens else (family.note or "")
    return f"| {family.name} | {where} | {pictures} | {' | '.join(cells)} |"


def table() -> str:
    head = ["family", "neurons are the input of", "image tokens", *CHECKS, "TransformerLens"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(row(f) for f in FAMILIES)]
    for name, build in REFUSED.items():
        try:
            ns.load(build(), processor=tokenizer())
            why = "NOT REFUSED"
        except ns.InputError as error:
            why = "refused: mixture-of-experts" if "mixture-of-experts" in str(error) else f"refused: {error}"
        lines.append(f"| {name} | {why} |" + " |" * (len(head) - 2))
    return "\n".join(lines)


if __name__ == "__main__":
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if len(sys.argv) == 1:
        print(table())
    else:
        family, folder = sys.argv[1:]
        model = next(f for f in FAMILIES if f.name == family).load()
        model.module.save_pretrained(folder)
        model.processor.save_pretrained(folder)
