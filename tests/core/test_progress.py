"""One line a step: what loops have done is counted once, and the remaining time is that of the kinds of work that are left."""

from __future__ import annotations

import pytest

from neuronshield.core.progress import Meter, bar, metered


def test_the_remaining_time_is_reckoned_for_each_kind_of_work_by_its_own_speed():
    meter = Meter({"run": 100, "answer": 10, "step": 5})
    meter.add("run", 50, seconds=5.0)
    meter.add("answer", 2, seconds=8.0)
    meter.add("step", 5, seconds=1.0)
    assert meter.remaining() == pytest.approx(50 * 0.1 + 8 * 4.0 + 0)


def test_work_that_has_not_begun_is_weighed_by_what_is_known():
    meter = Meter({"run": 10, "answer": 1})
    assert meter.remaining() == 0.0
    meter.add("run", 10, seconds=1.0)
    assert meter.remaining() == pytest.approx(20 * 0.1)  # an answer is taken to be as long as 20 runs


def test_more_work_than_expected_never_gives_a_negative_time():
    meter = Meter({"run": 2})
    meter.add("run", 5, seconds=1.0)
    assert meter.remaining() == 0.0


def test_inside_a_step_loops_that_are_shown_are_counted_and_others_are_not():
    """A unit of work runs loops of its own, which are not shown: they are counted once."""
    with metered("prove", {"run": 6}, show=False) as meter:
        with (
            bar(6, desc="verify", unit="run", show=True) as outer,
            bar(6, desc="margins", unit="run", show=False) as inner,
        ):
            inner(6)
            outer(6)
        with bar(None, desc="answer", unit="answer", show=True) as tick:
            tick(2)
    assert meter.done == {"run": 6, "answer": 2}
    assert all(seconds >= 0 for seconds in meter.seconds.values())


def test_outside_a_step_a_loop_has_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]):
    with bar(4, desc="capture", unit="prompt", show=True) as tick:
        tick(4)
    assert "capture" in capsys.readouterr().err
    with bar(4, desc="capture", unit="prompt", show=False) as tick:
        tick(4)
    assert capsys.readouterr().err == ""


def test_the_line_of_a_step_says_its_share_and_what_is_left(capsys: pytest.CaptureFixture[str]):
    with metered("prove", {"run": 4}, show=True), bar(4, desc="verify", unit="run", show=True) as tick:
        tick(1)
        tick(3)
    said = capsys.readouterr().err
    assert "prove" in said
    assert "left" in said
    assert "verify" not in said
