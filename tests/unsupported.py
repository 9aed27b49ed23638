"""Models that `load` refuses by name, each with the reason that its message gives.

Where no weights are needed a module is built on the meta device: what is read is classes, configs and signatures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import builders
import torch
from builders import D_MLP, D_MODEL, SIZE, sizes, tokenizer, transformers

Built = tuple[torch.nn.Module, Any]


@dataclass(frozen=True)
class Unsupported:
    """How to make one, a checkpoint people may try, and what the refusal says."""

    name: str
    example: str
    build: Callable[[], Built]
    reason: str


def on_meta(name: str, config: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        with torch.device("meta"):
            return getattr(transformers, name)(getattr(transformers, config)(**options)), tokenizer()

    return build


SEQ2SEQ: dict[str, Any] = dict(
    vocab_size=64, d_model=20, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=29, decoder_ffn_dim=29,
    encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=2,
)  # fmt: skip
T5: dict[str, Any] = dict(
    vocab_size=64, d_model=20, d_ff=29, d_kv=10, num_layers=1, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0
)  # fmt: skip
BERT: dict[str, Any] = dict(
    vocab_size=64, hidden_size=20, intermediate_size=29, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)  # fmt: skip
TOWER: dict[str, Any] = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2)


def seq2seq(stem: str, **options: Any) -> Callable[[], Built]:
    return on_meta(f"{stem}ForConditionalGeneration", f"{stem}Config", **SEQ2SEQ, **options)


def blip(stem: str) -> Callable[[], Built]:
    """BLIP-2 and InstructBLIP with an OPT, whose every prompt needs a picture."""

    def build() -> Built:
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        tok = tokenizer()
        words = sizes(ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL)
        for name in ("intermediate_size", "num_key_value_heads", "head_dim"):
            del words[name]
        config = getattr(transformers, f"{stem}Config")(
            vision_config={**TOWER, "image_size": SIZE, "patch_size": 4}, num_query_tokens=4,
            qformer_config={**TOWER, "vocab_size": 64, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
            text_config=transformers.OPTConfig(**words).to_dict(), image_token_index=tok.convert_tokens_to_ids("<image>"),
        )  # fmt: skip
        more = (tokenizer(),) if stem == "InstructBlip" else ()
        processor = getattr(transformers, f"{stem}Processor")(
            builders.square(BlipImageProcessorPil), tok, *more, num_query_tokens=4
        )
        return getattr(transformers, f"{stem}ForConditionalGeneration")(config).eval(), processor

    return build


def fuyu() -> Built:
    """Its processor places every picture in front of the text by itself."""
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

    tok = tokenizer("|SPEAKER|", "|NEWLINE|", "<0x04>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
    words = transformers.PersimmonConfig(**sizes(rope_parameters=rope)).to_dict()
    config = transformers.FuyuConfig(
        **sizes(num_key_value_heads=2), image_size=SIZE, patch_size=6, num_channels=3, text_config=words,
        image_token_id=tok.convert_tokens_to_ids("|SPEAKER|"),
    )  # fmt: skip
    options: dict[str, Any] = {"size": {"height": SIZE, "width": SIZE}, "patch_size": {"height": 6, "width": 6}}
    pictures = FuyuImageProcessorPil(**options)
    return transformers.FuyuForCausalLM(config).eval(), transformers.FuyuProcessor(pictures, tok)


def experts(stem: str, **options: Any) -> Callable[[], Built]:
    """A mixture of four experts of eight neurons."""
    few: dict[str, Any] = dict(
        num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        intermediate_size=8, n_group=1, topk_group=1, num_key_value_heads=2,
    )  # fmt: skip
    config = options.pop("config", f"{stem}Config")
    return on_meta(f"{stem}ForCausalLM", config, **sizes(**{**few, **options}))


ENCODER_DECODER = "it is an encoder-decoder"
BOTH_DIRECTIONS = "it reads in both directions"
NO_HEAD = "it has no language-model head"
MORE_INPUTS = "its forward cannot do without"
SOME_DENSE = "is dense and others have mixture-of-experts modules"
BESIDE = "lies beside them"
UNKNOWN_EXPERTS = "their forward is not one that is known"

UNSUPPORTED = (
    Unsupported("BART", "facebook/bart-large", seq2seq("Bart"), ENCODER_DECODER),
    Unsupported("mBART", "facebook/mbart-large-50", seq2seq("MBart"), ENCODER_DECODER),
    Unsupported("M2M100", "facebook/m2m100_418M", seq2seq("M2M100"), ENCODER_DECODER),
    Unsupported("Pegasus", "google/pegasus-large", seq2seq("Pegasus"), ENCODER_DECODER),
    Unsupported("Marian", "Helsinki-NLP/opus-mt-en-sw", on_meta("MarianMTModel", "MarianConfig", **SEQ2SEQ), ENCODER_DECODER),
    Unsupported("Whisper", "openai/whisper-large-v3", seq2seq("Whisper", num_mel_bins=8), ENCODER_DECODER),
    Unsupported("T5", "google/flan-t5-xl", on_meta("T5ForConditionalGeneration", "T5Config", **T5), ENCODER_DECODER),
    Unsupported("mT5", "google/mt5-xl", on_meta("MT5ForConditionalGeneration", "MT5Config", **T5), ENCODER_DECODER),
    Unsupported(
        "Florence-2", "florence-community/Florence-2-large", on_meta("Florence2ForConditionalGeneration", "Florence2Config"),
        ENCODER_DECODER,
    ),
    Unsupported("BLIP-2", "Salesforce/blip2-opt-2.7b", blip("Blip2"), f"{MORE_INPUTS} pixel_values"),
    Unsupported(
        "InstructBLIP", "Salesforce/instructblip-vicuna-7b", blip("InstructBlip"),
        f"{MORE_INPUTS} pixel_values and qformer_input_ids",
    ),
    Unsupported("Fuyu with pictures", "adept/fuyu-8b", fuyu, "pictures are not supported with its FuyuProcessor"),
    Unsupported("BERT", "google-bert/bert-base-uncased", on_meta("BertForMaskedLM", "BertConfig", **BERT), BOTH_DIRECTIONS),
    Unsupported(
        "EmbeddingGemma", "google/embeddinggemma-300m",
        on_meta("Gemma3ForCausalLM", "Gemma3TextConfig", **sizes(use_bidirectional_attention=True)), BOTH_DIRECTIONS,
    ),
    Unsupported(
        "classifiers and reward models", "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
        on_meta("LlamaForSequenceClassification", "LlamaConfig", **sizes()), NO_HEAD,
    ),
    Unsupported("base models", "intfloat/e5-mistral-7b-instruct", on_meta("LlamaModel", "LlamaConfig", **sizes()), NO_HEAD),
    Unsupported("DeepSeek-V3", "deepseek-ai/DeepSeek-V3", experts(
        "DeepseekV3", first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=6,
        v_head_dim=10), SOME_DENSE),
    Unsupported("GLM-4.5", "zai-org/GLM-4.5-Air", experts("Glm4Moe", first_k_dense_replace=1), SOME_DENSE),
    Unsupported("Jamba", "ai21labs/AI21-Jamba-Mini-1.6", experts("Jamba"), SOME_DENSE),
    Unsupported("Granite MoE with shared experts", "ibm-research/moe-7b-1b-active-shared-experts",
                experts("GraniteMoeShared", shared_intermediate_size=11), BESIDE),
    Unsupported("Llama 4", "meta-llama/Llama-4-Scout-17B-16E-Instruct",
                experts("Llama4", config="Llama4TextConfig", intermediate_size_mlp=8), UNKNOWN_EXPERTS),
    Unsupported("Gemma 4 with experts", "google/gemma-4-26B-A4B-it", experts(
        "Gemma4", config="Gemma4TextConfig", enable_moe_block=True, top_k_experts=2), UNKNOWN_EXPERTS),
)  # fmt: skip
