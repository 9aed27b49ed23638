"""Systems of several models, and preference training of a whole system.

What the modules hold:

    nodes        a node: a model, and what it reads; the prompt that it makes of a request
    graph        which nodes read which: order, cycles, the node that answers
    system       the system: outputs node by node, saved and loaded
    beams        several different outputs of a node (diverse beam search)
    preferences  which of two outcomes of a system is preferred
    losses       DPO on the sum of the nodes' log-probabilities
    joint        training chosen neurons of one or several nodes together
"""

from __future__ import annotations

from .joint import SystemUpdate
from .preferences import Preference, preferences
from .system import Outcome

__all__ = ["Outcome", "Preference", "SystemUpdate", "preferences"]
