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
    with pytest.raises(KeyError), random_state_kept():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        inside = random.random(), np.random.rand(), float(torch.rand(()))
        assert state() != before
        raise KeyError
    assert state() == before
    with random_state_kept():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == inside
