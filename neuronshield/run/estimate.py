"""What a run would do, and how long it would take: `neuronshield run --plan`. Nothing is written.

How much each step computes follows from the plan and the prompts. How long one piece of it takes is measured on a few prompts of the
run (the probe), and so are the cells in which the model refuses.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..check.evaluation import evaluate
from ..core.neurons import NeuronSet
from ..data.prompts import Cell, Prompt, PromptSet
from ..find.moments import capture
from ..find.overlaps import overlap
from ..model.engine import InProcess
from ..model.forward import margins
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from ..model.units import run_margins
from ..prove.controls import random_like
from ..prove.requirements import Requirement, requirements
from ..shield.update import masked_update
from .job import Opened
from .plan import told_apart
from .work import StepWork, n_candidates, work_of

__all__ = ["Estimate", "estimate"]

PROBED = 48  # prompts of the probe, at most, beside two of every cell and label
ANSWERED = 256  # prompts of the probe that are answered, at most: batches of few prompts say too little of full ones
DRAWN = 96  # control sets of the probe
STEPS = 6  # of training in the probe


@dataclass(frozen=True)
class Estimate:
    """The plan of a run.

    Attributes:
        steps: what each step computes.
        memory: bytes that the run takes, at most, about: what the probe took, and the arrays of the largest step.
        device: where it runs.
        requirements: requests that each claim of `verify` has and needs.
        probe_seconds: that the probe took.
    """

    steps: tuple[StepWork, ...]
    memory: int
    device: str
    requirements: tuple[Requirement, ...]
    probe_seconds: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    def __str__(self) -> str:
        lines = [
            f"{'step':7} {'captured':>9} {'margins':>9} {'answers':>9} {'train steps':>11} {'forwards':>10} {'tokens':>12} {'time':>9} {'disk':>9}"
        ]
        for s in self.steps:
            lines.append(
                f"{s.step:7} {s.captured:>9,} {s.margins:>9,} {s.answers:>9,} {s.training_steps:>11,} {s.forwards:>10,} {s.tokens:>12,} "
                f"{_time(s.seconds):>9} {_size(s.disk):>9}"
            )
        lines.append(
            f"in all about {_time(self.seconds)} on {self.device}, {_size(self.memory)} of memory, "
            f"{_size(sum(s.disk for s in self.steps))} of disk (probe: {_time(self.probe_seconds)})"
        )
        return "\n".join([*lines, "", *map(str, self.requirements)])


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _size(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def estimate(about: Opened) -> Estimate:
    """The plan of a run, with times from a short probe.

    >>> from neuronshield.run.job import open_job
    >>> from neuronshield.run.settings import Settings
    >>> plan = estimate(open_job(model, prompts, Settings(draws=2, steps=2)))
    >>> [step.step for step in plan.steps], plan.seconds > 0
    (['find', 'prove', 'shield', 'check'], True)

    Args:
        about: the model, its prompts and the plan of the run.

    Raises:
        InputError: as the steps themselves.
    """
    start = time.perf_counter()
    probe = _Probe.of(about)
    steps = tuple(
        replace(work, seconds=probe.seconds(work))
        for work in work_of(about, probe.refusing, prompt_tokens=probe.prompt_tokens)
    )
    model = about.model
    device = str(model.device)
    pairs = len(about.prompts.where(split="confirm")) * model.n_layers * model.d_mlp * 4 * 2
    return Estimate(
        steps, memory=_memory() + pairs, device=device, requirements=requirements(about.prompts, graded=about.plan.graded),
        probe_seconds=time.perf_counter() - start,
    )  # fmt: skip


def _memory() -> int:
    """Bytes that this process has taken at most, on the device that it computes on."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# -- how long -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Probe:
    """Seconds that one piece of work takes, measured on a few prompts of the run.

    Attributes:
        capture, margin, training: of one prompt, one margin, one training step.
        answer, again: of the first answer to a prompt, and of its answer under another condition.
        overlap: of the overlap of all cells.
        prompt_tokens: of a prompt, mean.
        refusing: cells in which the model refuses.
    """

    capture: float
    margin: float
    answer: float
    again: float
    training: float
    overlap: float
    prompt_tokens: float
    refusing: tuple[Cell, ...]

    def seconds(self, work: StepWork) -> float:
        """Seconds that a step takes."""
        own = self.overlap if work.step == "find" else 0.0
        answers = work.first * self.answer + (work.answers - work.first) * self.again
        return (
            own
            + work.captured * self.capture
            + work.margins * self.margin
            + answers
            + work.training_steps * self.training
        )

    @classmethod
    def of(cls, about: Opened) -> _Probe:
        """The probe of a run."""
        model = about.model
        rows = _sample(about.prompts.where(split="discover"))
        some = PromptSet(list(rows)[:PROBED])
        k = n_candidates(about)
        start = NeuronSet(
            [(i % model.n_layers, i // model.n_layers) for i in range(k)], n_layers=model.n_layers, d_mlp=model.d_mlp
        )
        tokens = opening_tokens(model, openings_of(model, rows))
        refusing = told_apart(rows, margins(model, rows, [None], tokens=tokens)[0] > 0)
        asked = about.prompts.where(split="test")[:ANSWERED]
        answer, again = _answer_times(about, asked, start)
        return cls(
            capture=_timed(lambda: capture(model, some, progress=False)) / len(some),
            margin=_margin_time(about, start, refusing),
            answer=answer / len(asked),
            again=again / len(asked),
            training=_step_time(about, start),
            overlap=_overlap(about),
            prompt_tokens=float(np.mean([len(model.tokenizer(p.prompt)["input_ids"]) for p in some])),
            refusing=tuple(refusing),
        )  # fmt: skip


def _margin_time(about: Opened, neurons: NeuronSet, cells: Sequence[Cell]) -> float:
    """Seconds of a margin under ablation of a control set, on prompts of the cells that are tested."""
    model, seed = about.model, about.settings.seed
    rows = about.prompts.where(split="confirm")
    some = PromptSet(list(rows.in_cells(cells) if cells else rows)[:64])
    tokens = opening_tokens(model, openings_of(model, some))
    changed = [Intervention(random_like(neurons, model, seed=[seed, i]), "zero") for i in range(DRAWN)]
    runner = InProcess().on(model)
    run_margins(runner, model, some, conditions=changed[:3], tokens=tokens)  # encodes them
    return _timed(lambda: run_margins(runner, model, some, conditions=changed, tokens=tokens)) / (len(some) * DRAWN)


def _answer_times(about: Opened, rows: PromptSet, neurons: NeuronSet) -> tuple[float, float]:
    """Seconds of the evaluation of some prompts once they are encoded: by the model, and then by one that was trained for as many steps
    as the first snapshot."""
    asked = rows.marked("test")

    def once(model: Model, prompts: PromptSet) -> float:
        return _timed(lambda: evaluate(model, prompts, max_new_tokens=about.plan.max_new_tokens, progress=False))

    once(
        about.model, rows.marked("test")
    )  # encodes them; these are other prompts, so that no answer of `asked` is known yet
    first = once(about.model, asked)
    training = about.plan.training
    config = replace(training, steps=min([training.steps, *training.snapshots]), snapshots=(), progress=False)
    taught = _sample(about.prompts.where(split="train"))
    update = masked_update(about.model, neurons, taught, allow_unproven=True, config=config)
    return first, once(update.model, asked)


def _step_time(about: Opened, neurons: NeuronSet) -> float:
    """Seconds of a training step, without what is done once."""
    rows = _sample(about.prompts.where(split="train"))
    config = replace(about.plan.training, snapshots=(), progress=False)

    def train(steps: int) -> float:
        changes = replace(config, steps=steps)
        return _timed(lambda: masked_update(about.model, neurons, rows, allow_unproven=True, config=changes))

    train(1)  # loads what training takes
    return max(0.0, train(STEPS + 1) - train(1)) / STEPS


def _timed(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def _overlap(about: Opened) -> float:
    """Seconds of the overlap of all cells, from a few of them: each cell is selected as often whatever the others."""
    prompts = about.prompts.where(split="discover")
    cells = prompts.cells()
    if len(cells) < 2:
        return 0.0
    few = cells[:3]
    rows = PromptSet([p for c in few for p in list(prompts.in_cells([c]))[:32]])
    stats = capture(about.model, rows, progress=False)
    return _timed(lambda: overlap(stats, method=about.plan.method, **about.plan.size)) * len(cells) / len(few)


def _sample(prompts: PromptSet, each: int = 2) -> PromptSet:
    """A few prompts of every cell and label, and more up to `PROBED`."""
    chosen: dict[tuple[Cell, str], int] = {}
    first: list[Prompt] = []
    more: list[Prompt] = []
    for p in prompts:
        n = chosen.get((p.cell, p.label), 0)
        (first if n < each else more).append(p)
        chosen[p.cell, p.label] = n + 1
    return PromptSet([*first, *more[: max(0, PROBED - len(first))]])
