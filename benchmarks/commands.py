"""Peak memory of the commands on the models that ship: python benchmarks/commands.py --work FOLDER [--write]

Each command runs in a process of its own with one thread, two at a time, and its output goes into FOLDER. A model that is built again is
compared with the one that ships. With --write the table goes to benchmarks/results/commands.json.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from result_files import write_result

from neuronshield.core.files import shipped
from neuronshield.organism.controls import KINDS

RUN = "import sys; sys.argv[0] = 'neuronshield'; from neuronshield.cli import main; main()"
RUNS = ("smollm2-vision", "organism", *(f"organism-{kind}" for kind in KINDS))
COMMANDS = (
    *(f"run --model {name}" for name in RUNS),
    *(f"organism build --kind {kind}" + " --seed 2" * (kind == "wording") for kind in KINDS),
)
COLUMNS: dict[str, tuple[str, str | None]] = {
    "command": ("command", None), "memory": ("peak memory, GB", "{:.2f}"),
    "same": ("weights as shipped", None),
}  # fmt: skip


def started(arguments: str, out: Path, *, checkout: Path = Path(__file__).parents[1]) -> subprocess.Popen[bytes]:
    """A command of a checkout that runs with one thread, its results in a folder, and what it prints in a .log beside it.

    Args:
        arguments: of `neuronshield`.
        out: folder of its results.
        checkout: of the source.
    """
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, *arguments.split(), "--out", str(out)]
    with out.with_name(f"{out.name}.log").open("wb") as log:
        return subprocess.Popen(command, env=env, cwd=out.parent, stdout=log, stderr=subprocess.STDOUT)


def usage(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """CPU seconds and the peak of memory, GB, of a process, its threads and children, once it has ended."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e9


def measured(arguments: str, work: Path) -> dict[str, Any]:
    """The row of a command."""
    out = work / arguments.replace(" --", "-").replace(" ", "-")
    row = {"command": f"neuronshield {arguments}", "memory": usage(started(arguments, out))[1], "same": ""}
    if "build" in arguments:
        mine, theirs = (x / "model.safetensors" for x in (out, shipped() / f"organism-{arguments.split()[3]}"))
        row["same"] = "yes" if filecmp.cmp(mine, theirs, shallow=False) else "no"
    print(row, flush=True)
    return row


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="An empty folder.")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda arguments: measured(arguments, work), COMMANDS))
    if given.write:
        write_result("commands", "Peak memory of the commands on the models that ship", columns=COLUMNS, rows=rows)


if __name__ == "__main__":
    main()
