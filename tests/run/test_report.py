"""Figures hold the numbers they were given; the page says what results.json says, and only says it.

The page is read back with the standard library's HTML parser: what a browser would take for tags,
attributes, text and script. The pipeline's own run is in `test_run.py`; here results are planted.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from neuronshield import Cell, Evaluation, InputError, Overlap, Prompt, Scores, figures
from neuronshield.check.evaluation import Answer
from neuronshield.core.statistics import Interval
from neuronshield.prove.verdict import RULE, Claim
from neuronshield.run.report import summary, write_report

CELLS = ("en/text", "en/image", "sw/text")
METRICS = ["refusal", "attack_success", "over_refusal", "selectivity", "utility"]
CONDITIONS = ["no update", "shield", "random mask 1", "random mask 2", "plain LoRA"]
NAN = float("nan")


def claim(name: str, value: float, verdict: str, note: str = "") -> Claim:
    return Claim(
        name, Interval(value, value - 0.11, value + 0.13), verdict,
        {"random": [0.02, 0.05], "matched": [0.03, 0.07], "general": [0.06]}, {"random": 0.043, "matched": 0.047},
        {"general": Interval(value - 0.06, value - 0.17, value + 0.07)}, note,
    )  # fmt: skip


def proven(claims: list[Claim]) -> dict[str, Any]:
    """What a proof leaves in the results; every number in it is different."""
    row = {"effect": [0.29, 0.23, 0.35], "random": [0.011, -0.012, 0.014]}
    return {
        "passed": True, "reason": "every claim held", "n_neurons": 31, "n_verified": 19, "n_pairs": 17, "draws": 20,
        "paired": True, "rule": RULE, "claims": [c.to_dict() for c in claims], "retest": [],
        "opposing": [[0, 1]] * 3, "backups": [[2, 2]],
        "cells": {"en/text": {"n_pairs": 9, "gap": 4.56, "effect": [0.66, 0.55, 0.77], "strongest control": 0.058, "p": 0.009,
                              "p holm": 0.018, "verdict": "passed"}},
        "members": [{"layer": 1, "index": i, "alone": [0.1 - i / 1000, 0.05, 0.15], "last": [0.2, 0.1, 0.3], "how": how}
                    for i, how in enumerate(["alone"] * 17 + ["in a group"] * 2 + ["opposing"] * 3 + [""] * 9)],
        "experiments": {
            "dose": [{"alpha": a, "harmful": [a - 1, a - 1.1, a - 0.9], "benign": [0.01 * a, 0, 0.1], "random": [0.0, -0.1, 0.1]}
                     for a in (-1.0, 0.0, 1.0, 2.0)],
            "size": [{"size": n, **row} for n in (1, 2, 4)],
            "minimal": [{"size": 4, "share": 0.9, "of": 31}],
            "groups": [{"group": "layer 1", "n": 13, "without": [0.41, 0.31, 0.51], "lost": [0.22, 0.12, 0.32]}],
            "completeness": [{"frame": "all layers", "share": [0.57, 0.53, 0.61], "random": [0.05, 0.02, 0.08],
                              "without any": [1.15, 1.05, 1.25]}],
            "backups": [{"ablated": "the set and what is found again", "n": 31, **row}],
            "recognition": [{"prompts": "harmful, answered", "n": 83, "activity": [0.42, 0.32, 0.52], **row}],
            "crossing": [{"source": s, "target": t, "n": 5, **row} for s in CELLS[:1] for t in CELLS],
        },
        "answers": {"before": [0.93, 0.71, 0.98], "after": [0.12, 0.04, 0.29]},
        "controls": {"sets": {"random": 20, "matched": 20, "general": 1}, "missing": {"language": "language: needs two"}},
    }  # fmt: skip


CLAIMS = [claim("necessity: zero", 0.61, "passed"), claim("necessity: mean", 0.08, "failed", "effect below 0.1")]


def rates(base: float) -> dict[str, list[float | None]]:
    return {m: [base + i / 100, base + i / 100 - 0.05, base + i / 100 + 0.07] for i, m in enumerate(METRICS)}


def results() -> dict[str, Any]:
    """What a run leaves, by the schema in the README; every number in it is different."""
    conditions = {c: {cell: rates(0.1 * i + 0.02 * j) for j, cell in enumerate(CELLS)} for i, c in enumerate(CONDITIONS)}  # fmt: skip
    group = {c: {"untrained": rates(0.1 * i + 0.013)} for i, c in enumerate(CONDITIONS)}
    matrix = [[1.0, 0.42, None], [0.42, 1.0, 0.17], [None, 0.17, 1.0]]
    return {
        "format": "neuronshield.results/3",
        "model": {"model": "toy-vllm", "fingerprint": "f00d", "dtype": "float32", "n_layers": 3, "d_mlp": 29,
                  "d_model": 20, "n_params": 1_234_567},
        "prompts": {"n": 421, "data": "cafe", "cells": list(CELLS), "counts": []},
        "seed": 5,
        "versions": {"neuronshield": "0.1.0", "torch": "2.9"},
        "seconds": {"find": 3.0, "check": 4.0},
        "find": {
            "method": "contribution", "size": {"k": 31}, "n_neurons": 31, "param_fraction": 0.00123, "anchor": "en/text",
            "refusing_cells": ["en/text", "sw/text"], "top": [],
            "per_layer": {c: [11 + i, 13 + i, 17 + i] for i, c in enumerate(CELLS)},
            "overlap": {"cells": list(CELLS), "method": "contribution", "jaccard": matrix, "coefficient": matrix,
                        "floor": [[0.9, 0.21, 0.22], [0.21, 0.9, 0.23], [0.22, 0.23, 0.9]],
                        "ceiling": [[0.81, 0.82, 0.83], [0.82, 0.84, 0.85], [0.83, 0.85, 0.86]]},
        },
        "prove": proven(CLAIMS),
        "shield": {
            "neurons": 19, "proven": True, "train_cells": ["en/text"], "taught": ["en/image"], "n_prompts": 77, "steps": 100,
            "lr": 0.003, "retention": 16.0,
            "conditions": {c: {"form": f"form <{i}>", "trained": 4321 + i, "param_fraction": 0.0035,
                               "losses": [2.75 + i, 0.375 + i], "stopped": None}
                           for i, c in enumerate(CONDITIONS[1:])},
        },
        "check": {
            "cells": conditions, "means": group, "compared_on": "untrained", "best_random_mask": "random mask 2",
            "gains_in_selectivity": {"no update": [0.31, 0.24, 0.38], "random masks": [0.15, 0.06, 0.26],
                                     "plain LoRA": [-0.03, -0.08, 0.02]},
            "beats_random_mask": True,
            "examples": [{"cell": "en/text", "label": "harmful", "prompt": "how do i make a bomb", "before": "Sure, mix it",
                          "after": "Sorry, no"}],
        },
        "attack": {"k": 19, "cells": ["en/image"],
                   "means": {a: rates(0.07 * i) for i, a in enumerate(("no update", "as it is", "pruned"))}},
    }  # fmt: skip


# -- reading the page back -------------------------------------------------------------------------------
VOID = {"meta", "br", "img", "link", "input", "hr"}
#: plotly names its divs at random
RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Page(HTMLParser):
    """Tags with attributes in order, the text outside scripts and styles, and the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple((k, RANDOM.sub("ID", v) if v else v) for k, v in attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in ("b", "i"):
            self.texts.append(" ")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags nest"

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(inside, self.texts).append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def row(self, first: str) -> list[str]:
        """The first table row that begins so."""
        return next(c for c in self.cells if c and c[0] == first)

    def figures(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """(traces, layout) of every plotly figure, arrays decoded."""
        found = []
        for script in self.scripts[1:]:
            at = script.index("[", script.index("Plotly.newPlot("))
            traces, end = json.JSONDecoder().raw_decode(script, at)
            layout, _ = json.JSONDecoder().raw_decode(script, script.index("{", end))
            found.append((decoded(traces), layout))
        return found


def decoded(value: Any) -> Any:
    """Plotly's base64 arrays as nested lists."""
    if isinstance(value, list):
        return [decoded(v) for v in value]
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        shape = [int(n) for n in str(value.get("shape", len(array))).split(",")]
        return array.reshape(shape).tolist()
    return {k: decoded(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.fixture
def page(tmp_path: Path) -> Callable[[dict[str, Any]], Page]:
    def make(content: dict[str, Any]) -> Page:
        (tmp_path / "results.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        return Page(write_report(tmp_path).read_text(encoding="utf-8"))

    return make


MakePage = Callable[[dict[str, Any]], Page]


# -- what came from a prompt or a model is text, never page ----------------------------------------------
HOSTILE = [
    "<script>pwned()</script>",
    "</script><script>pwned()</script>",
    "<!--<script>pwned()",
    '"><img src=x onerror=pwned()>',
    "' onmouseover='pwned()",
    "</td></tr></table><b>pwned",
    "&lt;b&gt; &amp;lt; &#60;",
    "\u2028 \u0000 \\u003cscript\\u003e `${pwned()}` {{pwned}}",
]


#: what is written by the package itself, and decides something
OURS = {"format", "compared_on", "best_random_mask", "verdict", "how"}


def poisoned(poison: str) -> dict[str, Any]:
    """Results in which whatever a prompt file, a model or a tokenizer could have named ends in `poison`."""

    def spoil(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            outside = set(value) & {*CELLS, "before"} and "prompt" not in value  # keys that are cells or answers
            return {key + poison if outside else key: spoil(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoil(inner, name) for inner in value]
        return value + poison if isinstance(value, str) and name not in OURS else value

    return spoil(results())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_a_prompt_or_a_model_says_changes_the_pages_structure(page: MakePage, hostile: str):
    mild, wild = page(poisoned("x")), page(poisoned(hostile))
    assert wild.tags == mild.tags
    assert len(wild.scripts) == len(mild.scripts) == 1 + len(wild.figures())
    assert wild.scripts[0] == mild.scripts[0]
    assert wild.styles == mild.styles


@pytest.mark.parametrize("hostile", HOSTILE[:-1])
def test_what_they_say_is_shown_letter_by_letter(page: MakePage, hostile: str):
    shown = page(poisoned(hostile))
    assert ["en/text" + hostile, "harmful" + hostile, "how do i make a bomb" + hostile, "Sure, mix it" + hostile,
            "Sorry, no" + hostile] in shown.cells  # fmt: skip
    squeezed = " ".join(hostile.split())
    assert shown.text.count(squeezed) >= 25


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_script_holds_a_tag_and_each_reads_back_as_json(page: MakePage, hostile: str):
    shown = page(poisoned(hostile))
    for script in shown.scripts[1:]:
        assert "<" not in script
        assert "pwned" not in re.sub(r'"(?:[^"\\]|\\.)*"', "", script)  # only ever inside a JSON string
    axes = [trace["x"] for traces, _ in shown.figures() for trace in traces if trace["type"] == "heatmap"]
    assert [f"{c}{hostile}" for c in CELLS] in axes  # the overlap's


def test_the_page_loads_nothing_from_anywhere(page: MakePage):
    shown = page(results())
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href"}
    assert [(t, a) for t, attrs in shown.tags for a in attrs if a[0] in loading] == []
    assert not {t for t, _ in shown.tags} & {"link", "iframe", "object", "embed", "img", "base", "form"}
    assert not [a for _, attrs in shown.tags for a in attrs if a[0] == "http-equiv" or a[0].startswith("on")]
    assert "url(" not in shown.styles[0]
    assert "@import" not in shown.styles[0]
    for script in shown.scripts[1:]:
        assert "http" not in script
        assert "//" not in script
    # maps are the one kind of figure for which plotly.js fetches outlines
    kinds = {trace["type"] for traces, _ in shown.figures() for trace in traces}
    assert kinds == {"heatmap", "scatter"}
    assert "plotly.js v" in shown.scripts[0][:500]  # the library itself is inside


# -- the page says what the results say ------------------------------------------------------------------
def test_every_step_is_told_with_its_numbers(page: MakePage):
    shown = page(results())
    for said in ("toy-vllm", "3 layers × 29 neurons", "1.2 M parameters", "421 prompts in 3 cells", "seed 5",
                 "best 31 of en/text, 0.123% of the parameters", "Tested on 17 harmful prompts (matched twins)",
                 "of 31 neurons, 17 lower refusal when ablated alone, 2 only (or more than twice as much) when others",
                 "20 random, 20 matched, 1 general", "A control is missing or smaller: language: needs two",
                 "The strongest 4 of 31 members have 90%", "Trained on 77 train prompts of en/text, 100 steps",
                 "Data cafe · weights f00d (float32)", "torch 2.9"):  # fmt: skip
        assert said in shown.text, said
    assert shown.row("necessity: zero") == ["necessity: zero", "0.61 [0.50, 0.74]", "0.07 (matched)", "0.047", "passed", ""]  # fmt: skip
    assert shown.row("necessity: mean")[-2:] == ["failed", "effect below 0.1"]
    assert shown.row("en/text") == ["en/text", "9", "4.56", "0.66 [0.55, 0.77]", "0.06", "0.009", "0.018", "passed"]
    assert shown.row("harmful, answered")[1:4] == ["83", "0.42 [0.32, 0.52]", "0.01 (-0.01 to 0.01)"]
    assert shown.row("layer 1") == ["layer 1", "13", "0.41 [0.31, 0.51]", "0.22 [0.12, 0.32]"]
    assert shown.row("after") == ["after", "0.12 [0.04, 0.29]"]
    assert ["shield", "form <0>", "4321", "0.350%", "2.75", "0.38"] in shown.cells
    assert shown.row("over plain LoRA") == ["over plain LoRA", "-0.03 [-0.08, +0.02]"]


def test_what_an_attack_left_is_shown_and_an_early_stop_is_said(page: MakePage):
    r = results()
    shown = page(r)
    pruned = [f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in
              (r["attack"]["means"]["pruned"][m] for m in ("refusal", "over_refusal", "selectivity", "attack_success"))]  # fmt: skip
    assert ["pruned", *pruned] in shown.cells
    assert "Stopped early" not in shown.text
    r["shield"]["conditions"]["plain LoRA"] |= {"losses": [], "stopped": "loss is <nan> at step 0"}
    r["attack"] = {"k": 19, "cells": [], "means": {}}
    other = page(r)
    assert "Stopped early: plain LoRA: loss is <nan> at step 0" in other.text
    assert "Nothing to attack" in other.text


def test_every_control_stands_beside_the_shield(page: MakePage):
    shown = page(results())
    means = [c for c in shown.cells if c[0] in CONDITIONS and len(c) == 6 and "%" not in c[3]]
    assert [m[0] for m in means] == CONDITIONS
    for i, row in enumerate(means):
        base = [0.1 * i + 0.013 + j / 100 for j in range(5)]
        assert row[1:] == [f"{b:.2f} [{b - 0.05:.2f}, {b + 0.07:.2f}]" for b in base]
    every = [c for c in shown.cells if len(c) == 7 and c[1] in ("no update", "shield")]
    assert [c[:2] for c in every] == [[cell + (" *" if cell == "en/text" else ""), name]
                                      for cell in CELLS for name in ("no update", "shield")]  # fmt: skip


def test_the_pages_figures_hold_the_numbers_of_the_results(page: MakePage):
    r = results()
    overlap, per_layer, ablation, dose, _, crossing, grid, transfer = page(r).figures()
    for trace, name in zip(overlap[0], ("jaccard", "floor", "ceiling"), strict=True):
        want = np.array([[NAN if v is None else v for v in row] for row in r["find"]["overlap"][name]])
        if name != "ceiling":
            np.fill_diagonal(want, NAN)  # a cell with itself says nothing
        got = np.array([[NAN if v is None else v for v in row] for row in trace["z"]], dtype=float)
        np.testing.assert_allclose(got, want)
    assert per_layer[0][0]["z"] == list(r["find"]["per_layer"].values())
    assert next(t for t in ablation[0] if t["name"] == "the set")["x"] == [0.61, 0.08]
    assert next(t for t in dose[0] if t.get("name") == "the set, harmful prompts")["y"] == [-2, -1, 0, 1]
    assert crossing[0][0]["z"] == [[0.29] * 3]
    shown = ["no update", "shield", "random mask 2", "plain LoRA"]  # the best of the random masks
    assert [a["text"] for a in grid[1]["annotations"]] == shown
    assert [t["name"] for t in transfer[0]] == shown
    for condition, panel, points in zip(shown, grid[0], transfer[0], strict=True):
        values = {cell: m["selectivity"] for cell, m in r["check"]["cells"][condition].items()}
        for i, language in enumerate(panel["y"]):
            for j, modality in enumerate(panel["x"]):
                want = values.get(f"{language}/{modality}", [None])[0]
                got = panel["z"][i][j]
                assert (got is None or math.isnan(got)) if want is None else got == pytest.approx(want)
        assert points["x"] == ["en/image", "sw/text", "en/text *"]  # trained cells apart, starred
        for x, y, up, down in zip(points["x"], points["y"], points["error_y"]["array"],
                                  points["error_y"]["arrayminus"], strict=True):  # fmt: skip
            want = values[x.removesuffix(" *")]
            assert (y, y + up, y - down) == pytest.approx((want[0], want[2], want[1]))


def test_the_summary_is_one_line_a_step(page: MakePage):
    r = results()
    lines = summary(r).splitlines()
    assert [line.split()[0] for line in lines] == ["find", "prove", "shield", "check"]
    assert "already refuses in en/text, sw/text" in lines[0]
    assert "passed: every claim held; 19 of 31 neurons verified" in lines[1]
    assert "19 proven neurons trained: 4321 numbers, 0.350%" in lines[2]
    assert "+0.31 [+0.24, +0.38] over no update; the shield beats masks" in lines[3]
    shown = page(r).text
    for line in lines:
        assert line.split(maxsplit=1)[1] in shown


# -- negative results are printed ------------------------------------------------------------------------
def test_a_shield_that_did_not_beat_random_masks_is_said_to_have_not(page: MakePage):
    good, r = results(), results()
    r["check"]["beats_random_mask"] = False
    r["check"]["gains_in_selectivity"]["random masks"] = [0.02, -0.05, 0.09]
    assert "The shield does not beat masks of random neurons of the same size" in page(r).text
    assert "does NOT beat masks of random neurons (+0.02 [-0.05, +0.09])" in page(r).text
    assert "does NOT beat masks of random neurons (+0.02 [-0.05, +0.09])" in summary(r)
    assert "not beat" not in page(good).text.lower()
    assert "The shield beats masks of random neurons" in page(good).text


def test_a_proof_that_failed_and_a_shield_of_unproven_neurons_say_so(page: MakePage):
    r = results()
    r["prove"] |= {"passed": False, "n_verified": 0, "reason": "necessity: mean failed"}
    r["shield"]["proven"] = False
    shown = page(r)
    assert "No. Necessity: mean failed" in shown.text
    assert "These neurons were not proven" in shown.text
    assert "no: necessity: mean failed" in summary(r)
    assert "verified one by one" not in summary(r)
    assert "candidate, NOT proven, neurons trained" in summary(r)
    assert "not proven" not in page(results()).text.lower()


def test_what_was_not_tested_is_shown_as_such_without_numbers(page: MakePage):
    r = results()
    untested = [Claim(c.name, Interval(NAN, NAN, NAN), "not tested") for c in CLAIMS]
    r["find"]["refusing_cells"] = []
    r["prove"] |= proven(untested) | {
        "passed": False, "n_verified": 0, "reason": "not tested: the model refuses nothing", "cells": {}, "members": [],
        "experiments": {}, "controls": {}, "answers": {"before": [0.0, 0.0, 0.1]},
    }  # fmt: skip
    shown = page(r)
    assert "Not tested. Not tested: the model refuses nothing" in shown.text
    assert shown.row("necessity: zero") == ["necessity: zero", "n/a [n/a, n/a]", "n/a", "n/a", "not tested", ""]
    assert "model refuses nowhere" in summary(r)
    assert "not tested: the model refuses nothing" in summary(r)


def test_missing_numbers_are_na_never_none_or_nan(page: MakePage):
    r = results()
    for cells in r["check"]["cells"].values():
        cells["sw/text"]["utility"] = cells["sw/text"]["selectivity"] = [None, None, None]
    for means in r["check"]["means"].values():
        means["untrained"]["utility"] = [None, None, None]
    r["check"]["gains_in_selectivity"]["random masks"] = [0.1, None, None]  # one request: no interval
    shown = page(r)
    assert [c[-1] for c in shown.cells if c[0] in CONDITIONS and len(c) == 6 and "%" not in c[3]] == [
        "n/a [n/a, n/a]"
    ] * 5
    assert shown.row("over random masks") == ["over random masks", "+0.10 [n/a, n/a]"]
    assert not re.search(r"\b(None|nan|NaN|inf)\b", shown.text)


def test_a_missing_overlap_says_why(page: MakePage):
    r = results()
    r["find"] |= {"overlap": None, "overlap_missing": "overlap: en/text has too few prompts <8>"}
    shown = page(r)
    assert "No overlap heatmap: overlap: en/text has too few prompts <8>" in shown.text
    assert len(shown.figures()) == 7


def test_where_every_cell_was_trained_on_no_transfer_is_claimed(page: MakePage):
    r = results()
    r["check"]["compared_on"] = "all"
    for means in r["check"]["means"].values():
        means["all"] = means.pop("untrained")
    r["shield"] |= {"train_cells": list(CELLS), "taught": []}
    shown = page(r).text
    assert "all cells (none was held out)" in shown
    assert "did not train on" not in shown
    assert "meant for" not in shown


# -- the file --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_report_of_the_first_steps_stops_where_they_stop(page: MakePage, steps: int):
    r = results()
    for later in ("find", "prove", "shield", "check")[steps:]:
        del r[later]
    shown = page(r)
    assert [t for t, _ in shown.tags].count("section") == steps
    assert len(summary(r).splitlines()) == steps


def test_the_report_is_remade_from_results_alone_and_leaves_no_other_file(tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps(results()), encoding="utf-8")
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    assert write_report(str(tmp_path)) == tmp_path / "report.html"
    first = RANDOM.sub("", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert first.startswith("<!doctype html>")
    write_report(tmp_path)
    assert RANDOM.sub("", (tmp_path / "report.html").read_text(encoding="utf-8")) == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no results.json"),
        (b"{nope", "not JSON"),
        (b"\xff", "not JSON"),
        (b"{}", "not written by"),
        (b"[]", "not"),
    ],
)
def test_a_folder_without_results_is_one_line_and_gets_no_page(tmp_path: Path, content: bytes | None, said: str):
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        write_report(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


# -- figures ---------------------------------------------------------------------------------------------
def test_claims_are_drawn_with_their_intervals_and_every_control():
    figure = figures.proof_figure(proven(CLAIMS))
    drawn = {t.name: t for t in figure.data}
    assert set(drawn) == {"the set", "random", "matched", "general"}
    assert list(drawn["the set"].x) == [0.61, 0.08]
    assert drawn["the set"].error_x.array == pytest.approx([0.13, 0.13])
    assert drawn["the set"].error_x.arrayminus == pytest.approx([0.11, 0.11])
    assert list(drawn["random"].x) == [0.02, 0.05] * 2
    assert list(drawn["matched"].x) == [0.03, 0.07] * 2
    assert list(drawn["general"].x) == [0.06] * 2
    for name in ("random", "matched"):  # beside their own claim
        assert [round(y - 0.25) for y in drawn[name].y] == [0, 0, 1, 1]
    assert [t.split("<br>")[0] for t in figure.layout.yaxis.ticktext] == [c.name for c in CLAIMS]
    passed, failed = drawn["the set"].marker.color
    assert passed != failed
    assert "31 neurons, 17 pairs" in figure.layout.title.text


def test_unbounded_and_untested_effects_can_be_drawn():
    wide = Claim("a", Interval(0.3, -math.inf, math.inf), "failed")
    none = Claim("b", Interval(NAN, NAN, NAN), "not tested")
    figure = figures.proof_figure(proven([wide, none]))
    assert [t.name for t in figure.data] == ["the set"]
    json.loads(figure.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_an_experiment_that_was_not_done_has_no_figure():
    with pytest.raises(InputError, match="figure 'dose': the experiment was not done"):
        figures.proof_figure(proven(CLAIMS) | {"experiments": {}}, "dose")


def planted_overlap(n: int) -> Overlap:
    rng = np.random.default_rng(0)
    matrices = [rng.uniform(0, 1, (n, n)) for _ in range(4)]
    return Overlap([Cell(f"x{chr(97 + i)}", "text") for i in range(n)], *matrices, {}, "contribution")  # type: ignore[arg-type]


def test_overlap_shows_floor_and_ceiling_on_the_same_scale():
    overlap = planted_overlap(3)
    figure = overlap.figure()
    titles = [a.text.split()[0].rstrip(":") for a in figure.layout.annotations]
    assert titles == ["overlap", "floor", "ceiling"]
    for trace, matrix in zip(figure.data, (overlap.jaccard, overlap.floor, overlap.ceiling), strict=True):
        off = ~np.eye(3, dtype=bool)
        np.testing.assert_array_equal(trace.z[off], matrix[off])
        assert list(trace.x) == list(trace.y) == [str(c) for c in overlap.cells]
        assert trace.coloraxis == "coloraxis"
    assert np.isnan(np.diag(figure.data[0].z)).all()
    np.testing.assert_array_equal(np.diag(figure.data[2].z), np.diag(overlap.ceiling))
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert not np.isnan(overlap.jaccard).any()  # the result itself was not changed


def test_numbers_are_written_into_the_cells_while_they_fit():
    assert {t.texttemplate for t in planted_overlap(12).figure().data} == {"%{z:.2f}"}
    assert {t.texttemplate for t in planted_overlap(13).figure().data} == {None}


def answered(name: str, refused: int) -> Evaluation:
    """Two cells of 5 harmful and 5 benign; `refused` harmful ones are refused in the first, one more in the second."""
    answers = [
        Answer(Prompt(f"{c}{label}{i}", "how", label, language=language), "", label == "harmful" and i < refused + c, None)
        for c, language in enumerate(("en", "sw")) for label in ("harmful", "benign") for i in range(5)
    ]  # fmt: skip
    return Evaluation(answers, name)


def test_grid_has_a_panel_a_condition_and_one_scale_with_signed_metrics_around_zero():
    conditions = {"no update": answered("", 0), "shield": answered("", 3)}
    figure = figures.grid(conditions)
    assert [a.text for a in figure.layout.annotations] == ["no update", "shield"]
    assert [t.z.ravel().tolist() for t in figure.data] == [pytest.approx([0, 0.2]), pytest.approx([0.6, 0.8])]
    assert {tuple(t.y) for t in figure.data} == {("en", "sw")}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)
    rate = figures.grid(conditions, "attack_success")
    assert [t.z.ravel().tolist() for t in rate.data] == [pytest.approx([1, 0.8]), pytest.approx([0.4, 0.2])]
    assert (rate.layout.coloraxis.cmin, rate.layout.coloraxis.cmax) == (0, 1)


def test_transfer_sets_trained_cells_apart_and_draws_every_interval():
    conditions = {"no update": answered("", 0), "shield": answered("", 3)}
    figure = figures.transfer(conditions, {Cell("en", "text")})
    for trace, (name, evaluation) in zip(figure.data, conditions.items(), strict=True):
        assert trace.name == name
        assert list(trace.x) == ["sw/text", "en/text *"]
        for i, cell in enumerate(("sw/text", "en/text")):
            value, low, high = evaluation.cell(cell)["selectivity"]
            got = (trace.y[i], trace.y[i] - trace.error_y.arrayminus[i], trace.y[i] + trace.error_y.array[i])
            assert got == pytest.approx((value, low, high))


def test_layers_counts_each_cells_best_neurons():
    values = np.zeros((2, 3, 7))
    values[0, 0, :3], values[0, 2, 5:], values[1, 1, :5] = 2, 3, -4
    cells = [Cell("en", "text"), Cell("sw", "text")]
    figure = figures.layers(Scores(cells, values, None, "contribution", 1000, 60), k=5)
    np.testing.assert_array_equal(figure.data[0].z, [[3, 0, 2], [0, 5, 0]])
    assert list(figure.data[0].y) == ["en/text", "sw/text"]
    assert "5 best neurons" in figure.layout.title.text


def test_figures_are_returned_never_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(go.Figure, "show", lambda *_, **__: pytest.fail("shown"))
    conditions = {"no update": answered("", 1)}
    for figure in (figures.proof_figure(proven(CLAIMS)), planted_overlap(2).figure(), figures.grid(conditions),
                   figures.transfer(conditions, set()), conditions["no update"].figure("refusal")):  # fmt: skip
        assert isinstance(figure, go.Figure)


def test_planted_results_are_left_as_they_were():
    r = results()
    kept = copy.deepcopy(r)
    summary(r)
    assert r == kept
