"""Answers do not depend on what was answered before; a draft that is confirmed costs one forward."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES
from oracles import NEURONS, WORD, some

import neuronshield as ns
from neuronshield.model import drafts, lower
from neuronshield.model.generation import generate
from neuronshield.model.intervention import Intervention


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens a row of every forward of the tiny Llama."""
    widths: list[int] = []
    inner = tiny.LlamaForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, **options: Any) -> Any:
        widths.append(input_ids.shape[1])
        return inner(self, input_ids=input_ids, **options)

    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    monkeypatch.setattr(tiny.LlamaForCausalLM, "forward", forward)
    return widths


def fresh(name: str = "llama") -> ns.Model:
    if name == "llava":
        module, processor = tiny.llava()
        return ns.load(module, processor=processor)
    return ns.load(tiny.llama(), processor=tiny.tokenizer())


def test_the_second_model_of_the_same_weights_answers_in_one_forward(forwards: list[int]) -> None:
    first = fresh()
    prompts = list(some("llama"))
    wanted = generate(first, prompts, max_new_tokens=6)
    for _ in range(2):  # what is left out is compared with full forwards first
        generate(first, prompts, max_new_tokens=6)
    forwards.clear()
    assert generate(first, prompts, max_new_tokens=6, batch_size=64) == wanted
    assert len(forwards) == 1


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize("condition", [
    None, Intervention(NEURONS, "clamp", 4.0), Intervention(NEURONS, "mean", torch.ones(3, 29)),
    Intervention(NEURONS, "clamp", -3.0, "prompt"), Intervention(NEURONS, "clamp", 2.0, "all"),
    Intervention(NEURONS, "zero", cells=["en/text"]),
])  # fmt: skip
def test_answers_are_those_without_drafts(name: str, condition: Intervention | None) -> None:
    prompts = list(some(name))
    plain = generate(fresh(name), prompts, intervention=condition, max_new_tokens=5)
    model = fresh(name)
    for other in (Intervention(NEURONS, "scale", 0.9), None, condition, condition):
        got = generate(model, prompts, intervention=other, max_new_tokens=5)
    assert got == plain


def test_a_longer_answer_than_its_draft_is_generated_and_a_shorter_one_is_cut() -> None:
    model, prompts = fresh(), list(some("llama"))
    longest = generate(fresh(), prompts, max_new_tokens=9)
    for n in (4, 9, 2, 9):
        got = generate(model, prompts, max_new_tokens=n)
        assert got == generate(fresh(), prompts, max_new_tokens=n)
    assert got == longest


def test_drafts_of_other_weights_are_not_taken_over() -> None:
    model, prompts = fresh(), list(some("llama"))
    generate(model, prompts, max_new_tokens=6)
    generate(model, prompts, max_new_tokens=6)
    other = model.replace(module=tiny.llama(seed=3))
    plain = ns.load(tiny.llama(seed=3), processor=tiny.tokenizer())
    assert generate(other, prompts, max_new_tokens=6) == generate(plain, prompts, max_new_tokens=6)
    model.module.lm_head.weight.data[WORD["sorry"]] += 0.7
    changed = ns.load(tiny.llama(), processor=tiny.tokenizer())
    changed.module.lm_head.weight.data[WORD["sorry"]] += 0.7
    assert generate(model, prompts, max_new_tokens=6) == generate(changed, prompts, max_new_tokens=6)


def test_an_argmax_that_rounding_could_change_is_decided_step_by_step(forwards: list[int]) -> None:
    model, prompts = fresh(), list(some("llama"))[:3]
    head = model.module.lm_head.weight.data
    head[:] = head[WORD["sure"]]  # every token has the same logit
    wanted = generate(model, prompts, max_new_tokens=3)
    for _ in range(2):
        forwards.clear()
        assert generate(model, prompts, max_new_tokens=3) == wanted
        assert len(forwards) > 1


def test_a_hook_of_the_users_on_the_last_token_acts_at_every_step() -> None:
    model, prompts = fresh(), list(some("llama"))
    generate(model, prompts, max_new_tokens=6)
    generate(model, prompts, max_new_tokens=6)

    def steer(_m: Any, _a: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, -1] += 3.0
        return out

    other = fresh()
    for m in (model, other):
        m.module.model.layers[1].mlp.register_forward_hook(steer)
    assert generate(model, prompts, max_new_tokens=6) == generate(other, prompts, max_new_tokens=6)


def test_a_class_whose_forward_of_many_tokens_differs_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = fresh(), list(some("llama"))
    wanted = generate(model, prompts, max_new_tokens=5)
    monkeypatch.setattr(drafts, "_agrees", lambda _r, _p, batch, **_o: torch.ones(len(batch.rows), dtype=torch.bool))
    drafts.remember(model, prompts[0], [WORD["sure"], WORD["<eos>"]])  # a wrong one, which this would confirm
    assert generate(model, prompts, max_new_tokens=5) == wanted
    assert drafts._DRAFTS[model.processor].agrees == {tiny.LlamaForCausalLM: False}
    assert generate(model, prompts, max_new_tokens=5) == wanted


def test_drafts_that_are_hardly_ever_right_are_tried_no_more(
    forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = fresh(), list(some("llama"))
    monkeypatch.setattr(drafts, "ENOUGH", 4)
    generate(model, prompts, max_new_tokens=5)
    other = model.replace(module=tiny.llama(seed=3))
    for prompt in prompts:
        drafts.remember(model, prompt, [WORD["green"], WORD["green"], WORD["<eos>"]])
    generate(other, prompts[:6], max_new_tokens=5)
    assert not drafts._DRAFTS[model.processor].worth(lower.digests(other), 0)
    assert drafts._DRAFTS[model.processor].worth(lower.digests(model), 0)  # another model starts anew


# -- lower layers -----------------------------------------------------------------------------------------
def with_layer(layer: int, module: Any, size: float = 0.05) -> Any:
    """The same module with other weights in one layer."""
    weight = module.get_submodule(
        f"{'model.language_model' if hasattr(module.model, 'language_model') else 'model'}.layers.{layer}"
    )
    noise = torch.Generator().manual_seed(1)
    down = weight.mlp.down_proj.weight.data
    down += size * torch.randn(down.shape, generator=noise)
    return module


def build(name: str) -> Any:
    return tiny.llava()[0] if name == "llava" else tiny.llama()


def counted(forward: Any, ran: list[int], layer: int) -> Any:
    """A layer's forward that notes that it ran."""

    @functools.wraps(forward)
    def noted(*args: Any, **kwargs: Any) -> Any:
        ran.append(layer)
        return forward(*args, **kwargs)

    return noted


@pytest.mark.parametrize("name", ["llama", "llava"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_below_a_changed_one_are_left_out_and_no_answer_changes(name: str, layer: int) -> None:
    first, prompts = fresh(name), list(some(name))
    ran: list[int] = []
    for seed in range(4):
        module = with_layer(layer, build(name), 0.02 * (seed + 1))
        model = first.replace(module=module)
        layers = module.get_submodule(model.layers_path)
        for i, part in enumerate(layers):
            part.forward = counted(part.forward, ran, i)
        ran.clear()
        generate(first, prompts, max_new_tokens=5)
        got = generate(model, prompts, max_new_tokens=5)
        plain = fresh(name).replace(module=with_layer(layer, build(name), 0.02 * (seed + 1)))
        assert got == generate(fresh(name).replace(module=plain.module), prompts, max_new_tokens=5)
    assert ran.count(2) > 0
    assert (ran.count(0) < ran.count(2)) == (layer > 0)


def test_a_change_below_is_seen_whatever_way_it_was_made() -> None:
    model, prompts = fresh(), list(some("llama"))
    for _ in range(4):
        generate(model, prompts, max_new_tokens=5)
    for change in ("layer 0", "embedding", "buffer"):
        others = [model, fresh()]
        for one in others:
            if change == "embedding":
                one.module.model.embed_tokens.weight.data[WORD["how"]] *= -1
            elif change == "buffer":
                one.module.model.rotary_emb.inv_freq.mul_(0.5)
            else:
                one.module.model.layers[0].mlp.down_proj.weight.data.copy_(
                    one.module.model.layers[0].mlp.down_proj.weight.data.flip(0)
                )
        clean = fresh()
        clean.module.load_state_dict(model.module.state_dict())
        clean.module.model.rotary_emb.inv_freq.copy_(model.module.model.rotary_emb.inv_freq)  # type: ignore[arg-type,union-attr]
        assert generate(model, prompts, max_new_tokens=5) == generate(clean, prompts, max_new_tokens=5)


def test_digests_tell_places_types_and_layers_apart() -> None:
    model = fresh()
    before = lower.digests(model)
    assert before == lower.digests(fresh()) == lower.digests(model.replace(module=tiny.llama()))
    weight = model.module.model.layers[1].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]  # the same numbers in other places
    after = lower.digests(model)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_what_is_kept_of_lower_layers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = fresh(), list(some("llama"))
    monkeypatch.setattr(lower, "MOST_BYTES", 5000)
    wanted = [generate(model, prompts, max_new_tokens=5) for _ in range(4)]
    kept = drafts._DRAFTS[model.processor].lower.rows.values()
    assert 0 < sum(r.value.numel() * 4 for some in kept for r in some.values()) <= 5000
    assert all(w == wanted[0] for w in wanted)


def test_an_answer_that_holds_the_token_of_a_picture_is_no_draft() -> None:
    family = next(f for f in FAMILIES if f.name == "Qwen2.5-VL")
    model = family.load()
    prompt = next(p for p in tiny.prompts(pictures=True) if p.images)
    plain = generate(model, prompt, max_new_tokens=3)
    drafts.remember(
        model, prompt, [int(model.image_token_id or 0), 2]
    )  # read as a part of the prompt it asks for a picture
    assert generate(model, prompt, max_new_tokens=3) == plain
