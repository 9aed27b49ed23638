"""Does a server answer what `ns.generate` answers? On the organism: python benchmarks/served.py (some minutes on one core).

A masked update of the organism is trained, saved in both forms, and served by `transformers serve` on this machine: the merged model,
and the base model with the adapter beside it. Every "test" prompt of four cells is asked through the OpenAI-compatible interface, pictures
as data URIs, greedily. The answers are compared with those of `ns.evaluate` on the shielded model, and graded by the same rules.

Writes benchmarks/results/served.json. Needs `pip install "transformers[serving]"`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from result_files import TRIPLE, one_thread, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from local_server import serving, text, with_adapter

import neuronshield as ns
from neuronshield import organism
from neuronshield.check.evaluation import Evaluation
from neuronshield.check.graded import graded
from neuronshield.model.prefixes import openings_of

CELLS = ["en/text", "en/image", "en/typographic", "sw/text"]
TOKENS = 32
COLUMNS: dict[str, tuple[str, str | None]] = {
    "served": ("answered by", None), "text": ("equal, text", "{} of {}"), "picture": ("equal, with a picture", "{} of {}"),
    "refusal": ("harmful refused", TRIPLE), "over_refusal": ("benign refused", TRIPLE),
}  # fmt: skip


def shield() -> tuple[ns.Update, ns.PromptSet]:
    """A masked update of the organism, and the prompts."""
    model = ns.load("organism")
    prompts = ns.PromptSet.from_records(organism.records(max_pairs=12)).in_cells(CELLS)
    neurons = ns.contrast(ns.capture(model, prompts, progress=False)).top(k=64)["en/text"]
    training: dict[str, Any] = {"steps": 20, "lr": 2e-2, "batch_size": 16, "allow_unproven": True, "progress": False}
    return ns.masked_update(model, neurons, prompts, **training), prompts


def row(name: str, evaluation: Evaluation, expected: list[str]) -> dict[str, Any]:
    """One line of the table."""
    same = {True: [0, 0], False: [0, 0]}
    for answer, wanted in zip(evaluation.answers, expected, strict=True):
        count = same[bool(answer.prompt.images)]
        count[0] += answer.response == wanted
        count[1] += 1
    rates = {name: evaluation.mean(name) for name in ("refusal", "over_refusal")}
    return {
        "served": name,
        "text": same[False],
        "picture": same[True],
        **{k: [v.value, v.low, v.high] for k, v in rates.items()},
    }


def main() -> None:
    one_thread()
    warnings.simplefilter("ignore")
    update, prompts = shield()
    here = ns.evaluate(update.model, prompts, max_new_tokens=TOKENS, progress=False)
    base = ns.evaluate(ns.load("organism"), prompts, max_new_tokens=TOKENS, progress=False)
    asked = [answer.prompt for answer in here.answers]
    expected = [answer.response for answer in here.answers]
    rows = [row("`ns.evaluate`, shielded", here, expected), row("`ns.evaluate`, base model", base, expected)]
    openings = openings_of(update.model, asked)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        update.save(folder / "adapter")
        forms = {
            "`transformers serve`, merged": update.save_merged(folder / "merged"),
            "`transformers serve`, base and adapter": with_adapter(
                organism.folder(), folder / "adapter", folder / "both"
            ),
        }
        for name, served in forms.items():
            with serving(served, max_tokens=TOKENS) as ask:
                texts = [text(ask(prompt)) for prompt in asked]
            answers = graded(asked, texts, openings=openings, in_thought=[False] * len(asked))
            rows.append(row(name, Evaluation(answers=answers), expected))
            print(rows[-1], flush=True)
    write_result(
        "served", "A shield of the organism, answered here and by a server: answers that equal those of the shielded model here, and rates over them",
        columns=COLUMNS, rows=rows, settings=f"{len(asked)} test prompts of {', '.join(CELLS)}; greedy, at most {TOKENS} tokens",
    )  # fmt: skip


if __name__ == "__main__":
    main()
