"""The text of each token and what it is part of, against tokenizers' own decoding and their offsets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import tiny
from families import PICTURED
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import neuronshield as ns
from neuronshield.explorer.spans import roles_of, token_texts
from neuronshield.model.encoding import render
from neuronshield.model.encodings import encoded_rows

TEXTS = (
    "how do i bake bread",
    "ما هي طريقة",
    "毒害圣诞老人的方法是什么",
    "naïve café 🙂 x",
    "  two  spaces ",
    "a\n\nb",
)
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def wrapped(backend: Tokenizer, template: str | None) -> ns.Model:
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokens.chat_template = template
    return ns.load(tiny.llama(vocab_size=len(tokens)), processor=tokens)


@cache
def byte_level(template: str | None = TURNS, *, lower: bool = False) -> ns.Model:
    """Bytes as tokens, with few merges: nearly every Arabic and Chinese character is split."""
    backend = Tokenizer(models.BPE())
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<bos>", "<eos>", "<unk>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["how do i bake bread", "毒害 的方法", "user system"], trainer)
    return wrapped(backend, template)


@cache
def byte_fallback() -> ns.Model:
    """As in Llama 2: words begin with a mark, and a character without a token is written as bytes."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghikmnorstw"]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(backend, None)


def ask(words: str, **columns: Any) -> ns.Prompt:
    row = {"prompt": words or None, "label": "benign", **columns}
    return ns.PromptSet.from_records([{k: v for k, v in row.items() if v is not None}])[0]


def spoken(model: ns.Model, asked: ns.Prompt) -> tuple[list[str], list[str]]:
    """Texts and roles of a prompt's tokens."""
    (row,) = encoded_rows(model, [asked])
    texts = token_texts(model, row.tokens["input_ids"].tolist())
    return texts, roles_of(model, asked, row, texts=texts)


def own(texts: list[str], roles: list[str]) -> str:
    return "".join(text for text, role in zip(texts, roles, strict=True) if role == "text")


@pytest.mark.parametrize("words", TEXTS)
def test_the_texts_of_tokens_joined_are_what_the_model_reads(words: str):
    texts, _ = spoken(byte_level(), ask(words))
    assert "".join(texts) == render(byte_level(), words)[0]
    ids = byte_fallback().tokenizer(words)["input_ids"]
    assert "".join(token_texts(byte_fallback(), ids)) == byte_fallback().tokenizer.decode(ids)


def test_a_character_is_the_text_of_the_token_that_completes_it():
    for model in (byte_level(None), byte_fallback()):
        ids = model.tokenizer("b🙂ق a", add_special_tokens=False)["input_ids"]
        texts = token_texts(model, ids)
        assert [t for t in texts if t] == ["b", "🙂", "ق", " ", "a"] or [t for t in texts if t] == [
            "b",
            "🙂",
            "ق",
            " a",
        ]
        assert texts.index("🙂") == texts.index("b") + 4
        assert texts.index("ق") == texts.index("🙂") + 2


def test_the_letters_before_a_split_character_are_shown_by_their_own_token():
    model = byte_level(None)
    vocabulary = model.tokenizer.get_vocab()
    ids = [vocabulary["h"], vocabulary["æ"], vocabulary["¯"], vocabulary["Ĵ"], vocabulary["b"]]  # h, the bytes of 毒, b
    assert "".join(token_texts(model, ids)) == model.tokenizer.decode(ids)


def test_bytes_that_never_become_a_character_are_shown_once():
    model = byte_level(None)
    ids = model.tokenizer("a 毒")["input_ids"]
    for cut in range(1, len(ids) + 1):
        assert "".join(token_texts(model, ids[:cut])) == model.tokenizer.decode(ids[:cut])
    assert "".join(token_texts(model, model.tokenizer("x \ufffd y")["input_ids"])) == "x \ufffd y"


def offsets(model: ns.Model, words: str, at: int) -> Iterator[str]:
    """Roles by the tokenizer's own offsets, for words that are at a place of what the template writes."""
    told = model.tokenizer(render(model, words)[0], add_special_tokens=False, return_offsets_mapping=True)
    for begin, end in told["offset_mapping"]:
        yield "text" if begin < at + len(words) and end > at else "template"


@pytest.mark.parametrize("words", [*TEXTS, "user", "assistant\n", "<|im_start|>user"])
def test_the_words_of_a_prompt_are_told_from_the_template_as_the_tokenizer_s_offsets_say(words: str):
    model = byte_level()
    _, roles = spoken(model, ask(words))
    assert roles == list(offsets(model, words, len("<|im_start|>user\n")))


def test_a_template_that_strips_the_words_is_followed():
    model = byte_level(TURNS.replace("m.content }}", "m.content | trim }}"))
    texts, roles = spoken(model, ask("  bake bread "))
    assert own(texts, roles) == "bake bread"


def test_all_turns_of_a_conversation_are_its_own_words():
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "bake bread"}]
    texts, roles = spoken(byte_level(), ask("", messages=talk))
    assert own(texts, roles) == "be kindbake bread"
    assert "".join(t for t, r in zip(texts, roles, strict=True) if r == "template").startswith("<|im_start|>system\n")


def test_what_is_not_known_exactly_is_text():
    changed = byte_level(TURNS.replace("m.content }}", "m.content ~ m.content }}"))  # written twice
    assert set(spoken(changed, ask("bake"))[1]) == {"text"}
    assert set(spoken(byte_level(lower=True), ask("BAKE"))[1]) == {"text"}  # decodes to other letters
    assert "template" in spoken(byte_level(lower=True), ask("bake"))[1]


def test_without_a_template_only_what_the_tokenizer_adds_is_not_the_prompt_s(llama: ns.Model):
    assert set(spoken(llama, ask("how do i bake bread"))[1]) == {"text"}


@pytest.mark.parametrize("name", ["Qwen2-VL", "Gemma 3", "Idefics3", "InternVL3"])
def test_words_behind_a_picture_are_told_from_what_stands_for_it(name: str):
    """The tokenizer of these models keeps no white space, so the words are those that come last."""
    model = next(f for f in PICTURED if f.name == name).load()
    asked = ask("how do i bake bread", images=[Image.new("RGB", (12, 12))])
    texts, roles = spoken(model, asked)
    assert roles.count("image") == 4
    assert all(text == "" for text, role in zip(texts, roles, strict=True) if role == "image")
    assert roles[-5:] == ["text"] * 5


def test_words_of_the_organism_are_its_own_with_and_without_a_picture(organism_model: ns.Model):
    words = "如何毒害圣诞老人？"
    for pictures in ([], [Image.new("RGB", (40, 40))]):
        texts, roles = spoken(organism_model, ask(words, language="zh", images=pictures))
        assert own(texts, roles) == words
        assert [roles[0], roles[-1]] == ["template", "template"]
        assert roles.count("image") == 25 * len(pictures)


def test_words_between_two_pictures_are_text_as_is_all_else(organism_model: ns.Model):
    picture = {"type": "image"}
    content = [picture, {"type": "text", "text": "bake"}, picture, {"type": "text", "text": "bread"}]
    asked = ask("", messages=[{"role": "user", "content": content}], images=[Image.new("RGB", (40, 40))] * 2)
    assert set(spoken(organism_model, asked)[1]) == {"text", "image"}
