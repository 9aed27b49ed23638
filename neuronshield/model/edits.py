"""Interventions as edits of one batch: which entries of which layer's activations become what.

An `Intervention` names neurons, token roles and cells; an `Edit` is what is left of it for one layer of one batch: rows,
positions, indices and new values. Every edit reports how many tokens it touched, so that firings can be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from .encoding import Batch
from .intervention import Intervention
from .model import Model

__all__ = ["Edit", "check_conditions", "edits_for", "site_of"]


class Edit(NamedTuple):
    """One condition's change of one layer.

    Attributes:
        scale: whether `new` is a factor.
        start: first row of the forward that it changes.
        stop: the row after the last.
        indices: the neurons, [k]; of directions, their numbers.
        new: what they become, a number or [rows or 1, k].
        where: the tokens, [rows, pos]; None for the last position.
        active: which rows it changes, [rows]; None for all. Used where `where` is None.
        tokens: how many tokens it must touch.
        basis: of directions, the orthonormal vectors whose coordinates it changes, [k, d_model]; None for neurons.
    """

    scale: bool
    start: int
    stop: int
    indices: Tensor
    new: Tensor | float
    where: Tensor | None
    active: Tensor | None
    tokens: int
    basis: Tensor | None = None

    def apply(self, h: Tensor) -> int:
        """How many tokens were touched; `h` is changed in place.

        >>> h = torch.ones(2, 4, 29)
        >>> edit = Edit(False, 0, 2, torch.tensor([3, 5]), 0.0, where=None, active=None, tokens=2)
        >>> edit.apply(h), h[:, -1].sum().item()
        (2, 54.0)

        Args:
            h: activations of the layer, [rows, pos, d_mlp].
        """
        mine, indices = h[self.start : self.stop], self.indices.to(h.device)  # layers may be on different devices
        if self.basis is not None:
            return self._project(mine, self.basis.to(h.device))
        if self.where is None:
            old = mine[:, -1, indices]
            new = old * self.new if self.scale else torch.as_tensor(self.new, dtype=h.dtype, device=h.device)
            if self.active is not None:
                new = torch.where(self.active[:, None].to(h.device), new, old)
            mine[:, -1, indices] = new
            return len(mine) if self.active is None else int(self.active.sum())
        old = mine[:, :, indices]
        if self.scale:
            new = old * self.new
        else:
            new = torch.as_tensor(self.new, dtype=h.dtype, device=h.device)
            new = new[:, None, :] if new.ndim == 2 else new
        mine[:, :, indices] = torch.where(self.where[..., None].to(h.device), new, old)
        return int(self.where.sum())

    def _project(self, mine: Tensor, basis: Tensor) -> int:
        """How many tokens were touched: their coordinates in a basis are changed, what is orthogonal to it stays. In float32."""
        last = mine.shape[1] - 1
        where = self.where
        if where is None:
            rows = torch.ones(len(mine), dtype=torch.bool) if self.active is None else self.active
            where = torch.zeros(mine.shape[:2], dtype=torch.bool)
            where[:, last] = rows.to(where.device)
        row, pos = where.to(mine.device).nonzero(as_tuple=True)
        stream = mine[row, pos].float()
        old = stream @ basis.T
        new = torch.as_tensor(self.new, dtype=old.dtype, device=old.device)
        if new.ndim == 2 and len(new) > 1:
            new = new[row]
        change = old * new if self.scale else new
        mine[row, pos] = (stream + (change - old) @ basis).to(mine.dtype)
        return len(row)


def edits_for(
    model: Model, prompts: Sequence[Prompt], batch: Batch, *, conditions: Sequence[Intervention | None]
) -> tuple[dict[int, list[Edit]], dict[int, int]]:
    """Edits by layer, layers ascending, for conditions stacked in one forward, and how many tokens each layer must see touched.

    >>> from neuronshield.model.encoding import collate
    >>> batch = collate(model, prompts[:2], side="left")
    >>> edits, tokens = edits_for(model, prompts[:2], batch, conditions=[None, ns.Intervention(neurons, "zero")])
    >>> tokens, edits[0][0].start, edits[0][0].stop
    ({0: 2, 1: 2, 2: 2}, 2, 4)

    Args:
        model: the model.
        prompts: all prompts; `batch.rows` says which are in the batch.
        batch: one batch of them, padded on the left.
        conditions: one copy of the batch each; None for a clean one.

    Raises:
        InputError: a prompt without a token of the role that a condition names.
    """
    edits: dict[int, list[Edit]] = {}
    expected: dict[int, int] = {}
    n, idle, device = len(batch.rows), model.idle(batch.encoding), model.device
    for i, part in enumerate(conditions):
        if part is None:
            continue
        active = _active(prompts, batch.rows, part, device=device)
        where = _where(prompts, batch, part, active=active)
        tokens = int(where.sum()) if where is not None else n if active is None else int(active.sum())
        if not tokens:
            continue
        basis = part.basis(device)
        for layer, members in part.neurons.by_layer().items():
            if layer in idle:
                continue
            new = part.new(layer, members, batch.rows)
            edit = Edit(
                scale=part.kind == "scale",
                start=i * n,
                stop=(i + 1) * n,
                indices=torch.tensor(members, device=device),
                new=new.to(device) if isinstance(new, torch.Tensor) else new,
                where=where,
                active=active,
                tokens=tokens,
                basis=basis,
            )
            edits.setdefault(layer, []).append(edit)
            expected[layer] = expected.get(layer, 0) + tokens
    return dict(sorted(edits.items())), expected


def _active(prompts: Sequence[Prompt], rows: list[int], condition: Intervention, *, device: Any) -> Tensor | None:
    """Which rows are of the cells it names; None for all of them."""
    if condition.cells is None:
        return None
    return torch.tensor([prompts[row].cell in condition.cells for row in rows], device=device)


def _where(prompts: Sequence[Prompt], batch: Batch, condition: Intervention, *, active: Tensor | None) -> Tensor | None:
    """Tokens of the prompt that it touches, [batch, pos]; None for the last one."""
    if condition.positions == "last_prompt":
        return None
    where = batch.roles["prompt" if condition.positions == "all" else condition.positions]
    touched = where.any(dim=1) if active is None else where.any(dim=1) | ~active
    if condition.positions != "response" and not bool(touched.all()):
        row = batch.rows[int((~touched).int().argmax())]
        raise InputError(
            f"positions={condition.positions!r}: prompt {prompts[row].id!r} has no such token; name the cells that have, "
            "with cells=[...]"
        )
    return where if active is None else where & active[:, None]


def site_of(conditions: Sequence[Intervention | None]) -> str:
    """The site that conditions change in one forward; "neuron" where none changes anything.

    >>> site_of([None, ns.Intervention(neurons, "zero")])
    'neuron'

    Args:
        conditions: all at the same site; None for a clean one.

    Raises:
        RuntimeError: conditions at several sites, which go through forwards of their own.
    """
    sites = {c.neurons.site for c in conditions if c is not None}
    if len(sites) > 1:
        raise RuntimeError(f"one forward changes one site, not {sorted(sites)}")
    return next(iter(sites), "neuron")


def check_conditions(
    model: Model, prompts: Sequence[Prompt], conditions: Sequence[Intervention | None], *, generated: int = 0
) -> None:
    """Raise unless every condition fits the model and the prompts and can fire (each neuron set is looked at once).

    >>> check_conditions(model, prompts, [None, ns.Intervention(neurons, "zero")])

    Args:
        model: the model.
        prompts: the prompts.
        conditions: the conditions; None for a clean one.
        generated: tokens that are generated; 0 where only the first answer token's logits are read.

    Raises:
        InputError: neurons or values of another model, cells that no prompt is of, or positions that are never read.
    """
    present = [c for c in conditions if c is not None]
    for neurons in {id(c.neurons): c.neurons for c in present}.values():
        if isinstance(neurons, NeuronSet):
            neurons.check_model(model, any_site=True)
        else:
            neurons.check_model(model)
    for condition in present:
        condition.check(model, prompts)
        if condition.positions == "response" and not generated:
            raise InputError("positions='response': this is read before the first answer token; use generate")
        if condition.positions == "response" and generated < 2:
            raise InputError("positions='response' needs max_new_tokens of 2 or more: the last token is never read")
