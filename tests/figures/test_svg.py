"""Marks, scales and colours of the static figures."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from neuronshield.figures import svg
from neuronshield.figures.svg import FIGURE_CSS, STEPS, Drawing, Scale, dark_steps, put_mark, put_text, shade, ticks

HOSTILE = "</svg><script>x()</script>\"'&"


def test_texts_are_escaped_and_the_figure_is_named_and_described():
    drawing = Drawing(HOSTILE, HOSTILE, width=10, height=20, marks=put_text(1, 2, HOSTILE), head=(), rows=())
    root = ElementTree.fromstring(drawing.svg("f"))
    spaces = "{http://www.w3.org/2000/svg}"
    title, described, text = root
    assert [e.tag for e in root] == [spaces + "title", spaces + "desc", spaces + "text"]
    assert title.text == described.text == text.text == HOSTILE
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", f"{title.get('id')} {described.get('id')}")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.62), (0, 0.004), (-3, 1700), (0.2, 0.2)])
def test_ticks_are_round_and_enclose_the_data(low: float, high: float):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    steps = {f"{b - a:.6g}" for a, b in pairwise(found)}
    assert len(steps) <= 1
    assert len(found) <= 9


def test_a_scale_keeps_numbers_inside_its_pixels():
    scale = Scale((0.0, 2.0), (10.0, 110.0))
    assert [scale(v) for v in (-1, 0, 0.5, 2, 9)] == [10, 10, 35, 110, 110]
    assert Scale((1.0, 1.0), (0.0, 5.0))(1.0) == 0  # no width, no division by zero


def test_shades_run_from_low_to_high():
    assert [shade(v, low=-1, high=1) for v in (-2, -1, 0, 1, 5)] == [0, 0, STEPS // 2, STEPS, STEPS]
    assert shade(math.inf, low=0, high=1) is None


def contrast(a: str, b: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))  # fmt: skip

    x, y = sorted((luminance(a), luminance(b)))
    return (y + 0.05) / (x + 0.05)


def test_numbers_are_read_on_every_shade_in_both_themes():
    light = re.findall(r"rect\.\w+\{fill:var\(--\w+,(#\w+)\)\}\.fig text\.\w+\{fill:var\(--\w+,(#\w+)\)\}", FIGURE_CSS)
    dark = re.findall(r"--[sd]\d+:(#\w+);--[sd]\d+t:(#\w+);", dark_steps())
    assert len(light) == len(dark) == 2 * (STEPS + 1)
    assert min(contrast(a, b) for a, b in [*light, *dark]) >= 4.5


def test_series_differ_in_shape_or_filling_too():
    def shape(series: int) -> str:
        return re.sub(r'class="([co])\d', r'class="\1', put_mark(0, 0, series))

    assert len({shape(i) for i in range(6)}) == 6
    assert svg.SERIES[0] in FIGURE_CSS
