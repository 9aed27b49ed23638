"""Directions are orthonormal, span what was given in its order, and come back from a file as they were."""

# mypy: disable-error-code="arg-type"
# Wrong calls are made on purpose.

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuronshield as ns
from neuronshield.core.directions import Directions


def given(k: int = 4, d: int = 11) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((k, d))


def test_vectors_become_orthonormal_and_each_first_part_spans_what_it_spanned() -> None:
    rows = given()
    v = Directions(rows, layers=[0]).vectors.astype(float)
    np.testing.assert_allclose(v @ v.T, np.eye(4), atol=1e-6)
    for j in range(1, 5):  # projecting the first j of either on the other changes nothing
        np.testing.assert_allclose(rows[:j] @ v[:j].T @ v[:j], rows[:j], atol=1e-5)
        assert (v[j - 1] @ rows[j - 1]) > 0  # never turned round


def test_orthonormal_vectors_stay_as_they_are_bit_for_bit() -> None:
    once = Directions(given(), layers=[0])
    assert np.array_equal(Directions(once.vectors, layers=[1]).vectors, once.vectors)
    assert np.array_equal(Directions(once.vectors[:2], layers=[1]).vectors, once.vectors[:2])


def test_random_ones_are_as_many_after_the_same_layers_and_depend_on_the_seed_alone() -> None:
    of = Directions(given(), layers=[2, 1], n_layers=3, provenance={"fingerprint": "f", "model": "m", "method": "mine"})
    one, again, other = (Directions.random_like(of, seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert (len(one), one.layers, one.n_layers, one.d_model) == (4, (1, 2), 3, 11)
    assert one.provenance == {"model": "m", "fingerprint": "f", "method": "random", "seed": 0}
    np.testing.assert_allclose(one.vectors @ one.vectors.T, np.eye(4), atol=1e-6)


def test_a_random_subspace_is_as_near_to_any_direction_as_to_any_other() -> None:
    of = Directions(np.eye(2, 5), layers=[0])
    parts = [(Directions.random_like(of, seed).vectors ** 2).sum(axis=0) for seed in range(400)]
    np.testing.assert_allclose(np.mean(parts, axis=0), 2 / 5, atol=0.04)


def test_a_file_gives_them_back(tmp_path: Path) -> None:
    of = Directions(given(), layers=[2, 0, 2], n_layers=3, provenance={"model": "m"})
    back = Directions.load(of.save(tmp_path / "d.safetensors"))
    assert back == of
    assert (back.layers, back.n_layers, back.provenance) == ((0, 2), 3, {"model": "m"})
    with pytest.raises(ns.InputError, match=r"holds a neuronshield.Directions.*ns.Directions.load"):
        ns.NeuronSet.load(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    ("vectors", "layers", "said"),
    [
        (np.array([[1.0, 0, 0], [2.0, 0, 0]]), [0], "vector 1 lies in the span of the vectors before it"),
        (np.zeros((1, 3)), [0], "vector 0 is zero"),
        (np.eye(3)[0], [0], "shape (3,); give [k, d_model]"),
        (np.ones((4, 3)), [0], "k from 1 to d_model"),
        (np.full((1, 3), np.nan), [0], "not finite"),
        ("north", [0], "vectors must be numbers [k, d_model]"),
        (np.eye(1, 3), [], "at least one layer, numbered from 0 to 1"),
        (np.eye(1, 3), [2], "numbered from 0 to 1"),
        (np.eye(1, 3), [-1], "numbered from 0"),
        (np.eye(1, 3), 1, "give layer numbers, as in layers=[1, 2]"),
        (np.eye(1, 3), [0.5], "give layer numbers"),
    ],
)  # fmt: skip
def test_wrong_directions_are_refused_in_one_line(vectors: Any, layers: Any, said: str) -> None:
    with pytest.raises(ns.InputError) as caught:
        Directions(vectors, layers, n_layers=2)
    assert said in str(caught.value)


def test_directions_of_another_model_are_refused(llama: ns.Model) -> None:
    Directions(np.eye(1, 20), layers=[2], provenance={"fingerprint": llama.fingerprint}).check_model(llama)
    for wrong in (
        Directions(np.eye(1, 19), layers=[0]),
        Directions(np.eye(1, 20), layers=[3]),
        Directions(np.eye(1, 20), layers=[0], n_layers=4),
        Directions(np.eye(1, 20), layers=[0], provenance={"fingerprint": "another"}),
    ):
        with pytest.raises(ns.InputError, match="find directions on this model"):
            wrong.check_model(llama)
