"""The engine that a call was given by name, as an object, or not at all."""

from __future__ import annotations

from ..core.errors import InputError
from .engine import Engine, InProcess

__all__ = ["engine_of"]


def engine_of(engine: Engine | str | None) -> Engine:
    """The engine that a call was given.

    >>> engine_of(None)
    InProcess(journal=None)

    Args:
        engine: None for this process, "ray" for the Ray cluster that is running or a new one on this machine, or an engine.

    Raises:
        InputError: anything else, or Ray is not installed.
    """
    if engine is None:
        return InProcess()
    if engine == "ray":
        from .ray_engine import shared

        return shared()
    if not callable(getattr(engine, "on", None)):
        shown = f" {engine!r:.60}" if isinstance(engine, str) else ""
        raise InputError(f"engine= must be 'ray', an engine or None, got {type(engine).__name__}{shown}")
    return engine  # type: ignore[return-value]
