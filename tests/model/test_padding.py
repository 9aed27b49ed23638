"""A recurrent layer that does not mask padding reads unpadded batches."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from oracles import TOKENS, some
from test_shortcuts import SLOW, made

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
