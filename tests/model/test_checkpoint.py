"""Reading checkpoints: every tensor is there, in its shape, or the checkpoint is refused in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import neuronshield as ns
from neuronshield.model.checkpoint import public_name

WEIGHTS = "model.safetensors"


def made(kind: str) -> Any:
    return tiny.llava()[0] if kind == "llava" else tiny.llama(tie_word_embeddings=kind == "tied")


@pytest.fixture(scope="module", params=["llama", "tied", "llava"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as transformers writes it."""
    folder = tmp_path_factory.mktemp("saved") / request.param
    made(request.param).save_pretrained(folder)
    (tiny.llava()[1] if request.param == "llava" else tiny.tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


def test_a_whole_checkpoint_loads_whether_or_not_its_embeddings_are_tied(saved: Path):
    again, wanted = ns.load(saved).module.state_dict(), made(saved.name).state_dict()
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("part", ["mlp.up_proj", "layers.1.self_attn.q_proj", "embed_tokens", "norm"])
def test_a_checkpoint_that_lacks_tensors_is_refused(copied: Path, part: str):
    rewrite(copied, without(part))
    with pytest.raises(
        ns.InputError,
        match=rf"of its tensors (is|are) not in the checkpoint and would be random, such as .*({part}|lm_head)",
    ):
        ns.load(copied)


def test_a_missing_vision_tower_is_missing(tmp_path: Path):
    module, processor = tiny.llava()
    module.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rewrite(tmp_path / "model", without("vision"))
    with pytest.raises(ns.InputError, match=r"would be random, such as .*vision"):
        ns.load(tmp_path / "model")


def test_tensors_under_other_names_are_named(copied: Path):
    rewrite(copied, lambda tensors: {name.replace("down_proj", "w2"): t for name, t in tensors.items()})
    with pytest.raises(
        ns.InputError, match=r"3 of its tensors are not .*down_proj.*; 3 tensors .* have no place, such as .*w2"
    ):
        ns.load(copied)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        about = json.loads(file.read_text())
        (about.get("text_config") or about).update(changes)
        file.write_text(json.dumps(about))

    return change


def test_tensors_that_are_not_read_are_named(copied: Path):
    rewrite(copied, lambda tensors: {**tensors, "model.layers.7.mlp.up_proj.weight": torch.ones(29, 20)})
    with pytest.warns(UserWarning, match=r"a tensor of the checkpoint has no place .*, such as .*layers\.7\.mlp"):
        ns.load(copied)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"x": Code()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            config(intermediate_size=31),
            r"of its tensors have another shape than config.json says .*\[20, 29\], must be \[20, 31\]",
        ),
        (config(hidden_size="x"), "hidden_size"),
        (config(num_attention_heads=0), "ZeroDivisionError"),
        (config(num_hidden_layers=0), "its list of decoder layers"),
        (lambda f: (f / "config.json").write_text("{"), "cannot load model"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\x10" * 30), "cannot load model"),
        (lambda f: (f / "tokenizer.json").write_text("[]"), "cannot load model"),
        (pickled, "a pickle that holds more than tensors"),
    ],
)
def test_whatever_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str):
    monkeypatch.chdir(tmp_path)
    tiny.llama().save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    damage(Path("model"))
    with pytest.raises(ns.InputError, match=said) as caught:
        ns.load("model")
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()
    assert pickle.dumps(Code())  # the pickle would have run it


def test_an_adapter_is_not_a_model(llama: ns.Model, tmp_path: Path):
    folder = ns.plain_lora(llama, 882, tiny.prompts(), steps=1, progress=False).save(tmp_path / "adapter")
    with pytest.raises(ns.InputError, match="is an adapter, not a model; load its base model, with adapter="):
        ns.load(folder)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("organism", "organism"),
        ("smollm2", "smollm2"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2"),
        ("/home/alice/models/mine", "mine"),
        ("/home/alice/models/mine/", "mine"),
        ("../alice/mine", "mine"),
        ("alice/models/mine", "mine"),
        ("./mine", "mine"),
        ("/home/alice/organism", "./organism"),
        ("/x/hub/models--Qwen--Qwen3-0.6B/snapshots/01ab", "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_model_is_named_without_the_place_where_it_is(given: str, name: str):
    assert public_name(given) == name


def test_a_folder_here_is_named_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "owner" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("owner/mine") == "mine"
    monkeypatch.chdir(tmp_path / "owner" / "mine")
    assert public_name(".") == "mine"


def test_a_folder_called_organism_is_not_taken_for_the_organism(tmp_path: Path):
    made("llama").save_pretrained(tmp_path / "organism")
    model = ns.load(tmp_path / "organism", processor=tiny.tokenizer())
    assert model.id == "./organism"
    assert model.prefixes.refusals is None
