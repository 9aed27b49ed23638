"""Names of the conditions that the main job compares: the shield, its baselines, and the model without an update."""

from __future__ import annotations

__all__ = ["BASE", "CLAMP", "LORA", "LOW_RANK", "RANDOM_MASKS", "SHIELD", "is_random_mask", "over", "random_mask"]


#: The untouched model.
BASE = "no update"

#: The masked update of the proven neurons.
SHIELD = "shield"

#: An ordinary LoRA with as many trained numbers.
LORA = "plain LoRA"

#: Training-free edits of the same neurons.
CLAMP, LOW_RANK = "clamp, no training", "low-rank edit, no training"

#: All masks of random neurons together.
RANDOM_MASKS = "random masks"


def random_mask(number: int) -> str:
    """The name of one mask of random neurons.

    >>> random_mask(1), is_random_mask(random_mask(1)), is_random_mask("shield")
    ('random mask 1', True, False)

    Args:
        number: from 1.
    """
    return f"random mask {number}"


def is_random_mask(name: str) -> bool:
    """Whether a condition is a mask of random neurons.

    Args:
        name: of the condition.
    """
    return name.startswith("random mask ")


def over(name: str) -> str:
    """The name of the shield's gain over a condition.

    >>> over(BASE)
    'over no update'

    Args:
        name: of the condition.
    """
    return f"over {name}"
