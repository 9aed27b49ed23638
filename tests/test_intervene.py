"""Interventions against plain PyTorch hooks on one unpadded prompt at a time, and against TransformerLens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.grade import OpeningTokens
from neuronshield.intervene import Intervention, generate, margins

PAIRS = [(0, 3), (0, 28), (2, 7), (2, 8)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}
TOKENS = {x: OpeningTokens([WORD["sorry"], WORD["no"]], [WORD["sure"]]) for x in ("en", "sw")}


def some(name: str) -> ns.PromptSet:
    """Unlike lengths in every batch, so that padding would show."""
    return ns.PromptSet(list(tiny.prompts(pictures=name == "llava"))[:: 11 if name == "llava" else 7])


def values(kind: str, n: int) -> torch.Tensor | None:
    shape = {"zero": None, "mean": (3, 29), "resample": (n, 3, 29), "patch": (n, 3, 29)}[kind]
    return None if shape is None else 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits_by_hand(
    model: ns.Model, prompt: ns.Prompt, new: torch.Tensor | None, positions: str, more: Sequence[int] = ()
) -> torch.Tensor:
    """Last logits of the prompt and `more` generated tokens, with `new` [n_layers, d_mlp] written in by hooks."""
    encoding, n = tiny.encode(model, prompt)
    if more:
        ids = torch.cat([encoding["input_ids"], torch.tensor([list(more)])], dim=1)
        encoding |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def change(layer: int, h: torch.Tensor) -> torch.Tensor | None:
        if new is None:
            return None
        h = h.clone()
        for at, index in PAIRS:
            if at == layer and positions == "all":
                h[:, :, index] = new[layer, index].to(h.dtype)
            elif at == layer:
                h[:, n - 1, index] = new[layer, index].to(h.dtype)
        return h

    with torch.no_grad(), tiny.hooked(tiny.downs(model), change):
        return model.module(**encoding).logits[0, -1].double()


def margin_by_hand(logits: torch.Tensor) -> float:
    x = logits.numpy()
    return float(np.log(np.exp(x[[WORD["sorry"], WORD["no"]]]).sum()) - x[WORD["sure"]])


def of_row(value: torch.Tensor | None, row: int) -> torch.Tensor:
    if value is None:
        return torch.zeros(3, 29)
    return value if value.ndim == 2 else value[row]


@pytest.mark.parametrize("positions", ["last_prompt", "all"])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "patch"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_margins_in_padded_batches_equal_hooks_on_each_prompt_alone(
    request: pytest.FixtureRequest, name: str, kind: str, positions: str
):
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    value = values(kind, len(prompts))
    condition = Intervention(NEURONS, kind, value, positions)  # type: ignore[arg-type]
    got = margins(model, prompts, [None, condition], TOKENS, batch_size=4)
    clean = [margin_by_hand(logits_by_hand(model, p, None, positions)) for p in prompts]
    changed = [margin_by_hand(logits_by_hand(model, p, of_row(value, i), positions)) for i, p in enumerate(prompts)]
    np.testing.assert_allclose(got, [clean, changed], rtol=2e-3, atol=2e-4)
    assert np.median(np.abs(got[1] - got[0])) > 1e-2  # the change can be seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_the_short_way_of_many_conditions_gives_what_each_gives_alone(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    conditions = [None, *(Intervention(NEURONS, k, values(k, len(prompts))) for k in ("zero", "mean", "patch")), None]  # type: ignore[arg-type]
    together = margins(model, prompts, conditions, TOKENS, batch_size=5)
    alone = np.concatenate([margins(model, prompts, [c], TOKENS, batch_size=3) for c in conditions])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["last_prompt", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_generation_equals_a_greedy_loop_under_hooks(request: pytest.FixtureRequest, name: str, positions: str):
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    value = 3 * torch.randn((3, 29), generator=torch.Generator().manual_seed(2))
    condition = Intervention(NEURONS, "mean", value, positions)  # type: ignore[arg-type]
    got = generate(model, prompts, intervention=condition, max_new_tokens=5, batch_size=4)
    for text, prompt in zip(got, prompts, strict=True):
        ids: list[int] = []
        while len(ids) < 5 and (not ids or ids[-1] != WORD["<eos>"]):
            ids.append(int(logits_by_hand(model, prompt, value, positions, ids).argmax()))
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert got != generate(model, prompts, max_new_tokens=5)


def test_nothing_is_left_behind_not_even_after_an_error(llama: ns.Model):
    prompts = some("llama")
    before = margins(llama, prompts, [None], TOKENS)
    zero = Intervention(NEURONS, "zero", None, "all")
    generate(llama, prompts, intervention=zero, max_new_tokens=3)
    margins(llama, prompts, [zero], TOKENS)
    with pytest.raises(KeyError):
        margins(llama, prompts, [zero], {})
    np.testing.assert_array_equal(margins(llama, prompts, [None], TOKENS), before)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Intervention(ns.NeuronSet([]), "zero"), "empty neuron set"),
        (lambda: Intervention(NEURONS, "noise"), "kind='noise' is unknown"),
        (lambda: Intervention(NEURONS, "zero", positions="first"), "positions='first' is unknown"),
        (lambda: Intervention(NEURONS, "mean"), "needs a value"),
        (lambda: Intervention(NEURONS, "zero", torch.zeros(3, 29)), "takes no value"),
    ],
)
def test_an_intervention_that_makes_no_sense_is_said_at_once(make, said: str):  # type: ignore[no-untyped-def]
    with pytest.raises(ns.InputError, match=said):
        make()


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Intervention(ns.NeuronSet([(3, 0)]), "zero"), r"neuron \(3, 0\) does not exist"),
        (Intervention(ns.NeuronSet([(0, 29)]), "zero"), r"neuron \(0, 29\) does not exist"),
        (Intervention(NEURONS, "mean", torch.zeros(3, 28)), r"value has shape \(3, 28\)"),
        (Intervention(NEURONS, "patch", torch.zeros(2, 3, 29)), r"value has shape \(2, 3, 29\)"),
    ],
)
def test_one_that_does_not_fit_the_model_or_the_prompts_is_an_error(
    llama: ns.Model, condition: Intervention, said: str
):
    prompts = some("llama")
    for use in (
        lambda: margins(llama, prompts, [condition], TOKENS),
        lambda: generate(llama, prompts, intervention=condition),
    ):
        with pytest.raises(ns.InputError, match=said):
            use()


def test_transformer_lens_ablates_the_same_neurons_to_the_same_logits(gpt2: ns.Model, tmp_path: Path):
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tiny.tokenizer().save_pretrained(tmp_path)  # it asks the tokenizer where it came from
    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=tiny.gpt2(), tokenizer=AutoTokenizer.from_pretrained(tmp_path)
    )
    prompts = some("gpt2")
    conditions = [None, Intervention(NEURONS, "zero", None, "all")]
    got = margins(gpt2, prompts, conditions, TOKENS)

    def zero(h: torch.Tensor, hook) -> torch.Tensor:  # type: ignore[no-untyped-def]
        h = h.clone()
        h[:, :, [i for layer, i in PAIRS if layer == int(hook.name.split(".")[1])]] = 0
        return h

    hooks = [(f"blocks.{layer}.mlp.hook_post", zero) for layer in {layer for layer, _ in PAIRS}]
    for i, p in enumerate(prompts):
        ids = tiny.encode(gpt2, p)[0]["input_ids"]
        with torch.no_grad():
            clean, cut = bridge(ids)[0, -1].double(), bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1].double()
        np.testing.assert_allclose(got[:, i], [margin_by_hand(clean), margin_by_hand(cut)], rtol=2e-3, atol=2e-4)
