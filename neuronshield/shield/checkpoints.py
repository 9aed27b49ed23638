"""Checkpoints of a training run: one safetensors file, written after every step and checked before a run continues from it.

It holds the trained numbers (`p.<i>`), the optimiser's state (`s.<i>.<name>`), the numbers after each snapshot (`k.<step>.<i>`), the loss of every step, the provenance of the
run, and a hash of all of it. A file that is damaged, of another version or of another run is refused by its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.files import replacing

__all__ = ["read_checkpoint", "write_checkpoint"]


logger = logging.getLogger("neuronshield")


FORMAT = "neuronshield.training/3"
ADVICE = "remove it or name another"


def write_checkpoint(
    path: Path,
    parameters: Sequence[nn.Parameter],
    *,
    optimiser: torch.optim.Optimizer,
    losses: Sequence[float],
    about: Mapping[str, Any],
    kept: Mapping[int, Sequence[Tensor]] | None = None,
) -> None:
    """Write the state of a run.

    >>> from pathlib import Path
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimiser = torch.optim.SGD([weight], lr=0.1)
    >>> write_checkpoint(Path("c.safetensors"), [weight], optimiser=optimiser, losses=[0.5], about={"seed": 0})
    >>> read_checkpoint(Path("c.safetensors"), [weight], optimiser=optimiser, about={"seed": 0})
    ([0.5], {})

    Args:
        path: the file; it is written beside its place and renamed.
        parameters: what is trained.
        optimiser: of these parameters.
        losses: of the steps so far.
        kept: the trained numbers after each snapshot, by step.
        about: provenance of the run.

    Raises:
        InputError: it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {f"p.{i}": p.detach().contiguous() for i, p in enumerate(parameters)}
    tensors |= {f"k.{step}.{i}": v.contiguous() for step, values in (kept or {}).items() for i, v in enumerate(values)}
    plain: dict[str, Any] = {}
    for i, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"s.{i}.{name}"] = value.contiguous()
            else:
                plain[f"s.{i}.{name}"] = value
    meta = {"format": FORMAT, "about": dict(about), "losses": list(losses), "plain": plain}
    text = json.dumps({**meta, "sha256": _digest(meta, tensors)}, sort_keys=True)
    with replacing(path) as partial_path:
        save_file(tensors, partial_path, metadata={"neuronshield": text})


def read_checkpoint(
    path: Path,
    parameters: Sequence[nn.Parameter],
    *,
    optimiser: torch.optim.Optimizer,
    about: Mapping[str, Any],
) -> tuple[list[float], dict[int, list[Tensor]]]:
    """The losses of the steps that were done, and the snapshots; parameters and optimiser are put back to where they were after them.

    Args:
        path: a file that `write_checkpoint` wrote.
        parameters: what is trained; changed in place.
        optimiser: of these parameters; changed in place.
        about: provenance of the run, which must agree.

    Raises:
        InputError: a file that is no checkpoint, is damaged, or is of another version or another run.
    """
    meta, tensors = _read(path)
    told = json.loads(json.dumps(dict(about)))
    if differ := sorted(k for k in {*told, *meta["about"]} if told.get(k) != meta["about"].get(k)):
        raise InputError(f"{path}: is of another run ({', '.join(differ)} differ); {ADVICE}")
    state = _state(path, {**tensors, **meta["plain"]}, parameters)
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(tensors[f"p.{i}"])
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    logger.info("resumed %s at step %d", path, len(meta["losses"]))
    return list(meta["losses"]), _snapshots(tensors, len(parameters))


def _snapshots(tensors: Mapping[str, Tensor], n: int) -> dict[int, list[Tensor]]:
    """The trained numbers after each snapshot, by step."""
    steps = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("k.")})
    return {step: [tensors[f"k.{step}.{i}"] for i in range(n)] for step in steps}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a file, each of the type it must have."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["neuronshield"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a training checkpoint ({reason:.100}); {ADVICE}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise InputError(f"{path}: not a training checkpoint of {FORMAT} (found {found!r}); {ADVICE}")
    if meta.pop("sha256", None) != _digest(meta, tensors):
        raise InputError(
            f"{path}: a damaged training checkpoint (its contents are not those that were saved); {ADVICE}"
        )
    return meta, tensors


def _digest(meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash of the description and of every tensor: name, type, shape and values."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(path: Path, kept: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> dict[int, dict[str, Any]]:
    """The optimiser's state by parameter; the trained tensors have the shapes that this run trains."""
    found = {name: value for name, value in kept.items() if name.startswith("p.")}
    wanted = {f"p.{i}": (p.shape, p.dtype) for i, p in enumerate(parameters)}
    if {name: (value.shape, value.dtype) for name, value in found.items()} != wanted:
        raise InputError(f"{path}: is of another run (its {len(found)} trained tensors have other shapes); {ADVICE}")
    state: dict[int, dict[str, Any]] = {}
    for key, value in kept.items():
        kind, number, *name = key.split(".", 2)
        if kind == "s":
            state.setdefault(int(number), {})[name[0]] = value
    return state
