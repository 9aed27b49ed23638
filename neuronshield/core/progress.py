"""Progress: one bar for each loop, or one line for a step of many loops, with the time that remains.

A loop says how much it has done through `bar`. Inside `metered` no loop shows a bar of its own: what they do is added to the line of the
step. The remaining time is reckoned for each kind of work by itself: what is expected of it, minus what is done, times the seconds that
one piece of it has taken so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Meter", "bar", "metered"]

#: Seconds of a kind of work relative to those of a run under an intervention, until some of it has been done.
WEIGHTS = {"prompt": 2.0, "run": 1.0, "answer": 20.0, "step": 60.0}


@dataclass
class Meter:
    """How much of a step is done.

    >>> meter = Meter({"run": 10, "answer": 4})
    >>> meter.add("run", 10, seconds=2.0)
    >>> meter.add("answer", 1, seconds=1.0)
    >>> meter.remaining()
    3.0

    Attributes:
        expected: pieces of each kind of work.
        done: of these.
        seconds: that they took.
    """

    expected: Mapping[str, float]
    done: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, n: float, *, seconds: float) -> None:
        """Count work that was done.

        Args:
            kind: of work, such as "run".
            n: pieces.
            seconds: that they took.
        """
        self.done[kind] = self.done.get(kind, 0) + n
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def remaining(self) -> float:
        """Seconds that the rest takes; 0 before anything is done."""
        known = {kind: self.seconds[kind] / n for kind, n in self.done.items() if n}
        weighed = sum(WEIGHTS.get(kind, 1.0) * n for kind, n in self.done.items())
        unit = sum(self.seconds.values()) / weighed if weighed else 0.0
        return sum(
            max(0.0, n - self.done.get(kind, 0)) * known.get(kind, WEIGHTS.get(kind, 1.0) * unit)
            for kind, n in self.expected.items()
        )


_METER: ContextVar[tuple[Meter, Any] | None] = ContextVar("meter", default=None)


@contextmanager
def metered(desc: str, expected: Mapping[str, float], *, show: bool) -> Iterator[Meter]:
    """A context in which all loops are shown as one line: the share of the step that is done, and the time that remains.

    >>> with metered("prove", {"run": 4}, show=False) as meter, bar(4, desc="verify", unit="run", show=True) as tick:
    ...     tick(3)
    >>> meter.done
    {'run': 3}

    Args:
        desc: name of the step.
        expected: pieces of each kind of work.
        show: show the line.
    """
    from tqdm.auto import tqdm

    meter = Meter(expected)
    form = "{desc:7} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=desc, disable=not show, leave=False, bar_format=form) as line:
        line.last_print_t = 0.0  # nothing was drawn yet
        token = _METER.set((meter, line))
        try:
            yield meter
        finally:
            _METER.reset(token)


@contextmanager
def bar(total: float | None, *, desc: str, unit: str, show: bool) -> Iterator[Callable[[int], None]]:
    """What a loop is to be told of the pieces that it has done; shown as a bar, or as a part of the step's line.

    >>> with bar(3, desc="capture", unit="prompt", show=False) as tick:
    ...     tick(3)

    Args:
        total: pieces; None where it is not known.
        desc: label of the bar.
        unit: kind of work: "prompt", "run", "answer" or "step".
        show: show a bar.
    """
    outer = _METER.get()
    if not show:
        yield lambda _: None
        return
    if outer is None:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=desc, unit=unit, leave=False) as own:
            yield own.update
        return
    meter, line = outer
    last = time.perf_counter()

    def tick(n: int) -> None:
        nonlocal last
        now = time.perf_counter()
        meter.add(unit, n, seconds=now - last)
        last = now
        if not line.disable and now - line.last_print_t > line.mininterval:
            _redraw(line, meter.remaining())

    yield tick


def _redraw(line: Any, left: float) -> None:
    """Show the share that is done and the time that remains."""
    elapsed = line.format_dict["elapsed"]
    line.n = elapsed / (elapsed + left) if elapsed + left else 0.0
    line.set_postfix_str(f"{line.format_interval(left)} left", refresh=False)
    line.refresh()
    line.last_print_t = time.perf_counter()
