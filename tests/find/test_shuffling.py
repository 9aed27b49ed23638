"""Shuffled labels: one coin a request in every cell; other rows in one order of requests; numbers of labels stay."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny

import neuronshield as ns
from neuronshield.find.shuffling import shuffled_labels


def counts(prompts: ns.PromptSet, labels: list[str]) -> Counter[tuple[str, str]]:
    return Counter((str(p.cell), label) for p, label in zip(prompts, labels, strict=True))


def test_a_request_keeps_or_swaps_its_labels_in_every_cell_at_once():
    prompts, rng = tiny.prompts(pictures=True), np.random.default_rng(0)
    swapped: Counter[str | None] = Counter()
    for _ in range(200):
        labels = shuffled_labels(prompts, rng)
        moved = {(p.pair_id, p.label != label) for p, label in zip(prompts, labels, strict=True)}
        assert len(moved) == 15  # 15 requests, 4 cells, 2 labels
        assert counts(prompts, labels) == counts(prompts, [p.label for p in prompts])
        swapped.update(request for request, was in moved if was)
    assert all(70 <= n <= 130 for n in swapped.values())  # of 200 coins, 99.99 %
    assert len(swapped) == 15


def unmatched(**columns: str) -> ns.PromptSet:
    """Requests with one label each, in both languages: the same words are one request through their `pair_id`."""
    rows = [{**row, "pair_id": f"{row['pair_id']}-{row['label']}", **columns} for row in tiny.records()]
    return ns.PromptSet.from_records(rows)


def test_rows_without_a_counterpart_are_dealt_the_labels_of_their_cell_alike_in_every_cell():
    prompts, rng = unmatched(), np.random.default_rng(1)
    seen: Counter[tuple[str | None, str]] = Counter()
    for _ in range(200):
        labels = shuffled_labels(prompts, rng)
        assert counts(prompts, labels) == counts(prompts, [p.label for p in prompts])
        dealt = {(p.pair_id, label) for p, label in zip(prompts, labels, strict=True)}
        assert len(dealt) == 30  # the same label in both languages
        seen.update(dealt)
    assert all(70 <= seen[p.pair_id, "harmful"] <= 130 for p in prompts)


def test_the_numbers_of_each_label_stay_where_they_differ():
    prompts = ns.PromptSet(
        [p for p in unmatched() if p.label == "harmful" or p.pair_id in ("0-0-benign", "1-1-benign")]
    )
    before = counts(prompts, [p.label for p in prompts])
    assert before["en/text", "benign"] == 2
    rng = np.random.default_rng(2)
    assert all(counts(prompts, shuffled_labels(prompts, rng)) == before for _ in range(50))


def test_a_request_that_is_matched_in_one_cell_only_goes_the_same_way_in_the_other():
    """In Swahili the benign rows have no counterpart: those of swapped requests are called harmful first."""
    rows = [p for p in tiny.prompts() if p.language == "en" or p.label == "benign"]
    others = [
        replace(p, id=f"{p.id}-x", pair_id=f"{p.pair_id}-x")
        for p in tiny.prompts(languages=["sw"])
        if p.label == "harmful"
    ]
    prompts, rng = ns.PromptSet([*rows, *others]), np.random.default_rng(3)
    together, n = 0, 0
    for _ in range(100):
        labels = dict(zip((p.id for p in prompts), shuffled_labels(prompts, rng), strict=True))
        for p in rows:
            if p.language == "sw":
                together += labels[p.id] == labels[f"en-text-{p.pair_id}-benign"]
                n += 1
    assert together / n > 0.8  # independent orders would give one half


def test_the_order_of_rows_and_the_other_rows_do_not_matter():
    prompts = tiny.prompts()
    labels = dict(zip((p.id for p in prompts), shuffled_labels(prompts, np.random.default_rng(5)), strict=True))
    turned = ns.PromptSet(list(prompts)[::-1])
    again = dict(zip((p.id for p in turned), shuffled_labels(turned, np.random.default_rng(5)), strict=True))
    assert again == labels


@pytest.mark.parametrize("make", [tiny.prompts, unmatched])
def test_every_draw_is_another(make: object):
    prompts, rng = make(), np.random.default_rng(0)  # type: ignore[operator]
    assert len({tuple(shuffled_labels(prompts, rng)) for _ in range(50)}) == 50
