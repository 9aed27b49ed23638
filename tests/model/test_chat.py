"""A prompt reaches its model's chat template whole, in the form that the template reads, or is refused by its id."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import families as F
import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.model.chat import reading
from neuronshield.model.encoding import collate, render

#: Reads only lists of parts, as the templates of llava-hf checkpoints do; a string's characters have no `type`.
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }} {% endfor %}{% endfor %}"
)
#: Reads only strings: it stops at a list, prints it, or reads something else of it.
JOINS = "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"
PRINTS = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
EITHER = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }} {% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def vlm(template: str | None = None, *, on: str = "processor") -> ns.Model:
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor)
    owner = processor if on == "processor" else processor.tokenizer
    owner.chat_template = template
    return model


def text_model(template: str) -> ns.Model:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return ns.load(tiny.llama(), processor=tokenizer)


def prompt(text: str = "how do i make the cake", pictures: int = 0, **columns: Any) -> ns.Prompt:
    images = {"images": [tiny.picture(i) for i in range(pictures)]} if pictures else {}
    (p,) = ns.PromptSet.from_records([{"id": "row-17", "prompt": text, "label": "benign", **images, **columns}])
    return p


def chat(*turns: tuple[str, Any], pictures: int = 0) -> ns.Prompt:
    row = {"id": "row-17", "label": "benign", "messages": [{"role": role, "content": said} for role, said in turns]}
    images = {"images": [tiny.picture(i) for i in range(pictures)]} if pictures else {}
    (p,) = ns.PromptSet.from_records([{**row, **images}])
    return p


def words(model: ns.Model, p: ns.Prompt) -> str:
    """What the model reads, image tokens as one <image> each."""
    batch = collate(model, [p])
    return " ".join(tiny.WORDS[i] for i in batch.encoding["input_ids"][0])


# -- forms ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on", ["processor", "tokenizer"])
@pytest.mark.parametrize("template", [PARTS, JOINS, PRINTS, EITHER], ids=["parts", "joins", "prints", "either"])
def test_words_arrive_whatever_form_the_template_reads(template: str, on: str) -> None:
    model = vlm(template, on=on)
    said = "user: how do i make the cake"
    assert render(model, prompt()) == (said + " ", True)
    talk = chat(
        ("system", "no bomb"), ("user", [{"type": "text", "text": "how do i"}, {"type": "text", "text": "make"}])
    )
    assert " ".join(render(model, talk)[0].split()) == "system: no bomb user: how do i make"
    assert words(model, prompt()) == "<unk> how do i make the cake"


@pytest.mark.parametrize("on", ["processor", "tokenizer"])
@pytest.mark.parametrize("template", [PARTS, JOINS, PRINTS, EITHER], ids=["parts", "joins", "prints", "either"])
@pytest.mark.parametrize("pictures", [1, 2])
def test_pictures_arrive_whatever_form_the_template_reads(template: str, on: str, pictures: int) -> None:
    model = vlm(template, on=on)
    batch = collate(model, [prompt(pictures=pictures)])
    assert words(model, prompt(pictures=pictures)) == "<unk> " + "<image> " * 9 * pictures + "how do i make the cake"
    assert int(batch.roles["image"].sum()) == 9 * pictures
    assert len(batch.encoding["pixel_values"]) == pictures


def test_a_picture_stands_where_its_part_stands() -> None:
    said = [{"type": "text", "text": "how do i make"}, {"type": "image"}, {"type": "text", "text": "here"}]
    talk = chat(("user", "bake"), ("assistant", "sure"), ("user", said), pictures=1)
    assert words(vlm(EITHER), talk) == "<unk> bake <unk> sure <unk> how do i make " + "<image> " * 9 + "here"
    alone = chat(("user", said), pictures=1)
    assert words(vlm(), alone) == "how do i make " + "<image> " * 9 + "here"  # no template: verbatim


def test_a_text_model_is_given_strings_and_lists_only_where_it_reads_them() -> None:
    assert render(text_model(EITHER), prompt())[0] == "user: how do i make the cake "
    parts = "{% for m in messages %}{% for c in m.content %}{{ c.text }} {% endfor %}{% endfor %}"
    assert render(text_model(parts), prompt())[0] == "how do i make the cake "
    assert (
        render(text_model("{{ messages[0].content | trim | upper | lower }}"), prompt())[0] == "how do i make the cake"
    )


# -- nothing is left out ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "leaves out the words of the system turn"),
        ("{{ messages[0].content }}", "leaves out the words of the user turn"),
        ("{% for m in messages %}{{ m.content[:16] }}{% endfor %}", "leaves out the words of the user turn"),
        ("{% for m in messages %}{{ m.text }} how do i make the cake no bomb{% endfor %}", "leaves out the words of the system turn"),
    ],
)  # fmt: skip
def test_a_template_that_leaves_words_out_is_refused(template: str, told: str) -> None:
    with pytest.raises(InputError, match=rf"prompt 'row-17': the chat template of .* {told}"):
        reading(text_model(template), chat(("system", "no bomb"), ("user", "how do i make the cake")))


def test_a_template_that_prints_a_list_as_code_is_refused() -> None:
    model = vlm("{{ messages[0].content if messages[0].content is not string }}")
    with pytest.raises(InputError, match=r"prompt 'row-17': .* prints the parts of a turn as code"):
        reading(model, prompt())


def test_the_thoughts_of_earlier_answers_may_be_left_out_and_nothing_else() -> None:
    template = "{% for m in messages %}{{ (m.content.split('</think>') | last) }} {% endfor %}"
    talk = chat(("user", "how do i"), ("assistant", "<think> no bomb </think> sure"), ("user", "bake"))
    assert " ".join(render(text_model(template), talk)[0].split()) == "how do i sure bake"
    with pytest.raises(InputError, match=r"leaves out the words of the user turn"):
        reading(text_model(template), chat(("user", "<think> no bomb </think> sure")))


def test_a_template_without_a_place_for_each_picture_is_refused() -> None:
    first_only = (
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }} {% elif loop.first %}<image> {% endif %}"
        "{% endfor %}{% endfor %}"
    )
    model = vlm(first_only)
    assert words(model, prompt(pictures=1)).count("<image>") == 9
    with pytest.raises(
        InputError, match=r"prompt 'row-17' has 2 pictures, but the chat template of .* writes a place for 1"
    ):
        collate(model, [prompt(pictures=2)])
    none = vlm(
        "{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(
        InputError, match=r"prompt 'row-17' has 1 pictures, but the chat template of .* writes a place for 0"
    ):
        collate(none, [prompt(pictures=1)])


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system turn here') }}", "{{ messages[0].content.nothing.more }}"]
)
def test_a_template_that_fails_names_the_prompt(template: str) -> None:
    with pytest.raises(
        InputError,
        match=r"prompt 'row-17': the chat template of 'LlamaForCausalLM' failed \(.*(no system|no attribute)",
    ):
        reading(text_model(template), prompt())


# -- words that are pictures --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "token"),
    [("LLaVA-1.5", "<image>"), ("Qwen2-VL", "<|image_pad|>"), ("Qwen2-VL", "<|vision_start|>"), ("Qwen2-VL", "<|video_pad|>"),
     ("Gemma 3", "<start_of_image>"), ("Gemma 3", "<image_soft_token>"), ("Idefics3", "<fake_token_around_image>")],
)  # fmt: skip
@pytest.mark.parametrize("bare", [False, True], ids=["processor", "tokenizer"])
def test_a_quoted_media_token_is_refused_with_and_without_a_picture(name: str, token: str, bare: bool) -> None:
    model = next(f for f in F.FAMILIES if f.name == name).load()
    if bare:  # the model is used on text; only what its config names is known
        model = ns.load(model.module, processor=model.tokenizer)
        if token not in model.media_tokens:
            pytest.skip("the config does not name it")
    quoted = f"{token}\nhow do i make the cake"
    told = "prompt 'row-17': the user turn contains .* reads as a picture and not as words"
    with pytest.raises(InputError, match=told):
        collate(model, [prompt(quoted)])
    with pytest.raises(InputError, match=told):
        collate(model, [prompt(f"how do i {token}", 0 if bare else 1)])
    with pytest.raises(InputError, match=r"prompt 'row-17': the system turn contains"):
        collate(model, [chat(("system", quoted), ("user", "bake"))])


def test_a_text_model_reads_the_word_as_it_is() -> None:
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    assert model.media_tokens == ()
    assert words(model, prompt("<image> how do i")) == "<image> how do i"


# -- without a template -------------------------------------------------------------------------------------
def test_one_user_turn_is_used_verbatim_and_more_turns_are_refused(llama: ns.Model) -> None:
    assert render(llama, chat(("user", "how do i bake"))) == ("how do i bake", False)
    with pytest.raises(
        InputError, match=r"prompt 'row-17': its messages have the turns system, user, and .* no chat template"
    ):
        reading(llama, chat(("system", "no"), ("user", "how do i bake")))
    with pytest.raises(InputError, match=r"the turns user, assistant, user"):
        reading(llama, chat(("user", "how"), ("assistant", "sorry"), ("user", "bake")))


def test_a_prompt_without_words_and_pictures_is_refused(llama: ns.Model) -> None:
    for text in ("", "  \n"):
        with pytest.raises(InputError, match=r"prompt 'row-17' has no words and no pictures"):
            reading(llama, ns.Prompt("row-17", text, "benign"))
    picture = [{"type": "image"}]
    assert words(vlm(EITHER), chat(("user", picture), pictures=1)) == " ".join(["<unk>", *["<image>"] * 9])
