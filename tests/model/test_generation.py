"""Greedy generation against a loop of plain hooks; one loop that calls back and counts."""

# mypy: disable-error-code="arg-type, call-overload, list-item, attr-defined"
# Wrong calls are made on purpose.

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from oracles import NEURONS, TOKENS, WORD, logits_by_hand, some, values
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

import neuronshield as ns
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.generation import decode, generate, settings
from neuronshield.model.intervention import KINDS, Intervention
from neuronshield.shield.barrier import Barrier
from neuronshield.shield.guard import Guard


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


# -- greedy means argmax, with and without a cache ----------------------------------------------------------
HOSTILE: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 8, "min_length": 40},
    {"suppress_tokens": [5, 6, 7, 8, 9], "begin_suppress_tokens": [10, 11], "bad_words_ids": [[12], [13]]},
    {"forced_bos_token_id": 7, "forced_eos_token_id": 7, "max_length": 3, "max_time": 1e-4},
    {"sequence_bias": [[[5], -100.0], [[9], 100.0]], "guidance_scale": 3.0, "encoder_repetition_penalty": 3.0},
    {"do_sample": True, "temperature": 5.0, "top_k": 3, "top_p": 0.3, "typical_p": 0.2},
    {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -2.0},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True},
    {"prompt_lookup_num_tokens": 3, "stop_strings": ["a"], "prefill_chunk_size": 2},
    {"cache_implementation": "static", "exponential_decay_length_penalty": (0, 3.0), "use_cache": False},
]


@pytest.fixture(scope="module")
def argmax() -> tuple[ns.Model, list[str], list[str]]:
    """A model of its own, and its answers by a loop of argmax over plain forwards: clean, and with neurons clamped to 9."""
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    new = torch.full((3, 29), 9.0)
    return model, answers_by_hand(model, None), answers_by_hand(model, new)


def answers_by_hand(model: ns.Model, new: torch.Tensor | None, positions: str = "all", n: int = 6) -> list[str]:
    out = []
    for prompt in some("llama"):
        ids: list[int] = []
        while len(ids) < n and (not ids or ids[-1] != WORD["<eos>"]):
            ids.append(int(logits_by_hand(model, prompt, new, positions, ids).argmax()))
        out.append(model.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return out


@pytest.mark.parametrize("wanted", HOSTILE, ids=lambda wanted: next(iter(wanted)))
def test_a_checkpoint_s_generation_config_changes_no_answer(argmax: Any, wanted: dict[str, Any]) -> None:
    model, clean, clamped = argmax
    theirs = GenerationConfig(eos_token_id=2, pad_token_id=9, bos_token_id=1)
    for name, value in wanted.items():
        setattr(theirs, name, value)
    before = dict(vars(theirs))
    model.module.generation_config = theirs
    held = Intervention(NEURONS, "clamp", 9.0, "all")
    assert generate(model, some("llama"), max_new_tokens=6) == clean
    assert generate(model, some("llama"), max_new_tokens=6, intervention=held) == clamped != clean
    assert model.module.generation_config is theirs
    assert vars(theirs) == before


def test_answers_end_where_the_checkpoint_says_and_the_settings_are_told(argmax: Any) -> None:
    model, clean, _ = argmax
    answer = next(text for text in clean if len(text.split()) > 2)
    second = answer.split()[1]
    model.module.generation_config = GenerationConfig(eos_token_id=[2, WORD[second]], pad_token_id=0)
    got = generate(model, some("llama"), max_new_tokens=6)[clean.index(answer)]
    model.module.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    assert got == " ".join(answer.split()[:2])
    assert settings(model, 6) == {"greedy": True, "max_new_tokens": 6, "eos_token_ids": [2]}


class Forgetful(LlamaForCausalLM):
    """A checkpoint's own class, which is told to keep no cache: each step reads the whole sequence again."""


def forgetful() -> ns.Model:
    module = Forgetful(tiny.llama_config()).eval()
    module.load_state_dict(tiny.llama().state_dict())
    module.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, use_cache=False)
    return ns.load(module, processor=tiny.tokenizer())


@pytest.mark.parametrize(
    ("kind", "positions"), [*((k, "all") for k in KINDS), *(("mean", p) for p in ("last_prompt", "prompt", "response"))]
)
def test_an_intervention_holds_at_every_step_without_a_cache(llama: ns.Model, kind: str, positions: str) -> None:
    prompts, model = some("llama"), forgetful()
    reads: list[int] = []
    handle = tiny.downs(model)[1].register_forward_pre_hook(lambda _, args: reads.append(args[0].shape[1]))
    value = -8.0 if kind in ("scale", "clamp") else values(kind, len(prompts))
    condition = Intervention(NEURONS, kind, value, positions)  # type: ignore[arg-type]
    got = generate(model, prompts, intervention=condition, max_new_tokens=5, batch_size=16)
    handle.remove()
    assert reads == list(range(reads[0], reads[0] + len(reads)))  # it did read everything again
    assert got == generate(llama, prompts, intervention=condition, max_new_tokens=5, batch_size=16)
    assert got != generate(llama, prompts, max_new_tokens=5)


def test_a_guard_holds_at_every_step_without_a_cache(llama: ns.Model) -> None:
    one, two = Barrier(torch.ones(1), -2.0), Barrier(torch.tensor([1.0, -1.0]), -3.0)
    guard = Guard(ns.NeuronSet([(0, 3), (1, 4), (1, 7)]), {0: (one, one), 1: (two, two)})
    with_cache, without = (guard.generate(m, some("llama"), max_new_tokens=6) for m in (llama, forgetful()))
    assert without.texts == with_cache.texts != generate(llama, some("llama"), max_new_tokens=6)
    assert without.edits.tolist() == with_cache.edits.tolist()


@pytest.mark.parametrize("name", ["openai", "recurrent"])
def test_models_that_cache_elsewhere_or_nowhere_generate_as_each_prompt_alone(name: str) -> None:
    """OpenAI GPT has no cache and drops the mask; RecurrentGemma keeps a state in its modules, and does not mask padding."""
    model, prompts = ns.load(unlike(name), processor=tiny.tokenizer()), some("llama")
    neurons = ns.NeuronSet([(0, 3), (0, 17), (2, 7)], n_layers=3, d_mlp=model.d_mlp)
    for positions in ("last_prompt", "all"):
        condition = Intervention(neurons, "clamp", 6.0, positions)  # type: ignore[arg-type]
        got = generate(model, prompts, intervention=condition, max_new_tokens=4, batch_size=16)
        for text, prompt in zip(got, prompts, strict=True):
            assert text == generated_by_hooks(model, prompt, neurons, positions=positions)


def unlike(name: str) -> Any:
    torch.manual_seed(0)
    sizes: Any = {"vocab_size": len(tiny.WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if name == "openai":
        module: Any = OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_embd=20, n_layer=3, n_head=2, n_positions=64, **sizes))
    else:
        module = RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(
                hidden_size=20,
                intermediate_size=58,
                num_hidden_layers=3,
                num_attention_heads=2,
                lru_width=20,
                block_types=["recurrent", "recurrent", "attention"],
                attention_window_size=64,
                **sizes,
            )
        )
    for p in module.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return module.eval()


def generated_by_hooks(model: ns.Model, prompt: ns.Prompt, neurons: ns.NeuronSet, *, positions: str) -> str:
    """Greedy by full forwards without a cache, the neurons clamped to 6 by hooks."""
    encoding, n = tiny.encode(model, prompt)
    ids, options = encoding["input_ids"], {"use_cache": False} if model.forward_takes("use_cache") else {}

    def clamp(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        index = [i for at, i in neurons if at == layer]
        h[:, n - 1 if positions == "last_prompt" else slice(None), index] = 6.0
        return h

    names: Any = dict(model.module.named_modules())
    forms = ("transformer.h.{}.mlp.c_proj", "model.layers.{}.mlp_block.down_proj")
    downs = [names[form.format(i)] for i in range(3) for form in forms if form.format(i) in names]
    with torch.no_grad(), tiny.hooked(downs, clamp):
        while ids.shape[1] < n + 4 and (ids.shape[1] == n or int(ids[0, -1]) != WORD["<eos>"]):
            last = model.module(ids, attention_mask=torch.ones_like(ids), **options).logits[0, -1]
            ids = torch.cat([ids, last.argmax()[None, None]], dim=1)
    return model.tokenizer.decode(ids[0, n:], skip_special_tokens=True).strip()


# -- logits that are not finite ---------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_one_line_that_names_the_prompt(value: float) -> None:
    module = tiny.llama()
    module.lm_head.weight.data[:] = value
    model = ns.load(module, processor=tiny.tokenizer())
    name = repr(some("llama")[0].id)
    for call in (
        lambda: generate(model, some("llama")[:1], max_new_tokens=2),
        lambda: answer_logits(model, some("llama")[:1]),
        lambda: margins(model, some("llama")[:1], [None], TOKENS),
        lambda: ns.evaluate(model, some("llama")[:1], refusals=["sorry"], max_new_tokens=2, progress=False),
    ):
        with pytest.raises(ns.InputError, match=f"prompt {name}: the logits of 'LlamaForCausalLM' are not finite"):
            call()


def test_masked_tokens_are_no_error_but_a_row_of_them_is() -> None:
    """Models mask the rows that pad their vocabulary with -inf."""
    module = tiny.llama()
    model = ns.load(module, processor=tiny.tokenizer())
    clean = generate(model, some("llama"), max_new_tokens=4)
    unused = WORD["<unk>"]
    handle = module.lm_head.register_forward_hook(
        lambda _m, _a, out: out.index_fill(-1, torch.tensor([unused]), -torch.inf)
    )
    assert generate(model, some("llama"), max_new_tokens=4) == clean
    assert answer_logits(model, some("llama"))[:, unused].isneginf().all()
    handle.remove()
    handle = module.lm_head.register_forward_hook(lambda _m, _a, out: out.fill_(-torch.inf))
    with pytest.raises(ns.InputError, match="are not finite"):
        generate(model, some("llama"), max_new_tokens=4)
    handle.remove()


def test_a_value_that_overflows_names_the_intervention(llama: ns.Model) -> None:
    huge = Intervention(NEURONS, "clamp", 3e38, "last_prompt")
    with pytest.raises(ns.InputError, match=r"are not finite under Intervention\(clamp to 3e\+38"):
        answer_logits(llama, some("llama"), huge)
