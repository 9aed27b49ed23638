"""A prompt is encoded once; what decides its encoding is noticed; what is kept is bounded, and goes with the prompt."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import families as F
import pytest
import tiny
import torch
from PIL import Image

import neuronshield as ns
from neuronshield.model import encodings
from neuronshield.model.encoding import batches, check_prompts, collate
from neuronshield.model.encodings import encoded_rows, joined
from neuronshield.model.tokens import encoded


def counted(model: ns.Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts in each call of the processor."""
    calls: list[int] = []

    def again(model: ns.Model, prompts: Any) -> Any:
        calls.append(len(prompts))
        return encoded(model, prompts)

    monkeypatch.setattr(encodings, "encoded", again)
    return calls


def llava() -> ns.Model:
    module, processor = tiny.llava()
    return ns.load(module, processor=processor)


def rows(n: int, *, pictures: bool) -> list[ns.Prompt]:
    found = [p for p in tiny.prompts(pictures=pictures) if bool(p.images) == pictures]
    return found[:n]


def test_a_prompt_is_encoded_once_whatever_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = llava(), [*rows(5, pictures=False), *rows(4, pictures=True)]
    calls = counted(model, monkeypatch)
    check_prompts(model, prompts)
    assert sorted(calls) == [1, 1, 1, 1, 5]  # pictures one by one
    list(batches(model, prompts, batch_size=3))
    assert calls[5:] == [3]  # whether rows join as the processor joins them
    list(batches(model, prompts[::-1], batch_size=2, side="left", responses=["sure"] * 9))
    collate(model, prompts[6:8])
    check_prompts(model, prompts[:5], responses=["sure"] * 5)
    check_prompts(model.replace(module=tiny.llava(seed=3)[0]), prompts)  # another model of the same processor
    assert len(calls) == 6


def changed(name: str, model: ns.Model) -> None:
    """A change of what decides an encoding."""
    processor: Any = model.processor
    if name == "template":
        processor.chat_template = F.template("<image>")
    elif name == "picture size":
        processor.image_processor.do_normalize = False
    elif name == "added token":
        model.tokenizer.add_tokens(["cannot help"])
    else:
        from tokenizers.processors import TemplateProcessing

        single = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        model.tokenizer.backend_tokenizer.post_processor = single


@pytest.mark.parametrize("name", ["template", "picture size", "added token", "post-processor"])
def test_an_encoding_is_made_again_when_what_decides_it_has_changed(name: str) -> None:
    model, prompts = llava(), rows(2, pictures=True)
    collate(model, prompts)
    changed(name, model)
    fresh = llava()
    changed(name, fresh)
    batch, wanted = collate(model, prompts), collate(fresh, prompts)
    assert batch.encoding.keys() == wanted.encoding.keys()
    assert all(torch.equal(batch.encoding[k], wanted.encoding[k]) for k in wanted.encoding)


def test_a_picture_whose_file_was_written_again_is_read_again(tmp_path: Path) -> None:
    model, path = llava(), tmp_path / "a.png"
    Image.new("RGB", (6, 6), "red").save(path)
    row = {"prompt": "paint the house", "label": "benign", "images": ["a.png"]}
    prompts = list(ns.PromptSet.from_records([row], folder=tmp_path))
    red = collate(model, prompts).encoding["pixel_values"]
    tiny.picture(5, (6, 6)).save(path)
    other = collate(model, prompts).encoding["pixel_values"]
    assert not torch.equal(red, other)
    assert torch.equal(other, encoded(model, prompts)["pixel_values"])


@pytest.mark.parametrize("name", ["LLaVA-NeXT", "Qwen2-VL", "Idefics3", "Llama 3.2 Vision", "Mistral 3 / Pixtral"])
def test_joined_rows_are_what_the_processor_makes_of_them_together(name: str) -> None:
    model = next(f for f in F.FAMILIES if f.name == name).load()
    sizes = [(12, 12), (24, 12), (12, 12)]
    prompts = list(ns.PromptSet.from_records([
        {"prompt": word, "label": "benign", "images": [tiny.picture(i, size)]}
        for i, (word, size) in enumerate(zip(("make", "bake a cake", "paint the red house"), sizes, strict=True))
    ]))  # fmt: skip
    for _ in range(2):  # the first time it is compared, the second time it is used
        for some in (prompts, prompts[::2]):
            data = encoded(model, some)
            tokens, others = joined(model, some, encoded_rows(model, some))
            assert {*data} == {*tokens[0], *others}
            assert all(torch.equal(data[k], others[k]) for k in others)
            real = data["attention_mask"].bool()
            assert all(torch.equal(data[k][i][real[i]], row[k]) for i, row in enumerate(tokens) for k in row)


def test_rows_are_not_joined_where_the_processor_joins_them_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = llava(), rows(3, pictures=True)

    def brighter(model: ns.Model, prompts: Any) -> Any:
        data = encoded(model, prompts)
        return {**data, "pixel_values": data["pixel_values"] + len(prompts)}

    monkeypatch.setattr(encodings, "encoded", brighter)
    for _ in range(2):
        assert torch.equal(collate(model, prompts).encoding["pixel_values"], brighter(model, prompts)["pixel_values"])


def test_what_is_kept_is_bounded_and_goes_with_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = llava(), rows(6, pictures=True)
    one = encoded_rows(model, prompts[:1])[0].size
    memory = encodings._MEMORIES[model.processor]
    monkeypatch.setattr(encodings, "MOST_BYTES", 4 * one)
    encoded_rows(model, prompts)
    kept = [row.prompt() for row in memory.rows.values()]
    assert kept == prompts[6 - len(kept) :]
    assert 0 < memory.size == sum(row.encoding.size for row in memory.rows.values()) <= 4 * one
    del kept, prompts
    gc.collect()
    assert not memory.rows
    assert memory.size == 0
