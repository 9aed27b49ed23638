"""How to make one tiny random model of each family, with its real processor class and a tokenizer made here.

Every language backbone has 3 layers of 29 neurons on 20 dimensions where the family lets one choose; pictures are 12 x 12
pixels. Where a family's image processor needs torchvision, which has no CPU build, the one with the same outputs is used for
it, and the builder says so.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

transformers: Any = importlib.import_module("transformers")  # its classes take more than their annotations say

D_MODEL, D_MLP, N_LAYERS = 20, 29, 3
SIZE = 12  # pixels

Made = tuple[PreTrainedModel, Any]


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


def text(model: str, config: str, **changes: Any) -> Callable[[], Made]:
    def build() -> Made:
        about = getattr(transformers, config)(**{k: v for k, v in sizes(**changes).items() if v is not None})
        return getattr(transformers, model)(about).eval(), tokenizer()

    return build


#: Linear attention in two of three layers.
HYBRID: dict[str, Any] = dict(
    linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    layer_types=["linear_attention", "linear_attention", "full_attention"],
)  # fmt: skip
#: Gemma 4 without the per-layer embeddings and shared keys of its E models.
GEMMA4: dict[str, Any] = dict(
    vocab_size_per_layer_input=64, hidden_size_per_layer_input=0, num_kv_shared_layers=0, sliding_window=8,
    global_head_dim=10, use_double_wide_mlp=False,
)  # fmt: skip


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


def llava() -> Made:
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


def llava_next() -> Made:
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


def llava_onevision() -> Made:
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


EXPERTS: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, decoder_sparse_step=1)


def qwen(generation: str) -> Callable[[], Made]:
    def build() -> Made:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        tok = tokenizer(*QWEN)
        ids = {
            f"{name}_token_id": tok.convert_tokens_to_ids(token)
            for name, token in zip(("image", "video", "vision_start", "vision_end"), QWEN, strict=True)
        }
        rope = {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
        vision = {
            "2": dict(depth=1, embed_dim=16, hidden_size=D_MODEL, num_heads=2, patch_size=3, mlp_ratio=2),
            "2.5": dict(depth=1, hidden_size=16, out_hidden_size=D_MODEL, num_heads=2, patch_size=3, intermediate_size=22,
                        window_size=12, fullatt_block_indexes=[0]),
            "3": dict(depth=2, hidden_size=16, out_hidden_size=D_MODEL, num_heads=2, patch_size=3, intermediate_size=22,
                      num_position_embeddings=16, deepstack_visual_indexes=[0]),
            "3.5": dict(depth=2, hidden_size=16, out_hidden_size=D_MODEL, num_heads=2, patch_size=3, intermediate_size=22,
                        num_position_embeddings=16),
        }[generation.removesuffix("-moe")]  # fmt: skip
        stem = {
            "2": "Qwen2VL", "2.5": "Qwen2_5_VL", "3": "Qwen3VL", "3-moe": "Qwen3VLMoe", "3.5": "Qwen3_5",
            "3.5-moe": "Qwen3_5Moe",
        }[generation]  # fmt: skip
        hybrid = {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 11}
        more = {"3.5": HYBRID, "3-moe": EXPERTS, "3.5-moe": hybrid}.get(generation, {})
        words = sizes(rope_parameters=rope, **more)
        config = getattr(transformers, f"{stem}Config")(text_config=words, vision_config=vision, **ids)
        pictures = Qwen2VLImageProcessorPil(patch_size=3, merge_size=2, min_pixels=36, max_pixels=SIZE * SIZE)
        name = "Qwen3VL" if generation in ("3.5", "3-moe", "3.5-moe") else stem
        processor = without_video(getattr(transformers, f"{name}Processor"))(
            pictures, tok, None, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>")
        )
        return getattr(transformers, f"{stem}ForConditionalGeneration")(config).eval(), processor

    return build


def internvl(language: str) -> Callable[[], Made]:
    return lambda: _internvl(getattr(transformers, language)(**sizes()))


def _internvl(words: Any) -> Made:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tok = tokenizer(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
                    video_token="<video>")  # fmt: skip
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2,
                  image_size=[SIZE, SIZE], patch_size=[3, 3])  # fmt: skip
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=words, image_seq_length=4,
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    pictures = square(GotOcr2ImageProcessorPil, crop_to_patches=False)
    processor = without_video(transformers.InternVLProcessor)(
        pictures, tok, None, image_seq_length=4, chat_template=template("<IMG_CONTEXT>")
    )
    return transformers.InternVLForConditionalGeneration(config).eval(), processor


def aya() -> Made:
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


def idefics3() -> Made:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _idefics("Idefics3", Idefics3ImageProcessorPil, transformers.Idefics3Processor, ())


def smolvlm() -> Made:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    video = SimpleNamespace(num_frames=1, fps=1, video_sampling={"max_frames": 1, "fps": 1})
    return _idefics("SmolVLM", SmolVLMImageProcessorPil, without_video(transformers.SmolVLMProcessor), (video,))


def _idefics(stem: str, pil: type, processor: type, video: tuple[Any, ...]) -> Made:
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


def gemma3() -> Made:
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


def paligemma() -> Made:
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


def mllama() -> Made:
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


def mistral3() -> Made:
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


def vip_llava() -> Made:
    tok = tokenizer()
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.LlamaConfig(**sizes()),
        image_token_index=tok.convert_tokens_to_ids("<image>"), vision_feature_layers=[-2, -1],
    )  # fmt: skip
    processor = transformers.LlavaProcessor(
        clip_pictures(), tok, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<image>",
    )  # fmt: skip
    return transformers.VipLlavaForConditionalGeneration(config).eval(), processor


GLM = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def glm(generation: str) -> Callable[[], Made]:
    """GLM-4.1V ("4v") and GLM-4.6V ("46V")."""

    def build() -> Made:
        low = f"glm{generation.lower()}"
        pil = importlib.import_module(f"transformers.models.{low}.image_processing_pil_{low}")
        tok = tokenizer(*GLM)
        names = (
            "image_token",
            "video_token",
            "image_start_token",
            "image_end_token",
            "video_start_token",
            "video_end_token",
        )
        ids = {f"{name}_id": tok.convert_tokens_to_ids(t) for name, t in zip(names, GLM, strict=True)}
        rope = {"rope_type": "default", "mrope_section": [2, 2, 1], "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
        vision = dict(depth=2, hidden_size=16, out_hidden_size=D_MODEL, num_heads=2, patch_size=3, intermediate_size=22,
                      image_size=SIZE, in_channels=3)  # fmt: skip
        model = "glm4v" if generation == "46V" else low
        config = getattr(transformers, f"Glm{generation}Config")(
            text_config={"model_type": f"{model}_text", **sizes(rope_parameters=rope)},
            vision_config={"model_type": f"{model}_vision", **vision}, **ids,
        )  # fmt: skip
        least = {"shortest_edge": 36, "longest_edge": 2 * SIZE * SIZE}
        pictures = getattr(pil, f"Glm{generation}ImageProcessorPil")(patch_size=3, merge_size=2, size=least)
        processor = without_video(getattr(transformers, f"Glm{generation}Processor"))(
            pictures, tok, None, chat_template=template("<|begin_of_image|><|image|><|end_of_image|>")
        )
        return getattr(transformers, f"Glm{generation}ForConditionalGeneration")(config).eval(), processor

    return build


def gemma4() -> Made:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    tok = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<|image|>", audio_token="<|audio|>", boa_token="<boa>",
                    eoa_token="<eoa>", video_token="<|video|>")  # fmt: skip
    ids = {f"{name}_token_id": getattr(tok, f"{name}_token_id") for name in ("boi", "eoi", "image", "audio", "video")}
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                  head_dim=8, patch_size=3, pooling_kernel_size=2, position_embedding_size=64)  # fmt: skip
    config = transformers.Gemma4Config(text_config=sizes(**GEMMA4), vision_config=vision, audio_config=None, **ids)
    pictures = Gemma4ImageProcessorPil(patch_size=3, pooling_kernel_size=2, max_soft_tokens=70)
    processor = without_video(transformers.Gemma4Processor)(
        None, pictures, tok, None, chat_template=template("<|image|>"), image_seq_length=70
    )
    return transformers.Gemma4ForConditionalGeneration(config).eval(), processor


def cohere2_vision() -> Made:
    """Its image processor needs torchvision; GOT-OCR2's, which gives the same outputs, stands in."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tok = tokenizer(image_token="<|IMG_PATCH|>", boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>",
                    img_line_break_token="<|IMG_LINE_BREAK|>")  # fmt: skip
    config = transformers.Cohere2VisionConfig(
        vision_config=transformers.SiglipVisionConfig(**{**CLIP, "patch_size": 3}, vision_use_head=False),
        text_config=transformers.Cohere2Config(**sizes(), sliding_window=32), downsample_factor=2,
        image_token_id=tok.image_token_id, alignment_intermediate_size=32,
    )  # fmt: skip
    pictures = square(GotOcr2ImageProcessorPil, crop_to_patches=False)
    pictures.patch_size = 2  # its square is the number of tokens a tile
    processor = transformers.Cohere2VisionProcessor(pictures, tok, chat_template=template("<|IMG_PATCH|>"))
    return transformers.Cohere2VisionForConditionalGeneration(config).eval(), processor


def lfm2_vl() -> Made:
    """Its image processor needs torchvision; SigLIP 2's, which it extends by tiles, stands in with one tile."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import (
        Siglip2ImageProcessorKwargs,
        Siglip2ImageProcessorPil,
    )

    class Options(Siglip2ImageProcessorKwargs, total=False):  # type: ignore[misc]
        return_row_col_info: bool

    class OneTile(Siglip2ImageProcessorPil):  # type: ignore[misc]
        valid_kwargs = Options
        tile_size, downsample_factor, encoder_patch_size, use_thumbnail = SIZE, 2, 3, False

        def __call__(self, images: Any, **options: Any) -> Any:  # type: ignore[override]
            options.pop("return_row_col_info", None)
            out = super().__call__([p for row in images for p in row], **options)
            n = len(out["spatial_shapes"])
            out.update({"image_rows": [1] * n, "image_cols": [1] * n, "image_sizes": [[SIZE, SIZE]] * n})
            return out

    tok = tokenizer("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    config = transformers.Lfm2VlConfig(
        vision_config=transformers.Siglip2VisionConfig(
            hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, num_patches=16, patch_size=3,
            vision_use_head=False,
        ),
        text_config=transformers.Lfm2Config(**sizes(layer_types=["conv", "full_attention", "conv"],
                                                    block_auto_adjust_ff_dim=False)),
        image_token_id=tok.convert_tokens_to_ids("<image>"), projector_hidden_size=18, downsample_factor=2,
    )  # fmt: skip
    pictures = OneTile(patch_size=3, max_num_patches=16)
    processor = transformers.Lfm2VlProcessor(pictures, tok, chat_template=template("<image>"))
    return transformers.Lfm2VlForConditionalGeneration(config).eval(), processor


def idefics2() -> Made:
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    tok = tokenizer("<fake_token_around_image>", "<end_of_utterance>")
    config = transformers.Idefics2Config(
        vision_config=dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
                           patch_size=3),
        perceiver_config=dict(hidden_size=D_MODEL, resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2,
                              resampler_head_dim=10, num_key_value_heads=1),
        text_config=transformers.MistralConfig(**sizes()), image_token_id=tok.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pictures = Idefics2ImageProcessorPil(size={"shortest_edge": SIZE, "longest_edge": SIZE}, do_image_splitting=False)
    processor = transformers.Idefics2Processor(pictures, tok, image_seq_len=3, chat_template=template("<image>"))
    return transformers.Idefics2ForConditionalGeneration(config).eval(), processor


def deepseek_vl() -> Made:
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

    tok = tokenizer(image_token="<image_placeholder>")
    config = transformers.DeepseekVLConfig(
        vision_config=transformers.SiglipVisionConfig(**CLIP, vision_use_head=False),
        text_config=transformers.LlamaConfig(**sizes()), image_token_id=tok.image_token_id,
    )  # fmt: skip
    processor = transformers.DeepseekVLProcessor(
        square(DeepseekVLImageProcessorPil, min_size=3),
        tok,
        chat_template=template("<image_placeholder>"),
        num_image_tokens=9,
    )
    return transformers.DeepseekVLForConditionalGeneration(config).eval(), processor


def janus() -> Made:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    tok = tokenizer(image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    config = transformers.JanusConfig(
        vision_config=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=4,
                           projection_dim=D_MODEL, num_image_tokens=9),
        vq_config=dict(embed_dim=4, num_embeddings=8, latent_channels=32, base_channels=32, channel_multiplier=[1],
                       num_res_blocks=1, num_patches=3, projection_dim=D_MODEL, image_token_embed_dim=8),
        text_config=transformers.LlamaConfig(**sizes()), image_token_id=tok.image_token_id,
    )  # fmt: skip
    processor = transformers.JanusProcessor(
        square(JanusImageProcessorPil, min_size=3),
        tok,
        chat_template=template("<image_placeholder>"),
        num_image_tokens=9,
    )
    return transformers.JanusForConditionalGeneration(config).eval(), processor


OVIS = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def ovis2() -> Made:
    from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

    tok = tokenizer(*OVIS)
    atom, *marks = (tok.convert_tokens_to_ids(token) for token in OVIS)
    config = transformers.Ovis2Config(
        vision_config=dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
                           patch_size=3, vocab_size=24, hidden_stride=2),
        text_config=transformers.Qwen2Config(**sizes()), image_token_id=atom, visual_indicator_token_ids=marks, vocab_size=64,
        hidden_size=D_MODEL,
    )  # fmt: skip
    processor = transformers.Ovis2Processor(
        square(Ovis2ImageProcessorPil), tok, chat_template=template("<image>"), image_seq_length=4
    )
    return transformers.Ovis2ForConditionalGeneration(config).eval(), processor


def phi4_multimodal() -> Made:
    """For text only: its processor of pictures needs torchvision."""
    vision = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
                  patch_size=3, crop_size=SIZE, image_token_id=40)  # fmt: skip
    audio = dict(hidden_size=16, intermediate_size=22, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16,
                 depthwise_separable_out_channel=16, nemo_conv_channels=16, input_size=8, audio_token_id=41)  # fmt: skip
    words = sizes()
    del words["head_dim"]
    config = transformers.Phi4MultimodalConfig(**words, vision_config=vision, audio_config=audio)
    return transformers.Phi4MultimodalForCausalLM(config).eval(), tokenizer()
