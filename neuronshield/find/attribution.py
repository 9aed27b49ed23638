"""Attribution patching: the effect of ablating every neuron, to first order, from two forwards and one backward.

With M the refusal margin of a harmful prompt, h its activations at the last prompt token and h' those of its matched benign
prompt, ablating neuron i to the benign value changes M by about -a_i, where

    a_i = dM/dh_i * (h_i - h'_i)

One backward gives all neurons, so it can rank half a million of them. It misses what a finite change does (saturation,
self-repair), so `verify` confirms by exact ablation. A neuron with positive a_i promotes refusal, one with negative a_i
promotes compliance.

Source: Nanda (2023), "Attribution patching"; Syed, Rager, Conmy (2023), arXiv 2310.10348.
"""

from __future__ import annotations

from collections.abc import Sequence

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import at_least
from ..core.errors import InputError
from ..core.provenance import provenance
from ..core.results import to_json
from ..core.sites import NEURON_VALUE
from ..data.languages import OpeningsArg
from ..data.prompts import Cell, Prompt, PromptSet
from ..model.edits import edits_for
from ..model.encoding import batches
from ..model.families import by_row
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import OpeningTokens, margin, opening_tokens, openings_of
from ..model.running import not_finite, recording, running
from .moments import check_inputs, record
from .selection import Scores

__all__ = ["attribution", "gradients", "mean_attribution"]


def attribution(
    model: Model,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    batch_size: int = 16,
) -> Scores:
    """Mean attribution of every neuron in every cell, over the matched pairs among the "discover" prompts.

    Scores are signed and `top` ranks by magnitude, so a set may hold anti-refusal neurons (`verify` says which).

    >>> scores = attribution(model, prompts, refusals=["sorry"], compliances=["sure"])
    >>> scores.top(k=8)["en/text"]
    NeuronSet(8 neurons in ... layers)

    Args:
        model: the model.
        prompts: harmful and benign prompts; the two of a matched pair share `pair_id` and cell.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own or the built-in ones
            by default.
        compliances: compliance prefixes, the same.
        batch_size: prompts in a forward and backward.

    Raises:
        InputError: arguments of another type, no matched pair, a language without prefixes, logits or gradients that are not
            finite, or too little memory.
    """
    check_inputs("attribution", model, prompts)
    at_least(1, "attribution", batch_size=batch_size)
    chosen = prompts.for_step("discover")
    pairs = chosen.pairs()
    if not pairs:
        raise InputError("attribution: no harmful prompt has a matched benign prompt; give both the same pair_id")
    tokens = opening_tokens(model, openings_of(model, chosen, refusals=refusals, compliances=compliances))
    harmful = [h for h, _ in pairs]
    slope, act = gradients(model, harmful, tokens, batch_size=batch_size)
    shift = act - record(model, [b for _, b in pairs], batch_size=batch_size)
    cells, values, difference = mean_attribution(slope, shift, [h.cell for h in harmful])
    seen = [p for pair in pairs for p in pair]
    prefixes = to_json({"refusals": refusals, "compliances": compliances})
    given = (
        {} if refusals is compliances is None else {"prefixes": prefixes}
    )  # a selection that is run again needs them
    return Scores(
        cells=cells,
        values=values,
        against=None,
        method="attribution",
        n_params=model.n_params,
        params_per_neuron=model.params_per_neuron,
        provenance=provenance(model, chosen, seen=seen, tokens="last_prompt", neuron_value=NEURON_VALUE, **given),
        difference=difference,
    )


def mean_attribution(
    slope: Float[Tensor, "pair n_layers d_mlp"], shift: Float[Tensor, "pair n_layers d_mlp"], cells: Sequence[Cell]
) -> tuple[list[Cell], Float[np.ndarray, "cell n_layers d_mlp"], Float[np.ndarray, "cell n_layers d_mlp"]]:
    """The cells, the mean of dM/dh_i * (h_i - h'_i) in each, and the mean of h_i - h'_i.

    >>> shift, cells = torch.tensor([1.0, 2.0, 3.0])[:, None, None], [ns.Cell("en", "text")] * 3
    >>> cells, values, _ = mean_attribution(torch.ones(3, 1, 1), shift, cells)
    >>> [str(cell) for cell in cells], values.item()
    (['en/text'], 2.0)

    Args:
        slope: dM/dh of every neuron on the harmful prompt of each pair.
        shift: activation on the harmful minus that on the benign prompt.
        cells: the cell of each pair.
    """
    names = list(dict.fromkeys(cells))
    rows = [torch.tensor([c == name for c in cells]) for name in names]
    score, shift = slope.double() * shift.double(), shift.double()
    values, difference = (np.stack([part[mine].mean(dim=0).numpy() for mine in rows]) for part in (score, shift))
    return names, values, difference


def gradients(
    model: Model,
    prompts: Sequence[Prompt],
    tokens: dict[str, OpeningTokens],
    *,
    condition: Intervention | None = None,
    batch_size: int = 16,
) -> tuple[Float[Tensor, "prompt n_layers d_mlp"], Float[Tensor, "prompt n_layers d_mlp"]]:
    """dM/dh and h of every neuron at the last prompt token, clean or under an intervention (float32).

    >>> from neuronshield.model.prefixes import OpeningTokens
    >>> tokens = {language: OpeningTokens([19], [18]) for language in ("en", "sw")}     # ids of refusals, compliances
    >>> slope, act = gradients(model, prompts[:4], tokens)
    >>> slope.shape, act.shape
    (torch.Size([4, 3, 29]), torch.Size([4, 3, 29]))

    Args:
        model: the model.
        prompts: the rows, in order.
        tokens: first tokens of refusal and compliance prefixes, by language.
        condition: an intervention that holds while M is computed; None for the clean model.
        batch_size: prompts in a forward and backward.

    Raises:
        InputError: logits or gradients that are not finite, or too little memory.
    """
    slopes = torch.zeros(len(prompts), model.n_layers, model.d_mlp, dtype=torch.float32)
    acts = torch.zeros_like(slopes)
    envoys, traced = model.envoys, model.traced
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        kinds = [tokens[prompts[row].language] for row in batch.rows]
        edits, _ = edits_for(model, prompts, batch, conditions=[condition])
        n, idle = len(batch.rows), model.idle(batch.encoding)
        active, width = [i for i in range(model.n_layers) if i not in idle], batch.encoding["input_ids"].shape[1]
        here = running(model, rows=n, width=width)
        with here, recording("attribution"), model.frozen(), traced.trace(**batch.encoding, **model.there):
            read, slope = nnsight.save([]), nnsight.save([])
            for layer in active:
                h = envoys[layer].input
                if layer == active[0]:  # frozen weights have no gradient of their own
                    h = h.detach().requires_grad_()
                if layer in edits:
                    h = h.clone()
                    for edit in edits[layer]:
                        edit.apply(by_row(h, n))
                if layer == active[0] or layer in edits:
                    envoys[layer].input = h
                read.append(h)
            total = margin(traced.output.logits[:, -1], kinds).sum()
            with total.backward():
                for h in reversed(read):
                    slope.append(by_row(h.grad, n)[:, -1].float())
        for layer, h, grad in zip(active, read, reversed(list(slope)), strict=True):
            slopes[batch.rows, layer] = grad.cpu()
            acts[batch.rows, layer] = by_row(h.detach(), len(batch.rows))[:, -1].float().cpu()
    wrong = ~(slopes + acts).flatten(1).isfinite().all(dim=1)
    if bool(wrong.any()):
        raise InputError(not_finite(model, prompts[int(wrong.int().argmax())].id))
    return slopes, acts
