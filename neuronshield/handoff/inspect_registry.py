"""The entry point of inspect_ai (group `inspect_ai`): importing this registers `neuronshield/...` models and `neuronshield/cells`.

Where inspect_ai is not installed nothing is registered.
"""

from __future__ import annotations

from importlib.util import find_spec

from .inspect_cells import registered
from .inspect_provider import provider

__all__ = ["register"]


def register() -> None:
    """Register the provider and the task with inspect_ai."""
    from inspect_ai.model import modelapi

    modelapi(name="neuronshield")(provider)
    registered()


if find_spec("inspect_ai") is not None:
    register()
