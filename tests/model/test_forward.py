"""Interventions against plain PyTorch hooks on one unpadded prompt at a time, and against TransformerLens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
from oracles import NEURONS, PAIRS, TOKENS, by_hand, logits_by_hand, margin_by_hand, some, values

import neuronshield as ns
from neuronshield.model import edits
from neuronshield.model.forward import margins
from neuronshield.model.generation import generate
from neuronshield.model.intervention import KINDS, Intervention


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["last_prompt", "prompt", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_margins_in_padded_batches_equal_hooks_on_each_prompt_alone(
    request: pytest.FixtureRequest, name: str, kind: str, positions: str
) -> None:
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    value = values(kind, len(prompts))
    condition = Intervention(NEURONS, kind, value, positions)  # type: ignore[arg-type]
    got = margins(model, prompts, [None, condition], TOKENS, batch_size=4)
    clean = [margin_by_hand(logits_by_hand(model, p, None, positions)) for p in prompts]
    np.testing.assert_allclose(got, [clean, by_hand(model, prompts, condition)], rtol=2e-3, atol=2e-4)
    assert np.median(np.abs(got[1] - got[0])) > 1e-2  # the change can be seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_the_short_way_of_many_conditions_gives_what_each_gives_alone(
    request: pytest.FixtureRequest, name: str
) -> None:
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    conditions = [None, *(Intervention(NEURONS, k, values(k, len(prompts))) for k in ("zero", "mean", "patch")), None]  # type: ignore[arg-type]
    together = margins(model, prompts, conditions, TOKENS, batch_size=5)
    alone = np.concatenate([margins(model, prompts, [c], TOKENS, batch_size=3) for c in conditions])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["image", "text"])
def test_tokens_are_chosen_by_their_role(llava: ns.Model, positions: str) -> None:
    prompts = ns.PromptSet([p for p in some("llava") if p.images])
    condition = Intervention(NEURONS, "clamp", 3.0, positions)  # type: ignore[arg-type]
    got = margins(llava, prompts, [None, condition], TOKENS, batch_size=4)
    np.testing.assert_allclose(got[1], by_hand(llava, prompts, condition), rtol=2e-3, atol=2e-4)
    assert np.abs(got[1] - got[0]).max() > 1e-2


@pytest.mark.parametrize("positions", ["last_prompt", "prompt"])
def test_only_prompts_of_its_cells_are_touched(llama: ns.Model, positions: str) -> None:
    prompts = some("llama")
    condition = Intervention(NEURONS, "clamp", 3.0, positions, cells=["sw/text"])  # type: ignore[arg-type]
    got = margins(llama, prompts, [None, condition, condition, None], TOKENS, batch_size=4)
    np.testing.assert_allclose(got[1], by_hand(llama, prompts, condition), rtol=2e-3, atol=2e-4)
    sw = np.array([p.language == "sw" for p in prompts])
    assert (np.abs(got[1] - got[0])[sw] > 1e-3).all()
    np.testing.assert_allclose(got[1][~sw], got[0][~sw], atol=1e-5)


def test_layers_below_are_not_run_again(llama: ns.Model) -> None:
    """Twenty draws in the last layer: the first layer's MLP runs for the shared part only."""
    prompts, runs = some("llama"), []
    handle = tiny.downs(llama)[0].register_forward_hook(lambda *_: runs.append(1))
    try:
        conditions = [
            Intervention(ns.NeuronSet([(2, i)]), "zero", None, p) for p in ("last_prompt", "prompt") for i in range(20)
        ]
        margins(llama, prompts, conditions[:20], TOKENS, batch_size=len(prompts))
        shared_last = len(runs)
        margins(llama, prompts, conditions[20:], TOKENS, batch_size=len(prompts))
    finally:
        handle.remove()
    assert shared_last <= 3 + 1  # full, all tokens but the last, the last, and one prompt by itself to compare with
    assert len(runs) - shared_last == 1 + 1


def test_nothing_is_left_behind_not_even_after_an_error(llama: ns.Model) -> None:
    prompts = some("llama")
    before = margins(llama, prompts, [None], TOKENS)
    zero = Intervention(NEURONS, "zero", None, "all")
    generate(llama, prompts, intervention=zero, max_new_tokens=3)
    margins(llama, prompts, [zero], TOKENS)
    with pytest.raises(KeyError):
        margins(llama, prompts, [zero], {})
    np.testing.assert_array_equal(margins(llama, prompts, [None], TOKENS), before)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Intervention(ns.NeuronSet([(3, 0)]), "zero"), r"neuron \(3, 0\) does not exist"),
        (Intervention(ns.NeuronSet([(0, 29)]), "zero"), r"neuron \(0, 29\) does not exist"),
        (Intervention(ns.NeuronSet(list(NEURONS)), "mean", torch.zeros(3, 28)), r"value has shape \(3, 28\)"),
        (Intervention(NEURONS, "patch", torch.zeros(2, 3, 29)), r"value has shape \(2, 3, 29\)"),
        (Intervention(ns.NeuronSet([(0, 1)], n_layers=4, d_mlp=29), "zero"), "a model of 4 layers x 29 neurons"),
        (
            Intervention(ns.NeuronSet([(0, 1)], provenance={"fingerprint": "f00d", "model": "x"}), "zero"),
            "with other weights",
        ),
        (Intervention(NEURONS, "zero", cells=["fr/text"]), "no prompt is of the cells it names"),
        (Intervention(NEURONS, "zero", None, "image"), "has no such token; name the cells that have"),
    ],
)
def test_one_that_does_not_fit_the_model_or_the_prompts_is_an_error(
    llama: ns.Model, condition: Intervention, said: str
) -> None:
    prompts = some("llama")
    for use in (
        lambda: margins(llama, prompts, [condition], TOKENS),
        lambda: generate(llama, prompts, intervention=condition),
    ):
        with pytest.raises(ns.InputError, match=said):
            use()


def test_what_could_never_fire_is_an_error_not_a_null_effect(llama: ns.Model) -> None:
    later = Intervention(NEURONS, "zero", None, "response")
    with pytest.raises(ns.InputError, match="read before the first answer token; use generate"):
        margins(llama, some("llama"), [later], TOKENS)
    with pytest.raises(ns.InputError, match="max_new_tokens of 2 or more"):
        generate(llama, some("llama"), intervention=later, max_new_tokens=1)


def test_a_layer_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firing that is counted short is never passed over."""
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    kept = edits.Edit.apply
    monkeypatch.setattr(edits.Edit, "apply", lambda self, h: kept(self, h) - 1)
    zero = Intervention(NEURONS, "zero", None, "all")
    with pytest.raises(RuntimeError, match="fired"):
        margins(model, some("llama"), [zero], TOKENS)
    with pytest.raises(RuntimeError, match="did not fire as named"):
        generate(model, some("llama"), intervention=zero, max_new_tokens=2)


def test_transformer_lens_ablates_the_same_neurons_to_the_same_logits(gpt2: ns.Model, tmp_path: Path) -> None:
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

    hooks: list[Any] = [(f"blocks.{layer}.mlp.hook_post", zero) for layer in {layer for layer, _ in PAIRS}]
    for i, p in enumerate(prompts):
        ids = tiny.encode(gpt2, p)[0]["input_ids"]
        with torch.no_grad():
            clean, cut = bridge(ids)[0, -1].double(), bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1].double()
        np.testing.assert_allclose(got[:, i], [margin_by_hand(clean), margin_by_hand(cut)], rtol=2e-3, atol=2e-4)


def test_many_conditions_run_where_a_layer_is_idle() -> None:
    """Llama 3.2 Vision's cross-attention layers keep no cache for a prompt without a picture."""
    model = next(f for f in families.FAMILIES if f.name == "Llama 3.2 Vision").load()
    prompts = families.prompts(pictures=False)
    assert model.idle({}) == [1]
    conditions = [None, *(Intervention(ns.NeuronSet([(layer, 3)]), "clamp", 3.0) for layer in (0, 1, 2, 2))]
    together = margins(model, prompts, conditions, TOKENS, batch_size=8)
    alone = np.concatenate([margins(model, prompts, [c], TOKENS, batch_size=8) for c in conditions])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(alone[2], alone[0])  # an idle layer's neurons are silent
    assert np.abs(alone[3] - alone[0]).max() > 1e-3
