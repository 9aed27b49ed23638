"""A recurrent layer that does not mask padding reads unpadded batches."""

from __future__ import annotations

import families
import numpy as np
import pytest
import tiny
import torch
from oracles import TOKENS, some
from test_shortcuts import SLOW, made
from transformers import MiniMaxConfig, MiniMaxForCausalLM

import neuronshield as ns
from neuronshield.model.encoding import batches
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.padding import pads_on_the_left


@pytest.mark.parametrize(
    ("name", "masks"),
    [("Lfm2ForCausalLM", True), ("RecurrentGemmaForCausalLM", False)]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in SLOW if "Gemma3" not in name],
)
def test_a_batch_gives_what_each_prompt_gives_alone(name: str, masks: bool) -> None:
    model, prompts = made(name), list(some("llama"))
    assert pads_on_the_left(model) is masks
    widths = [
        b.encoding["attention_mask"].sum(dim=1).unique() for b in batches(model, prompts, batch_size=9, side="left")
    ]
    assert all(len(w) == 1 for w in widths) is not masks
    assert len(list(batches(model, prompts, batch_size=9))) == 1  # padding on the right changes nothing
    alone = torch.cat([answer_logits(model, [p]) for p in prompts])
    torch.testing.assert_close(answer_logits(model, prompts, batch_size=9), alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        ns.record(model, prompts, batch_size=9), ns.record(model, prompts, batch_size=1), rtol=0, atol=1e-4
    )
    one = np.concatenate([margins(model, [p], [None], TOKENS) for p in prompts], axis=1)
    np.testing.assert_allclose(margins(model, prompts, [None], TOKENS), one, atol=1e-4)


def test_a_model_without_recurrent_layers_is_not_tried(llama: ns.Model) -> None:
    runs: list[int] = []
    handle = tiny.downs(llama)[0].register_forward_hook(lambda *_: runs.append(1))
    assert pads_on_the_left(llama)
    handle.remove()
    assert runs == []


@pytest.mark.slow
def test_padding_that_is_masked_only_until_the_first_answer_token_is_found() -> None:
    """MiniMax masks padding in the prompt; the state that it generates from is another."""
    torch.manual_seed(0)
    config = MiniMaxConfig(
        **families.sizes(
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            num_local_experts=4,
            num_experts_per_tok=2,
            block_size=8,
        )
    )
    module = MiniMaxForCausalLM(config).eval()
    for p in module.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    model, prompts = ns.load(module, processor=families.tokenizer()), list(some("llama"))
    alone = [ns.generate(model, p, max_new_tokens=5) for p in prompts]
    assert ns.generate(model, prompts, max_new_tokens=5, batch_size=9) == alone
    assert not pads_on_the_left(model)
