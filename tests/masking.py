"""What the shield's tests share: a tiny model in float64, the mask of a set, and a masked fine-tune written from the definition."""

from __future__ import annotations

import copy

import numpy as np
import tiny
import torch

import neuronshield as ns

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
                p.sub_(rate * decay * (p - start[name]))  # decay towards the base weights, where the adapter is zero
        optimiser.step()
        optimiser.zero_grad()
    return {n: p.detach() for n, p in module.named_parameters()}
