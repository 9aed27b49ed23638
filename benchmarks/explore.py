"""What docs/explore.md says of neurons: python benchmarks/explore.py --run neuronshield-out

Opens the explorer of a finished run of the organism, measures how long that takes and how large the page is, and writes down what the page
says of three neurons: results/explore.json.

--smollm2 PAGE trains the candidates of `benchmarks/shield.py` in SmolLM2 for fewer steps on fewer prompts, which takes minutes on one CPU core,
writes the explorer of the updated model to PAGE, and results/explore-smollm2.json. `docs/explorer_pictures.py` takes the pictures of both.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

from result_files import write_result
from shield import BUDGET, RETENTION, TRAINING, choose, prompts_of

import neuronshield as ns
from neuronshield.explorer.view import AS_IT_IS, NeuronView, View

#: Of SmolLM2: requests of each label that are trained, those of each label that are shown, and steps.
TRAIN, SHOWN, STEPS = 64, 16, 48
#: What a page says of a neuron, by the key of its column.
COLUMNS: dict[str, tuple[str, str | None]] = {
    "neuron": ("neuron", None), "status": ("status", None), "kind": ("kind", None),
    "effect": ("effect of ablating it alone", "{:.3f} [{:.3f}, {:.3f}]"), "writes": ("a unit adds to the refusal margin", "{:+.3f}"), "direct": ("that times the difference, English text", "{:+.2f}"),
    "promoted": ("promotes", None), "suppressed": ("suppresses", None), "harmful": ("harmful - benign, English text", "{:+.2f}"),
    "image": ("English image", "{:+.2f}"), "other": ("Swahili text", "{:+.2f}"), "scale": ("largest activation shown", "{:.1f}"),
}  # fmt: skip


def row(neuron: NeuronView) -> dict[str, Any]:
    """What a page says of one neuron."""
    effect = None if neuron.effect is None else list(neuron.effect)
    words = {end: ", ".join(f"`{t.strip()}`" for t in getattr(neuron, end)[:5]) for end in ("promoted", "suppressed")}
    cells = {"harmful": "en/text", "image": "en/image", "other": "sw/text"}
    difference = neuron.differences.get("en/text")
    direct = None if neuron.writes is None or difference is None else neuron.writes * difference
    return {
        "neuron": f"({neuron.layer}, {neuron.index})", "status": neuron.status, "kind": neuron.kind, "effect": effect, "writes": neuron.writes, "direct": direct,
        **words, **{key: neuron.differences.get(cell) for key, cell in cells.items()}, "scale": neuron.scale,
    }  # fmt: skip


def told(view: View) -> list[NeuronView]:
    """Of the verified neurons the compliance-promoting and the refusal-promoting one of largest effect, and the anti-refusal one of lowest."""
    verified = sorted((n for n in view.neurons if n.status == "verified" and n.effect is not None), key=effect)
    return [
        next(n for n in reversed(verified) if n.kind == "compliance-promoting"),
        next(n for n in reversed(verified) if n.kind == "refusal-promoting"),
        next(n for n in verified if n.kind == "anti-refusal"),
    ]


def effect(neuron: NeuronView) -> float:
    """Of ablating it alone."""
    assert neuron.effect is not None
    return neuron.effect[0]


def outcomes(view: View, condition: str, label: str, cell: str | None = None) -> list[int]:
    """How many of the prompts shown are refused, and of how many."""
    rows = [p for p in view.prompts if p.label == label and cell in (None, p.cell) and condition in p.answers]
    return [sum(p.answers[condition].outcome == "refused" for p in rows), len(rows)]


def organism(run: Path) -> None:
    """The result file of a run of the organism."""
    start = time.perf_counter()
    explorer = ns.explore(run, progress=False)
    page = run.with_name(f"{run.name}-explorer.html")
    size = explorer.save(page).stat().st_size
    took = time.perf_counter() - start
    page.unlink()
    view = explorer.view
    pictures = sum(len(source) for source in {picture.source for p in view.prompts for picture in p.pictures})
    kinds = {
        "verified": "verified",
        "anti_refusal": "anti-refusal",
        "refusal_promoting": "refusal-promoting",
        "compliance_promoting": "compliance-promoting",
    }
    counts = {key: sum(value in (n.status, n.kind) for n in view.neurons) for key, value in kinds.items()}
    layers = sorted({n.layer for n in view.neurons})
    numbers: dict[str, tuple[Any, str | None]] = {
        "seconds": (took, "{:.1f}"), "megabytes": (size / 1e6, "{:.2f}"), "pictures": (pictures / 1e6, "{:.2f}"),
        "neurons": (len(view.neurons), None), "prompts": (len(view.prompts), None), "cells": (len({p.cell for p in view.prompts}), None),
        "layers": (", ".join(map(str, layers)), None),
        **{key: (n, None) for key, n in counts.items()},
    }  # fmt: skip
    refused = "{} of {}"
    for name, condition in {
        "clean": AS_IT_IS,
        "ablated": "set ablated",
        "random": "random set ablated",
        "shielded": "shielded",
    }.items():
        if condition in view.conditions:
            numbers |= {
                f"{name}_{label}": (outcomes(view, condition, label), refused) for label in ("harmful", "benign")
            }
            numbers |= {f"{name}_english": (outcomes(view, condition, "harmful", "en/text"), refused)}
    write_result(
        "explore",
        "Three neurons of the organism, as the explorer shows them",
        columns=COLUMNS,
        rows=[row(n) for n in told(view)],
        numbers=numbers,
    )


def smollm2(page: Path) -> None:
    """The result file and the page of SmolLM2."""
    model, prompts = ns.load("smollm2"), prompts_of("english")
    train: list[ns.Prompt] = []
    for source in ("advbench", "everyday"):
        train += [p for p in prompts.for_step("train") if p.source == source][:TRAIN]
    rows = ns.PromptSet(train)
    _, chosen = choose(model, rows)
    start = time.perf_counter()
    update = ns.masked_update(
        model, chosen, rows, budget=BUDGET, allow_unproven=True, **TRAINING, steps=STEPS, retention=RETENTION
    )
    print(
        f"trained: {time.perf_counter() - start:.0f} s, loss {update.losses[0]:.2f} to {update.losses[-1]:.2f}",
        flush=True,
    )
    shown: list[ns.Prompt] = []
    for source in ("advbench", "everyday"):
        shown += [p for p in prompts.for_step("test") if p.source == source][:SHOWN]
    start = time.perf_counter()
    explorer = ns.explore(
        update.model, chosen, ns.PromptSet(shown), n_prompts=len(shown), max_new_tokens=16, progress=False
    )
    size = explorer.save(page).stat().st_size
    view = explorer.view
    refused = "{} of {}"
    numbers: dict[str, tuple[Any, str | None]] = {
        "neurons": (len(view.neurons), None), "prompts": (len(view.prompts), None), "train": (2 * TRAIN, None), "steps": (STEPS, None),
        "layers": (", ".join(map(str, sorted({n.layer for n in view.neurons}))), None), "seconds": (time.perf_counter() - start, "{:.0f}"),
        "last": (sum(n.layer == model.n_layers - 1 for n in view.neurons), None),
        "megabytes": (size / 1e6, "{:.2f}"), "params": (100 * update.param_fraction, "{:.3f} %"),
    }  # fmt: skip
    for name, condition in {"clean": AS_IT_IS, "ablated": "set ablated", "random": "random set ablated"}.items():
        if condition in view.conditions:
            numbers |= {
                f"{name}_{label}": (outcomes(view, condition, label), refused) for label in ("harmful", "benign")
            }
    columns = {k: v for k, v in COLUMNS.items() if k not in ("image", "other", "status", "direct")}
    known = sorted((n for n in view.neurons if n.effect is not None), key=effect, reverse=True)
    table = [row(n) for n in known[:2]]
    title = "The two neurons of the updated SmolLM2 with the largest effect"
    write_result(
        "explore-smollm2", title, columns=columns, rows=[{k: r[k] for k in columns} for r in table], numbers=numbers
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the organism")
    parser.add_argument("--smollm2", type=Path, metavar="PAGE", help="train SmolLM2 and write its explorer here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.run is not None:
        organism(args.run)
    if args.smollm2 is not None:
        smollm2(args.smollm2)


if __name__ == "__main__":
    main()
