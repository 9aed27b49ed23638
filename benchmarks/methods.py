"""Scores and published rules of the literature: which neurons each selects, and whether refusals depend on them.

    python benchmarks/methods.py --workers 16 --write

Every score selects 64 neurons of English text on the organism; every rule of `ns.select` selects by itself, and the number of its
neurons is reported. Options that papers give are theirs; the others are chosen for about 64 neurons, before any effect is measured. A
rule that joins languages or modalities reads their requests too. `verify` then tests each set on English text requests that no
selection saw. The change score compares the organism with itself after forty steps on benign prompts. Language-bound neurons (LAPE)
and random ones are controls that should have no effect.

With --write, results/scores.json is written, and with --figure FILE.html the figure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import neuronshield as ns
from neuronshield import figures, organism
from neuronshield.check.attacks import finetune
from neuronshield.core.files import write_text
from neuronshield.find.overlaps import jaccard
from neuronshield.find.scores import METHODS
from neuronshield.prove.requirements import requirements

RESULTS = Path(__file__).parent / "results"
CELL = ns.Cell("en", "text")
K = 64
#: Rules with their options, the cell whose set is taken, and the languages and modalities that they read.
RULES: dict[str, tuple[str, dict[str, Any], str]] = {
    "safeneuron (tau 2.5)": ("safeneuron", {"tau": 2.5}, "en/text"),
    "precise_shield (rho 0.15)": ("precise_shield", {"rho": 0.15}, "en/text"),
    "one_anchor (rho 0.5), English": ("one_anchor", {"rho": 0.5}, "en/text"),
    "ss_neurons (p 0.03), Swahili": ("ss_neurons", {"p": 0.03}, "sw/text"),
    "set_difference (p 0.05, q 0.03)": ("set_difference", {"p": 0.05, "q": 0.03}, "en/text"),
    "global_difference (p 0.05, q 0.03)": ("global_difference", {"p": 0.05, "q": 0.03}, "en/text"),
    "significance (q 0.05)": ("significance", {"q": 0.05}, "en/text"),
    "mean_difference (k 64)": ("mean_difference", {"k": K}, "en/text"),
}
MODEL_SCORES = ("attribution", "snip", "change_score")
NAMES = [*METHODS, *MODEL_SCORES, *RULES, "lape", "random"]
SHOWN = {"change_score": "change_score (against a benign fine-tune of itself)", "lape": "lape (language-bound)"}


def requests(name: str) -> ns.PromptSet:
    """The prompts of a row: English text to confirm on, and what its selection reads to discover on."""
    rule, _, cell = RULES.get(name, (name, {}, "en/text"))
    where: dict[str, Any] = {"languages": ["en"], "modalities": ["text"]}
    if name == "lape":
        where["languages"] = None
    if rule == "one_anchor":
        where["modalities"] = ["text", "image"]
    if rule in ("one_anchor", "ss_neurons"):
        where["languages"] = list(dict.fromkeys(["en", ns.Cell.of(cell).language]))
    rows = organism.records(**{k: v for k, v in where.items() if v is not None}, max_pairs=48)
    prompts = ns.PromptSet.from_records(rows, folder=organism.folder())
    return ns.PromptSet([p for p in prompts if p.split == "discover" or p.cell == CELL])


def chosen(name: str, model: ns.Model, prompts: ns.PromptSet) -> ns.NeuronSet:
    """The neurons of a row."""
    english = prompts.in_cells([CELL])
    if name == "random":
        picks = np.random.default_rng(0).choice(model.n_layers * model.d_mlp, K, replace=False)
        pairs = [divmod(int(i), model.d_mlp) for i in picks]
        about = {"method": "random", "cell": str(CELL), "seen": []}
        return ns.NeuronSet(pairs, n_layers=model.n_layers, d_mlp=model.d_mlp, provenance=about)
    if name == "attribution":
        return ns.attribution(model, english).top(k=K)[CELL]
    if name == "snip":
        return ns.baselines.snip(model, english, progress=False).top(k=K)[CELL]
    if name == "change_score":
        other = finetune(model, english, steps=40, lr=1e-3, progress=False)
        return ns.baselines.change_score(model, other, english, progress=False).top(k=K)[CELL]
    stats = ns.capture(model, prompts, progress=False)
    if name in RULES:
        rule, options, cell = RULES[name]
        return ns.select(rule, stats, **options)[cell]
    return ns.contrast(stats, method=name).top(k=K)[CELL]


def measure(name: str, draws: int) -> tuple[dict[str, Any], ns.NeuronSet]:
    """The row of the table, and the neurons."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, prompts, start = ns.load("organism"), requests(name), time.perf_counter()
    neurons = chosen(name, model, prompts)
    proof = ns.verify(model, neurons, prompts, draws=draws, progress=False)
    need = [c for c in proof.claims if c.name.startswith("necessity")]
    least = min(need, key=lambda c: c.effect.value)
    answers = next(c for c in proof.claims if c.name == "refusals: necessity")
    said = {"failed": "no", "too few requests to tell": "too few requests"}
    open_claims = {
        word: sorted({c.name.split(":")[0] for c in proof.claims if c.verdict == v}) for v, word in said.items()
    }
    control = least.strongest_control
    row = {
        "score": SHOWN.get(name, name), "neurons": len(neurons), "effect": rounded(least.effect), "claim": least.name,
        "control": [round(control[1], 4), control[0]] if control else None,
        "per_neuron": round(least.effect.value / len(neurons), 5), "answers": rounded(answers.effect),
        "members": len(proof.verified),
        "set": "passed" if proof.passed else "; ".join(f"{v}: {', '.join(names)}" for v, names in open_claims.items() if names),
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    return row, neurons


def rounded(values: Any) -> list[float]:
    return [round(float(v), 4) for v in values]


def result(rows: list[dict[str, Any]], overlap: np.ndarray, *, draws: int, command: str) -> dict[str, Any]:
    """The result file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    machine = f"{os.cpu_count()} CPU cores, no GPU"
    off = overlap - np.eye(len(rows))
    first, second = np.unravel_index(int(off.argmax()), off.shape)
    interval = "{:.2f} [{:.2f}, {:.2f}]"
    return {
        "title": "Scores and rules of the literature on en/text of the organism",
        "source": {"commit": commit.stdout.strip(), "command": command, "machine": machine},
        "numbers": {
            "largest_jaccard": {"value": round(float(off.max()), 2), "format": "{:.2f}"},
            "most_alike": {"value": f"{rows[int(first)]['score']} and {rows[int(second)]['score']}"},
            "draws": {"value": draws}, "neurons": {"value": K}, **counts(rows),
        },
        "columns": {
            "score": {"title": "score or rule"}, "neurons": {"title": "neurons", "format": "{:d}"},
            "effect": {"title": "smallest necessity effect of the set", "format": interval},
            "control": {"title": "its strongest control", "format": "{:.2f} ({})"},
            "per_neuron": {"title": "effect per neuron", "format": "{:.4f}"},
            "answers": {"title": "change of answers", "format": interval},
            "members": {"title": "members verified", "format": "{:d}"}, "set": {"title": "the set"},
        },
        "rows": rows,
    }  # fmt: skip


def counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows that pass, that each claim refuses and that shuffled labels reach first; requests of the sets and of kept members."""
    utility = {r.of: r for r in requirements(requests("contribution")) if r.claim == "utility"}
    whole, kept = utility["the set"], utility["its kept members"]
    claims = ("necessity", "sufficiency", "specificity", "refusals", "utility")
    said = {
        "rows": len(rows), "passed": sum(r["set"] == "passed" for r in rows),
        **{f"fails_{name}": sum(name in re.findall(r"\w+", r["set"]) for r in rows) for name in claims},
        "shuffled_strongest": sum(bool(r["control"]) and r["control"][1].startswith("permuted") for r in rows),
        "pairs": whole.has, "kept_pairs": kept.has, "kept_needs": kept.needs,
    }  # fmt: skip
    return {name: {"value": value} for name, value in said.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=50, help="control sets of each kind")
    parser.add_argument("--workers", type=int, default=1, help="rows measured at the same time, each on one core")
    parser.add_argument("--rows", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="some rows only")
    parser.add_argument("--write", action="store_true", help="write results/scores.json (all rows)")
    parser.add_argument("--figure", type=Path, help="write the figure as HTML")
    args = parser.parse_args()
    if args.write and args.rows != NAMES:
        parser.error("--write takes all rows")
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # of the workers: one row keeps one core busy
    rows, sets = [], []
    with ProcessPoolExecutor(args.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for row, neurons in pool.map(measure, args.rows, [args.draws] * len(args.rows)):
            print(json.dumps(row), flush=True)
            rows.append(row)
            sets.append(neurons)
    overlap = np.array([[jaccard(a, b) for b in sets] for a in sets])
    if args.figure:
        effects, sizes = ({n: r[key] for n, r in zip(args.rows, rows)} for key in ("effect", "neurons"))
        figures.methods(args.rows, overlap, effects=effects, sizes=sizes).write_html(args.figure)
    if args.write:
        command = f"python benchmarks/methods.py {' '.join(sys.argv[1:])}"
        order = sorted(range(len(rows)), key=lambda i: -rows[i]["effect"][0])
        data = result([rows[i] for i in order], overlap[np.ix_(order, order)], draws=args.draws, command=command)
        write_text(RESULTS / "scores.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
