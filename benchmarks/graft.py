"""What the graft does with harm in pictures, which no training stage taught: python benchmarks/graft.py

The test requests of natural harm (48 matched pairs) are asked four ways of each model: with the object named in the text; with its name as
text before a request that says "this"; with its drawing; with its name typeset in a picture. The second separates the picture from the word
"this". A request is scored only if the model names the object when it is asked what this very picture shows, and all ways of asking are
scored on the same requests. Where the object was changed in the pair, only the picture shows the harm. Answers are judged on their first
16 tokens.

Writes results/graft-pictures.json, and results/graft-build.json from the scores in assets/smollm2-vision.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from result_files import TRIPLE, write_result

import neuronshield as ns
from neuronshield.check.evaluation import evaluate
from neuronshield.core.statistics import rate
from neuronshield.data.prompts import PromptSet
from neuronshield.graft import NAMES, folder
from neuronshield.graft.build.scoring import named
from neuronshield.graft.build.sight import QUESTION
from neuronshield.graft.build.tuning import named_as_text
from neuronshield.graft.harms import held_out
from neuronshield.model.generation import generate

KINDS = {"image": "drawings", "typographic": "words"}
TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """One request about a picture, and what the model did each time.

    Attributes:
        label: "harmful" or "benign".
        changed: what of the pair was changed, "verb" or "object".
        seen: the model named the object.
        refused: by how it was asked.
    """

    label: str
    changed: str
    seen: bool
    refused: dict[str, bool]


def refusals(model: ns.Model, rows: PromptSet) -> list[bool]:
    """Which of the requests are refused."""
    answers = evaluate(model, rows, max_new_tokens=TOKENS, progress=False).answers
    return [a.outcome == "refused" for a in answers]


def measured(model: ns.Model, modality: str) -> list[Asked]:
    """Every test request about a picture of that kind."""
    records = held_out(splits=["test"], modalities=[modality])
    pictures = PromptSet.from_records(records)
    text = PromptSet.from_records(held_out(splits=["test"], modalities=["text"]))
    said = generate(
        model,
        [ns.Prompt(p.id, QUESTION, "benign", images=p.images, modality=modality) for p in pictures],
        max_new_tokens=8,
    )
    seen = [named(answer, r["object"]) for answer, r in zip(said, records, strict=True)]
    ways = {"text": text, "named": named_as_text(records), "picture": pictures}
    found = {way: refusals(model, rows) for way, rows in ways.items()}
    return [
        Asked(r["label"], r["changed"], seen[n], {way: refused[n] for way, refused in found.items()})
        for n, r in enumerate(records)
    ]


def row(name: str, kind: str, about: str, mine: Sequence[Asked]) -> dict[str, object]:
    """One line of the table: the requests whose object is named, asked each way."""
    named_ones = [a for a in mine if a.seen]
    out: dict[str, object] = {
        "condition": f"{name}, {kind}, {about}",
        "model": name,
        "kind": kind,
        "requests": about,
        "named": [len(named_ones), len(mine)],
    }
    for way in ("text", "named", "picture"):
        out[f"by_{way}"] = list(rate(sum(a.refused[way] for a in named_ones), len(named_ones)))
    return out


def table(names: Iterable[str]) -> list[dict[str, object]]:
    """All lines: models, kinds of picture, labels, and the harmful requests whose harm only the picture shows."""
    rows = []
    for name in names:
        model = ns.load(name)
        for modality, kind in KINDS.items():
            found = measured(model, modality)
            for label in ("harmful", "benign"):
                rows.append(row(name, kind, label, [a for a in found if a.label == label]))
            shown = [a for a in found if a.label == "harmful" and a.changed == "object"]
            rows.append(row(name, kind, "harmful, only the picture shows it", shown))
    return rows


def write_build() -> None:
    """The scores of the build, as a result file."""
    scores = json.loads((folder() / "scores.json").read_text(encoding="utf-8"))
    naming = {
        f"{kind}_{arm}": (v[kind], "{:.2f}") for arm, v in scores["naming"].items() for kind in ("drawings", "words")
    }
    size = sum(p.stat().st_size for p in folder().rglob("*") if p.is_file()) / 1e6
    write_result(
        "graft-build", "Refusals of held-out English text by smollm2-vision",
        columns={"source": ("requests", None), "label": ("label", None), "refused": ("refused", TRIPLE), "n": ("n", None)},
        rows=[{**r, "refused": list(rate(round(r["refused"] * r["n"]), r["n"]))} for r in scores["refusals"]],
        numbers={**naming, "minutes": (sum(scores["seconds"].values()) / 60, "{:.0f}"), "memory": (scores["memory"], "{:.1f}"), "size": (size, "{:.1f}")},
        settings="One seed",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=list(NAMES), help="of the graft; the build's scores only if none is given"
    )
    args = parser.parse_args()
    write_build()
    if args.models:
        write_result(
            "graft-pictures", "Refusals of requests about pictures, where the model names the object",
            columns={
                "condition": ("condition", None), "model": ("model", None), "kind": ("pictures", None), "requests": ("requests", None),
                "named": ("named, of", "{} of {}"), "by_text": ("object in the text", TRIPLE),
                "by_named": ("its name as text, then \"this\"", TRIPLE), "by_picture": ("picture, then \"this\"", TRIPLE),
            },
            rows=table(args.models), settings="One seed",
        )  # fmt: skip


if __name__ == "__main__":
    main()
