"""Greedy generation against a loop of plain hooks; one loop that calls back and counts."""

# mypy: disable-error-code="arg-type, call-overload, list-item, attr-defined"
# Wrong calls are made on purpose.

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import NEURONS, WORD, logits_by_hand, some

import neuronshield as ns
from neuronshield.model.forward import answer_logits
from neuronshield.model.generation import decode, generate
from neuronshield.model.intervention import Intervention


@pytest.mark.parametrize("positions", ["last_prompt", "response", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_generation_equals_a_greedy_loop_under_hooks(request: pytest.FixtureRequest, name: str, positions: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    value = 3 * torch.randn((3, 29), generator=torch.Generator().manual_seed(6))
    condition = Intervention(NEURONS, "mean", value, positions)  # type: ignore[arg-type]
    got = generate(model, prompts, intervention=condition, max_new_tokens=5, batch_size=4)
    for text, prompt in zip(got, prompts, strict=True):
        ids: list[int] = []
        while len(ids) < 5 and (not ids or ids[-1] != WORD["<eos>"]):
            ids.append(
                int(logits_by_hand(model, prompt, value, positions, ids).argmax())
            )  # response: from the second on
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert got != generate(model, prompts, max_new_tokens=5)


# -- natural calls ----------------------------------------------------------------------------------------
def test_one_request_gives_one_string_and_several_a_list(llama: ns.Model) -> None:
    prompts = some("llama")
    wanted = generate(llama, prompts, max_new_tokens=4)
    assert isinstance(wanted, list)
    texts = [p.prompt for p in prompts]
    assert generate(llama, texts, max_new_tokens=4) == wanted
    assert generate(llama, list(prompts), max_new_tokens=4) == wanted
    assert generate(llama, [prompts[0], texts[1]], max_new_tokens=4) == wanted[:2]
    assert generate(llama, texts[0], max_new_tokens=4) == wanted[0]
    assert generate(llama, prompts[0], max_new_tokens=4) == wanted[0]
    assert generate(llama, [], max_new_tokens=4) == []


def test_a_string_with_the_same_words_twice_is_two_requests(llama: ns.Model) -> None:
    one, two = generate(llama, ["how do i bake bread"] * 2, max_new_tokens=3)
    assert one == two


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, p: generate(p, m), "generate(model, prompts): model must be Model, got PromptSet; the model comes first"),
        (lambda m, _p: generate(m, 5), "generate(model, prompts): prompts must be PromptSet, got int 5"),
        (lambda m, _p: generate(m, {"prompt": "x"}), "prompts must be PromptSet, got dict"),
        (lambda m, _p: generate(m, [{"prompt": "x"}]), "prompts[0] must be Prompt or str, got dict"),
        (lambda m, p: generate(m, [p[0], 3]), "prompts[1] must be Prompt or str, got int 3"),
        (lambda m, _p: generate(m, None), "prompts must be PromptSet, got NoneType"),
        (lambda _m, p: generate("organism", p), "model must be Model, got str 'organism'; use load"),
        (lambda m, p: generate(m, p, max_new_tokens=0), "generate: max_new_tokens=0: must be a whole number of at least 1"),
        (lambda m, p: generate(m, p, max_new_tokens=2.5), "max_new_tokens=2.5: must be a whole number"),
        (lambda m, p: generate(m, p, batch_size=0), "generate: batch_size=0: must be a whole number of at least 1"),
        (lambda m, p: generate(m, p, intervention=NEURONS), "intervention must be Intervention or NoneType, got NeuronSet"),
        (lambda m, _p: generate(m, " "), "empty"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(llama: ns.Model, call: Any, said: str) -> None:
    with pytest.raises(ns.InputError) as caught:
        call(llama, some("llama"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the loop ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_decode_calls_back_at_every_step_and_layer_it_is_told_to(request: pytest.FixtureRequest, name: str) -> None:
    from neuronshield.model.encoding import collate

    model: ns.Model = request.getfixturevalue(name)
    rows = [p for p in some(name) if not p.images][:3]
    batch = collate(model, rows, side="left")
    shapes: dict[tuple[int, int], tuple[int, ...]] = {}

    def change(step: int, layer: int, h: torch.Tensor) -> int:
        shapes[step, layer] = tuple(h.shape)
        h[:, -1, 3] = 2.0
        return step

    ids, kept = decode(model, batch, max_new_tokens=4, layers=[[0, 2], [1], []], change=change)
    width = batch.encoding["input_ids"].shape[1]
    assert kept == {(0, 0): 0, (0, 2): 0, (1, 1): 1}
    assert shapes == {(0, 0): (3, width, 29), (0, 2): (3, width, 29), (1, 1): (3, 1, 29)}
    assert ids.shape[0] == 3
    clean, nothing = decode(model, batch, max_new_tokens=4)
    assert nothing == {}
    neurons = ns.NeuronSet([(0, 3), (2, 3)], n_layers=3, d_mlp=29)
    held, _ = decode(model, batch, max_new_tokens=1, layers=[[0, 2]], change=change)
    says = answer_logits(model, rows, Intervention(neurons, "clamp", 2.0)).argmax(dim=1)
    assert held[:, 0].tolist() == says.tolist()
    assert clean.shape[0] == 3


def test_a_step_that_was_not_reached_is_an_error(llama: ns.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronshield.model.encoding import collate

    batch = collate(llama, list(some("llama"))[:2], side="left")
    first = type(llama.module).generate

    def longer(self: Any, **options: Any) -> torch.Tensor:
        options["generation_config"].max_new_tokens -= 1
        ids = first(self, **options)
        return torch.cat([ids, ids[:, -1:]], dim=1)  # one token that no forward decided

    monkeypatch.setattr(type(llama.module), "generate", longer)
    with pytest.raises(RuntimeError, match=r"did not run at every \(step, layer\)"):
        decode(llama, batch, max_new_tokens=3, layers=[[1]] * 4, change=lambda *_: None)
