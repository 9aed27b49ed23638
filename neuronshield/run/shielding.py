"""Step shield: the masked update, its controls and baselines, each a unit that is finished or begun again.

adapter/, controls/<name>/      the trained conditions
shield/<name>.json              what was trained; written last, so that it marks a finished condition
shield/curves/<name>/<n>.json   answers to the test prompts of the compared cells after n steps
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.neurons import NeuronSet
from ..core.results import from_json, load_json, save_json
from ..data.prompts import PromptSet
from ..model.model import Model
from ..prove.controls import random_like
from ..shield.edits import clamp_edit, low_rank_edit
from ..shield.loading import load_adapter
from ..shield.objective import Taught
from ..shield.training import TrainingConfig
from ..shield.unmasked import plain_lora
from ..shield.update import Update, masked_update
from .comparison import compared_cells
from .conditions import BASE, CLAMP, LORA, LOW_RANK, SHIELD, random_mask
from .job import Job, load_neurons
from .sections import ShieldSection, Trained

__all__ = ["adapter_folder", "curve_files", "file_name", "model_of", "shield", "trained_neurons"]

FORMAT = "neuronshield.condition/1"


def shield(job: Job) -> None:
    """Train the verified neurons (the candidates if none was verified) and every baseline.

    Args:
        job: its folder gets the adapters.
    """
    neurons, rows = trained_neurons(job), job.about.taught
    config = replace(job.plan.training, seed=job.seed, progress=job.progress)
    made = {name: _made(job, name, make) for name, make in _conditions(job, neurons, rows, config=config).items()}
    main = made[SHIELD]
    section = ShieldSection(
        neurons=len(neurons),
        proven="verified_on" in neurons.provenance,
        train_cells=tuple(map(str, rows.cells())),
        taught=tuple(map(str, job.plan.taught)),
        prompts=main.taught or Taught(),
        steps=config.steps,
        lr=config.lr,
        retention=main.retention,
        conditions={name: unit.trained for name, unit in made.items()},
    )
    job.put("shield", section)


def _conditions(
    job: Job, neurons: NeuronSet, rows: PromptSet, *, config: TrainingConfig
) -> dict[str, Callable[[Path], Update]]:
    """How each condition is made, in order, with the checkpoint of its training."""

    def masked(mask: NeuronSet) -> Callable[[Path], Update]:
        return lambda to: masked_update(
            job.model, mask, rows, allow_unproven=True, config=replace(config, checkpoint=to)
        )

    masks = {
        random_mask(i + 1): masked(random_like(neurons, job.model, seed=[job.seed, i]))
        for i in range(job.plan.random_masks)
    }

    def lora(to: Path) -> Update:
        return plain_lora(job.model, _unit(job, SHIELD).trained.trained, rows, config=replace(config, checkpoint=to))

    return {
        SHIELD: masked(neurons), **masks, LORA: lora, CLAMP: lambda _: clamp_edit(job.model, neurons, rows),
        LOW_RANK: lambda _: low_rank_edit(job.model, neurons, rows),
    }  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """What is kept of a finished condition.

    Attributes:
        trained: its row in the results.
        retention: weight of the KL term; None where it acted on nothing.
        taught: what its steps did with the prompts; None without training.
    """

    trained: Trained
    retention: float | None
    taught: Taught | None


def _made(job: Job, name: str, make: Callable[[Path], Update]) -> Unit:
    """A condition: read back if it is finished, else trained, saved and evaluated along the way."""
    if not _unit_file(job, name).exists():
        started = _unit_file(job, name).with_suffix(".safetensors")
        job.folder.own(started.relative_to(job.out).as_posix(), step="shield")
        update = make(started)
        if update.peft_model is not None:
            folder = adapter_folder(job, name)
            job.folder.own(f"{folder.relative_to(job.out).as_posix()}/", step="shield")
            update.save(folder)
        _follow(job, name, update)
        trained = Trained(
            form=update.form, trained=update.trained, param_fraction=update.param_fraction, losses=update.losses,
            stopped=update.stopped,
        )  # fmt: skip
        job.folder.own(_unit_file(job, name).relative_to(job.out).as_posix(), step="shield")
        started.unlink(missing_ok=True)
        save_json(_unit_file(job, name), FORMAT, {"unit": Unit(trained, update.retention, update.taught)})
    return _unit(job, name)


def _unit_file(job: Job, name: str) -> Path:
    return job.out / "shield" / f"{file_name(name)}.json"


def _unit(job: Job, name: str) -> Unit:
    return from_json(Unit, load_json(_unit_file(job, name), FORMAT).get("unit"))


def _follow(job: Job, name: str, update: Update) -> None:
    """Evaluate a condition after each step that was kept, on the cells that conditions are compared on."""
    test = job.prompts.for_step("test")
    test = test.in_cells(compared_cells(test.cells(), set(job.about.taught.cells())))
    for step in sorted(update.snapshots):
        if step < len(update.losses):
            file = f"shield/curves/{file_name(name)}/{step}.json"
            job.evaluated(partial(update.at, step), f"{name}, {step} steps", file, step="shield", prompts=test)


def curve_files(out: Path, name: str) -> dict[int, Path]:
    """The evaluations of a condition before the end of its training, by step.

    Args:
        out: the run folder.
        name: of the condition.
    """
    return {int(f.stem): f for f in (out / "shield" / "curves" / file_name(name)).glob("[0-9]*.json")}


def trained_neurons(job: Job) -> NeuronSet:
    """The neurons that are trained: the verified ones, or the candidates if there are none. Both know the verdict.

    Args:
        job: the run.
    """
    verified = load_neurons(job, "verified")
    if len(verified):
        return verified
    found = load_neurons(job, "candidates")
    return NeuronSet(found, n_layers=found.n_layers, d_mlp=found.d_mlp, provenance=verified.provenance)


def adapter_folder(job: Job, name: str) -> Path:
    """The folder of a condition's adapter.

    Args:
        job: the run.
        name: of the condition.
    """
    return job.out / "adapter" if name == SHIELD else job.out / "controls" / file_name(name)


def file_name(name: str) -> str:
    """The name of a condition as a file has it.

    >>> file_name("clamp, no training")
    'clamp-no-training'

    Args:
        name: of the condition.
    """
    return name.replace(",", "").replace(" ", "-")


def model_of(job: Job, name: str) -> Model:
    """The model of a condition, read back from its folder, so that it is the same in a run that was interrupted.

    Args:
        job: the run.
        name: of the condition.
    """
    if name == BASE:
        return job.model
    if name == CLAMP:
        return clamp_edit(job.model, trained_neurons(job), job.about.taught).model
    return load_adapter(job.model, adapter_folder(job, name))
