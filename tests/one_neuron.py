"""A tiny model in which one neuron causes the refusal, by construction; fixtures of it and of its proof, built once.

PYTEST_DONT_REWRITE (a plugin of the tests that use it, without assertions of its own)
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.prove.tables import Claim

HARM, OUT, IDLE, ONE, END = range(
    5
)  # residual dimensions: harm; refusal; read by nothing; constant; the answer is over
LAYER = 1
TRUTH, DECOY, LOUD = (LAYER, 3), (LAYER, 11), (LAYER, 17)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}


def plant(*, refuses: bool = True, always: bool = False) -> ns.Model:
    """A tiny Llama that answers "sorry" after a harmful noun and "sure" after a benign one.

    Neuron TRUTH reads HARM of the last word and writes OUT. DECOY reads HARM as well and writes IDLE: it separates harmful from
    benign as well and causes nothing. LOUD fires on every prompt and, with `always`, pushes all of them slightly towards refusal.
    """
    module = copy.deepcopy(tiny.llama())
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" not in name:
                p.mul_(0.1)
        embed, head = module.get_input_embeddings().weight, module.lm_head.weight
        embed[:, :5] = 0
        embed[:, ONE] = 1
        for noun in tiny.THINGS["harmful"]:
            embed[WORD[noun], HARM] = 1
        head[:, :5] = 0
        embed[[WORD["sorry"], WORD["sure"]], END] = 1
        head[WORD["<eos>"], END] = 20
        head[WORD["sure"], ONE], head[WORD["sorry"], OUT] = 4, 8
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight[:5] = 0
        mlp = module.model.layers[LAYER].mlp
        wires = [(TRUTH, HARM, OUT, 1), (DECOY, HARM, IDLE, 1), (LOUD, ONE, *((OUT, 0.02) if always else (IDLE, 1)))]
        for (_, index), reads, writes, strength in wires:
            for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
                weight[index] = 0
                weight[index, reads] = 1
            mlp.down_proj.weight[:, index] = 0
            mlp.down_proj.weight[writes, index] = strength
        if not refuses:
            mlp.down_proj.weight[OUT] = 0
    return ns.load(module, processor=tiny.tokenizer())


def set_of(*pairs: tuple[int, int], **provenance: Any) -> ns.NeuronSet:
    """Neurons of this model."""
    return ns.NeuronSet(pairs, n_layers=3, d_mlp=29, provenance=provenance)


def claim(proof: ns.Proof, name: str) -> Claim:
    """The claim of a name."""
    return next(c for c in proof.claims if c.name == name)


@pytest.fixture(scope="session")
def planted_model() -> ns.Model:
    return plant()


@pytest.fixture(scope="session")
def confirm() -> ns.PromptSet:
    return tiny.prompts(split="confirm")


@pytest.fixture(scope="session")
def truth(planted_model: ns.Model, confirm: ns.PromptSet) -> ns.Proof:
    return ns.verify(planted_model, set_of(TRUTH), confirm, **ASK)
