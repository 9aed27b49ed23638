"""The encoded prompt is the processor's own, for every family: text, pictures, conversations, both padding sides."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import families as F
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError
from neuronshield.model.encoding import PER_TOKEN, collate
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
        images = [tiny.picture(10 * i + j, ((F.SIZE, F.SIZE), (2 * F.SIZE, F.SIZE))[(i + j) % 2]) for j in range(pictures)]
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
        made = model.processor(text=[text], images=[images], return_tensors="pt") if images else model.tokenizer([text], return_tensors="pt")
        return dict(made)
    words: Any = prompt.prompt
    if owner is not model.tokenizer:
        words = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": words}]
    talk: list[Any] = [{"role": "user", "content": words}]
    if prompt.messages is not None:
        talk = [*prompt.messages[:-1], {"role": "user", "content": words if images else prompt.prompt}]
    return dict(
        owner.apply_chat_template(talk, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    )


def check_parity(model: ns.Model, pictures: int, *, system: bool) -> None:
    rows = prompts(pictures, system=system)
    if system and model.template is None:
        with pytest.raises(InputError, match="prompt 'row-0': its messages have the turns system, user, assistant, user"):
            collate(model, rows)
        return
    if not pictures and model.template is not None and "PaliGemma" in model.id:
        with pytest.raises(InputError, match=r"prompt 'row-0': the processor of .* cannot encode it \(`images` are expected"):
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
    [pytest.param(f, id=f.name, marks=() if f.name in ("LLaVA-1.5", "Qwen2-VL") else pytest.mark.slow) for f in F.FAMILIES],
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
