"""Files of benchmarks/results: written in one form by the scripts that measure, and units measured in parallel processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import Any

import torch

from neuronshield.core.files import write_text

RESULTS = Path(__file__).parent / "results"
TRIPLE, SIGNED = "{:.2f} [{:.2f}, {:.2f}]", "{:+.3f} [{:+.3f}, {:+.3f}]"
#: Columns of the three outcomes, by label, and of selectivity.
OUTCOMES: dict[str, tuple[str, str]] = {
    "refusal": ("harmful refused", TRIPLE), "compliance": ("harmful complied", TRIPLE), "over_refusal": ("benign refused", TRIPLE),
    "benign_compliance": ("benign complied", TRIPLE), "incoherent": ("incoherent", TRIPLE), "selectivity": ("selectivity", TRIPLE),
}  # fmt: skip


def write_result(
    name: str,
    title: str,
    *,
    columns: dict[str, tuple[str, str | None]],
    rows: Sequence[dict[str, Any]],
    numbers: dict[str, tuple[Any, str | None]] | None = None,
    settings: str | None = None,
    device: str = "cpu",
    made: dict[str, str] | None = None,
) -> Path:
    """The path of a result file, written: a table and single numbers, each with its format, and where they were measured.

    Args:
        name: of the file, without ".json".
        title: what the numbers are.
        columns: title and format by key.
        rows: values by key.
        numbers: value and format by name.
        settings: what the command does not say.
        device: where the model was.
        made: "commit", "command", "machine" of what was measured by another command, in place of this one's.
    """
    data: dict[str, Any] = {"title": title, "source": source(device) | (made or {})}
    if settings:
        data["source"]["settings"] = settings
    data["numbers"] = {k: {"value": v, **({"format": f} if f else {})} for k, (v, f) in (numbers or {}).items()}
    data["columns"] = {k: {"title": t, **({"format": f} if f else {})} for k, (t, f) in columns.items()}
    path = RESULTS / f"{name}.json"
    write_text(path, text({**data, "rows": list(rows)}))
    return path


def source(device: str = "cpu") -> dict[str, str]:
    """The commit, the command and the machine of a measurement."""
    ask = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(ask, capture_output=True, text=True, check=False)
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else "no GPU"
    return {
        "commit": head.stdout.strip() or "of no checkout", "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} CPU cores, {gpu}",
    }  # fmt: skip


def spread(values: Sequence[float]) -> list[float]:
    """Median, smallest and largest of some rounds."""
    return [median(values), min(values), max(values)]


def text(data: dict[str, Any]) -> str:
    """A result file as JSON: one line for each number, column and row."""
    lines = []
    for key, value in data.items():
        if key in ("numbers", "columns"):
            inner = ",\n  ".join(f"{json.dumps(k)}: {line(v)}" for k, v in value.items())
            lines.append(f'"{key}": {{\n  {inner}\n }}')
        elif key == "rows":
            inner = ",\n  ".join(map(line, value))
            lines.append(f'"rows": [\n  {inner}\n ]')
        else:
            lines.append(f'"{key}": {line(value)}')
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def line(value: Any) -> str:
    """A value on one line, numbers rounded to five decimals."""
    return json.dumps(json.loads(json.dumps(value), parse_float=lambda x: round(float(x), 5)), ensure_ascii=False)


def in_processes(measure: Callable[[str], Any], units: Sequence[str], *, workers: int, raw: Path) -> dict[str, Any]:
    """What `measure` gives for every unit; each is appended to `raw` when it is done, and skipped if it is there.

    Args:
        measure: called in a process of its own, with one thread.
        units: names.
        workers: processes.
        raw: a file of one JSON line a unit.
    """
    done = dict(read_units(raw))
    left = [u for u in units if u not in done]
    context = multiprocessing.get_context("spawn")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        running = {pool.submit(measure, u): u for u in left}
        for future in as_completed(running):
            done[running[future]] = future.result()
            with raw.open("a", encoding="utf-8") as file:
                file.write(json.dumps([running[future], done[running[future]]]) + "\n")
            print(running[future], flush=True)
    return {u: done[u] for u in units}


def one_thread() -> None:
    """Settings of a worker."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def read_units(raw: Path) -> Iterator[tuple[str, Any]]:
    """The units that a file has; a line that was cut short is left out."""
    for entry in raw.read_text(encoding="utf-8").splitlines() if raw.exists() else []:
        try:
            name, found = json.loads(entry)
        except ValueError:
            continue
        yield name, found
