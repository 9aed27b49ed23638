"""A proof of a set that fails most claims: python benchmarks/refuted.py

The neurons of largest effect size in Korean text, where the organism refuses nothing. Writes results/refuted-proof.json. Minutes on one CPU core.
"""

from __future__ import annotations

import warnings
from typing import Any

from organism_run import claim_row
from result_files import TRIPLE, write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.core.results import to_json

K, DRAWS, REQUESTS = 64, 100, 32


def main() -> None:
    warnings.simplefilter("ignore")
    model = ns.load("organism")
    rows = organism.records(languages=["en", "it", "vi", "ko", "sw"], modalities=["text", "image"], max_pairs=REQUESTS)
    prompts = ns.PromptSet.from_records(rows)
    tempting = ns.contrast(ns.capture(model, prompts, progress=False), method="effect_size").top(k=K)["ko/text"]
    proof = ns.verify(model, tempting, prompts, draws=DRAWS, progress=False)
    numbers: dict[str, tuple[Any, str | None]] = {
        "neurons": (K, None), "draws": (DRAWS, None), "requests": (REQUESTS, None), "verified": (len(proof.verified), None),
        "candidates": (len(proof.candidates), None),
    }  # fmt: skip
    columns: dict[str, tuple[str, str | None]] = {
        "claim": ("claim", None), "effect": ("effect", TRIPLE), "control": ("strongest control", "{:.2f} ({})"), "p": ("largest p", "{:.3f}"),
        "verdict": ("verdict", None),
    }  # fmt: skip
    title = f"Claims about the {K} neurons of largest effect size in ko/text, on the organism"
    write_result(
        "refuted-proof", title, columns=columns, rows=[claim_row(to_json(c)) for c in proof.claims], numbers=numbers
    )


if __name__ == "__main__":
    main()
