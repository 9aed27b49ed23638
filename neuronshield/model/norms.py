"""Norms held at what they were in a clean run, so that only what is read of an edit moves the logits.

A norm divides what it reads by its size. Removing anything large from the residual stream makes every later norm scale up what
is left, and moves the logits although nothing reads what was removed. With the size s of the clean run, the output of an edited run
x' is put at

    gamma * (x' - mean x') / s + beta        (of an RMS norm without the mean and beta)

at the last position, for every norm of the residual stream. A held norm is linear: it keeps taking out the mean, which nothing behind it
reads.
"""

from __future__ import annotations

from typing import Any

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
    """

    def __init__(self, model: Model) -> None:
        owner = model.module.get_submodule(model.layers_path.rpartition(".")[0])
        layers = model.module.get_submodule(model.layers_path)
        inside = [m for layer in layers for m in layer.children()]  # type: ignore[attr-defined]
        self.modules = [m for m in (*inside, *owner.children()) if _is_norm(m, model.d_model)]
        self.hooks = hooked(self.modules, after=self._hold)
        self._clean: dict[int, Tensor] = {}
        self._rows = 1

    def _hold(self, key: int, x: Tensor, out: Tensor) -> Tensor | None:
        """Remember the size the first time; later, the output under it."""
        module: Any = self.modules[key]
        if x.ndim == 3:
            self._rows = len(x)  # OPT flattens batch and position before some of its norms
        last = by_row(x, self._rows)[:, -1].float()
        centred = "layernorm" in type(module).__name__.lower()
        read = last - last.mean(dim=-1, keepdim=True) if centred else last
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
        size = (read.pow(2).mean(dim=-1, keepdim=True) + epsilon).sqrt()
        if key not in self._clean:
            self._clean[key] = size
            return None
        size0 = repeat(self._clean[key], "batch one -> (times batch) one", times=len(last) // len(self._clean[key]))
        bias = getattr(module, "bias", None) if centred else None
        bias = 0.0 if bias is None else bias
        out = out.clone()
        view = by_row(out, self._rows)
        view[:, -1] = ((view[:, -1] - bias) * size / size0 + bias).to(out.dtype)
        return out


def _is_norm(module: nn.Module, d_model: int) -> bool:
    weight = getattr(module, "weight", None)
    return "norm" in type(module).__name__.lower() and (weight is None or tuple(weight.shape) == (d_model,))
