"""The page shows what results.json holds, and nothing from it becomes part of the page's structure.

The page is read back with the standard library's HTML parser: what a browser would take for tags,
attributes, text and script. The pipeline's own run is in `test_pipeline.py`; here results are planted. What a browser does with
the page is in `test_report_in_browser.py`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from planted_results import CELLS, CLAIMS, CONDITIONS, proof, results

from neuronshield import InputError, NeuronSet
from neuronshield.core.statistics import Interval
from neuronshield.prove.tables import AnswerRate, Claim, ControlSummary, Experiments
from neuronshield.run.answer_files import COLUMNS
from neuronshield.run.folder import FORMAT, write_results
from neuronshield.run.report import summary, write_report

NAN = float("nan")


# -- reading the page back -------------------------------------------------------------------------------
VOID = {"meta", "br", "img", "link", "input", "hr"}
#: Elements of figures: their attributes are positions, which depend on the width of texts.
SVG = {"svg", "text", "rect", "line", "path", "circle", "polygon", "g", "desc"}
#: Attributes whose values the page decides, whatever the results say.
FIXED = {"class", "href", "id", "type", "role", "aria-describedby", "src", "style", "name", "content"}


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
        self.tags.append((tag, tuple(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in ("b", "i", "a", "span"):
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

    @property
    def structure(self) -> list[tuple[str, tuple[tuple[str, str | None], ...]]]:
        """Every element with its attributes, and the values of those that the results have no say in."""
        return [
            (tag, () if tag in SVG else tuple((k, v if k in FIXED else None) for k, v in attrs))
            for tag, attrs in self.tags
        ]

    @property
    def tables(self) -> list[str]:
        """The scripts that hold numbers of figures."""
        return self.scripts[:-1]

    def figure(self, key: str) -> list[list[Any]]:
        """The numbers of a figure."""
        keys = [dict(attrs)["id"] for tag, attrs in self.tags if tag == "figure"]
        rows: list[list[Any]] = json.loads(self.tables[keys.index(f"figure-{key}")])["rows"]
        return rows


@pytest.fixture
def page(tmp_path: Path) -> Callable[[dict[str, Any]], Page]:
    def make(content: dict[str, Any]) -> Page:
        write_results(tmp_path, content)
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
OURS = {"format", "compared_on", "best_random_mask", "verdict", "role", "word"}


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
    assert wild.structure == mild.structure
    assert len(wild.scripts) == len(mild.scripts)
    assert wild.scripts[-1] == mild.scripts[-1]
    assert wild.styles == mild.styles


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Addresses of every plain value; of a list those of its first two items."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else None
    if items is None:
        yield at
    for key, inner in items or ():
        yield from leaves(inner, (*at, key))


def at(value: Any, where: tuple[Any, ...]) -> Any:
    for key in where:
        value = value[key]
    return value


def test_text_where_a_number_is_due_is_refused_by_its_name():
    r = results()
    numbers = [where for where in leaves(r) if isinstance(at(r, where), (int, float)) and "provenance" not in where]
    assert len(numbers) > 300
    for where in numbers[::23]:
        changed = copy.deepcopy(r)
        at(changed, where[:-1])[where[-1]] = HOSTILE[0]
        with pytest.raises(InputError, match=rf"results\.json: {where[0]}: .*; run the step again"):
            summary(changed)


@pytest.mark.parametrize(
    "where",
    [
        ("model",), ("prompts",), ("versions",), ("seed",), ("model", "fingerprint"), ("model", "n_params"), ("prompts", "cells"),
        ("find", "anchor"), ("find", "overlap", "shared"), ("prove", "claims"), ("prove", "claims", 0, "effect"),
        ("shield", "conditions", "shield", "losses"), ("check", "gains_in_selectivity"), ("check", "curves"), ("attack",),
        ("check", "curves", "shield"), ("check", "cells", "no update"), ("check", "cells", "shield", "en/text"),
        ("check", "means", "shield", "untrained"), ("check", "matched", "over plain LoRA"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_in_one_line_and_there_is_no_page(tmp_path: Path, where: tuple[Any, ...]):
    r = results()
    del at(r, where[:-1])[where[-1]]
    write_results(tmp_path, r)
    with pytest.raises(InputError, match=r"results\.json: ") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(where[-1]) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_check_of_a_shield_that_is_being_trained_again_is_not_shown(tmp_path: Path):
    r = results()
    del r["shield"]
    write_results(tmp_path, r)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert [line.split()[0] for line in summary(r).splitlines()] == ["find", "prove"]
    assert text.count("not run") >= 2


def test_an_overlap_of_other_rows_than_cells_is_refused():
    r = results()
    r["find"]["overlap"]["shared"].pop()
    with pytest.raises(InputError, match=r"results\.json: find: .*'shared' has not 3 rows and columns"):
        summary(r)


#: Mappings whose keys a file could name as it likes.
NAMED = [
    ("versions",), ("seconds",), ("find", "per_layer"), ("prove", "controls", "sets"), ("prove", "controls", "missing"), ("prove", "cells"),
    ("prove", "claims", 0, "controls"), ("prove", "claims", 0, "p"), ("shield", "conditions"), ("check", "cells"), ("check", "means"),
    ("check", "matched"), ("check", "matched_cells"), ("check", "gains_in_selectivity"), ("check", "curves"),
    ("attack", "means"), ("find", "overlap", "along"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("hostile", HOSTILE[:4])
def test_no_key_changes_the_pages_structure(page: MakePage, hostile: str):
    def named(key: str) -> Page:
        r = results()
        for where in NAMED:
            held = at(r, where)
            held[key] = copy.deepcopy(next(iter(held.values())))
        r["stale"] = [key]
        return page(r)

    wild, mild = named(hostile), named("x")
    assert wild.structure == mild.structure
    assert len(wild.scripts) == len(mild.scripts)
    assert all("<" not in table for table in wild.tables)


def answers(poison: str) -> pd.DataFrame:
    """answers.parquet of two prompts, in which every text ends in `poison`."""
    rows = [
        (condition + poison * (condition not in ("no update", "shield")), pd.NA, f"{label}{poison}", "en" + poison, "text", label + poison,
         "r" + poison, "how do i" + poison, "Sure" + poison, "complied" + poison, False, None, False, None, None, "words")
        for condition in ("no update", "shield", "plain LoRA") for label in ("harmful", "benign")
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"steps": "Int64"})


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_in_the_answers_or_in_names_of_prompts_changes_the_pages_structure(
    page: MakePage, tmp_path: Path, hostile: str
):
    def shown(poison: str) -> Page:
        answers(poison).to_parquet(tmp_path / "answers.parquet")
        prompts = {"id": ["harmful" + poison], "split": ["test"], "request": ["r"], "images": [["00" + poison]]}
        pd.DataFrame(prompts).to_parquet(tmp_path / "prompts.parquet")
        return page(results())

    wild, mild = shown(hostile), shown("x")
    assert wild.structure == mild.structure
    assert wild.scripts == mild.scripts
    assert wild.text.count(" ".join(f"Sure{hostile}".split())) == 6
    assert "The picture cannot be read any more." in wild.text


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
    for table in shown.tables:
        assert "<" not in table
        assert "pwned" not in re.sub(r'"(?:[^"\\]|\\.)*"', "", table)  # only ever inside a JSON string
    names = {name for row in shown.figure("overlap") for name in row[1:3]}
    assert names == {f"{c}{hostile}" for c in CELLS}


def test_the_page_loads_nothing_from_anywhere(page: MakePage):
    shown = page(results())
    loading = {"src", "srcset", "data", "action", "poster", "background", "formaction", "xlink:href"}
    assert [(t, a) for t, attrs in shown.tags for a in attrs if a[0] in loading] == []
    assert {a[1][0] for _, attrs in shown.tags for a in attrs if a[0] == "href" and a[1]} == {"#"}
    assert not {t for t, _ in shown.tags} & {"link", "iframe", "object", "embed", "img", "base", "form"}
    assert not [a for _, attrs in shown.tags for a in attrs if a[0] == "http-equiv" or a[0].startswith("on")]
    for style in shown.styles:
        assert "url(" not in style
        assert "@import" not in style
    assert not re.search(r"https?:|\bfetch\b|XMLHttpRequest|eval\(|innerHTML", "".join(shown.scripts))


def test_every_figure_is_seen_without_a_script_and_described(page: MakePage):
    shown = page(results())
    figures = [dict(attrs) for tag, attrs in shown.tags if tag == "svg"]
    assert len(figures) == len(shown.tables) > 10
    ids = {dict(attrs).get("id") for _, attrs in shown.tags}
    for drawn in figures:
        assert drawn["role"] == "img"
        assert set((drawn["aria-labelledby"] or "").split()) <= ids


def test_every_term_leads_to_its_definition_and_no_id_is_given_twice(page: MakePage):
    shown = page(results())
    ids = [i for _, attrs in shown.tags for k, i in attrs if k == "id"]
    assert len(ids) == len(set(ids))
    links = [v[1:] for t, attrs in shown.tags for k, v in attrs if t == "a" and k == "href" and v]
    assert set(links) <= set(ids)
    assert len([v for v in links if v.startswith("term-")]) >= 10


# -- the page says what the results say ------------------------------------------------------------------
def test_every_step_is_told_with_its_numbers(page: MakePage):
    shown = page(results())
    for said in ("toy-vllm", "3 layers × 29 neurons", "1.2 M parameters", "421 prompts in 3 cells", "seed 5",
                 "best 31 of en/text, 0.123% of the parameters", "16 (17 pairs of prompts, in en/text)", "12,345 margins and 678 answers",
                 "5 requests chose 19 members, ablated together with 2 backup neurons", "The other 11 requests tested them as a set",
                 "fall by 0.64 [0.58, 0.70] as judged, and by 0.80 [0.74, 0.86]", "Judged change / keyword change: 0.80", "lower the margin alone: 19 of 31; from sets chosen on shuffled labels: mean 4.0, max 7",
                 "Of 31 neurons, 17 lower the refusal margin when ablated alone, 2 only (or more than twice as much) when others",
                 "3 raise it (anti-refusal neurons), and 9 have no effect", "19 are verified",
                 "20 random, 20 matched, 1 general", "A control is missing or smaller: language: needs two",
                 "The strongest 4 of 31 members have 90%", "Trained on train prompts of en/text, 100 steps: 39 harmful prompts were taught a refusal; 38 benign ones were held to the "
                 "untouched model's answer by KL divergence (weight 16).",
                 "Data cafe · weights f00d (float32)", "torch 2.9"):  # fmt: skip
        assert said in shown.text, said
    assert shown.row("necessity: zero") == ["necessity: zero", "0.61 [0.50, 0.74]", "0.07 (matched)", "0.047", "passed", ""]  # fmt: skip
    assert shown.row("necessity: mean")[-2:] == ["failed", "effect below 0.1"]
    assert shown.row("en/text") == ["en/text", "9", "4.56", "0.66 [0.55, 0.77]", "0.06", "0.009", "0.018", "passed"]
    assert shown.row("harmful, answered")[1:4] == ["83", "0.42 [0.32, 0.52]", "0.01 (-0.01 to 0.01)"]
    assert shown.row("layer 1") == ["layer 1", "13", "0.41 [0.31, 0.51]", "0.22 [0.12, 0.32]"]
    assert shown.row("harmful, clean") == [
        "harmful, clean",
        "47",
        "0.93 [0.71, 0.98]",
        "0.03 [0.01, 0.12]",
        "0.01 [0.01, 0.10]",
        "6",
    ]
    assert shown.row("harmful, set ablated") == [
        "harmful, set ablated",
        "47",
        "0.12 [0.04, 0.29]",
        "0.61 [0.46, 0.74]",
        "0.25 [0.16, 0.45]",
        "0",
    ]
    assert ["shield", "form <0>", "4321", "0.350%", "2.75", "0.38"] in shown.cells
    assert ["over plain LoRA", "-0.03 [-0.08, +0.02]"] in shown.cells


def test_what_an_attack_left_is_shown_and_an_early_stop_is_said(page: MakePage):
    r = results()
    shown = page(r)
    pruned = [f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in
              (r["attack"]["means"]["pruned"][m] for m in ("refusal", "compliance", "attack_success", "over_refusal",
                                                           "benign_compliance", "selectivity", "incoherent"))]  # fmt: skip
    assert ["pruned", *pruned] in shown.cells
    assert "Stopped early" not in shown.text
    r["shield"]["conditions"]["plain LoRA"] |= {"losses": [], "stopped": "loss is <nan> at step 0"}
    r["attack"] = {"k": 19, "cells": [], "means": {}}
    other = page(r)
    assert "Stopped early: plain LoRA: loss is <nan> at step 0" in other.text
    assert "Nothing to attack" in other.text


def test_every_control_stands_beside_the_shield(page: MakePage):
    shown = page(results())
    means = [c for c in shown.cells if c[0] in CONDITIONS and len(c) == 9 and "%" not in c[3]]
    assert [m[0] for m in means] == CONDITIONS
    for i, row in enumerate(means):
        base = [0.1 * i + 0.013 + j / 100 for j in range(8)]
        assert row[1:] == [f"{b:.2f} [{b - 0.05:.2f}, {b + 0.07:.2f}]" for b in base]
    every = [c for c in shown.cells if len(c) == 11 and c[1] in ("no update", "shield")]
    assert [c[:2] for c in every] == [[cell + (" *" if cell == "en/text" else ""), name]
                                      for cell in CELLS for name in ("no update", "shield")]  # fmt: skip


def test_the_pages_figures_hold_the_numbers_of_the_results(page: MakePage):
    r = results()
    shown = page(r)
    shared = r["find"]["overlap"]["shared"]
    assert sorted(row[3] for row in shown.figure("overlap") if row[3] is not None) == sorted(
        [shared[0][1], shared[1][2]]
    )
    assert [row[2] for row in shown.figure("layers")] == [
        n for counts in r["find"]["per_layer"].values() for n in counts
    ]
    assert shown.figure("claims-margin")[0] == ["the set", "value", 0.61, 0.08]
    assert [row[2] for row in shown.figure("dose-response") if row[1] == "harmful"] == [-2, -1, 0, 1]
    assert {row[2] for row in shown.figure("cross-cell")} == {0.29}
    for name in CONDITIONS[1:]:
        points = r["check"]["curves"][name]
        assert [row[2:4] for row in shown.figure("curves") if row[0] == name] == [
            [p["over_refusal"][0], p["refusal"][0]] for p in points
        ]
    drawn = ["no update", "shield", "random mask 2", "plain LoRA"]  # the best of the random masks
    for key, column in (("selectivity", 0), ("transfer", 1)):
        assert list(dict.fromkeys(row[column] for row in shown.figure(key))) == drawn
    for cell, name, *values in shown.figure("transfer"):
        assert values == r["check"]["cells"][name][cell.removesuffix(" *")]["selectivity"]
    assert shown.figure("transfer")[-1][0] == "en/text *"  # trained cells apart, starred


def test_the_summary_is_one_line_a_step(page: MakePage):
    r = results()
    lines = summary(r).splitlines()
    assert [line.split()[0] for line in lines] == ["find", "prove", "shield", "check"]
    assert "already refuses in en/text, sw/text" in lines[0]
    assert "passed: every claim held; 19 of 31 neurons verified; " in lines[1]
    # effect with its interval, strongest control, requests, cost
    assert "necessity: mean 0.08 [-0.03, 0.21], strongest control 0.07 (matched)" in lines[1]
    p = r["prove"]
    assert f"{p['n_requests']} requests; {p['cost']['margins']:,} margins, {p['cost']['answers']} answers" in lines[1]
    assert "19 proven neurons trained: 4,321 numbers, 0.350%" in lines[2]
    assert lines[3].endswith(
        "cells it did not train on: at the same benign refusal (0.08) the shield refuses 0.37 of harmful prompts and 2 masks of random "
        "neurons 0.31; it beats them (+0.06 [+0.02, +0.11]); over plain LoRA -0.04 [-0.08, +0.01]"
    )
    shown = page(r).text
    for line in lines:
        if not line.startswith("prove"):
            assert line.split(maxsplit=1)[1][1:] in shown


# -- negative results are printed ------------------------------------------------------------------------
@pytest.mark.slow
def test_a_shield_that_did_not_beat_random_masks_is_said_to_have_not(page: MakePage):
    good, r = results(), results()
    r["check"]["beats_random_mask"] = False
    r["check"]["matched"]["over random masks"]["difference"] = [0.02, -0.05, 0.09]
    assert (
        "the shield does not refuse more harmful prompts than masks of random neurons of the same size" in page(r).text
    )
    assert "it does NOT beat them (+0.02 [-0.05, +0.09])" in page(r).text
    assert "it does NOT beat them (+0.02 [-0.05, +0.09])" in summary(r)
    assert "not beat" not in page(good).text.lower()
    assert (
        "At the same benign refusal the shield refuses more harmful prompts than masks of random neurons"
        in page(good).text
    )


def test_both_are_said_to_be_read_at_one_benign_refusal_and_where_a_curve_does_not_reach_it(page: MakePage):
    r = results()
    shown = page(r)
    assert [
        "over random masks",
        "0.08",
        "0.37",
        "0.31",
        "+0.06 [+0.02, +0.11]",
        "requests and masks",
        "1 of 2",
    ] in shown.cells
    assert ["over plain LoRA", "0.07", "0.27", "0.31", "-0.04 [-0.08, +0.01]", "requests", "1 of 1"] in shown.cells
    assert [
        "sw/text",
        "over plain LoRA",
        "0.09",
        "0.54",
        "0.31",
        "+0.23 [+0.19, +0.28]",
        "requests",
        "1 of 1",
    ] in shown.cells
    assert (
        "Never refuse as many benign prompts as the finished shield: 1 of 2 curves (over random masks)." in shown.text
    )
    r["check"]["matched"]["over random masks"]["reached"] = 2
    assert "Never refuse as many" not in page(r).text


def test_conditions_that_cannot_be_compared_are_said_so(page: MakePage):
    r = results()
    nothing = {
        "benign": None,
        "harmful": None,
        "others": None,
        "difference": [None, None, None],
        "reached": 0,
        "n_cells": 0,
    }
    for found in r["check"]["matched"].values():
        found |= nothing
    r["check"]["beats_random_mask"] = False
    shown = page(r)
    assert "The shield and masks of random neurons cannot be compared" in shown.text
    assert "cannot be compared with masks of random neurons at the same benign refusal" in summary(r)
    assert not re.search(r"\b(None|nan|NaN|inf)\b", shown.text)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"targets": 38}, "38 benign ones were taught their target; no prompt was held by KL divergence"),
        (
            {"preferred": 38},
            "the answers of 38 benign ones were preferred to a refusal; no prompt was held by KL divergence",
        ),
        ({"targets": 38, "texts": 5}, "5 texts were held by KL divergence (weight 16)"),
        (
            {"targets": 30, "held": 8},
            "30 benign ones were taught their target; 8 benign ones were held to the untouched model's answer",
        ),
    ],
)
def test_the_report_says_what_the_benign_prompts_were_used_for(page: MakePage, prompts: dict[str, int], said: str):
    r = results()
    r["shield"]["prompts"] |= {"held": 0, **prompts}
    if not {"held", "texts"} & set(prompts):
        r["shield"]["retention"] = None
    text = page(r).text
    assert said in text
    assert ("weight" in text.split("Trained on")[1][:400]) == bool({"held", "texts"} & set(prompts))


@pytest.mark.slow
def test_a_proof_that_failed_and_a_shield_of_unproven_neurons_say_so(page: MakePage):
    r = results()
    r["prove"] |= {"passed": False, "word": "no", "reason": "necessity: mean failed"}
    r["prove"]["verified"]["members"] = []
    r["shield"]["proven"] = False
    shown = page(r)
    assert shown.row("verdict") == ["verdict", "No"]
    assert "Necessity: mean failed" in shown.text
    assert "These neurons were not proven" in shown.text
    assert "no: necessity: mean failed" in summary(r)
    assert "verified one by one" not in summary(r)
    assert "candidate, NOT proven, neurons trained" in summary(r)
    assert "not proven" not in page(results()).text.lower()


def test_what_was_not_tested_is_shown_as_such_without_numbers(page: MakePage):
    r = results()
    untested = [Claim.untested(c.name) for c in CLAIMS]
    r["find"]["refusing_cells"] = []
    none = Interval(0.0, 0.0, 0.1)
    nothing = replace(
        proof(untested), passed=False, reason="the model refuses nothing", verified=NeuronSet([]), cells={}, members=(),
        experiments=Experiments(), controls=ControlSummary(), answers=(AnswerRate("harmful", "clean", 48, refused=none, complied=none, incoherent=none, n_unknown=0),),
    )  # fmt: skip
    r["prove"] = nothing.to_dict()
    shown = page(r)
    assert shown.row("verdict") == ["verdict", "Not tested"]
    assert "Not tested: the model refuses nothing." in shown.text
    assert shown.row("necessity: zero") == ["necessity: zero", "n/a [n/a, n/a]", "n/a", "n/a", "not tested", ""]
    assert "model refuses nowhere" in summary(r)
    assert "prove   not tested: the model refuses nothing; 16 requests" in summary(r)


def test_the_first_screen_names_the_claims_that_failed(page: MakePage):
    r = results()
    reason = "not shown to cause refusals; failed: specificity, utility; too few requests to tell: x; refusals: necessity: 0.1"
    r["prove"] |= {"passed": False, "word": "no", "reason": reason}
    r["prove"]["verified"]["members"] = []
    assert "prove   no: not shown to cause refusals; failed: specificity, utility; necessity: mean" in summary(r)
    assert "No: not shown to cause refusals; failed: specificity, utility." in page(r).text


def test_missing_numbers_are_na_never_none_or_nan(page: MakePage):
    r = results()
    for cells in r["check"]["cells"].values():
        cells["sw/text"]["utility"] = cells["sw/text"]["selectivity"] = [None, None, None]
    for means in r["check"]["means"].values():
        means["untrained"]["utility"] = [None, None, None]
        means["untrained"]["n_cells"]["utility"] = 0
    r["check"]["gains_in_selectivity"]["over random masks"] = [0.1, None, None]  # one request: no interval
    shown = page(r)
    assert [c[-2] for c in shown.cells if c[0] in CONDITIONS and len(c) == 9 and "%" not in c[3]] == [
        "n/a [n/a, n/a] (0 of 2 cells)"
    ] * 5
    assert ["over random masks", "+0.10 [n/a, n/a]"] in shown.cells
    assert not re.search(r"\b(None|nan|NaN|inf)\b", shown.text)


@pytest.mark.slow
def test_one_cell_has_no_overlap(page: MakePage):
    r = results()
    r["find"]["overlap"] = None
    assert len(page(r).tables) == len(page(results()).tables) - 1


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


@pytest.mark.slow
def test_steps_that_are_stale_are_named_before_anything_else(page: MakePage):
    r = results()
    assert "Stale" not in page(r).text
    shown = page({**r, "stale": ["shield", "check" + HOSTILE[0]]})
    assert "Stale: shield and check" + HOSTILE[0] in shown.text
    assert shown.text.index("Stale:") < shown.text.index("candidate neurons")
    assert page({**r, "stale": ["shield", "checkx"]}).structure == shown.structure


# -- the file --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_report_of_the_first_steps_stops_where_they_stop(page: MakePage, steps: int):
    r = results()
    for later in ("find", "prove", "shield", "check")[steps:]:
        del r[later]
    shown = page(r)
    transfer = steps >= 2  # is asked once step prove has been run
    assert [t for t, _ in shown.tags].count("section") == steps + transfer + 1  # and the glossary
    assert shown.text.count("Not run yet.") == 4 - steps
    assert len(summary(r).splitlines()) == steps


@pytest.mark.slow
def test_the_report_is_remade_from_results_alone_and_leaves_no_other_file(tmp_path: Path):
    write_results(tmp_path, results())
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    assert write_report(str(tmp_path)) == tmp_path / "report.html"
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert first.startswith("<!doctype html>")
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no results.json"),
        (b"{nope", "not a file of neuronshield.results"),
        (b"\xff", "not a file of neuronshield.results"),
        (b"{}", "it names no format"),
        (b"[]", "not a file of neuronshield.results"),
        (json.dumps({"format": FORMAT}).encode(), "is damaged: its contents are not those that were saved"),
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


def test_planted_results_are_left_as_they_were():
    r = results()
    kept = copy.deepcopy(r)
    summary(r)
    assert r == kept
