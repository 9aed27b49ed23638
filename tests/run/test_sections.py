"""The sections of results.json: written, read back, and compared as their fields say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from neuronshield import Cell, Evaluation, InputError, Prompt
from neuronshield.check.curves import matched
from neuronshield.check.evaluation import METRICS, Answer
from neuronshield.core.results import from_json, to_json
from neuronshield.core.statistics import Interval
from neuronshield.run.comparison import compare, compared_cells, curve_of
from neuronshield.run.conditions import BASE, LORA, RANDOM_MASKS, SHIELD, is_random_mask, over, random_mask
from neuronshield.run.sections import AttackSection, CheckSection, FindSection, ShieldSection, TopNeuron, Trained, means
from neuronshield.shield.objective import Taught

LANGUAGES = ("en", "sw", "de", "fr", "es", "it", "ko", "th", "vi")


def answers(refused: float, *, seed: int = 0, cells: int = 3, requests: int = 17) -> list[Answer]:
    """Matched pairs in every cell; a share of the harmful ones is refused, no benign one."""
    rng = np.random.default_rng(seed)
    return [
        Answer(
            Prompt(f"{q}{label}{c}", "how", label, language=LANGUAGES[c], pair_id=f"q{q}"),
            f"{label} {q} in {c}", label == "harmful" and bool(rng.random() < refused), None,
        )
        for c in range(cells) for q in range(requests) for label in ("harmful", "benign")
    ]  # fmt: skip


def conditions(shield: float, mask: float) -> dict[str, Evaluation]:
    rates = {BASE: 0.1, SHIELD: shield, random_mask(1): mask, random_mask(2): mask - 0.1, LORA: 0.3}
    return {name: Evaluation(answers(r, seed=i), name) for i, (name, r) in enumerate(rates.items())}


def compared(evaluations: dict[str, Evaluation], trained: set[Cell]) -> CheckSection:
    """Compared after one strength, the finished update."""
    group = compared_cells(evaluations[BASE].cells(), trained)
    return compare(evaluations, trained, {
        name: curve_of(evaluations[BASE], {}, e, steps=40, cells=group) for name, e in evaluations.items() if name != BASE
    })  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cells", [1, 2, 3, 5, 8, 9])
def test_a_tie_with_the_random_masks_is_no_gain(cells: int):
    names = (BASE, SHIELD, random_mask(1), random_mask(2), random_mask(3), LORA)
    tie = compared({name: Evaluation(answers(1.0, cells=cells, requests=6), name) for name in names}, set())
    assert not tie.beats_random_mask
    assert tie.gains_in_selectivity[over(RANDOM_MASKS)].value == pytest.approx(0, abs=1e-9)


def test_a_shield_that_only_refuses_more_does_not_beat_the_masks():
    """Selectivity is won by refusing more; harmful refusal at matched benign refusal is not."""

    def both(harmful: int, benign: int, name: str) -> Evaluation:
        return Evaluation([
            Answer(Prompt(f"{q}{label}", "how", label, pair_id=f"q{q}"), "", q < n, None)
            for q in range(40) for label, n in (("harmful", harmful), ("benign", benign))
        ], name)  # fmt: skip

    ends = {SHIELD: (36, 18), random_mask(1): (12, 6), random_mask(2): (14, 7), random_mask(3): (10, 5), LORA: (8, 4)}
    evaluations = {BASE: both(0, 0, BASE), **{name: both(*end, name) for name, end in ends.items()}}
    found = compared(evaluations, set())
    assert found.gains_in_selectivity[over(RANDOM_MASKS)].low > 0
    assert found.matched[over(RANDOM_MASKS)].difference.value == pytest.approx(0, abs=1e-9)
    assert found.matched[over(RANDOM_MASKS)].reached == 0
    assert not found.beats_random_mask


@pytest.mark.slow
def test_one_mask_is_no_spread():
    evaluations = conditions(shield=0.9, mask=0.2)
    assert compared(evaluations, set()).beats_random_mask
    del evaluations[random_mask(2)]
    alone = compared(evaluations, set())
    assert alone.matched[over(RANDOM_MASKS)].difference.low > 0
    assert not alone.beats_random_mask


def test_one_request_is_no_gain_either():
    one = {name: Evaluation(answers(r, requests=1), name) for name, r in
           ((BASE, 0.0), (SHIELD, 1.0), (random_mask(1), 0.0), (LORA, 0.0))}  # fmt: skip
    found = compared(one, set())
    assert found.gains_in_selectivity[over(RANDOM_MASKS)].value == 1
    assert not found.beats_random_mask


@pytest.mark.slow
def test_gains_are_computed_on_the_cells_that_were_not_trained():
    evaluations = conditions(shield=0.9, mask=0.2)
    found = compared(evaluations, {Cell("en", "text")})
    unseen = ["sw/text", "de/text"]
    assert found.compared_on == "untrained"
    assert found.beats_random_mask
    assert found.best_random_mask == random_mask(1)
    masks = [e for name, e in evaluations.items() if is_random_mask(name)]
    assert len(masks) == 2
    assert found.gains_in_selectivity == {
        over(BASE): evaluations[SHIELD].gain(evaluations[BASE], "selectivity", unseen),
        over(RANDOM_MASKS): evaluations[SHIELD].gain(masks, "selectivity", unseen),
        over(LORA): evaluations[SHIELD].gain(evaluations[LORA], "selectivity", unseen),
    }
    assert set(found.means[SHIELD]) == {"all", "trained", "untrained"}
    assert found.means[SHIELD]["trained"].refusal == evaluations[SHIELD].mean("refusal", ["en/text"])
    curves = {
        name: curve_of(evaluations[BASE], {}, evaluations[name], steps=40, cells=[Cell.of(c) for c in unseen]) for name in evaluations
        if name != BASE
    }  # fmt: skip
    assert found.matched[over(RANDOM_MASKS)] == matched(curves[SHIELD], [curves[m.name] for m in masks])
    assert found.matched[over(LORA)] == matched(curves[SHIELD], curves[LORA])
    assert list(found.matched_cells) == unseen
    assert found.matched_cells["sw/text"][over(LORA)] == matched(curves[SHIELD], curves[LORA], ["sw/text"])
    assert found.curves[SHIELD][-1].refusal == evaluations[SHIELD].mean("refusal", unseen)
    everything = compared(evaluations, {Cell(language, "text") for language in LANGUAGES[:3]})
    assert everything.compared_on == "all"
    assert set(everything.means[BASE]) == {"all", "trained"}


@pytest.mark.slow
def test_examples_show_the_same_prompt_before_and_after():
    found = compared(conditions(shield=0.9, mask=0.2), set())
    assert len(found.examples) == 12
    assert {e.cell for e in found.examples} == {"en/text", "sw/text", "de/text"}
    assert all(e.before == e.after for e in found.examples)  # these answers name their request


def same(a: object, b: object) -> bool:
    return to_json(a) == to_json(b)


@pytest.mark.slow
def test_every_section_survives_json():
    evaluations = conditions(shield=0.9, mask=0.2)
    trained = Trained(form="form", trained=7, param_fraction=0.01, losses=(2.5, 1.25), stopped=None)
    cells = evaluations[SHIELD].cells()
    sections = [
        FindSection("contribution", {"k": 7}, 7, 0.01, "en/text", ("en/text",), {"en/text": (3, 4)},
                    (TopNeuron("en/text", 1, 0, 3, 0.5),), None),
        ShieldSection(7, True, ("en/text",), (), Taught(refusals=33), 40, 3e-3, None, {SHIELD: trained}),
        compared(evaluations, {Cell("en", "text")}),
        AttackSection(7, ("en/text",), {"pruned": means(evaluations[SHIELD], cells)}),
    ]  # fmt: skip
    for section in sections:
        text = json.dumps(to_json(section), allow_nan=False)
        again = from_json(type(section), json.loads(text))
        assert type(again) is type(section)
        assert same(again, section)
        assert "utility" not in text or "null" in text  # nothing says what is right: undefined, not zero
    read = from_json(CheckSection, to_json(sections[2]))
    assert isinstance(read.gains_in_selectivity[over(BASE)], Interval)
    assert math.isnan(read.cells[SHIELD]["en/text"].utility.value)
    with pytest.raises(InputError, match="field 'k' is missing"):
        from_json(AttackSection, {"cells": [], "means": {}})


def test_means_have_every_rate_and_say_how_many_cells_they_are_over():
    one = conditions(shield=0.9, mask=0.2)[SHIELD]
    found = means(one, one.cells())
    assert list(to_json(found)) == [*METRICS, "n_cells"]
    assert found.selectivity == one.mean("selectivity")
    assert found.n_cells == {**dict.fromkeys(METRICS, 3), "utility": 0}
    lopsided = Evaluation([a for a in one.answers if (a.prompt.language, a.prompt.label) != ("sw", "benign")])
    left = means(lopsided, lopsided.cells())
    assert left.n_cells == {**found.n_cells, "over_refusal": 2, "benign_compliance": 2, "selectivity": 2}
    assert left.selectivity == lopsided.mean("selectivity", ["en/text", "de/text"])
    assert left.refusal == found.refusal
