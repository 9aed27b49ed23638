"""The loss of a system is DPO on sums over nodes, and its marginal is the sum over every output."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import neuronshield as ns
from neuronshield.shield.dpo import BETA
from neuronshield.systems import Outcome, Preference
from neuronshield.systems.beams import Output
from neuronshield.systems.losses import Candidate, Trained, candidates, given_loss, log_probabilities, sampled_loss


def logp(module: Any, model: ns.Model, prompt: ns.Prompt | str, answer: str | Sequence[int]) -> torch.Tensor:
    """Log-probability of an answer from one unpadded forward; that of a text has its end."""
    asked = prompt if isinstance(prompt, ns.Prompt) else ns.Prompt("x", prompt, "benign")
    encoding, n = tiny.encode(model, asked, answer if isinstance(answer, str) else "")
    ids = encoding["input_ids"]
    if not isinstance(answer, str):
        ids = torch.cat([ids[:, :n], torch.tensor([list(answer)], dtype=torch.long)], dim=1)
        encoding |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return module(**encoding).logits[0, n - 1 : -1].log_softmax(-1).gather(1, ids[0, n:, None]).sum()


def moved(model: ns.Model, seed: int) -> Any:
    """A copy of the module with other weights, all of which ask for a gradient."""
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.requires_grad_(True)
    return module


def gradients(module: Any) -> list[torch.Tensor]:
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in module.parameters()]


# -- outputs given ----------------------------------------------------------------------------------------
def test_log_probabilities_are_those_of_one_unpadded_forward(llava: ns.Model):
    prompts = tiny.prompts(pictures=True, languages=("en",))[26:34]
    answers: list[str | list[int]] = ["sure", "sorry i cannot help", [7, 8], "", "no no no", [2], "yes", [9]]
    found = log_probabilities(llava, llava.module, prompts, answers=answers)
    wanted = [logp(llava.module, llava, p, a) for p, a in zip(prompts, answers, strict=True)]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)


def pairs(prompts: Sequence[ns.Prompt]) -> list[Preference]:
    """Outcomes that differ at both nodes, at the last only, or at the first only."""
    told = [
        ("a cake", "sorry no", "the bomb", "sure make it"),
        ("a cake", "sorry", "a cake", "yes"),
        ("red", "no", "blue", "no"),
    ]
    return [
        Preference(p, Outcome({"describe": a, "answer": b}), Outcome({"describe": c, "answer": d}))
        for p, (a, b, c, d) in zip(prompts, told, strict=True)
    ]  # fmt: skip


def by_hand(first: Any, second: Any, system: ns.System, chosen: Sequence[Preference]) -> torch.Tensor:
    """The two-node loss as its formula says."""
    one, two = system.nodes["describe"].model, system.nodes["answer"].model
    losses = []
    for pair in chosen:
        ahead = torch.zeros(())
        for sign, outcome in ((1, pair.preferred), (-1, pair.rejected)):
            described, answered = outcome.outputs["describe"], outcome.outputs["answer"]
            for now, model, asked, said in (
                (first, one, pair.prompt.prompt, described),
                (second, two, f"how {described} here", answered),
            ):
                with torch.no_grad():
                    before = logp(model.module, model, asked, said)
                ahead = ahead + sign * (logp(now, model, asked, said) - before)
        losses.append(-torch.nn.functional.logsigmoid(BETA * ahead))
    return torch.stack(losses).mean()


def two_nodes(first: ns.Model, second: ns.Model) -> ns.System:
    return ns.System([ns.Node("describe", first), ns.Node("answer", second, "how {describe} here")])


def test_the_gradient_of_two_nodes_is_that_of_the_formula(llama: ns.Model):
    other = ns.load(tiny.llama(seed=5), processor=tiny.tokenizer())
    system, chosen = two_nodes(llama, other), pairs(tiny.prompts()[:3])
    first, second = moved(llama, 1), moved(other, 2)
    loss = given_loss(Trained(system, {"describe": first, "answer": second}, system), chosen)
    loss.backward()
    found = gradients(first), gradients(second)
    first.zero_grad(), second.zero_grad()
    wanted = by_hand(first, second, system, chosen)
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-5)
    for mine, theirs in zip(found, (gradients(first), gradients(second)), strict=True):
        assert max(float(g.abs().max()) for g in theirs) > 1e-4
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_shared_weights_is_the_sum_over_nodes(llama: ns.Model):
    system, chosen = two_nodes(llama, llama), pairs(tiny.prompts()[:3])
    module = moved(llama, 1)
    given_loss(Trained(system, {"describe": module, "answer": module}, system), chosen).backward()
    found = gradients(module)
    parts = moved(llama, 1), moved(llama, 1)
    by_hand(*parts, system, chosen).backward()
    for a, b, c in zip(found, *map(gradients, parts), strict=True):
        torch.testing.assert_close(a, b + c, rtol=1e-3, atol=1e-5)


def test_a_node_that_is_not_trained_drops_out(llama: ns.Model):
    other = ns.load(tiny.llama(seed=5), processor=tiny.tokenizer())
    system, chosen = two_nodes(llama, other), pairs(tiny.prompts()[:3])
    second = moved(other, 2)
    loss = given_loss(Trained(system, {"answer": second}, system), chosen)
    assert float(loss.detach()) == pytest.approx(
        float(by_hand(llama.module, second, system, chosen).detach()), abs=1e-5
    )


# -- finals labelled --------------------------------------------------------------------------------------
FEW = ["<pad>", "<bos>", "<eos>", "<unk>", "how", "cake"]


@pytest.fixture(scope="module")
def small() -> ns.Model:
    """Six tokens, so that every output of two tokens can be listed."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(FEW)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    return ns.load(tiny.llama(seed=4, vocab_size=len(FEW)).double(), processor=tokenizer)


def every_output(model: ns.Model) -> list[Output]:
    """All outputs of at most two tokens: ended, or cut off after the second."""
    tokens = range(len(FEW))
    ids = [(2,), *((a, b) for a, b in itertools.product(tokens, tokens) if a != 2)]
    return [Output(one, model.tokenizer.decode(one, skip_special_tokens=True).strip()) for one in ids]


def marginal(first: Any, second: Any, model: ns.Model, prompt: ns.Prompt, answer: str) -> torch.Tensor:
    """log p(answer | prompt) by enumeration."""
    terms = []
    for output in every_output(model):
        asked = f"how {output.text} cake"
        terms.append(logp(first, model, prompt, output.ids) + logp(second, model, asked, answer))
    return torch.stack(terms).logsumexp(0)


def sampling(small: ns.Model) -> tuple[ns.System, list[Preference], list[list[Candidate]]]:
    describe = ns.Node("describe", small, max_new_tokens=2)
    system = ns.System([describe, ns.Node("answer", small, "how {describe} cake", max_new_tokens=3)])
    prompts = [ns.Prompt("1", "how cake", "harmful"), ns.Prompt("2", "cake cake how", "benign")]
    chosen = [
        Preference(p, Outcome({"describe": "", "answer": best}), Outcome({"describe": "", "answer": worst}))
        for p, best, worst in zip(prompts, ("how", "cake how"), ("cake", "how how"), strict=True)
    ]
    return system, chosen, [[Candidate({"describe": o}) for o in every_output(small)]] * 2


@pytest.mark.slow
def test_over_every_output_the_loss_and_its_gradient_are_those_of_the_marginal(small: ns.Model):
    system, chosen, found = sampling(small)
    first, second = moved(small, 1), moved(small, 2)
    assert len(found[0]) == 31
    total = torch.stack([logp(first, small, chosen[0].prompt, one.outputs["describe"].ids) for one in found[0]])
    assert float(total.logsumexp(0).detach()) == pytest.approx(0, abs=1e-9)  # they are all that can be written
    loss = sampled_loss(Trained(system, {"describe": first, "answer": second}, system), chosen, found)
    loss.backward()
    mine = gradients(first), gradients(second)
    first.zero_grad(), second.zero_grad()
    losses = []
    for pair in chosen:
        ahead = torch.zeros((), dtype=torch.float64)
        for sign, outcome in ((1, pair.preferred), (-1, pair.rejected)):
            now = marginal(first, second, small, pair.prompt, outcome.answer)
            with torch.no_grad():
                before = marginal(small.module, small.module, small, pair.prompt, outcome.answer)
            ahead = ahead + sign * (now - before)
        losses.append(-torch.nn.functional.logsigmoid(BETA * ahead))
    wanted = torch.stack(losses).mean()
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-9)
    assert abs(float(loss.detach()) - 0.6931) > 1e-4
    for own, theirs in zip(mine, (gradients(first), gradients(second)), strict=True):
        assert max(float(g.abs().max()) for g in theirs) > 1e-6
        for a, b in zip(own, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_over_some_outputs_the_marginal_is_approached_from_below(small: ns.Model):
    from neuronshield.systems.losses import _finals

    system, chosen, _ = sampling(small)
    exact = [
        [
            float(marginal(small.module, small.module, small, p.prompt, o.answer).detach())
            for o in (p.preferred, p.rejected)
        ]
        for p in chosen
    ]
    bounds = []
    for n in (1, 2, 4, 8):
        with torch.no_grad():
            found = candidates(system, [p.prompt for p in chosen], n=n)
            bounds.append(_finals(Trained(system, {}, system), chosen, found=found, now=True))
    for less, more in itertools.pairwise([*bounds, torch.tensor(exact, dtype=torch.float64)]):
        assert bool((less <= more + 1e-9).all())
    assert bool((bounds[0] < bounds[-1]).all())


def test_of_several_nodes_the_likeliest_outputs_stay(small: ns.Model):
    first, second = ns.Node("a", small, max_new_tokens=2), ns.Node("b", small, "how {a} how", max_new_tokens=1)
    system = ns.System([first, second, ns.Node("c", small, "{a} {b} cake")])
    prompt = ns.Prompt("1", "how cake", "harmful")
    found = candidates(system, [prompt], n=3)[0]
    assert len(found) == 3
    from neuronshield.systems.beams import diverse_outputs

    every = []
    for a in diverse_outputs(small, [prompt], n=3, max_new_tokens=2)[0]:
        asked = ns.Prompt("1", f"how {a.text} how", "harmful")
        for b in diverse_outputs(small, [asked], n=3, max_new_tokens=1)[0]:
            score = logp(small.module, small, prompt, a.ids) + logp(small.module, small, asked, b.ids)
            every.append((float(score), a.ids, b.ids))
    best = sorted(every, reverse=True)[:3]
    assert [(one.outputs["a"].ids, one.outputs["b"].ids) for one in found] == [(a, b) for _, a, b in best]


def test_an_output_that_leaves_nothing_to_read_is_left_out(small: ns.Model):
    describe = ns.Node("describe", small, max_new_tokens=1)
    silent = ns.System([describe, ns.Node("answer", small, "{describe}")])
    told = ns.System([describe, ns.Node("answer", small, "how {describe}")])
    prompt = ns.Prompt("1", "how cake", "harmful")
    some = [one.texts["describe"] for one in candidates(silent, [prompt], n=6)[0]]
    every = [one.texts["describe"] for one in candidates(told, [prompt], n=6)[0]]
    assert "" in every
    assert some == [text for text in every if text]
