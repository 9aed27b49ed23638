"""Sites: which numbers of a layer are read and changed.

    neuron      input of the MLP's down-projection, act(W_gate x) * (W_up x)             d_mlp numbers a layer
    gate        output of W_gate, before the activation function                         d_mlp
    up          output of W_up; in an MLP without a gate, what its activation reads      d_mlp
    attention   output of the attention block's output projection, as the block gives    d_model
                it (before a norm or a factor that some families put after it)

"neuron" is the site of this package's neurons: the only one whose numbers own a column of W_down, and so the only one that scores with
column norms, masked updates and the explorer take. The others are read and changed to compare with work that ranks them.

The residual stream after a layer is no site of neuron sets: its directions are `neuronshield.core.directions.Directions`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

__all__ = ["NEURON_VALUE", "VALUES", "said_if_other"]

NEURON_VALUE = "input of the MLP down-projection, act(W_gate x) * (W_up x) (TransformerLens hook_post)"
#: What a number is at each site.
VALUES = {
    "neuron": NEURON_VALUE,
    "gate": "output of the MLP gate projection, W_gate x",
    "up": "output of the MLP up-projection, W_up x",
    "attention": "output of the attention output projection",
}


def said_if_other() -> Any:
    """A dataclass field for a site, "neuron" by default, which files name only where it is another."""
    return field(default="neuron", metadata={"said_if_other": True})
