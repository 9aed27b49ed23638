"""Diverse beam search is the algorithm as published, one token and one group at a time."""

from __future__ import annotations

import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.systems.beams import diverse_outputs

N, TOKENS = 4, 5


def by_hand(model: ns.Model, prompt: ns.Prompt, penalty: float) -> list[tuple[int, ...]]:
    """The groups of one prompt, unpadded, without a cache."""
    encoding, _ = tiny.encode(model, prompt)
    start = encoding["input_ids"][0].tolist()
    groups: list[list[int]] = [[] for _ in range(N)]
    for _ in range(TOKENS):
        taken: dict[int, int] = {}
        for group in groups:
            if group and group[-1] == 2:
                continue
            ids = torch.tensor([[*start, *group]])
            with torch.no_grad():
                out = model.module(**{**encoding, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
            scores = out.logits[0, -1].log_softmax(-1)
            for token, times in taken.items():
                scores[token] -= penalty * times
            group.append(int(scores.argmax()))
            taken[group[-1]] = taken.get(group[-1], 0) + 1
    return list(dict.fromkeys(map(tuple, groups)))


@pytest.mark.parametrize("penalty", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_groups_are_those_of_the_algorithm(request: pytest.FixtureRequest, family: str, penalty: float):
    model = request.getfixturevalue(family)
    prompts = tiny.prompts()[:7]  # of different lengths
    found = diverse_outputs(model, prompts, n=N, max_new_tokens=TOKENS, penalty=penalty, batch_size=3)
    wanted = [by_hand(model, prompt, penalty) for prompt in prompts]
    assert [[output.ids for output in own] for own in found] == wanted
    sizes = [len(own) for own in found]
    assert sizes == [1] * 7 if penalty == 0 else max(sizes) > 1


def test_outputs_that_ended_have_their_end_and_the_first_is_the_greedy_one():
    model = ns.load(tiny.llama(seed=1), processor=tiny.tokenizer())
    prompts = tiny.prompts()[:10]
    found = diverse_outputs(model, prompts, n=3, max_new_tokens=8)
    assert [own[0].text for own in found] == ns.generate(model, prompts, max_new_tokens=8)
    every = [output for own in found for output in own]
    assert all(output.ids[-1] == 2 or len(output.ids) == 8 for output in every)
    assert all(2 not in output.ids[:-1] for output in every)


def test_pictures_and_texts_in_one_call(llava: ns.Model):
    prompts = tiny.prompts(pictures=True, languages=("en",))[25:35]
    assert {p.modality for p in prompts} == {"text", "image"}
    found = diverse_outputs(llava, prompts, n=N, max_new_tokens=3, penalty=2.0, batch_size=2)
    for prompt, own in zip(prompts, found, strict=True):
        assert [o.ids for o in own] == [
            o.ids for o in diverse_outputs(llava, [prompt], n=N, max_new_tokens=3, penalty=2.0)[0]
        ]
        assert len(own) > 1
