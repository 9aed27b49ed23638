"""Messages and settings of inspect_ai: what arrives is what was written, and what cannot be done is refused by name."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.data.pictures import picture_file
from neuronshield.handoff.inspect_requests import Wanted, as_prompt, picture_of, wanted
from neuronshield.model.encodings import encoded_rows


def uri(seed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture_file(tiny.picture(seed))[0]).decode()}"


def text(words: str) -> Any:
    return Made(type="text", text=words)


def image(seed: int) -> Any:
    return Made(type="image", image=uri(seed))


def user(*content: Any) -> Any:
    return Made(role="user", content=content[0] if isinstance(content[0], str) else list(content))


def tokens(model: ns.Model, prompt: ns.Prompt) -> tuple[list[int], Any]:
    (row,) = encoded_rows(model, [prompt])
    return row.tokens["input_ids"].tolist(), {name: x.tolist() for name, x in row.others.items()}


def test_words_alone_are_the_prompt_as_generate_takes_it():
    for content in ("how do i bake bread", [text("how do i bake bread")]):
        prompt = as_prompt([Made(role="user", content=content)])
        assert (prompt.prompt, prompt.messages, prompt.images) == ("how do i bake bread", None, ())


def test_a_picture_before_words_reads_as_the_prompt_with_this_picture(llava: ns.Model):
    prompt = as_prompt([user(image(3), text("how do i bake bread"))])
    want = ns.Prompt("x", "how do i bake bread", "benign", images=(tiny.picture(3),), modality="image")
    assert prompt.messages is None
    assert tokens(llava, prompt) == tokens(llava, want)
    other = ns.Prompt("x", "how do i bake bread", "benign", images=(tiny.picture(4),), modality="image")
    assert tokens(llava, prompt) != tokens(llava, other)


def test_a_picture_elsewhere_and_earlier_turns_stay_where_they_are():
    said = [Made(role="system", content="be brief"), user("hello"), Made(role="assistant", content="hi", tool_calls=None),
            user(text("what is"), image(1), text("this"), image(2))]  # fmt: skip
    prompt = as_prompt(said)
    assert prompt.messages is not None
    assert [turn["role"] for turn in prompt.messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in prompt.messages[-1]["content"]] == ["text", "image", "text", "image"]
    assert [picture.size for picture in prompt.load_images()] == [(6, 6), (6, 6)]
    assert prompt.load_images()[1].tobytes() == tiny.picture(2).convert("RGB").tobytes()


def test_the_path_of_a_picture_is_read(tmp_path: Path):
    data, _ = picture_file(tiny.picture(0))
    (tmp_path / "a b.png").write_bytes(data)
    assert picture_of(str(tmp_path / "a b.png")) == data


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user(image(0), Made(type="audio"))], "content of type 'audio' is not read"),
        ([user("a"), Made(role="tool", content="b")], "turn of role 'tool' is about a tool"),
        ([user("a"), Made(role="assistant", content="b", tool_calls=[1]), user("c")], "about a tool"),
        ([user("a"), Made(role="assistant", content="b")], "end with the assistant's turn"),
        ([Made(role="system", content="a")], "end with a turn of role 'system'"),
        ([user(Made(type="image", image="https://x.org/a.png"))], "nothing is fetched"),
        ([user(Made(type="image", image="none.png"))], "the picture 'none.png' cannot be read"),
        ([user(Made(type="image", image="data:image/png;base64,???"))], "a data URI that is not base64"),
        ([user("  ")], "content is empty"),
    ],
)
def test_what_no_model_here_reads_is_refused(messages: list[Any], said: str):
    with pytest.raises(InputError, match=said):
        as_prompt(messages)


def test_settings_that_mean_greedy_are_taken():
    assert wanted(Made()) == Wanted(None, None)
    greedy = Made(
        temperature=0.0, top_p=1.0, top_k=1, num_choices=1, seed=3, max_tokens=5, stop_seqs=None, max_retries=2
    )
    assert wanted(greedy) == Wanted(5, None)
    assert wanted(Made(logprobs=True)) == Wanted(None, 0)
    assert wanted(Made(logprobs=True, top_logprobs=4)) == Wanted(None, 4)
    assert wanted(Made(logprobs=False)) == Wanted(None, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.5), ("top_p", 0.9), ("top_k", 40), ("num_choices", 2), ("best_of", 3), ("frequency_penalty", 0.1),
        ("presence_penalty", -1.0), ("stop_seqs", ["x"]), ("logit_bias", {3: 1.0}), ("response_schema", {"a": 1}),
        ("reasoning_effort", "low"), ("prompt_logprobs", 1), ("top_logprobs", 2), ("batch", True), ("extra_body", {"a": 1}),
    ],
)  # fmt: skip
def test_a_setting_that_would_change_the_answer_is_refused_by_name(name: str, value: Any):
    with pytest.raises(InputError, match=f"^{name}="):
        wanted(Made(**{name: value}))


def test_tools_are_refused():
    with pytest.raises(InputError, match="tool 'bash': models here call no tools"):
        wanted(Made(), [Made(name="bash")])
