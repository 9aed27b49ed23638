"""The engine that computes units on a Ray cluster.

Ray is imported when a `RayEngine` is first used: `pip install neuronshield[scale]`. The engine joins the cluster that is running, or
starts one on this machine, which it ends again. Its actors are `Replica`s, each with a copy of the model, one at a time.

A replica computes one unit at a time. A few units more than there are replicas are under way at once, so the driver's memory does not
grow with the number of units. Results come back in the order of the units. A replica that dies is replaced and its unit is computed
again, at most `TRIES` times in all. With a journal only the driver writes, and a driver that was killed goes on where it stopped.

Ray moves objects between its own processes with its own serialisation. Use a cluster whose other users you trust.
"""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from types import TracebackType
from typing import Any

import torch

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..core.journal import Journal, Result
from ..core.progress import bar
from .engine import Runner, Unit
from .identity import digests, identity
from .model import Model
from .replica import Replica, packed, spec_of, weights_of

__all__ = ["RayEngine", "shared"]

logger = logging.getLogger("neuronshield")

TRIES = 3  # of a unit whose replica dies
PATIENCE = 30.0  # seconds until it is said that a replica has no model yet
AHEAD = 3  # units under way or waiting to be given back, for each replica
STORE = 2**29  # bytes of the object store of a cluster that is started here


class RayEngine:
    """Replicas of a model on a Ray cluster.

    >>> with RayEngine("local", replicas=2) as engine:                             # doctest: +SKIP
    ...     stats = ns.capture(model, prompts, engine=engine)

    Args:
        address: "auto" for the cluster that is running, such as "10.0.0.1:6379" or "ray://10.0.0.1:10001" for one by its address,
            "local" for a new one on this machine; None for the one that this process is in or that RAY_ADDRESS names, else a
            new one.
        replicas: copies of the model; None for as many as the cluster's GPUs carry, without GPUs its CPUs.
        gpus_per_replica: GPUs of a copy, which share its layers if there are several; part of one, such as 0.5, to put two copies on
            a GPU. None for 1 where the cluster has GPUs, else 0.
        journal: finished units are read from it and written to it; None keeps none.

    Raises:
        InputError: a wrong argument, Ray is not installed, no cluster, or one that is too small.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        replicas: int | None = None,
        gpus_per_replica: float | None = None,
        journal: Journal | None = None,
    ) -> None:
        require(address, (str, type(None)), call="RayEngine(address)", name="address")
        require(
            journal, (Journal, type(None)), call="RayEngine(journal=)", name="journal", hint="Journal(folder) makes one"
        )
        if replicas is not None:
            at_least(1, "RayEngine", replicas=replicas)
        gpus = gpus_per_replica
        require(gpus, (int, float, type(None)), call="RayEngine(gpus_per_replica=)", name="gpus_per_replica")
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
            raise InputError(f"RayEngine: gpus_per_replica={gpus!r}: must be a whole number, or a part of 1")
        self.journal = journal
        self.pool = _pool(address, replicas, gpus)

    def with_journal(self, journal: Journal) -> RayEngine:
        """The engine with the same replicas, reading finished units from a journal and writing them to it."""
        out = copy.copy(self)
        out.journal = journal
        return out

    def on(self, model: Model) -> Runner:
        return _There(self.pool, self.journal, model)

    def close(self) -> None:
        """End the replicas, and the cluster if it was started here."""
        self.pool.close()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RayEngine({self.pool.replicas} replicas, {self.pool.gpus:g} GPUs each)"


@dataclass(eq=False)
class _Pool:
    """The replicas of one engine.

    Attributes:
        ray: the package.
        ours: whether the cluster was started here.
        threads, gpus: of a replica.
        replicas: how many there are to be.
        actors: those that run.
        holder: the runner whose model they have.
    """

    ray: Any
    ours: bool
    threads: int
    gpus: float
    replicas: int
    actors: list[Any] = field(default_factory=list)
    holder: Any = None

    def start(self) -> Any:
        """A new replica, without a model."""
        options = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_restarts": 0}
        return self.ray.remote(Replica).options(**options).remote(threads=self.threads)

    def all(self) -> list[Any]:
        """The replicas, started on first use."""
        self.actors += [self.start() for _ in range(self.replicas - len(self.actors))]
        return self.actors

    def why_waiting(self) -> str:
        """What is said when a replica takes long: it may load, or the cluster may have no room for it."""
        have, free = self.ray.cluster_resources(), self.ray.available_resources()
        room = ", ".join(f"{free.get(kind, 0):g} of {have[kind]:g} {kind}s" for kind in ("GPU", "CPU") if kind in have)
        return (
            f"waiting for a replica that takes {self.gpus:g} GPUs and {self.threads} CPUs: it loads its model, or it has no room "
            f"(free: {room}); close other engines of this process, or lower replicas= or gpus_per_replica="
        )

    def end(self, actor: Any) -> None:
        """End a replica."""
        with suppress(Exception):  # it may be dead already
            self.ray.kill(actor)
        self.actors = [a for a in self.actors if a is not actor]

    def close(self) -> None:
        for actor in self.actors:
            self.end(actor)
        if self.ours:
            self.ray.shutdown()
            self.ours = False


def _pool(address: str | None, replicas: int | None, gpus: float | None) -> _Pool:
    """The replicas that a cluster has room for; none is started yet."""
    ray, ours = _joined(address)
    have = ray.cluster_resources()
    cpus, cards = int(have.get("CPU", 1)), have.get("GPU", 0)
    gpus = gpus if gpus is not None else min(1, cards)
    threads = max(1, min(torch.get_num_threads(), cpus // (replicas or 1))) if not gpus else 1
    if replicas is None:
        replicas = max(1, int(cards / gpus if gpus else cpus // threads))
    if gpus * replicas > cards:
        said = f"{replicas} replicas of {gpus:g} GPUs need {gpus * replicas:g}, and the cluster has {cards:g}"
    elif not gpus and replicas > cpus:
        said = f"{replicas} replicas need a CPU each, and the cluster has {cpus}"
    else:
        return _Pool(ray, ours, threads=threads, gpus=gpus, replicas=replicas)
    if ours:
        ray.shutdown()
    raise InputError(f"RayEngine: {said}; lower replicas= or gpus_per_replica=")


_SHARED: list[RayEngine] = []


def shared() -> RayEngine:
    """The engine that "ray" stands for: one a process, so that the model stays where it is from call to call."""
    if not _SHARED or not _SHARED[0].pool.ray.is_initialized():
        _SHARED[:] = [RayEngine()]
    return _SHARED[0]


def _joined(address: str | None) -> tuple[Any, bool]:
    """Ray, and whether its cluster was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    try:
        import ray
    except ImportError:
        raise InputError("engine='ray' needs Ray; pip install neuronshield[scale]") from None
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    new = address == "local" or (address is None and not os.environ.get("RAY_ADDRESS"))
    if new:
        options |= {"num_cpus": os.cpu_count(), "object_store_memory": STORE, "include_dashboard": False}
    main = threading.current_thread() is threading.main_thread()
    kept = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address="local" if new else address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"RayEngine({address!r}): no cluster there ({said}); start one with 'ray start --head'"
        ) from None
    finally:
        for which, handler in kept.items():  # Ray puts a handler of its own there
            if main and handler is not None:
                signal.signal(which, handler)
    return ray, new


@dataclass(eq=False)
class _Task:
    """A unit under way."""

    unit: Unit
    key: str
    result: Result | None = None
    tries: int = 0


@dataclass(eq=False)
class _There:
    """`RayEngine` with a model."""

    pool: _Pool
    journal: Journal | None
    model: Model
    name: str = ""
    busy: dict[Any, tuple[Any, _Task]] = field(default_factory=dict)  # {reference of a result: (actor, task)}

    def map(
        self, units: Iterable[Unit], *, desc: str = "", progress: bool = False, total: int | None = None
    ) -> Iterator[Result]:
        self._bind_all()
        source, tasks = iter(units), deque[_Task]()
        first = next(source, None)
        if first is None:
            return
        source = chain([first], source)
        with bar(total, desc=desc, unit=first.kind, show=progress) as tick:
            try:
                while self._fill(tasks, source):
                    self._give(tasks)
                    if tasks[0].result is None:
                        self._wait()
                        continue
                    done = tasks.popleft()
                    tick(done.unit.size)
                    yield done.result  # type: ignore[misc]
            finally:
                self._forget()

    def _fill(self, tasks: deque[_Task], source: Iterator[Unit]) -> bool:
        """Draw units until as many are under way as may be; whether there is one."""
        while len(tasks) < AHEAD * self.pool.replicas and (unit := next(source, None)) is not None:
            key = unit.key(self.name) if self.journal is not None else ""
            tasks.append(_Task(unit, key, result=self.journal.get(key) if self.journal is not None else None))
        return bool(tasks)

    def _give(self, tasks: Iterable[_Task]) -> None:
        """Give each replica that is free a unit that nobody has."""
        given = {id(task) for _, task in self.busy.values()}
        working = {id(actor) for actor, _ in self.busy.values()}
        free = [actor for actor in self.pool.all() if id(actor) not in working]
        for task in tasks:
            if task.result is None and id(task) not in given and free:
                actor = free.pop(0)
                self.busy[actor.run.remote(packed(self.model, task.unit))] = actor, task

    def _wait(self) -> None:
        """Take the results that have come; a replica that died is replaced."""
        ray = self.pool.ray
        for reference in ray.wait(list(self.busy), num_returns=1)[0]:
            actor, task = self.busy.pop(reference)
            try:
                found = ray.get(reference)
            except (
                ray.exceptions.RayActorError,
                ray.exceptions.OutOfMemoryError,
                ray.exceptions.ObjectLostError,
            ) as error:
                task.tries += 1
                if task.tries == TRIES:
                    raise InputError(self._gave_up(task.unit, error)) from None
                self._replace(actor)
                continue
            if isinstance(found, str):
                raise InputError(found)
            if self.journal is not None:
                self.journal.put(task.key, *found)
            task.result = found

    def _gave_up(self, unit: Unit, error: Exception) -> str:
        first, last = unit.prompts[0].id, unit.prompts[-1].id
        kept = "; what is finished is in the journal" if self.journal is not None else ""
        return (
            f"{unit.work.rpartition(':')[2]} of the prompts {first!r:.60} to {last!r:.60}: its worker died {TRIES} times "
            f"({str(error).splitlines()[0]:.200}); give it more memory or lower batch_size={kept}"
        )

    def _forget(self) -> None:
        """End replicas that still compute something that nobody waits for any more."""
        for actor, _ in self.busy.values():
            self._replace(actor, now=False)
        self.busy.clear()

    # -- the model ------------------------------------------------------------------------------------
    def _replace(self, actor: Any, *, now: bool = True) -> None:
        self.pool.end(actor)
        if now:
            self._bind([self.pool.start()])

    def _bind_all(self) -> None:
        """Put the model on the replicas that do not have it, with the weights that it had when this runner was first used."""
        if not self.name:
            self._spec, self._digests = spec_of(self.model), digests(self.model.module)
            self.name = identity(self.model, self._digests)
            self._weights: dict[tuple[str, ...], Any] = {}
        had = [] if self.pool.holder is not self else list(self.pool.actors)
        fresh = [actor for actor in self.pool.all() if not any(actor is a for a in had)]
        self.pool.actors, self.pool.holder = had, self
        self._bind(fresh)

    def _bind(self, actors: list[Any]) -> None:
        """Put the model on some replicas; those that die at it are started again, a few times."""
        ray = self.pool.ray
        device = "auto" if self.pool.gpus > 1 else "cuda" if self.pool.gpus else "cpu"
        for _ in range(TRIES):
            pending = [(actor, actor.bind.remote(self._spec, device=device)) for actor in actors]
            actors = []
            for actor, reference in pending:
                try:
                    if not ray.wait([reference], timeout=PATIENCE)[0]:
                        logger.warning(self.pool.why_waiting())
                    self._patch(actor, ray.get(reference))
                    self.pool.actors.append(actor)
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                    why = error
                    actors.append(self.pool.start())
                except ray.exceptions.RayTaskError as error:
                    raise InputError(f"engine: a worker cannot load {self.model.id!r} ({error.cause!s})") from None
            if not actors:
                return
        raise InputError(
            f"engine: a worker died {TRIES} times while it loaded {self.model.id!r} ({str(why).splitlines()[0]:.200})"
        )

    def _patch(self, actor: Any, found: dict[str, str]) -> None:
        """Send a replica the tensors that differ, and compare."""
        mine = self._digests
        if set(found) != set(mine):
            odd = min(set(found) ^ set(mine))
            raise InputError(f"engine: {self.model.id!r} cannot be made again on a worker: its tensor {odd!r} is on one side only; save "
                             "the model (update.save_merged, save_pretrained), and load it by the name of its folder")  # fmt: skip
        names = tuple(name for name in mine if mine[name] != found[name])
        if names not in self._weights:
            self._weights[names] = self.pool.ray.put(weights_of(self.model, list(names)) if names else b"")
        if self.pool.ray.get(actor.patch.remote(self._weights[names])) != self.name:
            raise InputError(f"engine: a worker's copy of {self.model.id!r} is not the model that is here; install the same versions on "
                             "all nodes, and save the model where all of them read it")  # fmt: skip
