"""Provenance: what an artefact says about where it came from, so that a number can be traced to its model and data."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Protocol

__all__ = ["combined_provenance", "provenance", "versions"]


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


def combined_provenance(left: dict[str, Any], right: dict[str, Any], *, op: str) -> dict[str, Any]:
    """Provenance of a combination of two sets: what both agree on stays, what they disagree on is listed, the prompts seen add up.

    >>> a, b = {"method": "sas", "seen": ["r1"]}, {"method": "sas", "seen": ["r2"]}
    >>> combined_provenance(a, b, op="&")
    {'method': 'sas', 'seen': ['r1', 'r2'], 'operation': '&'}

    If the requests that one of them was selected on are not known, `seen` is marked as incomplete. How the combination was selected
    is kept as a tree; it is not known if it is not known of one of them. The marks of a verified set stay where every member of the
    combination was verified.

    Args:
        left: of the first set.
        right: of the second set.
        op: "|", "&", "-" or "^".
    """
    about = _merged([left, right], op)
    about.pop("selection", None)
    if selection := _combined_selection(left.get("selection"), right.get("selection"), op=op):
        about["selection"] = selection
    proven = ["verified_on" in parent for parent in (left, right)]
    if not {"&": any(proven), "-": proven[0]}.get(op, all(proven)):  # a member of neither proven set is not proven
        for key in ("verified_on", "verify_seed", "draws", "proof", "verdict", "claims"):
            about.pop(key, None)
    return about


def _merged(parents: list[dict[str, Any]], op: str) -> dict[str, Any]:
    known = [p for p in parents if p]
    if not known:
        return {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for parent in known for key in parent):
        values: list[Any] = []
        for parent in known:
            if key in parent and parent[key] not in values:
                values.append(parent[key])
        if key == "seen":
            merged[key] = sorted({item for value in values for item in value})
        elif key == "operation":
            continue
        else:
            merged[key] = values[0] if len(values) == 1 else sorted(map(str, values))
    merged["operation"] = op
    if "seen" in merged and not all("seen" in parent for parent in parents):
        merged["seen_incomplete"] = True
    return merged


def _combined_selection(left: Any, right: Any, *, op: str) -> dict[str, Any] | None:
    """How a combination was selected, {"op": ..., "of": [...]}; None if it is not known of one of the two.

    Nodes of the same operator are joined: a & (b & c) is {"op": "&", "of": [a, b, c]}, and so is a - b - c with "-".
    """
    if not left or not right:
        return None
    parts = list(left["of"]) if left.get("op") == op else [left]
    parts += right["of"] if right.get("op") == op and op != "-" else [right]
    if op in "&|":  # the same selection twice is once
        parts = [part for i, part in enumerate(parts) if part not in parts[:i]]
    return parts[0] if len(parts) == 1 else {"op": op, "of": parts}
