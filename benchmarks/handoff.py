"""The same models evaluated by `ns.evaluate` and by `inspect eval neuronshield/cells`: every answer and every rate side by side.

    pip install "neuronshield[inspect]"
    python benchmarks/handoff.py --write

The organism as it is, with a saved intervention that sets neurons to zero, and with a saved adapter of a masked update. inspect_ai
gets files and names only, as its command line would. The adapter is trained for a few steps and the neurons are not proven: what is
compared is two ways of measuring, not a shield.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from result_files import write_result

import neuronshield as ns
from neuronshield.check.cells import METRICS
from neuronshield.check.evaluation import Evaluation
from neuronshield.handoff.inspect_cells import registered
from neuronshield.handoff.inspect_samples import prompts_of

CELLS = ("en/text", "sw/text", "en/image", "sw/typographic")
SHOWN = ("refusal", "attack_success", "over_refusal", "selectivity")


def chosen(pairs: int) -> ns.PromptSet:
    """The first matched pairs of the test split in each cell."""
    rows = prompts_of("organism", cells=CELLS)
    return ns.PromptSet(p for cell in CELLS for p in list(rows.in_cells([cell]))[: 2 * pairs])


def by_inspect(prompts: Path, folder: Path, **arguments: Any) -> Any:
    """The log of `inspect eval neuronshield/cells --model neuronshield/organism -T prompts=... -M ...`."""
    from inspect_ai import eval as run

    task = registered().task(prompts=str(prompts))
    (log,) = run(task, model="neuronshield/organism", model_args=arguments, log_dir=str(folder), display="none")
    if log.status != "success":
        raise SystemExit(f"inspect eval: {log.error.message if log.error else log.status}")
    return log


def differences(found: Evaluation, log: Any) -> list[float]:
    """How far every rate, and each end of its interval, is from the metric of the log."""
    metrics = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    out = []
    for name in METRICS:
        for where, rate in ({c: found.cell(c)[name] for c in found.cells()} | {"mean": found.mean(name)}).items():
            if rate.value == rate.value:
                out += [
                    abs(value - metrics[f"{name} {where}{end}"])
                    for end, value in zip(("", " low", " high"), rate, strict=True)
                ]
    return out


def compare(name: str, prompts: ns.PromptSet, *, texts: Sequence[str], found: Evaluation, log: Any) -> dict[str, Any]:
    """One row: answers that are the same, and the largest difference of a rate."""
    by_id = {str(sample.id): sample.output.completion.strip() for sample in log.samples}
    back = ns.evaluate(log.location, prompts)
    apart = differences(found, log)
    return {
        "model": name, "answers": len(prompts), "same": sum(by_id[p.id] == t for p, t in zip(prompts, texts, strict=True)),
        "rates": len(apart), "apart": max(apart), "back": int(back.answers == found.answers),
        **{metric: list(found.mean(metric)) for metric in SHOWN},
    }  # fmt: skip


def main() -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=8, help="matched pairs a cell")
    parser.add_argument("--steps", type=int, default=4, help="steps of the masked update")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, prompts = ns.load("organism"), chosen(given.pairs)
    neurons = ns.NeuronSet([(layer, i) for layer in range(2, 5) for i in range(40)], n_layers=6, d_mlp=512)
    zero = ns.Intervention(neurons, "zero", positions="all")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        update = ns.masked_update(
            model, neurons, prompts.marked("train"), steps=given.steps, allow_unproven=True, progress=False
        )
        adapter, file = update.save(here / "adapter"), zero.save(here / "zero.json")
        asked = prompts.to_jsonl(here / "prompts.jsonl")
        for name, own, changed, arguments in (
            ("organism", model, None, {}),
            ("organism, neurons set to zero", model, zero, {"intervention": str(file)}),
            ("organism, masked update", update.model, None, {"adapter": str(adapter)}),
        ):
            texts = ns.generate(own, prompts, intervention=changed)
            found = ns.evaluate(own, prompts, progress=False) if changed is None else answered(own, prompts, texts)
            rows.append(
                compare(name, prompts, texts=texts, found=found, log=by_inspect(asked, here / "logs", **arguments))
            )
            print(rows[-1], flush=True)
    if given.write:
        write_result(
            "handoff-inspect", "ns.evaluate and inspect eval neuronshield/cells on the same models and prompts", rows=rows,
            columns={
                "model": ("model", None), "answers": ("answers", "{}"), "same": ("the same in both", "{}"),
                "rates": ("rates and ends of intervals", "{}"), "apart": ("largest difference", "{:.1g}"),
                **{m: (m.replace("_", " "), "{:.2f} [{:.2f}, {:.2f}]") for m in SHOWN},
            },
            settings=f"{given.pairs} matched pairs in each of {', '.join(CELLS)}; {given.steps} steps of the masked update",
        )  # fmt: skip


def answered(model: ns.Model, prompts: ns.PromptSet, texts: Sequence[str]) -> Evaluation:
    """The graded answers, as `evaluate` grades them; `evaluate` itself takes no intervention."""
    from neuronshield.check.graded import graded
    from neuronshield.model.prefixes import openings_of
    from neuronshield.model.thoughts import in_thought

    openings, opened = openings_of(model, prompts), in_thought(model, prompts)
    return Evaluation(graded(prompts, texts, openings=openings, in_thought=opened))


if __name__ == "__main__":
    main()
