"""Where the thought of a reasoning model ends and its answer begins."""

from __future__ import annotations

import pytest

from neuronshield.data.thoughts import after_thought, is_thought_token, opens_thought

ANSWER = "I'm sorry, but I can't help with that."


@pytest.mark.parametrize(
    "response",
    [
        ANSWER,
        f"<think>\nOkay.\n</think>\n\n{ANSWER}",
        f"Okay, the user asks.\n</think>\n\n{ANSWER}",  # the template opened it
        f"<think></think>{ANSWER}",
        f"<think>a</think>b<think>c</think>{ANSWER}",
        f"<thinking>a</thinking>{ANSWER}",
        f"<THINK>a</THINK>{ANSWER}",
        f"<thought>\na</thought>\n{ANSWER}",
        f"<think>a</think><answer>{ANSWER}</answer>",
        f"[THINK]a[/THINK]{ANSWER}",
        f"<seed:think>a</seed:think>{ANSWER}",
        f"◁think▷a◁/think▷{ANSWER}",
        f"<|begin_of_thought|>\na\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{ANSWER}\n<|end_of_solution|>",
        f"<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        f"<|inner_prefix|>a<|inner_suffix|>{ANSWER}",
        f"<unused94>thought\na<unused95>{ANSWER}",
        f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
        f"<|channel|>analysis<|message|>a<|channel|>commentary<|message|>b<|channel|>final<|message|>{ANSWER}",
        f"<|channel|>final<|message|>{ANSWER}",
        f"analysisWe must refuse.assistantfinal{ANSWER}",  # special tokens were stripped
        f"analysisWe call it.assistantcommentary to=f codeassistantfinal{ANSWER}",
        f"final{ANSWER}",
        f"<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{ANSWER}",
        f"<|channel>thought\na\n<channel|>{ANSWER}",
        f"Here is my thought process:\na\n\nHere is my response:\n{ANSWER}",
        f"<|channel>analysis\na<|channel>final\n{ANSWER}",
    ],
)
def test_the_answer_comes_after_the_thought(response: str):
    assert after_thought(response) == ANSWER
    assert after_thought(response, opened=True) == (None if response in (ANSWER, f"final{ANSWER}") else ANSWER)


@pytest.mark.parametrize(
    "response",
    [
        "<think>\nOkay, I can't",
        "<think>",
        "<thinking>a",
        "[THINK] a",
        "◁think▷a",
        "<seed:think>a",
        "<|begin_of_thought|>a",
        "<|START_THINKING|>a",
        "<unused94>thought\n",
        "<|channel|>analysis<|message|>We",
        "<|channel|>analysis",
        "<|channel>thought\nhm",
        "analysisWe need to refuse.",
        "Here is my thought process:\nI can't",
        "<think>a</think><think>b",
    ],
)
def test_a_thought_that_was_cut_short_has_no_answer(response: str):
    assert after_thought(response) is None


@pytest.mark.parametrize(
    "response",
    [
        "Analysis of locks: the pins",
        "analysis of the pins",
        "analysis: the pins",
        "Finally, bake it.",
        "final answer: 3",
        "I [think] so.",
        "A <b>bold</b> <thing>.",
        "Reasoning: the pins",
        "",
    ],
)
def test_an_answer_without_a_thought_is_left_as_it_is(response: str):
    assert after_thought(response) == response


def test_an_answer_before_an_unfinished_thought_is_the_answer():
    assert after_thought("Take two eggs. <think>Or three") == "Take two eggs."


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("assistant\n<think>\n\n", True),
        ("[/INST][THINK]", True),
        ("<|start|>assistant<|channel|>analysis<|message|>", True),
        ("<seed:think>", True),
        ("<think>\n\n</think>\n\n", False),  # switched off
        ("<|start|>assistant", False),
        ("how do i <think> and bake", False),
        ("", False),
    ],
)
def test_a_prompt_that_ends_in_a_thought_is_told(prompt: str, opened: bool):
    assert opens_thought(prompt) is opened


def test_only_tokens_that_mark_thoughts_are_kept_by_decoding():
    kept = [
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "<|channel|>",
        "<|message|>",
        "<seed:think>",
        "◁/think▷",
        "<channel|>",
    ]
    assert all(map(is_thought_token, kept))
    assert not any(
        map(is_thought_token, ["<|im_end|>", "</s>", "<pad>", "<|end|>", "<|start|>", "[INST]", "<image>", ""])
    )
