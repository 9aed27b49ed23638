"""Running moments of several groups equal those of all their tokens at once, whatever the batches were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuronshield.find.running import ARRAYS, Moments, RunningMoments


@pytest.mark.parametrize("seed", range(3))
def test_moments_of_groups_do_not_depend_on_the_batches_their_tokens_came_in(seed):
    rng = np.random.default_rng(seed)
    h, out = rng.normal(size=(60, 2, 5)) + 3, rng.uniform(1, 2, size=(60, 2))
    group = rng.integers(0, 3, 60)
    running = RunningMoments((4, 2, 5), dtype=torch.float64, device=torch.device("cpu"))
    for rows in np.array_split(np.arange(60), 7):
        own = list(dict.fromkeys([*group[rows].tolist(), 3]))  # group 3 never has a token
        parts = [Moments.of(h[rows][group[rows] == g], out[rows][group[rows] == g]) if g != 3 else None for g in own]
        fields = np.stack([
            np.stack([np.full((2, 5), np.nan) if part is None else getattr(part, name) for part in parts]) for name in ARRAYS
        ])  # fmt: skip
        counts = torch.tensor([0 if part is None else part.n for part in parts])
        running.add(torch.tensor(own), counts, torch.as_tensor(fields))
    found = dict(running.moments())
    assert sorted(found) == [0, 1, 2]
    for g, moments in found.items():
        whole = Moments.of(h[group == g], out[group == g])
        assert moments.n == whole.n
        for name in ARRAYS:
            np.testing.assert_allclose(getattr(moments, name), getattr(whole, name), rtol=1e-6)
