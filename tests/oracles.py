"""What plain PyTorch hooks say of an intervention, one unpadded prompt at a time: the oracle of the tests of `model`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tiny
import torch

import neuronshield as ns
from neuronshield.model.intervention import Intervention
from neuronshield.model.prefixes import OpeningTokens

PAIRS = [(0, 3), (0, 28), (2, 7), (2, 8)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}
TOKENS = {x: OpeningTokens([WORD["sorry"], WORD["no"]], [WORD["sure"]]) for x in ("en", "sw")}


def some(name: str) -> ns.PromptSet:
    """Unlike lengths in every batch, so that padding would show."""
    return ns.PromptSet(list(tiny.prompts(pictures=name == "llava"))[:: 11 if name == "llava" else 7])


def values(kind: str, n: int) -> torch.Tensor | None:
    shape = {"zero": None, "mean": (3, 29), "resample": (n, 3, 29), "patch": (n, 3, 29), "clamp": (), "scale": ()}[kind]
    return None if shape is None else 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits_by_hand(
    model: ns.Model,
    prompt: ns.Prompt,
    new: torch.Tensor | None,
    positions: str,
    more: Sequence[int] = (),
    scale: bool = False,
) -> torch.Tensor:
    """Last logits of the prompt and `more` generated tokens, with `new` [n_layers, d_mlp] written in by hooks."""
    encoding, n = tiny.encode(model, prompt)
    if more:
        ids = torch.cat([encoding["input_ids"], torch.tensor([list(more)])], dim=1)
        encoding |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    image = encoding["input_ids"][0] == WORD["<image>"]
    at_all = torch.arange(encoding["input_ids"].shape[1])
    here = {
        "last_prompt": at_all == n - 1, "prompt": at_all < n, "all": at_all >= 0, "response": at_all >= n,
        "image": image, "text": ~image & (at_all < n),
    }[positions]  # fmt: skip

    def change(layer: int, h: torch.Tensor) -> torch.Tensor | None:
        if new is None:
            return None
        h = h.clone()
        for at, index in PAIRS:
            if at == layer:
                to = new[layer, index].to(h.dtype)
                h[:, here, index] = h[:, here, index] * to if scale else to
        return h

    with torch.no_grad(), tiny.hooked(tiny.downs(model), change):
        return model.module(**encoding).logits[0, -1].double()


def margin_by_hand(logits: torch.Tensor) -> float:
    x = logits.numpy()
    return float(np.log(np.exp(x[[WORD["sorry"], WORD["no"]]]).sum()) - x[WORD["sure"]])


def by_hand(model: ns.Model, prompts: ns.PromptSet, condition: Intervention) -> list[float]:
    """Margins under an intervention, one unpadded prompt at a time."""
    value, out = condition.value, []
    for i, p in enumerate(prompts):
        new = torch.zeros(3, 29) if value is None else value[i] if value.ndim == 3 else value.expand(3, 29)
        if condition.cells is not None and p.cell not in condition.cells:
            out.append(margin_by_hand(logits_by_hand(model, p, None, "all")))
            continue
        logits = logits_by_hand(model, p, new, condition.positions, scale=condition.kind == "scale")
        out.append(margin_by_hand(logits))
    return out
