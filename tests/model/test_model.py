"""What a model says of itself, and what changes it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from oracles import some

import neuronshield as ns
from neuronshield.model.forward import answer_logits


def test_llava_takes_images_and_knows_its_placeholder(llama: ns.Model, llava: ns.Model) -> None:
    assert llava.takes_images
    assert llava.image_token_id == tiny.WORDS.index("<image>")
    assert llava.tokenizer is llava.processor.tokenizer
    assert not llama.takes_images
    assert llama.image_token_id is None
    assert llama.tokenizer is llama.processor  # a bare tokenizer will do


def test_provenance_says_which_model(llama: ns.Model) -> None:
    about = llama.provenance()
    assert about["model"] == "LlamaForCausalLM"
    assert about["dtype"] == "float32"
    assert about["fingerprint"] == llama.fingerprint


def test_a_model_is_not_changed_but_replaced(llama: ns.Model) -> None:
    with pytest.raises(AttributeError):
        llama.id = "mine"  # type: ignore[misc]
    other = llama.replace(id="mine")
    assert (other.id, llama.id) == ("mine", "LlamaForCausalLM")
    assert other.traced is llama.traced


def test_a_new_module_is_traced_by_a_wrapper_of_its_own(llama: ns.Model) -> None:
    module = tiny.llama(seed=5)
    other = llama.replace(module=module)
    assert other.traced is not llama.traced
    assert other.fingerprint != llama.fingerprint
    prompts = list(some("llama"))
    wanted = answer_logits(ns.load(module, processor=tiny.tokenizer()), prompts)
    torch.testing.assert_close(answer_logits(other, prompts), wanted)
    assert len(other.envoys) == len(other.layer_envoys) == 3


def test_weights_that_change_in_place_are_seen() -> None:
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    norms, mark = model.down_norms(), model.fingerprint
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight.mul_(2)  # type: ignore[union-attr,index]
    torch.testing.assert_close(model.down_norms()[1], 2 * norms[1])
    assert model.fingerprint != mark


def test_frozen_gives_the_gradients_back_after_an_error(llama: ns.Model) -> None:
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    chosen = next(iter(model.module.parameters())).requires_grad_(True)
    seen = []
    with pytest.raises(ZeroDivisionError), model.frozen():
        seen.append(chosen.requires_grad or 1 / 0)
    assert seen == []
    assert chosen.requires_grad


def test_its_repr_fits_a_line(llava: ns.Model) -> None:
    assert repr(llava).startswith("Model('LlavaForConditionalGeneration', LlavaForConditionalGeneration, n_layers=3")
    assert len(repr(llava)) < 150


@pytest.mark.parametrize("wrap", ["peft", "a function"])
def test_what_a_wrapper_of_the_forward_passes_on_is_given(wrap: str) -> None:
    """GPT-2 counts positions from the left edge of a padded row unless it is told them."""
    from peft import LoraConfig, get_peft_model

    module: Any = tiny.gpt2()
    if wrap == "peft":
        config = LoraConfig(r=2, target_modules=["mlp.c_proj"], fan_in_fan_out=True, init_lora_weights=False)
        module = get_peft_model(module, config).eval()
    else:
        forward = module.forward

        def passing_on(*args: Any, **options: Any) -> Any:
            return forward(*args, **options)

        module.forward = passing_on
    model, prompts = ns.load(module, processor=tiny.tokenizer()), list(some("gpt2"))
    assert model.forward_takes("position_ids")
    assert not model.forward_takes("pixel_values")
    alone = []
    for prompt in prompts:
        with torch.no_grad():
            ids = tiny.encode(model, prompt)[0]["input_ids"]
            alone.append(module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1])
    torch.testing.assert_close(answer_logits(model, prompts, batch_size=16), torch.stack(alone))
