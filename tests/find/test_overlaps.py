"""Overlap with its references, each recomputed from raw activations; and a known share of neurons in common, recovered."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from planted_overlap import NEURONS, TRUE, planted, reached, unrelated

import neuronshield as ns
from neuronshield import Cell, InputError, NeuronSet
from neuronshield.core.results import save_arrays
from neuronshield.find.folds import SPLITS, folds_of
from neuronshield.find.moments import capture
from neuronshield.find.overlaps import MEASURES, jaccard, overlap, overlap_coefficient

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


@pytest.mark.parametrize("measure", [jaccard, overlap_coefficient])
def test_measures_are_of_neuron_sets(measure: Any):
    for a, b in (([(0, 1)], [(0, 1)]), (NeuronSet([(0, 1)]), None)):
        with pytest.raises(InputError, match=r"every set must be NeuronSet, got (list|NoneType)"):
            measure(a, b)


def test_overlap_of_nothing_is_undefined():
    assert np.isnan(jaccard(NeuronSet(), NeuronSet()))
    assert np.isnan(overlap_coefficient(NeuronSet([(0, 1)]), NeuronSet()))


def best(score: np.ndarray) -> set[int]:
    return set(np.argsort(-score, axis=None, kind="stable")[:K].tolist())


def share(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


Raw = dict[tuple[str, Cell, int], np.ndarray]


@pytest.fixture(scope="module")
def stats(llava: ns.Model) -> ns.Stats:
    return capture(llava, tiny.prompts(pictures=True), progress=False)


@pytest.fixture(scope="module")
def found(llava: ns.Model, stats: ns.Stats) -> tuple[ns.PromptSet, Raw, ns.Overlap]:
    prompts = tiny.prompts(pictures=True)
    acts: dict[tuple[str, Cell, int], list[np.ndarray]] = {}
    for p, fold in zip(prompts, folds_of(prompts, 0), strict=True):
        h, _, n = tiny.activations(llava, p)
        acts.setdefault((p.label, p.cell, fold), []).append(h[n - 1])
    raw = {key: np.array(h) for key, h in acts.items()}
    return prompts, raw, overlap(stats, method="contribution", k=K)


class Oracle:
    """Selections from raw activations: neurons as a set of flat indices."""

    def __init__(self, model: ns.Model, raw: Raw, gone: frozenset[int] = frozenset()) -> None:
        self.norms, self.raw, self.gone = model.down_norms().numpy(), raw, gone

    def rows(self, label: str, cell: Cell, folds: Iterable[int]) -> list[np.ndarray]:
        return [self.raw[label, cell, fold] for fold in folds if (label, cell, fold) in self.raw]

    def score(self, cell: Cell, straight: Iterable[int], swapped: Iterable[int] = ()) -> np.ndarray:
        h = self.rows("harmful", cell, straight) + self.rows("benign", cell, swapped)
        b = self.rows("benign", cell, straight) + self.rows("harmful", cell, swapped)
        return np.abs(np.concatenate(h).mean(0) - np.concatenate(b).mean(0)) * self.norms

    def chosen(self, *args: Any) -> set[int]:
        return best(self.score(*args)) - self.gone

    def benign(self, cell: Cell, first: Iterable[int], second: Iterable[int]) -> set[int]:
        one, other = (np.concatenate(self.rows("benign", cell, folds)).mean(0) for folds in (first, second))
        return best(np.abs(one - other) * self.norms) - self.gone

    def even(self, cell: Cell, one: Iterable[int], other: Iterable[int]) -> bool:
        for label in ("harmful", "benign"):
            n, m = (sum(map(len, self.rows(label, cell, folds))) for folds in (one, other))
            if not n + m or min(n, m) < (n + m) / 4:
                return False
        return True


def common(a: set[int], b: set[int]) -> float:
    return len(a & b) / np.sqrt(len(a) * len(b))


def mean(values: Iterable[float]) -> float:
    known = list(values)
    return float(np.mean(known)) if known else float("nan")


def expected(oracle: Oracle, a: Cell, b: Cell) -> dict[str, float]:
    """The measures of two cells, restated pair by pair."""
    everything = set(range(8))
    even = [s for s in SPLITS if all(oracle.even(c, *s) for c in (a, b))]
    swaps = [{0, *rest} for rest in combinations(range(1, 8), 3)]
    swaps = [s for s in swaps if all(oracle.even(c, s, everything - s) for c in (a, b))]
    return {
        "jaccard": share(oracle.chosen(a, everything), oracle.chosen(b, everything)),
        "coefficient": len(oracle.chosen(a, everything) & oracle.chosen(b, everything)) / K,
        "benign_null": mean(share(oracle.benign(a, *s), oracle.benign(b, *s)) for s in even),
        "permutation_null": mean(
            share(oracle.chosen(a, everything - s, s), oracle.chosen(b, everything - s, s)) for s in swaps
        ),
    }


def test_overlap_and_its_nulls_are_as_recomputed_by_hand(llava: ns.Model, found: tuple):
    prompts, raw, got = found
    oracle = Oracle(llava, raw)
    assert sorted(got.cells) == sorted(prompts.cells())
    for i, a in enumerate(got.cells):
        for j, b in enumerate(got.cells):
            for name, value in expected(oracle, a, b).items():
                assert getattr(got, name)[i, j] == pytest.approx(value), name
    # the three differ here, so none can replace another
    off = ~np.eye(4, dtype=bool)
    assert not np.allclose(got.jaccard[off], got.benign_null[off])
    assert not np.allclose(got.permutation_null[off], got.benign_null[off])


def test_p_is_the_share_of_swaps_that_overlap_as_much_the_real_labels_included(found: tuple):
    got = found[2]
    for i, j in combinations(range(4), 2):
        known = [x for x in got.permuted[:, i, j] if np.isfinite(x)]
        assert len(known) > 8
        assert got.p[i, j] == pytest.approx((1 + sum(x >= got.jaccard[i, j] for x in known)) / (1 + len(known)))
    assert (got.p > 0).all()


def test_shared_is_the_excess_over_noise_relative_to_the_cells_own(llava: ns.Model, found: tuple):
    _, raw, got = found
    oracle, n = Oracle(llava, raw), 3 * 29

    def excess(a: Cell, b: Cell) -> float:
        cross, noise = [], []
        for i, split in enumerate(SPLITS):
            inner = SPLITS[(i + 1) % 7][0]
            if not all(oracle.even(c, *split) for c in (a, b)):
                continue
            for one, other in (split, split[::-1]):
                cross.append(common(oracle.chosen(a, one), oracle.chosen(b, other)))
                passing = []
                for cell, half in ((a, one), (b, other)):
                    if not oracle.even(cell, half & inner, half - inner):
                        break
                    real, swapped = oracle.score(cell, half), oracle.score(cell, half & inner, half - inner)
                    cut = min(real.ravel()[list(best(real))])
                    passing.append(set(np.flatnonzero(swapped >= cut).tolist()))
                if len(passing) == 2:
                    u, v = passing
                    chance = (K * K - min(len(u), K) * min(len(v), K)) / n / K
                    noise.append(len(u & v) / K + chance)
        return mean(cross) - mean(noise)

    for i, a in enumerate(got.cells):
        for j, b in enumerate(got.cells):
            assert got.excess[0, i, j] == pytest.approx(excess(a, b))
            own = [max(excess(c, c), 0) for c in (a, b)]
            assert got.attainable[0, i, j] == pytest.approx(np.sqrt(own[0] * own[1]))


def test_matrices_are_symmetric_and_whole_on_the_diagonal(found: tuple):
    got = found[2]
    for name in ("jaccard", "coefficient", "benign_null", "permutation_null", "reliability", "shared", "p"):
        matrix = getattr(got, name)
        assert matrix.shape == (4, 4)
        np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(got.jaccard), 1)
    assert (np.diag(got.reliability) <= 1).all()
    own = np.diag(got.shared)
    assert set(own[np.isfinite(own)]) <= {1.0}


def test_the_frame_has_each_pair_of_different_cells_once(found: tuple):
    frame = found[2].to_frame()
    assert len(frame) == 6
    assert (frame.a != frame.b).all()
    assert list(frame.columns) == ["a", "b", *MEASURES]
    assert found[2].to_dict()["cells"] == [str(c) for c in found[2].cells]
    assert list(found[2].to_dict()["along"]) == ["language", "modality"]
    assert "along" not in found[2].along("language").to_dict()


def test_few_requests_leave_the_references_undefined_and_the_overlap_as_it_is(llama: ns.Model):
    one = tiny.prompts().where(pair_id="0-0")
    for prompts in (one, one + tiny.prompts().where(pair_id="1-2")):
        stats = capture(llama, prompts, progress=False)
        got = overlap(stats, k=3)
        assert got.jaccard[0, 1] == jaccard(*ns.contrast(stats).top(k=3).values())
        for name in ("shared", "shared_low", "shared_high", "reliability"):
            assert np.isnan(getattr(got, name)).all(), name
        assert "shared n/a" in repr(got)
    assert np.isnan(overlap(capture(llama, one, progress=False), k=3).p).all()


def test_along_an_axis_is_the_mean_over_cells_that_differ_in_it_only(found: tuple):
    got = found[2]
    for axis, other, names in (("language", "modality", ["en", "sw"]), ("modality", "language", ["text", "image"])):
        part = got.along(axis)
        assert sorted(part.cells) == sorted(names)
        for name in ("jaccard", "coefficient", "benign_null", "reliability", "permutation_null"):
            whole, mine = getattr(got, name), getattr(part, name)
            for i, a in enumerate(part.cells):
                for j, b in enumerate(part.cells):
                    pairs = [
                        whole[x, y] for x, c in enumerate(got.cells) for y, d in enumerate(got.cells)
                        if getattr(c, axis) == a and getattr(d, axis) == b and getattr(c, other) == getattr(d, other)
                    ]  # fmt: skip
                    assert len(pairs) == 2
                    assert mine[i, j] == pytest.approx(np.mean(pairs))
    for wrong in ("label", "cells"):
        with pytest.raises(InputError, match="use 'language' or 'modality', once"):
            got.along(wrong)
    with pytest.raises(InputError, match="once"):
        got.along("language").along("language")


@pytest.mark.slow
def test_neurons_taken_out_are_out_of_sets_and_all_references(llava: ns.Model, stats: ns.Stats, found: tuple):
    _, raw, whole = found
    cells = whole.cells
    out = whole.sets[cells[0]]
    got = overlap(stats, method="contribution", k=K, without=out)
    assert len(got.sets[cells[0]]) == 0
    oracle = Oracle(llava, raw, frozenset(layer * 29 + i for layer, i in out))
    for cell in cells:
        assert set(got.sets[cell]) == set(whole.sets[cell]) - set(out)
    for i, a in enumerate(cells[1:], 1):
        for j, b in enumerate(cells[1:], 1):
            for name in ("jaccard", "benign_null", "permutation_null"):
                assert getattr(got, name)[i, j] == pytest.approx(expected(oracle, a, b)[name]), name
    assert np.isnan(got.shared[0]).all()  # nothing is left of the first cell


def test_neurons_of_another_model_are_not_taken_out(llama: ns.Model):
    stats = capture(llama, tiny.prompts(), progress=False)
    for neuron in ((2, 40), (9, 1)):
        with pytest.raises(
            InputError, match=rf"neuron \({neuron[0]}, {neuron[1]}\) lies outside 3 layers x 29 neurons"
        ):
            overlap(stats, k=5, without=NeuronSet([neuron]))


def test_a_file_that_lacks_a_field_is_named(tmp_path: Path):
    save_arrays(tmp_path / "o", "neuronshield.Overlap/2", {}, {"cells": ["en/text"]})
    with pytest.raises(InputError, match=r"o: not a file of neuronshield.Overlap/2 \(.*field 'method' is missing\)"):
        ns.Overlap.load(tmp_path / "o")


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
        for name in (*MEASURES, "permuted", "excess", "attainable"):
            np.testing.assert_array_equal(getattr(back, name), getattr(got, name))
        assert back == got
        assert (back.cells, back.method, back.provenance) == (got.cells, got.method, got.provenance)
        assert dict(back.sets) == dict(got.sets)
        assert repr(back) == repr(got)
        assert back.to_dict() == got.to_dict()
    assert back.cells == ["en", "sw"]
    with pytest.raises(InputError, match="use 'language' or 'modality', once"):
        back.along("language")


@pytest.mark.slow
@pytest.mark.parametrize("method", ns.scores.METHODS)
def test_all_methods_with_one_size_give_an_overlap(llama: ns.Model, method: str):
    stats = capture(llama, tiny.prompts(), progress=False)
    got = overlap(stats, method=method, per_layer=5)
    assert (got.method, got.jaccard.shape) == (method, (2, 2))
    assert dict(got.sets) == dict(ns.contrast(stats, method).top(per_layer=5))


def test_language_neurons_have_no_overlap_of_labels(llama: ns.Model):
    stats = capture(llama, tiny.prompts(), progress=False)
    with pytest.raises(InputError, match="LAPE compares languages, not labels"):
        overlap(stats, method="lape", k=5)


# -- a known share of neurons in common -------------------------------------------------------------------
def pair_of(got: ns.Overlap) -> tuple[float, float, float]:
    return tuple(float(getattr(got, name)[0, 1]) for name in ("shared", "shared_low", "shared_high"))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_planted_share_is_recovered_and_inside_its_interval(shared: float):
    got = overlap(planted(1, shared=shared, d=1.0, n=64), method="effect_size", k=TRUE)
    value, low, high = pair_of(got)
    assert value == pytest.approx(shared, abs=0.12)
    assert low < unrelated(shared) < high
    assert high - low > 0.02


@pytest.mark.parametrize("method", ["effect_size", pytest.param("contribution", marks=pytest.mark.slow)])
def test_without_any_harm_there_is_nothing_to_tell_and_the_null_keeps_what_requests_make_cells_share(method: str):
    # both cells are asked the same requests: an overlap far above chance, and the permutation null says so
    got = overlap(planted(0, shared=1.0, d=0.0, n=64), method=method, k=TRUE)
    chance = TRUE / NEURONS / (2 - TRUE / NEURONS)
    assert np.isnan(pair_of(got)).all()
    assert got.p[0, 1] > 0.1
    assert got.permutation_null[0, 1] > 1.5 * chance
    assert got.permutation_null[0, 1] == pytest.approx(got.jaccard[0, 1], abs=0.03)


@pytest.mark.slow
def test_no_interval_has_zero_width():
    # a signal so strong that every selection is the same: all replicates agree
    got = overlap(planted(2, shared=1.0, d=4.0, n=64), method="effect_size", k=TRUE)
    value, low, high = pair_of(got)
    assert value == pytest.approx(1, abs=0.02)
    assert high - low > 1 / TRUE


@pytest.mark.slow
@pytest.mark.parametrize("method", ["effect_size", "contribution"])
@pytest.mark.parametrize(("d", "n"), [(0.5, 128), (1.0, 32), (1.0, 128)])
def test_planted_shares_and_reliabilities_over_many_data_sets(method: str, d: float, n: int):
    errors, inside, reliability = [], [], []
    for seed in range(6):
        for shared in (0.0, 0.5, 1.0):
            stats = planted(seed, shared=shared, d=d, n=n)
            got = overlap(stats, method=method, k=TRUE)
            both = reached(stats, planted(seed, shared=shared, d=d, n=n, fresh=1), method)
            reliability.append(got.reliability[0, 0] - both / (2 - both))
            value, low, high = pair_of(got)
            if np.isfinite(value):
                errors.append(value - unrelated(shared))
                inside.append(low <= unrelated(shared) <= high)
    assert abs(np.mean(reliability)) < 0.08
    if len(errors) > 9:
        assert abs(np.mean(errors)) < 0.12
        assert np.mean(inside) > 0.85
    assert n == 32 or d == 0.5 or len(errors) == 18
