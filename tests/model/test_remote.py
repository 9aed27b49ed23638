"""Traces that run elsewhere: `remote="local"` sends them through the serialisation of NDIF with this package hidden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import tiny
import torch
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend

import neuronshield as ns
from neuronshield import InputError, organism
from neuronshield.model import remote
from neuronshield.model.forward import answer_logits
from neuronshield.model.prefixes import OpeningTokens

NAMES = ["llama", "gpt2", "llava"]


def both(name: str) -> tuple[ns.Model, ns.Model]:
    """The same weights, traced here and as if there."""
    module: Any
    processor: Any
    if name == "llava":
        module, processor = tiny.llava()
    else:
        module, processor = getattr(tiny, name)(), tiny.tokenizer()
    return ns.load(module, processor=processor), ns.load(module, processor=processor, remote="local")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_moments_and_norms_from_there_are_those_from_here(name: str) -> None:
    here, there = both(name)
    prompts = tiny.prompts(pictures=name == "llava")
    mine, theirs = (ns.capture(m, prompts, tokens="prompt", batch_size=3, progress=False) for m in (here, there))
    assert mine.groups.keys() == theirs.groups.keys()
    for key, moments in mine.groups.items():
        for field in ("n", "mean", "m2", "mean_abs", "positive", "least", "share"):
            np.testing.assert_array_equal(getattr(moments, field), getattr(theirs.groups[key], field))
    told = remote.facts(there)
    np.testing.assert_allclose(mine.down_norms, told.norms[2], rtol=1e-12)
    np.testing.assert_allclose(mine.down_l1, told.norms[1], rtol=1e-12)
    about = ("fingerprint", "dtype")
    assert [mine.provenance[k] for k in about] == [theirs.provenance[k] for k in about]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_under_an_intervention_from_there_are_those_from_here(name: str) -> None:
    here, there = both(name)
    prompts = list(tiny.prompts(pictures=name == "llava"))
    neurons = ns.NeuronSet([(1, 3), (2, 7)], n_layers=here.n_layers, d_mlp=here.d_mlp)
    for change in (None, ns.Intervention(neurons, "zero", positions="all"), ns.Intervention(neurons, "scale", 3.0)):
        mine, theirs = (answer_logits(m, prompts, change, batch_size=3) for m in (here, there))
        torch.testing.assert_close(mine, theirs)


def test_gradients_from_there_are_those_from_here() -> None:
    from neuronshield.find.attribution import gradients

    here, there = both("llama")
    prompts, tokens = list(tiny.prompts()), {x: OpeningTokens([3], [5]) for x in ("en", "sw", "zh")}
    for mine, theirs in zip(*(gradients(m, prompts, tokens) for m in (here, there)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_folder_s_model_can_be_tried_as_if_there() -> None:
    model = ns.load("organism", remote="local")
    rows = organism.records(languages=["en"], modalities=["text", "image"], splits=["discover"], max_pairs=2)
    scores = ns.contrast(ns.capture(model, ns.PromptSet.from_records(rows), progress=False))
    assert len(scores.cells) == 2
    assert scores.values.max() > 0


def test_what_needs_the_model_here_says_so(llama: ns.Model) -> None:
    there = ns.load(llama.module, processor=llama.processor, remote="local")
    neurons = ns.NeuronSet([(1, 3)], n_layers=3, d_mlp=29)
    for name, call in {
        "generate": lambda: ns.generate(there, tiny.prompts()),
        "verify": lambda: ns.verify(there, neurons, tiny.prompts()),
        "masked_update": lambda: ns.masked_update(there, neurons, tiny.prompts(), allow_unproven=True),
        "fit_guard": lambda: ns.guard.fit_guard(there, neurons, tiny.prompts()),
        "snip": lambda: ns.baselines.snip(there, tiny.prompts()),
    }.items():
        with pytest.raises(InputError, match=f"^{name}: .*remote='local', where only one forward can be asked for"):
            call()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> torch.nn.Module:
    """A folder stands in for a hub id, "somebody/model"."""
    module = tiny.llama()
    module.save_pretrained(tmp_path / "somebody" / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "somebody" / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(nnsight.TransformersModel, "_remoteable_model_key", lambda _: "somebody/model")
    return module


def test_who_cannot_be_asked_is_one_line(hub: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RemoteBackend, tracer: Any = None) -> None:
        raise RuntimeError("no key\nand more")

    monkeypatch.setattr(RemoteBackend, "__call__", refuse)
    there = ns.load("somebody/model", remote=True)
    with pytest.raises(InputError, match=r"^remote=True: 'somebody/model' could not be asked \(no key\); does nnsight"):
        there.down_norms()


def test_loading_asks_nobody_and_facts_are_asked_once(hub: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(model: ns.Model) -> remote.Facts:
        asked.append(model.id)
        return remote.Facts({1: torch.ones(3, 29), 2: torch.full((3, 29), 2.0)}, [torch.zeros(4, 29)] * 3, "float16")

    monkeypatch.setattr(remote, "facts", answer)
    there = ns.load("somebody/model", remote=True)
    assert "somebody/model" in repr(there)
    assert there.device.type == "cpu"
    assert there.there == {"remote": True}
    assert asked == []
    assert there.dtype == "float16"
    assert float(there.down_norms(2)[0, 0]) == 2.0
    assert len(there.fingerprint) == 16
    assert asked == ["somebody/model"]


def test_ndif_is_asked_by_name_and_no_weights_are_loaded(hub: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    skeletons: list[ns.Model] = []
    facts = remote.facts

    def looked_at(model: ns.Model) -> remote.Facts:
        assert all(p.is_meta for p in model.module.parameters())
        skeletons.append(model)
        return facts(model)

    def serve(self: RemoteBackend, tracer: Any = None) -> None:
        """The server: its weights are there while it runs what it was sent."""
        asked.append(self.model_key)
        skeletons[0].module.load_state_dict(hub.state_dict(), assign=True)
        LocalSimulationBackend(skeletons[0].traced)(tracer)

    monkeypatch.setattr(remote, "facts", looked_at)
    monkeypatch.setattr(RemoteBackend, "__call__", serve)
    there, here = ns.load("somebody/model", remote=True), ns.load(hub, processor=tiny.tokenizer())
    assert there.fingerprint == here.fingerprint
    assert there.device.type == "cpu"
    prompts = tiny.prompts()
    mine, theirs = (ns.contrast(ns.capture(m, prompts, progress=False)) for m in (here, there))
    np.testing.assert_allclose(mine.values, theirs.values, rtol=1e-6)
    assert len(asked) > 1  # once for its facts, then for each batch
    assert all("TransformersModel:somebody/model" in key for key in asked)


def test_what_cannot_be_elsewhere_is_refused(llama: ns.Model) -> None:
    with pytest.raises(InputError, match="remote='ndif' is unknown"):
        ns.load("organism", remote="ndif")
    with pytest.raises(InputError, match="give a hub id that NDIF serves, or remote='local'"):
        ns.load("organism", remote=True)
    with pytest.raises(InputError, match="give its hub id"):
        ns.load(llama.module, processor=llama.processor, remote=True)
    with pytest.raises(InputError, match="quantize= or remote="):
        ns.load("organism", remote="local", quantize="4bit")
    with pytest.raises(InputError, match=r"load_adapter: .* loaded with remote="):
        ns.load_adapter(ns.load(llama.module, processor=llama.processor, remote="local"), "there")


def test_weights_that_are_packed_there_are_refused() -> None:
    module = tiny.llama()
    there = ns.load(module, processor=tiny.tokenizer(), remote="local")
    down = module.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.data.to(torch.int8), requires_grad=False)  # type: ignore[union-attr,operator,assignment]
    with pytest.raises(ns.InputError, match=r"are packed there \(int8\), and cannot be read from here"):
        remote.facts(there)
