"""Overlap with its benign null and split-half reliability, each recomputed from raw activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

import neuronshield as ns
from neuronshield import Cell, InputError, NeuronSet
from neuronshield.find.folds import SPLITS, folds_of
from neuronshield.find.moments import capture
from neuronshield.find.overlaps import jaccard, overlap, overlap_coefficient

K = 17


def sets_of(seed: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    rng = np.random.default_rng(seed)
    return tuple(
        {(int(a), int(i)) for a, i in zip(rng.integers(0, 3, n), rng.integers(0, 7, n), strict=True)} for n in (11, 5)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_those_of_python_sets(seed: int):
    a, b = sets_of(seed)
    x, y = NeuronSet(a), NeuronSet(b)
    assert jaccard(x, y) == len(a & b) / len(a | b) == jaccard(y, x)
    assert overlap_coefficient(x, y) == len(a & b) / min(len(a), len(b)) == overlap_coefficient(y, x)
    assert jaccard(x, x) == overlap_coefficient(x, x) == 1
    assert overlap_coefficient(x, x | y) == 1  # nested sets overlap wholly, whatever their sizes


def test_overlap_of_nothing_is_undefined():
    assert np.isnan(jaccard(NeuronSet(), NeuronSet()))
    assert np.isnan(overlap_coefficient(NeuronSet([(0, 1)]), NeuronSet()))


def best(score: np.ndarray) -> set[int]:
    return set(np.argsort(-score, axis=None, kind="stable")[:K].tolist())


def share(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def found(llava: ns.Model) -> tuple[ns.PromptSet, dict, ns.Overlap]:
    prompts = tiny.prompts(pictures=True)
    acts: dict[tuple[str, Cell, int], list[np.ndarray]] = {}
    for p, fold in zip(prompts, folds_of(prompts, 0), strict=True):
        h, _, n = tiny.activations(llava, p)
        acts.setdefault((p.label, p.cell, int(fold in SPLITS[0][1])), []).append(h[n - 1])
    raw = {key: np.array(h) for key, h in acts.items()}
    return prompts, raw, overlap(capture(llava, prompts, progress=False), method="contribution", k=K)


def test_overlap_benign_null_and_split_half_are_as_recomputed_by_hand(llava: ns.Model, found: tuple):
    prompts, raw, got = found
    norms = llava.down_norms().numpy()
    whole, halves, null = {}, {}, {}
    for cell in prompts.cells():
        h, b = ([raw[label, cell, half] for half in (0, 1)] for label in ("harmful", "benign"))
        whole[cell] = best(np.abs(np.concatenate(h).mean(0) - np.concatenate(b).mean(0)) * norms)
        halves[cell] = [best(np.abs(h[i].mean(0) - b[i].mean(0)) * norms) for i in (0, 1)]
        null[cell] = best(np.abs(b[0].mean(0) - b[1].mean(0)) * norms)
    assert sorted(got.cells) == sorted(prompts.cells())
    for i, a in enumerate(got.cells):
        for j, b in enumerate(got.cells):
            assert got.jaccard[i, j] == pytest.approx(share(whole[a], whole[b]))
            assert got.benign_null[i, j] == pytest.approx(share(null[a], null[b]))
            assert got.split_half[i, j] == pytest.approx(np.sqrt(share(*halves[a]) * share(*halves[b])))
            assert got.coefficient[i, j] == pytest.approx(len(whole[a] & whole[b]) / K)
    # the three differ here, so none can replace another
    off = ~np.eye(4, dtype=bool)
    assert not np.allclose(got.jaccard[off], got.benign_null[off])
    assert not np.allclose(got.jaccard[off], got.split_half[off])


def test_matrices_are_symmetric_and_whole_on_the_diagonal(found: tuple):
    got = found[2]
    for matrix in (got.jaccard, got.coefficient, got.benign_null, got.split_half):
        assert matrix.shape == (4, 4)
        np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(got.jaccard), 1)
    assert (np.diag(got.split_half) <= 1).all()


def test_the_frame_has_each_pair_of_different_cells_once(found: tuple):
    frame = found[2].to_frame()
    assert len(frame) == 6
    assert (frame.a != frame.b).all()
    assert list(frame.columns) == ["a", "b", "jaccard", "coefficient", "benign_null", "split_half"]
    assert found[2].to_dict()["cells"] == [str(c) for c in found[2].cells]


def test_a_cell_with_too_few_requests_for_halves_is_refused(llama: ns.Model):
    stats = capture(llama, tiny.prompts(languages=["en"]).where(pair_id="0-0"), progress=False)
    with pytest.raises(InputError, match=r"en/text has too few .* prompts for a split-half reliability"):
        overlap(stats, k=3)


def test_along_an_axis_is_the_mean_over_cells_that_differ_in_it_only(found: tuple):
    got = found[2]
    for axis, other, names in (("language", "modality", ["en", "sw"]), ("modality", "language", ["text", "image"])):
        part = got.along(axis)
        assert sorted(part.cells) == sorted(names)
        for name in ("jaccard", "coefficient", "benign_null", "split_half"):
            whole, mine = getattr(got, name), getattr(part, name)
            for i, a in enumerate(part.cells):
                for j, b in enumerate(part.cells):
                    pairs = [
                        whole[x, y] for x, c in enumerate(got.cells) for y, d in enumerate(got.cells)
                        if getattr(c, axis) == a and getattr(d, axis) == b and getattr(c, other) == getattr(d, other)
                    ]  # fmt: skip
                    assert len(pairs) == 2
                    assert mine[i, j] == pytest.approx(np.mean(pairs))
        assert part.figure().data[0].x == tuple(part.cells)
    for wrong in ("label", "cells"):
        with pytest.raises(InputError, match="use 'language' or 'modality', once"):
            got.along(wrong)
    with pytest.raises(InputError, match="once"):
        got.along("language").along("language")


def test_neurons_taken_out_are_out_of_sets_and_both_references(llava: ns.Model, found: tuple):
    prompts, raw, whole = found
    cells = whole.cells
    out = whole.sets[cells[0]]
    got = overlap(capture(llava, prompts, progress=False), method="contribution", k=K, without=out)
    assert len(got.sets[cells[0]]) == 0
    for cell in cells:
        assert set(got.sets[cell]) == set(whole.sets[cell]) - set(out)
    norms = llava.down_norms().numpy()
    gone = {layer * 29 + i for layer, i in out}
    null = {c: best(np.abs(raw["benign", c, 0].mean(0) - raw["benign", c, 1].mean(0)) * norms) - gone for c in cells}
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            assert got.benign_null[i, j] == pytest.approx(share(null[a], null[b]))


def test_what_is_shared_with_an_anchor(found: tuple):
    sets = found[2].sets
    shared = ns.overlaps.anchored(sets, ("en", "text"))
    for cell, neurons in shared.items():
        assert set(neurons) == set(sets[cell]) & set(sets[Cell("en", "text")])
    with pytest.raises(InputError, match=r"no such cell; there are en/text"):
        ns.overlaps.anchored(sets, ("ko", "text"))


def test_an_overlap_comes_back_from_its_file(found: tuple, tmp_path: Path):
    for i, got in enumerate((found[2], found[2].along("language"))):
        back = ns.Overlap.load(got.save(tmp_path / str(i)))
        for name in ("jaccard", "coefficient", "benign_null", "split_half"):
            np.testing.assert_array_equal(getattr(back, name), getattr(got, name))
        assert (back.cells, back.method, back.provenance) == (got.cells, got.method, got.provenance)
        assert dict(back.sets) == dict(got.sets)
        assert repr(back) == repr(got)
    assert back.cells == ["en", "sw"]
    with pytest.raises(InputError, match="use 'language' or 'modality', once"):
        back.along("language")


def test_all_methods_with_one_size_give_an_overlap(llama: ns.Model):
    stats = capture(llama, tiny.prompts(), progress=False)
    for method in ns.scores.METHODS:
        got = overlap(stats, method=method, per_layer=5)
        assert (got.method, got.jaccard.shape) == (method, (2, 2))
        assert dict(got.sets) == dict(ns.contrast(stats, method).top(per_layer=5))
