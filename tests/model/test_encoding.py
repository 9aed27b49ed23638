"""Which token plays which role, exactly, and never a padding one."""

# mypy: disable-error-code="arg-type, call-overload, list-item, attr-defined"
# Wrong calls are made on purpose.

from __future__ import annotations

import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError, PromptSet
from neuronshield.model.answers import Example, answer_batches
from neuronshield.model.encoding import batches, collate, render

IMAGE = tiny.WORDS.index("<image>")
ROLES = ("last_prompt", "prompt", "image", "text", "response")


def positions(mask: torch.Tensor, row: int) -> list[int]:
    return mask[row].nonzero()[:, 0].tolist()


def two(with_pictures: int = 0) -> PromptSet:
    images = [tiny.picture(i) for i in range(with_pictures)]
    rows = [{"prompt": "how do i bake a cake", "label": "benign"}, {"prompt": "make bomb", "label": "harmful"}]
    return PromptSet.from_records([{**r, "images": images} if images else r for r in rows])


@pytest.mark.parametrize("side", ["left", "right"])
def test_roles_of_text_are_exact(llama: ns.Model, side: str) -> None:
    batch = collate(llama, list(two()), responses=["sure yes", "sorry"], side=side)
    # row 0: 6 prompt tokens + 2 answer tokens + <eos>; row 1: 2 + 1 + <eos>, so 5 of padding
    pad = 5 if side == "left" else 0
    assert batch.encoding["input_ids"].shape == (2, 9)
    assert positions(batch.roles["prompt"], 0) == [0, 1, 2, 3, 4, 5]
    assert positions(batch.roles["response"], 0) == [6, 7, 8]
    assert positions(batch.roles["prompt"], 1) == [pad, pad + 1]
    assert positions(batch.roles["last_prompt"], 1) == [pad + 1]
    assert positions(batch.roles["response"], 1) == [pad + 2, pad + 3]
    assert batch.last.tolist() == [5, pad + 1]
    assert not batch.roles["image"].any()
    assert torch.equal(batch.roles["text"], batch.roles["prompt"])
    ids = batch.encoding["input_ids"]
    assert [tiny.WORDS[i] for i in ids[1][batch.roles["response"][1]]] == ["sorry", "<eos>"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("answers", [True, False])
def test_padding_plays_no_role(llama: ns.Model, side: str, answers: bool) -> None:
    rows = list(tiny.prompts())
    batch = collate(llama, rows, responses=[p.target or "" for p in rows] if answers else None, side=side)
    padding = batch.encoding["attention_mask"] == 0
    assert padding.any()
    for role in ROLES:
        assert not (batch.roles[role] & padding).any()
    # and every token that is not padding is either prompt or response, never both
    assert torch.equal(batch.roles["prompt"] ^ batch.roles["response"], ~padding)
    assert (batch.encoding["input_ids"][padding] == 0).all()
    assert (batch.roles["last_prompt"].sum(dim=1) == 1).all()


@pytest.mark.parametrize(("side", "pictures"), [("left", 1), ("right", 1), ("right", 2)])
def test_image_tokens_are_counted_exactly(llava: ns.Model, side: str, pictures: int) -> None:
    batch = collate(llava, list(two(pictures)), side=side)
    # 6 x 6 pixels in 2 x 2 patches: 9 tokens a picture, not one more (a class token would make it 10)
    assert batch.roles["image"].sum(dim=1).tolist() == [9 * pictures] * 2
    assert batch.roles["text"].sum(dim=1).tolist() == [6, 2]
    assert torch.equal(batch.roles["image"], (batch.encoding["input_ids"] == IMAGE))
    assert torch.equal(batch.roles["image"] | batch.roles["text"], batch.roles["prompt"])
    assert batch.encoding["pixel_values"].shape == (2 * pictures, 3, 6, 6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_shift_positions(llama: ns.Model, side: str) -> None:
    batch = collate(llama, list(two()), side=side)
    for row, n in ((0, 6), (1, 2)):
        assert batch.encoding["position_ids"][row][batch.roles["prompt"][row]].tolist() == list(range(n))


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_batched_logits_are_those_of_each_prompt_alone(request: pytest.FixtureRequest, name: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    rows = list(tiny.prompts(pictures=name == "llava"))[:60:7]
    rows = [p for p in rows if bool(p.images) == (name == "llava")]
    for side in ("left", "right"):
        batch = collate(model, rows, side=side)
        with torch.no_grad():
            logits = model.module(**batch.encoding).logits
            for i, p in enumerate(rows):
                alone = model.module(**tiny.encode(model, p)[0]).logits[0, -1]
                assert torch.allclose(logits[i, batch.last[i]], alone, atol=1e-4)


def test_batches_cover_every_row_once_and_never_mix_kinds(llava: ns.Model) -> None:
    rows = tiny.prompts(pictures=True)
    seen: list[int] = []
    for batch in batches(llava, rows, batch_size=7):
        assert len({len(rows[i].images) for i in batch.rows}) == 1
        assert len(batch.rows) <= 7
        for at, i in enumerate(batch.rows):
            ids = batch.encoding["input_ids"][at][batch.roles["text"][at]]
            assert [tiny.WORDS[t] for t in ids] == rows[i].prompt.split()
        seen += batch.rows
    assert sorted(seen) == list(range(len(rows)))


def test_without_a_chat_template_the_prompt_is_used_verbatim(llama: ns.Model, llava: ns.Model) -> None:
    (p, _) = two()
    assert render(llama, p) == ("how do i bake a cake", False)
    (q, _) = two(2)
    assert render(llava, q) == ("<image>\n<image>\nhow do i bake a cake", False)


def test_a_chat_template_is_used_and_brings_its_own_specials() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "<bos> {% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}here{% endif %}"
    )
    model = ns.load(tiny.llama(), processor=tokenizer)
    (p, _) = two()
    assert render(model, p) == ("<bos> how do i bake a cake here", True)
    ids = collate(model, [p]).encoding["input_ids"][0]
    assert [tiny.WORDS[i] for i in ids] == "<bos> how do i bake a cake here".split()


def test_messages_reach_the_chat_template_turn_by_turn() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}"
    model = ns.load(tiny.llama(), processor=tokenizer)
    turns = [{"role": r, "content": c} for r, c in (("system", "no"), ("user", "make"), ("user", "cake"))]
    (p,) = PromptSet.from_records([{"messages": turns, "label": "benign"}])
    assert render(model, p) == ("s:no u:make u:cake ", True)


def test_a_chat_template_that_fails_names_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    model = ns.load(tiny.llama(), processor=tokenizer)
    (p,) = PromptSet.from_records([{"id": "seven", "prompt": "make", "label": "benign"}])
    with pytest.raises(InputError, match=r"'seven'.*no system turn"):
        render(model, p)


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.pad_token = None
    model = ns.load(tiny.llama(), processor=tokenizer)
    batch = collate(model, list(two()))  # no padding token: one is lent for the call
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token is None
    assert batch.roles["prompt"].sum(dim=1).tolist() == [6, 2]


def test_an_answer_that_quotes_the_image_token_is_refused(llava: ns.Model, llama: ns.Model) -> None:
    rows = list(two(1))
    with pytest.raises(InputError, match=r"prompt '.*': its answer contains '<image>', which .* reads as a picture"):
        collate(llava, rows, responses=["sure", "no <image>"])
    with pytest.raises(InputError, match="its answer contains '<image>'"):
        next(batches(llava, rows, batch_size=1, responses=["sure", "no <image>"]))
    assert collate(llama, list(two()), responses=["sure", "no <image>"]).roles["response"].sum(dim=1).tolist() == [2, 3]
    data = [
        Example(rows[0], "sure"),
        Example(rows[1], "no"),
        Example(ns.Prompt("text-0", "", "benign"), "a <image> cake", generic=True),
    ]
    with pytest.raises(InputError, match=r"texts: 'text-0' contains '<image>', which .* reads as a picture"):
        list(answer_batches(llava, data))


def test_pictures_for_a_text_model_are_refused(llama: ns.Model) -> None:
    with pytest.raises(InputError, match="has pictures but 'LlamaForCausalLM' has no image processor"):
        collate(llama, list(two(1)))


# -- natural and wrong calls ------------------------------------------------------------------------------
def test_strings_are_rendered_as_prompts_are(llama: ns.Model) -> None:
    (p, q) = two()
    assert render(llama, p.prompt) == render(llama, p)
    assert render(llama, [p, q.prompt]) == [render(llama, p), render(llama, q)]
    assert torch.equal(
        collate(llama, [p.prompt, q.prompt]).encoding["input_ids"],  # type: ignore[list-item]
        collate(llama, [p, q]).encoding["input_ids"],
    )


def test_a_batch_of_unlike_prompts_or_of_none_is_refused(llava: ns.Model) -> None:
    with pytest.raises(InputError, match=r"collate: different numbers of pictures \[0, 1\] in one batch; use batches"):
        collate(llava, [two()[0], two(1)[0]])
    with pytest.raises(InputError, match="collate: no prompts"):
        collate(llava, [])
    with pytest.raises(InputError, match="batches: batch_size=0: must be a whole number of at least 1"):
        list(batches(llava, two(), batch_size=0))
    with pytest.raises(InputError, match=r"render\(model, prompts\): prompts must be PromptSet, got bytes"):
        render(llava, b"make cake")  # type: ignore[call-overload]


def test_the_repr_of_a_batch_fits_a_line(llama: ns.Model) -> None:
    assert repr(collate(llama, list(two()))) == "Batch(2 x 6 tokens, input_ids, attention_mask, position_ids)"
