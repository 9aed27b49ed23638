"""Shield: train the chosen neurons and nothing else, as an ordinary LoRA adapter.

The method has three parts.

**What may change.** A neuron i of a gated MLP owns row i of W_gate, row i of W_up and column i of W_down, 3 d_model numbers.
`masked_update` trains these numbers for the chosen neurons S; every other weight keeps its bits. The same update follows from
training the full matrices with gradients masked outside S:

    W <- W - lr * M_S * Adam(d(loss)/dW)        M_S is 1 on the rows and columns of S and 0 elsewhere

Here it is trained as a LoRA with one factor one-hot and frozen, which equals the masked gradient step for step
(`neuronshield.shield.adapter` has the derivation). Memory grows with the number of neurons, not with the model, and the
saved adapter loads with plain `peft`. Weight decay acts on the trained factor only, that is on the change of the neurons'
weights.

**What is taught.** A batch is half harmful and half benign. With x a prompt, y its answer and p0 the untouched model:

    harmful          - mean_t log p(y_t | x, y_<t)                   y is a refusal in the prompt's language
    benign           retention * mean_t KL(p0(. | x, y_<t) || p(. | x, y_<t))     y is p0's own greedy answer

A benign prompt with a `target` is taught that instead, by cross-entropy, and the weight `retention` does not act on it. If the prompts hold benign ones of languages and
modalities without a harmful one, these are retained too; without them the refusal spreads to everything asked there
(`neuronshield.shield.objective`). `objective="preference"` replaces both terms by DPO (`neuronshield.shield.dpo`).

**What is reported.** `Update.param_fraction` is the share of all parameters that could change, 3 k d_model / n_params for k
neurons. Precise Shield (2026) trains 0.03 %; `budget=` enforces such a limit. `Update.taught` counts the prompts that its steps
taught a refusal, taught their target, or held by KL. `Update.retention` is the weight of the KL term, None where it acted on
nothing.

Two related methods are in `neuronshield.shield.variants`: the row-masked LoRA-B of Precise Shield, and SafeNeuron's, which
freezes the set and trains the rest. The trained baselines (plain LoRA, full fine-tuning) are in
`neuronshield.shield.unmasked`; the training-free ones in `neuronshield.shield.edits`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from ..core.cards import CARD
from ..core.errors import InputError
from ..core.folders import replacing_folder
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..core.repositories import Commit, committed
from ..data.columns import LABELS
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..model.answers import Example, examples
from ..model.families import PARTS
from ..model.model import Model
from .adapter import Adapter, attach, merge, places, rounding, slots
from .adapter_files import NEURONS, write_adapter
from .card import adapter_card
from .descent import Run, restored, snapshot_at
from .dpo import fit_preference
from .objective import Taught
from .serving import pad_to_served_rank
from .stacked import has_experts, on_stacked
from .subject import check_budget, check_subject, present_parts, warn_unproven
from .training import TrainingConfig, TrainingOptions, fit, training_config

__all__ = ["Update", "masked_update"]


logger = logging.getLogger("neuronshield")


@dataclass(frozen=True, eq=False)
class Update:
    """A trained update, and the shielded model.

    >>> update = ns.masked_update(model, neurons, prompts, steps=2, allow_unproven=True, progress=False)
    >>> update.trained, len(update.losses)
    (180, 2)
    >>> update
    Update(gate and up and down weights of the set; 180 numbers, ... of the parameters)

    Attributes:
        model: the shielded model: the base weights with the update merged in. Every weight outside the mask keeps its bits;
            weights that did not change share memory with the base model.
        neurons: the set it was made for; None for a plain LoRA or a full fine-tune.
        peft_model: the adapter on a frozen copy of the base structure; None where there is no adapter.
        trained: how many numbers could change.
        losses: training loss of every step.
        taught: what the steps did with the prompts; None without training.
        provenance: model, data, settings and versions.
        form: what was trained, in words.
        stopped: why training ended early; None if it did not.
        snapshots: makes the model as it was after each step of `snapshots=`; see `at`.
        added: parameters that the shielded model has and the base model lacks (biases of an edit).
    """

    model: Model
    neurons: NeuronSet | None
    peft_model: Any
    trained: int
    losses: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    form: str = ""
    stopped: str | None = None
    taught: Taught | None = None
    snapshots: Mapping[int, Callable[[], Model]] = field(default_factory=dict)
    added: int = 0

    def at(self, step: int) -> Model:
        """The shielded model as it was after some steps.

        >>> update = ns.masked_update(model, neurons, prompts, steps=4, snapshots=[2], allow_unproven=True, progress=False)
        >>> update.at(2)
        Model(...)

        Args:
            step: one of `snapshots=`.

        Raises:
            InputError: a step that was not kept.
        """
        return snapshot_at(self.snapshots, step, call="Update.at")

    @property
    def retention(self) -> float | None:
        """Weight of the KL term; None where no prompt and no text was held by it."""
        value = self.provenance.get("retention")
        return None if value is None else float(value)

    @property
    def param_fraction(self) -> float:
        """Trained numbers / all parameters of the base model."""
        return self.trained / (self.model.n_params - self.added)

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.provenance.get("seed", 0))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The adapter folder, written; `peft.PeftModel.from_pretrained` and `load_adapter` read it.

        >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
        >>> folder = update.save("adapter")
        >>> ns.load_adapter(model, folder)
        Model(...)

        Factors are padded with zeros to the next rank that servers take. Above the largest rank, use `save_merged`; also for a
        mixture of experts, whose adapter is on the stacked tensors (`neuronshield.shield.stacked`).

        Args:
            path: the folder: missing, empty, or one that this method wrote; it is replaced when the new one is complete.

        Raises:
            InputError: there is no adapter, a folder with other files in it, or it cannot be written (nothing is left; an older
                folder stays).
        """
        self._needs_adapter(path)
        return replacing_folder(path, self._write)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> Commit:
        """The commit of the adapter folder, with its card, to a repository of the Hugging Face hub; `ns.load` reads it.

        >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
        >>> update.push_to_hub("me/shield")
        Traceback (most recent call last):
            ...
        neuronshield.core.errors.InputError: Update.push_to_hub('me/shield'): HF_HUB_OFFLINE forbids asking the hub

        Args:
            repo_id: the repository, "user/name"; it is made if it is missing.
            private: whether a repository that is made is private; one that exists stays as it is.
            token: of the hub; None for the one that `hf auth login` or HF_TOKEN gave. It is written nowhere.

        Raises:
            InputError: there is no adapter, or what `neuronshield.core.repositories.committed` refuses.
        """
        self._needs_adapter(repo_id)
        call = "Update.push_to_hub"
        return committed(self._write, repo_id, call=call, message=repr(self), private=private, token=token)

    def _needs_adapter(self, place: object) -> None:
        if self.peft_model is None:
            raise InputError(f"{place}: a {self.form or 'full update'} has no adapter; use save_merged()")

    def _write(self, folder: Path) -> None:
        """Fill an adapter's folder."""
        stacked = has_experts(self.model)
        peft_model = on_stacked(self.model, self.peft_model) if stacked else self.peft_model
        for config in peft_model.peft_config.values():
            config.base_model_name_or_path, config.revision = self.model.id, self.model.revision
        write_adapter(peft_model, folder)
        if not stacked:  # servers take no adapter on stacked experts
            pad_to_served_rank(folder)
        if self.neurons is not None:
            about = {**self.neurons.provenance, "update": self.provenance, "form": self.form}
            shape = {"n_layers": self.model.n_layers, "d_mlp": self.model.d_mlp}
            NeuronSet(self.neurons, provenance=about, **shape).save(folder / NEURONS)  # type: ignore[arg-type]
        (folder / CARD).write_text(adapter_card(self), encoding="utf-8")

    def save_merged(self, path: str | os.PathLike[str]) -> Path:
        """A Hugging Face folder with the whole shielded model and its processor, written; for servers without adapters.

        Args:
            path: the folder, as for `save`.

        Raises:
            InputError: a folder with other files in it, it cannot be written, or the edit cannot be stored in such a folder.
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
        end = f"; stopped early after step {len(self.losses) - 1}" if self.stopped else ""
        return f"Update({self.form}; {self.trained} numbers, {self.param_fraction:.3%} of the parameters{end})"


def masked_update(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    parts: Sequence[str] = PARTS,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    budget: float | None = None,
    allow_unproven: bool = False,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> Update:
    """An update of the rows and columns of `neurons`, exactly, trained on the "train" prompts.

    >>> update = ns.masked_update(model, neurons, prompts, steps=5, allow_unproven=True, progress=False)
    >>> changed = (update.model.down_weight(0) != model.down_weight(0)).any(dim=0)      # [d_mlp]
    >>> changed.nonzero().flatten().tolist()
    [3]

    Args:
        model: the model; it is not changed.
        neurons: the neurons that learn, normally `verify(...).verified`.
        prompts: harmful and benign ones. Those of split "train" are used, all of them if none is so marked. A harmful prompt is
            taught its `target`, else the first of the refusal prefixes, else a refusal sentence in its language.
        parts: which weights of a neuron are trained: some of "gate", "up", "down".
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own without them.
        compliances: compliance prefixes, the same; the first is retained where the model's own answer is empty.
        budget: the largest share of the parameters that may be trained (3e-4 in Precise Shield).
        allow_unproven: do not warn when the set has not passed `verify`.
        config: training settings; the defaults of `TrainingConfig` without them.
        **changes: fields of `TrainingConfig` for this call: `steps=`, `lr=`, `batch_size=`, `retention=`, `objective=`,
            `texts=`, `optimiser=`, `accumulate=`, `gradient_checkpointing=`, `checkpoint=`, `snapshots=`, `seed=`, `progress=`.

    Returns:
        An `Update`. If a loss stops being finite, the last good one, with a warning that names the step.

    Raises:
        InputError: an empty set, a set of another model, one over `budget`, only one label, a language without a refusal
            sentence, a first loss that is not finite, a checkpoint of another run, or an unknown keyword.

    Source: Precise Shield (2026), the masked update; Rafailov et al. (2023) for DPO.
    """
    call = "masked_update"
    settings = training_config(call, config, changes, also=OWN)
    check_subject(f"{call}(model, neurons, prompts)", model, neurons, prompts=prompts)
    trained = present_parts(call, model, parts)
    where = places(model, neurons, trained)
    adapter = attach(model, where, slots(where), hot=True, seed=settings.seed)
    check_budget(call, adapter, len(neurons), budget=budget)
    if not allow_unproven:
        warn_unproven(call, neurons)
    return train_adapter(
        adapter, neurons, prompts, config=settings, refusals=refusals, compliances=compliances,
        form=f"{' and '.join(trained)} weights of the set", facts={"train": call, "parts": list(trained)},
    )  # fmt: skip


OWN = ("parts", "refusals", "compliances", "budget", "allow_unproven", "config")


# -- shared by all trainers -------------------------------------------------------------------------------
def taught(
    model: Model, rows: PromptSet, *, config: TrainingConfig, refusals: OpeningsArg, compliances: OpeningsArg
) -> list[Example]:
    """Every prompt with the answer it is taught or retained with; prefixes that are not given are the model's."""
    return examples(
        model, rows, texts=config.texts, progress=config.progress,
        refusals=model.prefixes.refusals if refusals is None else refusals,
        compliances=model.prefixes.compliances if compliances is None else compliances,
    )  # fmt: skip


def about_run(model: Model, rows: PromptSet, *, config: TrainingConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a training run; a checkpoint is of the same run if all of it agrees."""
    names = ("seed", "steps", "lr", "batch_size", "retention", "objective")
    trained_on: dict[str, dict[str, int]] = {}
    for prompt in rows:
        trained_on.setdefault(str(prompt.cell), dict.fromkeys(LABELS, 0))[prompt.label] += 1
    return provenance(model, rows, **{name: getattr(config, name) for name in names}, trained_on=trained_on, **facts)


def train_adapter(
    adapter: Adapter,
    neurons: NeuronSet | None,
    prompts: PromptSet,
    *,
    config: TrainingConfig,
    refusals: OpeningsArg,
    compliances: OpeningsArg,
    form: str,
    facts: dict[str, Any],
    held: AbstractContextManager[Any] | None = None,
) -> Update:
    """The update that training an adapter gives, merged into a model of its own.

    Args:
        adapter: what is trained.
        neurons: the set it belongs to, if any.
        prompts: those of split "train" are used.
        config: the settings.
        refusals, compliances: prefixes; None for the model's.
        form: what is trained, in words.
        facts: more of its provenance.
        held: entered for every forward of the trained model.
    """
    model, rows = adapter.model, prompts.for_step("train")
    data = taught(model, rows, config=config, refusals=refusals, compliances=compliances)
    if neurons is not None:
        facts = {**facts, "neurons": hashlib.sha256(str(list(neurons)).encode()).hexdigest()[:16]}
    about = about_run(model, rows, config=config, facts=facts)
    if config.objective == "preference":
        given = model.prefixes.refusals if refusals is None else refusals
        run = fit_preference(adapter, data, config=config, refusals=given)
    else:
        run = fit(
            model, adapter.peft_model, parameters=adapter.parameters(), data=data, config=config, about=about, held=held
        )
    about = {**about, **rounding(about["train"], adapter)}

    def at(values: Sequence[Tensor]) -> Model:
        with restored(adapter.parameters(), values):
            return merge(model, adapter.modules(), adapter.places)

    return finished(
        merge(model, adapter.modules(), adapter.places), run, at=at, trained=adapter.trained, neurons=neurons,
        peft_model=adapter.peft_model, about=about, form=form,
    )  # fmt: skip


def finished(
    merged: Model,
    run: Run,
    *,
    at: Callable[[Sequence[Tensor]], Model],
    trained: int,
    about: dict[str, Any],
    form: str,
    neurons: NeuronSet | None = None,
    peft_model: Any = None,
) -> Update:
    """The `Update` of a finished run; a run that stopped early warns.

    Args:
        merged: the shielded model.
        run: the course of the training.
        at: makes a model from other values of the trained numbers.
        trained: how many numbers could change.
        about: provenance of the run; its `retention` becomes None where the KL term acted on nothing.
        form: what was trained, in words.
        neurons: the set it was made for.
        peft_model: the adapter.
    """
    if not run.taught.by_kl:
        about = {**about, "retention": None}
    if run.stopped:
        warnings.warn(f"{about['train']}: {run.stopped}; the last good adapter was kept", stacklevel=4)
        about = {**about, "stopped": run.stopped}
    return Update(
        merged, neurons, peft_model, trained=trained, losses=tuple(run.losses), provenance=about, form=form,
        stopped=run.stopped, taught=run.taught,
        snapshots={step: partial(at, values) for step, values in run.kept.items()},
    )  # fmt: skip
