"""Parts of the page: escaped, aligned, and "n/a" where there is no number."""

from __future__ import annotations

import json

import pytest

from neuronshield.figures.svg import Drawing
from neuronshield.run.glossary import TERMS, glossary, key_of
from neuronshield.run.page import figure, interval, note, num, p_text, signed, spread, table, term


def test_every_cell_of_a_table_is_escaped_and_verdicts_are_marked():
    html = table(["<a>"], [["<b>", "passed"], [1, 2]], main=1)
    assert '<th scope="col">&lt;a&gt;</th>' in html
    assert ">&lt;b&gt;</td>" in html
    assert 'class="n passed"' in html
    assert html.count('<tr class="main">') == 1


def test_notes_are_escaped():
    assert note("<script>") == '<p class="note">&lt;script&gt;</p>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (num(None), "n/a"), (num(float("nan")), "n/a"), (num(0.126), "0.13"), (num(0.126, "+.1f"), "+0.1"), (interval([0.5, None, 0.75]), "0.50 [n/a, 0.75]"),
        (signed([0.5, -0.25, 1.0]), "+0.50 [-0.25, +1.00]"), (spread(None), "n/a"), (spread([0.1, 0.0, 0.2]), "0.10 (0.00 to 0.20)"),
        (p_text(0.0004), "< 0.001"), (p_text(0.0312), "0.031"), (p_text(None), "n/a"),
    ],
)  # fmt: skip
def test_numbers_are_written_with_the_digits_that_matter(text: str, said: str):
    assert text == said


def test_a_figure_stands_beside_its_numbers_and_neither_can_end_the_element():
    html = figure(Drawing("a<b", "d", 10, 20, marks="", head=("</script>",), rows=((0.5, "<&>"),)), "f")
    assert html.count("</script>") == 1
    assert json.loads(html.split('json">')[1].split("</script>")[0]) == {"head": ["</script>"], "rows": [[0.5, "<&>"]]}
    assert "<figcaption>a&lt;b</figcaption>" in html


def test_an_interval_in_a_table_moves_to_the_next_line_as_a_whole():
    html = table(["a"], [["x", "0.16 [0.12, 0.24] (1 of 2 <cells>)", "0.1 [<b>]"]])
    assert '>0.16 <span class="ends">[0.12, 0.24]</span> (1 of 2 &lt;cells&gt;)</td>' in html
    assert ">0.1 [&lt;b&gt;]</td>" in html


def test_a_term_must_be_in_the_glossary():
    assert 'href="#term-matched-pair"' in term("matched pair", "pairs")
    assert all(f'id="{key_of(name)}"' in glossary() for name in TERMS)
    with pytest.raises(AssertionError):
        term("twin")
