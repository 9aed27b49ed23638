"""Running moments of every neuron in one group of prompts.

For every group, layer and neuron seven numbers are kept over the chosen tokens, with h the activation:

    n          tokens
    mean       mean of h
    m2         sum of squared deviations from the mean
    mean_abs   mean of |h|
    positive   fraction of tokens with h > 0
    least      smallest |h|
    share      mean of |h| / ||MLP output||

Moments of two groups merge without their tokens (Chan's update), so memory does not depend on the number of prompts. Groups
are kept in float32 and merged in float64.

Source: Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.display import own_names
from ..data.prompts import Cell

__all__ = ["ARRAYS", "BothLabels", "Group", "Moments", "RunningMoments", "by_group", "merged"]

ON_DEVICE = 2**30  # bytes of running moments that may stay on a GPU


class Group(NamedTuple):
    """Prompts whose moments are kept together.

    Args:
        label: "harmful" or "benign".
        language: a BCP-47 tag.
        modality: as in a `Cell`.
        fold: 0 to 7, see `capture`.
    """

    label: str
    language: str
    modality: str
    fold: int

    def __dir__(self) -> list[str]:
        return own_names(self)

    @property
    def cell(self) -> Cell:
        """Its language and modality."""
        return Cell(self.language, self.modality)


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Moments of one group, one number per layer and neuron.

    >>> a = Moments.of(np.array([[[1.0]], [[3.0]]]))     # 2 tokens, 1 layer, 1 neuron
    >>> a, a.mean.item(), a.var.item()
    (Moments(2 tokens, 1 x 1 neurons), 2.0, 2.0)

    Attributes:
        n: tokens.
        mean: mean activation.
        m2: sum of squared deviations from the mean.
        mean_abs: mean of |h|.
        positive: fraction of tokens with h > 0, 0 to 1.
        least: smallest |h|.
        share: mean of |h| / ||MLP output||; 0 where the norm was not given.
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
        """Moments of activations that are all in memory.

        >>> Moments.of(np.array([[[0.0]], [[3.0]]])).positive.item()     # 0 is not active
        0.5

        Args:
            h: activations.
            out: norm of each MLP's output; None leaves `share` at 0.
        """
        h = np.asarray(h, dtype=np.float64)
        mean, size = h.mean(0), np.abs(h)
        share = np.zeros_like(mean) if out is None else (size / np.asarray(out)[..., None]).mean(0)
        return Moments(
            n=len(h),
            mean=mean,
            m2=((h - mean) ** 2).sum(0),
            mean_abs=size.mean(0),
            positive=(h > 0).mean(0),
            least=size.min(0),
            share=share,
        )

    @property
    def var(self) -> Float[np.ndarray, "n_layers d_mlp"]:
        """Unbiased variance; 0 where only one token was seen."""
        return self.m2 / max(self.n - 1, 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of both groups together (Chan's update), float64.

        >>> one, two = Moments.of(np.array([[[1.0]]])), Moments.of(np.array([[[3.0]], [[5.0]]]))
        >>> one.merge(two).mean.item()
        3.0

        Args:
            other: of the same shape.
        """
        return merged([self, other])

    def astype(self, dtype: type[np.floating]) -> Moments:
        """The same moments as arrays of another type.

        >>> Moments.of(np.array([[[1.0]]])).astype(np.float32).mean.dtype
        dtype('float32')

        Args:
            dtype: np.float32 or np.float64.
        """
        return Moments(self.n, **{name: getattr(self, name).astype(dtype, copy=False) for name in ARRAYS})

    def __repr__(self) -> str:
        n_layers, d_mlp = self.mean.shape
        return f"Moments({self.n} tokens, {n_layers} x {d_mlp} neurons)"

    __dir__ = own_names


#: Fields of `Moments` that are arrays.
ARRAYS = tuple(f.name for f in fields(Moments) if f.name != "n")


class BothLabels(NamedTuple):
    """Moments of one cell, by label."""

    harmful: Moments
    benign: Moments

    def __dir__(self) -> list[str]:
        return own_names(self)


def merged(parts: Sequence[Moments]) -> Moments:
    """Moments of several groups together (Chan's update for many), float64.

    >>> merged([Moments.of(np.array([[[x]]])) for x in (1.0, 3.0, 5.0)]).m2.item()
    8.0

    Args:
        parts: at least one, of the same shape.
    """
    n = sum(part.n for part in parts)

    def mean_of(name: str) -> Float[np.ndarray, "n_layers d_mlp"]:
        out = getattr(parts[0], name).astype(np.float64)
        seen = parts[0].n
        for part in parts[1:]:
            seen += part.n
            out += (getattr(part, name) - out) * (part.n / seen)
        return out

    mean = mean_of("mean")
    m2 = np.zeros_like(mean)
    for part in parts:
        m2 += part.m2 + part.n * (part.mean - mean) ** 2
    return Moments(
        n=n,
        mean=mean,
        m2=m2,
        mean_abs=mean_of("mean_abs"),
        positive=mean_of("positive"),
        least=np.minimum.reduce([part.least for part in parts]).astype(np.float64),
        share=mean_of("share"),
    )


class RunningMoments:
    """Moments of several groups that grow batch by batch, in float64 on the model's device as long as they are small there.

    The arithmetic is that of `merged` with two parts, for all groups of a batch at once. A batch is added where it was computed, so
    nothing waits for a GPU but the check that its moments are finite.

    Args:
        shape: how many groups there are to be, layers of the model, neurons of a layer.
        dtype: float64; float32 serves where no group is added to twice.
        device: of the model.
    """

    def __init__(self, shape: tuple[int, int, int], *, dtype: torch.dtype, device: torch.device) -> None:
        here = device.type == "cpu" or dtype.itemsize * len(ARRAYS) * int(np.prod(shape)) <= ON_DEVICE
        # a device such as MPS has no float64
        self.device = device if here and device.type in ("cpu", "cuda") else torch.device("cpu")
        self.counts = torch.zeros(shape[0], dtype=torch.long)
        self.fields = torch.zeros((len(ARRAYS), *shape), dtype=dtype, device=self.device)
        self.fields[ARRAYS.index("least")] = torch.inf

    def add(
        self,
        groups: Int[Tensor, " part"],
        counts: Int[Tensor, " part"],
        fields: Float[Tensor, "field part n_layers d_mlp"],
    ) -> None:
        """Merge the moments of some tokens into those of their groups (Chan's update).

        Args:
            groups: numbers of the groups, each at most once.
            counts: tokens of each; a group without tokens stays as it was.
            fields: moments of each, in the order of `ARRAYS`.
        """
        counts = counts.cpu()
        seen = counts > 0
        groups, counts = groups[seen], counts[seen]
        new = fields[:, seen.to(fields.device)].to(self.device, self.fields.dtype)
        at = groups.to(self.device)
        before, after = self.counts[groups], self.counts[groups] + counts
        had, has = (n.to(self.device, self.fields.dtype)[:, None, None] for n in (before, counts))
        old = self.fields[:, at]
        out = old + (new - old) * (has / after.to(has.device, has.dtype)[:, None, None])
        mean, m2, least = (ARRAYS.index(name) for name in ("mean", "m2", "least"))
        out[m2] = old[m2] + had * (old[mean] - out[mean]) ** 2 + new[m2] + has * (new[mean] - out[mean]) ** 2
        out[least] = torch.minimum(old[least], new[least])
        self.fields[:, at] = out
        self.counts[groups] = after

    def moments(self) -> Iterator[tuple[int, Moments]]:
        """Number and moments, float32, of every group that has tokens."""
        fields = self.fields.to(torch.float32).cpu().numpy()
        for i in self.counts.nonzero()[:, 0].tolist():
            yield i, Moments(int(self.counts[i]), **dict(zip(ARRAYS, fields[:, i], strict=True)))


def by_group(
    h: Float[np.ndarray, "row n_layers d_mlp"],
    group: Int[np.ndarray, " row"],
    out: Float[np.ndarray, "row n_layers"] | None,
) -> list[Moments]:
    """Moments of rows by their group, computed in float64 one layer at a time and kept in float32.

    >>> by_group(np.array([[[1.0]], [[3.0]], [[5.0]]]), np.array([0, 1, 0]), None)[0].mean.item()
    3.0

    Args:
        h: activations.
        group: of each row: 0, 1, ..., each at least once.
        out: norm of each MLP's output; None leaves `Moments.share` at 0.
    """
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    kept = np.zeros((len(ARRAYS), len(counts), *h.shape[1:]), dtype=np.float32)
    for layer in range(h.shape[1]):
        rows = h[order, layer].astype(np.float64)
        size = np.abs(rows)
        mean = np.add.reduceat(rows, first) / counts[:, None]
        parts = {
            "mean": mean,
            "m2": np.add.reduceat((rows - np.repeat(mean, counts, axis=0)) ** 2, first),
            "mean_abs": np.add.reduceat(size, first) / counts[:, None],
            "positive": np.add.reduceat((rows > 0).astype(np.float64), first) / counts[:, None],
            "least": np.minimum.reduceat(size, first),
        }
        if out is not None:
            size /= np.maximum(out[order, layer, None], 1e-12)
            parts["share"] = np.add.reduceat(size, first) / counts[:, None]
        for name, part in parts.items():
            kept[ARRAYS.index(name), :, layer] = part
    return [Moments(int(n), **dict(zip(ARRAYS, kept[:, i], strict=True))) for i, n in enumerate(counts)]
