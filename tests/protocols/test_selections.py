"""Selections of both modalities, and how far they agree, on activations whose true neurons are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.find.folds import FOLDS
from neuronshield.find.running import Group, by_group
from neuronshield.protocols.bench import Bench, Part, part_of_modality, two_modalities
from neuronshield.protocols.selections import Addresses, Masks, overlapped, pick_by_probe, pick_by_rule
from neuronshield.prove.answers import Answers

LAYERS, WIDTH, REQUESTS = 2, 97, 64
TRUE = {0: (5, 11), 1: (3,)}
OTHER = {0: (40,), 1: (60, 61)}


def addresses(true: dict[int, tuple[int, ...]]) -> Addresses:
    return frozenset((layer, i) for layer, members in true.items() for i in members)


def bench(modality: str, true: dict[int, tuple[int, ...]], *, seed: int, language: str = "en") -> Bench:
    """Activations of noise, in which harmful prompts raise the true neurons; every prompt behaves as its label says."""
    rng = np.random.default_rng(seed)
    rows, values = [], rng.normal(size=(2 * REQUESTS, LAYERS, WIDTH))
    for i in range(2 * REQUESTS):
        label = ("harmful", "benign")[i // REQUESTS]
        more: dict[str, Any] = {"images": (tiny.picture(i),)} if modality != "text" else {}
        rows.append(ns.Prompt(f"{modality}-{i}", f"{label} {i % REQUESTS}", label, language=language, modality=modality,
                              pair_id=str(i % REQUESTS), **more))  # fmt: skip
        for layer, members in true.items():
            values[i, layer, list(members)] += 8 * (label == "harmful")
    none = Part((), (), np.array([], dtype=object), torch.zeros(0, LAYERS, WIDTH), np.zeros((2, 0)))
    nothing = Answers((), np.zeros(0), np.zeros(0))
    return Bench(modality, tuple(rows), torch.from_numpy(values).float(), np.ones(len(rows), dtype=bool), confirm=none, test=none,
                 answers=nothing, benign_margins=np.zeros(0))  # fmt: skip


def stats(benches: list[Bench]) -> ns.Stats:
    """Norms of one, and the groups that `Stats` needs."""
    ones = np.ones((LAYERS, WIDTH))
    groups = {
        Group("benign", "en", "text", 0): by_group(benches[0].values[:2].numpy(), np.zeros(2, dtype=int), None)[0]
    }
    return ns.Stats(groups, ones, ones, "last_prompt", 10**6, 10)


def whole(benches: list[Bench]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [np.ones(len(b.prompts), dtype=bool) for b in benches], [b.harmful for b in benches]


@pytest.fixture
def alike() -> list[Bench]:
    return [bench("text", TRUE, seed=0), bench("image", TRUE, seed=1)]


@pytest.fixture
def unlike() -> list[Bench]:
    return [bench("text", TRUE, seed=0), bench("image", OTHER, seed=1)]


def test_the_probe_chooses_the_true_neurons_of_each_modality(unlike: list[Bench]):
    found = pick_by_probe(unlike)(*whole(unlike))
    assert found == (addresses(TRUE), addresses(OTHER))


@pytest.mark.parametrize("rule", ["precise_shield", "ss_neurons"])
def test_a_rule_chooses_the_true_neurons_of_each_modality(unlike: list[Bench], rule: str):
    found = pick_by_rule(rule, unlike, stats(unlike), part=2.5 / WIDTH)(*whole(unlike))
    for members, true in zip(found, (TRUE, OTHER), strict=True):
        assert members is not None
        assert addresses(true) <= members


def test_one_anchor_chooses_what_both_modalities_have(alike: list[Bench], unlike: list[Bench]):
    sets = [pick_by_rule("one_anchor", b, stats(b), part=2.5 / WIDTH)(*whole(b)) for b in (alike, unlike)]
    assert sets[0][0] == sets[0][1]
    assert sets[0][0] is not None
    assert addresses(TRUE) <= sets[0][0]
    assert not sets[1][0]


def test_cells_without_english_are_left_to_the_rules_that_need_none():
    benches = [bench(m, TRUE, seed=i, language="sw") for i, m in enumerate(("text", "image"))]
    assert pick_by_rule("ss_neurons", benches, stats(benches), part=0.05)(*whole(benches)) == (None, None)
    assert None not in pick_by_rule("precise_shield", benches, stats(benches), part=0.05)(*whole(benches))


def test_the_same_neurons_overlap_as_far_as_the_selection_is_reliable(alike: list[Bench]):
    pick = pick_by_probe(alike)
    found = overlapped(pick, alike, [s or frozenset() for s in pick(*whole(alike))], selected="set", seed=0)
    assert found.jaccard == found.coefficient == 1
    assert found.across == pytest.approx(found.reliability, abs=0.1)
    assert found.reliability > 0.8
    assert not found.benign_null > 0.2  # NaN where benign prompts choose none


def test_other_neurons_do_not_overlap_however_reliable(unlike: list[Bench]):
    pick = pick_by_probe(unlike)
    found = overlapped(pick, unlike, [s or frozenset() for s in pick(*whole(unlike))], selected="set", seed=0)
    assert found.jaccard == found.across == 0
    assert found.reliability > 0.8


def test_halves_share_no_request_between_the_modalities(alike: list[Bench]):
    """Every call of the selection is given the same requests of both modalities, or none of them."""
    seen: list[tuple[set[str], ...]] = []

    def pick(used: Masks, high: Masks) -> tuple[Addresses | None, ...]:
        rows = [
            {p.cluster for p, x, h in zip(b.prompts, u, b.harmful, strict=True) if x and h}
            for b, u in zip(alike, used, strict=True)
        ]
        seen.append(tuple(rows))
        return frozenset({(0, 1)}), frozenset({(0, 1)})

    overlapped(pick, alike, [frozenset(), frozenset()], selected="set", seed=0)
    halves = [rows for rows in seen if rows[0]]
    assert len(halves) == 2 * (FOLDS - 1)
    for text, image in halves:
        assert text == image
        assert 0.3 * REQUESTS < len(text) < 0.7 * REQUESTS


def test_few_labelled_prompts_choose_nothing(alike: list[Bench]):
    used = [np.arange(len(b.prompts)) % REQUESTS < 7 for b in alike]
    assert pick_by_probe(alike)(used, [b.harmful for b in alike]) == (None, None)


# -- prompts ------------------------------------------------------------------------------------------------
def test_prompts_of_a_modality_are_spread_over_cells():
    rows = tiny.prompts(pictures=True)
    harmful, benign = part_of_modality(rows, "image", split="discover", most=10, seed=0)
    assert {p.label for p in harmful} == {"harmful"}
    assert {p.label for p in benign} == {"benign"}
    assert [sum(p.language == language for p in harmful) for language in ("en", "sw")] == [5, 5]
    assert part_of_modality(rows, "image", split="discover", most=10, seed=0)[0] == harmful
    assert two_modalities(rows) == ("text", "image")
