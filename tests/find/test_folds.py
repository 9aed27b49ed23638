"""Folds: one fold a request, dealt evenly in every cell and label, and halved evenly."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import tiny

from neuronshield import PromptSet
from neuronshield.find.folds import FOLDS, SPLITS, folds_of


def rows(counts: dict[tuple[str, str], int], *, start: int = 0) -> PromptSet:
    """So many prompts of each (language, label), of requests that no other row shares."""
    return PromptSet.from_records(
        [{"id": f"{language}{label}{i}", "prompt": f"{language} {label} {i}", "label": label, "language": language,
          "modality": "text"} for (language, label), n in counts.items() for i in range(start, start + n)]
    )  # fmt: skip


def test_every_split_halves_the_folds_and_each_two_folds_are_apart_equally_often():
    assert len({frozenset(s) for s in SPLITS}) == 7
    for first, second in SPLITS:
        assert len(first) == len(second) == FOLDS // 2
        assert first | second == set(range(FOLDS))
    apart = Counter(
        pair for s in SPLITS for pair in combinations(range(FOLDS), 2) if (pair[0] in s[0]) != (pair[1] in s[0])
    )
    assert set(apart.values()) == {4}
    # every three folds lie in exactly one half, so that leaving a fold out of every half gives each three folds once
    threes = Counter(three for s in SPLITS for half in s for three in combinations(sorted(half), 3))
    assert set(threes.values()) == {1}
    assert len(threes) == 56


@pytest.mark.parametrize("seed", range(3))
def test_a_request_has_one_fold_whatever_the_order_of_the_rows(seed: int):
    prompts = tiny.prompts()
    folds = dict(zip([p.id for p in prompts], folds_of(prompts, seed), strict=True))
    for request in {p.cluster for p in prompts}:
        assert len({folds[p.id] for p in prompts if p.cluster == request}) == 1
    backwards = prompts[::-1]
    assert dict(zip([p.id for p in backwards], folds_of(backwards, seed), strict=True)) == folds
    assert folds_of(prompts, seed) != folds_of(prompts, seed + 1)


def test_folds_of_every_label_and_cell_are_even():
    counts = {("en", "harmful"): 21, ("en", "benign"): 16, ("sw", "harmful"): 10, ("sw", "benign"): 7}
    prompts = rows(counts)
    found = Counter((p.language, p.label, fold) for p, fold in zip(prompts, folds_of(prompts, 0), strict=True))
    for (language, label), n in counts.items():
        sizes = [found[language, label, fold] for fold in range(FOLDS)]
        assert sum(sizes) == n
        assert max(sizes) - min(sizes) <= 1
