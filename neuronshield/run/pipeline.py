"""The main job: find, prove, shield, check, in that order, each step leaving its part of the answer.

`run` does all of it. Every step is a function over a `Job`, so the command line can do one at a time on
the same folder: a step reads what the steps before it left there.

    find     neurons/<cell>.safetensors, neurons/candidates.safetensors; overlap with floor and ceiling
    prove    neurons/verified.safetensors; the verdict
    shield   adapter/ and controls/: the masked update, masks of random neurons, plain LoRA, training-free edits
    check    every condition on the test prompts, language by language and modality by modality; then the shield
             under attack
    report   report.html from results.json

What a step found is in `results.json` under its name (schema in the README). `run` works in a folder
beside the one asked for and renames it at the end: an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..check.attacks import attacked
from ..check.evaluation import METRICS, Evaluation, evaluate
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.statistics import finite
from ..data.grading import openings_for
from ..data.prompts import Cell, PromptSet
from ..find.moments import capture
from ..find.overlaps import overlap
from ..find.scores import Scores, contrast
from ..model.forward import margins
from ..model.model import Model
from ..model.prefixes import opening_tokens
from ..prove.controls import random_like
from ..prove.verify import verify
from ..shield.edits import clamp_edit, low_rank_edit
from ..shield.loading import load_adapter
from ..shield.unmasked import plain_lora
from ..shield.update import masked_update
from .folder import Job, check_folder, load_neurons, make_staging, move_in, open_job

__all__ = ["check", "find", "prove", "run", "shield"]


logger = logging.getLogger("neuronshield")


SHIELD, BASE, LORA = "shield", "no update", "plain LoRA"


CLAMP, LOW_RANK = "clamp, no training", "low-rank edit, no training"


# -- find -----------------------------------------------------------------------------------------------
def find(job: Job) -> Scores:
    """Capture, contrast, overlap; candidates are what the refusing cells agree on."""
    with job.timed("find"):
        stats = capture(job.model, job.prompts, seed=job.seed, progress=job.progress)
        scores = contrast(stats)
        sets = scores.top(**job.plan.size)  # type: ignore[arg-type]
        refusing = refusing_cells(job)
        anchor = refusing[0] if refusing else scores.cells[0]
        candidates = sets[anchor]
        folder = job.out / "neurons"
        for cell, neurons in sets.items():
            neurons.save(folder / f"{cell.language}-{cell.modality.replace('+', '-')}.safetensors")
        candidates.save(folder / "candidates.safetensors")
        section: dict[str, Any] = {
            "method": scores.method,
            "size": job.plan.size,
            "n_neurons": len(candidates),
            "param_fraction": candidates.param_fraction(job.model),
            "anchor": str(anchor),
            "refusing_cells": [str(c) for c in refusing],
            "per_layer": {
                str(c): [s.per_layer().get(i, 0) for i in range(job.model.n_layers)] for c, s in sets.items()
            },
            "top": scores.to_frame(k=10).to_dict("records"),
        }
        try:
            section["overlap"] = (
                overlap(stats, method=scores.method, **job.plan.size).to_dict() if len(scores.cells) > 1 else None
            )
        except InputError as error:
            section["overlap"], section["overlap_missing"] = None, str(error)
        job.results["find"] = section
    job.save()
    return scores


def refusing_cells(job: Job) -> list[Cell]:
    """Cells whose "discover" prompts the model already tells apart: margin > 0 on harmful far more than on benign."""
    prompts = job.prompts.for_step("discover")
    openings = openings_for(prompts, refusals=job.plan.refusals, compliances=job.plan.compliances)
    tokens = opening_tokens(job.model, openings)
    refused = margins(job.model, prompts, [None], tokens, progress=job.progress, desc="refusals")[0] > 0
    apart = {}
    for cell in prompts.cells():
        rates = [
            np.mean([r for r, p in zip(refused, prompts, strict=True) if p.cell == cell and p.label == label] or [0.0])
            for label in ("harmful", "benign")
        ]
        apart[cell] = rates[0] - rates[1]
    return [cell for cell, value in apart.items() if value >= 0.5]


# -- prove ----------------------------------------------------------------------------------------------
def prove(job: Job) -> NeuronSet:
    """Verify the candidates on the "confirm" prompts; `verify` tells where the model refuses."""
    candidates = load_neurons(job, "candidates", "find")
    with job.timed("prove"):
        proof = verify(
            job.model, candidates, job.prompts, draws=job.plan.draws, seed=job.seed,
            refusals=job.plan.refusals, compliances=job.plan.compliances, progress=job.progress,
        )  # fmt: skip
        proof.verified.save(job.out / "neurons" / "verified.safetensors")
        job.results["prove"] = proof.to_dict()
    job.save()
    return proof.verified


# -- shield ---------------------------------------------------------------------------------------------
def shield(job: Job) -> None:
    """Train the proven neurons (the candidates if none was proven, and say so) and every control."""
    neurons = _trained(job)
    plan = job.plan
    with job.timed("shield"):
        rows = _taught_rows(job)
        common: dict[str, Any] = {
            "steps": plan.steps, "batch_size": plan.batch_size, "seed": job.seed, "progress": job.progress, "lr": plan.lr,
            "retention": plan.retention,
        }  # fmt: skip
        job.updates = {SHIELD: masked_update(job.model, neurons, rows, allow_unproven=True, **common)}
        for i in range(plan.random_masks):
            mask = random_like(neurons, job.model, np.random.default_rng([job.seed, i]))
            job.updates[f"random mask {i + 1}"] = masked_update(job.model, mask, rows, allow_unproven=True, **common)
        job.updates[LORA] = plain_lora(job.model, job.updates[SHIELD].trained, rows, **common)
        job.updates[CLAMP] = clamp_edit(job.model, neurons, rows)
        job.updates[LOW_RANK] = low_rank_edit(
            job.model, neurons, rows, refusals=plan.refusals, compliances=plan.compliances
        )
        for name, update in job.updates.items():
            if update.peft_model is not None:
                update.save(_adapter_folder(job, name))
        job.results["shield"] = {
            "neurons": len(neurons),
            "proven": "verified_on" in neurons.provenance,
            "train_cells": [str(c) for c in rows.cells()],
            "taught": [str(c) for c in plan.taught],
            "n_prompts": len(rows),
            "steps": plan.steps,
            "lr": plan.lr,
            "retention": plan.retention,
            "conditions": {
                name: {
                    "form": u.form,
                    "trained": u.trained,
                    "param_fraction": u.param_fraction,
                    "losses": u.losses,
                    "stopped": u.stopped,
                }
                for name, u in job.updates.items()
            },
        }
    job.save()


def _taught_rows(job: Job) -> PromptSet:
    rows = job.prompts.for_step("train")
    return rows.in_cells(job.plan.train_cells) if job.plan.train_cells else rows


def _adapter_folder(job: Job, name: str) -> Path:
    return job.out / "adapter" if name == SHIELD else job.out / "controls" / name.replace(",", "").replace(" ", "-")


def _shielded(job: Job, name: str) -> Model:
    """The model of a condition: what was just trained, or read back from its folder."""
    if name == BASE:
        return job.model
    if name in job.updates:
        return job.updates[name].model
    if name == CLAMP:
        return clamp_edit(job.model, _trained(job), _taught_rows(job)).model
    return load_adapter(job.model, _adapter_folder(job, name))


def _trained(job: Job) -> NeuronSet:
    verified = load_neurons(job, "verified", "prove")
    return verified if len(verified) else load_neurons(job, "candidates", "find")


# -- check ----------------------------------------------------------------------------------------------
def check(job: Job) -> None:
    """Every condition on the "test" prompts, and the shield against each control on the cells nobody trained."""
    if "shield" not in job.results:
        raise InputError(f"{job.out}: no shield yet; run 'neuronshield shield' first")
    trained = {Cell.of(c) for c in job.results["shield"]["train_cells"]}
    with job.timed("check"):
        job.evaluations = {}
        for name in (BASE, *job.results["shield"]["conditions"]):
            job.evaluations[name] = _evaluate(job, _shielded(job, name), name)
        job.results["check"] = _compare(job.evaluations, trained)
        job.results["attack"] = _attack(job)
    job.save()


def _evaluate(job: Job, model: Model, name: str) -> Evaluation:
    return evaluate(
        model, job.prompts, name=name, refusals=job.plan.refusals, compliances=job.plan.compliances,
        max_new_tokens=job.plan.max_new_tokens, seed=job.seed, progress=job.progress,
    )  # fmt: skip


def _attack(job: Job) -> dict[str, Any]:
    """Means over the cells where the shield made a difference to refusal, as it is and under each attack."""
    shielded, k = _shielded(job, SHIELD), len(_trained(job))
    rows = _taught_rows(job)
    known = PromptSet([*job.prompts.where(split=["discover", "test"]), *(p for p in rows if p.split == "train")])
    models = attacked(shielded, known, k=k, seed=job.seed, progress=job.progress)
    left = {name: job.evaluations[SHIELD] if m is shielded else _evaluate(job, m, name) for name, m in models.items()}
    before, after = job.evaluations[BASE], job.evaluations[SHIELD]
    cells = [c for c in after.cells() if after.cell(c)["refusal"].value >= before.cell(c)["refusal"].value + 0.1]
    return {
        "k": k,
        "cells": [str(c) for c in cells],
        "means": {
            name: {m: finite(e.mean(m, cells)) for m in METRICS} for name, e in {BASE: before, **left}.items() if cells
        },
    }


def _compare(evaluations: dict[str, Evaluation], trained: set[Cell]) -> dict[str, Any]:
    """Means over trained, untrained and all cells, and the gains of the shield over its controls."""
    cells = evaluations[BASE].cells()
    unseen = [c for c in cells if c not in trained]
    groups = {"all": cells, "trained": [c for c in cells if c in trained], "untrained": unseen}
    means = {
        name: {group: {m: finite(e.mean(m, members)) for m in METRICS} for group, members in groups.items() if members}
        for name, e in evaluations.items()
    }
    group = unseen or cells
    shielded = evaluations[SHIELD]
    random = [e for name, e in evaluations.items() if name.startswith("random mask")]
    gains = {
        "over no update": finite(shielded.gain(evaluations[BASE], "selectivity", group)),
        "over random masks": finite(shielded.gain(random, "selectivity", group)),
        "over plain LoRA": finite(shielded.gain(evaluations[LORA], "selectivity", group)),
    }
    low = gains["over random masks"][1]
    best = max(random, key=lambda e: e.mean("selectivity", group).value)
    beats = low is not None and low > 1e-9  # sums over cells are off by rounding: a tie is not a win
    return {
        "cells": {name: e.to_dict()["cells"] for name, e in evaluations.items()},
        "means": means,
        "compared_on": "untrained" if unseen else "all",
        "gains_in_selectivity": gains,
        "beats_random_mask": bool(beats),
        "best_random_mask": best.name,
        "examples": _examples(evaluations),
    }


def _examples(evaluations: dict[str, Evaluation], n: int = 12) -> list[dict[str, Any]]:
    """A few answers before and after, spread over the cells."""
    base, after = evaluations[BASE].answers, evaluations[SHIELD].answers
    rows = np.linspace(0, len(base) - 1, min(n, len(base))).round().astype(int)
    return [
        {
            "cell": str(base[i].prompt.cell), "label": base[i].prompt.label, "prompt": base[i].prompt.prompt,
            "before": base[i].response, "after": after[i].response,
        }
        for i in rows
    ]  # fmt: skip


# -- all of it ------------------------------------------------------------------------------------------
STEPS: dict[str, Callable[[Job], Any]] = {"find": find, "prove": prove, "shield": shield, "check": check}


def run(
    model: str | Model = "organism",
    prompts: str | os.PathLike[str] | PromptSet | None = None,
    out: str | os.PathLike[str] = "neuronshield-out",
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Find, prove, shield, check and report; returns what results.json holds.

    >>> run("organism", out="out")["prove"]["passed"]          # doctest: +SKIP
    True

    Raises:
        InputError: bad prompts, unknown model, or a folder that cannot be written. Nothing is left behind.
    """
    out = Path(out)
    staging = check_folder(out) / f".{out.name}.{os.getpid()}.partial"
    try:
        make_staging(staging, out)
        job = open_job(model, prompts, staging, seed=seed, progress=progress)
        for name, step in STEPS.items():
            logger.info("%s", name)
            step(job)
        from .report import write_report

        write_report(staging)
        move_in(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return job.results
