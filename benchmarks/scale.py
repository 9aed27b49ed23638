"""Cost of units, and one against two workers: python benchmarks/scale.py [--ray] [--write]

1. For each kind of unit on the organism: CPU time of its computation, of its key, of packing it, and of its journal entry, and the
   bytes of the entry and of the parcel. The overhead of a journal is (key + entry) / computation.
2. With --ray: a local cluster, and wall time of the same capture with one replica and with two, in turn, over rounds, after a round
   that warms both up; the wall time of a round trip without work.

With --write the result goes to benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from result_files import spread, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.core.journal import Journal
from neuronshield.find import moments, shards
from neuronshield.model import units
from neuronshield.model.engine import Context, InProcess, Unit, result_of
from neuronshield.model.identity import identity
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.model.replica import packed
from neuronshield.prove.controls import random_like

COLUMNS: dict[str, tuple[str, str | None]] = {
    "unit": ("unit", None), "rows": ("prompts x conditions", None), "computed": ("computed (s)", "{:.3f}"),
    "key": ("key (ms)", "{:.1f}"), "entry": ("journal entry (ms)", "{:.1f}"), "overhead": ("overhead of a journal", "{:.1%}"),
    "kilobytes": ("entry (kB)", "{:,.0f}"), "parcel": ("sent to a worker (kB)", "{:,.0f}"),
}  # fmt: skip


class Taking:
    """An engine that keeps the units it is given and computes them here."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def with_journal(self, journal: Journal) -> Taking:
        raise NotImplementedError

    def on(self, model: ns.Model) -> Any:
        self.here = InProcess().on(model)
        return self

    def map(self, given: Any, **options: Any) -> Any:
        rows = list(given)
        self.units += rows
        return self.here.map(rows, **options)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray", action="store_true", help="measure one and two replicas on a local cluster")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8, help="requests a cell")
    parser.add_argument("--write", action="store_true", help="write results/scale.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = ns.load("organism")
    prompts = ns.PromptSet.from_records(organism.records(max_pairs=args.pairs))
    rows = [cost(model, unit) for unit in kinds(model, prompts)]
    whole = cpu(lambda: identity(model), 5)
    numbers: dict[str, Any] = {"identity_ms": (whole * 1000, "{:.0f}"), "prompts": (len(prompts), None)}
    for row in rows:
        print(row)
    if args.ray:
        numbers |= workers(model, prompts, rounds=args.rounds)
    print(numbers)
    if args.write:
        write_result(
            "scale", "Units of work on the organism: CPU time on one core, and one against two Ray workers", columns=COLUMNS, rows=rows,
            numbers=numbers, settings="one thread a process; the machine was shared with other work",
        )  # fmt: skip


def kinds(model: ns.Model, prompts: ns.PromptSet) -> list[Unit]:
    """The largest unit of each kind."""
    taking = Taking()
    stats = ns.capture(model, prompts, engine=taking, progress=False)
    neurons = ns.contrast(stats).top(k=64)["en/text"]
    means = torch.as_tensor(stats.moments("benign", "en/text").mean)
    conditions = [ns.Intervention(random_like(neurons, model, seed=i), "mean", means) for i in range(units.CONDITIONS)]
    text = prompts.where(cell="en/text")[:64]
    tokens = opening_tokens(model, openings_of(model, text))
    units.run_margins(taking.on(model), model, text, conditions=conditions, tokens=tokens)
    units.run_answers(taking.on(model), model, prompts[: units.ANSWERED], batch_size=64, max_new_tokens=32)
    found = {u.work: u for u in sorted(taking.units, key=lambda u: u.size)}
    return list(found.values())


def cost(model: ns.Model, unit: Unit) -> dict[str, Any]:
    """What a unit costs, beside its computation."""
    context = Context()
    result_of(model, unit, context)  # prompts are encoded, and what conditions share is prepared
    start = time.process_time()
    arrays, about = result_of(model, unit, context)
    computed = time.process_time() - start
    key = cpu(lambda: unit.key("model"), 5)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        entry = cpu(lambda: journal.put("ab" * 32, arrays, about), 5)
        size = journal.path("ab" * 32).stat().st_size
    return {
        "unit": unit.work.rpartition(":")[2].removesuffix("_of"), "rows": f"{len(unit.prompts)} x {max(1, len(unit.conditions))}",
        "computed": computed, "key": key * 1000, "entry": entry * 1000, "overhead": (key + entry) / computed,
        "kilobytes": size / 1000, "parcel": len(pickle.dumps(packed(model, unit))) / 1000,
    }  # fmt: skip


def cpu(call: Callable[[], Any], times: int) -> float:
    """Median CPU time of a call, in seconds."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return median(found)


def workers(model: ns.Model, prompts: ns.PromptSet, *, rounds: int) -> dict[str, Any]:
    """Wall time with one replica and with two, in turn."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    shards.PROMPTS = 64  # so that both have many
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with ExitStack() as stack:
        engines = {n: stack.enter_context(ns.RayEngine(replicas=n)) for n in (1, 2)}
        walls: dict[int, list[float]] = {1: [], 2: []}
        drivers: dict[int, list[float]] = {1: [], 2: []}
        others: dict[int, list[float]] = {1: [], 2: []}
        bound: list[float] = []
        for turn in range(rounds + 1):
            for n, engine in engines.items():
                pids = [ray.get(actor.pid.remote()) for actor in engine.pool.all()]
                start, here, there = time.perf_counter(), time.process_time(), seconds(pids)
                ns.capture(model, prompts, tokens="prompt", engine=engine, progress=False)
                if turn:  # the first round warms up
                    walls[n].append(time.perf_counter() - start)
                    drivers[n].append(time.process_time() - here)
                    others[n].append(seconds(pids) - there)
            start = time.perf_counter()
            list(engines[1].on(model).map([empty(prompts)]))
            bound.append(time.perf_counter() - start)
    ray.shutdown()
    ratios = [one / two for one, two in zip(walls[1], walls[2], strict=True)]
    print(walls, drivers, others, bound)
    format_ = "{:.2f} ({:.2f} to {:.2f})"
    return {
        "ratio": (spread(ratios), format_), "rounds": (rounds, None), "call_ms": (median(bound[1:]) * 1000, "{:.0f}"),
        "driver_one": (spread(drivers[1]), format_), "driver_two": (spread(drivers[2]), format_),
        "workers_one": (spread(others[1]), format_), "workers_two": (spread(others[2]), format_),
        "bound": (2 * median(others[1]) / median(others[2]), "{:.2f}"), "load": (os.getloadavg()[1], "{:.1f}"),
    }  # fmt: skip


def seconds(pids: Sequence[int]) -> float:
    """CPU time that processes have used, in seconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def empty(prompts: Sequence[ns.Prompt]) -> Unit:
    """A unit with one prompt, whose time is that of the call."""
    options = {"tokens": "last_prompt", "batch_size": 1, "folds": [0]}
    return Unit(f"{moments.__name__}:moments_of", (prompts[0],), options=options)


if __name__ == "__main__":
    main()
