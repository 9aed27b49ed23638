"""Provenance: what an artefact says about where it came from, so that a number can be traced to its model and data."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Protocol

__all__ = ["provenance", "versions"]


class _Traceable(Protocol):
    def provenance(self) -> dict[str, Any]: ...


class _Request(Protocol):
    @property
    def cluster(self) -> str: ...


class _Hashed(Protocol):
    def hash(self) -> str: ...


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on.

    >>> sorted(versions())
    ['neuronshield', 'nnsight', 'torch', 'transformers']
    """
    return {name: version(name) for name in ("neuronshield", "torch", "transformers", "nnsight")}


def provenance(
    model: _Traceable, data: _Hashed, *, seen: Iterable[_Request] | None = None, **facts: Any
) -> dict[str, Any]:
    """Model, data hash, versions and further facts, as JSON can hold them: the one form every artefact uses.

    >>> facts = provenance(model, prompts, seen=prompts, seed=0)
    >>> list(facts)[:4], facts["seed"], len(facts["seen"])
    (['model', 'revision', 'fingerprint', 'dtype'], 0, 15)

    Args:
        model: its own `provenance()` comes first.
        data: the prompts that were used; only their hash is kept.
        seen: prompts that selection or training read; a later test refuses them. Kept as sorted `cluster` names.
        **facts: what else an artefact records (seed, tokens, neuron value, ...).
    """
    out = {**model.provenance(), "data": data.hash(), **facts, "versions": versions()}
    if seen is not None:
        out["seen"] = sorted({prompt.cluster for prompt in seen})
    return out
