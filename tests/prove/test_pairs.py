"""Matched pairs: every per-pair field is cut together, donors are of other requests, effects are normalised."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import tiny
import torch
from one_neuron import ASK, TRUTH, set_of

import neuronshield as ns
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.pairs import ABLATIONS, MatchedPairs, PairRows, donors, match, measure

pytest_plugins = ["one_neuron"]


@pytest.fixture(scope="module")
def pairs(planted_model: ns.Model, confirm: ns.PromptSet) -> MatchedPairs:
    openings = openings_of(planted_model, confirm, refusals=["sorry"], compliances=["sure"])
    return measure(planted_model, match(confirm, seed=0)[0], opening_tokens(planted_model, openings), seed=5)


# -- cutting ----------------------------------------------------------------------------------------------------
def test_take_cuts_every_field_of_the_rows(pairs: MatchedPairs):
    rows = [7, 2, 2]
    some = pairs.take(rows)
    assert len(some) == 3
    for f in fields(PairRows):
        whole, part = getattr(pairs.rows, f.name), getattr(some.rows, f.name)
        assert len(whole) == 30, f.name
        assert len(part) == 3, f.name
        for a, i in zip(part, rows, strict=True):
            assert torch.equal(a, whole[i]) if isinstance(a, torch.Tensor) else a == whole[i], f.name


def test_take_cuts_a_field_that_is_added_later(pairs: MatchedPairs):
    @dataclass(frozen=True, eq=False)
    class More(PairRows):
        number: tuple[int, ...] = ()

    more = More(**{f.name: getattr(pairs.rows, f.name) for f in fields(PairRows)}, number=tuple(range(30)))
    cut = more.take(np.array([4, 1]))
    assert isinstance(cut, More)
    assert cut.number == (4, 1)


def test_a_part_gives_the_margins_of_its_rows(pairs: MatchedPairs):
    rows = np.array([11, 3, 20])
    condition = [pairs.ablate(set_of(TRUTH), kind) for kind in ABLATIONS]
    part = pairs.take(rows)
    mine = part.on_harmful([part.ablate(set_of(TRUTH), kind) for kind in ABLATIONS])
    np.testing.assert_allclose(mine, pairs.on_harmful(condition)[:, rows], atol=1e-4)


def test_one_third_of_the_requests_chooses_and_the_others_test(pairs: MatchedPairs):
    choosing, testing = pairs.split()
    chosen, tested = set(choosing.requests), set(testing.requests)
    assert (len(chosen), len(tested), len(chosen & tested)) == (5, 10, 0)
    assert (len(choosing), len(testing)) == (10, 20)  # every pair of a request is in the same part
    again = pairs.split()[0]
    np.testing.assert_array_equal(again.requests, choosing.requests)
    assert chosen != set(replace(pairs, seed=6).split()[0].requests)


def test_what_is_left_of_few_requests(pairs: MatchedPairs):
    one, two = (pairs.take(np.flatnonzero(np.isin(pairs.requests, ["pair:0-0", "pair:0-1"][:n]))) for n in (1, 2))
    assert [len(set(part.requests)) for part in two.split()] == [1, 1]
    assert [len(set(part.requests)) for part in one.split()] == [1, 1]  # the same one, with which nothing can pass


def test_the_work_done_is_counted_with_the_parts(pairs: MatchedPairs):
    before = pairs.work["margins"]
    part = pairs.take(np.arange(4))
    part.on_harmful([part.ablate(set_of(TRUTH)), None])
    part.on_harmful([part.ablate(set_of(TRUTH))], frozen=True)  # and the clean run whose norms are held
    assert pairs.work["margins"] - before == 8 + 8


# -- what ablations write ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_donors_are_of_the_same_cell_and_of_another_request(seed: int):
    """Two rows of each request in each cell: half of the other rows of a cell could be wrong."""
    cells = np.array(["en/text", "sw/text"] * 8, dtype=object)
    requests = np.array([f"r{i // 4}" for i in range(16)], dtype=object)
    found = donors(cells, requests, np.random.default_rng(seed))
    assert all(cells[i] == cells[j] and requests[i] != requests[j] for i, j in enumerate(found))


def test_a_cell_of_one_request_donates_to_itself():
    assert donors(np.array(["a", "a"]), np.array(["r", "r"]), np.random.default_rng(0)) == [0, 1]


def test_resampled_values_are_those_of_another_benign_prompt_of_the_cell(pairs: MatchedPairs):
    rows = pairs.rows
    for i, value in enumerate(rows.donor_values):
        same = [j for j in range(len(pairs)) if torch.equal(value, rows.benign_values[j])]
        assert any(rows.cells[j] == rows.cells[i] and rows.requests[j] != rows.requests[i] for j in same)


def test_mean_values_are_the_benign_means_of_the_cell(pairs: MatchedPairs):
    rows = pairs.rows
    for cell, which in pairs.by_cell().items():
        assert set(rows.cells[which]) == {str(cell)}
        torch.testing.assert_close(rows.mean_values[which[0]], rows.benign_values[which].mean(dim=0))


# -- effects ----------------------------------------------------------------------------------------------------
def test_normalised_effects_are_changes_over_the_clean_logit_difference(pairs: MatchedPairs):
    np.testing.assert_array_equal(pairs.differences, pairs.harmful_margins - pairs.benign_margins)
    assert pairs.clean_logit_difference.value == pytest.approx(pairs.differences.mean())
    assert pairs.normalised_effect(pairs.differences).value == pytest.approx(1)
    assert pairs.normalised_effect(pairs.differences / 4, np.arange(5)).value == pytest.approx(0.25)
    np.testing.assert_allclose(pairs.normalised_effects(np.stack([pairs.differences, -pairs.differences])), [1, -1])


def test_added_effects_are_measured_on_top_of_what_is_ablated(pairs: MatchedPairs):
    others = set_of((0, 2), (2, 8))
    free, _ = pairs.added_effects([TRUTH, TRUTH], [set_of(), others])
    margins = pairs.on_harmful([pairs.ablate(s) for s in (set_of(TRUTH), others, others | set_of(TRUTH))])
    np.testing.assert_allclose(free[0], pairs.harmful_margins - margins[0], atol=1e-5)
    np.testing.assert_allclose(free[1], margins[1] - margins[2], atol=1e-5)


def test_a_frozen_result_prints_in_one_line(pairs: MatchedPairs):
    assert repr(pairs) == "MatchedPairs(30 pairs in 2 cells)"
    assert repr(pairs.rows) == "PairRows(30 pairs in 2 cells)"
    with pytest.raises(AttributeError):
        pairs.seed = 1  # type: ignore[misc]


# -- matching ---------------------------------------------------------------------------------------------------
def test_random_matching_stays_in_the_cell_and_uses_every_benign_prompt():
    rows = [{k: v for k, v in row.items() if k != "pair_id"} for row in tiny.records()]
    found, matched = match(ns.PromptSet.from_records(rows), seed=1)
    assert not matched
    assert all(h.cell == b.cell and (h.label, b.label) == ("harmful", "benign") for h, b in found)
    assert len({b.id for _, b in found}) == len(found) == 30


@pytest.mark.parametrize(
    ("harmful", "benign", "copies", "n"), [(40, 2, 1, 2), (2, 40, 1, 2), (9, 6, 3, 6), (6, 6, 1, 6)]
)
def test_random_matching_uses_no_benign_request_twice(harmful: int, benign: int, copies: int, n: int):
    # two benign prompts cannot stand for forty independent requests, nor can copies of them
    numbers = {"harmful": harmful, "benign": benign}
    rows = [{"prompt": f"do {label} {i}", "label": label, "id": f"{label}-{i}-{copy}"} for label, k in numbers.items()
            for i in range(k) for copy in range(copies if label == "benign" else 1)]  # fmt: skip
    found, _ = match(ns.PromptSet.from_records(rows), seed=0)
    assert len(found) == len({b.cluster for _, b in found}) == len({h.cluster for h, _ in found}) == n
    others = {h.prompt for h, _ in match(ns.PromptSet.from_records(rows), seed=1)[0]}
    assert (others == {h.prompt for h, _ in found}) is (harmful <= benign)  # a random part of them, not the first ones


def test_no_cell_with_both_labels_is_one_line():
    rows = [row for row in tiny.records() if (row["language"] == "en") == (row["label"] == "harmful")]
    with pytest.raises(ns.InputError, match="no cell \\(language x modality\\) has both harmful and benign prompts"):
        match(ns.PromptSet.from_records([{k: v for k, v in r.items() if k != "pair_id"} for r in rows]), seed=0)


@pytest.mark.slow
def test_without_matched_pairs_a_random_benign_prompt_of_the_cell_is_used(planted_model: ns.Model):
    rows = [{k: v for k, v in row.items() if k != "pair_id"} for row in tiny.records()]
    proof = ns.verify(planted_model, set_of(TRUTH), ns.PromptSet.from_records(rows), **ASK)
    assert not proof.paired
    assert proof.n_pairs == 30
    assert proof.passed
