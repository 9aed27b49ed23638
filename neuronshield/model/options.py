"""Options of loading a model, checked before a checkpoint is read: number format, device, packing."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from ..core.arguments import require
from ..core.errors import InputError

__all__ = ["checked_device", "checked_device_map", "checked_dtype", "quantization"]


#: Strategies of accelerate that spread a model over devices.
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


def checked_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """The number format that transformers is told.

    >>> checked_dtype("bfloat16", torch.device("cpu")), checked_dtype(None, torch.device("cpu"))
    (torch.bfloat16, torch.float32)

    Args:
        dtype: a torch dtype or its name; None for float32 on a CPU, and the checkpoint's own elsewhere.
        device: where the model goes.

    Raises:
        InputError: no dtype.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype):
        raise InputError(f"load: dtype={dtype!r} is unknown; use 'float32', 'bfloat16' or 'float16'")
    return named


def checked_device(device: Any, *, name: str = "device") -> torch.device:
    """The device that a name stands for, which exists here.

    >>> checked_device("cpu")
    device(type='cpu')

    Args:
        device: a torch device or its name; None for a GPU if there is one, otherwise the CPU.
        name: the argument, for the message.

    Raises:
        InputError: an unknown device, or one that this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError):
        n = torch.cuda.device_count()
        gpus = f"; this machine has {n} CUDA device{'' if n == 1 else 's'}"
        raise InputError(f"load: {name}={device!r:.60} is not available; use 'cpu', 'cuda' or 'cuda:1'{gpus}") from None
    return found


def checked_device_map(given: Any) -> Any:
    """The device map as it was given, every device of which exists here.

    >>> checked_device_map("auto"), checked_device_map({"": "cpu"})
    ('auto', {'': 'cpu'})

    Args:
        given: a strategy of accelerate, a device, or {module: device}; None for none.

    Raises:
        InputError: an unknown strategy or a device that this machine does not have.
    """
    if given is None or given in SPREAD:
        return given
    if isinstance(given, dict):
        for device in given.values():
            if device != "disk":
                checked_device(device, name="device_map")
        return given
    require(
        given, (str, int, torch.device), call="load", name="device_map", hint="use 'auto' or a map {module: device}"
    )
    if isinstance(given, str) and not given.startswith(("cpu", "cuda", "mps", "xpu")):
        raise InputError(f"load: device_map={given!r:.60} is unknown; use {', '.join(map(repr, SPREAD))} or a map")
    checked_device(given, name="device_map")
    return given


def quantization(bits: str) -> Any:
    """The configuration of bitsandbytes for packed weights; needs bitsandbytes, so there is no example.

    Args:
        bits: "4bit" (NF4) or "8bit".

    Raises:
        InputError: another name, or bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if bits not in ("4bit", "8bit"):
        raise InputError(f"load: quantize={bits!r} is unknown; use '4bit' or '8bit'")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"load: quantize={bits!r} needs bitsandbytes: pip install bitsandbytes")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
