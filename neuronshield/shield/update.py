"""Shield: train the chosen neurons and nothing else, as an ordinary LoRA adapter.

`masked_update` trains the rows of W_gate and W_up and the columns of W_down that belong to the chosen neurons. That it
is a LoRA with one factor one-hot and frozen, and why this equals a gradient mask step for step, is told in
`neuronshield.adapter`; what is taught, in `neuronshield.objective`. So memory grows with the number of neurons, and
the saved adapter loads with plain `peft`. Weight decay acts on the trained factor only, that is on the *change* of the
neurons' weights, and cannot leak to others.

What is counted: numbers that can change / all parameters. For k neurons of a gated MLP that is k x 3 d_model. Method:
Precise Shield (2026), whose own form, a LoRA-B masked by rows on W_gate and W_up, is `train="rows"`; SafeNeuron's
(2026), which freezes the set and lets everything else learn, is `train="rest"`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.files import replacing_folder
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..model.answers import Example, examples
from ..model.families import PARTS
from ..model.model import Model
from .adapter import Adapter, Place, attach, merge, places, quiet, shared_copy, slots, with_module
from .serving import pad_to_served_rank
from .training import ADAMW, Options, Run, fit

__all__ = ["Update", "full_update", "load_adapter", "masked_update", "plain_lora"]


logger = logging.getLogger("neuronshield")


OBJECTIVES = ("supervised", "preference")


TRAIN = ("neurons", "rows", "rest")


@dataclass
class Update:
    """A trained update.

    Attributes:
        model: the shielded model: the base weights with the update merged in, every weight outside the
            mask bit for bit what it was (weights that did not change share memory with the base model).
        neurons: the set it was made for; None for a plain LoRA or a full fine-tune.
        peft_model: the adapter on a frozen copy of the base structure; None where there is no adapter.
        trained: how many numbers could change.
        losses: training loss of every step.
        form: what was trained, in words.
        stopped: why training ended early; None if it did not.
    """

    model: Model
    neurons: NeuronSet | None
    peft_model: Any
    trained: int
    losses: list[float]
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)
    form: str = ""
    stopped: str | None = None

    @property
    def param_fraction(self) -> float:
        """Trained numbers / all parameters of the base model."""
        return self.trained / self.model.n_params

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the adapter folder (beside first, then renamed); `peft.PeftModel.from_pretrained` reads it.

        Factors are padded with zeros to the next rank that servers take; above the largest, use `save_merged`.

        Raises:
            InputError: there is no adapter, or it cannot be written (nothing is left; an older folder stays).
        """
        if self.peft_model is None:
            raise InputError(f"{path}: a {self.form or 'full update'} has no adapter; use save_merged()")

        def write(folder: Path) -> None:
            self.peft_model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
            pad_to_served_rank(folder)
            if self.neurons is not None:
                about = {"update": self.provenance, "form": self.form}
                mine = NeuronSet(
                    self.neurons, n_layers=self.model.n_layers, d_mlp=self.model.d_mlp,
                    provenance={**self.neurons.provenance, **about},
                )  # fmt: skip
                mine.save(folder / "neurons.safetensors")

        return replacing_folder(path, write)

    def save_merged(self, path: str | os.PathLike[str]) -> Path:
        """Write the whole shielded model and its processor as a Hugging Face folder, for where adapters do not load.

        Raises:
            InputError: it cannot be written, or the edit has no place in such a folder.
        """
        if self.provenance.get("bias_edit"):
            raise InputError(
                f"{path}: the edit is a bias that this family's checkpoints do not have; hold the set at run time instead "
                "(Intervention 'clamp')"
            )

        def write(folder: Path) -> None:
            module: Any = self.model.module
            module.save_pretrained(folder, safe_serialization=True)
            self.model.processor.save_pretrained(folder)

        return replacing_folder(path, write)

    def __repr__(self) -> str:
        what = f"{len(self.neurons)} neurons, " if self.neurons is not None else ""
        end = f"; stopped early: {self.stopped}" if self.stopped else ""
        return f"Update({what}{self.form}, {self.trained} numbers trained = {self.param_fraction:.3%} of the parameters{end})"


def masked_update(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    steps: int = 60,
    objective: str = "supervised",
    train: str = "neurons",
    parts: Sequence[str] = PARTS,
    rank: int = 8,
    zeroed: bool = False,
    lr: float = 3e-3,
    batch_size: int = 16,
    retention: float = 4.0,
    texts: Sequence[str] = (),
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    budget: float | None = None,
    allow_unproven: bool = False,
    optimiser: Callable[..., torch.optim.Optimizer] = ADAMW,
    accumulate: int = 1,
    gradient_checkpointing: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Update:
    """Train only `neurons`, on the "train" prompts (all of them, if none is so marked).

    >>> update = masked_update(model, proof.verified, prompts, steps=60)        # doctest: +SKIP
    >>> update.save("adapter/")                                                 # doctest: +SKIP

    Harmful prompts are taught a refusal: their `target`, else the first of `refusals`, else a sentence in their
    language. Benign prompts are taught their `target`, if they have one; otherwise the model is held, by KL divergence,
    to what it said of them before (see `neuronshield.objective`). Benign prompts of languages or pictures without any
    harmful one are retained all the same: that is what keeps a refusal from spreading to all they ask.

    Args:
        steps: optimiser steps (cosine decay of `lr` to a tenth). Each batch is half harmful, half benign and deals
            cells out evenly.
        objective: "supervised", or "preference": DPO (through TRL) of the refusal over the answer on harmful prompts,
            and of the answer over the refusal on benign ones.
        train: "neurons" (the set's rows and columns, exactly); "rows" (a LoRA of `rank` on W_gate and W_up whose B is
            masked to the set's rows); "rest" (a LoRA of `rank` on every MLP, the set itself frozen).
        parts: which of "gate", "up", "down" are trained.
        zeroed: with train="rest", the set is also held at zero while the rest learns.
        lr: learning rate of the trained factor.
        retention: weight of the KL term: more of it, fewer benign requests refused, and fewer harmful ones.
        texts: generic sentences of any language, whose every token is retained as well.
        budget: the largest share of the parameters that may be trained (3e-4 in the paper).
        allow_unproven: no warning when the set has not passed `verify`.
        optimiser: called as `optimiser(parameters, lr=lr)`.
        accumulate: forwards a batch is cut into; memory falls, nothing else changes.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        checkpoint: a file to take the run up from if it is there, written after every step.

    Returns:
        An `Update`. If a loss stops being finite, the last good one, with a warning that names the step (`stopped`).

    Raises:
        InputError: an empty set, a set of another model, one over `budget`, only one label, a language we have no
            refusal sentence for, a first loss that is not finite, or a checkpoint of another run.

    Source: Precise Shield (2026), the masked update; SafeNeuron (2026) for "rest"; Rafailov et al. (2023) for DPO.
    """
    parts = _check(model, neurons, train, tuple(parts), objective, zeroed, rank)
    outside = train == "rest"
    where = places(model, neurons, parts, outside=outside)
    hot = train == "neurons"
    adapter = attach(model, where, slots(where) if hot else rank, hot=hot, seed=seed)
    _check_budget(adapter.trained, model, budget, len(neurons))
    if not allow_unproven and not outside:
        _warn_unproven(neurons)
    rows = prompts.for_step("train")
    options = Options(
        steps, lr, batch_size, retention, optimiser, accumulate, gradient_checkpointing,
        Path(checkpoint) if checkpoint is not None else None, seed, progress,
    )  # fmt: skip
    data = examples(
        model, rows, texts=texts, refusals=refusals, compliances=compliances, progress=progress
    )  # fmt: skip
    about = _about(model, rows, options, objective, train=train, parts=list(parts), neurons=_hash(neurons))
    held = _Held(adapter, neurons) if zeroed else None
    if objective == "preference":
        from .dpo import fit_preference

        run = fit_preference(adapter, data, options, refusals)
    else:
        run = fit(model, adapter.peft_model, adapter.parameters(), data, options, about=about, held=held)
    return _finish(adapter, run, neurons, about, _words(train, parts, adapter.rank, zeroed))


class Training(TypedDict, total=False):
    """Options that the controls share with `masked_update`."""

    steps: int
    objective: str
    lr: float
    batch_size: int
    retention: float
    texts: Sequence[str]
    refusals: OpeningsArg
    compliances: OpeningsArg
    seed: int
    progress: bool


def plain_lora(model: Model, budget: int, prompts: PromptSet, **training: Unpack[Training]) -> Update:
    """The control: ordinary LoRA on the MLPs with about `budget` trained numbers, otherwise the same training.

    The rank is the largest that fits on all MLP projections; where rank 1 is already too much, as many
    evenly spaced projections as fit get rank 1.
    """
    where = places(model, None, PARTS)
    cost = model.d_model + model.d_mlp
    rank = budget // (cost * len(where))
    if rank < 1:
        count = max(1, round(budget / cost))
        where = [where[i] for i in np.unique(np.linspace(0, len(where) - 1, count).round().astype(int))]
        rank = 1
    options, data, about = _control(model, prompts, training, "plain LoRA")
    adapter = attach(model, where, rank, hot=False, seed=options.seed)
    run = fit(model, adapter.peft_model, adapter.parameters(), data, options, about=about)
    return _finish(adapter, run, None, about, f"plain LoRA of rank {rank} on {len(where)} projections")


def full_update(model: Model, prompts: PromptSet, **training: Unpack[Training]) -> Update:
    """The control without a mask: every MLP weight of the language backbone is trained."""
    options, data, about = _control(model, prompts, training, "full")
    module = shared_copy(model.module)
    parameters = []
    for place in places(model, None, PARTS):
        linear = module.get_submodule(place.name)
        linear.weight = nn.Parameter(linear.weight.detach().clone())  # type: ignore[union-attr,operator]
        parameters.append(linear.weight)
    run = fit(model, module, parameters, data, options, about=about)
    for p in parameters:
        p.requires_grad_(False)
    return _end(
        with_module(model, module),
        None,
        None,
        sum(p.numel() for p in parameters),
        run,
        about,
        "full fine-tune of the MLPs",
    )


def load_adapter(model: Model, path: str | os.PathLike[str]) -> Model:
    """The base model with a saved adapter merged in (only the chosen rows and columns, if it was masked).

    Raises:
        InputError: a model that is loaded elsewhere or packed, no adapter there, or one that does not fit the model.
    """
    model.needs_here("load_adapter")
    with quiet():
        from peft import PeftModel

    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: no adapter here (adapter_config.json is missing)")
    try:
        with quiet():
            peft_model = PeftModel.from_pretrained(shared_copy(model.module), path)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: the adapter does not fit {model.id!r} ({str(error).splitlines()[0]})") from error
    inner: Any = peft_model.base_model
    wrapped = {n: m for n, m in inner.model.named_modules() if hasattr(m, "lora_A")}
    file = path / "neurons.safetensors"
    neurons = NeuronSet.load(file) if file.exists() else None
    outside = neurons is not None and str(neurons.provenance.get("form", "")).startswith("the rest")
    known = {p.name: p for p in places(model, neurons, PARTS, outside=outside)}
    start = len(model.layers_path) + 1
    where = [known.get(n) or Place(n, int(n[start:].split(".")[0]), n.endswith(model.site.down), None) for n in wrapped]
    return merge(model, wrapped, where)


# -- parts ----------------------------------------------------------------------------------------------
def _check(
    model: Model, neurons: NeuronSet, train: str, parts: tuple[str, ...], objective: str, zeroed: bool, rank: int
) -> tuple[str, ...]:
    """The parts that this form trains in this model; raises on what cannot be trained."""
    if not len(neurons):
        why = neurons.provenance.get("proof")
        said = f"verify said: {why}" if why else "nothing was proven or selected, so nothing is trained"
        raise InputError(f"masked_update: the neuron set is empty; {said}")
    neurons.check_model(model)
    model.needs_weights("masked_update")
    for name, value, known in (("objective", objective, OBJECTIVES), ("train", train, TRAIN)):
        if value not in known:
            raise InputError(f"masked_update: {name}={value!r} is unknown; use one of {', '.join(known)}")
    if unknown := [p for p in parts if p not in PARTS]:
        raise InputError(f"masked_update: parts={unknown[0]!r} is unknown; use some of {', '.join(PARTS)}")
    if train == "rows":
        parts = tuple(p for p in parts if p != "down")
    present = tuple(p for p in PARTS if p in parts and getattr(model.site, p) is not None)
    if not present:
        raise InputError(f"masked_update: parts={list(parts)}: {model.id!r} has none of them to train")
    if zeroed and train != "rest":
        raise InputError(
            "masked_update: zeroed=True holds the set at zero while the rest learns; it needs train='rest'"
        )
    if zeroed and objective != "supervised":
        raise InputError("masked_update: zeroed=True needs objective='supervised'")
    if rank < 1:
        raise InputError(f"masked_update: rank={rank}: must be at least 1")
    return present


def _check_budget(trained: int, model: Model, budget: float | None, n: int) -> None:
    share = trained / model.n_params
    if budget is not None and share > budget:
        affordable = int(n * budget / share)
        raise InputError(
            f"masked_update: {n} neurons are {trained} trained numbers, {share:.3%} of the parameters, over the budget "
            f"of {budget:.3%}; take at most {affordable} neurons or raise budget="
        )


def _warn_unproven(neurons: NeuronSet) -> None:
    if "verified_on" in neurons.provenance:
        return
    source = ", ".join(str(neurons.provenance[k]) for k in ("method", "cell") if k in neurons.provenance)
    warnings.warn(
        f"masked_update: {len(neurons)} neurons{f' ({source})' if source else ''} were not proven to cause refusals: "
        "necessity, sufficiency and specificity are open until verify() (allow_unproven=True says you know)",
        stacklevel=3,
    )


def _words(train: str, parts: tuple[str, ...], rank: int, zeroed: bool) -> str:
    if train == "neurons":
        return f"{' and '.join(parts)} weights of the set"
    if train == "rows":
        return f"LoRA of rank {rank}, B masked to the set's rows, on {' and '.join(parts)}"
    return f"the rest of the MLPs by LoRA of rank {rank}, the set {'zeroed and ' if zeroed else ''}frozen"


def _control(model: Model, prompts: PromptSet, t: Training, form: str) -> tuple[Options, list[Example], dict[str, Any]]:
    if t.get("objective", "supervised") != "supervised":
        raise InputError(f"{form}: objective={t['objective']!r}: controls are trained 'supervised'")
    model.needs_weights(form)
    rows = prompts.for_step("train")
    options = Options(
        t.get("steps", 60), t.get("lr", 3e-3), t.get("batch_size", 16), t.get("retention", 4.0), ADAMW, 1, False, None,
        t.get("seed", 0), t.get("progress", True),
    )  # fmt: skip
    data = examples(
        model, rows, texts=t.get("texts", ()), refusals=t.get("refusals"), compliances=t.get("compliances"),
        progress=options.progress,
    )  # fmt: skip
    return options, data, _about(model, rows, options, "supervised", train=form)


def _about(model: Model, rows: PromptSet, options: Options, objective: str, **more: Any) -> dict[str, Any]:
    """What an update came from; a checkpoint is of the same run if all of it agrees."""
    return {
        **model.provenance(), "data": rows.hash(), "seed": options.seed, "versions": versions(), "steps": options.steps,
        "lr": options.lr, "batch_size": options.batch_size, "retention": options.retention, "objective": objective, **more,
    }  # fmt: skip


def _hash(neurons: NeuronSet) -> str:
    import hashlib

    return hashlib.sha256(str(list(neurons)).encode()).hexdigest()[:16]


def _finish(adapter: Adapter, run: Run, neurons: NeuronSet | None, about: dict[str, Any], form: str) -> Update:
    merged = merge(adapter.model, adapter.modules(), adapter.places)
    return _end(merged, neurons, adapter.peft_model, adapter.trained, run, about, form)


def _end(
    merged: Model, neurons: NeuronSet | None, peft_model: Any, trained: int, run: Run, about: dict[str, Any], form: str
) -> Update:
    if run.stopped:
        warnings.warn(f"masked_update: {run.stopped}; the last good adapter was kept", stacklevel=4)
        about = {**about, "stopped": run.stopped}
    return Update(merged, neurons, peft_model, trained, run.losses, about["seed"], about, form, run.stopped)


class _Held:
    """While entered, the set's activations are zero in the trained model's forwards."""

    def __init__(self, adapter: Adapter, neurons: NeuronSet) -> None:
        self.members = neurons.by_layer()
        model = adapter.model
        inner: Any = adapter.peft_model.base_model
        self.modules = {
            layer: inner.model.get_submodule(f"{model.layers_path}.{layer}.{model.site.down}") for layer in self.members
        }

    def __enter__(self) -> None:
        self.handles = [m.register_forward_pre_hook(self._hook(layer)) for layer, m in self.modules.items()]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, layer: int) -> Callable[..., Any]:
        own = self.members[layer]

        def zero(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = args[0].clone()
            h[..., own] = 0.0
            return (h, *args[1:])

        return zero
