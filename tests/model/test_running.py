"""A forward leaves the module as it was, threads take turns, and too little memory is one line."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from oracles import NEURONS, TOKENS, some

import neuronshield as ns
from neuronshield.find.attribution import gradients
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.generation import generate
from neuronshield.model.intervention import Intervention
from neuronshield.model.running import running

ZERO = Intervention(NEURONS, "zero", None, "all")
LAST = [None, *(Intervention(ns.NeuronSet([(layer, 3)]), "zero") for layer in (0, 1, 2))]
CALLS: dict[str, Callable[[ns.Model], Any]] = {
    "capture": lambda m: ns.capture(m, some("llama"), progress=False),
    "record": lambda m: ns.record(m, some("llama")),
    "answer_logits": lambda m: answer_logits(m, some("llama")),
    "margins": lambda m: margins(m, some("llama"), LAST, TOKENS),
    "frozen": lambda m: margins(m, some("llama"), LAST, TOKENS, frozen=True),
    "generate": lambda m: generate(m, some("llama"), max_new_tokens=3),
    "intervened": lambda m: generate(m, some("llama"), max_new_tokens=3, intervention=ZERO),
    "gradients": lambda m: gradients(m, list(some("llama")), TOKENS),
}


def loaded() -> ns.Model:
    return ns.load(tiny.llama(), processor=tiny.tokenizer())


def state(module: torch.nn.Module) -> dict[str, Any]:
    """All that a call could leave behind on the user's module or in the process."""
    parts = list(module.modules())
    return {
        "training": [m.training for m in parts],
        "forward": ["forward" in vars(m) for m in parts],
        "attributes": [sorted(vars(m)) for m in parts],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in parts),
        "asks": [p.requires_grad for p in module.parameters()],
        "grads": [p.grad is None for p in module.parameters()],
        "weights": [p.detach().numpy().tobytes() for p in module.parameters()],
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("call", CALLS)
def test_a_module_in_training_mode_is_left_as_it_was_and_read_in_eval_mode(call: str) -> None:
    module = tiny.llama()
    want = CALLS[call](ns.load(tiny.llama(), processor=tiny.tokenizer()))
    module.model.layers[1].mlp.act_fn = torch.nn.Sequential(torch.nn.Dropout(0.5), module.model.layers[1].mlp.act_fn)
    module.train()
    module.model.layers[2].eval()
    before = state(module)
    got = CALLS[call](ns.load(module, processor=tiny.tokenizer()))
    after = state(module)
    assert {k for k in before if before[k] != after[k]} == set()
    if call == "capture":
        assert all(np.array_equal(got.groups[k].mean, want.groups[k].mean) for k in want.groups)
    elif isinstance(want, list):
        assert got == want
    else:
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_forward_of_the_user_s_own_runs_under_the_trace_and_stays() -> None:
    """Set before loading, replaced after it, and taken away: always the one that is there."""
    module, runs = tiny.llama(), list[str]()
    mlp: Any = module.model.layers[1].mlp
    plain = type(mlp).forward

    def own(name: str) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            runs.append(name)
            return plain(mlp, x)

        return forward

    mlp.forward = first = own("first")
    model = ns.load(module, processor=tiny.tokenizer())
    clean = answer_logits(loaded(), "how do i")
    assert torch.equal(answer_logits(model, "how do i"), clean)
    assert vars(mlp)["forward"] is first
    mlp.forward = second = own("second")
    assert torch.equal(answer_logits(model, "how do i"), clean)
    assert vars(mlp)["forward"] is second
    del mlp.forward
    assert torch.equal(answer_logits(model, "how do i"), clean)
    assert "forward" not in vars(mlp)
    assert runs == ["first", "second"]


def test_two_models_of_one_module_and_a_wrapper_of_the_user_s_own() -> None:
    from nnsight import NNsight

    module = tiny.llama()
    one, two = (ns.load(module, processor=tiny.tokenizer()) for _ in range(2))
    want = ns.record(loaded(), some("llama"))
    with running(one):
        assert torch.equal(ns.record(two, some("llama")), want)
    assert torch.equal(ns.record(one, some("llama")), want)
    theirs = NNsight(module)
    assert torch.equal(ns.record(one, some("llama")), want)
    with theirs.trace(input_ids=torch.ones(1, 3, dtype=torch.long)):
        h = theirs.model.layers[1].mlp.down_proj.input.save()
    assert h.shape == (1, 3, 29)
    three = ns.load(module, processor=tiny.tokenizer())
    assert torch.equal(ns.record(three, some("llama")), want)


# -- threads ------------------------------------------------------------------------------------------------
def test_threads_on_one_model_take_turns_and_give_what_each_gives_alone() -> None:
    module = tiny.llama()
    module.train()
    model = ns.load(module, processor=tiny.tokenizer())
    alone = {name: CALLS[name](model) for name in ("record", "intervened", "margins", "gradients")}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(3):
            try:
                got = CALLS[name](model)
                pairs = [(got, alone[name])] if isinstance(got, list) else zip(got, alone[name], strict=True)
                same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
                wrong.extend([] if same else [f"{name}: other numbers"])
            except BaseException as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(name,)) for name in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert all(m.training for m in module.modules())


# -- errors inside --------------------------------------------------------------------------------------------
@pytest.fixture
def breaking() -> Iterator[tuple[ns.Model, Callable[[BaseException, int], None]]]:
    """A model, and a call that makes its second layer raise at its n-th forward."""
    model, handles = loaded(), list[Any]()

    def arm(error: BaseException, after: int) -> None:
        runs = [0]

        def hook(*_: Any) -> None:
            runs[0] += 1
            if runs[0] > after:
                raise error

        handles.append(model.module.model.layers[1].mlp.register_forward_pre_hook(hook))  # type: ignore[union-attr,index]

    yield model, arm
    for handle in handles:
        handle.remove()


SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "host": MemoryError(),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind"), [*((c, "cuda") for c in CALLS), ("capture", "host"), ("generate", "cpu")])
def test_too_little_memory_is_one_line_that_says_what_to_lower(breaking: Any, call: str, kind: str) -> None:
    model, arm = breaking
    arm(SHORT[kind], 0)
    with pytest.raises(ns.InputError, match=r"out of memory on cpu with \d+ prompts? of up to \d+ tokens at once; lower batch_size=") as caught:  # fmt: skip
        CALLS[call](model)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("call", "after", "error"),
    [
        *((c, 0, KeyboardInterrupt()) for c in CALLS),
        *((c, 1, KeyError("boom")) for c in ("margins", "generate", "intervened")),
    ],
)
def test_an_error_inside_comes_out_as_it_is_and_leaves_nothing(
    breaking: Any, call: str, after: int, error: BaseException
) -> None:
    model, arm = breaking
    before = ns.record(model, some("llama")[:3])
    arm(error, after)
    clean = state(model.module)
    try:
        CALLS[call](model)
    except BaseException as raised:
        assert type(raised) is type(error)  # noqa: PT017
    else:
        assert call == "margins"
    assert {k for k, v in state(model.module).items() if v != clean[k]} == set()
    model.module.model.layers[1].mlp._forward_pre_hooks.clear()
    assert torch.equal(ns.record(model, some("llama")[:3]), before)


def test_memory_that_runs_out_in_a_shortcut_costs_the_shortcut_only(breaking: Any) -> None:
    model, _ = breaking
    want = margins(model, some("llama"), LAST, TOKENS)
    runs = [0]

    def second(*_: Any) -> None:
        runs[0] += 1
        if runs[0] == 2:  # the tokens before the last
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.module.model.layers[1].mlp.register_forward_pre_hook(second)
    got = margins(model, some("llama"), LAST, TOKENS)
    handle.remove()
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_gradients_are_computed_in_a_script_that_turned_them_off(llama: ns.Model) -> None:
    neurons, prompts = ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29), tiny.prompts(languages=("en",))
    calls: list[Callable[[], Any]] = [
        lambda: gradients(llama, prompts[:4], TOKENS)[0],
        lambda: ns.masked_update(
            llama, neurons, prompts, steps=2, lr=0.1, allow_unproven=True, progress=False
        ).model.down_weight(0),
    ]
    for call in calls:
        wanted = call()
        with torch.no_grad():
            assert torch.equal(call(), wanted)
        with (
            torch.inference_mode(),
            pytest.raises(ns.InputError, match=r"no gradients inside torch.inference_mode\(\); call it outside"),
        ):
            call()
