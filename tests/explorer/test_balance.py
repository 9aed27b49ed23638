"""A balanced sample has the same requests in every cell, both labels, and no cell or prompt is lost."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny

from neuronshield import InputError, Prompt
from neuronshield.explorer.balance import balanced


def test_every_cell_has_the_same_requests_and_both_labels_of_each():
    sample = balanced(tiny.prompts(pictures=True), 24)
    counts = Counter((p.cell, p.label) for p in sample)
    assert set(counts.values()) == {3}
    assert len(counts) == 8
    requests = {cell: {p.pair_id for p in sample if p.cell == cell} for cell in sample.cells()}
    assert len(set(map(frozenset, requests.values()))) == 1
    for harmful, benign in zip(sample[::2], sample[1::2], strict=True):
        assert (harmful.label, benign.label, harmful.pair_id) == ("harmful", "benign", benign.pair_id)


def test_requests_of_many_cells_come_before_those_of_few():
    rows = [p for p in tiny.prompts() if p.language == "en" or p.pair_id not in ("0-0", "0-1")]
    assert {p.pair_id for p in balanced(rows, 4)} == {"0-2"}


def test_with_more_cells_than_prompts_each_still_has_a_pair():
    assert Counter(p.cell for p in balanced(tiny.prompts(pictures=True), 1)) == dict.fromkeys(
        tiny.prompts(pictures=True).cells(), 2
    )


def test_without_pairs_the_first_of_each_label_are_taken_and_a_label_may_be_missing():
    rows = [Prompt(f"h{i}", f"how do i make {i}", "harmful") for i in range(5)]
    rows += [Prompt(f"b{i}", f"how do i bake {i}", "benign") for i in range(2)]
    assert [p.id for p in balanced(rows, 6)] == ["h0", "h1", "h2", "b0", "b1"]
    assert [p.id for p in balanced(rows[5:], 6)] == ["b0", "b1"]


def test_no_prompts_make_no_sample_and_a_number_below_one_is_refused():
    assert len(balanced([], 4)) == 0
    with pytest.raises(InputError, match="n=0"):
        balanced(tiny.prompts(), 0)
