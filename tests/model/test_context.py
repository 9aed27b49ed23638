"""No prompt is read past the model's context window, and none is found too long after the first forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers

import neuronshield as ns
from neuronshield import InputError, PromptSet
from neuronshield.model.context import check_length, context_window
from neuronshield.model.encoding import batches, collate
from neuronshield.model.forward import answer_logits


def small(kind: str) -> ns.Model:
    """A model that reads 64 tokens at most."""
    return ns.load(
        tiny.gpt2() if kind == "gpt2" else tiny.llama(max_position_embeddings=64), processor=tiny.tokenizer()
    )


def rows(words: int, **columns: Any) -> PromptSet:
    """Ten short prompts, and a last one of so many words."""
    short = [{"prompt": f"how do i make {w}", "label": "benign", "target": "sure"} for w in tiny.WORDS[10:19]]
    long = {"id": "long-1", "prompt": " ".join(["cake"] * words), "label": "harmful", "target": "sorry", **columns}
    return PromptSet.from_records([*short, long])


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (transformers.GPT2Config(n_positions=77), 77),
        (transformers.LlamaConfig(max_position_embeddings=99), 99),
        (transformers.MistralConfig(max_position_embeddings=99, sliding_window=8), 99),
        (transformers.LlavaConfig(text_config=transformers.LlamaConfig(max_position_embeddings=55)), 55),
        (transformers.BloomConfig(), None),
        (transformers.LlamaConfig(max_position_embeddings=99, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}), 396),
        (transformers.Qwen2Config(max_position_embeddings=40, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
         "original_max_position_embeddings": 32}), 128),
        (transformers.LlamaConfig(max_position_embeddings=99, rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4,
         "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}), 99),
    ],
)  # fmt: skip
def test_the_window_is_the_configs(config: Any, wanted: int | None) -> None:
    assert context_window(config) == wanted


CALLS: dict[str, Callable[[ns.Model, PromptSet], Any]] = {
    "capture": lambda m, p: ns.capture(m, p, progress=False),
    "capture, response": lambda m, p: ns.capture(m, p, tokens="response", progress=False),
    "logits": lambda m, p: answer_logits(m, list(p), batch_size=2),
    "generate": lambda m, p: ns.generate(m, p, max_new_tokens=2, batch_size=2),
    "update": lambda m, p: ns.masked_update(
        m, ns.NeuronSet([(1, 2)], n_layers=3, d_mlp=29), p, steps=1, allow_unproven=True, progress=False
    ),
}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("call", CALLS)
def test_a_long_prompt_is_refused_by_id_before_the_first_forward(kind: str, call: str) -> None:
    model, ran = small(kind), []
    handle = model.module.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(
        InputError, match=r"prompt 'long-1': \d+ tokens are more than the 64 that .* can read; shorten it"
    ):
        CALLS[call](model, rows(65))
    assert not ran
    CALLS[call](model, rows(30))
    assert ran
    handle.remove()


def test_a_prompt_of_exactly_the_window_is_read_with_its_answer_counted() -> None:
    model = small("gpt2")
    (*_, longest) = rows(64)
    assert answer_logits(model, [longest]).shape == (1, len(tiny.WORDS))
    with pytest.raises(InputError, match=r"prompt 'long-1': 66 tokens are more than the 64"):
        collate(model, [longest], responses=["sorry"])  # and <eos>
    assert len(ns.generate(model, [longest], max_new_tokens=1)) == 1  # the last new token is not read
    with pytest.raises(
        InputError,
        match=r"prompt 'long-1': 64 tokens and an answer of up to 2 are more than the 64 .* lower max_new_tokens",
    ):
        ns.generate(model, [longest], max_new_tokens=2)
    with pytest.raises(InputError, match=r"prompt 'long-1'"):
        next(batches(model, list(rows(63)), batch_size=4, responses=["sorry"] * 10))


def test_a_target_and_a_generic_text_are_counted_too() -> None:
    model, neurons = small("gpt2"), ns.NeuronSet([(1, 2)], n_layers=3, d_mlp=29)
    with pytest.raises(InputError, match=r"prompt 'long-1': 74 tokens are more than the 64"):
        ns.masked_update(model, neurons, rows(3, target="no " * 70), steps=1, allow_unproven=True, progress=False)
    with pytest.raises(InputError, match=r"prompt 'text-0': 80 tokens are more than the 64"):
        ns.masked_update(model, neurons, rows(3), texts=["red " * 80], steps=1, allow_unproven=True, progress=False)


def test_the_pictures_of_a_prompt_count() -> None:
    module, processor = tiny.llava()
    module.config.get_text_config().max_position_embeddings = 12
    model = ns.load(module, processor=processor)
    p = PromptSet.from_records(
        [{"id": "seen", "prompt": "how do i bake", "label": "benign", "images": [tiny.picture(0)]}]
    )
    with pytest.raises(InputError, match=r"prompt 'seen': 13 tokens are more than the 12"):
        collate(model, list(p))


def test_without_a_limit_nothing_is_refused(llama: ns.Model) -> None:
    class Config:
        model_type = "mine"

    assert context_window(Config()) is None
    limit = context_window(llama.module.config)
    assert limit is not None
    check_length(llama, list(tiny.prompts()[:1]), [limit])
    with pytest.raises(InputError, match=r"can read"):
        check_length(llama, list(tiny.prompts()[:1]), [limit + 1])
    assert torch.is_tensor(answer_logits(llama, "how do i"))
