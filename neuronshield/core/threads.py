"""How many cores are free, so that a run beside other processes does not start more threads than there are cores for them.

Threads of a small model wait for one another at every layer. With more of them than free cores, each wait lasts until the operating
system gives the last one its turn, and a run takes many times as long.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["free_cores", "leave_busy_cores"]

WINDOW = 0.15  # seconds in which the cores are watched


def free_cores(*, stat: Path = Path("/proc/stat"), quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> tuple[int, int]:
    """Cores that are idle now, at least 1, and cores that this process may use.

    >>> free, usable = free_cores()
    >>> 1 <= free <= usable
    True

    Args:
        stat: Linux's counters of time by core; without such a file the load of the last minute is taken.
        quota: limit of the control group that this process is in, if there is one.
    """
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    usable = min(len(mine), _allowed(quota))
    try:
        before = _idle(stat, mine)
        time.sleep(WINDOW)
        free = (_idle(stat, mine) - before) / os.sysconf("SC_CLK_TCK") / WINDOW
    except (OSError, ValueError):
        free = len(mine) - os.getloadavg()[0] if hasattr(os, "getloadavg") else len(mine)
    return max(1, min(usable, round(free))), max(1, usable)


def _idle(stat: Path, cores: set[int]) -> int:
    """Ticks that some cores were idle, since the machine was started."""
    rows = (line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu"))
    return sum(int(row[4]) for row in rows if row[0][3:].isdigit() and int(row[0][3:]) in cores)


def _allowed(quota: Path) -> int:
    """Whole cores of a control group's limit; many where it has none."""
    try:
        given, period = quota.read_text(encoding="ascii").split()
        return max(1, int(given) // int(period))
    except (OSError, ValueError):
        return 2**16


def leave_busy_cores() -> None:
    """Have libraries that are loaded from now on start no more threads than there are free cores, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    free, _ = free_cores()
    if free < (os.cpu_count() or 1):
        os.environ["OMP_NUM_THREADS"] = str(free)
