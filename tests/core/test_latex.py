"""Tables for papers: what a text says cannot change the table, and numbers are those of the frame."""

from __future__ import annotations

import pandas as pd
import pytest
import tiny
from planted_results import CLAIMS, proof

import neuronshield as ns
from neuronshield.check.cells import Answer
from neuronshield.core.latex import SPECIAL, latex_table


def rows(text: str) -> list[list[str]]:
    lines = [line.removesuffix(" \\\\") for line in text.splitlines() if line.endswith(" \\\\")]
    return [line.split(" & ") for line in lines]


def test_every_character_with_a_meaning_is_escaped():
    text = latex_table(pd.DataFrame({"a_b": ["".join(SPECIAL) + "\n\\input{x}"]}))
    assert rows(text) == [["a b"], ["".join(SPECIAL.values()) + r" \textbackslash{}input\{x\}"]]
    assert text.count("\\\\") == 2  # no line break but those of the rows


@pytest.mark.parametrize("nothing", [None, float("nan"), float("inf"), pd.NA])
def test_what_is_unknown_is_a_dash(nothing: object):
    frame = pd.DataFrame({"x": pd.Series(["a", nothing], dtype=object)})
    assert rows(latex_table(frame))[1:] == [["a"], ["--"]]


def test_the_ends_of_an_interval_stand_in_the_column_of_its_value():
    frame = pd.DataFrame(
        {"n": [3, 4], "m": [0.5, float("nan")], "m_low": [0.126, 1.0], "m_high": [0.9, 1.0], "k_low": [1.0, 2.0]}
    )
    text = latex_table(frame)
    assert text.startswith("\\begin{tabular}{rrr}\n\\toprule\nn & m & k low")
    assert rows(text)[1:] == [["3", "0.50 {[}0.13, 0.90{]}", "1.00"], ["4", "--", "2.00"]]


def test_whole_numbers_have_no_digits_and_others_as_many_as_asked():
    assert rows(latex_table(pd.DataFrame({"a": [2], "b": [0.12345]}), digits=3))[1] == ["2", "0.123"]


def test_claims_cells_and_scores_have_their_tables(llama: ns.Model):
    head, first, _ = rows(proof(CLAIMS).to_latex())
    assert head == ["claim", "effect", "strongest control", "kind", "p", "verdict"]
    assert first == ["necessity: zero", "0.61 {[}0.50, 0.74{]}", "0.07", "matched", "0.047", "passed"]
    answers = [Answer(ns.Prompt("1", "How?", "harmful"), "Sorry.", refused=True, right=None)]
    head, only = rows(ns.Evaluation(answers).to_latex(metrics=["refusal", "utility"]))
    assert head == ["language", "modality", "n harmful", "n benign", "refusal", "utility"]
    assert only[:3] == ["en", "text", "1"]
    assert only[4].startswith("1.00 {[}")
    assert only[5] == "--"
    scores = ns.contrast(ns.capture(llama, tiny.prompts(), progress=False))
    table = rows(scores.to_latex(k=2))
    assert table[0] == ["cell", "rank", "layer", "index", "contribution"]
    assert len(table) == 1 + 2 * len(scores.cells)
