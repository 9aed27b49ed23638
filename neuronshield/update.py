"""Shield: train the chosen neurons and nothing else, as an ordinary LoRA adapter.

For the chosen neurons S of a layer, training rows S of W_gate and W_up and columns S of W_down under a
gradient mask equals, step for step, a LoRA one factor of which is one-hot and frozen:

    dW_gate = E_S A      E_S one-hot [d_mlp, k] frozen,  A [k, d_model] trained from zero
    dW_up   = E_S A'
    dW_down = B E_S^T    B [d_model, k] trained from zero

because d(loss)/dA = E_S^T d(loss)/dW picks exactly the rows a mask would keep, and Adam works on each
number by itself. So it *is* a PEFT LoRA: memory grows with k, and the saved adapter loads with plain
`peft`. Layers with fewer neurons than the largest are padded with zero columns, which receive no gradient
and stay zero; r is the same everywhere and alpha = r, so the scale is 1. Weight decay acts on the
trained factor only and so cannot leak to other weights.

What is counted: trained numbers (k neurons x 3 d_model) over all parameters. Method: Precise Shield (2026).
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .capture import versions
from .collate import Batch, batches
from .errors import InputError
from .grade import REFUSAL_SENTENCES, OpeningsArg, chosen_openings
from .intervene import generate
from .models import Model
from .neurons import NeuronSet
from .prompts import Prompt, PromptSet

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Update", "load_adapter", "masked_update", "plain_lora"]

logger = logging.getLogger("neuronshield")


@dataclass
class Update:
    """A trained update.

    Attributes:
        model: the shielded model: the base weights with the update merged in, every weight outside the
            mask bit for bit what it was (weights that did not change share memory with the base model).
        neurons: what was trained; None for a plain LoRA.
        peft_model: the adapter on a frozen copy of the base structure.
        trained: how many numbers were trained.
        losses: training loss of every step.
    """

    model: Model
    neurons: NeuronSet | None
    peft_model: Any
    trained: int
    losses: list[float]
    seed: int
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def param_fraction(self) -> float:
        """Trained numbers / all parameters of the base model."""
        return self.trained / self.model.n_params

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the adapter folder (beside first, then renamed); `peft.PeftModel.from_pretrained` reads it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self.peft_model.save_pretrained(partial, safe_serialization=True, save_embedding_layers=False)
            if self.neurons is not None:
                self.neurons.save(partial / "neurons.safetensors")
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    def __repr__(self) -> str:
        what = f"{len(self.neurons)} neurons" if self.neurons is not None else "plain LoRA"
        return f"Update({what}, {self.trained} numbers trained = {self.param_fraction:.3%} of the parameters)"


def masked_update(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    steps: int = 60,
    objective: str = "supervised",
    lr: float = 3e-3,
    batch_size: int = 16,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    seed: int = 0,
    progress: bool = True,
) -> Update:
    """Train only `neurons`, on the "train" prompts (all of them, if none is so marked).

    >>> update = masked_update(model, proof.verified, prompts, steps=60)        # doctest: +SKIP
    >>> update.save("adapter/")                                                 # doctest: +SKIP

    Harmful prompts are taught a refusal: their `target`, else the first of `refusals`, else a sentence in
    their language. Benign prompts are taught to stay as they were: their `target`, else the answer the
    untouched model gives (greedy), the first of `compliances` being used only where that is empty.

    Args:
        steps: optimiser steps (AdamW, cosine decay to a tenth). Each batch is half harmful, half benign
            and deals cells out evenly.
        objective: "supervised" (cross-entropy on those answers).
        lr: learning rate of the trained factor.

    Raises:
        InputError: an empty set, a set of another model, only one label, a language we have no refusal
            sentence for, or a loss that is not finite (naming the step).
    """
    _check(model, neurons)
    ranks = neurons.per_layer()
    names = [n for layer in ranks for n in _module_names(model, layer)]
    work = _Work(model, names, max(ranks.values()), seed)
    layers = {name: layer for layer in ranks for name in _module_names(model, layer)}
    for name, factor in work.one_hot(neurons.by_layer(), layers):
        factor.requires_grad_(False)
        logger.debug("froze the one-hot factor of %s", name)
    data = _examples(model, prompts.for_step("train"), objective, refusals, compliances, progress)
    losses = work.train(data, steps, lr, batch_size, progress)
    k = sum(ranks.values())
    trained = k * model.d_model * (3 if model.site.gate else 2)
    merged = merge(model, work.modules, neurons.by_layer(), layers)
    about = {**model.provenance(), "data": prompts.for_step("train").hash(), "seed": seed, "versions": versions()}
    return Update(merged, neurons, work.peft_model, trained, losses, seed, {**about, "steps": steps, "lr": lr})


def plain_lora(
    model: Model,
    budget: int,
    prompts: PromptSet,
    *,
    steps: int = 60,
    objective: str = "supervised",
    lr: float = 3e-3,
    batch_size: int = 16,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    seed: int = 0,
    progress: bool = True,
) -> Update:
    """The control: ordinary LoRA on the MLPs with about `budget` trained numbers, otherwise the same training.

    The rank is the largest that fits on all MLP projections; where rank 1 is already too much, as many
    evenly spaced projections as fit get rank 1.
    """
    names = [n for layer in range(model.n_layers) for n in _module_names(model, layer)]
    cost = model.d_model + model.d_mlp
    rank = budget // (cost * len(names))
    if rank < 1:
        count = max(1, round(budget / cost))
        names = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))]
        rank = 1
    work = _Work(model, names, rank, seed)
    data = _examples(model, prompts.for_step("train"), objective, refusals, compliances, progress)
    losses = work.train(data, steps, lr, batch_size, progress)
    about = {**model.provenance(), "data": prompts.for_step("train").hash(), "seed": seed, "steps": steps, "lr": lr}
    return Update(
        merge(model, work.modules, None, {}), None, work.peft_model, cost * len(names) * rank, losses, seed, about
    )


def load_adapter(model: Model, path: str | os.PathLike[str]) -> Model:
    """The base model with a saved adapter merged in (only the chosen rows and columns, if it was masked).

    Raises:
        InputError: no adapter there, or one that does not fit the model.
    """
    from peft import PeftModel

    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: no adapter here (adapter_config.json is missing)")
    try:
        with _quiet():
            peft_model = PeftModel.from_pretrained(_shared_copy(model.module), path)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: the adapter does not fit {model.id!r} ({str(error).splitlines()[0]})") from error
    inner: Any = peft_model.base_model
    wrapped = {n: m for n, m in inner.model.named_modules() if hasattr(m, "lora_A")}
    file = path / "neurons.safetensors"
    members = NeuronSet.load(file).by_layer() if file.exists() else None
    start = len(model.layers_path) + 1
    return merge(model, wrapped, members, {name: int(name[start:].split(".")[0]) for name in wrapped})


def _check(model: Model, neurons: NeuronSet) -> None:
    if not len(neurons):
        raise InputError(
            "masked_update: the neuron set is empty; nothing was proven or selected, so nothing is trained"
        )
    for layer, index in neurons:
        if layer >= model.n_layers or index >= model.d_mlp:
            raise InputError(
                f"masked_update: neuron ({layer}, {index}) does not exist in {model.id!r} "
                f"({model.n_layers} layers x {model.d_mlp}); was the set made for another model?"
            )


def _module_names(model: Model, layer: int) -> list[str]:
    """Full names of a layer's MLP projections: inputs first, the down-projection last."""
    parts = [p for p in (model.site.gate, model.site.up, model.site.down) if p is not None]
    return [f"{model.layers_path}.{layer}.{part}" for part in parts]


# -- training -------------------------------------------------------------------------------------------
@dataclass
class _Example:
    prompt: Prompt
    response: str


class _Work:
    """A PEFT model on a copy of the structure that shares the base weights, and its training loop."""

    def __init__(self, model: Model, names: list[str], rank: int, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        self.model, self.names, self.rank, self.seed = model, names, rank, seed
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=names,
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=type(model.linear(0, model.site.down)).__name__ == "Conv1D",
        )
        with _quiet():
            self.peft_model = get_peft_model(_shared_copy(model.module), config)  # type: ignore[arg-type]
        wrapped: Any = self.peft_model.base_model
        self.modules: dict[str, Any] = {name: wrapped.model.get_submodule(name) for name in names}
        for module in self.modules.values():  # factors in at least float32
            for factor in (module.lora_A["default"].weight, module.lora_B["default"].weight):
                factor.data = factor.data.to(torch.promote_types(factor.dtype, torch.float32))

    def one_hot(self, members: dict[int, list[int]], layers: dict[str, int]) -> Iterator[tuple[str, nn.Parameter]]:
        """Write both factors of every module; yields (name, the one-hot factor)."""
        for name, module in self.modules.items():
            indices = torch.tensor(members[layers[name]])
            down = name.endswith(self.model.site.down)
            hot = module.lora_A["default"].weight if down else module.lora_B["default"].weight
            free = module.lora_B["default"].weight if down else module.lora_A["default"].weight
            with torch.no_grad():
                hot.zero_()
                free.zero_()
                slots = torch.arange(len(indices))
                if down:
                    hot[slots, indices] = 1.0  # [r, d_mlp]: reads neuron i into slot j
                else:
                    hot[indices, slots] = 1.0  # [d_mlp, r]: writes slot j into neuron i
            yield name, hot

    def train(self, data: list[_Example], steps: int, lr: float, batch_size: int, progress: bool) -> list[float]:
        """AdamW on whatever requires a gradient; stops at a loss that is not finite."""
        parameters = [p for p in self.peft_model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda s: 0.1 + 0.45 * (1 + float(np.cos(np.pi * s / max(steps, 1))))
        )
        picks = _deal(data, batch_size, steps, self.seed)
        losses: list[float] = []
        for chosen in tqdm(picks, desc="update", unit="step", disable=not progress, leave=False):
            loss = self._step([data[i] for i in chosen])
            if not np.isfinite(loss):
                raise InputError(f"masked_update: loss is {loss} at step {len(losses)}; lower lr (was {lr:g})")
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(loss)
        return losses

    def _loss(self, batch: Batch) -> Tensor:
        """Left-padded, so answers end each row and logits are needed from the longest one's start only."""
        keep = int(batch.roles["response"].sum(dim=1).max()) + 1
        encoding: dict[str, Any] = dict(batch.encoding)
        if self.model.forward_takes("logits_to_keep"):
            encoding["logits_to_keep"] = keep
        logits = self.peft_model(**encoding).logits[:, -keep:]
        return _response_loss(logits, batch.encoding["input_ids"][:, -keep:], batch.roles["response"][:, -keep:])

    def _step(self, chosen: list[_Example]) -> float:
        """Mean cross-entropy over response tokens; text and picture prompts run as separate forwards."""
        prompts, responses = [e.prompt for e in chosen], [e.response for e in chosen]
        total = 0.0
        for batch in batches(self.model, prompts, batch_size=len(chosen), responses=responses, side="left"):
            loss = self._loss(batch)
            loss = loss * (len(batch.rows) / len(chosen))
            loss.backward()
            total += float(loss.detach())
        return total


def merge(model: Model, wrapped: dict[str, Any], members: dict[int, list[int]] | None, layers: dict[str, int]) -> Model:
    """A plain model with the LoRA updates of `wrapped` modules in its weights.

    With `members` only the chosen rows and columns are written, so that every other weight keeps its bits
    (adding a zero would turn -0.0 into 0.0).
    """
    module = _shared_copy(model.module)
    for name, trained in wrapped.items():
        linear = module.get_submodule(name)
        delta = (trained.lora_B["default"].weight @ trained.lora_A["default"].weight).detach()
        weight = linear.weight.detach().clone()  # type: ignore[union-attr,operator]
        view = weight.T if trained.fan_in_fan_out else weight
        if members is None:
            view += delta.to(view.dtype)
        else:
            own = torch.tensor(members[layers[name]])
            if name.endswith(model.site.down):
                view[:, own] += delta[:, own].to(view.dtype)
            else:
                view[own] += delta[own].to(view.dtype)
        linear.weight = nn.Parameter(weight, requires_grad=False)
    return Model(
        module.eval(), model.processor, model.id, model.revision, model.layers_path, model.site, model.n_layers,
        model.d_mlp, model.d_model, {**model.info, "shielded": True},
    )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' complaint about a name that PEFT still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        yield


def _shared_copy(module: nn.Module) -> nn.Module:
    """The same structure on the same weights: parameters and buffers share storage, modules do not."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = b
    return copy.deepcopy(module, memo)


def _response_loss(logits: Float[Tensor, "batch pos vocab"], ids: Tensor, response: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy of the response tokens, averaged within each row, then over rows."""
    keep = response[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2),
        ids[:, 1:],
        reduction="none",
    )
    return ((nll * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)).mean()


def _examples(
    model: Model,
    prompts: PromptSet,
    objective: str,
    refusals: OpeningsArg,
    compliances: OpeningsArg,
    progress: bool,
) -> list[_Example]:
    """Each prompt with the answer it is to be taught (see `masked_update`)."""
    if objective != "supervised":
        raise InputError(f"objective={objective!r} is unknown; use 'supervised'")
    prompts.require_both_labels("masked_update")
    own = [p for p in prompts if p.label == "benign" and p.target is None]
    texts = generate(model, own, max_new_tokens=24, batch_size=32, progress=progress, desc="retain") if own else []
    kept = dict(zip([p.id for p in own], texts, strict=True))
    out = []
    for p in prompts:
        if p.target is not None:
            response = p.target
        elif p.label == "harmful":
            response = _refusal(p, refusals)
        else:
            response = kept[p.id] or _first(compliances, p.language)
        if response:
            out.append(_Example(p, response))
    for label in ("harmful", "benign"):
        if not any(e.prompt.label == label for e in out):
            raise InputError(
                f"masked_update: no {label} prompt has an answer to teach (the model's own were empty); give 'target's"
            )
    return out


def _refusal(prompt: Prompt, refusals: OpeningsArg) -> str:
    sentence = _first(refusals, prompt.language) or REFUSAL_SENTENCES.get(
        prompt.language, REFUSAL_SENTENCES.get(prompt.language.split("-")[0], "")
    )
    if not sentence:
        raise InputError(
            f"masked_update: no refusal to teach in language {prompt.language!r} (prompt {prompt.id!r}); "
            "give its harmful prompts a 'target', or pass refusals={language: [...]}"
        )
    return sentence


def _first(given: OpeningsArg, language: str) -> str:
    texts = chosen_openings(given, {}, language)
    return texts[0] if texts else ""


def _deal(data: Sequence[_Example], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Rows of every batch: half harmful, half benign; within a label, cells in turn, rows shuffled."""
    rng = np.random.default_rng(seed)

    def endless(label: str) -> Iterator[int]:
        decks: dict[Any, list[int]] = {}
        for i, e in enumerate(data):
            if e.prompt.label == label:
                decks.setdefault(e.prompt.cell, []).append(i)
        hands: dict[Any, list[int]] = {cell: [] for cell in decks}
        while True:
            for cell, deck in decks.items():
                if not hands[cell]:
                    hands[cell] = list(rng.permutation(deck))
                yield int(hands[cell].pop())

    harmful, benign = endless("harmful"), endless("benign")
    half = max(batch_size // 2, 1)
    return [[next(harmful) for _ in range(half)] + [next(benign) for _ in range(half)] for _ in range(steps)]
