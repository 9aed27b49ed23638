"""The check-up: it passes on sound models, and names what is wrong with planted faults."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from transformers import LlamaForCausalLM

import neuronshield as ns
from neuronshield.cli import main
from neuronshield.run import doctor
from neuronshield.run.bridge import BridgeMissing, bridge_of


def line(checkup: Any, name: str) -> Any:
    return next(x for x in checkup if x.name == name)


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "InternVL3", "PaliGemma", "Llama 3.2 Vision", "Phi-3", "OPT"])
def test_sound_models_pass(name: str) -> None:
    family = next(f for f in families.FAMILIES if f.name == name)
    checkup = ns.doctor(family.load())
    assert checkup.passed, str(checkup)
    assert "3 layers, d_mlp 29, d_model 20: 87 neurons" in line(checkup, "backbone").text
    assert (line(checkup, "image tokens").passed is None) == (family.image_tokens == 0)
    assert ("run only where there is a picture" in line(checkup, "backbone").text) == (name == "Llama 3.2 Vision")


def test_transformer_lens_is_compared_with_and_the_model_stays_as_it_is(llava: ns.Model) -> None:
    before, tree = {n: p.clone() for n, p in llava.module.state_dict().items()}, str(llava.module)
    found = line(ns.doctor(llava), "TransformerLens")
    assert found.passed is True
    assert "hook_post, and the logits with 10 neurons of layer 1 at zero: off by at most" in found.text
    assert str(llava.module) == tree
    after = llava.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    ("name", "said"),
    [("InternVL3", "has no adapter for this family"), ("Qwen2.5-VL", "needs torchvision for this family")],
)
def test_where_transformer_lens_cannot_be_used_the_line_says_why_and_nothing_is_installed(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "Qwen2.5-VL" and importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **_: started.append(args))
    model = next(f for f in families.FAMILIES if f.name == name).load()
    with pytest.raises(BridgeMissing, match=said):
        bridge_of(model)
    assert started == []


def test_a_disagreement_with_transformer_lens_fails_that_line(llama: ns.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = doctor.by_bridge

    def off(*args: Any, **options: Any) -> Any:
        h, logits = checked(*args, **options)
        return h, logits.roll(1, dims=1)

    monkeypatch.setattr(doctor, "by_bridge", off)
    checkup = ns.doctor(llama)
    assert line(checkup, "TransformerLens").passed is False
    assert line(checkup, "parity").passed is True
    assert repr(checkup) == "Checkup(13 lines, failed: TransformerLens)"


def test_packed_or_remote_weights_are_not_bridged(llama: ns.Model) -> None:
    there = ns.load(llama.module, processor=llama.processor, remote="local")
    with pytest.raises(BridgeMissing, match="not tried: the weights are elsewhere"):
        bridge_of(there)


def test_what_a_budget_buys_is_counted(llama: ns.Model) -> None:
    # 29 x 3 neurons of 60 parameters: one is more than 0.03 % of so small a model
    assert "60 parameters" in line(ns.doctor(llama), "budget").text
    big = ns.load(tiny.llama(vocab_size=40_000), processor=tiny.tokenizer())
    k = int(3e-4 * sum({id(p): p.numel() for p in big.module.parameters()}.values()) / 60)
    assert f"is {k} neurons of 60 parameters each" in line(ns.doctor(big), "budget").text


def test_a_model_that_sees_its_padding_fails_that_check() -> None:
    class Careless(LlamaForCausalLM):
        def forward(self, *args: Any, attention_mask: Any = None, **kw: Any) -> Any:
            return super().forward(*args, attention_mask=torch.ones_like(attention_mask), **kw)

    torch.manual_seed(0)
    module = Careless(tiny.llama_config()).eval()
    checkup = ns.doctor(ns.load(module, processor=tiny.tokenizer()))
    assert not checkup.passed
    assert line(checkup, "padding").passed is False
    assert "each prompt alone" in line(checkup, "padding").text


def test_a_model_that_does_not_read_its_pictures_fails_that_check() -> None:
    module, processor = tiny.llava()
    with torch.no_grad():
        for p in module.model.multi_modal_projector.parameters():
            p.zero_()
    found = line(ns.doctor(ns.load(module, processor=processor)), "image tokens")
    assert found.passed is False
    assert "another picture gives the same logits" in found.text


def test_weights_that_are_not_finite_are_lines_that_failed_not_a_crash() -> None:
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight[0, 0] = torch.nan
    checkup = ns.doctor(ns.load(module, processor=tiny.tokenizer()))
    assert line(checkup, "gradients").passed is False
    assert line(checkup, "padding").passed is False
    assert line(checkup, "backbone").passed is True


def test_a_dead_layer_fails_the_ablation() -> None:
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.zero_()
    found = line(ns.doctor(ns.load(module, processor=tiny.tokenizer())), "ablation")
    assert found.passed is False
    assert found.text == "zeroing all of layer 1 changed no logit"


def test_the_command_says_pass_and_fail_by_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["neuronshield", "doctor", *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    module = tiny.llama()
    module.save_pretrained(tmp_path / "sound")
    tiny.tokenizer().save_pretrained(tmp_path / "sound")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.zero_()
    module.save_pretrained(tmp_path / "dead")
    tiny.tokenizer().save_pretrained(tmp_path / "dead")
    assert run(str(tmp_path / "sound")) == 0
    assert "pass  parity" in capsys.readouterr().out
    assert run(str(tmp_path / "dead")) == 1
    assert "FAIL  ablation" in capsys.readouterr().out
    assert run(str(tmp_path / "nowhere")) == 2
    assert run(str(tmp_path / "sound"), "--dtype", "float5") == 2
    assert "'float5' is unknown" in capsys.readouterr().err
