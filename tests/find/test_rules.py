"""Published rules beside independent restatements; a leaf chooses again what it chose before."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from neuronshield import Cell, InputError
from neuronshield.find.moments import Group, Moments, Stats
from neuronshield.find.rules import grown, run_leaf
from neuronshield.find.scores import METHODS, contrast

L, D = 3, 29
LANGUAGES, MODALITIES = ("en", "sw", "ko"), ("text", "image")


def drawn(seed: int = 0) -> tuple[dict[tuple[str, Cell], np.ndarray], Stats]:
    """Activations [prompt, n_layers, d_mlp] by label and cell, and their moments. Cells share part of their means."""
    rng = np.random.default_rng(seed)
    shared = {label: rng.normal(0, 1, (L, D)) for label in ("harmful", "benign")}
    weights = rng.normal(0, rng.uniform(0.1, 3, (L, 1, D)), (L, 5, D))
    raw, groups = {}, {}
    for language in LANGUAGES:
        for modality in MODALITIES:
            cell = Cell(language, modality)
            for label, n in (("harmful", 13), ("benign", 17)):
                h = rng.normal(shared[label] + rng.normal(0, 0.4, (L, D)), rng.uniform(0.2, 2, (L, D)), (n, L, D))
                raw[label, cell] = h
                out = np.linalg.norm(np.einsum("lmd,pld->plm", weights, h), axis=-1)
                groups[Group(label, language, modality, 0)] = Moments.of(h[:6], out[:6])
                groups[Group(label, language, modality, 1)] = Moments.of(h[6:], out[6:])
    norms, l1 = np.linalg.norm(weights, axis=1), np.abs(weights).sum(axis=1)
    return raw, Stats(groups, norms, l1, "last_prompt", 100_000, 60, {"model": "m", "seen": ["x"]})


@pytest.fixture(scope="module")
def raw() -> dict[tuple[str, Cell], np.ndarray]:
    return drawn()[0]


@pytest.fixture(scope="module")
def stats() -> Stats:
    return drawn()[1]


# -- leaves ----------------------------------------------------------------------------------------------
SIZES: list[dict[str, Any]] = [{"k": 7}, {"per_layer": 5}, {"fraction": 0.1}, {"param_fraction": 0.006}]


@pytest.mark.parametrize("sign", [None, "harmful", "benign"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [*METHODS, "lape"])
def test_a_leaf_of_top_chooses_again_what_top_chose(stats: Stats, method: str, size: dict[str, Any], sign: str | None):
    for cell, neurons in contrast(stats, method=method).top(**size, sign=sign).items():
        leaf = json.loads(json.dumps(neurons.provenance["selection"]))
        assert leaf == {"rule": "top", "method": method, "cell": str(cell), "size": size, "sign": sign}
        again, rank = run_leaf(leaf, stats)
        assert again == neurons
        assert again.provenance["selection"] == leaf
        assert again.provenance["seen"] == ["x"]
        mask = np.zeros((L, D), bool)
        mask[tuple(np.array(list(neurons)).T)] = True
        assert (rank[mask] > -np.inf).all()
        if method not in ("precise_shield", "sn_tune", "wanda") and "per_layer" not in size:
            assert rank[mask].min() >= rank[~mask].max()  # the rest ranks below


def test_a_leaf_on_other_moments_is_the_selection_on_them(stats: Stats):
    other = drawn(seed=1)[1]
    leaf = contrast(stats, method="precise_shield").top(k=7)["sw/image"].provenance["selection"]
    assert run_leaf(leaf, other)[0] == contrast(other, method="precise_shield").top(k=7)["sw/image"]
    assert run_leaf(leaf, other)[0] != run_leaf(leaf, stats)[0]


def test_a_set_difference_and_a_sign_bar_neurons_from_the_rank(stats: Stats):
    scores = contrast(stats, method="wanda")
    neurons = scores.top(per_layer=9, sign="harmful")["ko/text"]
    _, rank = run_leaf(neurons.provenance["selection"], stats)
    assert scores.against is not None
    assert scores.difference is not None
    at = scores.cells.index(Cell("ko", "text"))
    for layer in range(L):
        taken = set(np.argsort(-scores.against[at, layer])[:9].tolist())
        barred = {i for i in range(D) if i in taken or scores.difference[at, layer, i] <= 0}
        assert set(np.flatnonzero(np.isneginf(rank[layer])).tolist()) == barred


def test_a_grown_leaf_is_larger_and_holds_what_a_plain_ranking_chose(stats: Stats):
    for size, larger in zip(SIZES, ({"k": 11}, {"per_layer": 8}, {"fraction": 0.15}, {"param_fraction": 0.009}), strict=True):
        neurons = contrast(stats).top(**size)["en/text"]
        leaf = grown(neurons.provenance["selection"], 1.5)
        assert leaf["size"] == pytest.approx(larger)
        assert set(run_leaf(leaf, stats)[0]) > set(neurons)
        assert neurons.provenance["selection"]["size"] == size  # the leaf itself is as it was


@pytest.mark.parametrize("size", SIZES)
def test_a_leaf_grown_beyond_the_model_takes_every_neuron(stats: Stats, size: dict[str, Any]):
    leaf = grown(contrast(stats).top(**size)["en/text"].provenance["selection"], 1e6)
    assert len(run_leaf(leaf, stats)[0]) == L * D


@pytest.mark.parametrize("method", ["attribution", "snip", "change_score"])
def test_a_score_that_needs_the_model_is_refused(stats: Stats, method: str):
    with pytest.raises(InputError, match=f"selection by '{method}' needs the model"):
        run_leaf({"rule": "top", "method": method, "cell": "en/text", "size": {"k": 3}, "sign": None}, stats)
