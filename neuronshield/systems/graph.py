"""Which nodes of a system read which: the order in which they run, and the one that answers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from ..core.errors import InputError

__all__ = ["check_fields", "in_order", "last_of"]


def check_fields(reads: Sequence[tuple[str, Sequence[str]]], *, request: str) -> None:
    """Raise unless every node has a name of its own and reads the request or nodes that are there.

    >>> check_fields([("describe", ["prompt"]), ("answer", ["descrbe"])], request="prompt")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: System: node 'answer' reads {descrbe}, which is no node; did you mean 'describe'? use one of prompt, describe

    Args:
        reads: each node's name, and the fields of its template.
        request: the field that is the user's request.

    Raises:
        InputError: two nodes of one name, or a field that is neither.
    """
    names = [name for name, _ in reads]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"System: two nodes have the name {twice[0]!r}; give each its own")
    for name, fields in reads:
        known = [request, *(other for other in names if other != name)]
        for field in fields:
            if field not in [*known, name]:  # one that reads itself is a cycle
                close = difflib.get_close_matches(field, known, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise InputError(
                    f"System: node {name!r} reads {{{field:.40}}}, which is no node; {hint}use one of {', '.join(known)}"
                )


def in_order(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """The nodes, each after those that it reads; otherwise in the order given.

    >>> in_order({"answer": ["describe"], "describe": []})
    ['describe', 'answer']

    Args:
        parents: names of the nodes that each node reads.

    Raises:
        InputError: a cycle; the message has its nodes.
    """
    sorter = TopologicalSorter({name: list(read) for name, read in parents.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InputError(
            f"System: nodes read each other in a cycle ({circle}); a node can read earlier ones only"
        ) from None
    out: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=list(parents).index)
        out += ready
        sorter.done(*ready)
    return out


def last_of(parents: Mapping[str, Sequence[str]]) -> str:
    """The node that no other reads, whose output is the system's answer.

    >>> last_of({"answer": ["describe"], "describe": []})
    'answer'

    Args:
        parents: names of the nodes that each node reads.

    Raises:
        InputError: several.
    """
    read = {name for names in parents.values() for name in names}
    ends = [name for name in parents if name not in read]
    if len(ends) != 1:
        raise InputError(
            f"System: no node reads {' and '.join(map(repr, ends))}; exactly one node, the one that answers, may be read by none"
        )
    return ends[0]
