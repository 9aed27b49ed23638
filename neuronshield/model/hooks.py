"""Plain PyTorch hooks in one context: read or replace what a module takes or returns, and leave nothing behind.

Most of the package reads and edits through nnsight traces. Plain hooks are used where a trace cannot be: inside a training
step, inside a backward pass, and as the second implementation that `doctor` compares with.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor, nn

__all__ = ["hooked", "skipped"]

Before = Callable[[Any, Tensor], Tensor | None]
After = Callable[[Any, Tensor, Any], Any]


class hooked:
    """A context in which `before` and `after` are called at every forward of the modules.

    >>> seen = {}
    >>> downs = [model.linear(layer, model.site.down) for layer in range(model.n_layers)]
    >>> with hooked(downs, before=lambda layer, h: seen.update({layer: h.shape[-1]})):
    ...     _ = model.module(torch.ones(1, 4, dtype=torch.long))
    >>> seen
    {0: 29, 1: 29, 2: 29}

    The context can be entered again after it was left. All hooks are removed when it is left, after an error too.

    Args:
        modules: the modules; each is known to the callbacks by its position, or by its key in a mapping.
        before: called as `before(key, x)` with the module's first input, before it runs; a returned tensor replaces it.
        after: called as `after(key, x, out)` with that input and the output; a returned tensor, or a tuple where a module gives
            one, replaces the output.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module] | Mapping[Any, nn.Module],
        before: Before | None = None,
        after: After | None = None,
    ) -> None:
        self.modules = dict(modules) if isinstance(modules, Mapping) else dict(enumerate(modules))
        self.before, self.after = before, after
        self._handles: list[Any] = []

    def __enter__(self) -> hooked:
        try:
            for key, module in self.modules.items():
                if self.before is not None:
                    hook = _before(key, self.before)
                    self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                if self.after is not None:
                    self._handles.append(module.register_forward_hook(_after(key, self.after), with_kwargs=True))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()


@contextmanager
def skipped(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which modules return what they take, and do nothing.

    >>> with skipped(model.module.model.layers):
    ...     out = model.module.model.layers[0](torch.ones(1, 2, 20))
    >>> out.sum()
    tensor(40.)

    Args:
        modules: layers whose first input and output are alike.
    """
    own = [(m, "forward" in m.__dict__, m.__dict__.get("forward")) for m in modules]
    try:
        for m in modules:
            m.__dict__["forward"] = _returned
        yield
    finally:
        for m, had, forward in own:
            if had:
                m.__dict__["forward"] = forward
            else:
                m.__dict__.pop("forward", None)


def _returned(*args: Any, **kwargs: Any) -> Any:
    return _first(args, kwargs)


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first input, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()))


def _before(key: Hashable, before: Before) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = before(key, _first(args, kwargs))
        if not isinstance(new, Tensor):
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): new}

    return hook


def _after(key: Hashable, after: After) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        new = after(key, _first(args, kwargs), out)
        return new if isinstance(new, (Tensor, tuple)) else None

    return hook
