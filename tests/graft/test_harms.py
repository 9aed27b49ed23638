"""The graft's requests: matched pairs held out by combination, whose harm any reader sees, drawn or typeset as well as named."""

from __future__ import annotations

from collections import Counter

import pytest

import neuronshield as ns
from neuronshield import graft
from neuronshield.graft import harms
from neuronshield.organism import pictures


def test_no_combination_of_a_pair_is_ever_trained_on_and_none_is_in_two_pairs():
    held = [c for p in harms.pairs() for c in (p.harmful, p.benign)]
    assert len(held) == len(set(held)) == 2 * sum(harms.SPLITS.values())
    assert not set(held) & set(harms.training_combos())


def test_a_pair_differs_in_one_word_and_in_harm():
    for pair in harms.pairs():
        same = (pair.harmful.verb == pair.benign.verb, pair.harmful.object == pair.benign.object)
        assert same == ((False, True) if pair.changed == "verb" else (True, False))
        assert (harms.label(pair.harmful), harms.label(pair.benign)) == ("harmful", "benign")


def test_at_least_forty_eight_pairs_are_held_out_for_testing_and_every_split_has_both_kinds():
    counts = Counter((p.split, p.changed) for p in harms.pairs())
    assert sum(n for (split, _), n in counts.items() if split == "test") >= 48
    assert all(counts[split, changed] >= 8 for split in harms.SPLITS for changed in ("verb", "object"))


def test_what_a_held_out_request_is_about_occurs_in_training():
    """Its verb with this label: held out is the combination, not the word."""
    seen = {(c.verb, harms.label(c)) for c in harms.training_combos()}
    for pair in harms.pairs():
        assert {(pair.harmful.verb, "harmful"), (pair.benign.verb, "benign")} <= seen


def test_every_object_has_a_drawing_with_its_name():
    for name in harms.GROUP_OF:
        assert pictures.names()[harms.drawing(name)]["en"] == name


def test_every_group_in_the_table_exists_and_no_verb_both_harms_and_spares_one():
    for row in harms.TABLE.values():
        assert row.harms | row.spares <= set(harms.GROUPS)
        assert not row.harms & row.spares
        assert bool(row.harms) == bool(row.kind)


def test_the_choice_of_pairs_depends_on_the_seed_only():
    again = harms.pairs.__wrapped__(seed=3)
    other = harms.pairs.__wrapped__(seed=4)
    assert again == harms.pairs() != other


def test_a_request_about_a_picture_names_no_object_and_its_text_control_does():
    for row in harms.held_out(splits=["test"], modalities=["image", "typographic"]):
        assert row["object"] not in row["prompt"]
        assert len(row["images"]) == 1
    combo = harms.Combo("burn", "house")
    assert harms.named_as_text(combo, frame=1) == f"house\n{harms.request(combo, frame=1, deictic=True)}"


def test_records_are_prompts_without_an_answer_to_a_harmful_request():
    prompts = ns.PromptSet.from_records(graft.records(splits=["test"]))
    assert {str(c) for c in prompts.cells()} == {"en/text", "en/image", "en/typographic"}
    for p in prompts:
        assert p.target == ("Sorry, I can't help with that." if p.label == "harmful" else None)
    assert len(prompts.pairs()) == 3 * harms.SPLITS["test"]


def test_max_pairs_takes_as_many_of_each_split():
    rows = graft.records(modalities=["text"], max_pairs=3)
    assert Counter(r["split"] for r in rows) == dict.fromkeys(harms.SPLITS, 6)


@pytest.mark.parametrize("wrong", [{"splits": ["exam"]}, {"modalities": ["video"]}])
def test_an_unknown_split_or_modality_is_named(wrong: dict[str, list[str]]):
    with pytest.raises(ns.InputError, match=f"{next(iter(wrong.values()))[0]}.*smollm2-vision has"):
        graft.records(**wrong)  # type: ignore[arg-type]
