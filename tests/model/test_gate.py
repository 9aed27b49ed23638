"""The gate at load: what is no causal language model, or cannot place pictures, is refused by name and with the reason."""

from __future__ import annotations

from typing import Any

import families as F
import pytest
import tiny
import torch
from builders import transformers
from unsupported import (
    BERT,
    BOTH_DIRECTIONS,
    ENCODER_DECODER,
    NO_HEAD,
    SEQ2SEQ,
    T5,
    TOWER,
    UNSUPPORTED,
    Unsupported,
    fuyu,
    on_meta,
    seq2seq,
)

import neuronshield as ns
from neuronshield.data.grading import openings_for
from neuronshield.model.answers import answer_batches, answer_loss, examples
from neuronshield.model.families import image_token_id
from neuronshield.model.forward import answer_logits
from neuronshield.model.gate import check_module, check_pictures, check_processor
from neuronshield.model.prefixes import opening_tokens
from neuronshield.model.tokens import n_tokens


def refused(module: torch.nn.Module, processor: Any = None) -> str:
    with pytest.raises(ns.InputError) as caught:
        ns.load(module, processor=processor or F.tokenizer())
    said = str(caught.value)
    assert said.startswith(f"{type(module).__name__}: ")
    assert "\n" not in said
    return said


# -- families ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", UNSUPPORTED, ids=lambda kind: kind.name)
def test_a_model_that_cannot_be_read_so_is_refused_by_name(kind: Unsupported) -> None:
    assert kind.reason in refused(*kind.build())


def blip2_with_t5() -> tuple[torch.nn.Module, Any]:
    return on_meta(
        "Blip2ForConditionalGeneration", "Blip2Config", vision_config={**TOWER, "image_size": 12, "patch_size": 4},
        qformer_config={**TOWER, "vocab_size": 64, "encoder_hidden_size": 16}, num_query_tokens=4, image_token_index=4,
        text_config=transformers.T5Config(**T5).to_dict(),
    )()  # fmt: skip


@pytest.mark.parametrize("build", [blip2_with_t5, seq2seq("Blenderbot"), seq2seq("PLBart")])
def test_an_encoder_decoder_is_refused_wherever_its_config_says_so(build: Any) -> None:
    assert ENCODER_DECODER in refused(*build())


def test_the_decoder_of_an_encoder_decoder_by_itself_is_a_language_model() -> None:
    module = transformers.BartForCausalLM(transformers.BartConfig(**SEQ2SEQ)).eval()
    assert ns.load(module, processor=F.tokenizer()).d_mlp == 29


# -- no causal language model -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    ["LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering"],
)
def test_a_model_without_a_language_model_head_is_refused(name: str) -> None:
    assert NO_HEAD in refused(*on_meta(name, "LlamaConfig", **F.sizes())())


def test_the_base_of_a_vision_language_model_is_refused() -> None:
    module, processor = tiny.llava()
    assert NO_HEAD in refused(module.model, processor)


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
    assert BOTH_DIRECTIONS in refused(*on_meta(name, f"{stem}Config", **BERT)())


def test_an_embedding_model_is_refused_and_a_prefix_model_is_not() -> None:
    sizes = F.sizes(use_bidirectional_attention=True)
    assert BOTH_DIRECTIONS in refused(*on_meta("GemmaForCausalLM", "GemmaConfig", **sizes)())
    module, processor = F.paligemma()
    assert module.config.get_text_config().use_bidirectional_attention
    ns.load(module, processor=processor)


def test_a_peft_model_is_judged_by_the_model_in_it() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    check_module(peft.get_peft_model(tiny.llama(), config))
    with pytest.raises(ns.InputError, match="LlamaModel: it has no language-model head"):
        check_module(peft.get_peft_model(tiny.llama().model, config))


# -- pictures ---------------------------------------------------------------------------------------------
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
    module.config.image_token_id = 2  # <eos>
    assert "'a 64 x 64 picture' has 1 pictures, and 0 tokens" in refused(module, processor)


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


def tokenizer_with(token: str, **special: Any) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([token])
    tokenizer.add_special_tokens(special)
    return tokenizer


def test_a_padding_token_that_the_embedding_lacks_is_never_read() -> None:
    rows = [{"id": str(i), "prompt": p, "label": "benign"} for i, p in enumerate(("how do i", "how do i make it help"))]
    prompts = ns.PromptSet.from_records(rows)
    plain = ns.load(tiny.llama(), processor=tiny.tokenizer())
    added = ns.load(tiny.llama(), processor=tokenizer_with("zebra", pad_token="[PAD]"))
    assert added.tokenizer.pad_token_id == n_tokens(added) + 1
    assert torch.equal(answer_logits(added, prompts), answer_logits(plain, prompts))
    options: dict[str, Any] = {"max_new_tokens": 4, "progress": False}
    assert ns.generate(added, prompts, **options) == ns.generate(plain, prompts, **options)


def test_an_added_token_without_a_row_is_refused_where_it_is_used() -> None:
    model = ns.load(tiny.llama(), processor=tokenizer_with("zebra"))
    rows = [
        {"id": "p", "prompt": "how do i", "label": "harmful", "target": "sorry"}, {"id": "q", "prompt": "how", "label": "benign", "target": "sure"},
    ]  # fmt: skip
    said = r"token id 38 is not among the 38 of .* \('zebra'\).*resize_token_embeddings"

    def losses(changed: dict[str, Any], texts: list[str]) -> list[torch.Tensor]:
        prompts = ns.PromptSet.from_records([{**rows[0], **changed}, rows[1]])
        return [answer_loss(model, batch) for batch in answer_batches(model, examples(model, prompts, texts=texts))]

    assert len(losses({}, ["make it"])) == 2
    with pytest.raises(ns.InputError, match=f"prompt 'p': {said}"):
        losses({"prompt": "how do zebra"}, [])
    with pytest.raises(ns.InputError, match=f"prompt 'p': its answer: {said}"):
        losses({"target": "sorry zebra"}, [])
    with pytest.raises(ns.InputError, match=f"texts: 'text-0': {said}"):
        losses({}, ["zebra do"])
    found = opening_tokens(
        model, openings_for(list(ns.PromptSet.from_records(rows)), refusals=["zebra", "sorry"], compliances=["sure"])
    )
    assert found["en"].refusal == [tiny.WORDS.index("sorry")]


def test_an_image_processor_alone_is_no_processor() -> None:
    module, processor = tiny.llava()
    assert "the CLIPImageProcessor" in refused(module, processor.image_processor)
    assert "has no tokenizer; pass the whole processor" in refused(module, processor.image_processor)


def test_a_wrapper_of_copies_is_refused_with_what_to_pass() -> None:
    assert "pass the model in it (module.module)" in refused(torch.nn.DataParallel(tiny.llama()))
