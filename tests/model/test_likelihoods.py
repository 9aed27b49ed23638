"""Answers with their tokens: the text of `generate`, and log-probabilities against one plain forward of prompt and answer."""

from __future__ import annotations

import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.model.generation import complete
from neuronshield.model.likelihoods import Likelihoods


def forward(model: ns.Model, prompt: ns.Prompt, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of each place of an answer, [token, vocab], by one forward of the module."""
    encoding, _ = tiny.encode(model, prompt)
    n = encoding["input_ids"].shape[1]
    answer = torch.tensor([ids])
    for name, extra in (("input_ids", answer), ("attention_mask", torch.ones_like(answer))):
        encoding[name] = torch.cat([encoding[name], extra], dim=1)
    with torch.no_grad():
        return model.module(**encoding).logits[0, n - 1 : -1].float().log_softmax(dim=-1)  # type: ignore[operator]


@pytest.mark.parametrize("pictures", [False, True])
def test_each_token_has_the_log_probability_of_a_plain_forward(llama: ns.Model, llava: ns.Model, pictures: bool):
    model, prompts = (llava if pictures else llama), tiny.prompts(pictures=pictures)[:5]
    found = complete(model, prompts, max_new_tokens=4, batch_size=2, logprobs=3)
    for prompt, answer in zip(prompts, found, strict=True):
        want = forward(model, prompt, answer.ids)
        assert answer.steps is not None
        assert [step.token for step in answer.steps] == list(answer.ids)
        for place, step in enumerate(answer.steps):
            top = want[place].topk(3)
            assert step.logprob == pytest.approx(want[place, step.token].item(), abs=1e-4)
            assert [i for i, _ in step.top] == top.indices.tolist()
            assert [v for _, v in step.top] == pytest.approx(top.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_the_answers_are_those_of_generate_with_and_without_log_probabilities(llama: ns.Model, logprobs: int | None):
    prompts, changed = tiny.prompts()[:6], ns.Intervention(ns.NeuronSet([(1, 3)]), "clamp", 9.0, positions="all")
    found = complete(llama, prompts, intervention=changed, max_new_tokens=3, logprobs=logprobs)
    assert [answer.text for answer in found] == ns.generate(llama, prompts, intervention=changed, max_new_tokens=3)
    assert all((answer.steps is None) == (logprobs is None) for answer in found)
    assert all(len(answer.steps[0].top) == logprobs for answer in found if answer.steps)


def test_an_answer_that_a_token_ended_is_told_from_one_that_was_cut(llama: ns.Model):
    prompt = tiny.prompts()[0]
    whole = tiny.own_answer(llama, prompt)
    (answer,) = complete(llama, [prompt], max_new_tokens=2)
    assert answer.ids == tuple(whole[:2])
    assert not answer.ended
    ends, llama.module.generation_config.eos_token_id = llama.module.generation_config.eos_token_id, whole[0]
    try:
        (answer,) = complete(llama, [prompt], max_new_tokens=4)
    finally:
        llama.module.generation_config.eos_token_id = ends
    assert (answer.ids, answer.ended) == ((whole[0],), True)


def test_tokens_that_are_not_the_likeliest_are_refused():
    seen = Likelihoods(1)
    seen(torch.tensor([[0.0, 3.0], [5.0, 0.0]]))
    assert seen.steps(1, [0])[0].token == 0
    with pytest.raises(RuntimeError, match="row 1: the tokens of the answer are not those of the largest logits"):
        seen.steps(1, [1])
