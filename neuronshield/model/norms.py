"""Norms held at what they were in a clean run, so that only what is read of an edit moves the logits.

A norm divides what it reads by its size. Removing anything large from the residual stream makes every later norm scale up what
is left, and moves the logits although nothing reads what was removed. With the size s of the clean run, the output of an edited run
x' is put at

    gamma * (x' - mean x') / s + beta        (of an RMS norm without the mean and beta)

at the last position, for every norm of the residual stream. This is linear in x': a held norm keeps taking out the mean, as the direct path
to the logits does. The margins of `verify` hold the mean as well, in place of mean x': then what an edit adds to the mean, which every
dimension would read, moves nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from .families import by_row
from .hooks import hooked
from .model import Model

__all__ = ["FrozenNorms"]


class FrozenNorms:
    """Norms of one model on one batch: `hooks` is a context that remembers them in its first forward and holds them later.

    >>> norms = FrozenNorms(model)
    >>> ids = torch.ones(1, 4, dtype=torch.long)
    >>> with norms.hooks:
    ...     first, second = (model.module(ids).logits for _ in range(2))
    >>> len(norms.modules), torch.allclose(first, second, atol=1e-5)
    (7, True)

    Args:
        model: the model.
        mean: hold the mean that a layer norm takes out as well: then what an edit adds to it moves no logit. Without it a held norm is
            linear in what it reads.
    """

    def __init__(self, model: Model, *, mean: bool = False) -> None:
        self.mean = mean
        owner = model.module.get_submodule(model.layers_path.rpartition(".")[0])
        layers = model.module.get_submodule(model.layers_path)
        inside = [m for layer in layers for m in layer.children()]  # type: ignore[attr-defined]
        self.modules = [m for m in (*inside, *owner.children()) if _is_norm(m, model.d_model)]
        self.hooks = hooked(self.modules, after=self._hold)
        self._clean: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = 1

    def _hold(self, key: int, x: Tensor, out: Tensor) -> Tensor | None:
        """Remember mean and size the first time; later, the output under them."""
        module: Any = self.modules[key]
        if x.ndim == 3:
            self._rows = len(x)  # OPT flattens batch and position before some of its norms
        last = by_row(x, self._rows)[:, -1].float()
        centred = "layernorm" in type(module).__name__.lower()
        mean = last.mean(dim=-1, keepdim=True) if centred else torch.zeros_like(last[:, :1])
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
        size = ((last - mean).pow(2).mean(dim=-1, keepdim=True) + epsilon).sqrt()
        if key not in self._clean:
            self._clean[key] = mean, size
            return None
        times = len(last) // len(self._clean[key][0])
        mean0, size0 = (repeat(v, "batch one -> (times batch) one", times=times) for v in self._clean[key])
        weight, bias = (getattr(module, name, None) if centred else None for name in ("weight", "bias"))
        bias = 0.0 if bias is None else bias
        shift = (mean - mean0) / size0 * (1.0 if weight is None else weight) if self.mean and centred else 0.0
        out = out.clone()
        view = by_row(out, self._rows)
        view[:, -1] = ((view[:, -1] - bias) * size / size0 + shift + bias).to(out.dtype)
        return out


def _is_norm(module: nn.Module, d_model: int) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and (weight is None or tuple(weight.shape) == (d_model,))
