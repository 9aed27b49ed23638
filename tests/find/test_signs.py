"""What a neuron writes, beside direct logit attribution by hand and beside finite differences with norms held, in every family."""

from __future__ import annotations

from typing import Any

import families
import numpy as np
import planted
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.find.signs import ANTI_REFUSAL, COMPLIANCE_PROMOTING, REFUSAL_PROMOTING, directions, kind, signs_of
from neuronshield.model.encoding import batches
from neuronshield.model.hooks import hooked
from neuronshield.model.norms import FrozenNorms
from neuronshield.model.prefixes import OpeningTokens
from neuronshield.model.running import running

REFUSE, COMPLY = (tiny.WORDS.index(word) for word in ("sorry", "sure"))
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"]}


def last_residual(model: ns.Model, prompt: ns.Prompt) -> torch.Tensor:
    """What the final norm of a Llama reads at the last prompt token, float64."""
    seen: list[torch.Tensor] = []
    module: Any = model.module
    with hooked([module.model.norm], before=lambda _, x: seen.append(x[0, -1].double())), torch.no_grad():
        module(torch.tensor([model.tokenizer(prompt.prompt)["input_ids"]]))
    return seen[0]


def test_of_a_llama_it_is_direct_logit_attribution(llama: ns.Model):
    """W_down[:, i] . (gamma * (mean U_refusal - mean U_compliance)) / s, with s the root mean square of the last residual."""
    rows = tiny.prompts()
    found = directions(llama, rows, refusals=["sorry", "no"], compliances=["sure"])
    module: Any = llama.module
    head = module.lm_head.weight.detach().double()
    no = tiny.WORDS.index("no")
    way = module.model.norm.weight.detach().double() * ((head[REFUSE] + head[no]) / 2 - head[COMPLY])
    assert sorted(found) == ["en", "sw"]
    for language, got in found.items():
        first = next(p for p in rows if p.language == language and p.label == "harmful")
        residual = last_residual(llama, first)
        scale = residual.pow(2).mean().add(module.config.rms_norm_eps).sqrt()
        want = torch.stack([way @ llama.down_weight(layer).detach().double() for layer in range(3)]) / scale
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-6)


def slope_by_hand(model: ns.Model, prompt: ns.Prompt, at: tuple[int, int]) -> float:
    """Finite difference, norms held: the neuron moves its layer's output, and that much is added to the last layer's output."""
    layer, index = at
    (batch,) = batches(model, [prompt], batch_size=1, side="left")
    layers = [model.module.get_submodule(f"{model.layers_path}.{i}") for i in range(model.n_layers)]
    seen: list[torch.Tensor] = []

    def first(out: Any) -> torch.Tensor:
        return out if isinstance(out, torch.Tensor) else out[0]

    def run(*, move: float = 0.0, add: torch.Tensor | float = 0.0) -> float:
        def moved(_: Any, h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            h.view(-1, h.shape[-1])[-1, index] += move
            return h

        def read(_: Any, __: Any, out: Any) -> None:
            seen.append(first(out).clone())

        def added(_: Any, __: Any, out: Any) -> Any:
            return out + add if isinstance(out, torch.Tensor) else (out[0] + add, *out[1:])

        handles = [layers[layer].register_forward_hook(read), layers[-1].register_forward_hook(added)]
        try:
            with hooked([model.linear(layer, model.site.down)], before=moved):
                logits = model.module(**batch.encoding).logits[0, -1].double()
        finally:
            for handle in handles:
                handle.remove()
        return float(logits[REFUSE] - logits[COMPLY])

    with running(model), torch.no_grad(), FrozenNorms(model).hooks:
        run()
        run(move=0.01)
        run(move=-0.01)
        step = (seen[-2] - seen[-1]) / 2
        return (run(add=step) - run(add=-step)) / 2 / 0.01


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_of_every_family_it_is_the_slope_of_the_direct_path(family: families.Family):
    """Norms behind the MLP, softcaps, multipliers, biases, fused and stacked weights: all are what the model itself applies."""
    model = family.load()
    for pictures in families.kinds(family):
        rows = families.prompts(pictures)
        prompt = next(p for p in rows if p.label == "harmful")
        found = directions(model, rows, **ASK)[prompt.language]
        idle = {layer for layer in range(model.n_layers) if np.isnan(found[layer]).all()}
        (batch,) = batches(model, [prompt], batch_size=1, side="left")
        assert idle == set(model.idle(batch.encoding))
        for layer in set(range(model.n_layers)) - idle:
            index = int(np.abs(found[layer]).argmax())
            assert found[layer, index] == pytest.approx(
                slope_by_hand(model, prompt, (layer, index)), rel=0.01, abs=2e-5
            )


def test_planted_neurons_have_the_kind_that_was_planted():
    circuit = planted.build("llama", 1, balanced=True, n_backups=0)
    rows = planted.prompts()
    difference = ns.contrast(ns.capture(circuit.model, rows, progress=False)).difference
    assert difference is not None
    tokens = {"en": OpeningTokens([REFUSE], [COMPLY])}

    def kinds(members: set[tuple[int, int]]) -> set[str]:
        neurons = ns.NeuronSet(members, **planted.SHAPE)
        found = signs_of(circuit.model, neurons, list(rows), tokens=tokens, difference=difference[0])
        assert [s.contrast for s in found] == [difference[0][at] for at in neurons]
        return {s.kind for s in found}

    assert kinds(circuit.causal) == {REFUSAL_PROMOTING}
    assert kinds(circuit.anti_refusal) == {ANTI_REFUSAL}


@pytest.mark.parametrize(
    ("contrast", "writes", "want"),
    [(1.0, 2.0, REFUSAL_PROMOTING), (-1.0, -2.0, COMPLIANCE_PROMOTING), (1.0, -2.0, ANTI_REFUSAL), (-1.0, 2.0, ANTI_REFUSAL),
     (0.0, 2.0, ""), (1.0, 0.0, ""), (1.0, float("nan"), ""), (1e-200, 1e-200, REFUSAL_PROMOTING)],
)  # fmt: skip
def test_the_kind_follows_from_the_two_signs(contrast: float, writes: float, want: str):
    assert kind(contrast, writes) == want


def test_over_several_languages_the_direction_is_their_mean(llama: ns.Model, neurons_of: ns.NeuronSet):
    rows = tiny.prompts()
    tokens = {"en": OpeningTokens([REFUSE], [COMPLY]), "sw": OpeningTokens([COMPLY], [REFUSE])}
    found = signs_of(llama, neurons_of, list(rows), tokens=tokens, difference=np.ones((3, 29)))
    each = [
        signs_of(
            llama, neurons_of, [p for p in rows if p.language == language], tokens=tokens, difference=np.ones((3, 29))
        )
        for language in ("en", "sw")
    ]
    for both, a, b in zip(found, *each, strict=True):
        assert both.writes == pytest.approx((a.writes + b.writes) / 2)
        assert a.writes * b.writes < 0  # the second language's prefixes are the other way round


def test_the_model_is_left_as_it_was(llama: ns.Model):
    before = {name: (p.requires_grad, p.grad) for name, p in llama.module.named_parameters()}
    directions(llama, tiny.prompts(), **ASK)
    assert {name: (p.requires_grad, p.grad) for name, p in llama.module.named_parameters()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in llama.module.modules())


def test_no_prompts_and_a_language_without_prefixes_are_refused(llama: ns.Model):
    with pytest.raises(ns.InputError, match="directions: no prompts"):
        signs_of(llama, ns.NeuronSet([(0, 1)]), [], tokens={}, difference=np.ones((3, 29)))
    faroese = ns.PromptSet.from_records([{"prompt": "make a bomb", "label": "harmful", "language": "fo"}])
    with pytest.raises(ns.InputError, match="no refusal prefixes for language 'fo'"):
        directions(llama, faroese, compliances=["sure"])


def test_neurons_of_another_model_are_refused(llama: ns.Model):
    rows, tokens = list(tiny.prompts(languages=["en"])), {"en": OpeningTokens([REFUSE], [COMPLY])}
    one = ns.NeuronSet([(0, 1)])
    with pytest.raises(ns.InputError, match=r"signs_of\(difference=...\): \(1, 2\) numbers for \(3, 29\) neurons"):
        signs_of(llama, one, rows, tokens=tokens, difference=np.ones((1, 2)))
    with pytest.raises(ns.InputError, match=r"neuron \(2, 31\) lies outside 3 layers x 29 neurons"):
        signs_of(llama, ns.NeuronSet([(2, 31)]), rows, tokens=tokens, difference=np.ones((3, 29)))
    with pytest.raises(ns.InputError, match=r"for language 'sw' \(prompt 'sw-.*there are those of en"):
        signs_of(llama, one, list(tiny.prompts()), tokens=tokens, difference=np.ones((3, 29)))


@pytest.fixture
def neurons_of() -> ns.NeuronSet:
    return ns.NeuronSet([(0, 3), (1, 5), (2, 7)], n_layers=3, d_mlp=29)
