"""Cores that other processes use, or that a control group does not grant, get no threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuronshield.core import threads
from neuronshield.core.threads import free_cores, leave_busy_cores


@pytest.fixture
def four_cores(monkeypatch, tmp_path):
    """Four cores whose idle ticks grow, while they are watched, by given shares of the window."""

    def made(shares: list[float], limit: str = "max 100000") -> tuple[Path, Path]:
        stat, quota = tmp_path / "stat", tmp_path / "cpu.max"
        quota.write_text(limit)
        ticks = os.sysconf("SC_CLK_TCK") * threads.WINDOW

        def write(times: float) -> None:
            rows = [f"cpu{i} 5 0 5 {100 + round(times * share * ticks)} 0 0 0" for i, share in enumerate(shares)]
            stat.write_text("\n".join(["cpu 20 0 20 400 0 0 0", *rows, "intr 5"]))

        write(0)
        monkeypatch.setattr(threads.time, "sleep", lambda _: write(1))
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
        return stat, quota

    return made


@pytest.mark.parametrize(
    ("shares", "limit", "expected"),
    [
        ([1, 1, 1, 1], "max 100000", (4, 4)),
        ([1, 0, 1, 0], "max 100000", (2, 4)),
        ([0, 0, 0, 0], "max 100000", (1, 4)),
        ([1, 1, 1, 1], "200000 100000", (2, 2)),
        ([1, 1, 1, 1], "50000 100000", (1, 1)),
    ],
)
def test_free_cores_are_the_idle_ones_within_the_limit_of_the_control_group(four_cores, shares, limit, expected):
    stat, quota = four_cores(shares, limit)
    assert free_cores(stat=stat, quota=quota) == expected


def test_without_counters_the_load_of_the_last_minute_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (2.9, 0, 0))
    assert free_cores(stat=tmp_path / "none", quota=tmp_path / "none") == (1, 4)


@pytest.mark.parametrize(("given", "free", "expected"), [("3", 1, "3"), (None, 1, "1"), (None, 4, None)])
def test_threads_are_limited_only_where_cores_are_busy_and_the_user_set_no_number(monkeypatch, given, free, expected):
    monkeypatch.setattr(threads, "free_cores", lambda: (free, 4))
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads.os, "environ", {} if given is None else {"OMP_NUM_THREADS": given})
    leave_busy_cores()
    assert threads.os.environ.get("OMP_NUM_THREADS") == expected
