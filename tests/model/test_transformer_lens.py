"""An independent implementation: TransformerLens's bridge, plain PyTorch hooks and this package give the same logits."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer

import neuronshield as ns
from neuronshield.model.forward import answer_logits
from neuronshield.model.intervention import Intervention

PAIRS = [(0, 3), (0, 28), (2, 7), (2, 8)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
LAYERS = NEURONS.by_layer()
NAMES = ("gpt2", "llama", "llava")
NEAR: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ns.Model, Any]:
    """The package's model, and a bridge over a second copy of the same weights (booting rewires it in place).

    Booted by a folder, never by a hub name: TransformerLens fetches the processor of a vision-language model by that
    name, and where it fails (always, offline) it runs `pip install torchvision`, which replaces torch. So installs are
    refused here, and one that is tried is an error.
    """
    from transformer_lens.model_bridge import TransformerBridge

    folder = tmp_path_factory.mktemp("processor")
    tiny.tokenizer().save_pretrained(folder)  # the bridge asks a tokenizer where it came from
    module: Any
    if request.param == "llava":
        module, processor = tiny.llava()
        processor.save_pretrained(folder)
    else:
        module = {"gpt2": tiny.gpt2, "llama": tiny.llama}[request.param]()
    module.config.architectures = [type(module).__name__]  # a built LLaVA does not say; needed to pick the adapter
    installs: list[Any] = []

    def refuse(*args: Any, **_: Any) -> None:
        installs.append(args)
        raise OSError("no installing in a test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "check_call", refuse)
        bridge = TransformerBridge.boot_transformers(
            str(folder), hf_model=module, tokenizer=AutoTokenizer.from_pretrained(folder)
        )
    assert not installs
    return request.getfixturevalue(request.param), bridge


def pairs_of(model: ns.Model) -> list[tuple[ns.Prompt, ns.Prompt]]:
    pairs = tiny.prompts(pictures=model.takes_images).pairs()
    return pairs[::13] if model.takes_images else pairs[::7]


def by_bridge(
    bridge: Any, model: ns.Model, prompt: ns.Prompt, hooks: list[tuple[str, Callable[..., Any]]]
) -> np.ndarray:
    encoding, _ = tiny.encode(model, prompt)
    ids = encoding.pop("input_ids")
    with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
        return bridge(ids, **encoding)[0, -1].numpy()


def by_hooks(
    model: ns.Model, prompt: ns.Prompt, change: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> np.ndarray:
    encoding, _ = tiny.encode(model, prompt)
    with torch.no_grad(), tiny.hooked(tiny.downs(model), change):
        return model.module(**encoding).logits[0, -1].numpy()


def zeroed(layer: int, h: torch.Tensor) -> torch.Tensor | None:
    if layer not in LAYERS:
        return None
    h = h.clone()
    h[..., LAYERS[layer]] = 0
    return h


def test_clean_logits_are_the_same_three_ways(both: tuple[ns.Model, Any]) -> None:
    model, bridge = both
    prompts = [p for pair in pairs_of(model) for p in pair]
    ours = answer_logits(model, prompts, batch_size=4).numpy()
    for mine, prompt in zip(ours, prompts, strict=True):
        np.testing.assert_allclose(mine, by_hooks(model, prompt, lambda *_: None), **NEAR)
        np.testing.assert_allclose(mine, by_bridge(bridge, model, prompt, []), **NEAR)


def test_zero_ablation_is_the_same_three_ways_and_through_the_hooks_a_set_yields(both: tuple[ns.Model, Any]) -> None:
    model, bridge = both
    prompts = [p for pair in pairs_of(model) for p in pair]
    ours = answer_logits(model, prompts, Intervention(NEURONS, "zero", positions="all"), batch_size=4).numpy()
    hooks = NEURONS.to_transformer_lens()
    assert [name for name, _ in hooks] == ["blocks.0.mlp.hook_post", "blocks.2.mlp.hook_post"]
    for mine, prompt in zip(ours, prompts, strict=True):
        np.testing.assert_allclose(mine, by_hooks(model, prompt, zeroed), **NEAR)
        np.testing.assert_allclose(mine, by_bridge(bridge, model, prompt, hooks), **NEAR)
        assert np.abs(mine - by_bridge(bridge, model, prompt, [])).max() > 1e-2  # the hooks fired


def test_a_patch_from_the_harmful_side_is_the_same_three_ways(both: tuple[ns.Model, Any]) -> None:
    model, bridge = both
    pairs = pairs_of(model)
    benign = [b for _, b in pairs]
    donor = ns.record(model, [h for h, _ in pairs])
    ours = answer_logits(model, benign, Intervention(NEURONS, "patch", donor), batch_size=3).numpy()
    for mine, (h, b), recorded in zip(ours, pairs, donor, strict=True):
        kept: dict[int, torch.Tensor] = {}  # what the harmful side did, as the bridge saw it

        def keep(act: torch.Tensor, hook: Any, kept: dict[int, torch.Tensor] = kept) -> None:
            kept[int(hook.name.split(".")[1])] = act[0, -1].clone()

        def write(layer: int, act: torch.Tensor, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor | None:
            if layer not in LAYERS:
                return None
            act = act.clone()
            act[:, -1, LAYERS[layer]] = kept[layer][LAYERS[layer]]
            return act

        by_bridge(bridge, model, h, [(f"blocks.{layer}.mlp.hook_post", keep) for layer in range(3)])
        np.testing.assert_allclose(torch.stack([kept[i] for i in range(3)]), recorded, **NEAR)
        np.testing.assert_allclose(mine, by_hooks(model, b, write), **NEAR)
        hooks = [
            (f"blocks.{layer}.mlp.hook_post", lambda act, hook: write(int(hook.name.split(".")[1]), act))
            for layer in LAYERS
        ]
        np.testing.assert_allclose(mine, by_bridge(bridge, model, b, hooks), **NEAR)
        assert np.abs(mine - by_bridge(bridge, model, b, [])).max() > 1e-2


def test_a_hook_sets_what_it_is_told_to(tmp_path: Path) -> None:
    (_, hook), *_ = NEURONS.to_transformer_lens(value=0.5)
    act = torch.randn(2, 5, 29)
    new = hook(act, None)
    assert (new[..., LAYERS[0]] == 0.5).all()
    rest = [i for i in range(29) if i not in LAYERS[0]]
    assert torch.equal(new[..., rest], act[..., rest])
