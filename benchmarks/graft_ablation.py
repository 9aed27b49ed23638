"""Which layers of the graft carry refusals? python benchmarks/graft_ablation.py

The neurons of smollm2-vision whose contribution in text is largest (`SIZES`: 0.03 % of the parameters, and ten times as many), taken from all layers,
from those below the last, and from the lower two thirds, are held at their mean over benign requests of the cell, at the last prompt
token. Beside each set: random sets of the same layers. Two measurements on held-out test requests:

    margin     the clean logit difference (harmful minus benign refusal margin) that is lost, as a share
    refusals   harmful requests refused before, less after, of greedy answers of `TOKENS` tokens

Writes results/graft-ablation.json.
"""

from __future__ import annotations

import argparse

import numpy as np
from result_files import TRIPLE, spread, write_result

import neuronshield as ns
from neuronshield import graft
from neuronshield.core.statistics import rate
from neuronshield.core.threads import leave_busy_cores
from neuronshield.data.grading import is_refusal
from neuronshield.data.languages import REFUSALS
from neuronshield.model.forward import margins
from neuronshield.model.prefixes import opening_tokens, openings_of

MODEL, BUDGET = "smollm2-vision", 3e-4
SIZES = (1, 10)  # times the budget
RANDOM, TOKENS = 5, 8
TEXT = ns.Cell("en", "text")
SHOWN = {"text": "text", "image": "drawings", "typographic": "words"}


def strongest(scores: ns.Scores, k: int, layers: int) -> ns.NeuronSet:
    """The `k` neurons of largest contribution of the first layers."""
    size = np.abs(scores[TEXT])
    size[layers:] = -1
    d_mlp = size.shape[1]
    best = np.argsort(-size, axis=None, kind="stable")[:k]
    return ns.NeuronSet([divmod(int(i), d_mlp) for i in best], n_layers=size.shape[0], d_mlp=d_mlp)


def refused(model: ns.Model, rows: ns.PromptSet, intervention: ns.Intervention | None) -> float:
    """The share of requests that are refused under an intervention."""
    said = ns.generate(
        model, list(rows), intervention=intervention, max_new_tokens=TOKENS, batch_size=32, progress=False
    )
    return float(np.mean([is_refusal(text, REFUSALS["en"]) for text in said]))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="test pairs a cell")
    args = parser.parse_args()
    leave_busy_cores()
    model = ns.load(MODEL)
    stats = ns.capture(
        model, ns.PromptSet.from_records(graft.records(splits=["discover"])), progress=False, batch_size=32
    )
    scores = ns.contrast(stats)
    budget = len(scores.top(param_fraction=BUDGET)[TEXT])
    test = ns.PromptSet.from_records(graft.records(splits=["test"], max_pairs=args.pairs))
    tokens = opening_tokens(model, openings_of(model, list(test)))
    below = {"all": model.n_layers, "below the last": model.n_layers - 1, "lower two thirds": 2 * model.n_layers // 3}
    sets = {(k, name): strongest(scores, k * budget, n) for k in SIZES for name, n in below.items()}
    rows = []
    for cell in test.cells():
        mine = test.in_cells([cell])
        harmful = mine.where(label="harmful")
        clean = refused(model, harmful, None)
        for (_, name), chosen in sets.items():
            every = [chosen, *(ns.random_like(chosen, model, seed=seed) for seed in range(RANDOM))]
            ablated = [ns.Intervention.mean_of(s, stats, cell=cell) for s in every]
            m = margins(model, list(mine), [None, *ablated], tokens, batch_size=32)
            is_harmful = np.array([p.label == "harmful" for p in mine])
            difference = m[:, is_harmful].mean(axis=1) - m[:, ~is_harmful].mean(axis=1)
            lost = 1 - difference[1:] / difference[0]
            answers = [clean - refused(model, harmful, x) for x in ablated]
            row = {
                "cell": f"{SHOWN[cell.modality]}, {name}, {len(chosen)} neurons", "top": max(layer for layer, _ in chosen),
                "difference": float(difference[0]), "margin": float(lost[0]), "margin random": spread(list(map(float, lost[1:]))),
                "clean": list(rate(round(clean * len(harmful)), len(harmful))), "refusals": answers[0], "refusals random": spread(answers[1:]),
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    columns: dict[str, tuple[str, str | None]] = {
        "cell": ("requests, layers, set", None), "top": ("highest layer in the set", None), "difference": ("clean logit difference", "{:.2f}"),
        "margin": ("share of it lost", "{:.2f}"), "margin random": ("random sets", TRIPLE), "clean": ("harmful refused, clean", TRIPLE),
        "refusals": ("refusals lost", "{:+.2f}"), "refusals random": ("random sets", "{:+.2f} [{:+.2f}, {:+.2f}]"),
    }  # fmt: skip
    write_result(
        "graft-ablation", "smollm2-vision: mean ablation of the strongest neurons in text, by layers; random sets: median, least and most",
        columns=columns, rows=rows,
        numbers={"budget": (budget, None), "random": (RANDOM, None), "pairs": (args.pairs, None), "layers": (model.n_layers, None)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
