"""Loading mixture-of-experts models: a copy of the structure in which each layer's experts are one MLP (see `experts`).

The copy has the very same parameters and buffers, so the model that was given is not changed and no weight is stored twice. The
first layer is compared with the family's own forward, and the model is refused where the two differ.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .experts import Experts, Folded, Projection, Shared
from .families import Site

__all__ = ["experts_of", "flattened", "restored"]

#: Names under which a mixture's block keeps its shared expert.
SHARED = ("shared_expert", "shared_experts", "shared_mlp")
#: Names of MLPs that lie beside the mixture in a decoder layer.
BESIDE = ("mlp", "ffn", "feed_forward", "shared")
#: Largest difference from the family's own forward, as a share of the largest value, by bytes of a number.
TOLERANCE = {8: 1e-9, 4: 1e-4, 2: 5e-2}


def experts_of(layer: nn.Module) -> list[str]:
    """Addresses of the modules in a decoder layer that hold stacked experts.

    >>> experts_of(model.module.model.layers[0]), experts_of(moe.module.model.layers[0])
    ([], ['mlp.experts'])

    Args:
        layer: a decoder layer.
    """
    return [name for name, m in layer.named_modules() if getattr(getattr(m, "down_proj", None), "ndim", 0) == 3]


def flattened(module: nn.Module, path: str, *, family: str) -> tuple[nn.Module, Site]:
    """The model with the neurons of all experts of a layer as one MLP, and the site of that MLP.

    The result is a copy of the structure with the very same parameters and buffers; `module` is not changed. A module that has
    this form already is returned as it is.

    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> few = dict(hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    >>> module = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_local_experts=4, **few))
    >>> copied, site = flattened(module, "model.layers", family="Mixtral")
    >>> site.down, copied.get_submodule("model.layers.0.mlp.experts.all_down"), copied.lm_head.weight is module.lm_head.weight
    ('mlp.experts.all_down', Projection(in_features=32, out_features=16, bias=False), True)

    Args:
        module: a transformers model.
        path: address of its decoder layers.
        family: its name, for messages.

    Raises:
        InputError: experts that cannot be written as one MLP exactly; says which layer and why.
    """
    layers: Any = module.get_submodule(path)
    address = next((name for layer in layers for name in experts_of(layer)), "")
    if any(isinstance(m, Experts) for m in layers[0].modules()):
        return module, _site(address)
    memo = {id(t): t for t in (*module.parameters(), *module.buffers())}
    new = copy.deepcopy(module, memo)
    layers = new.get_submodule(path)
    for i, layer in enumerate(layers):
        found = experts_of(layer)
        if not found:
            raise InputError(
                f"{family}: layer {i} at {path!r} is dense and others have mixture-of-experts modules; layers of different "
                "kinds are not supported"
            )
        why = _why_not(layer, found) if found[0] == address else f"in another place than {address!r}"
        own = _eager(layer, address, memo=memo) if why is None and i == 0 else None
        why = why or _flatten(layer, address)
        if why is None and own is not None:
            why = _differs(own, layer.get_submodule(address.rpartition(".")[0]), name=address)
        if why is not None:
            raise InputError(
                f"{family}: layer {i} at {path!r} has mixture-of-experts modules that are not supported ({found[0]!r}: {why})"
            )
    return new, _site(address)


def restored(module: nn.Module) -> nn.Module:
    """The module with the family's own forward again, changed in place.

    >>> own = restored(copy.deepcopy(moe.module))
    >>> own.get_submodule("model.layers.0.mlp.experts")
    MixtralExperts(
      (act_fn): SiLUActivation()
    )

    Args:
        module: a model that `flattened` made; pass a copy, as `shield.adapter.shared_copy` makes it.
    """
    for m in list(module.modules()):
        if isinstance(m, Experts):
            for part in ("gate", "up", "down"):
                delattr(m, f"all_{part}")
            del m.__dict__["_shared"]
        if isinstance(m, (Experts, Folded)):
            m.__class__ = type(m).__mro__[2]
            if "_old_forward" in m.__dict__:
                m._old_forward = types.MethodType(type(m).forward, m)  # type: ignore[assignment]
    return module


def _site(address: str) -> Site:
    return Site(*(f"{address}.all_{part}" for part in ("down", "up", "gate")))


def _why_not(layer: nn.Module, found: list[str]) -> str | None:
    """Why the experts of a layer cannot be one MLP, as far as its modules tell; None if they may."""
    experts = layer.get_submodule(found[0])
    block, _, _ = found[0].rpartition(".")
    if len(found) > 1:
        return f"beside {found[1]!r}"
    if "base_layer" in found[0]:
        return "an adapter lies on them; merge it first: load(module.merge_and_unload(), processor=...)"
    if not block or not hasattr(experts, "_apply_gate") or not getattr(experts, "has_gate", False):
        return "their forward is not one that is known"
    if getattr(experts, "has_post_expert_norm", False):
        return "a norm follows each expert, so their output is not linear in the neurons"
    if not all(p.is_floating_point() and p.element_size() in TOLERANCE for p in experts.parameters()):
        return "their weights are packed; load it in bfloat16"
    beside = next(
        (n for n, m in layer.named_modules() if isinstance(m, nn.Linear) and not f"{n}.".startswith(f"{block}.")
         and any(word in n for word in BESIDE)), None,
    )  # fmt: skip
    if beside is not None:
        return f"{beside!r} lies beside them"
    return "their weights are not here" if any(p.is_meta for p in experts.parameters()) else None


def _flatten(layer: nn.Module, address: str) -> str | None:
    """Give the experts their projections, in place; why that cannot be, or None."""
    experts: Any = layer.get_submodule(address)
    block: Any = layer.get_submodule(address.rpartition(".")[0])
    shared = _shared(block)
    if isinstance(shared, str):
        return shared
    rows, columns = experts.down_proj.shape[1:]
    d_model, width = (columns, rows) if experts.is_transposed else (rows, columns)
    experts.__class__ = _before(Experts, type(experts))  # type: ignore[arg-type]
    experts.__dict__["_shared"] = (shared,)
    experts.n_experts, experts.d_expert = len(experts.down_proj), width
    experts.n_routed = experts.n_experts * width
    experts.d_mlp = experts.n_routed + (0 if shared is None else shared.mlp.down_proj.in_features)
    for part in ("gate", "up", "down"):
        setattr(experts, f"all_{part}", Projection(experts, part, d_model=d_model, d_mlp=experts.d_mlp))
    for m in (experts, *(() if shared is None else (shared.mlp,))):
        if "_old_forward" in m.__dict__:  # accelerate calls the forward that it found
            m._old_forward = types.MethodType(type(m).forward, m)
    return None


def _shared(block: Any) -> Shared | str | None:
    """The shared expert of a block, folded into the neurons of the others; or why it cannot be."""
    named = [name for name in SHARED if isinstance(getattr(block, name, None), nn.Module)]
    if not named:
        return None
    mlp = getattr(block, named[0])
    parts = [getattr(mlp, f"{part}_proj", None) for part in ("gate", "up", "down")]
    if not all(isinstance(p, nn.Linear) for p in parts) or not hasattr(mlp, "act_fn"):
        return f"the shared expert {named[0]!r} is not a gated MLP"
    if getattr(mlp.down_proj, "bias", None) is not None:
        return f"the shared expert {named[0]!r} has biases"
    mlp.__class__ = _before(Folded, type(mlp))  # type: ignore[arg-type]
    return Shared(mlp, getattr(block, f"{named[0]}_gate", None))


@cache
def _before(first: Hashable, then: Hashable) -> type:
    """A class with the forward of one and everything else of the other."""
    return type(then.__name__, (first, then), {"__module__": then.__module__, "__doc__": first.__doc__})  # type: ignore[attr-defined,arg-type]


def _eager(layer: nn.Module, address: str, *, memo: dict[int, Any]) -> nn.Module:
    """A copy of the block on the same weights, whose experts run one after the other (other kernels have limits of their own)."""
    block, _, name = address.rpartition(".")
    new = copy.deepcopy(layer.get_submodule(block), dict(memo))
    experts: Any = new.get_submodule(name)
    experts.config = copy.deepcopy(experts.config)
    experts.config._experts_implementation = "eager"
    return new


def _differs(own: nn.Module, new: nn.Module, *, name: str) -> str | None:
    """How the block with flattened experts differs from the family's own on eight random tokens; None if it does not."""
    experts: Any = new.get_submodule(name.rpartition(".")[2])
    weight: Tensor = experts.down_proj
    x = torch.randn(1, 8, experts.all_down.out_features, generator=torch.Generator().manual_seed(0))
    x, kept = x.to(weight.device, weight.dtype), []
    handle = experts.register_forward_hook(lambda _, __, out: kept.append(out))
    training = [m for m in new.modules() if m.training]
    try:
        with torch.no_grad():
            theirs, ours = (_first(block.eval()(x.clone())) for block in (own, new))
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return f"their block is not called with the hidden states alone ({str(error).splitlines()[0]:.80})"
    finally:
        handle.remove()
        for m in training:
            m.training = True
    limit = TOLERANCE[weight.element_size()] * float(theirs.abs().nan_to_num(0.0).max())
    for what, other in (
        ("the family's own forward", theirs),
        ("the output of the experts alone", kept[0].view_as(ours)),
    ):
        if not torch.allclose(ours, other, rtol=0.0, atol=limit, equal_nan=True):
            return f"written as one MLP, their block differs from {what} by {float((ours - other).abs().max()):.2g}"
    return None


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]
