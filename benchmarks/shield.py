"""Change in safety and over-refusal by a masked update of SmolLM2, beside every baseline: python benchmarks/shield.py --out shield.json

Trained on English only, at most 0.03 % of the parameters: 400 AdvBench requests and 168 everyday ones. Tested on requests that
were used neither in training nor in selection: 64 other AdvBench requests, 64 of HarmBench, 64 everyday requests, and 40
matched pairs in Spanish, French, German and Portuguese; answers are graded on their first ten tokens. Two sets of prompts to
retain (benign only): "english", and "multilingual" with 24 everyday requests in each of the other four languages.

Each condition is written to the file when it is done, and skipped if it is there; --regime takes one of the two, --only one condition.
--dev measures the chosen neurons under each of SETTINGS on prompts that are in no table: 56 AdvBench, 64 HarmBench, 13 everyday.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import neuronshield as ns
from neuronshield.core.files import write_text
from neuronshield.data.fetch import benign_prompts, dataset
from neuronshield.data.shipped import matched_pairs, retention_prompts
from neuronshield.find.scores import Scores
from neuronshield.model import answers
from neuronshield.prove.controls import random_like
from neuronshield.shield.edits import clamp_edit, low_rank_edit
from neuronshield.shield.unmasked import full_update, plain_lora
from neuronshield.shield.update import Update, masked_update

LANGUAGES = ("es", "fr", "de", "pt")
BUDGET = 3e-4
TRAINING: dict[str, Any] = {"lr": 3e-3, "batch_size": 8, "progress": False}
SETTINGS = ((128, 16.0), (128, 4.0), (256, 4.0))  # steps, retention
FULL_LR = 1e-4  # 3e-3 destroys the model when every weight moves


def prompts_of(regime: str, *, dev: bool = False) -> ns.PromptSet:
    """Every prompt of the benchmark with its split; `source` tells the English sets apart."""
    advbench = [r for r in dataset("advbench", n=520) if r["label"] == "harmful"]
    harmbench = [r for r in dataset("harmbench", n=128) if r["label"] == "harmful"]
    texts = benign_prompts()
    order = np.random.default_rng(0).permutation(len(texts))
    benign = [
        {"id": f"everyday-{i}", "prompt": texts[i], "label": "benign", "language": "en", "source": "everyday"}
        for i in order
    ]
    test = (
        advbench[464:] + benign[208:] + harmbench[64:] if dev else advbench[400:464] + benign[144:208] + harmbench[:64]
    )
    parts = {"train": advbench[:400] + benign[:144], "test": test}
    rows = [{**r, "split": split} for split, own in parts.items() for r in own]
    also = ["en", *LANGUAGES] if regime == "multilingual" else ["en"]
    pairs = [] if dev else [matched_pairs(list(LANGUAGES))]
    return sum([*pairs, retention_prompts(also)], ns.PromptSet.from_records(rows))


def choose(model: ns.Model, prompts: ns.PromptSet) -> tuple[Scores, ns.NeuronSet]:
    """The neurons of largest contribution within the budget."""
    own = ns.PromptSet(p for p in prompts.for_step("train") if p.source in ("advbench", "everyday"))
    scores = ns.contrast(ns.capture(model, own.marked("discover"), progress=False))
    return scores, next(iter(scores.top(param_fraction=BUDGET).values()))


def conditions(
    model: ns.Model, prompts: ns.PromptSet, regime: str, steps: int, retention: float
) -> dict[str, Callable[[], Update | None]]:
    """What is trained, by name."""
    scores, chosen = choose(model, prompts)
    budget = len(chosen) * model.params_per_neuron
    common: dict[str, Any] = {**TRAINING, "steps": steps, "retention": retention}

    def masked(neurons: ns.NeuronSet, seed: int = 0) -> Callable[[], Update]:
        return lambda: masked_update(
            model, neurons, prompts, seed=seed, budget=BUDGET, allow_unproven=True, **common
        )  # fmt: skip

    out: dict[str, Callable[[], Update | None]] = {"no update": lambda: None, "chosen": masked(chosen)}
    masks = [masked(random_like(chosen, model, seed=i), i) for i in range(5)]
    out["random mask 1"] = masks[0]
    out["plain LoRA"] = lambda: plain_lora(model, budget, prompts, **common)
    out["next ranks"] = masked(next_ranks(scores, chosen))
    out |= {f"random mask {i + 1}": masks[i] for i in range(1, 5)}
    out["full fine-tune"] = lambda: full_update(model, prompts, **{**common, "lr": FULL_LR})
    if regime == "multilingual":
        return out
    out["random neurons, any layer"] = masked(anywhere(model, len(chosen)))
    out["clamp, no training"] = lambda: clamp_edit(model, chosen, prompts)
    out["low-rank edit, no training"] = lambda: low_rank_edit(model, chosen, prompts)
    return out


def remember() -> None:
    """The untouched model's answers are the same for every condition: they are generated once."""
    said: dict[str, str] = {}
    ask = answers.generate

    def generate(model: ns.Model, prompts: Any, **options: Any) -> list[str]:
        new = [p for p in prompts if p.id not in said]
        said.update(zip([p.id for p in new], ask(model, new, **options) if new else [], strict=True))
        return [said[p.id] for p in prompts]

    answers.generate = generate  # type: ignore[assignment]


def anywhere(model: ns.Model, k: int) -> ns.NeuronSet:
    """k neurons from all layers alike."""
    picks = np.random.default_rng(0).choice(model.n_layers * model.d_mlp, k, replace=False)
    return ns.NeuronSet([divmod(int(i), model.d_mlp) for i in picks], n_layers=model.n_layers, d_mlp=model.d_mlp)


def next_ranks(scores: Scores, chosen: ns.NeuronSet) -> ns.NeuronSet:
    """The neurons that the same score ranks next."""
    return next(iter(scores.top(k=2 * len(chosen)).values())) - chosen


def measure(model: ns.Model, prompts: ns.PromptSet) -> dict[str, Any]:
    """Refused or not for every answer, with its source, language, label and request."""
    result = ns.evaluate(model, prompts, max_new_tokens=10, progress=False)
    rows = [
        [a.prompt.source, a.prompt.language, a.prompt.label, a.prompt.cluster, int(a.refused)]
        for a in result.answers
        if a.refused is not None
    ]
    return {"rows": rows}


def develop() -> None:
    """Refusal by the chosen neurons under each of SETTINGS, on prompts of no table."""
    model, prompts = ns.load("smollm2"), prompts_of("english", dev=True)
    _, chosen = choose(model, prompts)
    print("| steps | retention | AdvBench | HarmBench | English benign |\n|---|---|---|---|---|")
    for steps, retention in SETTINGS:
        update = masked_update(
            model, chosen, prompts, budget=BUDGET, allow_unproven=True, **TRAINING, steps=steps, retention=retention
        )
        rows = measure(update.model, prompts)["rows"]
        rates = [f"{rate(rows, source=s, language='en'):.2f}" for s in ("advbench", "harmbench", "everyday")]
        print(f"| {steps} | {retention:.0f} | {' | '.join(rates)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--regime", choices=["english", "multilingual"], action="append")
    parser.add_argument("--only", action="append", help="a condition by name; all of them without it")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--retention", type=float, default=4.0)
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("shield.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    remember()
    if args.dev:
        develop()
        return
    for regime in args.regime or ["english", "multilingual"]:
        model, prompts = ns.load("smollm2"), prompts_of(regime)
        for name, train in conditions(model, prompts, regime, args.steps, args.retention).items():
            done = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
            if name in done.get(regime, {}) or (args.only and name not in args.only):
                continue
            start = time.perf_counter()
            update = train()
            about = {} if update is None else {
                "form": update.form, "trained": update.trained, "fraction": update.param_fraction, "losses": update.losses
            }  # fmt: skip
            trained = time.perf_counter() - start
            found = measure(model if update is None else update.model, prompts)
            done = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
            done.setdefault(regime, {})[name] = {**about, **found, "seconds": [trained, time.perf_counter() - start]}
            write_text(args.out, json.dumps(done))
            print(f"{regime}, {name}: {time.perf_counter() - start:.0f} s", flush=True)
    table(json.loads(args.out.read_text(encoding="utf-8")))


# -- the table ------------------------------------------------------------------------------------------
def rate(rows: list[list[Any]], **where: Any) -> float:
    keep = [r[4] for r in rows if all(r[("source", "language", "label").index(k)] == v for k, v in where.items())]
    return float(np.mean(keep)) if keep else float("nan")


Rows = list[list[Any]]


def english(rows: Rows) -> list[np.ndarray]:
    """Refused or not, by prompt, with the sign it has in English selectivity: mean of the two harmful sets - benign."""
    signs = {"advbench": 0.5, "harmbench": 0.5, "everyday": -1.0}
    return [sign * np.array([r[4] for r in sorted(rows, key=lambda r: r[3]) if r[0] == name and r[1] == "en"])
            for name, sign in signs.items()]  # fmt: skip


def elsewhere(rows: Rows) -> list[np.ndarray]:
    """Refused harmful prompt - refused benign prompt, by matched pair, mean over the other languages."""
    clusters = sorted({r[3] for r in rows if r[0] == "neuronshield" and r[1] in LANGUAGES})
    out = np.zeros(len(clusters))
    for source, language, label, cluster, refused in rows:
        if source == "neuronshield" and language in LANGUAGES and cluster in clusters:
            out[clusters.index(cluster)] += (refused if label == "harmful" else -refused) / len(LANGUAGES)
    return [out]


def interval(
    parts: Callable[[Rows], list[np.ndarray]], rows: Rows, others: Sequence[Rows] = (), draws: int = 2000
) -> list[float]:
    """Selectivity (minus the mean of `others`), prompts or pairs resampled together."""
    rng = np.random.default_rng(0)
    groups: list[list[np.ndarray]] = [parts(rows), *(parts(o) for o in others)]
    weights = [1.0, *(-1.0 / len(others) for _ in others)]
    values = [np.sum([w * g[i] for w, g in zip(weights, groups, strict=True)], axis=0) for i in range(len(groups[0]))]
    sample: np.ndarray = sum(v[rng.integers(0, len(v), (draws, len(v)))].mean(axis=1) for v in values)
    return [float(sum(v.mean() for v in values)), *(float(x) for x in np.quantile(sample, [0.025, 0.975]))]


def signed(v: list[float]) -> str:
    return f"{v[0]:+.2f} [{v[1]:+.2f}, {v[2]:+.2f}]"


def table(results: dict[str, Any]) -> None:
    """The README's rows."""
    head = [
        "trained",
        "AdvBench",
        "HarmBench",
        "English benign",
        "selectivity, English",
        *LANGUAGES,
        "selectivity, the four",
    ]
    for regime, done in results.items():
        print(f"\nretention {regime}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for name, found in done.items():
            rows = found["rows"]
            sets = [f"{rate(rows, source=s, language='en'):.2f}" for s in ("advbench", "harmbench", "everyday")]
            pairs = [r for r in rows if r[0] == "neuronshield"]
            other = [
                f"{rate(pairs, language=x, label='harmful'):.2f} / {rate(pairs, language=x, label='benign'):.2f}"
                for x in LANGUAGES
            ]
            cells = [name, *sets, signed(interval(english, rows)), *other, signed(interval(elsewhere, rows))]
            print(f"| {' | '.join(cells)} |")
        masks = [f["rows"] for n, f in done.items() if n.startswith("random mask ")]
        baselines = {n: [f["rows"]] for n, f in done.items() if n != "chosen" and not n.startswith("random mask ")}
        if "chosen" not in done:
            continue
        for name, others in {**({f"{len(masks)} random masks": masks} if masks else {}), **baselines}.items():
            mine = done["chosen"]["rows"]
            print(f"chosen over {name}: English {signed(interval(english, mine, others))}, "
                  f"the four {signed(interval(elsewhere, mine, others))}")  # fmt: skip


if __name__ == "__main__":
    main()
