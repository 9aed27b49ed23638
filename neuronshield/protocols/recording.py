"""Activations at the last prompt token while an intervention holds there: what is selected again under clamping."""

from __future__ import annotations

from collections.abc import Sequence

import nnsight
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError
from ..data.prompts import Prompt
from ..model.edits import check_conditions, edits_for
from ..model.encoding import batches
from ..model.families import by_row
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.places import place_of
from ..model.running import not_finite, running

__all__ = ["record_under"]


def record_under(
    model: Model, prompts: Sequence[Prompt], condition: Intervention, *, batch_size: int = 32
) -> Float[Tensor, "prompt n_layers width"]:
    """Every number of the intervention's site at the last prompt token of each prompt, under the intervention (float32).

    >>> clamp = ns.Intervention(neurons, "clamp", 1.5)
    >>> values = record_under(model, prompts[:4], clamp)
    >>> values.shape, values[:, 1, 5].tolist()
    (torch.Size([4, 3, 29]), [1.5, 1.5, 1.5, 1.5])

    Args:
        model: the model.
        prompts: the rows, in order.
        condition: what is changed, at the last prompt token.
        batch_size: prompts a forward.

    Raises:
        InputError: a condition that does not fit, an activation that is not finite, or too little memory.
    """
    check_conditions(model, prompts, [condition])
    place = place_of(model, condition.neurons.site)
    envoys = place.envoys(model)
    out = torch.zeros(len(prompts), model.n_layers, place.width)
    for batch in batches(model, prompts, batch_size=batch_size, side="left"):
        edits, _ = edits_for(model, prompts, batch, conditions=[condition])
        rows, width, idle = len(batch.rows), batch.encoding["input_ids"].shape[1], model.idle(batch.encoding)
        run = [layer for layer in range(model.n_layers) if layer not in idle]
        with (
            running(model, rows=rows, width=width),
            torch.no_grad(),
            model.traced.trace(**batch.encoding, **model.there) as tracer,
        ):
            kept = nnsight.save([])
            for layer in run:
                h = place.read(envoys[layer])
                if layer in edits:
                    h = h.clone()
                    for edit in edits[layer]:
                        edit.apply(by_row(h, rows))
                    place.write(envoys[layer], h)
                kept.append(by_row(h, rows)[:, -1].float())
            tracer.stop()
        found = rearrange([h.cpu() for h in kept], "layer prompt width -> prompt layer width")
        if not bool(found.isfinite().all()):
            raise InputError(not_finite(model, prompts[batch.rows[0]].id))
        out[torch.tensor(batch.rows)[:, None], torch.tensor(run)] = found
    return out
