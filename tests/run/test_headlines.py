"""Cards of the first screen: one number with its interval, its strongest control, requests and cost, and a tone for each outcome."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planted_results import proof, results

from neuronshield.core.statistics import Interval
from neuronshield.prove.tables import Claim
from neuronshield.run.headlines import Card, cards, headlines
from neuronshield.run.sections import sections_of

REQUESTS = {"discover": 31, "confirm": 32, "train": 33, "test": 34}


def told(r: dict[str, Any]) -> dict[str, Card]:
    return {card.step: card for card in cards(sections_of(r), REQUESTS)}


def test_every_card_has_a_number_its_interval_its_control_requests_and_cost():
    found = told(results())
    assert [(c.value, c.ends) for c in found.values()] == [
        ("0.23", "[0.24, 0.25]"), ("0.08", "[-0.03, 0.21]"), ("+0.31", "[+0.24, +0.38]"), ("+0.06", "[+0.02, +0.11]"),
    ]  # fmt: skip
    assert [c.requests for c in found.values()] == ["31 (discover)", "16 (confirm)", "33 (train)", "34 (test)"]
    assert [c.control for c in found.values()] == [
        "benign null: Jaccard index 0.19; of these two 0.17", "0.07 (matched)",
        "plain LoRA: the shield gains -0.03 [-0.08, +0.02] over it", "plain LoRA: -0.04 [-0.08, +0.01]",
    ]  # fmt: skip
    assert [c.cost for c in found.values()] == [
        "3 s, 421 prompts read",
        "12,345 margins, 678 answers",
        "100 steps a condition",
        "4 s",
    ]
    assert [c.tone for c in found.values()] == ["plain", "good", "plain", "good"]
    assert all(c.verdict.endswith(".") for c in found.values())


def test_a_step_that_was_not_run_has_a_card_and_no_line():
    r = results()
    for step in ("shield", "check", "attack"):
        del r[step]
    assert [c.tone for c in told(r).values()] == ["plain", "good", "none", "none"]
    assert [name for name, _, _ in headlines(r)] == ["find", "prove"]


@pytest.mark.parametrize(
    ("verdicts", "tone", "word"),
    [(("failed", "passed"), "bad", "No"), (("too few requests to tell", "passed"), "open", "Too few requests to tell"),
     (("not tested", "not tested"), "open", "Not tested")],
)  # fmt: skip
def test_too_few_requests_are_neither_good_nor_bad(verdicts: tuple[str, str], tone: str, word: str):
    claims = [
        Claim(f"necessity: {k}", Interval(0.1, 0.0, 0.2), v) for k, v in zip(("zero", "mean"), verdicts, strict=True)
    ]
    r = results()
    r["prove"] = replace(proof(claims), passed=False, wording=None, retest=None, reason="so").to_dict()
    card = told(r)["prove"]
    r["prove"]["reason"] = f"{r['prove']['word']}: necessity: mean"
    assert told(r)["prove"].verdict.lower().count(r["prove"]["word"]) == 1
    assert (card.tone, card.verdict.split(":")[0]) == (tone, word)


def test_a_shield_that_cannot_be_compared_or_has_one_cell_is_undecided():
    r = results()
    for found in r["check"]["matched"].values():
        found |= {"difference": [None] * 3, "benign": None, "harmful": None, "others": None}
    r["check"]["beats_random_mask"] = False
    r["find"]["overlap"] = None
    found = told(r)
    assert (found["check"].tone, found["check"].value) == ("open", "n/a")
    assert found["find"].value == "n/a"
    r = results()
    r["check"]["beats_random_mask"] = False
    assert told(r)["check"].tone == "bad"
