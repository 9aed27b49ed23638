"""CPU time of the main job on the organism, beside that of an older checkout: python benchmarks/main_job.py --before FOLDER

FOLDER is a checkout of an older revision (`git worktree add FOLDER REVISION`). Both jobs run at the same time with one thread each, so
that a machine that is busy slows both. Time is the CPU time of the whole process; the ratio is what carries over to other machines.
Writes benchmarks/results/main-job.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from commands import started, usage
from result_files import write_result

HERE = Path(__file__).parents[1]


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
        running = {name: started("run", outs[name], checkout=checkouts[name]) for name in outs}
        cpu = {name: usage(process)[0] for name, process in running.items()}
    rows = [{"job": name, "cpu": cpu[name]} for name in cpu]
    titles = {"job": ("job", None), "cpu": ("CPU seconds", "{:.0f}")}
    write_result(
        "main-job", "CPU time of the main job on the organism, before and now, side by side with one thread each", columns=titles, rows=rows,
        numbers={"ratio": (cpu["now"] / cpu["before"], "{:.2f}")}, settings="both at the same time",
    )  # fmt: skip
    print(rows)


if __name__ == "__main__":
    main()
