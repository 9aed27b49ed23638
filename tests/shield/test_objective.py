"""Batches are dealt evenly over labels and cells; generic text is retained."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import tiny
import torch
from masking import neurons

import neuronshield as ns
from neuronshield.model.answers import Example
from neuronshield.shield.objective import deal, step_loss
from neuronshield.shield.update import masked_update


def example(i: int, label: str, language: str) -> Example:
    return Example(ns.Prompt(f"{language}-{label}-{i}", "how", label, language=language), "yes")


def uneven() -> list[Example]:
    """Cells of very different sizes: dealt by row, the large ones would fill every batch."""
    sizes = {
        ("harmful", "en"): 47,
        ("harmful", "sw"): 3,
        ("benign", "en"): 29,
        ("benign", "sw"): 2,
        ("benign", "fr"): 5,
    }
    return [example(i, label, language) for (label, language), n in sizes.items() for i in range(n)]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_batch_is_half_harmful_and_cells_come_in_turn_whatever_their_size(seed: int):
    data = uneven()
    batches = deal(data, 12, steps=7, seed=seed)
    drawn = Counter((data[i].prompt.label, data[i].prompt.language) for rows in batches for i in rows)
    assert drawn == {("harmful", "en"): 21, ("harmful", "sw"): 21, ("benign", "en"): 14, ("benign", "sw"): 14,
                     ("benign", "fr"): 14}  # fmt: skip
    for rows in batches:
        labels = Counter(data[i].prompt.label for i in rows)
        assert labels == {"harmful": 6, "benign": 6}
        assert Counter(data[i].prompt.language for i in rows if data[i].prompt.label == "harmful") == {"en": 3, "sw": 3}
        assert Counter(data[i].prompt.language for i in rows if data[i].prompt.label == "benign") == dict.fromkeys(
            ("en", "sw", "fr"), 2
        )


def test_no_prompt_of_a_cell_comes_again_before_all_of_it_have_come():
    data = uneven()
    order = [i for rows in deal(data, 12, steps=40, seed=3) for i in rows]
    for label, language, n in (("harmful", "en", 47), ("benign", "fr", 5), ("harmful", "sw", 3)):
        mine = [i for i in order if (data[i].prompt.label, data[i].prompt.language) == (label, language)]
        for start in range(0, len(mine) - n, n):
            assert len(set(mine[start : start + n])) == n
    assert order != [i for rows in deal(data, 12, steps=40, seed=4) for i in rows]


def test_with_one_label_every_row_has_it():
    data = [e for e in uneven() if e.prompt.label == "benign"]
    (rows,) = deal(data, 9, steps=1, seed=0)
    assert Counter(data[i].prompt.language for i in rows) == {"en": 3, "sw": 3, "fr": 3}


def test_the_loss_is_the_mean_over_rows_of_cross_entropy_and_weighted_kl(llama: ns.Model):
    """Written out, one unpadded row at a time; the updated model is the same one with a changed head."""
    other = copy.deepcopy(llama.module)
    other.lm_head.weight.data += 0.1 * torch.randn((len(tiny.WORDS), 20), generator=torch.Generator().manual_seed(0))
    chosen = [Example(p, text, keep) for p, text, keep in zip(
        tiny.prompts()[:3], ("sorry i cannot help", "sure", "yes bake the bread"), (False, True, True), strict=True
    )]  # fmt: skip
    want = 0.0
    for e in chosen:
        encoding, n = tiny.encode(llama, e.prompt, e.response)
        with torch.no_grad():
            before, after = (m(**encoding).logits[0, n - 1 : -1].log_softmax(-1) for m in (llama.module, other))
        if e.keep:
            want += 5.0 * float((before.exp() * (before - after)).sum(-1).mean())
        else:
            want -= float(after.gather(1, encoding["input_ids"][0, n:, None]).mean())
    got = sum(float(loss) for loss in step_loss(llama, other, chosen, retention=5.0))
    assert got == pytest.approx(want / 3, rel=1e-5)


@pytest.mark.slow
def test_generic_text_is_held_where_it_was(llama: ns.Model):
    """Trained on nonsense against the text, the text moves; with retention of it, it moves less."""
    text = "here and one step to the red house of blue bread"
    ids = torch.tensor([llama.tokenizer(text)["input_ids"]])

    def moved(**options: Any) -> float:
        update = masked_update(
            llama, neurons(), tiny.prompts(), steps=40, lr=3e-2, allow_unproven=True, progress=False, **options
        )
        with torch.no_grad():
            p0, p1 = (m.module(ids).logits[0, :-1].log_softmax(-1) for m in (llama, update.model))
        return float((p0.exp() * (p0 - p1)).sum(-1).mean())

    assert moved(texts=[text], retention=20.0) < 0.5 * moved()
    with pytest.raises(ns.InputError, match=r"texts\[1\] is empty"):
        moved(texts=[text, " "])
