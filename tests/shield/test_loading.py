"""A saved adapter is read back by this package and by plain PEFT."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from masking import LR, neurons
from safetensors.torch import load_file, save_file

import neuronshield as ns
from neuronshield.core.folders import list_files
from neuronshield.shield.loading import load_adapter
from neuronshield.shield.update import masked_update


def test_plain_peft_loads_the_adapter_and_computes_the_same(llama: ns.Model, tmp_path: Path):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=4, lr=LR, progress=False)
    update.save(tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(llama.module), tmp_path / "adapter").eval()
    mine = load_adapter(llama, tmp_path / "adapter").module
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = update.model.module(ids).logits
        assert not torch.allclose(expected, llama.module(ids).logits, atol=1e-3)
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine(ids).logits, expected, rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_that_is_not_there_is_said(llama: ns.Model, tmp_path: Path):
    with pytest.raises(ns.InputError, match="no adapter here"):
        load_adapter(llama, tmp_path)


def test_a_full_disk_leaves_the_old_adapter(llama: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    update.save(tmp_path / "adapter")
    old = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def full(folder: Path, **_: Any) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(update.peft_model, "save_pretrained", full)
    with pytest.raises(ns.InputError, match=r"adapter: cannot be written \(No space left on device\)"):
        update.save(tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == old


def other(seed: int = 0, **changes: int) -> ns.Model:
    return ns.load(tiny.llama(seed, **changes), processor=tiny.tokenizer())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda: other(seed=9),
            r"was trained on 'LlamaForCausalLM' with weights \w+; .* load the model that the adapter",
        ),
        (
            lambda: other(intermediate_size=31),
            "is of a model of 3 layers x 29 neurons; 'LlamaForCausalLM' has 3 x 31: load",
        ),
        (
            lambda: other(num_hidden_layers=5),
            "is of a model of 3 layers x 29 neurons; 'LlamaForCausalLM' has 5 x 29: load",
        ),
    ],
)
def test_a_masked_adapter_of_another_model_is_refused(llama: ns.Model, tmp_path: Path, model: Any, said: str):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, allow_unproven=True, progress=False)
    with pytest.raises(ns.InputError, match=said):
        load_adapter(model(), update.save(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"intermediate_size": 31}, "the adapter does not fit"),
        ({"num_hidden_layers": 2}, r"6 of its 18 tensors have no place in the model, such as '.*layers\.2\."),
    ],
)
def test_a_plain_lora_of_another_structure_is_refused(llama: ns.Model, tmp_path: Path, sizes: Any, said: str):
    folder = ns.plain_lora(llama, 9 * 49, tiny.prompts(), steps=1, progress=False).save(tmp_path / "adapter")
    with pytest.raises(ns.InputError, match=said):
        load_adapter(other(**sizes), folder)


def test_a_plain_lora_that_lacks_a_factor_is_refused(llama: ns.Model, tmp_path: Path):
    folder = ns.plain_lora(llama, 9 * 49, tiny.prompts(), steps=1, progress=False).save(tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file, metadata={"format": "pt"})
    list_files(folder)
    with pytest.raises(ns.InputError, match="the adapter does not fit 'LlamaForCausalLM'"):
        load_adapter(llama, folder)


@pytest.mark.parametrize("folder", [None, 3])
def test_a_folder_of_another_type_is_one_line(llama: ns.Model, folder: Any):
    with pytest.raises(ns.InputError, match=r"folder must be str or a path, got .*; pass the folder that update.save"):
        load_adapter(llama, folder)


# -- adapters that PEFT made ------------------------------------------------------------------------------
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [8, 9, 10, 13, 6, 7]])
MLP = ["down_proj", "up_proj", "gate_proj"]


def made_by_peft(folder: Path, kind: str = "LoraConfig", *, tied: bool = False, **options: Any) -> torch.nn.Module:
    """A base model; an adapter of that kind on it, with random numbers, is saved in the folder."""
    base = tiny.llama(tie_word_embeddings=tied)
    torch.manual_seed(3)
    adapted = peft.get_peft_model(copy.deepcopy(base), getattr(peft, kind)(**{"target_modules": MLP, **options}))
    for p in adapted.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    adapted.save_pretrained(folder)
    return base


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"r": 2}),
        ("LoraConfig", {"r": 4, "use_rslora": True, "rank_pattern": {"up_proj": 3}}),
        ("LoraConfig", {"r": 2, "use_dora": True}),
        ("LoraConfig", {"r": 2, "modules_to_save": ["lm_head"]}),
        ("LoraConfig", {"r": 2, "trainable_token_indices": [5, 6]}),
        ("LoraConfig", {"r": 2, "target_modules": [*MLP, "embed_tokens", "q_proj"]}),
        ("LoraConfig", {"r": 2, "init_lora_weights": "olora"}),
        ("IA3Config", {"target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}),
        ("LoHaConfig", {"r": 2}),
        ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_peft_made_is_applied_as_peft_applies_it(tmp_path: Path, kind: str, options: dict[str, Any]):
    base = made_by_peft(tmp_path / "a", kind, **options)
    before = {name: p.clone() for name, p in base.named_parameters()}
    with torch.no_grad():
        was = base(IDS).logits
        expected = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a").eval()(input_ids=IDS).logits
        mine = ns.load(base, processor=tiny.tokenizer(), adapter=tmp_path / "a")
        torch.testing.assert_close(mine.module(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - was).abs().max() > 0.1
    assert mine.provenance()["shielded"]
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            "LoraConfig",
            {"r": 2, "target_modules": [*MLP, "lm_head"], "tied": True},
            "more than a change of the weights",
        ),
        ("LoraConfig", {"r": 2, "lora_bias": True}, "cannot be merged into the weights"),
        ("LoraConfig", {"r": 2, "layer_replication": [[0, 2], [1, 3]]}, "layer_replication=.* repeats decoder layers"),
        ("LoraConfig", {"r": 2, "alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"}, "acts from a token on"),
        (
            "PromptTuningConfig",
            {"target_modules": None, "task_type": "CAUSAL_LM", "num_virtual_tokens": 3},
            "peft_type='PROMPT_TUNING' is not a kind of adapter that is merged",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_more_than_weights_is_refused(tmp_path: Path, kind: str, options: dict[str, Any], said: str):
    if kind == "PromptTuningConfig":
        options = {k: v for k, v in options.items() if k != "target_modules"}
        base: Any = tiny.llama()
        peft.get_peft_model(copy.deepcopy(base), peft.PromptTuningConfig(**options)).save_pretrained(
            str(tmp_path / "a")
        )
    else:
        base = made_by_peft(tmp_path / "a", kind, **options)
    with pytest.raises(ns.InputError, match=said):
        ns.load(base, processor=tiny.tokenizer(), adapter=tmp_path / "a")


@pytest.fixture(scope="module")
def masked(llama: ns.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved masked adapter."""
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, allow_unproven=True, progress=False)
    return update.save(tmp_path_factory.mktemp("masked") / "a")


def configured(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def factors(change: Any) -> Any:
    def write(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)

    return write


def another_set(folder: Path) -> None:
    """Another set's file that says the same of its update."""
    old = ns.NeuronSet.load(folder / "neurons.safetensors")
    ns.NeuronSet([(0, 3), (0, 4)], n_layers=3, d_mlp=29, provenance=old.provenance).save(folder / "neurons.safetensors")


def bare_set(folder: Path) -> None:
    ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29).save(folder / "neurons.safetensors")


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (configured(peft_type="WIZARD"), "peft_type='WIZARD' is not a kind"),
        (configured(r="x"), "the adapter does not fit"),
        (configured(use_dora=True), "the adapter does not fit"),
        (configured(lora_alpha=99), "adapter_config.json: lora_alpha was changed after the update was saved"),
        (configured(alpha_pattern={"model.layers.0.mlp.down_proj": 50}), "lora_alpha was changed"),
        (configured(megatron_config={"x": 1}, megatron_core="antigravity"), "needs Megatron"),
        (configured(future_feature=True), "future_feature=True is unknown to this version of peft"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "holds a list, not settings"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json: cannot be read"),
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 9),
            "adapter_model.safetensors: cannot be read",
        ),
        (factors(lambda t: {k: v * float("nan") for k, v in t.items()}), "not finite numbers"),
        (factors(lambda t: {k: v[:, :1] for k, v in t.items()}), "does not fit"),
        (factors(lambda t: dict(list(t.items())[::2])), "does not fit"),
        (bare_set, "neurons.safetensors: says nothing of an update"),
        (another_set, "changes weights of .* outside its set of 2 neurons"),
        (pickled, r"adapter_model.bin is not read \(a pickle can hold code\)"),
    ],
)
def test_a_wrong_adapter_is_refused_though_its_checksums_are_right(
    llama: ns.Model, masked: Path, tmp_path: Path, damage: Any, said: str
):
    folder = Path(shutil.copytree(masked, tmp_path / "a"))
    damage(folder)
    list_files(folder)
    with pytest.raises(ns.InputError, match=said) as caught:
        load_adapter(llama, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "neurons.safetensors"])
def test_a_changed_file_is_refused_by_its_name(llama: ns.Model, masked: Path, tmp_path: Path, name: str):
    folder = Path(shutil.copytree(masked, tmp_path / "a"))
    raw = (folder / name).read_bytes()
    for i in (0, len(raw) // 2, len(raw) - 1):
        (folder / name).write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
        with pytest.raises(ns.InputError, match=f"{name}: is not the file that was saved in this folder"):
            load_adapter(llama, folder)
    (folder / name).write_bytes(raw)
    (folder / "README.md").write_text("words of one's own are no damage")
    load_adapter(llama, folder)
    (folder / "neuronshield.json").unlink()
    with pytest.raises(ns.InputError, match=r"has no neuronshield\.json: written by an older version"):
        load_adapter(llama, folder)


def test_without_its_set_a_masked_adapter_is_one_of_peft(llama: ns.Model, tmp_path: Path):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=2, lr=LR, progress=False)
    folder = update.save(tmp_path / "a")
    (folder / "neurons.safetensors").unlink()
    for layer in range(3):
        assert torch.equal(load_adapter(llama, folder).down_weight(layer), update.model.down_weight(layer))
