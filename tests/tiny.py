"""Tiny models with real classes and a tokenizer made on the spot. Sizes are distinct primes where they can be."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = (
    "<pad> <bos> <eos> <unk> <image> how do i make a the cake bomb bread knife bake steal paint cut ring house dog "
    "sure sorry no yes cannot help here step one to and in of red blue green"
).split()


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def llama_config(**changes: int) -> LlamaConfig:
    sizes = dict(vocab_size=len(WORDS), hidden_size=20, intermediate_size=29, num_hidden_layers=3,
                 num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                 initializer_range=0.3)  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def llama(seed: int = 0, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(**changes)).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=20, n_inner=29, n_layer=3, n_head=2, n_positions=64,
                        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA whose pictures are 6 x 6 pixels, 2 x 2 a patch: 9 image tokens."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(hidden_size=14, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2,
                              image_size=6, patch_size=2)  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=llama_config(), image_token_id=WORDS.index("<image>"),
                         vision_feature_layer=-1, image_seq_length=9, pad_token_id=0)  # fmt: skip
    module = LlavaForConditionalGeneration(config).eval()
    images = CLIPImageProcessorPil(size={"height": 6, "width": 6}, crop_size={"height": 6, "width": 6})
    processor = LlavaProcessor(images, tokenizer(), patch_size=2, vision_feature_select_strategy="default",
                               num_additional_image_tokens=1, image_token="<image>")  # fmt: skip
    return module, processor
