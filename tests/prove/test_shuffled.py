"""Members kept of sets selected on shuffled labels, beside those of the tested set."""

from __future__ import annotations

import numpy as np
import planted
import pytest

import neuronshield as ns
from neuronshield.prove.pairs import MatchedPairs
from neuronshield.prove.shuffled import alone_kept, kept_on_shuffled


@pytest.fixture(scope="module")
def bench() -> planted.Bench:
    return planted.Bench()


def test_causes_are_counted_in_every_set_and_decoys_in_none(bench: planted.Bench):
    causes, decoys = sorted(bench.planted.causal), sorted(bench.planted.decoys)
    sets = [ns.NeuronSet(causes[:n] + decoys[n : len(causes)], **planted.SHAPE) for n in (len(causes), 2, 0, 3)]
    found = kept_on_shuffled(bench.pairs, sets[0], sets[1:])
    assert (found.set, found.shuffled, found.n) == (len(causes), (2, 0, 3), len(causes))


def test_each_neuron_is_ablated_once_and_only_the_first_sets_are_used(
    bench: planted.Bench, monkeypatch: pytest.MonkeyPatch
):
    conditions: list[int] = []
    ablate = MatchedPairs.ablate
    monkeypatch.setattr(MatchedPairs, "ablate", lambda self, *a: conditions.append(1) or ablate(self, *a))  # type: ignore[func-returns-value]
    found = kept_on_shuffled(bench.pairs, bench.causal, [bench.causal, bench.causal, bench.random[0]], sets=2)
    assert sum(conditions) == len(bench.causal)
    assert found.shuffled == (found.set, found.set)


def test_without_shuffled_sets_only_the_set_is_counted(bench: planted.Bench):
    assert kept_on_shuffled(bench.pairs, bench.causal, []).shuffled == ()


def test_members_pass_the_corrected_test_and_are_material_in_their_layer():
    members = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)]
    effect = np.array([0.5, 0.024, 0.026, 0.006, 0.004])  # least: 5 % of the layer's largest, and of 0.1
    assert alone_kept(members, np.full(5, 0.01), effect).tolist() == [True, False, True, True, False]
    p = np.array([0.01, 0.5, 0.03, 0.9, 0.9])  # 0.03 of rank 2 of 5 is q = 0.075
    assert alone_kept(members, p, np.full(5, 0.5)).tolist() == [True, False, False, False, False]
    assert alone_kept([], np.zeros(0), np.zeros(0)).tolist() == []
