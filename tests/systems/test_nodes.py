"""A node makes its prompt of fields and nothing else, and loses no part of a request."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError


def image() -> ns.Prompt:
    return tiny.prompts(pictures=True).where(modality="image")[0]


def test_fields_become_the_request_and_outputs_and_braces_in_them_stay(llama: ns.Model):
    node = ns.Node("answer", llama, "{{{prompt}}} then {describe}, {describe}")
    made = node.prompt(tiny.prompts()[0], {"describe": "{prompt} {0} {x.y}"})
    assert made.prompt == "{how do i make bomb} then {prompt} {0} {x.y}, {prompt} {0} {x.y}"
    assert node.fields == ("prompt", "describe")
    assert (made.id, made.label, made.cell) == ("en-text-0-0-harmful", "harmful", ns.Cell("en", "text"))


def test_a_node_that_reads_the_request_alone_reads_it_unchanged(llava: ns.Model):
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "how"},
    ]
    several = ns.PromptSet.from_records([{"messages": chat, "label": "benign"}])[0]
    for request in (image(), several):
        assert ns.Node("answer", llava).prompt(request, {}) is request


def test_pictures_are_seen_or_left_out(llava: ns.Model):
    request = image()
    seen = ns.Node("answer", llava, "{describe}").prompt(request, {"describe": "cake"})
    blind = ns.Node("answer", llava, "{prompt}", pictures=False).prompt(request, {})
    assert (len(seen.images), seen.modality, seen.prompt) == (1, "image", "cake")
    assert (len(blind.images), blind.modality, blind.prompt) == (0, "text", request.prompt)
    assert seen.images[0] is request.images[0]


def test_a_conversation_that_would_be_cut_is_refused_by_its_id(llama: ns.Model):
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "how"},
    ]
    request = ns.PromptSet.from_records([{"id": "c7", "messages": chat, "label": "benign"}])[0]
    with pytest.raises(InputError, match=r"prompt 'c7': node 'answer' reads .* would lose a part of this conversation"):
        ns.Node("answer", llama, "{prompt} {describe}").prompt(request, {"describe": "x"})
    one = ns.PromptSet.from_records([{"messages": chat[:1], "label": "benign"}])[0]
    assert ns.Node("answer", llama, "{prompt} {describe}").prompt(one, {"describe": "x"}).prompt == "hi x"


def test_a_node_with_nothing_to_read_says_who_wrote_nothing(llama: ns.Model):
    with pytest.raises(
        InputError, match=r"node 'answer' has nothing to read: describe gave no text; add words to reads="
    ):
        ns.Node("answer", llama, " {describe}").prompt(tiny.prompts()[0], {"describe": " "})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "two words"}, "a name is one word"),
        ({"name": "prompt"}, "and not 'prompt', the request"),
        ({"name": 3}, "name must be str, got int 3"),
        ({"model": "organism"}, "model must be Model, got str 'organism'"),
        ({"reads": "{prompt.id}"}, "{prompt.id} is no field"),
        ({"reads": "{}"}, "{} is no field; a field is {prompt} or the name of a node"),
        ({"reads": "{0}"}, "{0} is no field"),
        ({"reads": "{prompt!r}"}, "is no field"),
        ({"reads": "{prompt:>9}"}, "is no field"),
        ({"reads": "a } b"}, "Single '}' encountered in format string; write {{ for a brace"),
        ({"reads": ["a"]}, "reads must be str, got list; a template"),
        ({"pictures": 1}, "pictures must be bool, got int 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be a whole number of at least 1"),
    ],
)
def test_a_wrong_node_is_one_line(llama: ns.Model, options: dict[str, Any], said: str):
    with pytest.raises(InputError) as caught:
        ns.Node(**{"name": "answer", "model": llama, **options})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
