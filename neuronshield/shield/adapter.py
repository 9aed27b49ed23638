"""The exact adapter: a PEFT LoRA that can change the chosen neurons and nothing else.

For neurons S of a layer, k of them, training rows S of W_gate and W_up and columns S of W_down under a gradient mask equals,
step for step, a LoRA one factor of which is one-hot and frozen:

    dW_gate = E_S A      E_S one-hot [d_mlp, k] frozen,  A [k, d_model] trained from zero
    dW_up   = E_S A'
    dW_down = B E_S^T    B [d_model, k] trained from zero

The reason: d(loss)/dA = E_S^T d(loss)/dW, which is the rows that the mask keeps, and Adam acts on each number by itself.
A layer with fewer neurons than the largest one is padded with zero columns, which receive no gradient and stay zero. So the
rank r is the same everywhere, and alpha = r, which makes the scale 1.

Two other forms confine an ordinary LoRA of rank r, dW = B A, by holding rows of B (or columns of A) at zero:

    masked LoRA   B's rows outside S are zero, on W_gate and W_up: the row-masked LoRA-B of Precise Shield (2026)
    frozen set    B's rows (W_down: A's columns) in S are zero: S keeps its bits while the rest learns (SafeNeuron, 2026)
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.neurons import NeuronSet
from ..core.randomness import random_state_kept
from ..model.families import PARTS
from ..model.model import Model
from ..model.projection import acting_weight, is_conv1d

__all__ = [
    "Adapter",
    "Place",
    "attach",
    "delta_of",
    "merge",
    "places",
    "quiet",
    "rounding",
    "shared_copy",
    "slots",
    "with_module",
]


ADAPTER = "default"


class _Frozen(nn.Parameter):
    """A parameter that stays frozen: PEFT's `set_adapter` sets `requires_grad` on every factor."""

    requires_grad = property(lambda _: False, lambda _, __: None)  # type: ignore[assignment]

    def requires_grad_(self, _requires_grad: bool = True) -> _Frozen:
        return self


@dataclass(frozen=True, eq=False)
class Place:
    """One projection that may change.

    Attributes:
        name: its address in the base model, such as "model.layers.0.mlp.up_proj".
        layer: its decoder layer.
        down: it is a down-projection.
        own: the rows (of W_gate and W_up) or columns (of W_down) that may change; None for all.
    """

    name: str
    layer: int
    down: bool
    own: Int[Tensor, " k"] | None


@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT model on a copy of the structure that shares the base weights.

    Attributes:
        model: the base model.
        peft_model: what is trained.
        places: what may change.
        rank: rank of the factors.
        trained: how many numbers can change (padding and masked numbers do not count).
    """

    model: Model
    peft_model: Any
    places: list[Place]
    rank: int
    trained: int

    def modules(self) -> dict[str, Any]:
        """The wrapped projections by their names in the base model."""
        return _wrapped(self.peft_model, self.places)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.peft_model.parameters() if p.requires_grad]


def places(model: Model, neurons: NeuronSet | None, parts: tuple[str, ...], *, outside: bool = False) -> list[Place]:
    """The projections to adapt: those of the set's layers, or all of them (`outside`, or without a set).

    >>> [(place.name, place.own.tolist()) for place in places(model, neurons, ("up", "down"))][:2]
    [('model.layers.0.mlp.up_proj', [3]), ('model.layers.0.mlp.down_proj', [3])]

    A fused gate_up projection is one place: row i is neuron i's gate, row d_mlp + i its up.

    Args:
        model: the base model.
        neurons: the set; None for all neurons.
        parts: some of "gate", "up", "down".
        outside: the neurons that are not in the set.
    """
    members = neurons.by_layer() if neurons is not None else {}
    out: list[Place] = []
    for layer in range(model.n_layers) if outside or neurons is None else members:
        rows: dict[str, list[Tensor]] = {}
        own = torch.arange(model.d_mlp)
        if neurons is not None:
            mine = torch.tensor(members.get(layer, []), dtype=torch.long)
            own = own[~torch.isin(own, mine)] if outside else mine
        for part in PARTS:
            path = getattr(model.site, part)
            if path is not None and part in parts:
                start = model.d_mlp if part == "up" and model.site.fused else 0
                rows.setdefault(path, []).append(own + start)
        for path, found in rows.items():
            whole = neurons is None and len(found) == 1 + (model.site.fused and path == model.site.up)
            name = f"{model.layers_path}.{layer}.{path}"
            out.append(Place(name, layer, down=path == model.site.down, own=None if whole else torch.cat(found)))
    return out


def slots(where: list[Place]) -> int:
    """The rank that a one-hot factor needs: the most rows or columns that one place owns.

    >>> slots(places(model, neurons | ns.NeuronSet([(0, 7)]), PARTS))
    2
    """
    return max(len(place.own) for place in where if place.own is not None)


def attach(model: Model, where: list[Place], rank: int, *, hot: bool, seed: int) -> Adapter:
    """The projections wrapped in a LoRA of that rank, confined to what each place owns.

    >>> attach(model, places(model, neurons, PARTS), 1, hot=True, seed=0).trained    # 3 neurons x 3 projections x 20
    180

    Args:
        model: the base model; its weights are shared, not copied.
        where: the projections.
        rank: rank of the factors.
        hot: one factor is one-hot and frozen; the rank must be at least `slots(where)`.
        seed: of the random start of a factor.
    """
    with quiet():
        from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[place.name for place in where],
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=is_conv1d(model.linear(0, model.site.down)),
    )
    with quiet(), random_state_kept():
        torch.manual_seed(seed)
        peft_model = get_peft_model(shared_copy(model.module), config)  # type: ignore[arg-type]
    wrapped, trained = _wrapped(peft_model, where), 0
    for place in where:
        module = wrapped[place.name]
        for factor in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):  # factors in at least float32
            factor.weight.data = factor.weight.data.to(torch.promote_types(factor.weight.dtype, torch.float32))
        trained += (_one_hot if hot else _confine)(module, place)
    return Adapter(model, peft_model, places=where, rank=rank, trained=trained)


def _wrapped(peft_model: Any, where: list[Place]) -> dict[str, Any]:
    inner: Any = peft_model.base_model
    return {place.name: inner.model.get_submodule(place.name) for place in where}


def _one_hot(module: Any, place: Place) -> int:
    """How many numbers are trained, after both factors are written and the one-hot one is frozen."""
    assert place.own is not None
    held = module.lora_A[ADAPTER] if place.down else module.lora_B[ADAPTER]
    free = module.lora_B[ADAPTER] if place.down else module.lora_A[ADAPTER]
    slot = torch.arange(len(place.own))
    hot = torch.zeros_like(held.weight.data)
    if place.down:
        hot[slot, place.own] = 1.0  # [r, d_mlp]: reads neuron i into slot j
    else:
        hot[place.own, slot] = 1.0  # [d_mlp, r]: writes slot j into neuron i
    held.weight = _Frozen(hot, requires_grad=False)
    free.weight.data.zero_()
    return len(place.own) * (free.weight.shape[0] if place.down else free.weight.shape[1])


def _confine(module: Any, place: Place) -> int:
    """How many numbers are trained, after all others are set to zero and their gradients masked."""
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    if place.own is None:
        return a.numel() + b.numel()
    factor = a if place.down else b
    mask = torch.zeros(factor.shape[1 if place.down else 0], dtype=factor.dtype, device=factor.device)
    mask[place.own] = 1.0
    mask = mask[None, :] if place.down else mask[:, None]
    factor.data *= mask
    factor.register_hook(lambda gradient: gradient * mask)
    return int(mask.sum()) * a.shape[0] + (b if place.down else a).numel()


def delta_of(trained: Any) -> Float[Tensor, "d_out d_in"]:
    """What a wrapped projection adds to its weight, [out, in].

    >>> adapter = attach(model, places(model, neurons, PARTS), 1, hot=True, seed=0)
    >>> delta_of(adapter.modules()["model.layers.0.mlp.down_proj"]).shape
    torch.Size([20, 29])

    Args:
        trained: the wrapped projection.
    """
    return (trained.lora_B[ADAPTER].weight @ trained.lora_A[ADAPTER].weight).detach() * trained.scaling[ADAPTER]


def merge(model: Model, modules: dict[str, Any], where: list[Place]) -> Model:
    """A model with the updates of the wrapped `modules` in its weights.

    Only the rows and columns that a place owns are written, so that every other weight keeps its bits (adding a zero would
    turn -0.0 into 0.0). In half precision the new weights are rounded, and so is the update: where the other factor is
    one-hot, what is left of it is written back into the trained factor, so that the adapter and the merged model agree.

    >>> adapter = attach(model, places(model, neurons, PARTS), 1, hot=True, seed=0)
    >>> merge(model, adapter.modules(), adapter.places)
    Model(...)

    Args:
        model: the base model; it is not changed.
        modules: wrapped projections by name.
        where: what each of them may change.
    """
    module = shared_copy(model.module)
    for place in where:
        trained = modules[place.name]
        linear = module.get_submodule(place.name)
        delta = delta_of(trained)
        weight = linear.weight.detach().clone()  # type: ignore[union-attr,operator]
        view = weight.T if trained.fan_in_fan_out else weight
        own = slice(None) if place.own is None else (slice(None), place.own) if place.down else place.own
        before = view[own].to(delta.dtype)
        view[own] = (before + delta[own]).to(view.dtype)
        if view.dtype.itemsize < delta.dtype.itemsize:
            _write_back(trained, place, view[own].to(delta.dtype) - before)
        linear.weight = nn.Parameter(weight, requires_grad=False)
    return with_module(model, module)


def _write_back(trained: Any, place: Place, delta: Tensor) -> None:
    """Set a trained factor to a change of the rows or columns that its place owns, if the other factor is one-hot."""
    a, b = trained.lora_A[ADAPTER].weight, trained.lora_B[ADAPTER].weight
    if isinstance(a if place.down else b, _Frozen):
        free = b.data.T if place.down else a.data
        free[: len(delta.T if place.down else delta)] = delta.T if place.down else delta


def rounding(call: str, adapter: Adapter) -> dict[str, float]:
    """Provenance of rounding the new weights: the share of the update that it changes; nothing in full precision.

    |round(W + d) - W - d| / |d|, d the update. Most of it warns.

    >>> adapter = attach(model, places(model, neurons, PARTS), 1, hot=True, seed=0)
    >>> rounding("masked_update", adapter)
    {}

    Args:
        call: the trainer, for the message.
        adapter: the trained adapter, before `merge`.
    """
    lost = whole = 0.0
    dtype = torch.float32
    for place, trained in zip(adapter.places, adapter.modules().values(), strict=True):
        delta = delta_of(trained)
        weight = acting_weight(adapter.model.module.get_submodule(place.name)).detach()
        dtype = weight.dtype
        if dtype.itemsize >= delta.dtype.itemsize:
            return {}
        before = weight.to(delta.dtype)
        kept = (before + delta).to(dtype).to(delta.dtype) - before
        lost += float((kept - delta).double().square().sum())
        whole += float(delta.double().square().sum())
    share = (lost / whole) ** 0.5 if whole else 0.0
    if share > 0.5:
        warnings.warn(
            f"{call}: rounding to {str(dtype).removeprefix('torch.')} changes {share:.0%} of the update; train with more "
            "steps or a larger lr, or load the model in float32",
            stacklevel=4,
        )
    return {"rounding": share}


def with_module(model: Model, module: nn.Module) -> Model:
    """The same addresses for changed weights; its provenance says that it is shielded.

    Args:
        model: the base model.
        module: a module of the same structure.
    """
    return model.replace(module=module.eval(), info={**model.info, "shielded": True})


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of the structure on the same weights, in eval mode: parameters and buffers share storage, modules do not.

    >>> shared_copy(model.module).lm_head.weight.data_ptr() == model.module.lm_head.weight.data_ptr()
    True

    Args:
        module: what is copied.
    """
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = b
    return copy.deepcopy(module, memo).eval()


@contextmanager
def quiet() -> Iterator[None]:
    """A context without two warnings: transformers' about a name that PEFT still uses, bitsandbytes' about a CPU kernel."""
    packed = logging.getLogger("bitsandbytes")
    level = packed.level
    packed.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            yield
    finally:
        packed.setLevel(level)
