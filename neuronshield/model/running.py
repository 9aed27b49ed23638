"""The context in which every forward of a model runs, so that its module is left as it was.

A module belongs to the user. `running(model)` is entered for each forward, and while it is held

    one thread       uses the module at a time; others wait
    eval mode        holds in every submodule, whatever mode each was in; the modes come back afterwards
    positions        whose frequencies follow the longest prompt start from those as loaded, and come back (see `rotary`)
    nnsight          has its forwards in place; outside, each submodule has the `forward` that it had
    out of memory    is an `InputError`: one line that says how much was read at once and what to lower
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..core.errors import InputError, out_of_memory
from .rotary import parts_of, start

__all__ = ["advice_on_memory", "not_finite", "recording", "running", "wrapped"]

FORWARD, STATE = "forward", "__nnsight__"  # what nnsight writes into a module's __dict__
NONE = object()


class Runnable(Protocol):
    """What is asked of a model here (`Model` is one)."""

    @property
    def id(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...
    @property
    def traced(self) -> Any: ...


@dataclass(eq=False)
class _Slot:
    """What nnsight wrote into one submodule, and the submodule's own `forward` (NONE: its class's)."""

    module: nn.Module
    state: Any
    controller: Any
    own: Any


_guard = threading.Lock()
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_slots: WeakKeyDictionary[Any, list[_Slot]] = WeakKeyDictionary()
_inside = threading.local()


def wrapped(module: nn.Module, make: Callable[[], Any]) -> Any:
    """nnsight's wrapper of a module; the module's submodules have their own `forward` again.

    >>> from nnsight import NNsight
    >>> traced = wrapped(model.module, lambda: NNsight(model.module))
    >>> "forward" in vars(model.module)
    False

    Args:
        module: the module.
        make: makes the wrapper.
    """
    with _lock(module):
        own = {m: m.__dict__.get(FORWARD, NONE) for m in module.modules() if STATE not in m.__dict__}
        traced = make()
        slots = [
            _Slot(m, m.__dict__[STATE], m.__dict__[FORWARD], own=forward)
            for m, forward in own.items()
            if STATE in m.__dict__
        ]
        for slot in slots:
            _put(slot.module, slot.own, NONE)
        _slots[traced] = slots
    return traced


@contextmanager
def running(model: Runnable, *, rows: int = 0, width: int = 0, traced: bool = True) -> Iterator[None]:
    """A context for one forward of a model, or for several that belong together (see the module).

    >>> model.module.train()
    LlamaForCausalLM(...)
    >>> with running(model):
    ...     model.module.training
    False
    >>> model.module.training, model.module.eval().training
    (True, False)

    Args:
        model: the model. The context may be entered again inside itself.
        rows: prompts that are read at once, for the message of an error; 0 where that is not known.
        width: tokens of the longest.
        traced: whether the forward is one of nnsight's, which is slower.

    Raises:
        InputError: there is too little memory.
    """
    with _lock(model.module):
        held = _inside.__dict__.setdefault("wrappers", [])
        entered = (model.traced,) if traced else (model.traced, model.module)
        try:
            if any(one is other for one in held for other in entered):
                start(model.module)
                yield
                return
            held.append(entered[-1])
            hooks: AbstractContextManager[None] = _instrumented(model.traced) if traced else nullcontext()
            try:
                with _evaluating(model.module), _own_positions(model.module), hooks:
                    yield
            finally:
                held.pop()
        except Exception as error:
            if isinstance(error, InputError) or not out_of_memory(error):
                raise
            raise InputError(advice_on_memory(model, rows=rows, width=width)) from error


@contextmanager
def recording(call: str) -> Iterator[None]:
    """A context in which gradients are computed, whatever the script has turned off with `torch.set_grad_enabled`.

    >>> with torch.no_grad(), recording("masked_update"):
    ...     torch.is_grad_enabled()
    True

    Args:
        call: what needs gradients, for the message.

    Raises:
        InputError: inside `torch.inference_mode()`, whose tensors can have none.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(f"{call}: there are no gradients inside torch.inference_mode(); call it outside")
    with torch.enable_grad():
        yield


def advice_on_memory(model: Runnable, *, rows: int = 0, width: int = 0) -> str:
    """What a model that ran out of memory tells the user to lower.

    >>> advice_on_memory(model, rows=32, width=512)
    "'LlamaForCausalLM': out of memory on cpu with 32 prompts of up to 512 tokens at once; lower batch_size=, load with ..."

    Args:
        model: the model.
        rows: prompts that were read at once.
        width: tokens of the longest.
    """
    device = next((str(p.device) for p in model.module.parameters()), "the device")
    long = f" of up to {width} tokens" if width else ""
    read = f" with {rows} prompt{'s' * (rows != 1)}{long} at once" if rows else ""
    lower = "lower batch_size=, " if rows != 1 else ""
    return (
        f"{model.id!r}: out of memory on {device}{read}; {lower}load with dtype='bfloat16' or quantize='4bit', or use shorter "
        "prompts or smaller pictures"
    )


def not_finite(model: Runnable, prompt: str, *, what: str = "") -> str:
    """What is said of logits that are not finite.

    >>> not_finite(model, "p7")
    "prompt 'p7': the logits of 'LlamaForCausalLM' are not finite; load with dtype='float32' or 'bfloat16', or check the ..."

    Args:
        model: the model.
        prompt: the id of the prompt.
        what: the intervention, after the word "under", if there was one.
    """
    return (
        f"prompt {prompt!r}: the logits of {model.id!r} are not finite{what}; load with dtype='float32' or 'bfloat16', or "
        "check the checkpoint's weights"
    )


def _lock(module: nn.Module) -> Any:
    """The lock of a module; a thread that holds it may take it again."""
    with _guard:
        return _locks.setdefault(module, threading.RLock())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [m for m in parts_of(module) if m.training]
    try:
        for m in training:
            m.training = False
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def _own_positions(module: nn.Module) -> Iterator[None]:
    kept = start(module)
    try:
        yield
    finally:
        for part, own, buffers in kept:
            part.__dict__.update(own)
            part._buffers.update(buffers)


@contextmanager
def _instrumented(traced: Any) -> Iterator[None]:
    """nnsight's forwards in place; a `forward` that was replaced since the last time is the one that runs under them."""
    from nnsight.intervention.source import module_body

    slots, found = _slots.get(traced, []), []
    try:
        for slot in slots:
            now = slot.module.__dict__
            before = now.get(FORWARD, NONE), now.get(STATE, NONE)
            if before[0] is not slot.own:
                slot.own, slot.state.body = before[0], module_body(slot.module)
                slot.state.original, slot.state.sourced = slot.state.body, False
            found.append((slot.module, *before))
            _put(slot.module, slot.controller, slot.state)
        yield
    finally:
        for module, forward, state in found:
            _put(module, forward, state)


def _put(module: nn.Module, forward: Any, state: Any) -> None:
    for name, value in ((FORWARD, forward), (STATE, state)):
        if value is NONE:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = value
