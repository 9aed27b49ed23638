"""Static figures hold the numbers of the results, escape every text, and leave their input as it was."""

from __future__ import annotations

import copy
from typing import Any
from xml.etree import ElementTree

import pytest
from planted_results import CELLS, results

from neuronshield.figures.drawings import (
    draw_claims,
    draw_cross_cell,
    draw_curves,
    draw_dose_response,
    draw_layers,
    draw_losses,
    draw_overlap,
    draw_rates,
    draw_size,
    draw_transfer,
)
from neuronshield.figures.svg import Drawing

HOSTILE = "</text></svg><script>x()</script>\"'"


def drawings(r: dict[str, Any]) -> dict[str, Drawing]:
    experiments, check = r["prove"]["experiments"], r["check"]
    return {
        "overlap": draw_overlap(r["find"]["overlap"]), "layers": draw_layers(r["find"]["per_layer"], method=r["find"]["method"]),
        "claims": draw_claims(r["prove"]["claims"], measure="margin"), "dose": draw_dose_response(experiments["dose_response"]),
        "size": draw_size(experiments["size"]), "cross_cell": draw_cross_cell(experiments["cross_cell"]),
        "losses": draw_losses({k: c["losses"] for k, c in r["shield"]["conditions"].items()}, "shield"),
        "curves": draw_curves(check["curves"], "shield", level=0.1), "rates": draw_rates(check["cells"]),
        "transfer": draw_transfer(check["cells"], ["en/text"]),
    }  # fmt: skip


def test_every_drawing_is_well_formed_has_numbers_and_changes_nothing():
    r = results()
    kept = copy.deepcopy(r)
    for drawing in drawings(r).values():
        ElementTree.fromstring(drawing.svg("f"))
        assert drawing.title
        assert drawing.description
        assert drawing.rows
        assert {len(row) for row in drawing.rows} == {len(drawing.head)}
    assert r == kept


@pytest.mark.parametrize("name", list(drawings(results())))
def test_no_name_in_the_results_changes_the_structure_of_a_drawing(name: str):
    def named(poison: str) -> Drawing:
        def spoil(value: Any, key: str = "") -> Any:
            if isinstance(value, dict):
                outside = key == "controls" or set(value) & {*CELLS}
                return {k + poison if outside else k: spoil(v, k) for k, v in value.items()}
            if isinstance(value, list):
                return [spoil(v, key) for v in value]
            return value + poison if isinstance(value, str) else value

        return drawings(spoil(results()))[name]

    wild, mild = (ElementTree.fromstring(named(p).svg("f")) for p in (HOSTILE, "x" * len(HOSTILE)))
    assert [e.tag for e in wild.iter()] == [e.tag for e in mild.iter()]


def test_the_tables_hold_the_numbers_of_the_results():
    r = results()
    made = drawings(r)
    shared = r["find"]["overlap"]["shared"]
    assert {row[3] for row in made["overlap"].rows} == {shared[0][1], shared[1][2], None}
    assert ("en/image", 1, 14) in made["layers"].rows
    claims = made["claims"]
    assert claims.head == ("set", "number", "necessity: zero", "necessity: mean")
    assert claims.rows[0] == ("the set", "value", 0.61, 0.08)
    assert ("matched", 2, 0.07, 0.07) in claims.rows
    assert [row[2] for row in made["dose"].rows if row[1] == "harmful"] == [-2, -1, 0, 1]
    assert made["size"].rows[0] == (1, "strongest", 0.29, *r["prove"]["experiments"]["size"][0]["effect"][1:])
    assert {row[5] for row in made["cross_cell"].rows} == {0.011}
    assert ("plain LoRA", 2, 3.375) in made["losses"].rows
    last = r["check"]["curves"]["shield"][-1]
    assert ("shield", 100, last["over_refusal"][0], *last["refusal"]) in made["curves"].rows
    rates = r["check"]["cells"]["shield"]["sw/text"]["selectivity"]
    assert ("shield", "sw/text", *rates) in made["rates"].rows
    assert [row[0] for row in made["transfer"].rows][-1] == "en/text *"


def test_numbers_of_the_overlap_are_written_into_its_cells():
    made = draw_overlap(results()["find"]["overlap"])
    texts = [t.text for t in ElementTree.fromstring(made.svg("f")).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("0.48") == 2  # 0.42 of en/text with en/image, and the planted 0.06
    assert texts.count("n/a") == 2
