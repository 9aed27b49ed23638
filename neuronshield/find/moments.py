"""Capture: running moments of every neuron, one traced forward a batch.

The moments of `groups` are computed in float32 on the model's device inside the trace, and merged across batches in float64.
Activations never leave the device, and none is kept per token. The forward stops after the last layer, before the LM head.

Each cell is captured in eight **folds** of its requests (`pair_id`). Merged they are the cell. Selections from different
folds give the null and the reliability of an overlap (`overlap`).

The prompts are cut into shards (`find.shards`), each of which is a unit of work for an engine (`model.engine`). A shard's moments
come back in float32 and are merged in float64, in the order of the shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..core.arguments import at_least, check_seed, one_of, require
from ..core.errors import InputError
from ..core.progress import bar
from ..core.provenance import provenance
from ..core.sites import VALUES
from ..data.prompts import Prompt, PromptSet
from ..data.streams import PromptStream
from ..model.encoding import Batch, Role, batches, check_prompts
from ..model.engine import Context, Engine, Result, Unit
from ..model.engines import engine_of
from ..model.families import by_row
from ..model.forward import read_layers
from ..model.model import Model
from ..model.places import width_of
from .folds import fold_of, folds_of
from .groups import Group, Moments, Stats
from .last_tokens import at_last, check_rows, not_finite_activations
from .running import ARRAYS, RunningMoments
from .shards import shards_by_group

__all__ = ["Group", "Moments", "Stats", "capture", "moments_of", "record", "record_moments", "record_norms"]


ROLES = ("last_prompt", "prompt", "image", "text", "response")


def capture(
    model: Model,
    prompts: PromptSet | PromptStream,
    *,
    tokens: Role = "last_prompt",
    site: str = "neuron",
    batch_size: int = 32,
    seed: int = 0,
    engine: Engine | str | None = None,
    progress: bool = True,
) -> Stats:
    """Running moments of every MLP neuron over the "discover" prompts (all of them, if none is so marked).

    >>> stats = capture(model, prompts, tokens="last_prompt", progress=False)
    >>> stats.moments("harmful", "en/text").mean.shape
    (3, 29)

    Args:
        model: the model.
        prompts: harmful and benign prompts. A `PromptStream` is read once, a few rows at a time; its requests are dealt to folds by
            a hash of their names.
        tokens: role of the tokens to count: the last token of the prompt, all of the prompt, its image tokens, its text
            tokens, or those of the response. "response" reads each prompt's `target` as the answer. Padding never counts.
        site: "neuron", or which numbers of a layer are read instead: "gate", "up" or "attention" (`neuronshield.core.sites`).
        batch_size: prompts in a forward.
        seed: decides which requests go to which fold.
        engine: where the shards are computed: None for this process, "ray", or an engine (`neuronshield.model.engine`).
        progress: show a progress bar.

    Raises:
        InputError: arguments of another type, a wrong seed, no prompts, a role that no prompt has, "response" without `target`, a
            site that the model does not have, an activation that is not finite, or too little memory.
    """
    if not isinstance(prompts, PromptStream):
        check_inputs("capture", model, prompts)
    require(model, Model, call="capture(model, prompts)", name="model")
    one_of(tokens, ROLES, call="capture", name="tokens")
    one_of(site, VALUES, call="capture", name="site")
    width = width_of(model, site)
    at_least(1, "capture", batch_size=batch_size)
    check_seed(seed, call="capture")
    chosen = prompts.for_step("discover")
    options = {"tokens": tokens, "batch_size": batch_size, **({} if site == "neuron" else {"site": site})}
    order: dict[Group, None] = {}
    units = _units(_dealt(model, chosen, seed, tokens=tokens), order, options)
    total = len(chosen) if isinstance(chosen, PromptSet) else None
    groups: dict[Group, Moments] = {}
    for arrays, about in engine_of(engine).on(model).map(units, desc="capture", progress=progress, total=total):
        for i, told in enumerate(about["groups"]):
            key = Group(*told)
            new = Moments(about["counts"][i], **{name: arrays[name][i] for name in ARRAYS})
            groups[key] = groups[key].merge(new) if key in groups else new
    if not order:
        raise InputError("capture: no prompts")
    if not groups:
        raise InputError(f"capture: no prompt has a token of role {tokens!r}")
    norms = [model.down_norms(p).numpy() if site == "neuron" else np.ones((model.n_layers, width)) for p in (2, 1)]
    return Stats(
        groups={key: groups[key].astype(np.float32) for key in order if key in groups},
        down_norms=norms[0],
        down_l1=norms[1],
        tokens=tokens,
        site=site,
        n_params=model.n_params,
        params_per_neuron=model.params_per_neuron,
        provenance=provenance(
            model,
            chosen,
            seen=chosen if isinstance(chosen, PromptSet) else chosen.seen,
            tokens=tokens,
            neuron_value=VALUES[site],
            seed=seed,
        ),
    )


def _dealt(model: Model, chosen: Any, seed: int, *, tokens: str) -> Iterator[tuple[Prompt, int]]:
    """Prompts with their folds; those of a `PromptSet` are all checked before the first one is given."""
    if isinstance(chosen, PromptSet):
        if tokens == "response" and (missing := next((p for p in chosen if p.target is None), None)):
            raise _no_target(missing)
        if not len(chosen):
            return
        check_prompts(model, chosen, responses=_targets(chosen, tokens))
        yield from zip(chosen, folds_of(chosen, seed), strict=True)
        return
    for prompt in chosen:
        if tokens == "response" and prompt.target is None:
            raise _no_target(prompt)
        yield prompt, fold_of(prompt, seed)


def _no_target(prompt: Prompt) -> InputError:
    return InputError(f"capture: tokens='response' needs a 'target' on every prompt; {prompt.id!r} has none")


def _targets(prompts: Sequence[Prompt], tokens: str) -> list[str] | None:
    return [p.target or "" for p in prompts] if tokens == "response" else None


def _units(rows: Iterable[tuple[Prompt, int]], order: dict[Group, None], options: dict[str, Any]) -> Iterator[Unit]:
    """One unit a shard; `order` is filled with the groups, as they appear."""

    def keyed() -> Iterator[tuple[Prompt, Group]]:
        for prompt, fold in rows:
            key = Group(prompt.label, prompt.language, prompt.modality, fold=fold)
            order.setdefault(key)
            yield prompt, key

    for shard in shards_by_group(keyed()):
        folds = [key.fold for _, key in shard]
        yield Unit(f"{__name__}:moments_of", tuple(p for p, _ in shard), options={**options, "folds": folds})


def moments_of(model: Model, unit: Unit, context: Context) -> Result:
    """Moments of every group of a shard: the work of `capture`'s units.

    >>> unit = next(_units(((p, 0) for p in prompts), {}, {"tokens": "last_prompt", "batch_size": 32}))
    >>> arrays, about = moments_of(model, unit, Context())
    >>> arrays["mean"].shape, about["counts"]
    ((4, 3, 29), [15, 15, 15, 15])

    Args:
        model: the model.
        unit: prompts, with options "tokens", "batch_size", the "folds" of the prompts, and "site" where it is not "neuron".
        context: is told of batches that are done.

    Raises:
        InputError: as `capture`.
    """
    keys = [
        Group(p.label, p.language, p.modality, fold=fold)
        for p, fold in zip(unit.prompts, unit.options["folds"], strict=True)
    ]
    options = {name: value for name, value in unit.options.items() if name != "folds"}
    found = _groups(model, unit.prompts, keys, **options, tick=context.tick)
    arrays = {name: np.stack([getattr(m, name) for m in found.values()]) for name in ARRAYS} if found else {}
    return arrays, {"groups": [list(key) for key in found], "counts": [m.n for m in found.values()]}


def check_inputs(call: str, model: Any, prompts: Any) -> None:
    """Raise unless a call was given a model and a `PromptSet`, in this order.

    >>> check_inputs("capture", model, prompts)

    Args:
        call: the function, for the message.
        model: what was given first.
        prompts: what was given second.

    Raises:
        InputError: other types, or the two swapped.
    """
    if isinstance(model, PromptSet) and isinstance(prompts, Model):
        raise InputError(f"{call}(model, prompts): the arguments are swapped; the model comes first")
    require(model, Model, call=f"{call}(model, prompts)", name="model", hint="load one with ns.load(...)")
    hint = "read a file with PromptSet.from_jsonl(path), rows with PromptSet.from_records(rows)"
    require(prompts, PromptSet, call=f"{call}(model, prompts)", name="prompts", hint=hint)


def record_moments(
    model: Model, prompts: PromptSet, *, tokens: Role, batch_size: int = 32, progress: bool = False
) -> list[Moments | None]:
    """Moments of each prompt over its own tokens of a role (None where it has no such token), for selections on other labels.

    It keeps six vectors a prompt. For "last_prompt", `record` keeps one.

    >>> [m.n for m in record_moments(model, prompts[:2], tokens="prompt")]
    [5, 5]

    Args:
        model: the model.
        prompts: the rows, in order.
        tokens: role of the tokens, as for `capture`.
        batch_size: prompts in a forward.
        progress: show a progress bar.

    Raises:
        InputError: as `capture`.
    """
    keys = [Group(p.label, p.language, p.modality, fold=row) for row, p in enumerate(prompts)]
    with bar(len(prompts), desc="capture", unit="prompt", show=progress) as tick:
        groups = _groups(model, prompts, keys, tokens=tokens, batch_size=batch_size, tick=tick)
    if not groups:
        raise InputError(f"capture: no prompt has a token of role {tokens!r}")
    return [groups.get(key) for key in keys]


def _groups(
    model: Model,
    prompts: Sequence[Prompt],
    keys: Sequence[Group],
    *,
    tokens: str,
    batch_size: int,
    tick: Callable[[int], Any],
    site: str = "neuron",
) -> dict[Group, Moments]:
    """Moments by the key of each prompt in float32, in the order of the prompts; `tick` is told of prompts that are done."""
    present = list(dict.fromkeys(keys))
    number = {key: i for i, key in enumerate(present)}
    merges = len(present) < len(keys)  # a group of one prompt is in one batch: nothing is added to it
    running = RunningMoments(
        (len(present), model.n_layers, width_of(model, site)),
        dtype=torch.float64 if merges else torch.float32,
        device=model.device,
    )
    for batch in batches(model, prompts, batch_size=batch_size, responses=_targets(prompts, tokens)):
        own = list(dict.fromkeys(number[keys[row]] for row in batch.rows))
        member = torch.tensor([own.index(number[keys[row]]) for row in batch.rows], device=model.device)
        counts, sums = _trace_moments(model, batch, tokens, member=member, n_groups=len(own), site=site)
        if not bool(sums[:2, counts > 0].isfinite().all()):
            raise InputError(f"capture: {not_finite_activations(model, prompts, batch, tokens=tokens, site=site)}")
        running.add(torch.tensor(own), counts, sums)
        tick(len(batch.rows))
    return {present[i]: moments for i, moments in running.moments()}


def _trace_moments(
    model: Model, batch: Batch, tokens: str, *, member: Int[Tensor, " batch"], n_groups: int, site: str = "neuron"
) -> tuple[Int[Tensor, " group"], Float[Tensor, "field group n_layers d_mlp"]]:
    """Tokens of each group, and the fields of `Moments` after n, from one traced forward; on the model's device."""
    mask = batch.roles[tokens]
    group = member[mask.nonzero()[:, 0]]
    owner = torch.nn.functional.one_hot(group, n_groups).T.float()  # [group, token]
    counts = owner.sum(dim=1)
    weight = owner / counts.clamp(min=1)[:, None]

    def moments(layer: int, h: Tensor, envoy: Any) -> Tensor:
        """[field, group, d_mlp] of one layer, in the order of the fields of `Moments`."""
        here = mask.to(h.device)  # layers may be on different devices
        chosen, mine, share = h[here].float(), owner.to(h.device), weight.to(h.device)
        mean, size = share @ chosen, chosen.abs()
        m2 = mine @ (chosen - mine.T @ mean) ** 2
        index = group.to(h.device)[:, None].expand_as(chosen)
        least = torch.full_like(mean, torch.inf).scatter_reduce_(0, index, size, "amin")
        positive = share @ (chosen > 0).float()
        part = torch.zeros_like(mean)
        if site == "neuron":
            out = by_row(envoy.output, len(mask))[here].float().norm(dim=-1, keepdim=True)
            part = share @ (size / out.clamp(min=1e-12))
        return torch.stack([mean, m2, share @ size, positive, least, part]).detach().to(mask.device)

    silent = torch.zeros(6, n_groups, width_of(model, site), dtype=torch.float32, device=mask.device)
    layers = [silent if part is None else part for part in read_layers(model, batch, moments, site=site)]
    return counts.long(), rearrange(layers, "layer field group neuron -> field group layer neuron")


def record(
    model: Model, prompts: Sequence[Prompt], *, site: str = "neuron", batch_size: int = 32
) -> Float[Tensor, "prompt n_layers d_mlp"]:
    """Every neuron at the last prompt token of each prompt (float32): donors for patching and resampling.

    It keeps one vector a prompt. For many prompts use `capture`, whose memory does not grow with them.

    >>> record(model, prompts[:4]).shape
    torch.Size([4, 3, 29])

    Args:
        model: the model.
        prompts: the rows, in order.
        site: which numbers are read, as for `capture`; at "attention" d_model in place of d_mlp.
        batch_size: prompts in a forward.

    Raises:
        InputError: arguments of another type, a site that the model does not have, an activation that is not finite, or too little
            memory.
    """
    check_rows("record", model, prompts)
    one_of(site, VALUES, call="record", name="site")
    at_least(1, "record", batch_size=batch_size)

    def value(h: Tensor, envoy: Any, last: Tensor) -> Tensor:
        return h[last].detach().float()

    return at_last(model, prompts, value, width=width_of(model, site), batch_size=batch_size, site=site)


def record_norms(model: Model, prompts: Sequence[Prompt], *, batch_size: int = 32) -> Float[Tensor, "prompt n_layers"]:
    """||MLP output|| of every layer at the last prompt token of each prompt (float32): what "cett" divides by.

    >>> record_norms(model, prompts[:4]).shape
    torch.Size([4, 3])

    Args:
        model: the model.
        prompts: the rows, in order.
        batch_size: prompts in a forward.

    Raises:
        InputError: as `record`.
    """
    check_rows("record_norms", model, prompts)
    at_least(1, "record_norms", batch_size=batch_size)

    def value(h: Tensor, envoy: Any, last: Tensor) -> Tensor:
        return by_row(envoy.output, len(last))[last].detach().float().norm(dim=-1, keepdim=True)

    return at_last(model, prompts, value, width=1, batch_size=batch_size)[..., 0]
