"""What a masked update of SmolLM2 buys, and which choices matter: python benchmarks/shield.py [--dev] [--out shield.json]

Trained on English only, at most 0.03 % of the parameters: 96 AdvBench requests and 96 everyday ones of ours. Tested on
what nobody trained or selected on: 64 other AdvBench requests, 64 of HarmBench, 64 everyday requests, and 40 matched
pairs (ours) in English, Spanish, French, German and Portuguese. Two regimes of retention (benign prompts only, never a
harmful one): English, and English with 24 everyday requests in each of the other four languages.

With --dev, choices (score, layers, parts, learning rate, retention) are compared on other prompts: 48 AdvBench, 48
everyday requests, and the everyday requests in the four languages. The defaults of the test are what won there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import neuronshield as ns
from neuronshield.controls import random_like
from neuronshield.data import matched_pairs, retention_prompts
from neuronshield.fetch import benign_prompts, dataset
from neuronshield.update import full_update, plain_lora

LANGUAGES = ("es", "fr", "de", "pt")
BUDGET = 3e-4


def english() -> dict[str, list[dict[str, Any]]]:
    """Disjoint English prompts: select and train, dev, test."""
    advbench = [r for r in dataset("advbench", n=208) if r["label"] == "harmful"]
    harmbench = [r for r in dataset("harmbench", n=64) if r["label"] == "harmful"]
    order = np.random.default_rng(0).permutation(len(benign_prompts()))
    benign = [
        {"id": f"benign-{i}", "prompt": benign_prompts()[i], "label": "benign", "language": "en"} for i in order[:208]
    ]
    return {
        "train": advbench[:96] + benign[:96],
        "dev": advbench[96:144] + benign[96:144],
        "test": advbench[144:208] + benign[144:208] + harmbench,
    }


def named(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [{**r, "split": split} for r in rows]
