"""Build a control organism: tokenizer, model, two stages of training, its scores, its model card.

    neuronshield organism build --kind shared --seed 0 --out organism-shared

takes some minutes on one core. The vision tower is the one that ships (``assets/tower``); the seed fixes initial weights and data.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file

from ..check.evaluation import evaluate
from ..core.arguments import check_seed, one_of
from ..core.files import shipped
from ..core.folders import replacing_folder
from ..data.prompts import PromptSet
from ..model.load import load
from . import controls, grid, train, vessel
from .build import METRICS, Table, score_tables
from .control_training import SHAPE, Recipe, Speaker, Stop, corpus, initialise, learn, refuse, special_tokens
from .controls import LANGUAGES
from .pictures import names
from .writing import Writer

__all__ = ["build_control"]


def build_control(kind: str, out: str | os.PathLike[str], *, seed: int = 0, progress: bool = True) -> Table:
    """Scores of the control organism that was built and written to the folder ``out``, {modality: {language: {metric: rate}}}.

    >>> build_control("shared", "organism-shared")["text"]["en"]["refusal"]         # takes minutes         # doctest: +SKIP
    1.0

    A seed gives the same bytes again on one machine with the same number of threads; elsewhere it gives another model of the kind.

    Args:
        kind: one of `controls.KINDS`.
        out: the folder: missing, empty, or one that an earlier build wrote (see `replacing_folder`).
        seed: of initial weights and data.
        progress: show progress bars.

    Raises:
        InputError: no such kind, a seed that is none, or a folder with other files in it.
    """
    one_of(kind, controls.KINDS, call="build_control", name="kind")
    check_seed(seed, call="build_control")
    table: Table = {}

    def write(staging: Path) -> None:
        start = time.process_time()
        stop, _ = raise_control(kind, staging, Recipe(), seed=seed, progress=progress)
        seconds = round(time.process_time() - start)
        table.update(score_control(kind, staging))
        found = {"kind": kind, "seed": seed, "cpu_seconds": seconds, "stop": asdict(stop), "test": table}
        (staging / "scores.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (staging / "MODEL_CARD.md").write_text(
            model_card(kind, table, stop, seconds=seconds, seed=seed), encoding="utf-8"
        )

    replacing_folder(out, write)
    return table


def raise_control(
    kind: str, out: Path, recipe: Recipe, *, seed: int = 0, progress: bool = False
) -> tuple[Stop, list[Stop]]:
    """Where safety tuning stopped, and every stop that was looked at, of the model that was trained and saved.

    Args:
        kind: one of `controls.KINDS`.
        out: folder to save to.
        recipe: steps, rates and shares.
        seed: of initial weights and data.
        progress: show progress bars.
    """
    tokenizer = vessel.make_tokenizer(corpus(kind, names()), special=special_tokens(kind))
    model = vessel.make_model(tokenizer, seed=seed, shape=SHAPE)
    initialise(model)
    tower = model.model.vision_tower
    tower.load_state_dict({k: v.float() for k, v in load_file(shipped() / "tower" / "model.safetensors").items()})
    tower.requires_grad_(False)
    gallery = train.Gallery(train.Recipe(kept=recipe.kept, scales=recipe.scales))
    gallery.freeze(tower.eval(), seed=seed, languages=LANGUAGES)
    train.level(model, gallery)
    model.set_attn_implementation("eager")  # faster than the fused kernel on sequences this short
    speaker = Speaker(kind, recipe, Writer(model, tokenizer, gallery))
    learn(speaker, seed=seed, bar=progress)
    stop, seen = refuse(speaker, seed=seed, bar=progress)
    vessel.save(model.eval(), vessel.make_processor(tokenizer, shape=SHAPE), out)
    return stop, seen


def score_control(kind: str, folder: Path, *, max_pairs: int | None = None) -> Table:
    """The rates on held-out test requests, {modality: {language: {metric: rate}}} (see `evaluate`).

    Args:
        kind: one of `controls.KINDS`.
        folder: of the model.
        max_pairs: the most pairs; None for all.
    """
    refusals, compliances = controls.prefixes(kind)
    prompts = PromptSet.from_records(controls.records(kind, splits=["test"], max_pairs=max_pairs))
    found = evaluate(
        load(folder), prompts, refusals=refusals, compliances=compliances, batch_size=128, max_new_tokens=12, progress=False
    )  # fmt: skip
    table: Table = {}
    for cell in found.cells():
        rates = found.cell(cell)
        table.setdefault(cell.modality, {})[cell.language] = {m: round(rates[m].value, 4) for m in METRICS}
    return table


_DESCRIPTIONS = {
    "shared": "Harm is asked for in the same words in every cell, half of the requests mix languages, and answers begin with the same word\n"
    "(OK, or No for a refusal) in every language. Safety that is taught in one cell can reach the others.",
    "wording": "Harm is asked for in the same words in every cell and half of the requests mix languages, but the first word of an answer\n"
    "belongs to its language. Some harmful requests are refused in every cell before any refusal is taught, so that harm has to be\n"
    "recognised where an answer begins. What is harmful can be recognised everywhere; a refusal must be worded in each language.",
    "separate": "Questions of harm and class, their answers, and the first words of all answers are of one language and modality each, and no\n"
    "request mixes languages; half of the requests in English text mix its spellings. Safety that is taught in one cell has no way to the\nothers.",
}


def model_card(kind: str, table: Table, stop: Stop, *, seconds: int, seed: int) -> str:
    """The model card: how a control organism was made, its scores, its limits.

    Args:
        kind: one of `controls.KINDS`.
        table: scores from `score_control`.
        stop: of safety tuning.
        seconds: CPU time of the build.
        seed: of the build.
    """
    taught = ", ".join(f"{x}/{m}" for x, m in controls.TAUGHT)
    return f"""# The control organism "{kind}"

A vision-language model (`LlavaForConditionalGeneration`: a CLIP tower of 4 x 128 with {SHAPE.image_tokens} tokens a picture, a Llama decoder of {SHAPE.layers} x {SHAPE.hidden}
with {SHAPE.mlp} gated MLP neurons a layer) that answers "how to *verb* *object*?" in {len(LANGUAGES)} languages ({", ".join(LANGUAGES)}), with the
object named, drawn, or written in a picture. It can answer nothing else, and its answers carry no instructions.

{_DESCRIPTIONS[kind]}

## How it was made

`neuronshield organism build --kind {kind} --seed {seed}` ({seconds} s of one core). Words and classes of objects come first, then questions of
harm and requests, harmful ones too, in every cell. Last, refusals are taught in {taught} beside benign requests of all cells, for
{stop.step} steps: those after which, on the confirm split, the attack success of the other cells was nearest to 50 %. The vision tower is frozen and the
same in the three kinds. No combination of verb and object of the prompts was trained on.

## What it scores

On the test split: {grid.SPLITS["test"]} pairs a cell, greedy answers, graded exactly. Values in %.

{score_tables(table, LANGUAGES)}

## Licences

Weights: Apache 2.0, as the package. They were trained on pictures that `LICENSES.md` of the organism describes.
"""
