"""Mixtures of experts: every number against a forward written from the definition, and against the family's own model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mixtures
import numpy as np
import pytest
import tiny
import torch
import transformers
from mixtures import D_E, SPECS, E, K, Spec, by_family, neuron_set, one_batch, rows

import neuronshield as ns
from neuronshield.find.attribution import gradients
from neuronshield.find.baselines import snip
from neuronshield.model.encoding import collate
from neuronshield.model.experts import owners
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.intervention import Intervention
from neuronshield.model.prefixes import OpeningTokens
from neuronshield.shield.edits import clamp_edit, low_rank_edit
from neuronshield.shield.unmasked import full_update, plain_lora
from neuronshield.shield.variants import frozen_set_update, masked_lora

WORD = {w: i for i, w in enumerate(tiny.WORDS)}
TOKENS = {x: OpeningTokens([WORD["sorry"], WORD["no"]], [WORD["sure"]]) for x in ("en", "sw")}


@by_family
def test_the_logits_are_those_of_the_familys_own_model_and_of_the_definition(spec: Spec) -> None:
    module = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    assert (model.n_layers, model.d_mlp, model.d_model) == (3, spec.d_mlp, 20)
    ids = torch.randint(3, 38, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, own = model.module(ids).logits, module(ids).logits
        defined = mixtures.by_definition(spec, module)(ids).logits
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, defined, rtol=1e-5, atol=1e-5)


def own_neurons(spec: Spec, module: torch.nn.Module, prompt: ns.Prompt) -> torch.Tensor:
    """h by definition, [pos, n_layers, d_mlp]."""
    seen: dict[int, torch.Tensor] = {}
    oracle = mixtures.by_definition(spec, module, lambda layer, h: seen.update({layer: h.clone()}))
    with torch.no_grad():
        oracle(**tiny.tokenizer()(prompt.prompt, return_tensors="pt").data)
    return torch.stack([seen[i] for i in range(3)], dim=1)


@by_family
def test_what_is_read_is_h_by_definition_and_experts_that_were_not_chosen_are_silent(spec: Spec) -> None:
    module = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = rows()
    wanted = [own_neurons(spec, module, p) for p in prompts]
    torch.testing.assert_close(ns.record(model, prompts), torch.stack([h[-1] for h in wanted]), rtol=1e-4, atol=1e-5)
    silent = (ns.record(model, prompts)[..., : E * D_E] == 0).unflatten(-1, (E, D_E)).all(dim=-1)
    assert (silent.sum(dim=-1) == E - K).all()
    chosen = ns.PromptSet(p for p in prompts if p.label == "harmful" and p.language == "en")
    got = ns.capture(model, chosen, tokens="prompt", progress=False).moments("harmful", ("en", "text"))
    every = torch.cat([h for h, p in zip(wanted, prompts, strict=True) if p.label == "harmful" and p.language == "en"])
    np.testing.assert_allclose(got.mean, every.double().mean(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(got.var, every.double().var(0), rtol=1e-3, atol=1e-6)


@by_family
def test_the_output_of_a_layer_is_w_down_times_h(spec: Spec) -> None:
    module: Any = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    x = torch.randn(1, 5, 20, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        block = module.model.layers[1].mlp
        h = torch.stack([mixtures.neurons(spec, block, token) for token in x[0]])
        out = block(x)
        out = out[0] if spec.oss else out
        if spec.oss:
            biases = [
                sum(r * block.experts.down_proj_bias[e] for e, r in mixtures.routing(spec, block, token).items())
                for token in x[0]
            ]
            out = out - torch.stack(biases)  # type: ignore[arg-type]
        torch.testing.assert_close(h @ model.down_weight(1).T, out[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.linear(1, model.site.down)(h), out[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(model.linear(2, model.site.down).first_rows(4), model.down_weight(2)[:4])
    norms = model.down_norms()
    e, i = divmod(17, D_E)
    column = module.model.layers[2].mlp.experts.down_proj[e]
    column = column[i] if spec.oss else column[:, i]
    assert norms[2, 17].item() == pytest.approx(column.double().norm().item())
    assert model.params_per_neuron == 3 * 20


KINDS: dict[str, Any] = {"zero": None, "mean": (3,), "patch": (), "clamp": 2.5, "scale": -1.5}


def value(spec: Spec, kind: str, n: int) -> Any:
    shape = KINDS[kind]
    if not isinstance(shape, tuple):
        return shape
    lead = () if kind == "mean" else (n,)
    return 2 * torch.randn(*lead, 3, spec.d_mlp, generator=torch.Generator().manual_seed(3))


def edited(spec: Spec, kind: str, new: Any, where: slice) -> mixtures.Change:
    """The same intervention for the oracle, on one prompt."""

    def change(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        for at, index in neuron_set(spec):
            if at == layer:
                if kind == "scale":
                    h[where, index] *= new
                else:
                    h[where, index] = 0.0 if new is None else new if isinstance(new, float) else new[at, index]
        return h

    return change


@by_family
@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_changes_the_logits_as_an_edit_of_the_definition_does(spec: Spec, kind: str) -> None:
    module = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = rows()[:4]
    new = value(spec, kind, len(prompts))
    clean = answer_logits(model, prompts)
    for positions, where in (("last_prompt", slice(-1, None)), ("all", slice(None))):
        got = answer_logits(model, prompts, Intervention(neuron_set(spec), kind, new, positions))  # type: ignore[arg-type]
        wanted = []
        for i, prompt in enumerate(prompts):
            mine = new[i] if kind == "patch" else new
            oracle = mixtures.by_definition(spec, module, edited(spec, kind, mine, where))
            with torch.no_grad():
                wanted.append(oracle(**tiny.tokenizer()(prompt.prompt, return_tensors="pt").data).logits[0, -1])
        torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-4)
        assert (got - clean).abs().max() > 1e-2


@by_family
def test_answers_under_an_intervention_are_those_of_the_definition(spec: Spec) -> None:
    module = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = rows()[:3]
    got = ns.generate(
        model, prompts, intervention=Intervention(neuron_set(spec), "clamp", 2.5, "all"), max_new_tokens=4
    )
    oracle = mixtures.by_definition(spec, module, edited(spec, "clamp", 2.5, slice(None)))
    for prompt, answer in zip(prompts, got, strict=True):
        ids = tiny.tokenizer()(prompt.prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert answer == tiny.tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@by_family
def test_margins_of_many_conditions_are_those_of_single_forwards(spec: Spec) -> None:
    model = spec.load()
    prompts = rows()
    conditions = [
        None,
        Intervention(neuron_set(spec), "zero"),
        Intervention(neuron_set(spec, [(2, 4), (2, 12)]), "clamp", 3.0),
        Intervention(neuron_set(spec, [(1, 9)]), "scale", 2.0),
    ]
    together = margins(model, prompts, conditions, TOKENS)
    for condition, row in zip(conditions, together, strict=True):
        alone = [margins(model, [p], [condition], TOKENS)[0, 0] for p in prompts]
        np.testing.assert_allclose(row, alone, atol=1e-4)


@by_family
def test_the_gradient_of_a_silent_neuron_too_is_that_of_the_definition(spec: Spec) -> None:
    module = spec.build().double()
    model = ns.load(module, processor=tiny.tokenizer())
    prompt = rows()[0]
    slope, act = gradients(model, [prompt], TOKENS)
    kept: dict[int, torch.Tensor] = {}

    def keep_gradient(layer: int, h: torch.Tensor) -> None:
        h.retain_grad()
        kept[layer] = h

    oracle = mixtures.by_definition(spec, module, keep_gradient)
    logits = oracle(**tiny.tokenizer()(prompt.prompt, return_tensors="pt").data).logits[0, -1]
    (logits[[WORD["sorry"], WORD["no"]]].logsumexp(0) - logits[WORD["sure"]]).backward()
    for layer in range(3):
        wanted = kept[layer].grad[-1]  # type: ignore[index]
        assert (wanted[act[0, layer] == 0] != 0).all()
        np.testing.assert_allclose(slope[0, layer], wanted, rtol=1e-4, atol=1e-7)


@by_family
def test_sensitivities_are_those_of_the_familys_own_stacked_weights(spec: Spec) -> None:
    module: Any = spec.build()
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = ns.PromptSet(p for p in tiny.prompts() if p.language == "en" and p.pair_id in ("0-0", "1-1"))
    got = snip(model, prompts, progress=False)
    total = np.zeros((3, spec.d_mlp))
    harmful = [p for p in prompts if p.label == "harmful"]
    for prompt in harmful:
        encoding, n = tiny.encode(model, prompt, prompt.target)
        module.zero_grad()
        logits = module(**encoding).logits[0]
        torch.nn.functional.cross_entropy(logits[n - 1 : -1], encoding["input_ids"][0, n:]).backward()
        for layer, owner in enumerate(module.model.layers):
            ex = owner.mlp.experts
            size = {k: (getattr(ex, k) * getattr(ex, k).grad).abs() for k in ("gate_up_proj", "down_proj")}
            size = {k: v.transpose(1, 2) if spec.oss else v for k, v in size.items()}
            both = size["gate_up_proj"].sum(-1)  # [expert, gates and ups]
            rows_ = both[:, 0::2] + both[:, 1::2] if spec.oss else both[:, :D_E] + both[:, D_E:]
            parts = [(rows_ + size["down_proj"].sum(1)).flatten()]
            if spec.shared:
                s = owner.mlp.shared_expert
                own = [(m.weight * m.weight.grad).abs() for m in (s.gate_proj, s.up_proj, s.down_proj)]
                parts.append(own[0].sum(1) + own[1].sum(1) + own[2].sum(0))
            total[layer] += torch.cat(parts).double().detach().numpy() / len(harmful)
    np.testing.assert_allclose(got.values[0], total, rtol=1e-3, atol=1e-6)


# -- updates ----------------------------------------------------------------------------------------------
STEPS, LR = 4, 1e-2


def keep(spec: Spec, module: torch.nn.Module, pairs: Any) -> dict[str, torch.Tensor]:
    """Which stacked weights belong to the neurons."""
    out = {}
    for name, p in module.named_parameters():
        mask = torch.zeros_like(p, dtype=torch.bool)
        for layer, index in pairs:
            (e, i), inside = divmod(index, D_E), f"layers.{layer}.mlp."
            turned = mask.transpose(-1, -2) if spec.oss and p.ndim == 3 else mask
            if index >= E * D_E:
                if f"{inside}shared_expert." in name:
                    mask[(slice(None), index - E * D_E) if "down_proj" in name else index - E * D_E] = True
            elif f"{inside}experts.gate_up_proj" in name and "bias" not in name:
                turned[e, [2 * i, 2 * i + 1] if spec.oss else [i, D_E + i]] = True
            elif f"{inside}experts.down_proj" in name and "bias" not in name:
                turned[e, :, i] = True
        out[name] = mask
    return out


def masked_training(spec: Spec, module: torch.nn.Module, pairs: Any) -> dict[str, torch.Tensor]:
    """Full training of the family's own model with gradients masked, from the definition."""
    new: Any = copy.deepcopy(module)
    kept = keep(spec, new, pairs)
    named = {n: p for n, p in new.named_parameters() if kept[n].any()}
    optimiser = torch.optim.AdamW(named.values(), lr=LR, weight_decay=0.0)
    prompts = one_batch()
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = LR * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS)))
        new.zero_grad()
        for prompt in prompts:
            ids = tiny.tokenizer()(prompt.prompt)["input_ids"]
            answer = [*tiny.tokenizer()(prompt.target, add_special_tokens=False)["input_ids"], 2]
            logits = new(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1]
            (torch.nn.functional.cross_entropy(logits, torch.tensor(answer)) / len(prompts)).backward()
        for name, p in named.items():
            p.grad[~kept[name]] = 0.0  # type: ignore[index]
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        optimiser.step()
    return {n: p.detach() for n, p in new.named_parameters()}


@by_family
def test_a_masked_update_is_the_masked_training_of_the_stacked_weights_and_nothing_else_moves(spec: Spec) -> None:
    module = spec.build().double()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    model = ns.load(module, processor=tiny.tokenizer())
    neurons = neuron_set(spec)
    update = ns.masked_update(
        model, neurons, one_batch(), steps=STEPS, lr=LR, batch_size=2, allow_unproven=True, progress=False
    )
    after = dict(update.model.module.named_parameters())
    wanted, kept = masked_training(spec, module, neurons), keep(spec, module, neurons)
    assert update.trained == sum(int(mask.sum()) for mask in kept.values()) == len(neurons) * 60
    moved = 0
    for name, start in before.items():
        assert torch.equal(dict(module.named_parameters())[name], start)
        assert torch.equal(after[name][~kept[name]], start[~kept[name]]), name
        torch.testing.assert_close(after[name], wanted[name], rtol=1e-5, atol=1e-7)  # some routers round to float32
        moved += int((after[name] != start).sum())
    assert moved > 0.4 * update.trained  # an expert that no token of the batch is routed to learns nothing
    assert torch.equal(update.model.down_weight(0)[:, 4], model.down_weight(0)[:, 4])


@by_family
def test_a_merged_checkpoint_gives_the_same_logits_in_plain_transformers(spec: Spec, tmp_path: Path) -> None:
    model = spec.load()
    update = ns.masked_update(
        model, neuron_set(spec), one_batch(), steps=2, lr=0.05, batch_size=2, allow_unproven=True, progress=False
    )
    update.save_merged(tmp_path / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", experts_implementation="eager")
    assert type(plain.model.layers[0].mlp.experts).__mro__[1] is torch.nn.Module
    ids = torch.randint(3, 38, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        there, here, base = (m(ids).logits for m in (plain, update.model.module, model.module))
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)
    assert (here - base).abs().max() > 1e-3
    back = ns.load(tmp_path / "merged")
    assert back.fingerprint == update.model.fingerprint != model.fingerprint


@pytest.mark.slow
@by_family
def test_the_other_trainers_edits_and_attacks_write_where_they_say(spec: Spec) -> None:
    model, neurons = spec.load(), neuron_set(spec)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    options: dict[str, Any] = dict(steps=1, batch_size=2, progress=False)
    whole = full_update(model, one_batch(), lr=1e-3, **options)
    mlps = [
        p for n, p in model.module.named_parameters() if ("experts" in n or "shared_expert." in n) and "bias" not in n
    ]
    assert whole.trained == sum(p.numel() for p in mlps)
    assert not torch.equal(whole.model.down_weight(1), model.down_weight(1))
    pruned = ns.attacks.prune(model, neurons)
    for layer in range(3):
        own = [i for at, i in neurons if at == layer]
        rest = [i for i in range(spec.d_mlp) if i not in own]
        assert pruned.down_weight(layer)[:, own].abs().max() == 0
        assert torch.equal(pruned.down_weight(layer)[:, rest], model.down_weight(layer)[:, rest])
    zeroed = answer_logits(model, rows()[:2], Intervention(neurons, "zero", positions="all"))
    torch.testing.assert_close(answer_logits(pruned, rows()[:2]), zeroed, rtol=1e-4, atol=1e-4)
    clamped = clamp_edit(model, neurons, tiny.prompts())
    mean = ns.record(model, [p for p in tiny.prompts() if p.label == "harmful"]).mean(0)
    held = answer_logits(model, rows()[:2], Intervention(neurons, "clamp", mean, positions="all"))
    torch.testing.assert_close(answer_logits(clamped.model, rows()[:2]), held, rtol=1e-4, atol=1e-4)
    low_rank_edit(model, neurons, tiny.prompts(), refusals=["sorry"], compliances=["sure"])
    plain_lora(model, 2000, one_batch(), **options)
    frozen_set_update(model, neurons, one_batch(), rank=2, **options)
    masked_lora(model, neurons, one_batch(), rank=2, allow_unproven=True, **options)
    assert all(torch.equal(p, before[n]) for n, p in model.module.named_parameters())


def test_a_lora_of_zeros_leaves_the_logits_as_they_are() -> None:
    from neuronshield.model.families import PARTS
    from neuronshield.shield.adapter import attach, places

    for spec in SPECS:
        model = spec.load()
        adapter = attach(model, places(model, neuron_set(spec), PARTS), 5, hot=True, seed=0)
        encoding = collate(model, rows()[:3]).encoding
        with torch.no_grad():
            torch.testing.assert_close(
                adapter.peft_model(**encoding).logits, model.module(**encoding).logits, rtol=1e-5, atol=1e-5
            )


def test_a_neuron_set_of_experts_is_written_and_read_back_and_its_indices_are_expert_and_neuron(tmp_path: Path) -> None:
    spec = SPECS[0]
    model, neurons = spec.load(), neuron_set(SPECS[0])
    neurons.save(tmp_path / "set.safetensors")
    back = ns.NeuronSet.load(tmp_path / "set.safetensors")
    assert back == neurons
    back.check_model(model)
    experts = model.linear(2, model.site.down).experts
    e, i = divmod(10, experts.d_expert)
    assert (e, i) == (1, 3)
    assert torch.equal(model.down_weight(2)[:, 10], experts.down_proj[e, :, i])
    assert torch.equal(model.linear(2, model.site.gate).weight[10], experts.gate_up_proj[e, i])  # type: ignore[arg-type]
    assert torch.equal(model.linear(2, model.site.up).weight[10], experts.gate_up_proj[e, D_E + i])


def test_a_weight_that_is_set_is_written_to_the_stacked_tensors() -> None:
    for spec in SPECS:
        model = spec.load()
        for part in ("gate", "up", "down"):
            linear: Any = copy.deepcopy(model.module).get_submodule(f"model.layers.1.mlp.experts.all_{part}")
            new = torch.randn_like(linear.weight)
            other = {"gate": "up", "up": "gate", "down": "up"}[part]
            kept = getattr(linear.experts, f"all_{other}").weight
            linear.weight = torch.nn.Parameter(new)
            assert torch.equal(linear.weight, new)
            assert torch.equal(getattr(linear.experts, f"all_{other}").weight, kept)
            assert all(isinstance(getattr(m, name), torch.nn.Parameter) for m, name in owners(linear))
