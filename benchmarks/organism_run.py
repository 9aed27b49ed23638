"""Result files of one run on the organism: python benchmarks/organism_run.py [neuronshield-out]

Reads `results.json` of the run, and writes the numbers and rows of organism-proof.json, organism-overlap.json and, if the run has the
steps shield and check, organism-shield.json in benchmarks/results. Titles, columns and formats stay as they are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from result_files import OUTCOMES, RESULTS, TRIPLE, source, text

from neuronshield.core.files import write_text

PICTURES = ("image", "typographic")


def proof(run: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers of the proof, and one row a claim."""
    found = run["prove"]
    answers = {(a["label"], a["condition"]): a for a in found["answers"]}
    refused = {c: round(a["refused"][0] * a["n"]) for (label, c), a in answers.items() if label == "harmful"}
    roles = [m["role"] for m in found["members"]]
    experiments = found["experiments"]
    whole, (first, second) = experiments["completeness"][0], experiments["backups"][:2]
    answered = next(r for r in experiments["recognition"] if (r["label"], r["outcome"]) == ("harmful", "answered"))
    silent = [r for r in experiments["cross_cell"] if r["target"] not in found["cells"]]
    crossed = {kind: [r for r in silent if r["target"].endswith(f"/{kind}")] for kind in ("text", "image")}
    numbers = {
        "prompts": run["prompts"]["n"], "cells": len(run["prompts"]["cells"]), "candidates": len(found["neurons"]["members"]),
        "pairs": found["n_pairs"], "requests": found["n_requests"], "refusing_cells": len(found["cells"]), "draws": found["draws"],
        "answers": refused["clean"], "answers_ablated": refused["set ablated"], "answers_random": refused["random set ablated"],
        "lower_alone": roles.count("alone"), "lower_in_groups": roles.count("in a group"), "raise": roles.count("anti-refusal"),
        "no_effect": roles.count(""), "verified": len(found["verified"]["members"]),
        **members(found), **signs(found),
        "minimal": experiments["minimal"]["size"], "minimal_share": round(100 * experiments["minimal"]["share"]),
        "completeness": whole["share"], "completeness_random": whole["random"][0],
        "first_round": first["effect"][0], "second_round": second["effect"][0], "second_round_random": second["random"][0],
        "recognition": answered["activity"], "recognition_random": answered["random"][0],
        "cross_text": mean(crossed["text"], "effect"), "cross_image": mean(crossed["image"], "effect"),
        "cross_random": mean(crossed["text"] + crossed["image"], "random"),
    }  # fmt: skip
    return numbers, [claim_row(c) for c in found["claims"]]


def members(found: dict[str, Any]) -> dict[str, Any]:
    """What became of the members that were chosen, and how many sets on shuffled labels have."""
    retest, shuffled, wording = found["retest"], found["shuffled"], found["wording"]
    return {
        "chosen": retest["n_members"], "chosen_on": retest["n_chosen_on"], "tested_on": retest["n_requests"],
        "members_passed": "passed" if retest["passed"] else "did not pass",
        "shuffled_mean": round(float(np.mean(shuffled["shuffled"])), 1), "shuffled_max": max(shuffled["shuffled"]),
        "judged_ratio": round(wording["judged"][0] / wording["keyword"][0], 2),
    }  # fmt: skip


def signs(found: dict[str, Any]) -> dict[str, Any]:
    """How many members there are of each kind of sign, and how many of them lower refusal when ablated alone."""
    kinds = {
        "refusal-promoting": "refusal_promoting",
        "compliance-promoting": "compliance_promoting",
        "anti-refusal": "sign_anti_refusal",
    }
    out: dict[str, Any] = {"larger_on_benign": sum(m["sign"]["contrast"] < 0 for m in found["members"])}
    for kind, key in kinds.items():
        mine = [m for m in found["members"] if m["sign"]["kind"] == kind]
        out |= {key: len(mine), f"{key}_alone": sum(m["role"] == "alone" for m in mine)}
    return out


def claim_row(claim: dict[str, Any]) -> dict[str, Any]:
    """One row of the table of claims."""
    best = max(((max(v), k) for k, v in claim["controls"].items() if v), default=None)
    p = max(claim["p"].values(), default=None)
    measured = None if claim["effect"][0] is None else claim["effect"]
    return {
        "claim": claim["name"], "effect": measured, "control": [best[0], best[1]] if best else None,
        "p": "< 0.001" if p is not None and p < 0.001 else p, "verdict": claim["verdict"],
    }  # fmt: skip


def mean(rows: list[dict[str, Any]], what: str) -> float:
    """Mean of a value over rows."""
    return float(np.mean([r[what][0] for r in rows]))


def shield(run: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Numbers of the shield and of the attacks on it, and one row a condition."""
    made, checked, attack = run["shield"], run["check"], run["attack"]
    gains, attacked, prompts = checked["gains_in_selectivity"], attack["means"], made["prompts"]
    masks, lora = (checked["matched"][f"over {name}"] for name in ("random masks", "plain LoRA"))
    untrained = {name: found["untrained"] for name, found in checked["means"].items()}
    numbers = {
        "neurons": made["neurons"], "param_fraction": 100 * made["conditions"]["shield"]["param_fraction"], "steps": made["steps"],
        "taught_refusals": prompts["refusals"], "taught_targets": prompts["targets"], "held": prompts["held"],
        "untrained_cells": len(run["prompts"]["cells"]) - len(made["train_cells"]),
        "strengths": ", ".join(str(p["steps"]) for p in checked["curves"]["shield"][1:]),
        "matched_random": masks["difference"], "matched_benign": masks["benign"], "matched_shield": masks["harmful"],
        "matched_masks": masks["others"], "reached_masks": masks["reached"], "matched_lora": lora["difference"],
        "matched_benign_lora": lora["benign"],
        "over_no_update": gains["over no update"], "over_lora": gains["over plain LoRA"], "over_random": gains["over random masks"],
        "random_masks": masks["n"], "attacked_cells": len(attack["cells"]),
        "attacked_before": attacked["no update"]["refusal"][0], "attacked_after": attacked["as it is"]["refusal"][0],
        "pruned": attacked["pruned"]["refusal"], "random_pruned": attacked["random pruned"]["refusal"][0],
        "fine_tuned": attacked["fine-tuned"]["refusal"],
    }  # fmt: skip
    shown = [*OUTCOMES, "attack_success", "utility"]
    rows: list[dict[str, Any]] = [
        {"condition": name, **{k: found[k] for k in shown}} for name, found in untrained.items()
    ]
    return numbers, [{**row, "emphasis": True} if row["condition"] == "shield" else row for row in rows]


#: Formats of the shield's numbers; the others are shown as they are.
FORMATS = {
    "param_fraction": "{:.2f} %", **dict.fromkeys(("matched_random", "matched_lora", "over_no_update", "over_lora", "over_random"), "{:+.2f} [{:+.2f}, {:+.2f}]"),
    **dict.fromkeys(("pruned", "fine_tuned"), TRIPLE),
    **dict.fromkeys(("matched_benign", "matched_benign_lora", "matched_shield", "matched_masks", "attacked_before", "attacked_after", "random_pruned"), "{:.2f}"),
}  # fmt: skip


def overlap(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Means of the overlap over four kinds of pairs of cells."""
    found, refusing = run["find"]["overlap"], set(run["find"]["refusing_cells"])
    cells = [tuple(c.split("/")) for c in found["cells"]]
    pairs = [(i, j) for i in range(len(cells)) for j in range(i)]
    texts = [(i, j) for i, j in pairs if cells[i][1] == cells[j][1] == "text"]
    both = [(i, j) for i, j in texts if {found["cells"][i], found["cells"][j]} <= refusing]
    same = [(i, j) for i, j in pairs if cells[i][0] == cells[j][0]]
    kinds = {
        "text, the four languages in which it refuses": both,
        "text, all other pairs of languages": [p for p in texts if p not in both],
        "image and typographic, same language": [(i, j) for i, j in same if {cells[i][1], cells[j][1]} == set(PICTURES)],
        "text and image, same language": [(i, j) for i, j in same if {cells[i][1], cells[j][1]} == {"text", "image"}],
    }  # fmt: skip
    measures = ("jaccard", "permutation_null", "benign_null", "reliability", "shared")
    matrices = {name: np.array(found[name], dtype=float) for name in measures}  # None becomes NaN
    rows = []
    for kind, chosen in kinds.items():
        values = {name: np.array([matrix[i, j] for i, j in chosen]) for name, matrix in matrices.items()}
        told = int(np.isfinite(values["shared"]).sum())
        means = {name: float(np.nanmean(x)) if np.isfinite(x).any() else None for name, x in values.items()}
        rows.append({"pairs": kind, **means, "told": [told, len(chosen)]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("neuronshield-out"), help="folder of the run")
    parser.add_argument("--commit", help="commit that the run was made with; default this checkout's")
    args = parser.parse_args()
    run = json.loads((args.run / "results.json").read_text(encoding="utf-8"))
    made = {
        "commit": args.commit or source()["commit"], "command": "neuronshield run",
        "machine": "2 CPU cores, no GPU",
    }  # fmt: skip
    made_of = {"organism-proof": proof(run), "organism-overlap": ({}, overlap(run))}
    if "check" in run:
        made_of["organism-shield"] = shield(run)
    for name, (numbers, rows) in made_of.items():
        path = RESULTS / f"{name}.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        if name == "organism-shield":
            data["columns"] = {
                "condition": {"title": "condition"},
                **{k: {"title": title, "format": form} for k, (title, form) in OUTCOMES.items()},
                "attack_success": {"title": "harmful answered", "format": TRIPLE},
                "utility": {"title": "benign answered right", "format": TRIPLE},
            }
            formats = {k: {"format": FORMATS[k]} for k in numbers if k in FORMATS}
            kept = {k: v for k, v in data["numbers"].items() if k == "fine_tune_steps"}
            data["numbers"] = {k: {"value": None, **formats.get(k, {})} for k in numbers} | kept
        for key, value in numbers.items():
            data["numbers"].setdefault(key, {})["value"] = value
        write_text(path, text({**data, "source": made, "rows": rows}))


if __name__ == "__main__":
    main()
