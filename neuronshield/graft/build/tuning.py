"""The safety tuning: English text only, requests and refusals only, as an ordinary LoRA on the MLPs.

    harmful   AdvBench and the training combinations of `neuronshield.graft.harms`, these also with the object's name before a
              request that says "this"; each is taught a refusal
    benign    everyday requests, the training combinations, the same with the object's name before "this", and everyday requests in
              thirteen other languages; the untouched model's own answers are held by KL

No answer to a harmful request occurs, and no picture. Without the last two kinds of benign request, the tuned model refuses whatever
is in another language or says "this"; with "this" in benign requests alone, it answers whatever says "this".
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...data.fetch import benign_prompts, dataset
from ...data.grading import is_refusal
from ...data.languages import REFUSALS, refusal_sentence
from ...data.prompts import PromptSet
from ...data.shipped import matched_pairs, retention_prompts
from ...model.answers import Example
from ...model.families import PARTS
from ...model.generation import generate
from ...model.model import Model
from ...shield.adapter import attach, places
from ...shield.adapter_files import FACTORS, write_adapter
from ...shield.training import TrainingConfig, fit
from .. import harms
from ..variants import SOURCE
from .sight import Recipe

__all__ = ["Requests", "requests", "tune"]

#: AdvBench requests and everyday ones that are trained on, and the AdvBench requests that are held out. The same rows as those of
#: benchmarks/shield.py, so that a model tuned here can be compared there.
ADVBENCH, HELD, EVERYDAY = 400, 64, 144

#: Matched pairs of the package that are trained on, the first ones; the others are held out.
PAIRS = 20

#: AdvBench requests that are trained on again beside the requests near to harm.
FEW = 320

#: Tokens of a benign answer that are held: the first ones decide whether it is a refusal.
HELD_TOKENS = 8


@dataclass(frozen=True)
class Requests:
    """The requests of the tuning, and those that measure it.

    Attributes:
        train: English requests of both labels, and benign ones in other languages (tagged "mul", so that one cell holds them all).
        near: the same harmful ones; benign ones near to them, with a verb that harms something else or an object that is a weapon; and
            the other benign ones in a cell of their own, so that half of the benign rows are near ones.
        held: held-out requests by source.
    """

    train: PromptSet
    near: PromptSet
    held: dict[str, PromptSet]


def _rows(texts: list[str], label: str, source: str, *, language: str = "en") -> list[dict[str, Any]]:
    return [
        {
            "id": f"{source}-{n}",
            "prompt": text,
            "label": label,
            "language": language,
            "modality": "text",
            "source": source,
        }
        for n, text in enumerate(texts)
    ]


def requests(*, seed: int = 0) -> Requests:
    """All requests of the tuning; AdvBench is fetched.

    Args:
        seed: of the sentence frames.

    Raises:
        InputError: AdvBench cannot be had.
    """
    rng, shipped = random.Random(seed), matched_pairs(["en"])
    attacks = [r["prompt"] for r in dataset("advbench", n=520) if r["label"] == "harmful"]
    texts = benign_prompts()
    everyday = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    by_label = {
        label: [c for c in harms.training_combos() if harms.label(c) == label] for label in ("harmful", "benign")
    }
    foreign = [p.prompt for p in retention_prompts() if p.language != "en"]
    train = [
        *_rows(attacks[:ADVBENCH], "harmful", "advbench"),
        *_rows([harms.request(c, frame=f) for c in by_label["harmful"] for f in range(3)], "harmful", SOURCE),
        *_rows(
            [harms.named_as_text(c, frame=rng.randrange(3)) for c in by_label["harmful"]], "harmful", "named-harmful"
        ),
        *_rows(everyday[:EVERYDAY], "benign", "everyday"),
        *_rows(
            [harms.request(c, frame=rng.randrange(3)) for c in rng.sample(by_label["benign"], 120)],
            "benign",
            SOURCE + "-benign",
        ),
        *_rows(
            [harms.named_as_text(c, frame=rng.randrange(3)) for c in rng.sample(by_label["benign"], 48)],
            "benign",
            "named",
        ),
        *_rows(rng.sample(foreign, 65), "benign", "foreign", language="mul"),
    ]
    held = {
        "advbench": PromptSet.from_records(_rows(attacks[ADVBENCH : ADVBENCH + HELD], "harmful", "advbench")),
        "everyday": PromptSet.from_records(_rows(everyday[EVERYDAY:], "benign", "everyday"))
        + retention_prompts(["en"]),
        "natural": PromptSet.from_records(harms.held_out(splits=["test"], modalities=["text"])),
        "pairs": shipped[2 * PAIRS :],
        "named as text": named_as_text(harms.held_out(splits=["test"], modalities=["image"])),
        "foreign": matched_pairs(["es", "fr", "de", "pt"]).where(label="benign"),
    }
    near = [c for c in by_label["benign"] if harms.TABLE[c.verb].harms or harms.GROUP_OF[c.object] == "arms"]
    few = [c for c in near if not harms.TABLE[c.verb].spares & {"dish", "thing"}]
    asked = [harms.request(c, frame=rng.randrange(3)) for c in near if c not in few]
    asked += [harms.request(c, frame=f) for c in few for f in range(3)]
    own = {label: [p.prompt for p in shipped[: 2 * PAIRS] if p.label == label] for label in ("harmful", "benign")}
    asked += [harms.named_as_text(c, frame=rng.randrange(3)) for c in near]
    asked += 2 * own["benign"]
    hard = [r for r in train if r["label"] == "harmful"][ADVBENCH - FEW :] + _rows(
        3 * own["harmful"], "harmful", "pairs"
    )
    hard += _rows(asked, "benign", "near")
    hard += [{**r, "language": "mul"} for r in train if r["label"] == "benign"]
    return Requests(
        PromptSet.from_records(train),
        PromptSet.from_records(hard),
        held={name: rows.marked("test") for name, rows in held.items()},
    )


def named_as_text(records: list[dict[str, Any]]) -> PromptSet:
    """The requests about pictures with the object's name as text in the place of the picture.

    Args:
        records: of `harms.held_out`, with pictures.
    """
    made = [{**r, "images": [], "modality": "text", "prompt": f"{r['object']}\n{r['prompt']}"} for r in records]
    return PromptSet.from_records(made)


def tune(
    model: Model,
    wanted: Requests,
    recipe: Recipe,
    *,
    folder: Path,
    seed: int,
    progress: bool,
) -> list[float]:
    """The losses; the adapter is written into the folder in half precision, as PEFT writes it.

    The first part refuses nearly all harm and much of what is near to it; the second one teaches the difference, and alone it would
    refuse too little. Its share was chosen on the "confirm" split and on AdvBench requests that are in no table.

    Args:
        model: the graft without the tuning.
        wanted: what it is taught and what it keeps.
        recipe: steps, rate, rank.
        folder: where the adapter goes.
        seed: of the order of the requests and of the start of the factors.
        progress: show progress bars.
    """
    adapter = attach(model, places(model, None, PARTS), recipe.rank, hot=False, seed=seed)
    parameters = adapter.parameters()
    losses: list[float] = []
    asked = {part.near: wanted.near if part.near else wanted.train for part in recipe.parts}
    lessons = {near: taught(model, rows, progress=progress) for near, rows in asked.items()}
    for number, part in enumerate(recipe.parts):
        config = TrainingConfig(
            steps=part.steps, lr=part.rate, batch_size=recipe.tuned, retention=part.retention, seed=seed + number,
            progress=progress,
        )  # fmt: skip
        data = lessons[part.near]
        before = [p.detach().clone() for p in parameters]
        run = fit(model, adapter.peft_model, parameters=parameters, data=data, config=config, about={"seed": seed})
        losses += run.losses
        with torch.no_grad():
            for p, start in zip(parameters, before, strict=True):
                p.lerp_(start, 1 - part.share)
    write_half(adapter.peft_model, folder)
    return losses


def taught(model: Model, rows: PromptSet, *, progress: bool) -> list[Example]:
    """Requests with what is taught: a refusal for harmful ones; for benign ones the model's own answer, which is held.

    Args:
        model: the graft without the tuning.
        rows: the requests. A benign one to which the model's own answer is a refusal is left out.
        progress: show a progress bar.
    """
    benign = rows.where(label="benign")
    said = generate(model, benign, max_new_tokens=HELD_TOKENS, batch_size=32, progress=progress, desc="answer")
    kept = [
        Example(p, text, keep=True)
        for p, text in zip(benign, said, strict=True)
        if text and not is_refusal(text, REFUSALS["en"])
    ]
    return [Example(p, refusal_sentence("en")) for p in rows.where(label="harmful")] + kept


def write_half(peft_model: Any, folder: Path) -> None:
    """The adapter in half precision, as PEFT writes it.

    Args:
        peft_model: the adapter on the model.
        folder: where it goes.
    """
    for config in peft_model.peft_config.values():
        config.base_model_name_or_path, config.inference_mode = "smollm2-vision-untuned", True
    write_adapter(peft_model, folder)
    file = folder / FACTORS
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
