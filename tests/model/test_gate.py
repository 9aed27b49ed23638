"""The gate at load: what is no causal language model, or cannot place pictures, is refused by name and with the reason."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import families as F
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.model.families import image_token_id
from neuronshield.model.forward import answer_logits
from neuronshield.model.gate import check_module, check_pictures, check_processor

transformers: Any = importlib.import_module("transformers")  # its classes take more than their annotations say


def refused(module: torch.nn.Module, processor: Any = None) -> str:
    with pytest.raises(ns.InputError) as caught:
        ns.load(module, processor=processor or F.tokenizer())
    said = str(caught.value)
    assert said.startswith(f"{type(module).__name__}: ")
    assert "\n" not in said
    return said


# -- encoder-decoders -------------------------------------------------------------------------------------
SEQ2SEQ: dict[str, Any] = dict(
    vocab_size=64, d_model=20, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=29, decoder_ffn_dim=29,
    encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=2,
)  # fmt: skip
T5: dict[str, Any] = dict(
    vocab_size=64, d_model=20, d_ff=29, d_kv=10, num_layers=1, num_decoder_layers=1, num_heads=2,
    decoder_start_token_id=0,
)  # fmt: skip


def on_meta(name: str, config: str, **options: Any) -> Callable[[], torch.nn.Module]:
    """Without weights: what the gate reads is classes, configs and signatures."""

    def build() -> torch.nn.Module:
        with torch.device("meta"):
            module: torch.nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
        return module

    return build


def blip2_with_t5() -> torch.nn.Module:
    small = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=1, num_attention_heads=2)
    return on_meta(
        "Blip2ForConditionalGeneration", "Blip2Config", vision_config={**small, "image_size": 12, "patch_size": 4},
        qformer_config={**small, "vocab_size": 64, "encoder_hidden_size": 16}, num_query_tokens=4, image_token_index=4,
        text_config=transformers.T5Config(**T5).to_dict(),
    )()  # fmt: skip


ENCODER_DECODERS: dict[str, Callable[[], torch.nn.Module]] = {
    **{
        stem: on_meta(f"{stem}ForConditionalGeneration", f"{stem}Config", **SEQ2SEQ)
        for stem in ("Bart", "MBart", "M2M100", "Pegasus", "Blenderbot", "PLBart")
    },
    "Marian": on_meta("MarianMTModel", "MarianConfig", **SEQ2SEQ),
    "Whisper": on_meta("WhisperForConditionalGeneration", "WhisperConfig", **SEQ2SEQ, num_mel_bins=8),
    "T5": on_meta("T5ForConditionalGeneration", "T5Config", **T5),
    "MT5": on_meta("MT5ForConditionalGeneration", "MT5Config", **T5),
    "BLIP-2 with T5": blip2_with_t5,
}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_is_refused(name: str) -> None:
    assert "it is an encoder-decoder" in refused(ENCODER_DECODERS[name]())


def test_florence_2_is_refused_as_an_encoder_decoder() -> None:
    assert "it is an encoder-decoder" in refused(on_meta("Florence2ForConditionalGeneration", "Florence2Config")())


def test_the_decoder_of_an_encoder_decoder_by_itself_is_a_language_model() -> None:
    module = transformers.BartForCausalLM(transformers.BartConfig(**SEQ2SEQ)).eval()
    assert ns.load(module, processor=F.tokenizer()).d_mlp == 29


# -- no causal language model -----------------------------------------------------------------------------
BERT: dict[str, Any] = dict(
    vocab_size=64, hidden_size=20, intermediate_size=29, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering"],
)
def test_a_model_without_a_language_model_head_is_refused(name: str) -> None:
    assert "it has no language-model head" in refused(on_meta(name, "LlamaConfig", **F.sizes())())


def test_the_base_of_a_vision_language_model_is_refused() -> None:
    module, processor = tiny.llava()
    assert "it has no language-model head" in refused(module.model, processor)


def test_a_classifiers_checkpoint_is_refused_though_its_tied_head_would_load() -> None:
    module = tiny.llama()
    for saved, allowed in (
        ("LlamaForSequenceClassification", False), ("InternLM2ForRewardModel", False), ("LlamaForTokenClassification", False),
        ("LlamaForCausalLM", True), ("LlamaModel", True),
    ):  # fmt: skip
        module.config.architectures = [saved]
        if allowed:
            check_module(module)
        else:
            assert f"the checkpoint was saved as {saved}" in refused(module)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertLMHeadModel", "RobertaForCausalLM", "ModernBertForMaskedLM"])
def test_a_bidirectional_encoder_is_refused(name: str) -> None:
    stem = name.split("For", maxsplit=1)[0].removesuffix("LMHeadModel")
    assert "it reads in both directions" in refused(on_meta(name, f"{stem}Config", **BERT)())


def test_an_embedding_model_is_refused_and_a_prefix_model_is_not() -> None:
    sizes = F.sizes(use_bidirectional_attention=True)
    assert "it reads in both directions" in refused(on_meta("Gemma3ForCausalLM", "Gemma3TextConfig", **sizes)())
    module, processor = F.paligemma()
    assert module.config.get_text_config().use_bidirectional_attention
    ns.load(module, processor=processor)


def test_a_peft_model_is_judged_by_the_model_in_it() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    check_module(peft.get_peft_model(tiny.llama(), config))
    with pytest.raises(ns.InputError, match="LlamaModel: it has no language-model head"):
        check_module(peft.get_peft_model(tiny.llama().model, config))


# -- further inputs ---------------------------------------------------------------------------------------
def blip(stem: str) -> tuple[torch.nn.Module, Any]:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tok = F.tokenizer()
    small = dict(hidden_size=16, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2)
    words = F.sizes(ffn_dim=F.D_MLP, word_embed_proj_dim=F.D_MODEL)
    for name in ("intermediate_size", "num_key_value_heads", "head_dim"):
        del words[name]
    config = getattr(transformers, f"{stem}Config")(
        vision_config={**small, "image_size": F.SIZE, "patch_size": 4}, num_query_tokens=4,
        qformer_config={**small, "vocab_size": 64, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config=transformers.OPTConfig(**words).to_dict(), image_token_index=tok.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    more = (F.tokenizer(),) if stem == "InstructBlip" else ()
    processor = getattr(transformers, f"{stem}Processor")(
        F.square(BlipImageProcessorPil), tok, *more, num_query_tokens=4
    )
    return getattr(transformers, f"{stem}ForConditionalGeneration")(config).eval(), processor


@pytest.mark.parametrize(
    ("stem", "needed"), [("Blip2", "pixel_values"), ("InstructBlip", "pixel_values and qformer_input_ids")]
)
def test_a_model_that_needs_more_than_a_prompt_is_refused(stem: str, needed: str) -> None:
    assert f"its forward cannot do without {needed}, " in refused(*blip(stem))


# -- pictures ---------------------------------------------------------------------------------------------
def fuyu() -> tuple[torch.nn.Module, Any]:
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

    tok = F.tokenizer("|SPEAKER|", "|NEWLINE|", "<0x04>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
    words = transformers.PersimmonConfig(**F.sizes(rope_parameters=rope)).to_dict()
    config = transformers.FuyuConfig(
        **F.sizes(num_key_value_heads=2), image_size=F.SIZE, patch_size=6, num_channels=3, text_config=words,
        image_token_id=tok.convert_tokens_to_ids("|SPEAKER|"),
    )  # fmt: skip
    pictures = FuyuImageProcessorPil(size={"height": F.SIZE, "width": F.SIZE}, patch_size={"height": 6, "width": 6})
    return transformers.FuyuForCausalLM(config).eval(), transformers.FuyuProcessor(pictures, tok)


def test_a_processor_that_places_pictures_itself_is_refused_and_its_tokenizer_works_on_text() -> None:
    module, processor = fuyu()
    said = refused(module, processor)
    assert "pictures are not supported with its FuyuProcessor" in said
    assert "processor=processor.tokenizer" in said
    model = ns.load(module, processor=processor.tokenizer)
    assert not model.takes_images
    assert answer_logits(model, ["how do i"]).shape == (1, 64)


def test_a_text_model_with_a_processor_of_pictures_is_refused() -> None:
    _, processor = tiny.llava()
    said = refused(tiny.llama(), processor)
    assert "it takes no pictures, and the LlavaProcessor prepares them; pass its tokenizer" in said


def test_a_vision_language_model_with_a_bare_tokenizer_is_used_on_text() -> None:
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor.tokenizer)
    assert not model.takes_images
    assert answer_logits(model, ["how do i"]).shape == (1, len(tiny.WORDS))


def test_an_image_token_that_the_processor_does_not_place_is_refused() -> None:
    module, processor = tiny.llava()
    module.config.image_token_id = 7
    assert "it places no token of id 7" in refused(module, processor)


def test_a_model_that_no_one_names_an_image_token_for_is_refused() -> None:
    module, processor = tiny.llava()
    module.config.image_token_id = None
    processor.image_token_id, processor.image_token = None, "<nowhere>"
    assert "neither its config nor its processor names the token that stands for a picture" in refused(
        module, processor
    )


@pytest.mark.parametrize(
    "config",
    [
        {"image_token_id": 4}, {"image_token_index": 4}, {"img_context_token_id": 4}, {"image_patch_id": 4},
        {"media_placeholder_token_id": 4}, {"vision_config": {"image_token_id": 4}}, {"text_config": {"image_token_index": 4}},
        {"special_tokens": {"image_token_id": 4}}, {"image_token_id": None, "vision_config": {"image_token_id": 4}},
        {"image_token_index": -200, "vision_config": {"image_token_id": 4}},
    ],
)  # fmt: skip
def test_the_image_token_is_found_where_configs_keep_it(config: dict[str, Any]) -> None:
    assert image_token_id(transformers.PreTrainedConfig(**config)) == 4


def test_a_nested_config_is_asked_after_the_config_itself() -> None:
    vision = transformers.CLIPVisionConfig(image_token_id=9)
    assert image_token_id(transformers.PreTrainedConfig(image_token_id=4, vision_config=vision)) == 4
    assert image_token_id(transformers.PreTrainedConfig(vision_config=vision)) == 9


def test_the_processor_is_asked_for_the_image_token_and_a_bare_tokenizer_is_not() -> None:
    _, processor = tiny.llava()
    nowhere = transformers.PreTrainedConfig()
    assert image_token_id(nowhere, processor) == 4
    processor.image_token_id = None
    assert image_token_id(nowhere, processor) == 4  # by its token
    tokenizer = F.tokenizer(image_token="<image>")
    assert tokenizer.image_token_id == 4
    assert image_token_id(nowhere, tokenizer) is None


def test_the_check_of_pictures_leaves_everything_as_it_was() -> None:
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor)
    processor.tokenizer.padding_side = "left"
    before, state = processor.tokenizer.get_vocab(), torch.get_rng_state()
    check_pictures(model)
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.get_vocab() == before
    assert torch.equal(torch.get_rng_state(), state)


# -- tokens -----------------------------------------------------------------------------------------------
def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused() -> None:
    small = tiny.llama(vocab_size=20)
    said = refused(small, tiny.tokenizer())
    assert f"its embedding has 20 rows and the tokenizer (TokenizersBackend) has {len(tiny.WORDS)} tokens" in said
    check_processor(tiny.llama(vocab_size=len(tiny.WORDS)), tiny.tokenizer())
    check_processor(tiny.llama(vocab_size=100), tiny.tokenizer())
