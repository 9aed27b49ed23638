"""Figures hold the numbers they were given, are never shown, and leave their input as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from planted_results import CELLS, CLAIMS, proof, proven

from neuronshield import Cell, Evaluation, InputError, Prompt, Scores, figures
from neuronshield.check.evaluation import Answer
from neuronshield.core.statistics import Interval
from neuronshield.prove.tables import Claim, Experiments


# -- prove --------------------------------------------------------------------------------------------------
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
    figure = figures.proof_figure(proven([wide, Claim.untested("b")]))
    assert [t.name for t in figure.data] == ["the set"]
    json.loads(figure.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_an_experiment_that_was_not_done_has_no_figure():
    nothing = replace(proof(CLAIMS), experiments=Experiments())
    for what in ("dose_response", "size", "cross_cell"):
        with pytest.raises(InputError, match=f"the experiment '{what}' was not done"):
            nothing.figure(what)


def test_the_dose_response_curve_has_harmful_benign_and_random_sets():
    band, random, harmful, benign = proof(CLAIMS).figure("dose_response").data
    assert list(harmful.x) == list(benign.x) == list(random.x) == [-1, 0, 1, 2]
    assert list(harmful.y) == [-2, -1, 0, 1]
    assert harmful.error_y.array == pytest.approx([0.1] * 4)
    assert list(benign.y) == pytest.approx([-0.01, 0, 0.01, 0.02])
    assert list(random.y) == [0] * 4
    assert sorted(set(band.y)) == [-0.1, 0.1]


def test_the_size_curve_is_beside_random_sets_of_the_same_size():
    band, random, strongest = proof(CLAIMS).figure("size").data
    assert list(strongest.x) == list(random.x) == [1, 2, 4]
    assert list(strongest.y) == [0.29] * 3
    assert sorted(set(band.y)) == [-0.012, 0.014]


def test_cross_cell_effects_are_source_by_target_and_random_sets_below():
    effect, random = proof(CLAIMS).figure("cross_cell").data
    assert (list(effect.y), list(effect.x)) == (["en/text"], list(CELLS))
    np.testing.assert_array_equal(effect.z, [[0.29] * 3])
    np.testing.assert_array_equal(random.z, [[0.011] * 3])


# -- find ---------------------------------------------------------------------------------------------------
MEASURES = (
    "jaccard",
    "benign_null",
    "permutation_null",
    "p",
    "reliability",
    "shared",
    "shared_low",
    "shared_high",
    "pairs",
)


def table(names: list[str], seed: int = 0) -> dict[str, Any]:
    """Symmetric matrices as `Overlap.to_dict()` has them."""
    rng, n = np.random.default_rng(seed), len(names)
    out: dict[str, Any] = {"cells": names, "method": "sas"}
    for name in MEASURES:
        half = rng.uniform(0, 1, (n, n))
        out[name] = ((half + half.T) / 2).tolist()
    out["pairs"] = [[3.0] * n for _ in range(n)]
    return out


def overlap(n: int) -> dict[str, Any]:
    cells = [f"x{chr(97 + i)}/text" for i in range(n)]
    return {
        **table(cells),
        "along": {"language": table([c[:2] for c in cells], 1), "modality": table(["text", "image"], 2)},
    }


def test_shares_in_common_are_drawn_by_language_and_by_modality_most_sharing_first():
    given = overlap(4)
    before = json.dumps(given)
    figure = figures.overlap_heatmap(given)
    assert [a.text for a in figure.layout.annotations] == ["language × language", "modality × modality"]
    for trace, axis in zip(figure.data, ("language", "modality"), strict=True):
        one = given["along"][axis]
        shared = np.array(one["shared"])
        np.fill_diagonal(shared, np.nan)
        order = sorted(range(len(shared)), key=lambda i: -np.nanmean(shared[i]))
        names = tuple(one["cells"][i] for i in order)
        assert trace.x == trace.y == names
        np.testing.assert_allclose(trace.z, shared[np.ix_(order, order)])
        assert np.isnan(np.diag(trace.z)).all()  # 1 by definition
        i, j = order[1], order[0]
        said = trace.customdata[1][0]
        assert said.startswith(f"{one['cells'][i]} with {one['cells'][j]}")
        low, high = one["shared_low"][i][j], one["shared_high"][i][j]
        assert f"{shared[i, j]:.2f} ({low:.2f} to {high:.2f}), over 3 pairs of cells" in said
        assert f"permutation null {one['permutation_null'][i][j]:.2f}, p {one['p'][i][j]:.2f}" in said
        assert f"reliability {one['reliability'][i][j]:.2f}" in said
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert json.dumps(given) == before
    assert "sas" in figure.layout.title.text


def test_a_pair_with_too_few_requests_is_not_a_number():
    given = overlap(3)
    for name in ("shared", "shared_low", "shared_high"):
        given["along"]["language"][name][0][2] = given["along"]["language"][name][2][0] = None
    numbers, grey, _ = figures.overlap_heatmap(given).data
    i, j = numbers.y.index("xa"), numbers.x.index("xc")
    assert np.isnan(numbers.z[i][j])
    assert numbers.text[i][j] == ""
    assert (grey.text[i][j], grey.z[i][j]) == ("n/a", 0)
    assert grey.text[i][i] == ""
    assert (grey.text == "n/a").sum() == 2
    assert "too few requests to tell" in grey.customdata[i][j]


def test_cells_are_drawn_themselves_where_no_axis_tells_anything():
    given = overlap(3)
    for one in given["along"].values():
        one["shared"] = [[None] * len(one["cells"]) for _ in one["cells"]]
    figure = figures.overlap_heatmap(given)
    assert [a.text for a in figure.layout.annotations] == ["cell × cell"]
    assert set(figure.data[0].x) == set(given["cells"])


@pytest.mark.slow
def test_numbers_are_written_into_the_cells_while_they_fit():
    assert figures.overlap_heatmap(overlap(12)).data[0].texttemplate == "%{text}"
    assert figures.overlap_heatmap(overlap(13)).data[0].texttemplate is None


@pytest.mark.parametrize(
    ("table", "said"),
    [(None, "table must be Mapping, got NoneType; use overlap.figure"), ({}, "has no 'cells'; use overlap.figure"),
     ({"cells": ["en"], "jaccard": [[1.0]], "shared": [[1.0]]}, "has no 'method'")],
)  # fmt: skip
def test_what_is_no_table_of_an_overlap_is_refused(table: Any, said: str):
    with pytest.raises(InputError, match=said):
        figures.overlap_heatmap(table)


def test_layers_counts_each_cells_best_neurons():
    values = np.zeros((2, 3, 7))
    values[0, 0, :3], values[0, 2, 5:], values[1, 1, :5] = 2, 3, -4
    cells = [Cell("en", "text"), Cell("sw", "text")]
    figure = Scores(cells, values, None, "contribution", 1000, 60).figure(k=5)
    np.testing.assert_array_equal(figure.data[0].z, [[3, 0, 2], [0, 5, 0]])
    assert list(figure.data[0].y) == ["en/text", "sw/text"]
    assert "5 best neurons" in figure.layout.title.text


# -- check --------------------------------------------------------------------------------------------------
def answered(refused: int) -> Evaluation:
    """Two cells of 5 harmful and 5 benign; `refused` harmful ones are refused in the first, one more in the second."""
    answers = [
        Answer(Prompt(f"{c}{label}{i}", "how", label, language=language), "", label == "harmful" and i < refused + c, None)
        for c, language in enumerate(("en", "sw")) for label in ("harmful", "benign") for i in range(5)
    ]  # fmt: skip
    return Evaluation(answers)


def rates() -> dict[str, Any]:
    return {"no update": answered(0).rates(), "shield": answered(3).rates()}


def test_grid_has_a_panel_per_condition_and_one_scale_with_signed_metrics_around_zero():
    figure = figures.grid(rates())
    assert [a.text for a in figure.layout.annotations] == ["no update", "shield"]
    assert [t.z.ravel().tolist() for t in figure.data] == [pytest.approx([0, 0.2]), pytest.approx([0.6, 0.8])]
    assert {tuple(t.y) for t in figure.data} == {("en", "sw")}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)
    rate = figures.grid(rates(), "attack_success")
    assert [t.z.ravel().tolist() for t in rate.data] == [pytest.approx([1, 0.8]), pytest.approx([0.4, 0.2])]
    assert (rate.layout.coloraxis.cmin, rate.layout.coloraxis.cmax) == (0, 1)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: untyped.grid(Evaluation([])), "grid(rates, metric): rates must be Mapping, got Evaluation; use evaluation.figure()"),
        (lambda: untyped.grid({"a": Evaluation([])}), "every condition of rates must be Mapping, got Evaluation; use evaluation"),
        (lambda: untyped.grid(rates()["shield"]), "every cell of rates must be Mapping, got"),
        (lambda: untyped.grid({}), "grid(rates, metric): rates are empty; use evaluation.figure()"),
        (lambda: untyped.transfer(Evaluation([]), []), "transfer(rates, trained): rates must be Mapping, got Evaluation"),
        (lambda: untyped.proof_figure(proven(CLAIMS).values()), "proof must be Mapping, got dict_values; use proof.figure()"),
    ],
)  # fmt: skip
def test_an_object_instead_of_a_table_is_one_line(draw: Callable[[], Any], said: str):
    with pytest.raises(InputError) as caught:
        draw()
    assert said in str(caught.value)


untyped: Any = figures


def test_an_unknown_metric_is_one_line():
    with pytest.raises(InputError, match="grid: metric='refusl' is unknown; did you mean 'refusal'"):
        figures.grid(rates(), "refusl")


def test_transfer_sets_trained_cells_apart_and_draws_every_interval():
    figure = figures.transfer(rates(), {"en/text"})
    for trace, (name, refused) in zip(figure.data, {"no update": 0, "shield": 3}.items(), strict=True):
        assert trace.name == name
        assert list(trace.x) == ["sw/text", "en/text *"]
        for i, cell in enumerate(("sw/text", "en/text")):
            value, low, high = answered(refused).cell(cell)["selectivity"]
            got = (trace.y[i], trace.y[i] - trace.error_y.arrayminus[i], trace.y[i] + trace.error_y.array[i])
            assert got == pytest.approx((value, low, high))


# -- all ----------------------------------------------------------------------------------------------------
DRAWERS: list[Callable[[], go.Figure]] = [
    lambda: proof(CLAIMS).figure(),
    lambda: figures.overlap_heatmap(overlap(2)),
    lambda: figures.grid(rates()),
    lambda: figures.transfer(rates(), set()),
    lambda: answered(1).figure("refusal"),
    lambda: figures.layers(np.array([[1, 2]]), ["en/text"], method="sas"),
    lambda: figures.methods(["a"], np.eye(1), effects={"a": [0.5, 0.4, 0.6]}, sizes={"a": 3}),
]


@pytest.mark.parametrize("draw", DRAWERS)
def test_figures_are_returned_never_shown_and_have_a_title(
    draw: Callable[[], go.Figure], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(go.Figure, "show", lambda *_, **__: pytest.fail("shown"))
    figure = draw()
    assert isinstance(figure, go.Figure)
    assert figure.layout.title.text


# -- runs ---------------------------------------------------------------------------------------------------
def test_runs_are_drawn_measure_by_measure_with_their_intervals():
    rows = [("a", "x", (0.6, 0.5, 0.8)), ("a", "y", (0.4, 0.3, 0.7)), ("b", "y", (-0.1, -0.2, 0.0))]
    figure = figures.compared_runs(rows, ["x", "y"])
    x, y = figure.data
    assert (x.name, list(x.x), y.name, list(y.x)) == ("x", [0.6], "y", [0.4, -0.1])
    assert y.error_x.array == pytest.approx([0.3, 0.1])
    assert y.error_x.arrayminus == pytest.approx([0.1, 0.1])
    assert x.y[0] < y.y[0] < 0.5 < y.y[1]  # beside each other, each at its measure
    assert list(figure.layout.yaxis.ticktext) == ["a", "b"]
    assert x.marker.color != y.marker.color
