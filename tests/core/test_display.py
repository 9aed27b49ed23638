"""Tables fit a screen and escape their text; names that other packages add are not offered."""

from __future__ import annotations

import nnsight
import pandas as pd

from neuronshield.core.display import own_names, short_table

assert nnsight  # it adds `save` to every object when it is imported


def test_a_long_table_shows_its_first_rows_and_how_many_more():
    html = short_table(pd.DataFrame({"n": range(100)}))
    assert html.count("<td>") == 12
    assert "<td>11</td>" in html
    assert "<td>12</td>" not in html
    assert html.endswith("<p>88 more rows</p>")
    assert short_table(pd.DataFrame({"n": range(13)})).endswith("<p>1 more row</p>")
    assert "more" not in short_table(pd.DataFrame({"n": range(12)}))


def test_text_is_escaped():
    html = short_table(pd.DataFrame({"<b>": ["<script>"]}), title="<i>")
    assert "<script>" not in html
    assert "<i>" not in html
    assert "<b>" not in html.replace("<p><b>", "")


def test_the_save_that_nnsight_adds_is_not_offered():
    class Plain:
        pass

    class Hidden:
        __dir__ = own_names
        kept = 1

    assert "save" in dir(Plain())
    assert "save" not in dir(Hidden())
    assert "kept" in dir(Hidden())
