"""Charts put numbers where they belong: positions are read back from the SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from neuronshield.figures.charts import Chart, Curve, Estimate, curve_chart, forest_chart, heatmap_chart, side_by_side

NAN = float("nan")


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(f"<g>{chart.marks}</g>")


def texts(chart: Chart) -> list[str]:
    return [t.text or "" for t in parsed(chart).iter("text")]


def test_a_heatmap_has_a_number_in_every_cell_and_says_where_there_is_none():
    chart = heatmap_chart(
        [[0.25, None], [NAN, 1.0]], rows=["en", "sw"], columns=["text", "image"], hover=[["a", "b"], ["c", "<d>"]]
    )
    assert texts(chart) == ["text", "image", "en", "0.25", "n/a", "sw", "n/a", "1.00"]
    rects = list(parsed(chart).iter("rect"))
    assert [r.get("class") for r in rects] == ["s2", "none", "none", "s10"]
    assert [r[0].text for r in rects] == ["a", "b", "c", "<d>"]
    assert rects[0].get("x") == rects[2].get("x")
    assert rects[0].get("y") == rects[1].get("y")


def test_the_diagonal_of_a_comparison_with_itself_is_empty():
    chart = heatmap_chart([[None, 0.5], [None, None]], rows=["a", "b"], columns=["a", "b"])
    assert texts(chart) == ["a", "b", "a", "0.50", "b", "n/a"]


def test_a_scale_below_zero_is_diverging_with_zero_in_its_middle():
    rects = parsed(heatmap_chart([[-1.0, 0.0, 1.0]], rows=["x"], columns=["a", "b", "c"], domain=(-1, 1))).iter("rect")
    assert [r.get("class") for r in rects] == ["d0", "d5", "d10"]


def axis(chart: Chart) -> dict[float, float]:
    """Pixels of the numbers of the horizontal axis."""
    return {float(t.text or ""): float(t.get("x") or 0) for t in parsed(chart).iter("text")
            if t.get("class") == "q k" and re.fullmatch(r"-?[\d.]+", t.text or "")}  # fmt: skip


def pixel(numbers: dict[float, float], value: float) -> float:
    (a, x), *_, (b, y) = sorted(numbers.items())
    return x + (value - a) / (b - a) * (y - x)


def test_a_forest_draws_estimates_intervals_and_every_control_on_its_axis():
    rows = [
        Estimate(
            "one",
            "passed",
            {"the set": (0.6, 0.5, 0.7)},
            controls={"random": [0.1, 0.2, -0.1], "a": [0.3], "b": [], "next": [0.4]},
        ),
        Estimate("two", "not tested", {"the set": (None, None, None)}),
    ]
    chart = forest_chart(rows, axis="effect")
    numbers = axis(chart)
    mark = next(c for c in parsed(chart).iter("circle") if c.find("title") is not None)
    assert float(mark.get("cx") or 0) == pytest.approx(pixel(numbers, 0.6), abs=0.1)
    assert mark[0].text == "one, the set: 0.60 [0.50, 0.70]"
    line = next(
        x
        for x in parsed(chart).iter("line")
        if (x.get("class") or "").startswith("c0") and x.get("y1") == mark.get("cy")
    )
    assert [float(line.get(k) or 0) for k in ("x1", "x2")] == pytest.approx(
        [pixel(numbers, v) for v in (0.5, 0.7)], abs=0.1
    )
    cloud = max((p.get("d") or "" for p in parsed(chart).iter("path")), key=len)
    places = [float(v) for v in re.findall(r"M(-?[\d.]+) ", cloud)]
    assert places == pytest.approx([pixel(numbers, v) for v in (0.1, 0.2, -0.1)], abs=0.1)
    assert {"one", "passed", "two", "not tested", "random", "a", "next"} <= set(texts(chart))
    assert [t.get("class") for t in parsed(chart).iter("text") if t.text == "passed"] == ["q k passed"]


def test_an_open_end_of_an_interval_reaches_the_edge():
    chart = forest_chart([Estimate("one", "", {"x": (0.5, None, NAN)})], axis="effect")
    line = next(x for x in parsed(chart).iter("line") if (x.get("class") or "").startswith("c0"))
    numbers = axis(chart)
    assert float(line.get("x1") or 0) == min(numbers.values())
    assert float(line.get("x2") or 0) == max(numbers.values())


def test_curves_go_through_their_points_and_leave_out_what_is_unknown():
    curve = Curve(
        "a", [0, 1, 2, 3], [(0.0, 0.0, 0.1), (NAN, 0, 1), (0.5, 0.4, 0.6), (1.0, None, None)], series=0, ranges="bars"
    )
    chart = curve_chart([curve], titles=("x", "y"))
    path = next(p for p in parsed(chart).iter("path") if "line" in (p.get("class") or ""))
    points = [tuple(map(float, p.split())) for p in (path.get("d") or "")[1:].split("L")]
    assert len(points) == 3
    (x0, y0), (x2, y2), (x3, y3) = points
    assert (x2 - x0) / (x3 - x0) == pytest.approx(2 / 3, abs=0.01)
    assert (y2 - y0) / (y3 - y0) == pytest.approx(0.5, abs=0.01)
    assert y3 < y0  # larger is higher
    bars = [x for x in parsed(chart).iter("line") if x.get("class") == "c0 w1"]
    assert len(bars) == 2


def test_many_points_have_no_marks_and_categories_are_equally_far_apart():
    many = curve_chart([Curve("a", list(range(40)), [(v, None, None) for v in range(40)], series=0)], titles=("x", "y"))
    assert len([c for c in parsed(many).iter("circle") if c.find("title") is not None]) == 0
    chart = curve_chart([Curve("a", [1, 4, 64], [(1, 1, 1)] * 3, series=0)], titles=("x", "y"), places=[1, 4, 64])
    xs = [float(c.get("cx") or 0) for c in parsed(chart).iter("circle") if c.find("title") is not None]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_charts_that_do_not_fit_begin_a_new_row():
    made = side_by_side([Chart("", 300, 10), Chart("", 300, 50), Chart("", 300, 20)], gap=10, most=650)
    assert (made.width, made.height) == (610, 50 + 10 + 20)
    assert re.findall(r"translate\((\d+) (\d+)\)", made.marks) == [("0", "0"), ("310", "0"), ("0", "60")]
