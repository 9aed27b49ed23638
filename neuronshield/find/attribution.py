"""Attribution patching: what ablating every neuron would do, to first order, from two forwards and a backward.

With M the refusal margin of a harmful prompt, h its activations at the last prompt token and h' those of its
benign twin, ablating neuron i to the twin's value changes M by about -a_i, where

    a_i = dM/dh_i * (h_i - h'_i)

All neurons at once, so it ranks half a million of them; it is blind to what a finite change does (saturation,
backups), so `verify` confirms by exact ablation. Positive a_i supports refusal, negative opposes it.

Source: Nanda (2023), "Attribution patching"; Syed, Rager, Conmy (2023), arXiv 2310.10348.
"""

from __future__ import annotations

from collections.abc import Sequence

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError
from ..core.neurons import NEURON_VALUE
from ..core.provenance import versions
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.edits import edits_for
from ..model.encoding import batches
from ..model.intervention import Intervention
from ..model.model import Model, by_row
from ..model.prefixes import OpeningTokens, margin, opening_tokens, openings_of
from .moments import record
from .scores import Scores

__all__ = ["attribution", "gradients"]


def attribution(
    model: Model,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    batch_size: int = 16,
) -> Scores:
    """Mean attribution of every neuron in every cell, over the twins among the "discover" prompts.

    >>> scores = attribution(model, prompts)                   # doctest: +SKIP
    >>> scores.top(k=64)[Cell("en", "text")]                   # doctest: +SKIP
    NeuronSet(64 neurons in 3 layers)

    Scores are signed; `top` ranks by magnitude, so a set may hold neurons that oppose refusal (`verify` says which).

    Raises:
        InputError: no twins (harmful and benign prompts of one cell that share `pair_id`), or openings as in `grade`.
    """
    chosen = prompts.for_step("discover")
    pairs = chosen.pairs()
    if not pairs:
        raise InputError("attribution: no harmful prompt has a benign twin; give twins the same pair_id")
    tokens = opening_tokens(model, openings_of(model, chosen, refusals=refusals, compliances=compliances))
    harmful = [h for h, _ in pairs]
    slope, act = gradients(model, harmful, tokens, batch_size=batch_size)
    score = (slope * (act - record(model, [b for _, b in pairs], batch_size=batch_size))).double().numpy()
    cells = list(dict.fromkeys(h.cell for h in harmful))
    values = np.stack([score[[h.cell == cell for h in harmful]].mean(axis=0) for cell in cells])
    about = {
        **model.provenance(), "data": chosen.hash(), "tokens": "last_prompt", "neuron_value": NEURON_VALUE,
        "versions": versions(), "seen": sorted({p.cluster for pair in pairs for p in pair}),
    }  # fmt: skip
    return Scores(cells, values, None, "attribution", model.n_params, model.params_per_neuron, about)


def gradients(
    model: Model,
    prompts: Sequence[Prompt],
    tokens: dict[str, OpeningTokens],
    *,
    condition: Intervention | None = None,
    batch_size: int = 16,
) -> tuple[Float[Tensor, "prompt n_layers d_mlp"], Float[Tensor, "prompt n_layers d_mlp"]]:
    """dM/dh and h of every neuron at the last prompt token, clean or under an intervention (float32)."""
    slopes = torch.zeros(len(prompts), model.n_layers, model.d_mlp)
    acts = torch.zeros_like(slopes)
    envoys, traced = model.envoys, model.traced
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        kinds = [tokens[prompts[row].language] for row in batch.rows]
        edits, _ = edits_for(model, prompts, batch, conditions=[condition])
        n, idle = len(batch.rows), model.idle(batch.encoding)
        running = [layer for layer in range(model.n_layers) if layer not in idle]
        with torch.enable_grad(), model.frozen(), traced.trace(**batch.encoding, **model.there):
            read, slope = nnsight.save([]), nnsight.save([])
            for layer in running:
                h = envoys[layer].input
                if layer == running[0]:  # frozen weights have no gradient of their own
                    h = h.detach().requires_grad_()
                if layer in edits:
                    h = h.clone()
                    for edit in edits[layer]:
                        edit.apply(by_row(h, n))
                if layer == running[0] or layer in edits:
                    envoys[layer].input = h
                read.append(h)
            total = margin(traced.output.logits[:, -1], kinds).sum()
            with total.backward():
                for h in reversed(read):
                    slope.append(by_row(h.grad, n)[:, -1].float())
        for layer, h, grad in zip(running, read, reversed(list(slope)), strict=True):
            slopes[batch.rows, layer] = grad.cpu()
            acts[batch.rows, layer] = by_row(h.detach(), len(batch.rows))[:, -1].float().cpu()
    return slopes, acts
