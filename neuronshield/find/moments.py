"""Capture: one nnsight trace per batch, running moments, nothing kept per token.

For every group of prompts (label x language x modality x half), layer and neuron this keeps seven numbers
over the chosen tokens: n, the mean of h, the sum of squared deviations, the mean of |h|, the share of
h > 0, the least |h|, and the mean of |h| / ||MLP output||. They are computed in float32 on the model's device *inside* the trace, and merged across batches in
float64 with Chan's update, so memory does not depend on the number of prompts. Raw activations never
leave the device. The forward stops after the last layer, before the LM head.

Each cell is captured in two **halves**, split by request (`pair_id`): their merge is the cell, their
comparison is the split-half ceiling and the benign-versus-benign floor of an overlap (`overlap`).

Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import nnsight
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import InputError
from ..core.neurons import NEURON_VALUE
from ..core.provenance import versions
from ..data.prompts import Cell, Prompt, PromptSet
from ..model.encoding import Batch, Role, batches
from ..model.model import Model, by_row

__all__ = ["Group", "Moments", "Stats", "capture", "record"]


ROLES = ("last_prompt", "prompt", "image", "text", "response")


class Group(NamedTuple):
    """What moments are kept apart for."""

    label: str
    language: str
    modality: str
    half: int

    @property
    def cell(self) -> Cell:
        return Cell(self.language, self.modality)


@dataclass
class Moments:
    """Moments of one group, one number per layer and neuron, float64.

    >>> a = Moments.of(np.array([[[1.0]], [[3.0]]]))     # 2 tokens, 1 layer, 1 neuron
    >>> a.n, a.mean.item(), a.var.item()
    (2, 2.0, 2.0)
    """

    n: int
    mean: Float[np.ndarray, "n_layers d_mlp"]
    m2: Float[np.ndarray, "n_layers d_mlp"]
    mean_abs: Float[np.ndarray, "n_layers d_mlp"]
    positive: Float[np.ndarray, "n_layers d_mlp"]
    least: Float[np.ndarray, "n_layers d_mlp"]
    share: Float[np.ndarray, "n_layers d_mlp"]

    @staticmethod
    def of(
        h: Float[np.ndarray, "token n_layers d_mlp"], out: Float[np.ndarray, "token n_layers"] | None = None
    ) -> Moments:
        """Moments of activations that are all at hand; `out` is the norm of each MLP's output (`share` is 0 without)."""
        h = np.asarray(h, dtype=np.float64)
        mean, size = h.mean(0), np.abs(h)
        share = np.zeros_like(mean) if out is None else (size / np.asarray(out)[..., None]).mean(0)
        return Moments(len(h), mean, ((h - mean) ** 2).sum(0), size.mean(0), (h > 0).mean(0), size.min(0), share)

    @property
    def var(self) -> Float[np.ndarray, "n_layers d_mlp"]:
        """Unbiased variance; zero where only one token was seen."""
        return self.m2 / max(self.n - 1, 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of both groups together (Chan's update)."""
        n = self.n + other.n
        share = other.n / n
        delta = other.mean - self.mean
        return Moments(
            n,
            self.mean + delta * share,
            self.m2 + other.m2 + delta**2 * self.n * share,
            self.mean_abs + (other.mean_abs - self.mean_abs) * share,
            self.positive + (other.positive - self.positive) * share,
            np.minimum(self.least, other.least),
            self.share + (other.share - self.share) * share,
        )


@dataclass
class Stats:
    """What `capture` saw, and everything `contrast` needs to score it.

    Attributes:
        groups: moments by (label, language, modality, half).
        down_norms: ||W_down[:, i]||_2 of every neuron.
        down_l1: ||W_down[:, i]||_1 of every neuron.
        tokens: the role the moments were taken over.
        n_params, params_per_neuron: what a parameter budget is counted in.
        provenance: model, data hash, seed, versions, and the requests `seen`.
    """

    groups: dict[Group, Moments]
    down_norms: Float[np.ndarray, "n_layers d_mlp"]
    down_l1: Float[np.ndarray, "n_layers d_mlp"]
    tokens: str
    n_params: int
    params_per_neuron: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return int(self.down_norms.shape[0])

    @property
    def d_mlp(self) -> int:
        return int(self.down_norms.shape[1])

    def cells(self) -> list[Cell]:
        """Cells in which both labels were seen: the ones that can be contrasted."""
        seen = {(g.cell, g.label) for g in self.groups}
        cells = dict.fromkeys(g.cell for g in self.groups)
        return [c for c in cells if (c, "harmful") in seen and (c, "benign") in seen]

    def moments(self, label: str, cell: Cell | tuple[str, str], half: int | None = None) -> Moments:
        """Moments of one label in one cell; of one half of it, or of both merged.

        Raises:
            InputError: nothing was captured there.
        """
        cell = Cell.of(cell)
        wanted = [m for g, m in self.groups.items() if g.label == label and g.cell == cell and half in (None, g.half)]
        if not wanted:
            part = "" if half is None else f", half {half}"
            raise InputError(f"nothing captured for {label} prompts of {cell}{part}; capture more prompts there")
        out = wanted[0]
        for other in wanted[1:]:
            out = out.merge(other)
        return out

    def __repr__(self) -> str:
        n = sum(m.n for m in self.groups.values())
        return f"Stats({n} tokens [{self.tokens}], {len(self.cells())} cells, {self.n_layers} x {self.d_mlp} neurons)"


def capture(
    model: Model,
    prompts: PromptSet,
    *,
    tokens: Role = "last_prompt",
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Stats:
    """Running moments of every MLP neuron over the "discover" prompts (all of them, if none is so marked).

    >>> stats = capture(model, prompts)                                        # doctest: +SKIP
    >>> stats.moments("harmful", ("en", "text")).mean.shape                    # doctest: +SKIP
    (6, 512)

    Args:
        tokens: role of the tokens to count. "response" reads each prompt's `target` as the answer,
            teacher-forced. Padding never counts.
        batch_size: prompts a forward.
        seed: decides which requests go to which half.

    Raises:
        InputError: no prompts, a role no prompt has, "response" without `target`, or a non-finite activation.
    """
    if tokens not in ROLES:
        raise InputError(f"tokens={tokens!r} is unknown; use one of {', '.join(ROLES)}")
    chosen = prompts.for_step("discover")
    if not len(chosen):
        raise InputError("capture: no prompts")
    if tokens == "response" and any(p.target is None for p in chosen):
        raise InputError("capture: tokens='response' needs a 'target' on every prompt")
    targets = [p.target or "" for p in chosen] if tokens == "response" else None
    keys = [Group(p.label, p.language, p.modality, half_of(p, seed)) for p in chosen]
    groups: dict[Group, Moments] = {}
    with tqdm(total=len(chosen), desc="capture", unit="prompt", disable=not progress, leave=False) as bar:
        for batch in batches(model, chosen, batch_size=batch_size, responses=targets):
            present = list(dict.fromkeys(keys[row] for row in batch.rows))
            member = torch.tensor([present.index(keys[row]) for row in batch.rows], device=model.device)
            counts, sums = _trace_moments(model, batch, tokens, member, len(present))
            for i, key in enumerate(present):
                n = int(counts[i])
                if n:
                    new = Moments(n, *(np.asarray(part[i], dtype=np.float64) for part in sums))
                    groups[key] = groups[key].merge(new) if key in groups else new
            bar.update(len(batch.rows))
    if not groups:
        raise InputError(f"capture: no prompt has a token of role {tokens!r}")
    for key, moments in groups.items():
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.m2).all()):
            layer = int(np.argwhere(~np.isfinite(moments.mean + moments.m2))[0][0])
            raise InputError(f"capture: layer {layer} has non-finite activations ({key.cell}); load in float32 or bf16")
    return Stats(
        {key: groups[key] for key in dict.fromkeys(keys) if key in groups},  # cells in the order of the prompts
        model.down_norms().numpy(),
        model.down_norms(1).numpy(),
        tokens,
        model.n_params,
        model.params_per_neuron,
        {
            **model.provenance(),
            "data": chosen.hash(),
            "tokens": tokens,
            "neuron_value": NEURON_VALUE,
            "seed": seed,
            "versions": versions(),
            "seen": sorted({p.cluster for p in chosen}),
        },
    )


def half_of(prompt: Prompt, seed: int) -> int:
    """0 or 1, the same for every prompt of one request."""
    return hashlib.sha256(f"{seed}:{prompt.cluster}".encode()).digest()[0] & 1


def _trace_moments(
    model: Model, batch: Batch, tokens: str, member: Int[Tensor, " batch"], n_groups: int
) -> tuple[Tensor, list[np.ndarray]]:
    """Counts and the six fields of `Moments` after n, each [group, n_layers, d_mlp], from one traced forward."""
    mask = batch.roles[tokens]
    group = member[mask.nonzero()[:, 0]]
    owner = torch.nn.functional.one_hot(group, n_groups).T.float()
    counts = owner.sum(dim=1)
    weight = owner / counts.clamp(min=1)[:, None]
    envoys, idle = model.envoys, model.idle(batch.encoding)
    silent = torch.zeros(6, n_groups, model.d_mlp, device=mask.device)
    with torch.no_grad(), model.traced.trace(**batch.encoding, **model.there) as tracer:
        layers = nnsight.save([])
        for layer, envoy in enumerate(envoys):
            if layer in idle:
                layers.append(silent)
                continue
            h = by_row(envoy.input, len(mask))
            here = mask.to(h.device)  # layers may be on different devices
            h, mine, share = h[here].float(), owner.to(h.device), weight.to(h.device)
            mean, size = share @ h, h.abs()
            spread = mine @ (h - mine.T @ mean) ** 2
            least = torch.full_like(mean, torch.inf).scatter_reduce_(
                0, group.to(h.device)[:, None].expand_as(h), size, "amin"
            )
            active = share @ (h > 0).float()
            loud = share @ size
            out = by_row(envoy.output, len(mask))[here].float().norm(dim=-1, keepdim=True)
            part = share @ (size / out.clamp(min=1e-12))
            layers.append(torch.stack([mean, spread, loud, active, least, part]).detach().to(mask.device))
        tracer.stop()
    stacked = torch.stack(list(layers), dim=2).double().cpu().numpy()  # [6, group, layer, neuron]
    return counts.cpu(), list(stacked)


def record(model: Model, prompts: Sequence[Prompt], *, batch_size: int = 32) -> Float[Tensor, "prompt n_layers d_mlp"]:
    """Every neuron at the last prompt token of each prompt: donors for patching and resampling (float32).

    Unlike `capture` this keeps one vector a prompt, so use it on the prompts of an experiment only.
    """
    out = torch.empty(len(prompts), model.n_layers, model.d_mlp)
    envoys = model.envoys
    for batch in batches(model, prompts, batch_size=batch_size):
        mask, idle = batch.roles["last_prompt"], model.idle(batch.encoding)
        silent = torch.zeros(len(mask), model.d_mlp, device=mask.device)
        with torch.no_grad(), model.traced.trace(**batch.encoding, **model.there) as tracer:
            layers = nnsight.save([])
            for layer, envoy in enumerate(envoys):
                if layer in idle:
                    layers.append(silent)
                    continue
                h = by_row(envoy.input, len(mask))
                layers.append(h[mask.to(h.device)].detach().float().to(mask.device))
            tracer.stop()
        out[batch.rows] = torch.stack(list(layers), dim=1).cpu()
    return out
