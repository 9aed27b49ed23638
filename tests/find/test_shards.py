"""Shards: every prompt is in one, a shard is of one group where there are enough prompts, and little is held at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

import neuronshield as ns
from neuronshield.find import shards
from neuronshield.find.groups import Group
from neuronshield.find.shards import Row, shards_by_group


def rows(n: int, groups: int) -> Iterator[Row]:
    for i in range(n):
        yield ns.Prompt(str(i), f"how {i}", "benign"), Group("benign", "en", "text", fold=i * 7 % groups)


@pytest.mark.parametrize(("n", "groups"), [(0, 1), (3, 2), (50, 1), (101, 3), (200, 13)])
@pytest.mark.parametrize("held", [20, 1000])
def test_every_prompt_is_in_one_shard(monkeypatch: pytest.MonkeyPatch, n: int, groups: int, held: int):
    monkeypatch.setattr(shards, "PROMPTS", 10)
    monkeypatch.setattr(shards, "HELD", held)
    found = list(shards_by_group(rows(n, groups)))
    assert Counter(p.id for shard in found for p, _ in shard) == Counter(map(str, range(n)))
    assert max(map(len, found), default=0) <= 10
    assert all(key.fold == int(p.id) * 7 % groups for shard in found for p, key in shard)


def test_shards_are_of_one_group_until_the_rows_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "PROMPTS", 10)
    kinds = [len({key for _, key in shard}) for shard in shards_by_group(rows(95, 3))]
    assert kinds[:9] == [1] * 9
    assert len(kinds) == 10


@pytest.mark.parametrize(("name", "value"), [("HELD", 20), ("HELD_BYTES", 20 * 1100)])
def test_no_more_is_read_than_may_be_held(monkeypatch: pytest.MonkeyPatch, name: str, value: int):
    monkeypatch.setattr(shards, "PROMPTS", 10)
    monkeypatch.setattr(shards, name, value)
    read = given = 0

    def counted() -> Iterator[Row]:
        nonlocal read
        for row in rows(300, 30):
            read += 1
            yield row

    for shard in shards_by_group(counted()):
        assert read - given <= 22
        given += len(shard)
    assert given == 300


def test_the_same_rows_give_the_same_shards():
    first, second = ([[p.id for p, _ in s] for s in shards_by_group(rows(700, 5))] for _ in range(2))
    assert first == second
