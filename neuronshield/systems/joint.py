"""Preference training of a system: the chosen neurons of one or several nodes, and nothing else.

What may change is what `masked_update` changes: for each trained node the rows and columns of its chosen neurons, as a LoRA with one
factor one-hot (`neuronshield.shield.adapter`). All trained nodes learn together from one loss (`neuronshield.systems.losses`), so
a step is one step of the whole system. Nodes that have the same `Model` share one adapter, and its gradient is the sum over them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor, nn

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..core.folders import replacing_folder
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..data.languages import OpeningsArg
from ..data.prompts import PromptSet
from ..model.answers import Example
from ..model.families import PARTS
from ..model.model import Model
from ..model.running import recording
from ..shield.adapter import Adapter, attach, merge, places, rounding, slots
from ..shield.descent import Run, descend, restored, snapshot_at
from ..shield.dpo import BETA
from ..shield.objective import deal, taught_in
from ..shield.subject import check_subject, present_parts, warn_unproven
from ..shield.training import TrainingConfig, TrainingOptions, checkpointing, training_config
from ..shield.update import Update, finished
from .losses import Trained, candidates, given_loss, sampled_loss
from .preferences import Preference, checked, hash_of, preferences
from .system import System

__all__ = ["SystemUpdate", "system_update"]

CALL = "system_update(system, neurons, prompts)"
OWN = ("candidates", "parts", "refusals", "allow_unproven", "config")


@dataclass(frozen=True, eq=False)
class SystemUpdate:
    """A trained system.

    Attributes:
        system: the system with the updates merged in.
        base: the system as it was.
        updates: the update of every trained node, by name; nodes that share a model have the same one.
        losses: of every step.
        provenance: the system, data, settings and versions.
        stopped: why training ended early; None if it did not.
        snapshots: makes the system as it was after each step of `snapshots=`; see `at`.
    """

    system: System
    base: System
    updates: Mapping[str, Update]
    losses: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    snapshots: Mapping[int, Callable[[], System]] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """How many numbers could change, in all models."""
        return sum(update.trained for update in {id(u): u for u in self.updates.values()}.values())

    @property
    def param_fraction(self) -> float:
        """Trained numbers / parameters of all models."""
        return self.trained / sum(model.n_params for model in self.base.models)

    def at(self, step: int) -> System:
        """The system as it was after some steps.

        Args:
            step: one of `snapshots=`.

        Raises:
            InputError: a step that was not kept.
        """
        return snapshot_at(self.snapshots, step, call="SystemUpdate.at")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """The folder that the nodes and an adapter for each trained model are written to; `System.load` reads it.

        >>> system = ns.System([ns.Node("answer", model)])
        >>> update = ns.system_update(system, {"answer": neurons}, prompts, steps=1, allow_unproven=True, progress=False)
        >>> ns.System.load(update.save("system"), model)
        System(answer; 1 model)

        An adapter is a folder of its own in it, which PEFT reads.

        Args:
            path: the folder: missing, empty, or one that this method or `System.save` wrote.

        Raises:
            InputError: a folder with other files in it, or it cannot be written (nothing is left; an older folder stays).
        """

        def write(folder: Path) -> None:
            names: dict[int, str] = {}
            for node, update in self.updates.items():
                if id(update) not in names:
                    names[id(update)] = f"adapter-{node}"
                    update.save(folder / names[id(update)])
            adapters = {node: names[id(update)] for node, update in self.updates.items()}
            self.base.write(folder, adapters=adapters, provenance=self.provenance)

        return replacing_folder(path, write)

    def __repr__(self) -> str:
        end = f"; stopped early after step {len(self.losses) - 1}" if self.stopped else ""
        return (
            f"SystemUpdate({' and '.join(self.updates)} of {' -> '.join(self.base.nodes)}; {self.trained} numbers, "
            f"{self.param_fraction:.3%} of the parameters{end})"
        )


def system_update(
    system: System,
    neurons: Mapping[str, NeuronSet],
    prompts: PromptSet | Sequence[Preference],
    *,
    candidates: int = 0,
    parts: Sequence[str] = PARTS,
    refusals: OpeningsArg = None,
    allow_unproven: bool = False,
    config: TrainingConfig | None = None,
    **changes: Unpack[TrainingOptions],
) -> SystemUpdate:
    """An update of the neurons of some nodes, trained on preferences between outcomes of the whole system.

    >>> system = ns.System([ns.Node("describe", model, max_new_tokens=2), ns.Node("answer", model.replace(), "how {describe}")])
    >>> sets = {"describe": neurons, "answer": neurons}
    >>> ns.system_update(system, sets, prompts, candidates=2, steps=1, batch_size=4, allow_unproven=True, progress=False)
    SystemUpdate(describe and answer of describe -> answer; 360 numbers, ... of the parameters)

    Args:
        system: the system; it is not changed.
        neurons: the set that learns, for each trained node, by name. The other nodes stay as they are. Nodes that have the same
            `Model` share the update, and then need the same set; one that is named alone is trained apart from the others.
        prompts: harmful and benign ones, of which `ns.systems.preferences` makes preferences; those of split "train" are used, all of
            them if none is so marked. Or preferences.
        candidates: 0: the outputs of all nodes are as the preferences give them. n: only the answers are; the outputs of the other
            nodes are summed over up to n, found at every step (see `neuronshield.systems.losses`).
        parts: which weights of a neuron are trained: some of "gate", "up", "down".
        refusals: refusal prefixes; the refusal of a prompt without a `target` is the first of them.
        allow_unproven: do not warn when a set has not passed `verify`.
        config: training settings; the defaults of `TrainingConfig` without them.
        **changes: fields of `TrainingConfig` for this call. `objective` is "preference"; `retention` and `texts` have no use.

    Returns:
        A `SystemUpdate`. If a loss stops being finite, the last good one, with a warning that names the step.

    Raises:
        InputError: no such node, an empty set or one of another model, two sets for one model, only one label, a trained node whose
            output no preference judges, a first loss that is not finite, or a setting without a use.

    Source: SysDPO (Wang et al., 2025), with the update confined to chosen neurons.
    """
    require(system, System, call=CALL, name="system", hint="make one with ns.System([...])")
    asked: dict[str, Any] = {"objective": "preference", **changes}
    settings = training_config("system_update", config, asked, objectives=("preference",), also=OWN)
    at_least(0, "system_update", candidates=candidates)
    if settings.texts:
        raise InputError("texts= has no use with system_update; leave it out")
    groups = _groups(system, neurons)
    data = _data(system, prompts, refusals=refusals, config=settings)
    if not candidates:
        _check_judged(system, groups, data)
    if not allow_unproven:
        for names, one in groups:
            warn_unproven(f"system_update: node {names[0]!r}", one)
    adapters = [_adapter(system, names, one, parts=parts, seed=settings.seed) for names, one in groups]
    trained = _in_training(system, groups, adapters)
    about = _about(system, data, neurons=neurons, config=settings, candidates=candidates, parts=parts)
    run = _fit(trained, adapters, data, candidates=candidates, config=settings, about=about)
    return _result(system, groups, adapters, run=run, about=about)


def _groups(system: System, neurons: Mapping[str, NeuronSet]) -> list[tuple[list[str], NeuronSet]]:
    """The trained nodes that share a model, with their set."""
    hint = "neurons by the name of a node, such as {'answer': proof.verified}"
    require(neurons, Mapping, call=CALL, name="neurons", hint=hint)
    if not neurons:
        raise InputError(f"system_update: neurons names no node; pass {hint}")
    found: dict[int, tuple[list[str], NeuronSet]] = {}
    for name, one in neurons.items():
        if name not in system.nodes:
            raise InputError(f"system_update: no node {name!r:.60}; there are {', '.join(system.nodes)}")
        node = system.nodes[name]
        names, other = found.setdefault(id(node.model), ([], one))
        if names and set(other) != set(one):
            raise InputError(
                f"system_update: nodes {names[0]!r} and {name!r} have one model but two sets; give both the same, or give each node "
                "a model of its own, as in model.replace()"
            )
        names.append(name)
    return list(found.values())


def _data(
    system: System, prompts: PromptSet | Sequence[Preference], *, refusals: OpeningsArg, config: TrainingConfig
) -> list[Preference]:
    """The preferences to train on."""
    if not isinstance(prompts, PromptSet):
        return checked(system, prompts, call=CALL)
    rows = prompts.for_step("train")
    rows.require_both_labels("system_update")
    made = preferences(system, rows, refusals=refusals, progress=config.progress)
    for label in ("harmful", "benign"):
        if not any(one.prompt.label == label for one in made):
            raise InputError(
                f"system_update: the system gives the preferred answer to every {label} prompt, or none; there is nothing to prefer"
            )
    return made


def _check_judged(system: System, groups: Sequence[tuple[list[str], NeuronSet]], data: Sequence[Preference]) -> None:
    """Raise if a trained node reads and writes the same in both outcomes of every preference: its gradient is zero."""
    for name in (name for names, _ in groups for name in names):
        read = [*system.parents[name], name]
        if all(p.preferred.outputs[n] == p.rejected.outputs[n] for p in data for n in read):
            raise InputError(
                f"system_update: the output of node {name!r} is the same in both outcomes of every preference, so it would not "
                "learn; pass candidates=4, or preferences that differ there"
            )


def _adapter(system: System, names: Sequence[str], neurons: NeuronSet, *, parts: Sequence[str], seed: int) -> Adapter:
    model = system.nodes[names[0]].model
    check_subject(CALL, model, neurons, prompts=PromptSet([]))
    where = places(model, neurons, present_parts("system_update", model, parts))
    return attach(model, where, slots(where), hot=True, seed=seed)


def _in_training(system: System, groups: Sequence[tuple[list[str], NeuronSet]], adapters: Sequence[Adapter]) -> Trained:
    """The system with every trained node's model run through its adapter."""
    modules, models = {}, {}
    for (names, _), adapter in zip(groups, adapters, strict=True):
        running = adapter.model.replace(module=adapter.peft_model.get_base_model())
        for name in names:
            modules[name], models[name] = adapter.peft_model, running
    return Trained(system, modules, system.with_models(models))


def _about(
    system: System,
    data: Sequence[Preference],
    *,
    neurons: Mapping[str, NeuronSet],
    config: TrainingConfig,
    **facts: Any,
) -> dict[str, Any]:
    """Provenance; a checkpoint is of the same run if all of it agrees."""
    names = ("seed", "steps", "lr", "batch_size", "objective")
    sets = {name: hashlib.sha256(str(list(one)).encode()).hexdigest()[:16] for name, one in neurons.items()}
    return provenance(
        system, PromptSet(p.prompt for p in data), seen=[p.prompt for p in data], train="system_update", beta=BETA, neurons=sets,
        preferences=len(data), taught=hash_of(data), **{n: getattr(config, n) for n in names}, **{**facts, "parts": list(facts["parts"])},
    )  # fmt: skip


def _fit(
    trained: Trained,
    adapters: Sequence[Adapter],
    data: Sequence[Preference],
    *,
    candidates: int,
    config: TrainingConfig,
    about: Mapping[str, Any],
) -> Run:
    """The course of the training of all adapters together."""
    rows = [Example(p.prompt, p.preferred.answer) for p in data]
    picks = deal(rows, config.batch_size, steps=config.steps, seed=config.seed)
    parameters = [p for adapter in adapters for p in adapter.parameters()]

    def backward(chosen: Sequence[int]) -> float:
        total = 0.0
        for part in np.array_split(np.array(chosen), config.accumulate):
            if len(part):
                loss = _loss(trained, [data[i] for i in part], n=candidates) * (len(part) / len(chosen))
                loss.backward()
                total += float(loss.detach())
        return total

    with ExitStack() as stack:
        stack.enter_context(recording("training"))
        for adapter in adapters:
            stack.enter_context(checkpointing(adapter.model, adapter.peft_model, config.gradient_checkpointing))
        run = descend(parameters, picks, backward, config=config, about=about)
    run.taught = taught_in(rows, picks[: len(run.losses)], preference=True)
    return run


def _loss(trained: Trained, chosen: Sequence[Preference], *, n: int) -> Tensor:
    if not n:
        return given_loss(trained, chosen)
    return sampled_loss(trained, chosen, candidates(trained.now, [p.prompt for p in chosen], n=n))


def _result(
    system: System,
    groups: Sequence[tuple[list[str], NeuronSet]],
    adapters: Sequence[Adapter],
    *,
    run: Run,
    about: dict[str, Any],
) -> SystemUpdate:
    """The trained system, with an update of each model."""
    updates: dict[str, Update] = {}
    cuts = [0, *accumulate(len(adapter.parameters()) for adapter in adapters)]
    for i, ((names, neurons), adapter) in enumerate(zip(groups, adapters, strict=True)):
        own = replace(run, stopped=None, kept={step: kept[cuts[i] : cuts[i + 1]] for step, kept in run.kept.items()})
        told = {
            **adapter.model.provenance(),
            **{k: v for k, v in about.items() if k not in ("model", "revision", "fingerprint", "nodes", "seen")},
        }
        told |= {"nodes": names, "system": about["fingerprint"], **rounding("system_update", adapter)}
        update = finished(
            merge(adapter.model, adapter.modules(), adapter.places), own, at=partial(_merged_at, adapter), trained=adapter.trained,
            about=told, form=f"{' and '.join(about['parts'])} weights of the set, as {' and '.join(names)} of a system",
            neurons=neurons, peft_model=adapter.peft_model,
        )  # fmt: skip
        updates |= dict.fromkeys(names, update)
    if run.stopped:
        warnings.warn(f"system_update: {run.stopped}; the last good adapters were kept", stacklevel=3)
        about = {**about, "stopped": run.stopped}

    def at(step: int) -> System:
        made = {id(update): update.at(step) for update in updates.values()}
        return system.with_models({name: made[id(update)] for name, update in updates.items()})

    return SystemUpdate(
        system.with_models({name: update.model for name, update in updates.items()}), system, updates, losses=tuple(run.losses),
        provenance=about, stopped=run.stopped, snapshots={step: partial(at, step) for step in run.kept},
    )  # fmt: skip


def _merged_at(adapter: Adapter, values: Sequence[Tensor]) -> Model:
    """The adapter's model with other values of its trained numbers."""
    parameters: list[nn.Parameter] = adapter.parameters()
    with restored(parameters, values):
        return merge(adapter.model, adapter.modules(), adapter.places)
