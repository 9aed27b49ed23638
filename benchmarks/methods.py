"""Every score of the literature on one cell: which neurons it selects, and the effect of ablating them: python benchmarks/methods.py --out methods

64 neurons of English text on the organism by each score, from the same prompts; then `verify` on requests that no score saw.
The change score sets the organism against itself after forty steps on benign prompts. Language-bound neurons (LAPE) and
random ones are controls that should have no effect. Writes OUT.json and OUT.html (the figure).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import neuronshield as ns
from neuronshield import figures, organism
from neuronshield.check.attacks import finetune
from neuronshield.find.overlaps import jaccard
from neuronshield.find.scores import METHODS

CELL = ns.Cell("en", "text")
K = 64


def sets(model: ns.Model, prompts: ns.PromptSet) -> dict[str, ns.NeuronSet]:
    """K neurons by every score."""
    stats = ns.capture(model, prompts, progress=False)
    english = prompts.in_cells([CELL])
    scores: dict[str, Callable[[], ns.Scores]] = {name: partial(ns.contrast, stats, method=name) for name in METHODS}
    scores["attribution"] = lambda: ns.attribution(model, english)
    scores["snip"] = lambda: ns.baselines.snip(model, english, progress=False)
    scores["change_score"] = lambda: ns.baselines.change_score(
        model, finetune(model, english, steps=40, lr=1e-3, progress=False), english, progress=False
    )
    scores["lape"] = lambda: ns.contrast(stats, method="lape")
    out = {name: score().top(k=K)[CELL] for name, score in scores.items()}
    picks = np.random.default_rng(0).choice(model.n_layers * model.d_mlp, K, replace=False)
    out["random"] = ns.NeuronSet(
        [divmod(int(i), model.d_mlp) for i in picks], n_layers=model.n_layers, d_mlp=model.d_mlp,
        provenance={"cell": str(CELL)},
    )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("methods"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = ns.load("organism")
    prompts = ns.PromptSet.from_records(organism.records(modalities=["text"], max_pairs=48))
    chosen = sets(model, prompts)
    rows: dict[str, dict[str, Any]] = {}
    for name, neurons in chosen.items():
        start = time.perf_counter()
        proof = ns.verify(model, neurons, prompts.in_cells([CELL]), draws=args.draws, progress=False)
        claims = {c.name: c for c in proof.claims}
        need = [c for n, c in claims.items() if n.startswith("necessity")]
        least = min(need, key=lambda c: c.effect.value)
        rows[name] = {
            "n": len(neurons), "effect": list(least.effect), "claim": least.name, "verified": len(proof.verified),
            "control": least.strongest_control, "passed": proof.passed, "failed": sorted({c.name.split(":")[0] for c in proof.claims if c.verdict == "failed"}),
            "layers": neurons.per_layer(), "seconds": time.perf_counter() - start,
        }  # fmt: skip
        print(f"{name}: {proof.word}, {len(proof.verified)} of {len(neurons)} verified", flush=True)
    matrix = [[jaccard(a, b) for b in chosen.values()] for a in chosen.values()]
    found = {"methods": rows, "jaccard": matrix, "names": list(chosen)}
    args.out.with_suffix(".json").write_text(json.dumps(found, default=float), encoding="utf-8")
    effects, sizes = {n: r["effect"] for n, r in rows.items()}, {n: r["n"] for n, r in rows.items()}
    figure = figures.methods(list(chosen), np.array(matrix), effects=effects, sizes=sizes)
    figure.write_html(args.out.with_suffix(".html"))
    print(
        f"\n| score | neurons | least necessity effect of the set | strongest control | per neuron | verified | verdict |\n|{'---|' * 7}"
    )
    for name, row in rows.items():
        value, low, high = row["effect"]
        control = f"{row['control'][1]:.2f} ({row['control'][0]})" if row["control"] else ""
        print(f"| {name} | {row['n']} | {value:.2f} [{low:.2f}, {high:.2f}] | {control} | {value / row['n']:.4f} | {row['verified']} "
              f"| {'passed' if row['passed'] else 'no: ' + ', '.join(row['failed'])} |")  # fmt: skip


if __name__ == "__main__":
    main()
