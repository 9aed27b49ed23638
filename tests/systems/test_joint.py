"""A joint update is masked DPO over all trained nodes; of one node it is TRL's."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import masking as u
import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError
from neuronshield.shield.dpo import BETA
from neuronshield.systems import Outcome, Preference

LR, STEPS = 3e-2, 4
QUICK: dict[str, Any] = {"allow_unproven": True, "progress": False}


def second(seed: int = 5) -> ns.Model:
    return ns.load(tiny.llama(seed=seed), processor=tiny.tokenizer())


def chain(first: ns.Model, last: ns.Model) -> ns.System:
    return ns.System([
        ns.Node("describe", first, max_new_tokens=3), ns.Node("answer", last, "how {describe} here", max_new_tokens=5)
    ])  # fmt: skip


def judged(model: ns.Model) -> list[Preference]:
    """One harmful and one benign preference, whose outcomes differ at both nodes: every batch of two is these."""
    harmful, benign = u.one_batch(model)
    return [
        Preference(
            harmful,
            Outcome({"describe": "a bomb", "answer": "sorry no"}),
            Outcome({"describe": "it", "answer": "sure make it"}),
        ),
        Preference(
            benign,
            Outcome({"describe": "the cake", "answer": "yes"}),
            Outcome({"describe": "the cake", "answer": "sorry no"}),
        ),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "llava"])
def test_of_one_node_it_is_the_dpo_of_trl(family: str):
    pytest.importorskip("trl")
    if family == "llava":
        module, processor = tiny.llava(seed=1)  # one that does not answer with image tokens
        model = ns.load(module, processor=processor)
    else:
        model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    rows = tiny.records(pictures=family == "llava", languages=("en",))
    prompts = ns.PromptSet.from_records(
        [{**r, "target": r["target"] if r["label"] == "harmful" else None} for r in rows]
    )
    options: dict[str, Any] = {"steps": STEPS, "lr": LR, "batch_size": 4, "refusals": ["sorry no"], "seed": 2, **QUICK}
    theirs = ns.masked_update(model, u.neurons(), prompts, objective="preference", **options)
    system = ns.System([ns.Node("answer", model, max_new_tokens=24)])
    mine = ns.system_update(system, {"answer": u.neurons()}, prompts, **options)
    assert mine.losses == pytest.approx(theirs.losses, abs=2e-4)
    assert np.ptp(mine.losses) > 1e-2  # it learnt
    wanted, start = u.parameters(theirs.model), u.parameters(model)
    for name, found in u.parameters(mine.system.last.model).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=2e-3)
        mask = u.masks(model, u.MEMBERS)[name]
        assert torch.equal(found[~mask], start[name][~mask]), name


def logp(module: Any, model: ns.Model, prompt: str, answer: str) -> torch.Tensor:
    encoding, n = tiny.encode(model, ns.Prompt("x", prompt, "benign"), answer)
    ids = encoding["input_ids"][0]
    return module(**encoding).logits[0, n - 1 : -1].log_softmax(-1).gather(1, ids[n:, None]).sum()


def by_hand(
    models: list[ns.Model], sets: list[list[tuple[int, int]]], chosen: list[Preference]
) -> tuple[list[float], list[Any]]:
    """The formula on the full weights with gradients masked; models that are one object are one module."""
    made = {id(m): copy.deepcopy(m.module) for m in models}
    modules = [made[id(m)] for m in models]
    keep = {id(made[id(m)]): u.masks(m, s) for m, s in zip(models, sets, strict=True)}
    named = []
    for module in made.values():
        for name, p in module.named_parameters():
            mask = keep[id(module)][name]
            p.requires_grad_(bool(mask.any()))
            if mask.any():
                named.append((p, mask))
    optimiser = torch.optim.AdamW([p for p, _ in named], lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = LR * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS)))
        optimiser.zero_grad()
        total = torch.zeros(())
        for pair in chosen:
            ahead = torch.zeros(())
            for sign, outcome in ((1, pair.preferred), (-1, pair.rejected)):
                described, answered = outcome.outputs["describe"], outcome.outputs["answer"]
                for i, (asked, said) in enumerate(
                    [(pair.prompt.prompt, described), (f"how {described} here", answered)]
                ):
                    with torch.no_grad():
                        before = logp(models[i].module, models[i], asked, said)
                    ahead = ahead + sign * (logp(modules[i], models[i], asked, said) - before)
            total = total - torch.nn.functional.logsigmoid(BETA * ahead) / len(chosen)
        total.backward()
        for p, mask in named:
            assert p.grad is not None
            p.grad[~mask] = 0.0
        torch.nn.utils.clip_grad_norm_([p for p, _ in named], 1.0)
        optimiser.step()
        losses.append(float(total.detach()))
    return losses, modules


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_two_nodes_learn_under_a_gradient_mask(llama: ns.Model, shared: bool):
    other = llama if shared else second()
    sets = [u.MEMBERS, u.MEMBERS if shared else [(1, 5), (2, 9)]]
    chosen = judged(llama)
    neurons = {"describe": u.neurons(sets[0]), "answer": u.neurons(sets[1])}
    update = ns.system_update(chain(llama, other), neurons, chosen, steps=STEPS, lr=LR, batch_size=2, **QUICK)
    losses, modules = by_hand([llama, other], sets, chosen)
    assert update.losses == pytest.approx(losses, abs=1e-3)
    assert update.losses[-1] < np.log(2) - 0.01
    assert (update.updates["describe"] is update.updates["answer"]) == shared
    assert (update.system.nodes["describe"].model is update.system.last.model) == shared
    for i, (name, model) in enumerate((("describe", llama), ("answer", other))):
        found, start = u.parameters(update.system.nodes[name].model), u.parameters(model)
        assert any(not torch.equal(found[n], start[n]) for n in found)
        for n, p in modules[i].named_parameters():
            torch.testing.assert_close(found[n], p.detach(), rtol=0, atol=5e-3)
            mask = u.masks(model, sets[i])[n]
            assert torch.equal(found[n][~mask], start[n][~mask]), n


@pytest.mark.slow
def test_a_node_that_is_not_named_stays_and_one_that_is_named_alone_is_trained_apart(llama: ns.Model):
    update = ns.system_update(
        chain(llama, llama), {"answer": u.neurons()}, judged(llama), steps=2, lr=LR, batch_size=2, **QUICK
    )
    assert update.system.nodes["describe"].model is llama
    assert update.system.last.model is not llama
    assert update.trained == 180
    assert update.param_fraction == 180 / llama.n_params
    assert repr(update).startswith("SystemUpdate(answer of describe -> answer; 180 numbers, ")


@pytest.mark.slow
def test_with_candidates_a_node_learns_of_which_no_output_is_judged(llama: ns.Model):
    other, prompts = second(), tiny.prompts(languages=("en",))
    system, sets = chain(llama, other), {"describe": u.neurons(), "answer": u.neurons()}
    with pytest.raises(
        InputError, match="the output of node 'describe' is the same in both outcomes of every preference"
    ):
        ns.system_update(system, sets, prompts, steps=1, **QUICK)
    options: dict[str, Any] = {"candidates": 3, "steps": 8, "lr": LR, "batch_size": 4, **QUICK}
    update = ns.system_update(system, sets, prompts, **options)
    assert update.losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert np.mean(update.losses[-3:]) < np.mean(update.losses[:3]) - 0.01
    for name, model in (("describe", llama), ("answer", other)):
        found, start = u.parameters(update.system.nodes[name].model), u.parameters(model)
        assert any(not torch.equal(found[n], start[n]) for n in found), name
    again = ns.system_update(system, sets, prompts, **options, accumulate=2)
    assert again.losses == pytest.approx(update.losses, abs=1e-4)


@pytest.mark.slow
def test_it_comes_back_from_its_folder_and_from_each_snapshot(llama: ns.Model, tmp_path: Path):
    other, prompts = second(), tiny.prompts()[:4]
    sets = {"describe": u.neurons(), "answer": u.neurons([(1, 5)])}
    update = ns.system_update(
        chain(llama, other), sets, judged(llama), steps=3, lr=LR, batch_size=2, snapshots=[1, 3], **QUICK
    )
    folder = update.save(tmp_path / "system")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter-answer",
        "adapter-describe",
        "neuronshield.json",
        "system.json",
    ]
    models = {"describe": llama, "answer": other}
    again = ns.System.load(folder, models)
    for name, node in again.nodes.items():
        mine = u.parameters(update.system.nodes[name].model)
        assert all(torch.equal(p, mine[n]) for n, p in u.parameters(node.model).items())
    assert again.generate(prompts) == update.system.generate(prompts)
    early, last = update.at(1).last.model, update.at(3).last.model
    assert all(torch.equal(p, u.parameters(update.system.last.model)[n]) for n, p in u.parameters(last).items())
    assert any(not torch.equal(p, u.parameters(early)[n]) for n, p in u.parameters(last).items())
    with pytest.raises(InputError, match=r"SystemUpdate.at\(2\): kept are 1, 3"):
        update.at(2)
    saved = json.loads((folder / "system.json").read_text(encoding="utf-8"))
    assert saved["provenance"]["train"] == "system_update"
    assert [n["adapter"] for n in saved["nodes"]] == ["adapter-describe", "adapter-answer"]
    with pytest.raises(InputError, match=r"the model of node 'describe' was changed by an update; use update.save"):
        update.system.save(tmp_path / "other")
    weights = folder / "adapter-answer" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match="adapter-answer"):
        ns.System.load(folder, models)


@pytest.mark.slow
def test_nodes_that_share_a_model_share_a_saved_adapter(llama: ns.Model, tmp_path: Path):
    sets = {"describe": u.neurons(), "answer": u.neurons()}
    update = ns.system_update(chain(llama, llama), sets, judged(llama), steps=1, lr=LR, batch_size=2, **QUICK)
    again = ns.System.load(update.save(tmp_path / "system"), llama)
    assert len(again.models) == 1
    assert again.provenance()["fingerprint"] == update.system.provenance()["fingerprint"]


@pytest.mark.slow
def test_an_interrupted_run_continues_from_its_checkpoint(llama: ns.Model, tmp_path: Path):
    system, sets = chain(llama, llama), {"answer": u.neurons()}
    options: dict[str, Any] = {"steps": 4, "lr": LR, "batch_size": 2, **QUICK}
    whole = ns.system_update(system, sets, judged(llama), **options)
    file = tmp_path / "run.safetensors"

    class Stop(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            if len(self.state_dict()["state"]) and next(iter(self.state.values()))["step"] == 2:
                raise KeyboardInterrupt
            return super().step(*args, **kwargs)

    def made(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return Stop(parameters, lr=lr, weight_decay=0.0)

    with pytest.raises(KeyboardInterrupt):
        ns.system_update(system, sets, judged(llama), checkpoint=file, optimiser=made, **options)
    again = ns.system_update(system, sets, judged(llama), checkpoint=file, **options)
    assert again.losses == pytest.approx(whole.losses, abs=1e-6)
    other = [replace(p, rejected=p.preferred, preferred=p.rejected) for p in judged(llama)]
    with pytest.raises(InputError, match=r"run.safetensors"):
        ns.system_update(system, sets, other, checkpoint=file, **options)


@pytest.mark.parametrize(
    ("sets", "options", "said"),
    [
        ({}, {}, "neurons names no node; pass neurons by the name of a node"),
        ({"descrbe": u.neurons()}, {}, "no node 'descrbe'; there are describe, answer"),
        (u.neurons(), {}, "neurons must be Mapping, got NeuronSet; neurons by the name of a node"),
        ({"answer": [(0, 3)]}, {}, "neurons must be NeuronSet, got list"),
        ({"answer": ns.NeuronSet([], n_layers=3, d_mlp=29)}, {}, "the neuron set is empty"),
        ({"answer": ns.NeuronSet([(0, 3)], n_layers=4, d_mlp=29)}, {}, "4 layers"),
        ({"describe": u.neurons(), "answer": u.neurons([(0, 3)])}, {}, "'describe' and 'answer' have one model but two sets"),
        ({"answer": u.neurons()}, {"texts": ["a"]}, "texts= has no use with system_update"),
        ({"answer": u.neurons()}, {"objective": "supervised"}, "objective='supervised' is unknown; use one of preference"),
        ({"answer": u.neurons()}, {"candidates": -1}, "candidates=-1: must be a whole number of at least 0"),
        ({"answer": u.neurons()}, {"parts": ["middle"]}, "parts='middle' is unknown"),
        ({"answer": u.neurons()}, {"stps": 3}, "stps= is unknown; did you mean 'steps'?"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(llama: ns.Model, sets: Any, options: dict[str, Any], said: str):
    with pytest.raises(InputError) as caught:
        ns.system_update(chain(llama, llama), sets, judged(llama), **{"steps": 1, **QUICK, **options})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_that_was_not_proven_warns_with_its_node(llama: ns.Model):
    with pytest.warns(UserWarning, match="system_update: node 'answer': 3 neurons were not proven"):
        ns.system_update(
            chain(llama, llama), {"answer": u.neurons()}, judged(llama), steps=1, batch_size=2, progress=False
        )
