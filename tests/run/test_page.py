"""Parts of the page: escaped, aligned, and "n/a" where there is no number."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from neuronshield.run.page import drawing, interval, note, num, p_text, signed, spread, table


def test_every_cell_of_a_table_is_escaped_and_verdicts_are_marked():
    html = table(["<a>"], [["<b>", "passed"], [1, 2]], main=1)
    assert "<th>&lt;a&gt;</th>" in html
    assert ">&lt;b&gt;</td>" in html
    assert 'class="n passed"' in html
    assert html.count('<tr class="main">') == 1


def test_notes_are_escaped():
    assert note("<script>") == '<p class="note">&lt;script&gt;</p>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (num(None), "n/a"), (num(0.126), "0.13"), (num(0.126, "+.1f"), "+0.1"), (interval([0.5, None, 0.75]), "0.50 [n/a, 0.75]"),
        (signed([0.5, -0.25, 1.0]), "+0.50 [-0.25, +1.00]"), (spread(None), "n/a"), (spread([0.1, 0.0, 0.2]), "0.10 (0.00 to 0.20)"),
        (p_text(0.0004), "< 0.001"), (p_text(0.0312), "0.031"), (p_text(None), "n/a"),
    ],
)  # fmt: skip
def test_numbers_are_written_with_the_digits_that_matter(text: str, said: str):
    assert text == said


def test_a_figure_does_not_carry_the_library():
    html = drawing(go.Figure())
    assert html.startswith('<div class="figure">')
    assert len(html) < 10_000
