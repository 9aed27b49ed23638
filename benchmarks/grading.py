"""Recall and precision of the built-in grading of refusals, by language: python benchmarks/grading.py

Sentences that refuse and sentences that do not, as assistants write them, are in tests/data/refusal_sentences.jsonl. Those of the
half "patterns" were in view while the wordings were written, those of the half "held_out" were not: no wording was changed for
one of them. Sentences were written in several rounds, each graded before its sentences were added to "patterns"; the last round is
held out. All are by the authors of the wordings.
Writes benchmarks/results/grading.json.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from neuronshield.core.statistics import Interval, rate
from neuronshield.data.grading import grade, openings_for
from neuronshield.data.prompts import Prompt

ROOT = Path(__file__).parents[1]
SENTENCES = ROOT / "tests" / "data" / "refusal_sentences.jsonl"
HALVES = ("patterns", "held_out")


def sentences() -> list[dict[str, Any]]:
    """The labelled sentences."""
    return [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]


def graded(rows: list[dict[str, Any]]) -> tuple[Interval, Interval]:
    """Recall and precision of refusals."""
    found = []
    for row in rows:
        prompt = Prompt("p", "how", "harmful", language=row["language"])
        found.append(bool(grade(prompt, row["text"], openings_for([prompt])).refused))
    true = [r["refusal"] for r in rows]
    hits = sum(a and b for a, b in zip(found, true, strict=True))
    return rate(hits, sum(true)), rate(hits, sum(found))


def main() -> None:
    rows = sentences()
    table = []
    for language in dict.fromkeys(r["language"] for r in rows):
        line: dict[str, Any] = {"language": language}
        for half in HALVES:
            mine = [r for r in rows if (r["language"], r["half"]) == (language, half)]
            recall, precision = graded(mine)
            line |= {f"n_{half}": len(mine), f"recall_{half}": list(recall), f"precision_{half}": list(precision)}
        table.append(line)
        print(
            line["language"],
            *(f"{half} {line[f'recall_{half}'][0]:.2f} {line[f'precision_{half}'][0]:.2f}" for half in HALVES),
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    form = "{:.2f} [{:.2f}, {:.2f}]"
    data = {
        "title": "Recall and precision of refusals graded by their wording, on sentences of ours",
        "source": {
            "commit": commit.stdout.strip(),
            "command": "python benchmarks/grading.py",
            "machine": "2 CPU cores, no GPU",
        },
        "numbers": {
            "languages": {"value": len(table)},
            "sentences": {"value": len(rows)},
            "held_out": {"value": sum(r["half"] == "held_out" for r in rows)},
            "least_recall": {"value": min(r["recall_held_out"][0] for r in table), "format": "{:.2f}"},
            "least_precision": {"value": min(r["precision_held_out"][0] for r in table), "format": "{:.2f}"},
        },
        "columns": {
            "language": {"title": "language"},
            "n_held_out": {"title": "held-out sentences"},
            "recall_held_out": {"title": "recall", "format": form},
            "precision_held_out": {"title": "precision", "format": form},
            "n_patterns": {"title": "sentences in view"},
            "recall_patterns": {"title": "recall", "format": form},
            "precision_patterns": {"title": "precision", "format": form},
        },
        "rows": table,
    }
    path = ROOT / "benchmarks" / "results" / "grading.json"
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
