"""The user's random state is kept, after an error too."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from neuronshield.core.randomness import random_state_kept


def state() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()


def test_what_is_drawn_and_seeded_inside_changes_nothing_outside() -> None:
    before = state()
    inside = []

    def draw(error: bool) -> None:
        with random_state_kept():
            random.seed(3)
            np.random.seed(3)
            torch.manual_seed(3)
            inside.append((random.random(), np.random.rand(), float(torch.rand(()))))
            assert state() != before
            if error:
                raise KeyError

    with pytest.raises(KeyError):
        draw(error=True)
    assert state() == before
    draw(error=False)
    assert inside[0] == inside[1]
