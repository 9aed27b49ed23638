"""A run that is killed at random moments and continued: are its results those of a run that was left alone?

    python benchmarks/kills.py --kills 40

The organism, in two cells and with small settings, so that a run takes about a minute. It is started, killed at a random moment of the
step it is in by a random one of four signals, and started again, twice in every step, until it is done; then a new folder is begun,
until there were enough kills. Every finished folder is compared with that of an undisturbed run: results.json without its times, every neuron set, every adapter, every answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from result_files import write_result
from safetensors.numpy import load_file

SETTINGS = [
    "--cells",
    "en/text",
    "--cells",
    "sw/text",
    "--draws",
    "19",
    "--graded",
    "12",
    "--steps",
    "8",
    "--random-masks",
    "2",
    "--quiet",
]
START = "before the first step"
PER_STEP = 2
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def command(out: Path) -> list[str]:
    """The command line of a run."""
    begin = "import signal, neuronshield.cli as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    return [sys.executable, "-c", begin, "run", "--out", str(out), *SETTINGS]


def run(
    out: Path, *, by: signal.Signals = signal.SIGKILL, after: Callable[[str], float | None] = lambda _: None
) -> int:
    """Exit status of a run, which is sent a signal if it is still at work.

    Args:
        out: the run folder.
        by: the signal.
        after: seconds from the moment a step is seen to be at work to the signal; None for no signal in this step.
    """
    process = subprocess.Popen(
        command(out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seen: set[str] = set()
    while process.poll() is None:
        step = state(out)
        if step not in seen and (wait := after(step)) is not None:
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.send_signal(by)
            break
        seen.add(step)
        time.sleep(0.05)
    said = process.communicate()[1]
    if (
        "Traceback" in said and "Exception ignored" not in said
    ):  # Python drops a Ctrl-C that comes while an object is deleted
        raise RuntimeError(said)
    return process.returncode


def state(out: Path) -> str:
    """The step that a run is in."""
    try:
        steps = json.loads((out / "manifest.json").read_text())["manifest"]["steps"]
    except FileNotFoundError:
        return START
    return next(
        (name for name in ("find", "prove", "shield", "check") if not steps.get(name, {}).get("done")), "report"
    )


def content(out: Path) -> dict[str, Any]:
    """Everything that a run found, without times."""
    results = json.loads((out / "results.json").read_text())
    found = {"results": {k: v for k, v in results.items() if k not in ("seconds", "sha256")}}
    for file in sorted(out.rglob("*.safetensors")):
        found[str(file.relative_to(out))] = {name: array.tobytes() for name, array in load_file(file).items()}
    found["answers"] = pd.read_parquet(out / "answers.parquet").to_json()
    found["files"] = sorted(str(p.relative_to(out)) for p in out.rglob("*"))  # type: ignore[assignment]
    return found


def main() -> None:
    """Kill runs, compare them and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    where: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    finished, equal = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        if run(alone) != 0:
            raise RuntimeError("the undisturbed run failed")
        wanted = content(alone)
        lengths = {START: 3.0, **json.loads((alone / "results.json").read_text())["seconds"]}
        while sum(where.values()) < asked.kills:
            out, here = Path(folder) / f"killed-{finished}", Counter[str]()

            def after(step: str, here: Counter[str] = here) -> float | None:
                if sum(where.values()) >= asked.kills or here[step] >= PER_STEP or step not in lengths:
                    return None
                return rng.uniform(0.0, 0.8) * lengths[step]

            while True:
                by = rng.choice(SIGNALS)
                status = run(out, by=by, after=after)
                if status == 0:
                    break
                step = state(out)
                where[step] += 1
                here[step] += 1
                statuses[f"{by.name}: {status}"] += 1
                print(sum(where.values()), by.name, status, step, flush=True)
            finished += 1
            equal += content(out) == wanted
    steps = (START, "find", "prove", "shield", "check", "report")
    write_result(
        "kills", "Runs of the organism that were killed at random moments and continued, beside an undisturbed run",
        columns={"step": ("killed in step", None), "kills": ("kills", None)},
        rows=[{"step": step, "kills": where[step]} for step in steps],
        numbers={"kills": (sum(where.values()), None), "runs": (finished, None), "equal": (equal, None)},
        settings=f"{' '.join(SETTINGS)}; exit statuses: {', '.join(f'{k} ({n})' for k, n in sorted(statuses.items()))}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
