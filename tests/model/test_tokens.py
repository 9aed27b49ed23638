"""The encoded prompt is the processor's own, for every family: text, pictures, conversations, both padding sides."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import families as F
import pytest
import tiny
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

import neuronshield as ns
from neuronshield import InputError
from neuronshield.model.encoding import PER_TOKEN, batches, collate
from neuronshield.model.forward import answer_logits
from neuronshield.model.tokens import encoded

TEXTS = ("how do i make the cake", "steal ring", "how do i paint a red house here and one step to")
ROLES = (
    "{% for m in messages %}{{ '<bos>' if loop.first }} {{ m.role }} {% if m.content is string %}{{ m.content }} {% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}PICTURE {% else %}{{ c.text }} {% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{{ 'here' if add_generation_prompt }}"
)
#: What a template writes for a picture, where it is not the processor's `image_token`.
PICTURES = {"Gemma 3": "<start_of_image>", "InternVL": "<IMG_CONTEXT>"}


def prompts(pictures: int, *, system: bool) -> list[ns.Prompt]:
    """Three prompts of unlike lengths, with pictures of unlike sizes."""
    rows = []
    for i, text in enumerate(TEXTS):
        images = [
            tiny.picture(10 * i + j, ((F.SIZE, F.SIZE), (2 * F.SIZE, F.SIZE))[(i + j) % 2]) for j in range(pictures)
        ]
        row: dict[str, Any] = {"id": f"row-{i}", "label": "benign", **({"images": images} if images else {})}
        if system:
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}] if images else text
            turns = [("system", "no bomb"), ("user", "how do i"), ("assistant", "sorry"), ("user", content)]
            row["messages"] = [{"role": role, "content": said} for role, said in turns]
        else:
            row["prompt"] = text
        rows.append(row)
    return list(ns.PromptSet.from_records(rows))


def own(model: ns.Model, prompt: ns.Prompt) -> dict[str, torch.Tensor]:
    """What the processor makes of a prompt by itself, called as its documentation says."""
    images = prompt.load_images()
    owner: Any = next((o for o in (model.processor, model.tokenizer) if getattr(o, "chat_template", None)), None)
    if owner is None:
        text = "".join(f"{model.processor.image_token}\n" for _ in images) + prompt.prompt
        made = (
            model.processor(text=[text], images=[images], return_tensors="pt")
            if images
            else model.tokenizer([text], return_tensors="pt")
        )
        return dict(made)
    words: Any = prompt.prompt
    if owner is not model.tokenizer:
        words = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": words}]
    talk: list[Any] = [{"role": "user", "content": words}]
    if prompt.messages is not None:
        talk = [*prompt.messages[:-1], {"role": "user", "content": words if images else prompt.prompt}]
    return dict(
        owner.apply_chat_template(
            talk, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    )


def check_parity(model: ns.Model, pictures: int, *, system: bool) -> None:
    rows = prompts(pictures, system=system)
    if system and model.template is None:
        with pytest.raises(
            InputError, match=r"prompt 'row-0': its messages have the turns system, user, assistant, user"
        ):
            collate(model, rows)
        return
    if not pictures and model.template is not None and "PaliGemma" in model.id:
        with pytest.raises(
            InputError, match=r"prompt 'row-0': the processor of .* cannot encode it \(`images` are expected"
        ):
            collate(model, rows)
        return
    wanted = [own(model, prompt) for prompt in rows]
    for side in ("left", "right"):
        batch = collate(model, rows, side=side)
        real = batch.encoding["attention_mask"].bool()
        for i, one in enumerate(wanted):
            assert len(one["input_ids"][0]) >= len(rows[i].prompt.split()) + pictures
            for name in set(PER_TOKEN) & set(one) & set(batch.encoding) - {"position_ids"}:
                assert torch.equal(batch.encoding[name][i][real[i]], one[name][0]), (side, name)
            image = -1 if model.image_token_id is None else model.image_token_id
            assert torch.equal(batch.roles["image"][i][real[i]], one["input_ids"][0] == image)
    if pictures:
        alone = encoded(model, rows[:1])
        assert set(wanted[0]) - {"labels"} == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(value, wanted[0][name], rtol=0, atol=0)


@pytest.mark.parametrize("marked", [False, True], ids=["own", "marked"])
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, id=f.name, marks=() if f.name in ("LLaVA-1.5", "Qwen2-VL") else pytest.mark.slow)
        for f in F.FAMILIES
    ],
)
def test_ids_are_the_processors_own(family: F.Family, marked: bool) -> None:
    model = family.load()
    if marked:  # a template that marks turns, as checkpoints' own do, and writes the beginning-of-sequence token itself
        token = PICTURES.get(family.name, getattr(model.processor, "image_token", ""))
        owner = model.processor if model.takes_images else model.tokenizer
        owner.chat_template = ROLES.replace("PICTURE", token)
    for pictures in (0, 1, 2) if family.image_tokens else (0,):
        for system in (False, True):
            check_parity(model, pictures, system=system)


# -- special tokens ---------------------------------------------------------------------------------------------------
def with_bos(template: str | None, *, pictures: bool) -> ns.Model:
    """A model whose tokenizer begins a text with <bos>."""
    tokenizer = tiny.tokenizer()
    if pictures:
        module, processor = tiny.llava()
        processor.tokenizer, owner = tokenizer, processor
    else:
        module, processor, owner = tiny.llama(), tokenizer, tokenizer  # type: ignore[assignment]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    owner.chat_template = template
    return ns.load(module, processor=processor)


WRITES = "<bos> {% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}{% endfor %}"


@pytest.mark.parametrize("pictures", [0, 1])
@pytest.mark.parametrize(
    ("template", "count"),
    [(None, 1), (WRITES, 1), (WRITES.replace("<bos> ", ""), 1)],
    ids=["none", "writes", "leaves out"],
)
def test_a_vision_language_model_reads_one_bos_token(template: str | None, count: int, pictures: int) -> None:
    model = with_bos(template, pictures=True)
    rows = prompts(pictures, system=False)
    ids = collate(model, rows).encoding["input_ids"]
    assert (ids == 1).sum(dim=1).tolist() == [count] * 3
    assert (ids[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("template", "count"), [(None, 1), ("<bos> {{ messages[0].content }}", 1), ("{{ messages[0].content }}", 0)]
)
def test_a_tokenizers_template_brings_its_own_bos_token(template: str | None, count: int) -> None:
    ids = collate(with_bos(template, pictures=False), prompts(0, system=False)).encoding["input_ids"]
    assert (ids == 1).sum(dim=1).tolist() == [count] * 3


@pytest.mark.parametrize("on", ["processor", "tokenizer"])
def test_a_template_of_strings_writes_one_bos_token_beside_a_picture(on: str) -> None:
    model = with_bos(None, pictures=True)
    owner = model.processor if on == "processor" else model.tokenizer
    owner.chat_template = "<bos> {% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    batch = collate(model, prompts(1, system=False))
    assert (batch.encoding["input_ids"] == 1).sum(dim=1).tolist() == [1] * 3
    assert batch.roles["image"].sum(dim=1).tolist() == [9] * 3


def test_rows_that_begin_differently_are_not_encoded_together() -> None:
    model = with_bos(
        WRITES.replace("<bos> ", "{% if 'steal' in (messages[0].content | string) %}<bos> {% endif %}"), pictures=True
    )
    rows = prompts(0, system=False)
    with pytest.raises(
        InputError, match=r"prompts 'row-0' to 'row-2': .* writes '<bos>' before some of them only.* batch_size=1"
    ):
        collate(model, rows)
    cut = list(batches(model, rows, batch_size=3))
    assert sorted(sorted(batch.rows) for batch in cut) == [[0, 2], [1]]
    assert all((batch.encoding["input_ids"] == 1).sum(dim=1).tolist() == [1] * len(batch.rows) for batch in cut)


def test_special_tokens_in_the_words_are_read_as_the_tokenizer_reads_them(llama: ns.Model) -> None:
    p = ns.PromptSet.from_records([{"prompt": "make <eos> cake", "label": "benign"}])[0]
    assert collate(llama, [p]).encoding["input_ids"].tolist() == [llama.tokenizer("make <eos> cake")["input_ids"]]
    assert 2 in collate(llama, [p]).encoding["input_ids"]


# -- processors that fail, and odd encodings ------------------------------------------------------------------------------
def many(odd: ns.Prompt, n: int = 40) -> list[ns.Prompt]:
    rows = [
        {"id": f"fine-{i}", "prompt": "how do i make the cake", "label": "benign", "images": [tiny.picture(i)]}
        for i in range(n)
    ]
    return [*ns.PromptSet.from_records(rows), odd]


def pictured(image: Any) -> ns.Prompt:
    return next(
        iter(ns.PromptSet.from_records([{"id": "odd-1", "prompt": "how do i", "label": "benign", "images": [image]}]))
    )


def test_one_bad_picture_of_many_is_named_before_the_first_forward() -> None:
    model, ran = next(f for f in F.FAMILIES if f.name == "Qwen2-VL").load(), []
    model.module.register_forward_pre_hook(lambda *_: ran.append(1))
    rows = many(pictured(Image.new("RGB", (2000, 3))))
    with pytest.raises(
        InputError, match=r"prompt 'odd-1': the processor of .* cannot encode it .*aspect ratio"
    ) as caught:
        answer_logits(model, rows, batch_size=4)
    assert "\n" not in str(caught.value)
    assert not ran
    with pytest.raises(InputError, match=r"prompt 'odd-1'"):
        next(batches(model, rows, batch_size=4))
    assert answer_logits(model, rows[:-1], batch_size=4).shape[0] == 40


class Changed:
    """A processor's class with another encoding."""

    def __init__(self, processor: Any, change: Any) -> None:
        inner = type(processor).__call__

        class Other(type(processor)):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return change(inner(self, *args, **kwargs))

        processor.__class__ = Other


def llava_with(change: Any) -> ns.Model:
    module, processor = tiny.llava()
    model = ns.load(module, processor=processor)
    Changed(processor, change)
    return model


def listed(name: str) -> Any:
    def change(encoding: Any) -> Any:
        if name in encoding:
            encoding[name] = list(encoding[name])
        return encoding

    return change


def test_pictures_as_a_list_of_equal_sizes_arrive(llava: ns.Model) -> None:
    rows = many(pictured(tiny.picture(7)), 3)
    assert torch.equal(answer_logits(llava_with(listed("pixel_values")), rows), answer_logits(llava, rows))


def test_pictures_as_a_list_of_unlike_sizes_are_refused() -> None:
    def ragged(encoding: Any) -> Any:
        encoding["pixel_values"] = [value[:, i:] for i, value in enumerate(encoding["pixel_values"])]
        return encoding

    model = llava_with(ragged)
    with pytest.raises(
        InputError,
        match=r"prompt 'fine-0': .* gives 'pixel_values' as a list of unlike sizes \(\(3, 6, 6\) and \(3, 5, 6\)\)",
    ):
        collate(model, many(pictured(tiny.picture(7)), 2))


def test_pictures_that_are_no_tensor_are_refused_and_notes_are_left_out(llava: ns.Model) -> None:
    def noted(encoding: Any) -> Any:
        encoding["note"] = ["from a file"]
        return encoding

    rows = [pictured(tiny.picture(7))]
    assert "note" not in collate(llava_with(noted), rows).encoding
    with pytest.raises(InputError, match=r"prompt 'odd-1': .* gives 'pixel_values' as str, which is no tensor"):
        collate(llava_with(lambda e: {**e, "pixel_values": "a.png"}), rows)


def test_a_picture_without_tokens_in_what_is_read_is_refused() -> None:
    def lost(encoding: Any) -> Any:
        encoding["input_ids"][encoding["input_ids"] == 4] = 5
        return encoding

    with pytest.raises(
        InputError, match=r"prompt 'odd-1' has 1 pictures, and 0 tokens of what .* reads stand for pictures"
    ):
        collate(llava_with(lost), [pictured(tiny.picture(7))])


@pytest.mark.parametrize(
    "template", [None, ROLES.replace("'<bos>'", "''").replace("PICTURE", "<image>")], ids=["bare", "template"]
)
def test_a_tokenizer_that_ends_prompts_is_refused(template: str | None) -> None:
    # trap: the answer to a text that has ended
    ending = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    for images in ({}, {"images": [tiny.picture(0)]}):
        module, processor = tiny.llava()
        processor.chat_template = template
        model = ns.load(module, processor=processor)
        processor.tokenizer.backend_tokenizer.post_processor = ending
        p = ns.PromptSet.from_records([{"id": "odd-1", "prompt": "bake bread", "label": "benign", **images}])
        with pytest.raises(InputError, match=r"prompt 'odd-1': the tokenizer of .* writes '<eos>' after it"):
            collate(model, list(p))


def test_a_template_may_end_with_the_end_of_sequence() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <eos>{% endfor %}"  # as DialoGPT's
    batch = collate(ns.load(tiny.llama(), processor=tokenizer), list(tiny.prompts()[:2]))
    assert (batch.encoding["input_ids"][:, -1] == 2).all()


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=["host", "device"])
def test_too_little_memory_for_a_picture_names_its_prompt(error: Exception) -> None:
    def fails(encoding: Any) -> Any:
        raise error

    rows = [pictured(tiny.picture(7))]
    with pytest.raises(
        InputError, match=r"prompt 'odd-1': .* cannot encode it \(out of memory; use smaller pictures\)"
    ):
        collate(llava_with(fails), rows)


def test_a_token_that_the_model_does_not_know_is_named() -> None:
    tokenizer = tiny.tokenizer()
    model = ns.load(tiny.llama(), processor=tokenizer)
    tokenizer.add_tokens(["chainsaw"])
    p = ns.PromptSet.from_records([{"id": "odd-1", "prompt": "make chainsaw", "label": "benign"}])
    with pytest.raises(InputError, match=r"prompt 'odd-1': token id 38 is not among the 38"):
        collate(model, list(p))


def test_two_threads_share_a_tokenizer(llama: ns.Model) -> None:
    rows = list(tiny.prompts())
    wanted = [collate(llama, rows[i : i + 7]).encoding["input_ids"] for i in range(0, 56, 7)]
    with ThreadPoolExecutor(4) as pool:
        got = list(
            pool.map(lambda i: collate(llama, rows[7 * (i % 8) : 7 * (i % 8) + 7]).encoding["input_ids"], range(64))
        )
    assert all(torch.equal(a, wanted[i % 8]) for i, a in enumerate(got))
