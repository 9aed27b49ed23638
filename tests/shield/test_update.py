"""The masked update is gradient masking, step for step, and touches nothing outside its mask."""

from __future__ import annotations

import copy
import errno
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file

import neuronshield as ns
from neuronshield.check.attacks import prune
from neuronshield.shield.update import full_update, load_adapter, masked_update, plain_lora

MEMBERS = [(0, 3), (0, 28), (2, 7)]
STEPS, LR = 6, 1e-2


def neurons(pairs: list[tuple[int, int]] = MEMBERS) -> ns.NeuronSet:
    return ns.NeuronSet(pairs, n_layers=3, d_mlp=29)


def double(family: str) -> ns.Model:
    """The same tiny model in float64; pictures where the family takes them."""
    if family == "llava":
        module, processor = tiny.llava()
        return ns.load(module.double(), processor=processor)
    return ns.load(getattr(tiny, family)().double(), processor=tiny.tokenizer())


def one_batch(model: ns.Model) -> ns.PromptSet:
    """One harmful and one benign prompt: every batch of two must be just these, so no sampler is trusted."""
    rows = tiny.records(pictures=type(model.module).__name__.startswith("Llava"), languages=("en",))
    harmful = next(r for r in rows if r["label"] == "harmful" and r.get("images", True))
    benign = next(r for r in rows[::-1] if r["label"] == "benign")
    return ns.PromptSet.from_records([harmful, benign])


def parameters(model: ns.Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def masks(model: ns.Model, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Which weights belong to the neurons, by the written-out names of each family."""
    out = {}
    for name, p in model.module.named_parameters():
        mask = torch.zeros_like(p, dtype=torch.bool)
        for layer, index in pairs:
            if f"layers.{layer}.mlp." in name and "vision" not in name:
                mask[(slice(None), index) if "down_proj" in name else index] = True
            if f"h.{layer}.mlp." in name and name.endswith("weight"):  # Conv1D stores the transpose
                mask[index if "c_proj" in name else (slice(None), index)] = True
        out[name] = mask
    return out


def reference(
    model: ns.Model,
    prompts: ns.PromptSet,
    keep: dict[str, torch.Tensor],
    *,
    momentum: float | None = None,
    decay: float = 0.0,
    retention: float = 1.0,
) -> dict[str, torch.Tensor]:
    """A full fine-tune with gradients masked: every prompt alone and unpadded, written from the definition."""
    module = copy.deepcopy(model.module).train(False)
    named = {n: p for n, p in module.named_parameters() if keep[n].any()}
    start = {n: p.detach().clone() for n, p in named.items()}
    for p in module.parameters():
        p.requires_grad_(False)
    for p in named.values():
        p.requires_grad_(True)
    every = list(named.values())
    optimiser: torch.optim.Optimizer
    if momentum is None:
        optimiser = torch.optim.AdamW(every, lr=LR, weight_decay=0.0)
    else:
        optimiser = torch.optim.SGD(every, lr=LR, momentum=momentum)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = LR * (0.1 + 0.45 * (1 + np.cos(np.pi * step / STEPS)))
        for prompt in prompts:
            target = prompt.target
            text = target or model.tokenizer.decode(tiny.own_answer(model, prompt), skip_special_tokens=True)
            encoding, n = tiny.encode(model, prompt, text)
            ids = encoding["input_ids"][0]
            logits = module(**encoding).logits[0]
            if target is not None:
                loss = torch.nn.functional.cross_entropy(logits[n - 1 : -1], ids[n:])
            else:
                with torch.no_grad():
                    p0 = model.module(**encoding).logits[0, n - 1 : -1].softmax(-1)
                loss = retention * (p0 * (p0.log() - logits[n - 1 : -1].log_softmax(-1))).sum(-1).mean()
            (loss / len(prompts)).backward()
        for name, p in named.items():
            assert p.grad is not None
            p.grad[~keep[name]] = 0.0
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        rate = optimiser.param_groups[0]["lr"]
        with torch.no_grad():
            for name, p in named.items():
                p -= rate * decay * (p - start[name])  # decay towards the base weights, where the adapter is zero
        optimiser.step()
        optimiser.zero_grad()
    return {n: p.detach() for n, p in module.named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_training_a_frozen_one_hot_lora_is_training_under_a_gradient_mask(family: str):
    model = double(family)
    before, prompts = parameters(model), one_batch(model)
    update = masked_update(model, neurons(), prompts, steps=STEPS, lr=LR, batch_size=2, progress=False)
    after, expected = parameters(update.model), reference(model, prompts, masks(model, MEMBERS))
    assert list(after) == list(before)
    moved = max(float((after[n] - before[n]).abs().max()) for n in after)
    assert moved > 1e-3
    for name in after:
        torch.testing.assert_close(after[name], expected[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_every_weight_outside_the_mask_keeps_its_bits_and_the_base_model_all_of_them(family: str, tmp_path: Path):
    model = double(family)
    for p in model.module.parameters():  # -0.0 + 0.0 would be 0.0
        p.data.view(-1)[::3] = -0.0
    before = parameters(model)
    update = masked_update(model, neurons(), one_batch(model), steps=2, lr=LR, batch_size=2, progress=False)
    after, base = parameters(update.model), parameters(model)
    loaded = parameters(
        ns.load_adapter(ns.load(model.module, processor=model.processor), update.save(tmp_path / "adapter"))
    )
    for name, mask in masks(model, MEMBERS).items():
        old = before[name].view(torch.int64)
        assert torch.equal(old[~mask], after[name].view(torch.int64)[~mask]), name
        assert torch.equal(after[name].view(torch.int64), loaded[name].view(torch.int64)), name
        assert torch.equal(old, base[name].view(torch.int64)), name


@pytest.mark.parametrize(
    ("how", "options", "expected"),
    [
        ("KL retention", {"retention": 3.0}, {"retention": 3.0}),
        ("weight decay", {"optimiser": partial(torch.optim.AdamW, weight_decay=0.5)}, {"decay": 0.5}),
        ("another optimiser", {"optimiser": partial(torch.optim.SGD, momentum=0.7)}, {"momentum": 0.7}),
        ("in parts", {"accumulate": 2}, {}),
        ("recomputing activations", {"gradient_checkpointing": True}, {}),
        ("the down-projection only", {"parts": ("down",)}, {}),
        ("gate and up only", {"parts": ("up", "gate")}, {}),
    ],
)
def test_it_stays_gradient_masking(how: str, options: dict[str, Any], expected: dict[str, Any]):
    model = double("llama")
    prompts = one_batch(model)
    if how == "KL retention":
        prompts = ns.PromptSet(replace(p, target=p.target if p.label == "harmful" else None) for p in prompts)
    update = masked_update(model, neurons(), prompts, steps=STEPS, lr=LR, batch_size=2, progress=False, **options)
    keep = masks(model, MEMBERS)
    for name, mask in keep.items():
        if "parts" in options and not any(f"{part}_proj" in name for part in options["parts"]):
            mask[:] = False
    after, wanted, before = parameters(update.model), reference(model, prompts, keep, **expected), parameters(model)
    assert max(float((after[n] - before[n]).abs().max()) for n in after) > 1e-4
    for name in after:
        torch.testing.assert_close(after[name], wanted[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_half_precision_weights_are_trained_by_single_precision_factors():
    model = ns.load(tiny.llama().to(torch.bfloat16), processor=tiny.tokenizer())
    before = parameters(model)
    update = masked_update(model, neurons(), tiny.prompts(), steps=3, lr=3e-2, progress=False)
    assert {p.dtype for p in update.peft_model.parameters() if p.requires_grad} == {torch.float32}
    after = parameters(update.model)
    assert all(p.dtype == torch.bfloat16 for p in after.values())
    for name, mask in masks(model, MEMBERS).items():
        assert torch.equal(before[name].view(torch.int16)[~mask], after[name].view(torch.int16)[~mask]), name
        assert not mask.any() or (before[name] != after[name])[mask].float().mean() > 0.5


class Killed(Exception):
    pass


class Dies(torch.optim.AdamW):
    """Stops the run in the middle of its fourth step."""

    def step(self, closure: Any = None) -> Any:
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 4:
            raise Killed
        return super().step(closure)


def test_a_killed_run_goes_on_where_it_was(llama: ns.Model, tmp_path: Path):
    common: dict[str, Any] = {"steps": 9, "lr": LR, "progress": False}
    whole = masked_update(llama, neurons(), tiny.prompts(), **common)
    file = tmp_path / "run" / "state.safetensors"
    with pytest.raises(Killed):
        masked_update(
            llama, neurons(), tiny.prompts(), checkpoint=file, optimiser=partial(Dies, weight_decay=0.0), **common
        )
    resumed = masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **common)
    assert resumed.losses == whole.losses
    for a, b in zip(parameters(whole.model).values(), parameters(resumed.model).values(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in file.parent.iterdir()] == ["state.safetensors"]
    with pytest.raises(ns.InputError, match=r"of another run \(lr differ\)"):
        masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **{**common, "lr": 2 * LR})
    file.write_bytes(b"not it")
    with pytest.raises(ns.InputError, match="not a training checkpoint"):
        masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **common)


def test_set_adapter_cannot_unfreeze_the_one_hot_factor(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    held = {n: p for n, p in update.peft_model.named_parameters() if ("lora_A" if "down_proj" in n else "lora_B") in n}
    held = {n: p for n, p in held.items() if "lora" in n}
    before = {n: p.detach().clone() for n, p in held.items()}
    update.peft_model.set_adapter("default")
    for p in held.values():
        p.requires_grad = True
        p.requires_grad_(True)
    optimiser = torch.optim.SGD([p for p in update.peft_model.parameters() if p.requires_grad], lr=1.0)
    update.peft_model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimiser.step()
    assert len(held) == 6
    for name, p in held.items():
        assert not p.requires_grad
        assert p.grad is None
        assert torch.equal(p, before[name])


class Poison(torch.optim.SGD):
    """Takes two good steps and then a ruinous one."""

    def step(self, closure: Any = None) -> Any:
        self.taken = getattr(self, "taken", 0) + 1
        out = super().step(closure)
        if self.taken == 3:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("inf"))
        return out


def test_a_loss_that_stops_being_finite_keeps_the_last_good_adapter(llama: ns.Model, tmp_path: Path):
    with pytest.warns(UserWarning, match="loss is nan at step 3.*last good adapter was kept"):
        update = masked_update(
            llama, neurons(), tiny.prompts(), steps=9, optimiser=Poison, allow_unproven=True, progress=False
        )
    assert len(update.losses) == 3
    assert "step 3" in (update.stopped or "")
    assert "stopped early" in repr(update)
    after, before = parameters(update.model), parameters(llama)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(after[n], before[n]) for n in after)
    update.save(tmp_path / "adapter")


def test_what_was_not_proven_is_named(llama: ns.Model, recwarn: pytest.WarningsRecorder):
    named = ns.NeuronSet(MEMBERS, provenance={"method": "contribution", "cell": "en/text"})
    with pytest.warns(UserWarning, match=r"3 neurons \(contribution, en/text\) were not proven"):
        masked_update(llama, named, tiny.prompts(), steps=1, progress=False)
    recwarn.clear()
    proven = ns.NeuronSet(MEMBERS, provenance={"verified_on": "abc"})
    for fine, options in (
        (named, {"allow_unproven": True}),
        (proven, {}),
        (proven & named, {}),
        (proven - named, None),
    ):
        if options is not None:
            masked_update(llama, fine, tiny.prompts(), steps=1, progress=False, **options)
    assert not [w for w in recwarn if "proven" in str(w.message)]
    with pytest.warns(UserWarning, match="not proven"):
        masked_update(llama, proven | named, tiny.prompts(), steps=1, progress=False)
    nothing = ns.NeuronSet([], provenance={"verified_on": "abc", "proof": "failed; necessity: zero"})
    with pytest.raises(ns.InputError, match="empty; verify said: failed; necessity: zero"):
        masked_update(llama, nothing, tiny.prompts(), steps=1, progress=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
@pytest.mark.parametrize("train", ["rows", "rest"])
def test_other_forms_keep_to_their_own_weights(family: str, train: str, tmp_path: Path):
    model = double(family)
    before = parameters(model)
    update = masked_update(
        model, neurons(), one_batch(model), steps=3, lr=LR, batch_size=2, train=train, rank=2, allow_unproven=True,
        progress=False,
    )  # fmt: skip
    after = parameters(update.model)
    loaded = parameters(load_adapter(model, update.save(tmp_path / "adapter")))
    changed = 0
    for name, mask in masks(model, MEMBERS).items():
        mlp = ".mlp." in name and name.endswith("weight") and "vision" not in name
        down = "down_proj" in name or "c_proj" in name
        free = (mask & torch.tensor(not down)) if train == "rows" else (~mask & torch.tensor(mlp))
        assert torch.equal(before[name].view(torch.int64)[~free], after[name].view(torch.int64)[~free]), name
        assert torch.equal(after[name], loaded[name]), name
        changed += int((after[name] != before[name])[free].sum()) / max(int(free.sum()), 1) > 0.9
    assert changed == {"rows": 4 if family != "gpt2" else 2, "rest": 9 if family != "gpt2" else 6}[train]
    learnt = sum(int((p.grad != 0).sum()) if p.grad is not None else 0 for p in update.peft_model.parameters())
    assert learnt == 0
    projections = 1 if family == "gpt2" else 2
    if train == "rows":
        assert update.trained == projections * (3 * 2 + 2 * 2 * 20)
    else:
        whole = 3 * (projections + 1)
        assert update.trained == whole * 2 * (20 + 29) - (projections + 1) * 2 * 3


def test_zeroed_neurons_are_silent_while_the_rest_learns(llama: ns.Model):
    common: dict[str, Any] = {"steps": 4, "lr": LR, "train": "rest", "rank": 2, "progress": False}
    silent = masked_update(llama, neurons(), tiny.prompts(), zeroed=True, **common)
    loud = masked_update(llama, neurons(), tiny.prompts(), **common)
    pruned = ns.load(prune(llama, neurons()).module, processor=llama.processor)
    expected = masked_update(pruned, neurons(), tiny.prompts(), **common)
    assert silent.losses == pytest.approx(expected.losses, abs=1e-5)
    assert silent.losses != pytest.approx(loud.losses, abs=1e-4)


def test_the_adapter_is_what_servers_take(llama: ns.Model, tmp_path: Path):
    """The rules of vLLM's PEFTHelper and LoRA loader, restated."""
    many = ns.NeuronSet([(0, i) for i in range(11)] + [(2, 7)])
    update = masked_update(llama, many, tiny.prompts(), steps=4, lr=LR, progress=False)
    folder = update.save(tmp_path / "adapter")
    about = json.loads((folder / "adapter_config.json").read_text())
    assert about["r"] == 16  # one of 1, 8, 16, 32, 64, 128, 256, 320, 512, not below 11
    assert about["lora_alpha"] == about["r"]
    assert about["bias"] == "none"
    assert not about["use_dora"]
    assert not about["modules_to_save"]
    assert not about["rank_pattern"]
    assert not about["alpha_pattern"]
    tensors = load_file(folder / "adapter_model.safetensors")
    sizes = {"gate_proj": (20, 29), "up_proj": (20, 29), "down_proj": (29, 20)}
    for name, tensor in tensors.items():
        parts = name.split(".")
        assert parts[:2] == ["base_model", "model"]
        assert parts[-2:] in (["lora_A", "weight"], ["lora_B", "weight"])
        wide, out = sizes[parts[-3]]
        assert tensor.shape == ((16, wide) if parts[-2] == "lora_A" else (out, 16))
    assert len(tensors) == 12
    plain = peft.PeftModel.from_pretrained(copy.deepcopy(llama.module), folder).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, update.model.module(ids).logits, rtol=1e-4, atol=1e-4)


def test_what_is_too_large_for_a_server_is_merged(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    wide = ns.load(tiny.llama(intermediate_size=521), processor=tiny.tokenizer())
    update = masked_update(
        wide, ns.NeuronSet([(1, i) for i in range(521)]), tiny.prompts(), steps=1, lr=LR, progress=False
    )
    update.save(tmp_path / "adapter")
    assert "above what servers take (512)" in caplog.text
    merged = ns.load(update.save_merged(tmp_path / "merged"))
    for a, b in zip(parameters(update.model).values(), parameters(merged).values(), strict=True):
        assert torch.equal(a, b)


def test_a_full_disk_leaves_the_old_adapter(llama: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    update.save(tmp_path / "adapter")
    old = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def full(folder: Path, **_: Any) -> None:
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(update.peft_model, "save_pretrained", full)
    with pytest.raises(ns.InputError, match=r"adapter: cannot be written \(No space left on device\)"):
        update.save(tmp_path / "adapter")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == old


def test_generic_text_is_held_where_it_was(llama: ns.Model):
    """Trained on nonsense against the text, the text moves; with retention of it, it moves less."""
    text = "here and one step to the red house of blue bread"
    ids = torch.tensor([llama.tokenizer(text)["input_ids"]])

    def moved(**options: Any) -> float:
        update = masked_update(
            llama, neurons(), tiny.prompts(), steps=40, lr=3e-2, allow_unproven=True, progress=False, **options
        )
        with torch.no_grad():
            p0, p1 = (m.module(ids).logits[0, :-1].log_softmax(-1) for m in (llama, update.model))
        return float((p0.exp() * (p0 - p1)).sum(-1).mean())

    assert moved(texts=[text], retention=20.0) < 0.5 * moved()
    with pytest.raises(ns.InputError, match=r"texts\[1\] is empty"):
        moved(texts=[text, " "])


def test_full_update_moves_every_mlp_weight_and_nothing_else(llama: ns.Model):
    before = parameters(llama)
    update = full_update(llama, tiny.prompts(), steps=2, lr=1e-3, progress=False)
    after = parameters(update.model)
    for name in after:
        assert torch.equal(before[name], after[name]) == (".mlp." not in name), name
        assert torch.equal(before[name], parameters(llama)[name])
    assert update.trained == sum(p.numel() for n, p in after.items() if ".mlp." in n)
    with pytest.raises(ns.InputError, match="has no adapter"):
        update.save("nowhere")


def test_what_is_counted_is_what_is_trained(llama: ns.Model, gpt2: ns.Model):
    for model, matrices in ((llama, 3), (gpt2, 2)):
        update = masked_update(model, neurons(), tiny.prompts(), steps=1, progress=False)
        assert update.trained == len(MEMBERS) * matrices * 20
        total = sum(p.numel() for p in model.module.parameters())
        assert update.param_fraction == pytest.approx(update.trained / total)


def test_only_one_factor_of_each_pair_learns(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    learns = {n for n, p in update.peft_model.named_parameters() if p.requires_grad}
    assert learns
    assert all(("lora_B" in n) == ("down_proj" in n) for n in learns)


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


def test_the_loss_falls_and_the_seed_decides(llama: ns.Model):
    def losses(seed: int) -> list[float]:
        return masked_update(llama, neurons(), tiny.prompts(), steps=25, lr=3e-2, seed=seed, progress=False).losses

    first = losses(0)
    assert np.mean(first[-5:]) < np.mean(first[:5]) - 0.1
    assert first == losses(0)
    assert first != losses(1)


def test_a_loss_that_is_not_finite_stops_with_its_step():
    broken = tiny.llama()
    broken.lm_head.weight.data[0, 0] = float("nan")
    model = ns.load(broken, processor=tiny.tokenizer())
    with pytest.raises(ns.InputError, match="loss is nan at step 0"):
        masked_update(model, neurons(), tiny.prompts(), steps=3, progress=False)


def test_plain_lora_stays_within_its_budget_and_trains_as_much_as_fits(llama: ns.Model):
    per_rank = 9 * (20 + 29)
    update = plain_lora(llama, 2 * per_rank + 5, tiny.prompts(), steps=1, progress=False)
    assert update.trained == 2 * per_rank
    learns = sum(p.numel() for p in update.peft_model.parameters() if p.requires_grad)
    assert learns == update.trained


@pytest.mark.parametrize(
    ("pairs", "options", "said"),
    [
        ([], {}, "the neuron set is empty"),
        ([(3, 0)], {}, "does not exist"),
        ([(0, 29)], {}, "does not exist"),
        (MEMBERS, {"objective": "dpo"}, "objective='dpo' is unknown"),
        (MEMBERS, {"train": "all"}, "train='all' is unknown"),
        (MEMBERS, {"parts": ("gate", "attention")}, "parts='attention' is unknown"),
        (MEMBERS, {"train": "rows", "parts": ("down",)}, "has none of them to train"),
        (MEMBERS, {"zeroed": True}, "needs train='rest'"),
        (MEMBERS, {"budget": 1e-3}, "over the budget of 0.100%; take at most 0 neurons"),
        (MEMBERS, {"batch_size": 1}, "batch_size=1: must be at least 2"),
        (MEMBERS, {"lr": float("nan")}, "lr=nan: must be above zero"),
    ],
)
def test_what_cannot_be_trained_is_said(
    llama: ns.Model, pairs: list[tuple[int, int]], options: dict[str, Any], said: str
):
    with pytest.raises(ns.InputError, match=said):
        masked_update(llama, ns.NeuronSet(pairs), tiny.prompts(), steps=1, progress=False, **options)


def test_an_adapter_that_is_not_there_is_said(llama: ns.Model, tmp_path: Path):
    with pytest.raises(ns.InputError, match="no adapter here"):
        load_adapter(llama, tmp_path)
