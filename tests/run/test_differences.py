"""Runs, compared: overlaps of their sets and differences of their effects, against other ways to compute them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hypergeom

import neuronshield as ns
from neuronshield import InputError
from neuronshield.core.statistics import Interval, difference, rate
from neuronshield.run.differences import RunComparison, _shared

pytest_plugins = ["finished_runs"]


@pytest.fixture(scope="module")
def compared(finished: Path, other_seed: Path) -> RunComparison:
    return ns.compare(finished, other_seed)


@pytest.fixture
def duplicate(finished: Path, tmp_path: Path) -> Path:
    """The same run in another folder."""
    shutil.copytree(finished, tmp_path / "duplicate")
    return tmp_path / "duplicate"


def test_sets_are_compared_neuron_by_neuron(compared: RunComparison, finished: Path, other_seed: Path):
    a, b = ns.open(finished), ns.open(other_seed)
    for row in compared.overlaps().itertuples():
        x, y = (np.zeros((3, 29), bool) for _ in "ab")
        for grid, run in ((x, a), (y, b)):
            for layer, index in getattr(run, row.set):
                grid[layer, index] = True
        assert row.shared == (x & y).sum()
        assert (row.size_a, row.size_b) == (x.sum(), y.sum())
        assert row.expected == pytest.approx(x.sum() * y.sum() / 87)
    assert compared.overlaps()["set"].tolist() == ["candidates", "verified"]


def test_the_p_value_is_that_of_random_sets():
    a = ns.NeuronSet([(0, i) for i in range(10)], n_layers=2, d_mlp=20)
    b = ns.NeuronSet([(0, i) for i in range(7, 15)], n_layers=2, d_mlp=20)
    found = _shared(a, b, names=("a", "b"), which="candidates")
    rng = np.random.default_rng(0)
    drawn = np.array([len(set(rng.choice(40, 10, replace=False)) & set(range(8))) for _ in range(4000)])
    assert found.shared == 3
    assert found.p == pytest.approx(np.mean(drawn >= 3), abs=0.03)
    assert found.p == pytest.approx(sum(hypergeom.pmf(k, 40, 8, 10) for k in range(3, 9)))
    assert found.expected == pytest.approx(drawn.mean(), abs=0.1) == 2.0


def test_models_of_other_shapes_share_no_neurons_and_say_so():
    a, b = ns.NeuronSet([(0, 1)], n_layers=2, d_mlp=20), ns.NeuronSet([(0, 1)], n_layers=2, d_mlp=21)
    found = _shared(a, b, names=("a", "b"), which="candidates")
    assert (found.shared, found.sizes) == (None, (1, 1))
    assert math.isnan(found.p)
    text = str(RunComparison(("a", "b"), {}, (found,), ()))
    assert text == "candidates, a and b: models of other shapes"


def test_runs_with_the_same_test_prompts_are_compared_request_by_request(finished: Path, duplicate: Path):
    found = ns.compare(finished, duplicate)
    a, b = ns.open(finished).evaluations["shield"], ns.open(duplicate).evaluations["shield"]
    frame = found.to_frame()
    for metric in ("refusal", "over_refusal", "selectivity"):
        row = frame[
            (frame["measure"] == f"shield: {metric.replace('_', ' ')}") & (frame["run"] == found.names[1])
        ].iloc[0]
        gain = b.gain(a, metric)
        assert bool(row["paired"])
        assert (row["difference"], row["difference_low"], row["difference_high"]) == pytest.approx(
            tuple(gain), nan_ok=True
        )
        assert row["difference"] == 0
    assert found.differ == {}
    assert found.overlaps()["shared"].tolist() == found.overlaps()["size_a"].tolist()


def test_runs_with_other_test_prompts_are_compared_as_if_independent(
    compared: RunComparison, finished: Path, other_seed: Path
):
    a, b = ns.open(finished), ns.open(other_seed)
    x, y = a.evaluations["shield"].mean("refusal"), b.evaluations["shield"].mean("refusal")
    row = next(m for m in compared.measured if m.measure == "shield: refusal" and m.run == "seed-1")
    assert not row.paired
    assert row.value == y
    assert row.difference.value == pytest.approx(y.value - x.value)
    assert row.difference.low <= row.difference.value <= row.difference.high
    effects = {c.name: c.effect for c in b.proof.claims}
    for m in compared.measured:
        if m.run == "seed-1" and m.measure in effects:
            assert np.array_equal(m.value, effects[m.measure], equal_nan=True)


def test_an_independent_difference_is_that_of_normal_estimates_where_intervals_are_symmetric():
    a, b = Interval(0.6, 0.6 - 1.96 * 0.03, 0.6 + 1.96 * 0.03), Interval(0.25, 0.25 - 1.96 * 0.04, 0.25 + 1.96 * 0.04)
    found = difference(a, b)
    assert tuple(found) == pytest.approx((0.35, 0.35 - 1.96 * 0.05, 0.35 + 1.96 * 0.05))  # the variances add: 3, 4, 5
    back = difference(b, a)
    assert tuple(back) == pytest.approx((-found.value, -found.high, -found.low))


def test_an_independent_difference_covers_the_true_one_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        x, y = rng.binomial(40, 0.8), rng.binomial(30, 0.3)
        found = difference(rate(x, 40), rate(y, 30))
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_what_differs_between_the_runs_is_named_with_both_values(compared: RunComparison):
    assert compared.names == ("seed-0", "seed-1")
    assert set(compared.differ) >= {"seed", "splits", "data", "hold_out"}
    assert compared.differ["seed"] == ("0", "1")
    assert not {"k", "method", "model", "fingerprint", "prompts"} & set(compared.differ)
    assert "seed: seed-0 0, seed-1 1" in str(compared)


def test_three_runs_are_compared_with_the_first_and_their_sets_with_each_other(
    finished: Path, other_seed: Path, duplicate: Path
):
    found = ns.compare(finished, ns.open(other_seed), str(duplicate))
    assert found.names == ("seed-0", "seed-1", "duplicate")
    pairs = found.overlaps()[["a", "b"]].drop_duplicates().values.tolist()
    assert pairs == [["seed-0", "seed-1"], ["seed-0", "duplicate"], ["seed-1", "duplicate"]]
    measures = {m.measure for m in found.measured}
    assert len(found.measured) == 3 * len(measures)
    figure = found.figure()
    assert [t.name for t in figure.data] == list(found.names)
    json.loads(figure.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert "<table" in found._repr_html_()


def test_runs_in_folders_of_one_name_are_told_apart(finished: Path, tmp_path: Path):
    for name in ("a/out", "b/out"):
        shutil.copytree(finished, tmp_path / name)
    assert ns.compare(tmp_path / "a/out", tmp_path / "b/out").names == ("a/out", "b/out")


def test_a_run_without_a_step_is_compared_by_what_it_has(finished: Path, duplicate: Path):
    from neuronshield.run.manifest import read_manifest, write_manifest

    manifest = read_manifest(duplicate)
    assert manifest is not None
    write_manifest(duplicate, type(manifest)(manifest.study, {"find": manifest.steps["find"]}, manifest.files))
    found = ns.compare(finished, duplicate)
    assert found.overlaps()["set"].tolist() == ["candidates"]
    assert found.measured == ()


def test_too_few_runs_or_the_same_run_twice_are_one_line(finished: Path, tmp_path: Path):
    with pytest.raises(InputError, match="compare: give two runs or more"):
        ns.compare(finished)
    (tmp_path / "link").symlink_to(finished)
    with pytest.raises(InputError, match="compare: the same run was given twice"):
        ns.compare(finished, tmp_path / "link")
    with pytest.raises(InputError, match="holds no run"):
        ns.compare(finished, tmp_path)
