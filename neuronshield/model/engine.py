"""Engine: where the expensive loops run, in this process or on a cluster.

The three loops are capturing moments, measuring margins under interventions, and generating answers. Each is cut into **units**.
A unit is data: the name of a function of this package, some prompts, the interventions that they are read under, and plain
options. An engine computes units and gives their results back in order.

    InProcess    one unit after the other, here (the default)
    RayEngine    on the replicas of a Ray cluster (`neuronshield.model.ray_engine`)

How the work is cut depends on the prompts and on `batch_size`, never on the engine. Every engine therefore gives the same numbers,
with one worker, with five, or with none: bit for bit where the devices, the number of threads and the versions are the same.

With a **journal** every finished unit is kept, under a key that hashes all that decides its result: the function, the model
(`neuronshield.model.identity`), all columns of the prompts, the interventions with their values, and the options. A later run with
the same journal reads what is there and computes the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import chain
from typing import Any, Protocol

from torch import Tensor

from ..core.arguments import require
from ..core.errors import InputError
from ..core.journal import Journal, Result
from ..core.progress import bar
from ..core.results import to_json
from ..data.prompts import Prompt
from .identity import identity
from .intervention import Intervention
from .model import Model

__all__ = ["Context", "Engine", "InProcess", "Runner", "Unit", "part_of", "result_of", "shards", "storage"]

FORMAT = "neuronshield.Unit/1"

#: What the functions count, for progress bars.
KINDS = {"margins_of": "run", "answers_of": "answer"}


@dataclass(frozen=True, eq=False)
class Unit:
    """A piece of work, as data.

    >>> Unit("neuronshield.model.units:answers_of", tuple(prompts[:3]), options={"max_new_tokens": 4})
    Unit(answers_of, 3 prompts)

    Attributes:
        work: "module:function" of this package; the function takes (model, unit, context) and returns a `Result`.
        prompts: the rows that it reads.
        conditions: interventions; None for a clean run.
        options: whatever else decides the result, as JSON can hold it.
    """

    work: str
    prompts: tuple[Prompt, ...]
    conditions: tuple[Intervention | None, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What a progress bar counts: "prompt", "run" or "answer"."""
        return KINDS.get(self.work.rpartition(":")[2], "prompt")

    @property
    def size(self) -> int:
        """Prompts times conditions: what a progress bar counts."""
        return len(self.prompts) * max(1, len(self.conditions))

    def key(self, model: str) -> str:
        """The unit's name in a journal.

        >>> unit = Unit("neuronshield.model.units:answers_of", tuple(prompts[:3]))
        >>> unit.key("model a") == unit.key("model b"), len(unit.key("model a"))
        (False, 64)

        Args:
            model: `identity` of the model that does the work.
        """
        rows = [f"{p.content_hash}{p.columns_hash}" for p in self.prompts]
        conditions = [None if c is None else c.digest for c in self.conditions]
        told = [FORMAT, self.work, model, rows, conditions, to_json(self.options)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        under = f" under {len(self.conditions)} conditions" if self.conditions else ""
        return f"Unit({self.work.rpartition(':')[2]}, {len(self.prompts)} prompts{under})"


@dataclass(eq=False)
class Context:
    """What the units of one model share while its weights stay as they are.

    Attributes:
        kept: what a unit may leave for the next one, by name.
        tick: is told of prompts that are done within a unit.
    """

    kept: dict[Any, Any] = field(default_factory=dict)
    tick: Callable[[int], Any] = field(default=lambda _: None)


class Runner(Protocol):
    """An engine that holds a model."""

    def map(
        self, units: Iterable[Unit], *, desc: str = "", progress: bool = False, total: int | None = None
    ) -> Iterator[Result]:
        """Results of units, in their order, as they are asked for.

        Args:
            units: they are drawn a few at a time.
            desc: label of the progress bar.
            progress: show a progress bar.
            total: sum of the units' sizes, where it is known.
        """


class Engine(Protocol):
    """Where units are computed."""

    def with_journal(self, journal: Journal) -> Engine:
        """The engine, reading finished units from a journal and writing them to it.

        Args:
            journal: of finished units.
        """

    def on(self, model: Model) -> Runner:
        """The engine with a model on it. The model's weights must not change while the runner is in use.

        Args:
            model: does the work.
        """


@dataclass(frozen=True)
class InProcess:
    """The engine that computes every unit in this process.

    >>> ns.capture(model, prompts, engine=InProcess(), progress=False)
    Stats(60 tokens [last_prompt], 2 cells, 3 x 29 neurons)

    Args:
        journal: finished units are read from it and written to it; None keeps none.
    """

    journal: Journal | None = None

    def with_journal(self, journal: Journal) -> InProcess:
        return InProcess(journal)

    def on(self, model: Model) -> Runner:
        return _Here(model, self.journal)


@dataclass(eq=False)
class _Here:
    """`InProcess` with a model."""

    model: Model
    journal: Journal | None
    context: Context = field(default_factory=Context)
    name: str = ""

    def map(
        self, units: Iterable[Unit], *, desc: str = "", progress: bool = False, total: int | None = None
    ) -> Iterator[Result]:
        if self.journal is not None and not self.name:
            self.name = identity(self.model)
        source = iter(units)
        first = next(source, None)
        if first is None:
            return
        with bar(total, desc=desc, unit=first.kind, show=progress) as tick:
            for unit in chain([first], source):
                yield self._ticked(unit, tick)

    def _ticked(self, unit: Unit, tick: Callable[[int], Any]) -> Result:
        """The result of a unit, whose size is counted in all, whatever it tells of itself."""
        told = 0

        def count(n: int) -> None:
            nonlocal told
            told += n
            tick(n)

        found = self._result(unit, count)
        if told < unit.size:
            tick(unit.size - told)
        return found

    def _result(self, unit: Unit, tick: Callable[[int], Any]) -> Result:
        if self.journal is None:
            return result_of(self.model, unit, replace(self.context, tick=tick))
        key = unit.key(self.name)
        found = self.journal.get(key)
        if found is None:
            found = result_of(self.model, unit, replace(self.context, tick=tick))
            self.journal.put(key, *found)
        return found


def result_of(model: Model, unit: Unit, context: Context) -> Result:
    """The result of a unit, computed here.

    >>> options = {"max_new_tokens": 3, "batch_size": 4}
    >>> unit = Unit("neuronshield.model.units:answers_of", tuple(prompts[:3]), (None,), options=options)
    >>> arrays, about = result_of(model, unit, Context())
    >>> len(about)
    3

    Args:
        model: does the work.
        unit: the work.
        context: what units of this model share.

    Raises:
        InputError: what the unit's function raises, or it is no function of this package.
    """
    module, _, name = require(unit, Unit, call="result_of(model, unit)", name="unit").work.partition(":")
    if not module.startswith("neuronshield."):
        raise InputError(f"unit {unit.work!r:.80}: the work of a unit is a function of neuronshield")
    found: Result = getattr(import_module(module), name)(model, unit, context)
    return found


def shards(prompts: Sequence[Prompt], batch_size: int, *, batches: int) -> list[list[int]]:
    """Row numbers of each shard: prompts of the same number of pictures and like length, a whole number of batches.

    The batches of the shards are those that `neuronshield.model.encoding.batches` cuts all prompts into.

    >>> [len(rows) for rows in shards(prompts, 7, batches=3)]
    [21, 21, 18]

    Args:
        prompts: the rows.
        batch_size: prompts a batch.
        batches: batches a shard.
    """
    size, out = batch_size * batches, []
    pictures = [len(p.images) for p in prompts]
    for count in sorted(set(pictures)):
        mine = [i for i, n in enumerate(pictures) if n == count]
        mine.sort(key=lambda i: (len(prompts[i].prompt), i))
        out += [mine[start : start + size] for start in range(0, len(mine), size)]
    return out


def storage(value: Tensor) -> tuple[Any, ...]:
    """Where the numbers of a tensor are: equal for two tensors that are one and the same.

    >>> x = torch.zeros(2, 3)
    >>> storage(x) == storage(x.detach()), storage(x) == storage(x[:1])
    (True, False)

    Args:
        value: the tensor.
    """
    return value.data_ptr(), value.shape, value.stride()


def part_of(
    conditions: Sequence[Intervention | None], prompts: Sequence[Prompt], rows: Sequence[int]
) -> list[Intervention | None]:
    """Interventions on some of the prompts that they were made for, with the values of those rows; None for one that touches no row.

    >>> whole = ns.Intervention(neurons, "patch", torch.zeros(60, 3, 29))
    >>> part_of([None, whole], prompts, [4, 7])[1].value.shape
    torch.Size([2, 3, 29])

    Args:
        conditions: for all prompts.
        prompts: all prompts.
        rows: those that are wanted.
    """
    cut: dict[Any, Any] = {}  # conditions share their values: each is cut once
    cells = {prompts[i].cell for i in rows}
    every = list(rows) == list(range(len(prompts)))

    def part(condition: Intervention | None) -> Intervention | None:
        if condition is None or (condition.cells is not None and not cells & set(condition.cells)):
            return None
        if every or not condition.by_prompt:
            return condition
        place = storage(condition.value)
        if place not in cut:
            cut[place] = condition.value[list(rows)]
        return condition.with_value(cut[place])

    return [part(condition) for condition in conditions]
