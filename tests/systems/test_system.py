"""A system writes node by node, and is judged, saved and loaded as a model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.systems import Outcome

OPTIONS: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}


@pytest.fixture(scope="module")
def other() -> ns.Model:
    return ns.load(tiny.llama(seed=3), processor=tiny.tokenizer())


def chain(first: ns.Model, second: ns.Model) -> ns.System:
    answer = ns.Node("answer", second, "how {describe} {prompt}", max_new_tokens=6)
    return ns.System([answer, ns.Node("describe", first, max_new_tokens=4)])


def test_one_node_is_generate(llava: ns.Model):
    prompts = tiny.prompts(pictures=True)[::7]
    system = ns.System([ns.Node("answer", llava, max_new_tokens=9)])
    said = ns.generate(llava, prompts, max_new_tokens=9)
    assert system.generate(prompts) == said
    assert system.run(prompts, max_new_tokens=2)[0].answer == ns.generate(llava, prompts[0], max_new_tokens=2)
    assert any(said)


def test_nodes_are_generated_one_after_the_other(llama: ns.Model, other: ns.Model):
    prompts, system = tiny.prompts()[:6], chain(llama, other)
    for prompt, outcome in zip(prompts, system.run(prompts), strict=True):
        described = ns.generate(llama, prompt, max_new_tokens=4)
        answered = ns.generate(other, f"how {described} {prompt.prompt}", max_new_tokens=6)
        assert outcome == Outcome({"describe": described, "answer": answered})
        assert list(outcome.outputs) == ["describe", "answer"]
        assert outcome.answer == answered


def test_an_error_names_the_node(llama: ns.Model):
    system = ns.System([ns.Node("answer", llama)])
    with pytest.raises(InputError, match=r"node 'answer': .*takes no|node 'answer': .*picture"):
        system.run(tiny.prompts(pictures=True).where(modality="image"))


def test_what_it_is_and_says(llama: ns.Model, other: ns.Model):
    system = chain(llama, other)
    assert repr(system) == "System(describe -> answer; 2 models)"
    assert repr(chain(llama, llama)) == "System(describe -> answer; 1 model)"
    assert (system.last.name, [n.name for n in system.between]) == ("answer", ["describe"])
    told = system.provenance()
    assert [n["fingerprint"] for n in told["nodes"]] == [llama.fingerprint, other.fingerprint]
    assert told["fingerprint"] != chain(other, llama).provenance()["fingerprint"]
    json.dumps(told)
    swapped = system.with_models({"describe": other})
    assert (swapped.nodes["describe"].model, swapped.last.model) == (other, other)
    with pytest.raises(InputError, match="no node 'descrbe'; there are describe, answer"):
        system.with_models({"descrbe": other})


def test_a_system_is_evaluated_as_a_model_is(llama: ns.Model, other: ns.Model):
    prompts = tiny.prompts()
    one = ns.evaluate(ns.System([ns.Node("answer", llama)]), prompts, max_new_tokens=5, **OPTIONS)
    alone = ns.evaluate(llama, prompts, max_new_tokens=5, **OPTIONS)
    assert list(one.answers) == list(alone.answers)
    assert one.mean("refusal") == alone.mean("refusal")
    system = chain(llama, other)
    found = ns.evaluate(system, prompts, max_new_tokens=6, **OPTIONS)
    assert [a.response for a in found.answers] == system.generate(prompts)
    assert found.provenance["fingerprint"] == system.provenance()["fingerprint"]
    assert found.provenance["generation"]["max_new_tokens"] == 6


@pytest.mark.parametrize(("options", "said"), [({"engine": "ray"}, "engine="), ({"guard": True}, "guard=")])
def test_options_that_a_system_does_not_take_are_refused(llama: ns.Model, options: dict[str, Any], said: str):
    if "guard" in options:
        options = {"guard": object.__new__(ns.guard.Guard)}
    with pytest.raises(InputError, match=f"evaluate: {said} has no use with a System"):
        ns.evaluate(ns.System([ns.Node("answer", llama)]), tiny.prompts(), **options, **OPTIONS)


def test_it_comes_back_from_its_folder(llama: ns.Model, other: ns.Model, tmp_path: Path):
    system = chain(llama, other)
    folder = system.save(tmp_path / "system")
    again = ns.System.load(folder, {"describe": llama, "answer": other})
    assert again.provenance() == system.provenance()
    assert again.generate(tiny.prompts()[:3]) == system.generate(tiny.prompts()[:3])
    assert str(tmp_path) not in (folder / "system.json").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"node 'answer' has a model with weights .* load that one"):
        ns.System.load(folder, llama)
    with pytest.raises(
        InputError, match="the model of node 'answer' must be Model, got NoneType; load 'LlamaForCausalLM'"
    ):
        ns.System.load(folder, {"describe": llama})
    text = (folder / "system.json").read_text(encoding="utf-8")
    for damaged in (text[:-9], text.replace("how {describe}", "who {describe}"), text.replace("System/1", "System/9")):
        (folder / "system.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(InputError, match=r"system.json: "):
            ns.System.load(folder, llama)
    with pytest.raises(InputError, match="no such file"):
        ns.System.load(tmp_path / "nowhere", llama)
