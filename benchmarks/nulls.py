"""How often sets that were not chosen for refusals pass verify: python benchmarks/nulls.py --workers 16 --write

On English text of the organism, 64 neurons are chosen that say nothing about harm, and `verify` tests them on requests that the
choice did not see:

    shuffled labels   by contribution or effect size, with harmful and benign swapped by one coin a matched pair
    topic             by contribution of benign prompts only: those of one half of the verbs against those of the other half
    random            at random, with as many neurons in each layer as the true set has

"true" are the neurons that the same scores choose with the labels as they are, each time with another seed of `verify`. A null set may
pass in at most 5 of 100 cases. Every set is measured in a process of its own and is kept in --raw when it is done; a run
that was cut short goes on from there. After --minutes no further set is started, and what there is is summarised. With --write the
results go to benchmarks/results/nulls.json.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from result_files import in_processes, write_result
from scipy.stats import beta

import neuronshield as ns
from neuronshield.core.statistics import Interval
from neuronshield.prove.controls import random_like
from neuronshield.run.plan import read_prompts

CELL = ns.Cell("en", "text")
K = 64
#: What is chosen, and by which score.
KINDS = {
    "shuffled labels, contribution": ("shuffled", "contribution"),
    "shuffled labels, effect_size": ("shuffled", "effect_size"),
    "topic, contribution": ("topic", "contribution"),
    "random": ("random", "contribution"),
    "true, contribution": ("true", "contribution"),
    "true, effect_size": ("true", "effect_size"),
}
OTHER = {"harmful": "benign", "benign": "harmful"}
#: Claims in one column: passed if all of them passed.
CLAIMS = {
    "necessity": "necessity:", "sufficiency": "sufficiency:", "specificity": "specificity",
    "answers": "refusals:", "utility": "utility",
}  # fmt: skip


def prompts_of() -> ns.PromptSet:
    """English text: 32 requests to choose on, 48 to confirm on."""
    english = read_prompts("organism", None, seed=0).in_cells([CELL])
    return ns.PromptSet([p for p in english if p.split in ("discover", "confirm")])


def top(model: ns.Model, prompts: ns.PromptSet, method: str) -> ns.NeuronSet:
    """The neurons that a score ranks first."""
    return ns.contrast(ns.capture(model, prompts, progress=False), method=method).top(k=K)[CELL]


def chosen(kind: str, model: ns.Model, prompts: ns.PromptSet, *, seed: int) -> ns.NeuronSet:
    """The set of a kind.

    Args:
        kind: one of `KINDS`.
        model: the organism.
        prompts: of `prompts_of`.
        seed: of the choice.
    """
    (choice, method), discover = KINDS[kind], prompts.where(split="discover")
    rng = np.random.default_rng([seed, 99])
    if choice == "true":
        return top(model, discover, method)
    if choice == "random":
        return ns.NeuronSet(
            random_like(top(model, discover, method), model, seed=rng), n_layers=model.n_layers, d_mlp=model.d_mlp,
            provenance={"method": "random", "cell": str(CELL), "seen": []},
        )  # fmt: skip
    if choice == "shuffled":
        swapped = {request: rng.random() < 0.5 for request in sorted({str(p.pair_id) for p in discover})}
        rows = [replace(p, label=OTHER[p.label]) if swapped[str(p.pair_id)] else p for p in discover]
        return top(model, ns.PromptSet(rows), method)
    benign = discover.where(label="benign")
    verbs = sorted({p.expect[0] for p in benign if p.expect})
    half = {verbs[i] for i in rng.permutation(len(verbs))[: len(verbs) // 2]}
    rows = [replace(p, label="harmful" if p.expect and p.expect[0] in half else "benign") for p in benign]
    return top(model, ns.PromptSet(rows), method)


def measure(unit: str, *, draws: int, graded: int) -> dict[str, Any]:
    """What `verify` says of one set.

    Args:
        unit: kind and seed, such as "topic 3".
        draws: control sets of each kind.
        graded: pairs whose answers are generated.
    """
    kind, seed = unit.rsplit(" ", 1)
    start, model, prompts = time.perf_counter(), ns.load("organism"), prompts_of()
    neurons = chosen(kind, model, prompts, seed=int(seed))
    proof = ns.verify(model, neurons, prompts, draws=draws, graded=graded, seed=int(seed), progress=False)
    retest = proof.retest.claims if proof.retest else ()
    return {
        "kind": kind, "word": proof.word, "passed": proof.passed, "verified": len(proof.verified),
        "candidates": len(proof.candidates), "recovered": proof.controls.recovered,
        "claims": {c.name: c.verdict for c in proof.claims}, "kept_claims": {c.name: c.verdict for c in retest},
        "effects": {c.name: c.effect.value for c in proof.claims if c.verdict != "not tested"},
        "p": {c.name: c.p for c in proof.claims}, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def exact(k: int, n: int) -> Interval:
    """A share with its exact 95 % interval (Clopper and Pearson 1934).

    Args:
        k: successes.
        n: trials.
    """
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return Interval(k / n, low, high)


def row(kind: str, units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of a kind.

    Args:
        kind: its name.
        units: what `measure` found.
    """
    n = len(units)
    passed, verified = sum(u["passed"] for u in units), sum(u["verified"] > 0 for u in units)

    def held(start: str) -> int:
        return sum(
            all(v in ("passed", "not tested") for name, v in u["claims"].items() if name.startswith(start))
            for u in units
        )

    words = Counter(u["word"] for u in units)
    return {
        "kind": kind, "n": n, "passed": [passed, *exact(passed, n)], "verified": [verified, *exact(verified, n)],
        **{name: held(start) for name, start in CLAIMS.items()},
        "effect": round(float(np.median([u["effects"]["necessity: mean"] for u in units if u["effects"]] or [np.nan])), 3),
        "words": ", ".join(f"{word} {count}" for word, count in words.most_common()),
    }  # fmt: skip


def summarise(done: dict[str, dict[str, Any]], *, draws: int, graded: int, write: bool) -> list[dict[str, Any]]:
    """The rows of all kinds, printed, and written to the result file.

    Args:
        done: units by name.
        draws: as for `measure`.
        graded: as for `measure`.
        write: whether the result file is written.
    """
    by_kind = {kind: [u for u in done.values() if u["kind"] == kind] for kind in KINDS}
    rows = [row(kind, units) for kind, units in by_kind.items() if units]
    for each in rows:
        print(each, flush=True)
    nulls = [u for u in done.values() if KINDS[u["kind"]][0] != "true"]
    if not write or not nulls:
        return rows
    share = "{} ({:.2f} [{:.2f}, {:.2f}])"
    every = [sum(u[key] > 0 for u in nulls) for key in ("passed", "verified")]
    write_result(
        "nulls",
        "Sets that were not chosen for refusals, tested by verify on en/text of the organism",
        settings=f"{draws} draws, {graded} graded pairs",
        columns={
            "kind": ("set of 64 neurons", None), "n": ("sets", "{:d}"), "passed": ("passed as a set", share),
            "verified": ("with verified members", share),
            **{name: (f"{name} passed", "{:d}") for name in CLAIMS},
            "effect": ("median effect of mean ablation", "{:.2f}"), "words": ("verdicts", None),
        },
        rows=rows,
        numbers={
            "n": (len(nulls), None), "draws": (draws, None),
            "passed": ([every[0], *exact(every[0], len(nulls))], share),
            "verified": ([every[1], *exact(every[1], len(nulls))], share),
        },
    )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=40, help="sets of each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="some kinds only")
    parser.add_argument("--draws", type=int, default=39, help="control sets of each kind")
    parser.add_argument("--graded", type=int, default=48, help="pairs whose answers are generated")
    parser.add_argument("--workers", type=int, default=1, help="sets measured at the same time, each on one core")
    parser.add_argument("--minutes", type=float, default=60, help="no set is started later")
    parser.add_argument("--raw", type=Path, default=Path("nulls.jsonl"), help="what was found of each set")
    parser.add_argument("--write", action="store_true", help="write results/nulls.json")
    args = parser.parse_args()
    start = time.perf_counter()
    done: dict[str, dict[str, Any]] = {}
    units = [f"{kind} {i}" for i in range(args.sets) for kind in args.kinds]
    work = partial(measure, draws=args.draws, graded=args.graded)
    for at in range(0, len(units), 4 * args.workers):
        if time.perf_counter() - start > 60 * args.minutes:
            break
        done |= in_processes(work, units[at : at + 4 * args.workers], workers=args.workers, raw=args.raw)
        summarise(done, draws=args.draws, graded=args.graded, write=args.write)


if __name__ == "__main__":
    main()
