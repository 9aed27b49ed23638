"""Whether an overlap tells the share of neurons in common: python benchmarks/overlap_levels.py [--draws 20] [--write]

Activations of two cells are simulated, with 64 true neurons of 2000 each, of which a known share is common (tests/planted_overlap.py).
Both cells are asked the same requests, and a request moves the neurons of both cells alike. For every setting:

    reliability   predicted from halves and quarters of the requests, against what two independent samples of the same cell share
    shared        `Overlap.shared` with its interval, against the share that was planted
    whole         (Jaccard index - benign null) / (reliability - benign null), from the whole sample

With --write the results go to benchmarks/results/overlap-levels.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from result_files import RESULTS, source

from neuronshield import overlap
from neuronshield.core.files import write_text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from planted_overlap import TRUE, planted, reached, unrelated

METHODS, EFFECTS, REQUESTS = ("effect_size", "contribution"), (0.5, 1.0), (32, 128)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def draw(seed: int, *, method: str, shared: float, d: float, n: int) -> dict[str, float]:
    """What one simulated data set gives."""
    stats = planted(seed, shared=shared, d=d, n=n)
    found = overlap(stats, method=method, k=TRUE)
    both = reached(stats, planted(seed, shared=shared, d=d, n=n, fresh=1), method)
    value, low, high = (float(getattr(found, name)[0, 1]) for name in ("shared", "shared_low", "shared_high"))
    null = found.benign_null[0, 1]
    return {
        "predicted": float(found.reliability[0, 0]), "reached": both / (2 - both),
        "shared": value, "covered": float(low <= unrelated(shared) <= high) if np.isfinite(value) else np.nan,
        "whole": float((found.jaccard[0, 1] - null) / (found.reliability[0, 1] - null)),
    }  # fmt: skip


def measure(draws: int) -> list[dict[str, Any]]:
    """Rows of the table."""
    rows = []
    for method in METHODS:
        for d in EFFECTS:
            for n in REQUESTS:
                seeds = {s: range(draws * i, draws * (i + 1)) for i, s in enumerate(SHARES)}
                found = {s: [draw(i, method=method, shared=s, d=d, n=n) for i in seeds[s]] for s in SHARES}
                every = [one for some in found.values() for one in some]
                told = [one for one in every if np.isfinite(one["shared"])]
                row: dict[str, Any] = {"setting": f"{method}, d = {d}, {n} requests"}
                row |= {name: float(np.mean([one[name] for one in every])) for name in ("predicted", "reached")}
                row["told"] = len(told) / len(every)
                for s, some in found.items():
                    values = [one["shared"] for one in some if np.isfinite(one["shared"])]
                    row[f"s{round(100 * s)}"] = float(np.mean(values)) if len(values) >= draws / 2 else None
                row["covered"] = (
                    float(np.mean([one["covered"] for one in told])) if len(told) >= len(every) / 2 else None
                )
                for s in (0.0, 1.0):
                    row[f"whole{round(100 * s)}"] = float(np.median([one["whole"] for one in found[s]]))
                rows.append(row)
                print(row, flush=True)
    return rows


def file(rows: list[dict[str, Any]], source: dict[str, str]) -> dict[str, Any]:
    """The result file."""
    two = {"format": "{:.2f}"}
    told = [row for row in rows if row["told"] >= 0.5]
    errors = [abs(row["predicted"] - row["reached"]) for row in rows]
    numbers = {
        "disjoint": {"value": unrelated(0), **two},
        "error": {"value": max(errors), **two},
        "least_covered": {"value": min(row["covered"] for row in told), **two},
        "whole_low": {"value": min(row["whole0"] for row in told), **two},
        "whole_high": {"value": max(row["whole100"] for row in told), **two},
        "shared_error": {
            "value": max(
                abs(row[f"s{round(100 * s)}"] - unrelated(s))
                for row in told
                for s in SHARES
                if row[f"s{round(100 * s)}"] is not None
            ),
            **two,
        },
    }
    return {
        "title": "Reliability and share of neurons in common, estimated and planted; two cells of 2000 neurons, 64 of them true",
        "source": source,
        "numbers": numbers,
        "columns": {
            "setting": {"title": "score, effect, requests a label"},
            "predicted": {"title": "reliability predicted", **two}, "reached": {"title": "reached", **two},
            "told": {"title": "pairs with enough requests", **two},
            **{f"s{round(100 * s)}": {"title": f"shared, planted {s}", **two} for s in SHARES},
            "covered": {"title": "interval contains it", **two},
            "whole0": {"title": "whole sample, planted 0", **two}, "whole100": {"title": "whole sample, planted 1", **two},
        },
        "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20, help="data sets of each setting and share")
    parser.add_argument("--write", action="store_true", help="write the result file")
    args = parser.parse_args()
    rows = measure(args.draws)
    if args.write:
        write_text(
            RESULTS / "overlap-levels.json", json.dumps(file(rows, source()), indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
