"""Adapters of mixtures of experts as PEFT writes them: a LoRA on the stacked tensors of each layer (`target_parameters`).

An update is trained on the projections of all experts of a layer (`neuronshield.model.experts`), which a plain model does not have.
PEFT's LoRA on a stacked tensor has factors of every expert e, and adds B_e A_e to its matrix. Both are the same change:

    gate and up    B_e = the rows of expert e in the factors B of the two projections, side by side;  A_e = their A, one below the other
    down           A_e = the columns of expert e in A;  B_e = B

Columns of B_e and rows of A_e that are zero are left out, so a masked update of k neurons of an expert has the rank 2 k. The rank is
the largest that any expert needs. The weights of a shared expert are adapted in the same way, as those of one expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..model.experts import Projection
from ..model.mixtures import restored
from ..model.model import Model
from .adapter import ADAPTER, Place, quiet, shared_copy

__all__ = ["changes_of", "has_experts", "on_stacked"]

Factors = tuple[Tensor, Tensor]  # A [.., rank, in], B [.., out, rank]


def has_experts(model: Model) -> bool:
    """Whether the layers of a model are mixtures of experts.

    >>> has_experts(model), has_experts(moe)
    (False, True)

    Args:
        model: the model.
    """
    return isinstance(model.linear(0, model.site.down), Projection)


def on_stacked(model: Model, peft_model: Any) -> Any:
    """The same adapter as PEFT puts it on the family's own model; `save_pretrained` writes it.

    Args:
        model: a model with experts; its weights are shared.
        peft_model: an adapter on its projections.
    """
    with quiet():
        from peft import LoraConfig, get_peft_model
    factors = _factors(model, peft_model)
    rank = max(a.shape[1] for a, _ in factors.values())
    config = LoraConfig(r=rank, lora_alpha=rank, target_parameters=list(factors), target_modules=[], lora_dropout=0.0)
    with quiet():
        out: Any = get_peft_model(restored(shared_copy(model.module)), config)  # type: ignore[arg-type]
    targets = _parameters(out)
    for name, (a, b) in factors.items():
        a, b = _padded(a, rank, axis=1), _padded(b, rank, axis=2)
        target = targets[name]  # PEFT's order: A [expert rank, in], B [out, rank expert]
        target.lora_A[ADAPTER].weight.data = a.flatten(0, 1).contiguous()
        target.lora_B[ADAPTER].weight.data = b.permute(1, 2, 0).flatten(1).contiguous()
    return out


def _padded(factor: Tensor, rank: int, *, axis: int) -> Tensor:
    shape = list(factor.shape)
    shape[axis] = rank - shape[axis]
    return torch.cat([factor, factor.new_zeros(shape)], dim=axis)


def _factors(model: Model, peft_model: Any) -> dict[str, Factors]:
    """Factors [expert, ...] of every parameter that the adapter changes, by its name."""
    out: dict[str, Factors] = {}
    names = {id(m): name for name, m in model.module.named_modules()}
    for layer in range(model.n_layers):
        found: dict[str, Factors] = {}
        for part in ("gate", "up", "down"):
            linear: Any = model.linear(layer, getattr(model.site, part))
            wrapped = peft_model.base_model.model.get_submodule(names[id(linear)])
            if not hasattr(wrapped, "lora_A"):
                continue
            a, b = (f[ADAPTER].weight.detach() for f in (wrapped.lora_A, wrapped.lora_B))
            b = b * wrapped.scaling[ADAPTER]
            found[part] = a, b
            n = linear.experts.n_routed
            for module, name in linear.owners()[1:]:
                thin = _thin(a[:, n:], b, needed=a[:, n:]) if part == "down" else _thin(a, b[n:], needed=b[n:].T)
                out[f"{names[id(module)]}.{name}"] = _stack([thin])
        experts: Any = model.linear(layer, model.site.down).experts  # type: ignore[union-attr]
        address = names[id(experts)]
        if rows := {part: f for part, f in found.items() if part != "down"}:
            out[f"{address}.gate_up_proj"] = _rows(experts, rows)
        if "down" in found:
            a, b = found["down"]
            each = a[:, : experts.n_routed].unflatten(1, (experts.n_experts, -1)).transpose(0, 1)
            out[f"{address}.down_proj"] = _stack([_thin(a_e, b, needed=a_e) for a_e in each])
    return out


def _rows(experts: Any, found: Mapping[str, Factors]) -> Factors:
    """Factors of the stacked gates and ups of a layer."""
    a = torch.cat([f[0] for f in found.values()])
    out = []
    for e in range(experts.n_experts):
        own = slice(e * experts.d_expert, (e + 1) * experts.d_expert)
        b = a.new_zeros(1, 2 * experts.d_expert, len(a))
        start = 0
        for part, (_, rows) in found.items():
            experts.rows(b, part)[0, :, start : start + rows.shape[1]] = rows[own]
            start += rows.shape[1]
        out.append(_thin(a, b[0], needed=b[0].T))
    return _stack(out)


def _thin(a: Tensor, b: Tensor, *, needed: Tensor) -> Factors:
    """Factors [rank, in] and [out, rank] without the ranks at which `needed`, [rank, ...], is zero."""
    keep = needed.ne(0).any(dim=1)
    return a[keep], b[:, keep]


def _stack(each: list[Factors]) -> Factors:
    """Factors of all experts, padded to one rank of at least 1."""
    rank = max(1, *(len(a) for a, _ in each))
    return torch.stack([_padded(a, rank, axis=0) for a, _ in each]), torch.stack(
        [_padded(b, rank, axis=1) for _, b in each]
    )


def _parameters(peft_model: Any) -> dict[str, Any]:
    """The wrappers of stacked parameters, by the parameter's name in the base model."""
    out = {}
    for name, m in peft_model.base_model.model.named_modules():
        if hasattr(m, "parameter_name") and hasattr(m, "lora_A"):
            owner = ".".join(word for word in name.split(".") if word != "base_layer")
            out[f"{owner}.{m.parameter_name}"] = m
    return out


# -- loading ----------------------------------------------------------------------------------------------
def changes_of(model: Model, peft_model: Any, known: Mapping[str, Place], *, path: Path) -> dict[str, Any]:
    """What an adapter on stacked tensors changes of each projection of `model`, in the form that `merge` takes.

    Args:
        model: the base model.
        peft_model: the adapter on a copy of the model.
        known: what it may change, by name.
        path: the adapter's folder, for messages.

    Raises:
        InputError: it changes more than that.
    """
    wrappers = {name: _delta(w) for name, w in _parameters(peft_model).items()}
    names = {id(m): name for name, m in model.module.named_modules()}
    out: dict[str, Any] = {}
    for layer in range(model.n_layers):
        for part in ("gate", "up", "down"):
            linear: Any = model.linear(layer, getattr(model.site, part))
            deltas, changed = [], False
            for owner, leaf in linear.owners():
                found = wrappers.get(f"{names[id(owner)]}.{leaf}")
                changed |= found is not None
                deltas.append(torch.zeros_like(getattr(owner, leaf)) if found is None else found)
            if not changed:
                continue
            name = names[id(linear)]
            whole, place = linear.matrix(deltas), known.get(name)
            own = None if place is None else place.own
            if own is not None:
                thin = whole[:, own] if part == "down" else whole[own]
                whole[(slice(None), own) if part == "down" else own] = 0.0
            if bool(whole.any()):
                raise InputError(
                    f"{path}: the adapter changes weights of {name!r} outside its set of neurons; save the update again"
                )
            if own is not None:
                out[name] = _thin_change(thin, own, down=part == "down", width=linear.experts.d_mlp)
    return out


def _delta(wrapper: Any) -> Tensor:
    """What PEFT's wrapper adds to its parameter, in the precision of the factors."""
    a, b = (f[ADAPTER].weight.detach() for f in (wrapper.lora_A, wrapper.lora_B))
    like = wrapper.get_param()
    n = len(like) if like.ndim == 3 else 1
    delta = torch.einsum("ore,eri->eoi", b.unflatten(1, (-1, n)), a.unflatten(0, (n, -1))) * wrapper.scaling[ADAPTER]
    delta = delta if delta.shape[1:] == like.shape[-2:] else delta.transpose(1, 2)
    return delta.view_as(like) if like.ndim == 2 else delta


def _thin_change(thin: Tensor, own: Tensor, *, down: bool, width: int) -> Any:
    """A change of some rows or columns as the two factors that `merge` reads."""
    hot = thin.new_zeros(len(own), width)
    hot[torch.arange(len(own)), own] = 1.0
    a, b = (hot, thin) if down else (thin, hot.T)
    return SimpleNamespace(
        lora_A={ADAPTER: SimpleNamespace(weight=a)}, lora_B={ADAPTER: SimpleNamespace(weight=b)},
        scaling={ADAPTER: 1.0}, fan_in_fan_out=False,
    )  # fmt: skip
