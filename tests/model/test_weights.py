"""Counts, norms and fingerprints of MLP weights, whichever way a family stores them."""

from __future__ import annotations

import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.model import weights


def total(module: torch.nn.Module) -> int:
    return sum({id(p): p.numel() for p in module.parameters()}.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_parameters_are_counted_once(request: pytest.FixtureRequest, name: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    assert model.n_params == total(model.module)
    # Llama: gate row + up row + down column. GPT-2: up row + down column; no update trains its bias.
    assert model.params_per_neuron == (40 if name == "gpt2" else 60)


def test_tied_weights_count_once() -> None:
    tied = tiny.llama(tie_word_embeddings=True)
    model = ns.load(tied, processor=tiny.tokenizer())
    assert model.n_params == total(tiny.llama(tie_word_embeddings=False)) - 20 * len(tiny.WORDS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_down_norms_are_column_norms(request: pytest.FixtureRequest, name: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    norms = model.down_norms()
    assert norms.shape == (3, 29)
    assert norms.dtype == torch.float64
    for layer, down in enumerate(tiny.downs(model)):
        unit = torch.eye(29)  # what each neuron writes, by pushing it through; the bias taken away
        with torch.no_grad():
            written = down(unit) - down(torch.zeros(1, 29))
        assert torch.allclose(norms[layer].float(), written.norm(dim=1), atol=1e-5)


def test_the_fingerprint_tells_checkpoints_apart() -> None:
    tokenizer = tiny.tokenizer()
    prints = [ns.load(tiny.llama(seed), processor=tokenizer).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_weights_of_a_neuron_are_a_column_of_w_down(request: pytest.FixtureRequest, name: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    down = tiny.downs(model)[1]
    one = torch.zeros(29)
    one[7] = 1.0
    with torch.no_grad():
        written = down(one[None]) - down(torch.zeros(1, 29))
    torch.testing.assert_close(weights.down_weight(model, 1)[:, 7], written[0], atol=1e-6, rtol=1e-5)
    assert weights.out_in(down) == (20, 29)
    assert weights.is_conv1d(down) == (name == "gpt2")
    assert weights.packing(model) is None


def test_norms_of_order_one_are_sums_of_sizes(llama: ns.Model) -> None:
    weight = tiny.downs(llama)[2].weight.detach().double()  # type: ignore[operator,union-attr]
    torch.testing.assert_close(llama.down_norms(1)[2], weight.abs().sum(dim=0))
