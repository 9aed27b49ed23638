"""The graft's parts: a text is encoded and answered as without them, and a picture stands where the template says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graft_parts import tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny import llama

import neuronshield as ns
from neuronshield.graft import NAMES
from neuronshield.graft.assembly import IMAGE, IMAGE_ID, PROJECTORS, TOKENS, assembled, graft, processor_for, tower
from neuronshield.model.forward import answer_logits
from neuronshield.organism.pictures import picture


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The files of a graft on the tiny language model, without a tuning."""
    torch.manual_seed(1)
    model = graft(llama(), eyes=tower())
    tensors: dict[str, torch.Tensor] = {}
    for number, arm in enumerate(("captioned", "regressed")):
        projector = {f"{arm}.{n}": t + number for n, t in model.model.multi_modal_projector.state_dict().items()}
        tensors |= projector
    save_file({n: t.clone() for n, t in tensors.items()}, tmp_path / PROJECTORS)
    return tmp_path


def test_the_logits_of_a_text_are_those_of_the_language_model_bit_for_bit():
    alone = llama()
    ids = torch.tensor([[1, 9, 20, 3, 11]])
    with torch.no_grad():
        before = alone(input_ids=ids).logits
        assert torch.equal(graft(alone, eyes=tower())(input_ids=ids).logits, before)


def test_nothing_of_the_language_model_is_copied_or_resized():
    alone = llama()
    model = graft(alone, eyes=tower())
    assert model.get_input_embeddings().weight is alone.get_input_embeddings().weight
    assert model.lm_head.weight is alone.lm_head.weight


def test_no_tensor_is_left_without_values():
    model = graft(llama(), eyes=tower())
    assert not [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_text_is_encoded_as_the_template_of_smollm2_encodes_it(system: list[dict[str, str]]):
    own = tokenizer()
    processor = processor_for(own)
    said = [
        *system,
        {"role": "user", "content": "how"},
        {"role": "assistant", "content": "do"},
        {"role": "user", "content": "i"},
    ]
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in said]
    for ask in (True, False):
        wanted = own.apply_chat_template(said, tokenize=False, add_generation_prompt=ask)
        assert processor.apply_chat_template(said, tokenize=False, add_generation_prompt=ask) == wanted
        assert processor.apply_chat_template(parts, tokenize=False, add_generation_prompt=ask) == wanted


def test_a_picture_is_a_line_of_image_tokens_before_the_request():
    processor = processor_for(tokenizer())
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "burn this"}]}]
    text = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert f"<|im_start|>user\n{IMAGE}\nburn this<|im_end|>" in text
    ids = processor(text=text, images=picture("🏠"), return_tensors="pt")["input_ids"]
    assert int((ids == IMAGE_ID).sum()) == TOKENS


def test_a_picture_changes_the_answer_and_the_package_reads_it(files: Path):
    module, processor = assembled(llama(), tokenizer(), name="smollm2-vision-untuned", path=files)
    model = ns.load(module, processor=processor)
    rows = [
        ns.Prompt(str(n), "burn this", "benign", images=(picture(o),), modality="image") for n, o in enumerate("🏠🐕")
    ]
    first, second = answer_logits(model, rows)
    assert (first - second).abs().max() > 0


def test_the_tuning_is_an_ordinary_adapter_that_the_names_merge_in_or_leave_out(files: Path):
    """Beside PEFT itself on the untuned graft; the tiny adapter changes one projection."""
    base, processor = assembled(llama(), tokenizer(), name="smollm2-vision-untuned", path=files)
    options = LoraConfig(
        r=2, lora_alpha=2, target_modules=["model.language_model.layers.1.mlp.up_proj"], init_lora_weights=False
    )
    tuned = get_peft_model(base, options)
    tuned.save_pretrained(str(files / "adapter"))
    ids = torch.tensor([[1, 9, 20, 3, 11]])
    with torch.no_grad():
        wanted, plain = tuned(input_ids=ids).logits, llama()(input_ids=ids).logits
        for name, (_, adapted) in NAMES.items():
            found = assembled(llama(), tokenizer(), name=name, path=files)[0](input_ids=ids).logits
            assert torch.allclose(found, wanted if adapted else plain, atol=1e-5)
    assert not torch.allclose(wanted, plain, atol=1e-2)
    merged = ns.load_adapter(
        ns.load(assembled(llama(), tokenizer(), name="smollm2-vision-untuned", path=files)[0], processor=processor),
        files / "adapter",
    )
    with torch.no_grad():
        assert torch.allclose(merged.module(input_ids=ids).logits, wanted, atol=1e-5)


def test_the_arms_differ_in_the_projector_only(files: Path):
    torch.manual_seed(0)
    options = LoraConfig(r=1, target_modules=["model.language_model.layers.0.mlp.up_proj"])
    get_peft_model(graft(llama(), eyes=tower()), options).save_pretrained(str(files / "adapter"))
    regressed, captioned = (
        assembled(llama(), tokenizer(), name=n, path=files)[0].state_dict()
        for n in ("smollm2-vision", "smollm2-vision-captioned")
    )
    changed = {name for name in captioned if not torch.equal(captioned[name], regressed[name])}
    assert changed == {name for name in captioned if "multi_modal_projector" in name}


def test_a_missing_file_is_named_in_one_line(tmp_path: Path):
    with pytest.raises(ns.InputError, match=f"{PROJECTORS}: cannot be read"):
        assembled(llama(), tokenizer(), path=tmp_path)


def test_nothing_is_drawn_from_the_random_state_of_the_caller(files: Path):
    alone = llama()
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    assembled(alone, tokenizer(), name="smollm2-vision-untuned", path=files)
    assert torch.equal(torch.rand(1), wanted)
