"""The verdicts of the main job on the models that ship: python benchmarks/verdicts.py NAME=FOLDER [NAME=FOLDER ...]

FOLDER holds a finished run (`neuronshield run --model NAME --out FOLDER`); several runs of one kind of control organism, of other seeds, are
named shared/1, shared/2. Reads results.json of each and writes results/verdicts.json: whether the set causes refusals, whether it is shared by
languages and by modalities, whether it carries the decision, and whether what is trained transfers, each with the numbers behind it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from result_files import TRIPLE, write_result

from neuronshield.run.conditions import LORA, RANDOM_MASKS, over
from neuronshield.run.sections import Sections, sections_of
from neuronshield.run.transfer import transfer

SIGNED = "{:+.2f} [{:+.2f}, {:+.2f}]"
QUESTIONS = ("shared by languages", "shared by modalities", "decision", "transfer")
CLAIMS = {"necessity": "refusals: necessity", "sufficiency": "refusals: sufficiency"}


def said(found: Sections) -> dict[str, Any]:
    """What a run says of its set, in words, and the set's activity on harmful requests that are answered."""
    assert found.prove is not None, "step prove is missing"
    answers = {a.question: a.word for a in transfer(found)}
    activity = {(a.label, a.outcome): list(a.activity) for a in found.prove.experiments.recognition}
    return {
        "word": found.prove.word, **{q: answers.get(q, "not asked") for q in QUESTIONS},
        "activity": activity.get(("harmful", "answered")),
    }  # fmt: skip


def row(name: str, found: Sections) -> dict[str, Any]:
    """The row of a run."""
    proof, check = found.prove, found.check
    assert proof is not None, f"{name}: step prove is missing"
    assert check is not None, f"{name}: step check is missing"
    claims = {c.name: c for c in proof.claims}
    masks, lora = (check.matched[over(x)] for x in (RANDOM_MASKS, LORA))
    return {
        "model": name, **said(found), "candidates": len(proof.neurons),
        **{key: list(claims[claim].effect) if claim in claims else None for key, claim in CLAIMS.items()},
        "gain": list(check.gains_in_selectivity["over no update"]),
        "masks": list(masks.difference), "lora": list(lora.difference), "benign": masks.benign,
    }  # fmt: skip


COLUMNS: dict[str, tuple[str, str | None]] = {
    "model": ("model", None), "word": ("does the set cause refusals?", None), "candidates": ("neurons", None),
    "necessity": ("refusals lost by ablation", TRIPLE), "sufficiency": ("refusals gained by insertion", TRIPLE),
    "shared by languages": ("shared by languages", None), "shared by modalities": ("shared by modalities", None),
    "decision": ("decision", None), "activity": ("activity on harm that is answered", TRIPLE),
    "transfer": ("what is trained", None), "gain": ("gain in selectivity, untrained cells", SIGNED),
    "masks": ("over random masks, matched benign refusal", SIGNED), "lora": ("over plain LoRA, matched benign refusal", SIGNED),
    "benign": ("benign refusal there", "{:.2f}"),
}  # fmt: skip


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--commit", help="commit that the runs were made with; default this checkout's")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    minutes: dict[str, tuple[Any, str | None]] = {}
    for given in args.runs:
        name, _, folder = given.partition("=")
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        rows.append(row(name, sections_of(results)))
        minutes[f"minutes_{name}"] = (sum(results["seconds"].values()) / 60, "{:.0f}")
        print(json.dumps(rows[-1]))
    made = {"command": "neuronshield run --model MODEL", "machine": "2 CPU cores, no GPU"}
    write_result(
        "verdicts", "Verdicts of the main job on models of which something is known", columns=COLUMNS, rows=rows, numbers=minutes,
        made=made | ({"commit": args.commit} if args.commit else {}),
    )  # fmt: skip


if __name__ == "__main__":
    main()
