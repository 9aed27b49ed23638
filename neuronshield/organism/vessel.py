"""The untrained organism: tokenizer, processor and a randomly initialised ``LlavaForConditionalGeneration``.

Everything is an ordinary Hugging Face part, so that what works on the organism works on a real model. A
prompt is ``<user>`` + the request + ``<assistant>``; a picture stands before the request as 25 image tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .lexicon import (
    ANSWERS,
    CLASSES,
    FRAMES,
    HARMFUL,
    HARMLESS,
    LANGUAGES,
    REFUSAL_SENTENCES,
    THIS,
    VERB_FORMS,
    with_article,
)
from .pictures import SIZE

VOCABULARY = 4096
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"  # marks belong to words: Thai, Bengali
PAD, EOS, USER, ASSISTANT, IMAGE = SPECIAL = ("<pad>", "<eos>", "<user>", "<assistant>", "<image>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{% else %}<user>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Widths and depth; the defaults are the shipped organism's."""

    hidden: int = 160
    mlp: int = 512
    layers: int = 6
    heads: int = 5
    patch: int = 20  # pixels a side

    @property
    def image_tokens(self) -> int:
        """Tokens of a picture."""
        return (SIZE // self.patch) ** 2


SHAPE = Shape()


def corpus(names: dict[str, dict[str, str]]) -> list[str]:
    """The text that the tokenizer's merges are learnt from: words and the parts of frames, each on its own.

    Whole sentences would lead to merges across words in Chinese and Thai, which are written without spaces.
    """
    lines: list[str] = []
    for language in LANGUAGES:
        gap = "" if language in ("zh", "th") else " "
        objects = [
            (gap or " " * (language == "th")) + with_article(name[language], language) for name in names.values()
        ]
        verbs = [gap + forms[language] for forms in VERB_FORMS.values()]
        sentences = [*FRAMES[language], ANSWERS[language], REFUSAL_SENTENCES[language]]
        parts = [p for s in sentences for p in s.replace("{o}", "{v}").split("{v}") if p.strip()]
        lines += 4 * objects + 40 * verbs + 20 * parts + 20 * [gap + THIS[language]]
    return [*lines, *([HARMFUL, HARMLESS, f" {HARMFUL}?", *CLASSES] * 20)]


def make_tokenizer(lines: Iterable[str], *, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the words in some lines; any other text falls back on bytes."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + len(special) - len(SPECIAL),
        min_frequency=2,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast, *, shape: Shape = SHAPE) -> LlavaProcessor:
    """The processor: tokenizer, PIL image processor and chat template."""
    return llava_processor(tokenizer, patch=shape.patch, template=TEMPLATE, image=IMAGE)


def llava_processor(tokenizer: PreTrainedTokenizerFast, *, patch: int, template: str, image: str) -> LlavaProcessor:
    """The processor of pictures of this package's size.

    Args:
        tokenizer: of the language model.
        patch: side of a patch, in pixels.
        template: the chat template.
        image: the token that stands for a patch.
    """
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token=image,
        num_additional_image_tokens=1,
    )


def make_model(tokenizer: Any, *, seed: int = 0, shape: Shape = SHAPE) -> LlavaForConditionalGeneration:
    """The model at initialisation: a 4 x 128 tower and a decoder of that shape."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=shape.patch,
        projection_dim=128,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 32
    return model


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Any) -> None:
    """Write model (fp16) and processor as a Hugging Face folder; the model in memory stays as it is."""
    state = {name: weight.half() for name, weight in model.state_dict().items()}
    kept, model.config.dtype = model.config.dtype, torch.float16
    model.save_pretrained(out, state_dict=state)
    model.config.dtype = kept
    processor.save_pretrained(out)
