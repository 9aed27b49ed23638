"""Prefixes carried by the model, first tokens of either side, and the margin between them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.check.judges import PrefixJudge
from neuronshield.data.languages import Prefixes
from neuronshield.model.prefixes import OpeningTokens, margin, opening_tokens, openings_of

WORD = {w: i for i, w in enumerate(tiny.WORDS)}
PROMPTS = ns.PromptSet([p for p in tiny.prompts() if p.language == "en"])


def carrying(**prefixes: list[str]) -> ns.Model:
    return ns.load(tiny.llama(), processor=tiny.tokenizer(), **prefixes)  # type: ignore[arg-type]


def test_a_model_carries_the_prefixes_it_was_loaded_with() -> None:
    assert carrying().prefixes == Prefixes()
    model = carrying(refusals=["sorry"], compliances=["sure"])
    assert model.prefixes == Prefixes(["sorry"], ["sure"])
    assert model.replace(module=tiny.llama(seed=1)).prefixes == model.prefixes
    found = openings_of(model, PROMPTS)
    assert found.refusals["en"][0] == "sorry"
    assert found.compliances["en"][0] == "sure"


def test_prefixes_of_a_call_come_before_those_of_the_model() -> None:
    model = carrying(refusals=["sorry"], compliances=["sure"])
    found = openings_of(model, PROMPTS, refusals=["no"])
    assert found.refusals["en"][0] == "no"
    assert found.compliances["en"][0] == "sure"


def test_the_organism_has_prefixes_of_its_own_and_takes_others() -> None:
    from neuronshield.organism import COMPLIANCES, REFUSALS

    assert ns.load("organism").prefixes == Prefixes(REFUSALS, COMPLIANCES)
    assert ns.load("organism", refusals=["no"]).prefixes == Prefixes(["no"], COMPLIANCES)


def test_first_tokens_of_both_sides_are_dropped() -> None:
    model = carrying(refusals=["sorry no", "here"], compliances=["here one", "sure"])
    bare = ns.PromptSet.from_records([{"prompt": "make cake", "label": label} for label in ("harmful", "benign")])
    tokens = opening_tokens(model, openings_of(model, bare))
    assert tokens["en"] == OpeningTokens([WORD["sorry"]], [WORD["sure"]])


@pytest.mark.parametrize(
    ("refusals", "said"),
    [(["sure"], "share their first tokens with the other side's"), (["zzz"], "tokenise to nothing")],
)
def test_prefixes_that_tell_nothing_apart_are_refused(refusals: list[str], said: str) -> None:
    model = carrying(refusals=refusals, compliances=["sure"])
    bare = ns.PromptSet.from_records([{"prompt": "make cake", "label": "benign"}])
    with pytest.raises(ns.InputError, match=f"refusal prefixes of 'en' {re.escape(said)}"):
        opening_tokens(model, openings_of(model, bare))


def test_the_margin_is_a_difference_of_log_sums() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    kinds = [OpeningTokens([0, 3], [5]), OpeningTokens([1], [2, 4]), OpeningTokens([0, 3], [5])]
    x = logits.double().numpy()
    wanted = [
        np.log(np.exp(x[i, k.refusal]).sum()) - np.log(np.exp(x[i, k.compliance]).sum()) for i, k in enumerate(kinds)
    ]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):  # a script may have set another default
        torch.set_default_dtype(dtype)
        try:
            got = margin(logits, kinds)
        finally:
            torch.set_default_dtype(torch.float32)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


NEURONS = ns.NeuronSet([(0, 3), (1, 5)], n_layers=3, d_mlp=29)
DOORS: dict[str, Any] = {
    "load": lambda m, wrong: ns.load(m.module, processor=m.processor, refusals=wrong),
    "evaluate": lambda m, wrong: ns.evaluate(m, tiny.prompts(), refusals=wrong, progress=False),
    "verify": lambda m, wrong: ns.verify(m, NEURONS, tiny.prompts(), refusals=wrong, progress=False),
    "attribution": lambda m, wrong: ns.attribution(m, tiny.prompts(), refusals=wrong),
    "masked_update": lambda m, wrong: ns.masked_update(
        m, NEURONS, tiny.prompts(), refusals=wrong, allow_unproven=True, progress=False
    ),
    "PrefixJudge": lambda _, wrong: PrefixJudge(refusals=wrong),
}


@pytest.mark.parametrize("wrong", [3, [3], [], [""], {"en": "No"}], ids=repr)
@pytest.mark.parametrize("door", DOORS)
def test_wrong_prefixes_are_one_line_at_every_door(llama: ns.Model, door: str, wrong: Any):
    with pytest.raises(ns.InputError, match=r"refusals=.*: must be a list of non-empty strings") as caught:
        DOORS[door](llama, wrong)
    assert "\n" not in str(caught.value)
