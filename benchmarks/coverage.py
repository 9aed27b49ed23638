"""Coverage of the 95 % intervals, and how often the tests pass where nothing is there: python benchmarks/coverage.py [--draws 3000]

Data sets with a known answer are simulated, with 8, 16 and 48 clusters (requests) of one or several rows (translations, picture
variants) that are alike. Coverage is the share of data sets whose interval contains the answer; the target is 0.95. The level of a
test is the share of data sets without the effect in which it passes at 5 %; the target is at most 0.05.

With --write the results go to benchmarks/results/coverage.json and test-levels.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from result_files import RESULTS, source

from neuronshield.core.files import write_text
from neuronshield.core.intervals import clustered_difference, clustered_rate, ratio_of_means, weighted_rates
from neuronshield.core.statistics import Interval, equivalent, least_draws, least_requests, positive, rate

CLUSTERS, REQUESTS = (8, 16, 48), (16, 29, 48)
SIZES = {"1": (1,), "4": (4,), "1 to 6": (1, 2, 3, 4, 5, 6), "24": (24,)}
FEW = ("1", "4", "1 to 6")
Draw = Callable[[np.random.Generator, int, Sequence[int]], tuple[Interval, Interval | None, float]]


def rows_of(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Rows of each of n clusters, and the cluster of each row."""
    m = rng.choice(sizes, n)
    return m, np.repeat(np.arange(n), m).tolist()


def mean(rng: np.random.Generator, n: int, sizes: Sequence[int], *, skewed: bool) -> tuple[Interval, Interval, float]:
    """A mean of clusters, normal or exponential; and the interval of its rows as if they were independent."""
    m, clusters = rows_of(rng, n, sizes)
    level = rng.exponential(0.3, n) if skewed else rng.normal(0.3, 0.2, n)
    values = np.repeat(level, m) + rng.normal(0, 0.1, m.sum())
    ones = np.ones(len(values))
    return ratio_of_means(values, ones, clusters), ratio_of_means(values, ones, list(range(len(values)))), 0.3


def ratio(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> tuple[Interval, Interval, float]:
    """A normalised effect: a skewed share of a skewed denominator."""
    m, clusters = rows_of(rng, n, sizes)
    bottom = np.repeat(rng.gamma(2, 3, n), m) * rng.uniform(0.8, 1.2, m.sum())
    top = bottom * np.repeat(rng.beta(2, 4, n), m)
    return ratio_of_means(top, bottom, clusters), ratio_of_means(top, bottom, list(range(len(top)))), 1 / 3


def share(
    rng: np.random.Generator, n: int, sizes: Sequence[int], *, chance: float | None, correlation: float
) -> tuple[Interval, Interval, float]:
    """A rate with an intra-cluster correlation; a chance of None is another one for each data set, from 0.02 to 0.98."""
    p = float(rng.uniform(0.02, 0.98)) if chance is None else chance
    m, clusters = rows_of(rng, n, sizes)
    a = 1 / correlation - 1
    values = (rng.random(m.sum()) < np.repeat(rng.beta(p * a, (1 - p) * a, n), m)).astype(float)
    return clustered_rate(values, clusters), rate(int(values.sum()), len(values)), p


def change(
    rng: np.random.Generator, n: int, sizes: Sequence[int], *, lost: float, gained: float
) -> tuple[Interval, None, float]:
    """Answers to the same prompts before and after, of which some change."""
    m, clusters = rows_of(rng, n, sizes)
    before = rng.random(m.sum()) < np.repeat(rng.beta(0.5, 0.5, n), m)
    after = np.where(before, rng.random(m.sum()) >= lost, rng.random(m.sum()) < gained)
    return (
        clustered_difference(after.astype(float), clusters, before.astype(float), clusters),
        None,
        (gained - lost) / 2,
    )


def over_cells(
    rng: np.random.Generator, n: int, sizes: Sequence[int], *, rate: float, lost: float, gained: float
) -> tuple[Interval, None, float]:
    """Means over as many cells as a request has rows, before and after; the requests of all cells are the same."""
    cells = sizes[0]
    before = rng.random((cells, n)) < rng.beta(rate * 9, (1 - rate) * 9, n)
    after = np.where(before, rng.random((cells, n)) >= lost, rng.random((cells, n)) < gained)
    weights = np.repeat([1 / cells, -1 / cells], cells)
    found = weighted_rates(np.vstack([after, before]).astype(float), np.ones((2 * cells, n)), weights)
    return found, None, (1 - rate) * gained - rate * lost


def apart(rng: np.random.Generator, n: int, sizes: Sequence[int]) -> tuple[Interval, None, float]:
    """Two rates, 0.7 and 0.4, of other clusters each."""
    found = []
    for p in (0.7, 0.4):
        m, clusters = rows_of(rng, n, sizes)
        values = rng.random(m.sum()) < np.repeat(rng.beta(p, 1 - p, n), m)
        found.append((values.astype(float), [f"{p} {c}" for c in clusters]))
    (a, clusters_a), (b, clusters_b) = found
    return clustered_difference(a, clusters_a, b, clusters_b), None, 0.3


#: (interval, data, rows a cluster, simulation)
DESIGNS: list[tuple[str, str, str, Draw]] = [
    *(("mean", "normal", s, lambda *x: mean(*x, skewed=False)) for s in FEW),
    *(("mean", "exponential", s, lambda *x: mean(*x, skewed=True)) for s in FEW),
    *(("ratio", "skewed share of a skewed denominator", s, ratio) for s in FEW),
    *(
        ("rate", "0.02 to 0.98, correlation 0.5", s, lambda *x: share(*x, chance=None, correlation=0.5))
        for s in FEW
    ),
    ("rate", "0.05, correlation 0.5", "1 to 6", lambda *x: share(*x, chance=0.05, correlation=0.5)),
    ("rate", "0.3, correlation 0.2", "1 to 6", lambda *x: share(*x, chance=0.3, correlation=0.2)),
    ("rate", "0.3, correlation 0.8", "1 to 6", lambda *x: share(*x, chance=0.3, correlation=0.8)),
    *(("paired difference", "half lost, a third gained", s, lambda *x: change(*x, lost=0.5, gained=1 / 3)) for s in FEW),
    ("paired difference", "one in ten lost, none gained", "1 to 6", lambda *x: change(*x, lost=0.1, gained=0.0)),
    *(("difference of means over cells", "0.12, a fifth lost, 0.05 gained", s, lambda *x: over_cells(*x, rate=0.12, lost=0.2, gained=0.05)) for s in ("4", "24")),
    *(("difference of means over cells", "0.5, a fifth lost, a fifth gained", s, lambda *x: over_cells(*x, rate=0.5, lost=0.2, gained=0.2)) for s in ("4", "24")),
    ("difference of means over cells", "0.12, none lost, 0.02 gained", "24", lambda *x: over_cells(*x, rate=0.12, lost=0.0, gained=0.02)),
    *(("independent difference", "0.7 and 0.4, correlation 0.5", s, apart) for s in FEW),
]  # fmt: skip


def coverage(draw: Draw, n: int, sizes: Sequence[int], *, draws: int) -> tuple[float, float | None]:
    """Coverage of an interval, and of that of the rows as if they were independent."""
    rng = np.random.default_rng(0)
    hits, rows = 0, 0
    for _ in range(draws):
        got, naive, truth = draw(rng, n, sizes)
        hits += got.low <= truth <= got.high
        if naive is not None:
            rows += naive.low <= truth <= naive.high
    return hits / draws, rows / draws if naive is not None else None


def level(
    test: Callable[[np.ndarray, list[int]], float], n: int, *, lost: float, gained: float, rows: int, draws: int
) -> float:
    """How often a test passes at 5 % on changes of answers that are alike within a request."""
    rng = np.random.default_rng(0)
    chances, clusters = np.array([gained, lost, 1 - gained - lost]), np.repeat(np.arange(n), rows).tolist()
    passed = 0
    for _ in range(draws):
        each = rng.dirichlet(2 * chances + 1e-9, n) if rows > 1 else np.tile(chances, (n, 1))
        point = rng.random((n, rows, 1))
        values = np.array([1.0, -1.0, 0.0])[(point > np.cumsum(each, axis=1)[:, None, :2]).sum(axis=2)]
        passed += test(values.ravel(), clusters) <= 0.05
    return passed / draws


LEVELS: list[tuple[str, str, Any, dict[str, float]]] = [
    ("equivalent within 0.10", "0.10 gained, none lost", lambda v, c: equivalent(v, c, 0.1), {"gained": 0.1, "lost": 0}),
    ("equivalent within 0.10", "0.13 gained, 0.03 lost", lambda v, c: equivalent(v, c, 0.1), {"gained": 0.13, "lost": 0.03}),
    ("positive", "0.05 gained, 0.05 lost", positive, {"gained": 0.05, "lost": 0.05}),
    ("positive", "0.30 gained, 0.30 lost", positive, {"gained": 0.3, "lost": 0.3}),
]  # fmt: skip


def measure(draws: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both tables."""
    covered, levels = [], []
    for interval, data, sizes, draw in DESIGNS:
        found = {n: coverage(draw, n, SIZES[sizes], draws=draws) for n in CLUSTERS}
        row = {"interval": interval, "data": data, "rows": sizes, **{f"n{n}": c for n, (c, _) in found.items()}}
        covered.append({**row, "naive": found[16][1] if sizes != "1" else None})
        print(covered[-1], flush=True)
    for name, data, test, changes in LEVELS:
        for rows in (1, 4):
            found_at = {f"n{n}": level(test, n, rows=rows, draws=draws, **changes) for n in REQUESTS}  # type: ignore[arg-type]
            levels.append({"test": name, "data": data, "rows": rows, **found_at})
            print(levels[-1], flush=True)
    return covered, levels


def files(covered: list[dict[str, Any]], levels: list[dict[str, Any]], *, source: dict[str, str]) -> dict[str, Any]:
    """The result files by name."""
    per_cent = {"format": "{:.3f}"}
    numbers = {
        "least_positive": {"value": least_requests(alpha=0.05)},
        "least_utility": {"value": least_requests(alpha=0.05, limit=0.1)},
        "least_specificity": {"value": least_requests(alpha=0.05, limit=0.25)},
        "least_draws": {"value": least_draws(alpha=0.05)},
    }
    return {
        "coverage": {
            "title": "Coverage of the 95 % intervals, by number of clusters",
            "source": source,
            "numbers": numbers,
            "columns": {
                "interval": {"title": "interval"}, "data": {"title": "data"}, "rows": {"title": "rows a cluster"},
                **{f"n{n}": {"title": f"{n} clusters", **per_cent} for n in CLUSTERS},
                "naive": {"title": "16 clusters, rows as if independent", **per_cent},
            },
            "rows": covered,
        },
        "test-levels": {
            "title": "How often a test passes at 5 % where the claim is false, by number of requests",
            "source": source,
            "columns": {
                "test": {"title": "test"}, "data": {"title": "changes of answers"}, "rows": {"title": "rows a request"},
                **{f"n{n}": {"title": f"{n} requests", **per_cent} for n in REQUESTS},
            },
            "rows": levels,
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3000, help="data sets of each design")
    parser.add_argument("--write", action="store_true", help="write the result files")
    args = parser.parse_args()
    covered, levels = measure(args.draws)
    if args.write:
        for name, data in files(covered, levels, source=source()).items():
            write_text(RESULTS / f"{name}.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
