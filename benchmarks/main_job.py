"""CPU time of the main job on the organism, beside that of an older checkout: python benchmarks/main_job.py --before FOLDER

FOLDER is a checkout of an older revision (`git worktree add FOLDER REVISION`). Both jobs run at the same time with one thread each, so
that a machine that is busy slows both. Time is the CPU time of the whole process; the ratio is what carries over to other machines.
Writes benchmarks/results/main-job.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from result_files import write_result

HERE = Path(__file__).parents[1]
RUN = "import sys; sys.argv[0] = 'neuronshield'; from neuronshield.cli import main; main()"


def started(checkout: Path, out: Path) -> subprocess.Popen[bytes]:
    """The job of a checkout, with its results in a folder."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", RUN, "run", "--out", str(out), "--quiet"], env=env, cwd=out.parent)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time of a process and its threads, once it has ended."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args!r} ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="A checkout of an older revision.")
    parser.add_argument("--keep", type=Path, help="A folder that is left with both run folders.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (args.keep or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        outs = {"before": folder / "before", "now": folder / "now"}
        checkouts = {"before": args.before.resolve(), "now": HERE}
        running = {name: started(checkouts[name], outs[name]) for name in outs}
        cpu = {name: cpu_seconds(process) for name, process in running.items()}
    rows = [{"job": name, "cpu": cpu[name]} for name in cpu]
    titles = {"job": ("job", None), "cpu": ("CPU seconds", "{:.0f}")}
    write_result(
        "main-job", "CPU time of the main job on the organism, before and now, side by side with one thread each", columns=titles, rows=rows,
        numbers={"ratio": (cpu["now"] / cpu["before"], "{:.2f}")}, settings="both at the same time",
    )  # fmt: skip
    print(rows)


if __name__ == "__main__":
    main()
