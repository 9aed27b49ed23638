"""The direct path to the logits, forward beside backward, and beside moving a neuron by hand, in every family."""

from __future__ import annotations

import families
import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.find.paths import direct_path
from neuronshield.model.encoding import batches
from neuronshield.model.hooks import hooked
from neuronshield.model.norms import FrozenNorms
from neuronshield.model.running import running

QUICK = ("Llama", "GPT-2", "Gemma 2", "Gemma 3", "Cohere", "OPT", "Granite", "Qwen2-VL", "Mixtral", "Phi-2")


def moved_by_hand(model: ns.Model, prompt: ns.Prompt, index: int, *, step: float = 0.01) -> torch.Tensor:
    """Central difference of the logits when a neuron of the last layer moves at the last token, norms held."""
    (batch,) = batches(model, [prompt], batch_size=1, side="left")
    down = model.linear(model.n_layers - 1, model.site.down)

    def run(move: float) -> torch.Tensor:
        def moved(_: object, h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            h.view(-1, h.shape[-1])[-1, index] += move
            return h

        with hooked([down], before=moved):
            return model.module(**batch.encoding).logits[0, -1].double()

    with running(model), torch.no_grad(), FrozenNorms(model).hooks:
        run(0.0)
        return (run(step) - run(-step)) / (2 * step)


def check(family: families.Family) -> None:
    model = family.load()
    prompt = families.prompts(False)[0]
    last = model.n_layers - 1
    index = int(model.down_norms()[last].argmax())
    rng = np.random.default_rng(0)
    with direct_path(model, prompt) as path:
        weights = torch.from_numpy(rng.normal(size=len(path.logits))).float()
        slopes = path.slopes(weights)
        for layer in slopes:
            column = model.down_weight(layer).detach()[:, index].float()
            forward, backward = path.logits_of(layer, column) @ weights, slopes[layer] @ column
            assert float(forward) == pytest.approx(float(backward), rel=1e-3, abs=1e-4)
        got = path.logits_of(last, model.down_weight(last).detach()[:, index].float())
    want = moved_by_hand(model, prompt, index)
    np.testing.assert_allclose(got.double(), want, rtol=0.01, atol=1e-3 * float(want.abs().max()) + 1e-4)
    assert float(want.abs().max()) > 0


@pytest.mark.parametrize("name", QUICK)
def test_the_change_of_every_logit_is_that_of_a_neuron_moved_by_hand(name: str):
    check(next(f for f in families.FAMILIES if f.name == name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [f for f in families.FAMILIES if f.name not in QUICK], ids=lambda family: family.name
)
def test_of_every_family_the_change_of_every_logit_is_that_of_a_neuron_moved_by_hand(family: families.Family):
    check(family)


def test_a_path_leaves_nothing_on_the_model(llama: ns.Model):
    with direct_path(llama, tiny.prompts()[0]) as path:
        path.logits_of(1, llama.down_weight(1).detach()[:, 5])
    assert all(p.grad is None and p.requires_grad for p in llama.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.module.modules())
