"""The largest of a ranking, beside plain sorting."""

from __future__ import annotations

import numpy as np
import pytest

from neuronshield.find.ranking import overall, per_layer, places, top_mask


def draws(n: int = 60) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rankings of every shape, half of them with many ties and barred neurons."""
    out = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(1, 5)), int(rng.integers(1, 14)))
        rank, against = (rng.normal(0, 1, shape) if seed % 2 else rng.integers(0, 4, shape).astype(float) for _ in "ab")
        out.append((np.where(rng.random(shape) < 0.2, -np.inf, rank) if seed % 3 == 0 else rank, against))
    return out


def best(values: np.ndarray, k: int) -> set[int]:
    """The k largest, ties to the lower index, never a barred one."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    return {i for i in order if values[i] > -np.inf}


def layer_sets(mask: np.ndarray) -> list[set[int]]:
    return [set(np.flatnonzero(row).tolist()) for row in mask]


@pytest.mark.parametrize("drawn", draws())
def test_each_form_is_plain_sorting(drawn: tuple[np.ndarray, np.ndarray]):
    rank, against = drawn
    d_mlp = rank.shape[1]
    assert [sorted(range(d_mlp), key=lambda i: (-row[i], i)) for row in rank] == np.argsort(
        places(rank), axis=1
    ).tolist()
    for k in range(1, rank.size + 1):
        assert set(np.flatnonzero(top_mask(rank, k).ravel()).tolist()) == best(rank.ravel(), k)
    for k in range(1, d_mlp + 1):
        assert layer_sets(per_layer(rank, None, k)[0]) == [best(row, k) for row in rank]
        for less in (k, 0, d_mlp // 2):
            mask, left = per_layer(rank, against, k, less=less)
            taken = [best(row, less) for row in against]
            assert layer_sets(mask) == [best(row, k) - t for row, t in zip(rank, taken, strict=True)]
            barred = [
                {i for i in range(d_mlp) if i in t or row[i] == -np.inf} for row, t in zip(rank, taken, strict=True)
            ]
            assert layer_sets(left == -np.inf) == barred


@pytest.mark.parametrize("drawn", draws())
def test_a_total_takes_the_least_k_that_leaves_enough(drawn: tuple[np.ndarray, np.ndarray]):
    rank, against = drawn
    left = [
        {
            (la, i)
            for la, (row, other) in enumerate(zip(rank, against, strict=True))
            for i in best(row, k) - best(other, k)
        }
        for k in range(1, rank.shape[1] + 1)
    ]
    for count in range(1, rank.size + 1):
        enough = [s for s in left if len(s) >= count]
        pool = enough[0] if enough else max(left, key=len)
        want = set(sorted(pool, key=lambda at: (-rank[at], at))[:count])
        assert {(int(a), int(b)) for a, b in np.argwhere(overall(rank, against, count)[0])} == want
