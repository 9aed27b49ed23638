"""Requests that each claim has and needs, before the model has run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import planted
import pytest
import tiny

import neuronshield as ns
from neuronshield.prove.answer_claims import ANSWER_CLAIMS
from neuronshield.prove.claims import MARGIN_CLAIMS
from neuronshield.prove.requirements import Requirement, log_requirements, requirements


def some(n: int, **columns: Any) -> ns.PromptSet:
    """n requests in two languages."""
    rows = [
        {"prompt": f"how do i {verb} {i}", "label": label, "language": language, "pair_id": str(i), **columns}
        for i in range(n) for language in ("en", "sw") for label, verb in (("harmful", "steal"), ("benign", "bake"))
    ]  # fmt: skip
    return ns.PromptSet.from_records(rows)


def table(prompts: ns.PromptSet, of: str, **options: Any) -> dict[str, tuple[int, int, bool]]:
    return {r.claim: (r.has, r.needs, r.enough) for r in requirements(prompts, **options) if r.of == of}


def test_every_claim_has_the_requests_of_its_pairs_and_needs_what_its_test_needs():
    right = some(32, expect=["bake"])
    found = table(right, "the set")
    assert list(found) == [*MARGIN_CLAIMS, *ANSWER_CLAIMS]
    assert {found[c] for c in MARGIN_CLAIMS if c != "specificity"} == {(32, 5, True)}  # 0.5^5 <= 0.05
    assert found["specificity"] == (32, 11, True)  # 0.75^11 <= 0.05
    assert found["refusals: necessity"] == found["refusals: sufficiency"] == (32, 5, True)
    assert found["refusals: coherence"] == (32, 14, True)  # 0.8^14 <= 0.05
    assert found["utility"] == (32, 29, True)  # 0.9^29 <= 0.05
    kept = table(right, "its kept members")
    assert list(kept) == list(found)
    assert {has for has, _, _ in kept.values()} == {22}  # a third chose them
    assert kept["utility"] == (22, 29, False)


@pytest.mark.parametrize(("graded", "of_set", "of_kept"), [(48, 48, 32), (100, 60, 40), (12, 12, 8)])
def test_claims_about_answers_have_the_requests_whose_answers_are_graded(graded: int, of_set: int, of_kept: int):
    for of, answered, all_of_them in (("the set", of_set, 60), ("its kept members", of_kept, 40)):
        found = table(some(60, expect=["bake"]), of, graded=graded)
        assert {found[c][0] for c in ANSWER_CLAIMS} == {answered}
        assert {found[c][0] for c in MARGIN_CLAIMS} == {all_of_them}


def test_utility_counts_requests_that_say_what_is_right_and_is_left_out_where_none_does():
    assert "utility" not in table(some(20), "the set")
    mixed = ns.PromptSet([replace(p, expect=("x",)) if int(p.pair_id or 0) < 30 else p for p in some(40)])
    assert table(mixed, "the set")["utility"] == (30, 29, True)
    assert table(mixed, "its kept members")["utility"][0] == 20


def test_only_confirm_rows_count():
    rows = [{**row, "split": "confirm" if row["pair_id"] < "1" else "discover"} for row in tiny.records()]
    assert table(ns.PromptSet.from_records(rows), "the set")["necessity: mean"] == (3, 5, False)


def test_one_line_a_claim_and_a_warning_where_it_is_short(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", "neuronshield"):
        log_requirements([Requirement("a", "the set", 5, 5), Requirement("b", "its kept members", 1, 29)])
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("INFO", "a of the set: 5 requests, needs 5"),
        ("WARNING", "b of its kept members: 1 request, needs 29: too few"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 4, 12, 16, 20])
def test_a_claim_is_too_few_to_tell_exactly_where_it_has_less_than_it_needs(n: int):
    """The numbers that are said beforehand are those that decide."""
    model = planted.build("llama", 0, n_backups=0)
    confirm = planted.prompts().where(split="confirm")
    requests = list(dict.fromkeys(p.pair_id for p in confirm))[:n]
    rows = ns.PromptSet([p for p in confirm if p.pair_id in requests])
    causes = ns.NeuronSet(model.causal, **planted.SHAPE)
    proof = ns.verify(model.model, causes, rows, draws=2, **planted.ASK)
    members = table(rows, "each member")["effect"]
    assert members == (n // 3, 5, n >= 15)
    assert (proof.retest is not None) == (n >= 15)  # no member can be chosen on fewer
    for of, claims in (("the set", proof.claims), ("its kept members", proof.retest.claims if proof.retest else ())):
        if not claims:
            continue
        said = {claim for claim, (_, _, enough) in table(rows, of).items() if not enough}
        assert {c.name for c in claims if c.verdict == "too few requests to tell"} == said
