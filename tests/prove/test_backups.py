"""Self-repair on a planted circuit: backups are found where there are some, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from planted import SHAPE, Bench

import neuronshield as ns
from neuronshield.prove.backups import _because, search_backups


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.mark.slow
def test_backups_are_found_only_where_there_are_some(bench: Bench):
    assert not len(search_backups(bench.pairs, bench.causal).found(bench.pairs, least=0.01, alpha=0.05))
    other = Bench(n_backups=2)
    firsts = ns.NeuronSet(other.planted.backs.values(), **SHAPE)
    again = search_backups(other.pairs, firsts)
    assert set(again.found(other.pairs, least=0.01, alpha=0.05)) == other.planted.backups
    the_set, with_more = again.rounds
    assert the_set.effect.value < 0.05 < with_more.effect.value


def test_only_what_gains_an_effect_by_the_ablation_of_the_set_is_a_backup():
    alone, on_top = np.array([0.0, 0.5, -0.5, 0.0, 0.0]), np.array([0.3, 0.5, 0.0, 0.0, 0.0])
    last, other = np.array([0.3, 0.5, 0.0, 0.4, 0.4]), np.array([0.0, 0.5, -0.5, 0.0, 0.4])
    first, second = _because(*(v[:, None] for v in (alone, on_top, last, other)))[:, :, 0]
    assert first.tolist() == [0.3, 0, 0, 0, 0]  # a backup; a cause of its own; an anti-refusal neuron that falls silent
    assert second.tolist() == pytest.approx([0.3, 0, 0, 0.4, 0])  # a backup's backup; another neuron's backup
