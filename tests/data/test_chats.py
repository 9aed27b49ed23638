"""Conversations in every spelling to one form; whatever would not reach the model is refused by row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from neuronshield import InputError, Prompt, PromptSet

TEXT = {"type": "text", "text": "bake"}
PLACE = {"type": "image"}


def user(content: Any, **columns: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **columns}


def said(content: Any, **columns: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **columns}


def read(*turns: Any, folder: Path | None = None, **columns: Any) -> Prompt:
    return PromptSet.from_records([{"label": "benign", **columns, "messages": list(turns)}], folder=folder)[0]


def pixels(prompt: Prompt) -> list[bytes]:
    return [image.tobytes() for image in prompt.load_images()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate("abc"):
        tiny.picture(i).save(tmp_path / f"{name}.png")
    return tmp_path


SPELLINGS: dict[str, Any] = {
    "image: path": {"type": "image", "image": "a.png"},
    "image: Path": {"type": "image", "image": Path("a.png")},
    "image: PIL": {"type": "image", "image": tiny.picture(0)},
    "image: array": {"type": "image", "image": np.asarray(tiny.picture(0))},
    "image: dict": {"type": "image", "image": {"bytes": None, "path": "a.png"}},
    "path": {"type": "image", "path": "a.png"},
    "url": {"type": "image", "url": "a.png"},
    "image_url: str": {"type": "image_url", "image_url": "a.png"},
    "image_url: dict": {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
    "input_image": {"type": "input_image", "image_url": "a.png", "detail": "auto"},
    "no type": {"image": "a.png"},
    "nulls of a table": {"type": "image", "image": "a.png", "text": None, "image_url": None, "url": float("nan")},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_picture_in_a_part_becomes_a_picture_of_the_prompt_at_its_place(folder: Path, spelling: str):
    prompt = read(user([TEXT, SPELLINGS[spelling], TEXT]), folder=folder)
    assert prompt.messages == (user([TEXT, PLACE, TEXT]),)
    assert pixels(prompt) == [tiny.picture(0).tobytes()]
    assert (prompt.prompt, prompt.modality) == ("bake bake", "text+image")


def test_a_file_url_is_a_path(folder: Path):
    (folder / "a.png").rename(folder / "a b.png")
    url = (folder / "a b.png").as_uri()
    assert "%20" in url
    assert pixels(read(user([{"type": "image", "url": url}, TEXT]), folder=folder)) == [tiny.picture(0).tobytes()]


def test_pictures_of_parts_and_of_the_column_keep_the_order_of_their_parts(folder: Path):
    turns = [
        user([PLACE, {"type": "image", "image": "b.png"}, TEXT]),
        said("yes"),
        user([TEXT, {"type": "image", "index": 1}]),
    ]
    prompt = read(*turns, folder=folder, images=["a.png", "c.png"])
    assert pixels(prompt) == [tiny.picture(i).tobytes() for i in range(3)]
    assert prompt.messages == (user([PLACE, PLACE, TEXT]), said("yes"), user([TEXT, PLACE]))


@pytest.mark.parametrize("content", ["bake", [TEXT]])
def test_pictures_without_a_part_stand_before_the_text_of_the_last_turn(content: Any):
    prompt = read(user("hello"), said("yes"), user(content), images=[tiny.picture(0), tiny.picture(1)])
    assert prompt.messages == (user("hello"), said("yes"), user([PLACE, PLACE, TEXT]))
    assert prompt.prompt == "bake"


def test_a_picture_alone_is_a_request(folder: Path):
    prompt = read(user([{"type": "image", "image": "a.png"}]), folder=folder, modality="typographic")
    assert (prompt.prompt, prompt.modality, len(prompt.images)) == ("", "typographic", 1)


def test_null_keys_do_not_hide_text(tmp_path: Path):
    pd = pytest.importorskip("pandas")
    parts = [
        {"type": "text", "text": "how do", "image": None},
        {"type": "text", "text": "i bake", "image": None, "more": None},
    ]
    turns = [user(parts, name=None), said(parts[:1], tool_calls=None), user(parts)]
    pd.DataFrame([{"messages": turns, "label": "benign"}]).to_parquet(tmp_path / "p.parquet")
    (prompt,) = PromptSet.from_parquet(tmp_path / "p.parquet")
    assert prompt.prompt == "how do i bake"
    assert prompt.messages is not None
    assert prompt.messages[0] == user([{"type": "text", "text": "how do"}, {"type": "text", "text": "i bake"}])
    assert prompt.messages[1] == said([{"type": "text", "text": "how do"}])


def test_empty_lists_of_a_table_are_no_calls_and_no_pictures():
    # trap: a template that asks whether the key is there
    turns = [user("x"), {**said("no"), "tool_calls": [], "images": np.array([])}, user("y")]
    assert read(*turns).messages == (user("x"), said("no"), user("y"))


def test_numpy_around_turns_and_parts_is_taken_off():
    turns = np.array([user(np.array([TEXT], dtype=object), weight=np.float64(0.5))], dtype=object)
    (prompt,) = PromptSet.from_records([{"messages": turns, "label": "benign"}])
    assert prompt.messages == (user([TEXT], weight=0.5),)
    json.dumps(prompt.messages)


def test_what_was_given_is_not_changed(folder: Path):
    turns = [user([{"type": "image", "image": "a.png"}, dict(TEXT)]), said("sure")]
    before = json.dumps(turns)
    read(*turns, folder=folder)
    assert json.dumps(turns) == before


# -- a chat that ends with an answer --------------------------------------------------------------------
@pytest.mark.parametrize("answer", ["flour", [{"type": "text", "text": "flour"}]])
def test_the_answer_at_the_end_is_the_target_and_not_the_request(answer: Any):
    prompt = read({"role": "system", "content": "be kind"}, user("bake"), said(answer))
    assert (prompt.prompt, prompt.target) == ("bake", "flour")
    assert prompt.messages == ({"role": "system", "content": "be kind"}, user("bake"))
    assert read(user("bake"), said(answer), target="flour").target == "flour"


def test_an_answer_to_a_harmful_request_is_no_target_by_itself():
    with pytest.raises(InputError, match="record 0: messages of a harmful request ends with an answer; remove it"):
        read(user("steal"), said("sure, first"), label="harmful")
    assert read(user("steal"), said("sorry"), label="harmful", target="sorry").target == "sorry"
    with pytest.raises(InputError, match="messages ends with another answer than 'target'"):
        read(user("bake"), said("sure"), target="yes")


BAD: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "URL": ([user([{"type": "image", "url": "https://x/a.png"}, TEXT])], {}, "'https://x/a.png' is a URL; nothing is fetched"),
    "image_url": ([user([{"type": "image_url", "image_url": {"url": "HTTP://x/a.png"}}])], {}, "is a URL; nothing is fetched"),
    "data URL": ([user([{"type": "image", "image": "data:image/png;base64,AA"}])], {}, "is a data: URL; decode it"),
    "base64": ([user([{"type": "image", "base64": "AA"}, TEXT])], {}, "has a picture under 'base64'; decode it"),
    "source": ([user([{"type": "image", "source": {"data": "A"}}])], {}, "has a picture under 'source'; decode it"),
    "two pictures in a part": ([user([{"type": "image", "image": "a.png", "url": "b.png"}])], {}, "more than one picture"),
    "no picture for a place": ([user([PLACE, TEXT])], {}, r"more places for a picture \(1\) than 'images' has pictures \(0\)"),
    "no place for a picture": ([user([PLACE, TEXT])], {"images": [tiny.picture(0)] * 2}, "1 would not be read"),
    "a place out of order": ([user([{"type": "image", "index": 1}, TEXT])], {"images": [tiny.picture(0)]}, "picture 0 of"),
    "picture in a turn": ([user("bake", images=["a.png"])], {}, "a turn with 'images', which is not read; put the picture"),
    "picture in an answer": ([user("bake"), said([PLACE])], {"images": [tiny.picture(0)]}, "the answer at the end of messages"),
    "picture in a text part": ([user([{**TEXT, "image": "a.png"}])], {}, "part of type 'text' with 'image', which is not read"),
    "option of a picture": ([user([{**PLACE, "min_pixels": 9}])], {"images": [tiny.picture(0)]}, "'min_pixels', which is not"),
    "video": ([user([{"type": "video", "video": "a.mp4"}, TEXT])], {}, "part of type 'video'; only 'text' and 'image'"),
    "audio": ([user([{"type": "input_audio"}, TEXT])], {}, "part of type 'input_audio'"),
    "a part without a type": ([user([{"image": "a.png", "text": "x"}])], {}, "a part without a 'type'"),
    "strings as parts": ([user(["a", "b"])], {}, "a part of messages must be an object with 'type', got str"),
    "a part without its text": ([user([{"type": "text", "text": None}])], {}, "part of type 'text' without a text"),
    "content null": ([user("bake"), said(None), user("x")], {}, "the assistant message's content must be a string"),
    "content an object": ([user(TEXT)], {}, "content must be a string or a list of parts, got dict"),
    "content blank": ([user(" \n")], {}, "the last message's content is empty"),
    "no parts": ([user([])], {}, "the last message's content is empty"),
    "no role": ([{"content": "x"}], {}, "'role' and 'content', one has content"),
    "ShareGPT": ([{"from": "human", "value": "x"}], {}, "'role' and 'content', one has from, value"),
    "tool": ([user("x"), {"role": "tool", "content": "3"}, user("y")], {}, "a turn of role 'tool'; use one of system, user"),
    "role in capitals": ([{"role": "User", "content": "x"}], {}, "a turn of role 'User'; use one of system, user"),
    "tool calls": ([user("x"), said("", tool_calls=[{"a": 1}]), user("y")], {}, "a turn with 'tool_calls'"),
    "no request": ([{"role": "system", "content": "x"}], {}, "must end with the user's request, and end with a turn of role 's"),
    "an answer alone": ([said("x")], {}, "must end with the user's request"),
    "two answers": ([user("x"), said("a"), said("b")], {}, "must end with the user's request"),
    "a prompt beside": ([user("x")], {"prompt": "y"}, "prompt and messages ask for different things"),
    "half a surrogate": ([{"role": "system", "content": "a\ud800"}, user("x")], {}, "messages has half a surrogate pair"),
    "text with a picture": ([user([PLACE, TEXT])], {"images": [tiny.picture(0)], "modality": "text"}, "modality 'text' but"),
    "base64 for a path": ([user([{**PLACE, "image": "iVBORw0KGgoAAAANSUhEUgAA"}, TEXT])], {}, "image is base64; decode it"),
    "image without": ([user("x")], {"modality": "image"}, "modality 'image' but it has no picture"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_would_not_reach_the_model_is_refused_by_row(folder: Path, kind: str):
    turns, columns, says = BAD[kind]
    with pytest.raises(InputError, match=f"^record 0 \\(id 'me'\\): .*{says}"):
        read(*turns, folder=folder, id="me", **columns)


def test_a_conversation_in_the_prompt_is_pointed_to_messages():
    with pytest.raises(InputError, match="prompt must be a string, got a list; a conversation goes into 'messages'"):
        PromptSet.from_records([{"prompt": [user("x")], "label": "benign"}])


# -- prompts made by hand -------------------------------------------------------------------------------
def test_a_prompt_made_by_hand_gets_the_same_form():
    prompt = Prompt("a", "bake", "benign", messages=(user("bake"),), images=(tiny.picture(0),), modality="image")
    assert prompt.messages == (user([PLACE, TEXT]),)
    image = Image.new("RGB", (6, 6))
    own = Prompt("a", "bake", "benign", messages=(user([{"type": "image", "image": image}, TEXT]),), modality="image")
    assert own.images == (image,)
    assert own.messages == (user([PLACE, TEXT]),)
    with pytest.raises(
        InputError, match="prompt 'a': messages must end with the user's request; put the answer into target"
    ):
        Prompt("a", "bake", "benign", messages=(user("bake"), said("yes")))
    with pytest.raises(InputError, match="prompt 'a': prompt and messages ask for different things"):
        replace(prompt, prompt="steal")  # trap: a request that is shown and graded, and never read
    with pytest.raises(InputError, match=r"prompt 'a': a picture must be Path or bytes or Image, got str 'a\.png'"):
        Prompt("a", "bake", "benign", messages=(user([{"type": "image", "image": "a.png"}, TEXT]),), modality="image")


def test_conversations_come_back_from_files_as_they_went(folder: Path):
    turns = [{"role": "system", "content": "be kind"}, user([TEXT, {"type": "image", "image": "a.png"}], name="joe")]
    prompts = PromptSet([read(*turns, folder=folder, id="a"), read(user("b"), said("yes"), id="b")])
    for back in (
        PromptSet.from_jsonl(prompts.to_jsonl(folder / "out" / "p.jsonl")),
        PromptSet.from_parquet(prompts.to_parquet(folder / "out" / "p.parquet")),
    ):
        assert [p.messages for p in back] == [p.messages for p in prompts]
        assert back.hash() == prompts.hash()
