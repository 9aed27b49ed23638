"""The weight that one projection applies: y = W x + b, whichever way W is stored.

    plain           a floating-point parameter; GPT-2's `Conv1D` stores it transposed, [in, out]
    packed          bitsandbytes, FP8 with scales, torchao: unpacked as the library that packed it does
    no weight       GPTQ, AWQ and others that keep packed integers: column i is what the projection makes of unit vector i
    LoRA on top     W + sum over the active adapters of scale * B A; other adapters of PEFT: by unit vectors
    offloaded       accelerate keeps the values on the CPU or on disk, and gives them out through its hook

A module that has a method `acting_weight()` answers for itself, and its `weight` can be set (mixtures of experts). `refusal` says why a projection is none of these: what it
computes must be linear, and equal to what the weight says.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError

__all__ = [
    "acting_weight",
    "adapter_parameters",
    "device_of",
    "is_conv1d",
    "is_plain",
    "out_in",
    "packed_as",
    "refusal",
    "stored_in",
]

BITSANDBYTES = {"Params4bit": "nf4", "Int8Params": "int8"}
BLOCK = 1024  # unit vectors in one pass


def is_conv1d(linear: nn.Module) -> bool:
    """Whether a projection stores its weight transposed, [in, out], as GPT-2 does.

    >>> is_conv1d(torch.nn.Linear(3, 5))
    False

    Args:
        linear: the projection; of one with an adapter on top, the projection under it decides.
    """
    return type(_base(linear)).__name__ == "Conv1D"


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a projection: (d_model, d_mlp) of a down-projection.

    >>> out_in(torch.nn.Linear(3, 5))
    (5, 3)

    Args:
        linear: the projection, packed or not.

    Raises:
        InputError: a module that does not say.
    """
    base: Any = _base(linear)
    for inputs, outputs in (("in_features", "out_features"), ("infeatures", "outfeatures")):
        if isinstance(getattr(base, inputs, None), int):  # the weight itself may be packed
            return getattr(base, outputs), getattr(base, inputs)
    weight = getattr(base, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InputError(f"{type(base).__name__} is no projection: it has no weight matrix and no in_features")
    rows, columns = weight.shape
    return (columns, rows) if is_conv1d(base) else (rows, columns)


def acting_weight(linear: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The weight that a projection applies, [out, in].

    >>> linear = torch.nn.Linear(3, 5)
    >>> acting_weight(linear) is linear.weight
    True

    Args:
        linear: the projection: plain, packed, offloaded, or with an adapter of PEFT on top.

    Raises:
        InputError: the weight cannot be told.
    """
    own = getattr(linear, "acting_weight", None)
    if callable(own):
        return own()  # type: ignore[no-any-return]
    if _is_tuner(linear):
        return _with_adapters(linear)
    weight = _value(linear, "weight")
    if weight is None:
        return _by_units(linear)
    scale = _scale(linear)
    if type(weight).__name__ in BITSANDBYTES:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, getattr(linear, "state", None))  # type: ignore[no-any-return,arg-type]
    if hasattr(weight, "full_tensor"):  # a DTensor of a tensor-parallel model
        weight = weight.full_tensor()
    if _is_subclass(weight):  # torchao, quanto
        weight = weight.dequantize()
    if weight.dtype.itemsize == 1 and weight.is_floating_point() and scale is not None:
        weight = _unscaled(weight, scale, getattr(linear, "block_size", None))
    if not weight.is_floating_point() or weight.dtype.itemsize == 1 or weight.shape != _stored_shape(linear):
        return _by_units(linear)
    return weight.T if is_conv1d(linear) else weight


# -- how it is stored -------------------------------------------------------------------------------------
def packed_as(linear: nn.Module) -> str | None:
    """ "nf4", "int8", "float8_e4m3fn" or the packed class's name; None if each weight is a number of its own.

    >>> packed_as(torch.nn.Linear(3, 5)) is None
    True

    Args:
        linear: the projection.
    """
    base = _base(linear)
    if callable(getattr(base, "acting_weight", None)):
        return None
    weight = getattr(base, "weight", None)
    if isinstance(weight, Tensor) and not hasattr(weight, "full_tensor"):
        if (kind := type(weight).__name__) in BITSANDBYTES:
            return getattr(weight, "quant_type", None) or BITSANDBYTES[kind]
        if _is_subclass(weight):
            return kind
        if weight.is_floating_point():
            return stored_in(base) if weight.dtype.itemsize == 1 else None
    return None if isinstance(weight, Tensor) and hasattr(weight, "full_tensor") else type(base).__name__


def stored_in(linear: nn.Module) -> str:
    """Name of the dtype in which a projection's weight is stored.

    >>> stored_in(torch.nn.Linear(3, 5))
    'float32'

    Args:
        linear: the projection.
    """
    base: Any = _base(linear)
    owner, name = base.owners()[0] if hasattr(base, "owners") else (base, "weight")
    return str(getattr(getattr(owner, name, None), "dtype", "unknown")).removeprefix("torch.")


def is_plain(linear: nn.Module) -> bool:
    """Whether the weight is a parameter whose numbers can be read and written one by one, here.

    >>> is_plain(torch.nn.Linear(3, 5))
    True

    Args:
        linear: the projection.
    """
    if callable(getattr(linear, "acting_weight", None)):
        return True
    weight = linear._parameters.get("weight")
    return weight is not None and not weight.is_meta and packed_as(linear) is None and not _is_tuner(linear)


def adapter_parameters(module: nn.Module) -> set[int]:
    """Ids of the parameters that adapters of PEFT add to a model; empty for a plain model.

    >>> adapter_parameters(torch.nn.Linear(3, 5))
    set()

    Args:
        module: the model.
    """
    added: set[int] = set()
    for layer in module.modules():
        for name in (*getattr(layer, "adapter_layer_names", ()), *getattr(layer, "other_param_names", ())):
            part = getattr(layer, name, None)
            if isinstance(part, nn.Parameter):
                added.add(id(part))
            elif isinstance(part, (nn.Module, nn.ParameterDict)):
                added.update(id(p) for p in part.parameters())
    return added


# -- whether it can be trusted ----------------------------------------------------------------------------
@torch.no_grad()
def refusal(linear: nn.Module) -> str | None:
    """Why the weight that a projection applies cannot be told; None if `acting_weight` is that weight.

    >>> refusal(torch.nn.Linear(3, 5)) is None
    True
    >>> refusal(torch.nn.Linear(3, 5, device="meta"))
    'its weight was not loaded (it is on the meta device)'

    A module whose forward is not that of `Linear` or `Conv1D` is run on random vectors, and must do what its weight says.

    Args:
        linear: the projection.
    """
    if callable(getattr(linear, "acting_weight", None)):
        return None
    weight = getattr(_base(linear), "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta and _value(_base(linear), "weight") is None:
        return "its weight was not loaded (it is on the meta device)"
    if found := next((n for n in ("weight_g", "weight_orig") if n in linear._parameters), None):
        return f"its weight is computed from {found!r} in every forward; make it permanent (torch.nn.utils.prune.remove or remove_weight_norm)"
    try:
        shape = out_in(linear)
        if _trusted(linear):
            return None if tuple(acting_weight(linear).shape) == shape else "its weight is of another shape"
        return _differs(linear, shape)
    except InputError as error:
        return str(error)
    except Exception as error:  # whatever a library's kernel says
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"it cannot be run here ({reason:.120})"


def _trusted(linear: nn.Module) -> bool:
    """Whether its forward is known to be that of its weight."""
    if callable(getattr(linear, "acting_weight", None)):
        return True
    if _is_tuner(linear):
        return _is_lora(linear) and _trusted(linear.base_layer)  # type: ignore[arg-type]
    weight: Any = getattr(linear, "weight", None)
    if type(weight).__name__ in BITSANDBYTES:
        return True
    known = _forward(linear) is (type(linear).forward if is_conv1d(linear) else nn.Linear.forward)
    return known and isinstance(weight, Tensor) and weight.is_floating_point() and weight.dtype.itemsize > 1


def _forward(linear: nn.Module) -> Any:
    """The function that computes its output, under the wrappers of nnsight and accelerate."""
    forward: Any = linear.__dict__.get("_old_forward" if hasattr(linear, "_hf_hook") else "forward")
    forward = getattr(getattr(forward, "state", None), "body", forward)
    return type(linear).forward if forward is None else getattr(forward, "__func__", forward)


def _differs(linear: nn.Module, shape: tuple[int, int]) -> str | None:
    """Why the weight is not what the projection applies to two random vectors; None if it is."""
    drawn = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(0))
    x = drawn.to(device=device_of(linear), dtype=_dtype(linear))
    zero, one, two, both = (linear.forward(v[None])[0].double() for v in (x[0] * 0, x[0], x[1], x[0] + x[1]))
    expected = [one - zero + two - zero]
    if _is_tuner(linear) or _value(linear, "weight") is not None:
        weight = acting_weight(linear).double()
        if tuple(weight.shape) != shape:
            return f"its weight is {list(weight.shape)}, and it maps {shape[1]} numbers to {shape[0]}"
        expected.append((weight @ (x[0] + x[1]).double()).to(both))
    exact = packed_as(linear) is None and x.dtype.itemsize > 2
    limit = 1e-3 if exact else 0.1
    for y in expected:
        size = float((both - zero).norm())
        off = float((y - (both - zero)).norm()) / max(size, 1e-12)
        if not math.isfinite(off) or off > limit:
            return f"its output is not its weight times its input (off by {off:.0%})"
    return None


# -- parts ------------------------------------------------------------------------------------------------
def _base(linear: nn.Module) -> nn.Module:
    """The projection under the adapters of PEFT."""
    while _is_tuner(linear):
        linear = linear.base_layer  # type: ignore[assignment]
    return linear


def _is_tuner(linear: nn.Module) -> bool:
    return isinstance(getattr(linear, "base_layer", None), nn.Module)


def _is_lora(linear: Any) -> bool:
    """Whether all that its adapters do is to add scale * B A."""
    if not (hasattr(linear, "lora_A") and hasattr(linear, "get_delta_weight")):
        return False
    return not any(name in getattr(linear, "lora_variant", {}) for name in linear.active_adapters)


def _with_adapters(linear: Any) -> Tensor:
    """The weight under the adapters, and what those add that act in the forward pass."""
    silent, merged = bool(linear.disable_adapters), list(linear.merged_adapters)
    if not _is_lora(linear) and not merged and not silent:
        return _by_units(linear)
    weight = acting_weight(linear.base_layer)
    acting = [] if silent or merged else [name for name in linear.active_adapters if name in linear.lora_A]
    taken = merged if silent else []  # a disabled adapter is taken out of the weight again by the forward pass
    for sign, names in ((1, acting), (-1, taken)):
        for name in names:
            delta = linear.get_delta_weight(name)
            delta = delta.T if is_conv1d(linear) else delta
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
            weight = weight + sign * delta.to(weight)
    return weight


def _value(linear: Any, name: str) -> Tensor | None:
    """A parameter or buffer, read through accelerate's hook where it is offloaded; None where there is none."""
    value = getattr(linear, name, None)
    if not isinstance(value, Tensor):
        return None
    if not value.is_meta:
        return value
    hook = getattr(linear, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        values = getattr(one, "weights_map", None)
        if values is not None:
            return values[name]  # type: ignore[no-any-return]
    return None


def _scale(linear: Any) -> Tensor | None:
    """Factors of an FP8 weight, by which it is multiplied (`weight_scale_inv` is called so for a division elsewhere)."""
    names = ("weight_scale_inv", "weight_scale")
    return next((s for name in names if (s := _value(linear, name)) is not None), None)


def _unscaled(weight: Tensor, scale: Tensor, block: tuple[int, int] | list[int] | None) -> Tensor:
    """An FP8 weight times its scales: one for all, one a row, or one a block of rows and columns."""
    scale = scale.float()
    if scale.ndim == 1 and scale.numel() == weight.shape[0] > 1:
        scale = scale[:, None]
    if scale.ndim == 2 and scale.numel() > 1:
        rows, columns = block or [-(-n // m) for n, m in zip(weight.shape, scale.shape, strict=True)]
        scale = scale.repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)
        scale = scale[: weight.shape[0], : weight.shape[1]]
    return weight.float() * scale


def _is_subclass(weight: Tensor) -> bool:
    """Whether it is a tensor of a packed class, which unpacks itself."""
    return type(weight) not in (Tensor, nn.Parameter, nn.Buffer) and hasattr(type(weight), "__tensor_flatten__")


def _stored_shape(linear: nn.Module) -> tuple[int, int]:
    rows, columns = out_in(linear)
    return (columns, rows) if is_conv1d(linear) else (rows, columns)


@torch.no_grad()
def _by_units(linear: nn.Module) -> Tensor:
    """Column i is what the projection makes of unit vector i, without its bias."""
    _, columns = out_in(linear)
    device, dtype = device_of(linear), _dtype(linear)
    bias = linear.forward(torch.zeros(1, columns, device=device, dtype=dtype))
    out = []
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        units = torch.zeros(stop - start, columns, device=device, dtype=dtype)
        units[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        out.append((linear.forward(units) - bias).T)
    return torch.cat(out, dim=1)


def _dtype(linear: nn.Module) -> torch.dtype:
    """In which its inputs come: that of its first floating-point tensor which is not packed."""
    tensors = [*linear.parameters(), *linear.buffers()]
    found = (t.dtype for t in tensors if t.is_floating_point() and t.dtype.itemsize > 1 and t.ndim > 0)
    return next(found, torch.float32)


def device_of(linear: nn.Module) -> torch.device:
    """Where the inputs of a module go: where its tensors are, or where accelerate brings them.

    >>> device_of(torch.nn.Linear(3, 5))
    device(type='cpu')

    Args:
        linear: the module.
    """
    hook: Any = getattr(linear, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if getattr(one, "offload", False) and getattr(one, "execution_device", None) is not None:
            return torch.device(one.execution_device)
    return next((t.device for t in (*linear.parameters(), *linear.buffers())), torch.device("cpu"))
