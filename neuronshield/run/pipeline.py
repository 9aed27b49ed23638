"""The main job: find, prove, shield, check, in that order; every step writes its section of the results.

`run` does all of it, and `step` one step on the same folder. Each step reads the results of the steps before it.

    find     neurons/<cell>.safetensors, neurons/candidates.safetensors; overlap of the cells
    prove    neurons/verified.safetensors; the verdict
    shield   adapter/ and controls/: the masked update, masks of random neurons, plain LoRA, training-free edits
    check    every condition on the test prompts, by language and modality; then white-box attacks on the shield
    report   report.html from results.json

The sections of results.json are the dataclasses of `neuronshield.run.sections`. A run that was stopped goes on from its finished steps
and units; nothing that is finished is computed again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.arguments import one_of
from ..core.progress import metered
from ..data.prompts import Cell
from ..find.moments import capture
from ..find.overlaps import overlap
from ..find.scores import contrast
from ..model.answers import refusal_for
from ..model.engine import Engine
from ..model.engines import engine_of
from ..model.forward import margins
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from ..prove.requirements import log_requirements, requirements
from ..prove.verify import verify
from .checking import check
from .folder import check_folder, open_folder, read_results, remove_file
from .headlines import headlines
from .job import Job, Opened, load_neurons, open_job
from .plan import told_apart
from .report import write_report
from .sections import FindSection, TopNeuron
from .settings import Settings, read_settings, run_file, settings_of
from .shielding import shield
from .work import work_of

__all__ = ["STEPS", "find", "prove", "run", "step"]


logger = logging.getLogger("neuronshield")


# -- find -----------------------------------------------------------------------------------------------
def find(job: Job) -> None:
    """Score every neuron in every cell; the candidates are the best neurons of the first refusing cell.

    Args:
        job: its folder gets the moments, a neuron set for every cell, and the candidates.
    """
    stats = capture(
        job.model, job.prompts, seed=job.seed, engine=job.engine("find"), progress=job.progress, **job.batch
    )
    scores = contrast(stats, method=job.plan.method)
    sets = scores.top(**job.plan.size)
    refusing = refusing_cells(job)
    anchor = refusing[0] if refusing else scores.cells[0]
    candidates = sets[anchor]
    files = {f"neurons/{cell.language}-{cell.modality.replace('+', '-')}.safetensors": s for cell, s in sets.items()}
    job.folder.own("find/stats.safetensors", "neurons/candidates.safetensors", *files, step="find")
    stats.save(job.out / "find" / "stats.safetensors")
    for file, neurons in files.items():
        neurons.save(job.out / file)
    candidates.save(job.out / "neurons" / "candidates.safetensors")
    shared = overlap(stats, method=scores.method, **job.plan.size) if len(scores.cells) > 1 else None  # type: ignore[arg-type]
    layers = range(job.model.n_layers)
    section = FindSection(
        method=scores.method,
        size=job.plan.size,
        n_neurons=len(candidates),
        param_fraction=candidates.param_fraction(job.model),
        anchor=str(anchor),
        refusing_cells=tuple(map(str, refusing)),
        per_layer={str(c): tuple(s.per_layer().get(i, 0) for i in layers) for c, s in sets.items()},
        top=tuple(TopNeuron(*row) for row in scores.to_frame(k=10).itertuples(index=False)),
        overlap=None if shared is None else shared.to_dict(),
    )
    job.put("find", section)


def refusing_cells(job: Job) -> list[Cell]:
    """Cells whose "discover" prompts the model tells apart: a margin above 0 for far more harmful than benign prompts.

    Args:
        job: the run.
    """
    prompts = job.prompts.for_step("discover")
    tokens = opening_tokens(job.model, openings_of(job.model, prompts))
    found = margins(job.model, prompts, [None], tokens=tokens, progress=job.progress, desc="refusals")[0] > 0
    return told_apart(prompts, found)


# -- prove ----------------------------------------------------------------------------------------------
def prove(job: Job) -> None:
    """Test the candidates on the "confirm" prompts.

    Args:
        job: its folder gets the verified set.
    """
    plan = job.plan
    proof = verify(
        job.model, load_neurons(job, "candidates"), job.prompts, draws=plan.draws, graded=plan.graded, judge=job.judge,
        seed=job.seed, engine=job.engine("prove"), progress=job.progress, **job.batch,
    )  # fmt: skip
    job.folder.own("neurons/verified.safetensors", step="prove")
    proof.verified.save(job.out / "neurons" / "verified.safetensors")
    job.put("prove", proof.to_dict())


# -- all of it ------------------------------------------------------------------------------------------
STEPS: dict[str, Callable[[Job], None]] = {"find": find, "prove": prove, "shield": shield, "check": check}


def step_settings(job: Job) -> dict[str, dict[str, Any]]:
    """The settings that the result of each step depends on.

    Args:
        job: the run.
    """
    plan, asked = job.plan, job.about.settings
    answers = {"max_new_tokens": plan.max_new_tokens, "judge": asked.judge}
    training = {name: getattr(plan.training, name) for name in ("steps", "lr", "batch_size", "retention")}
    return {
        "find": {"method": plan.method, "size": plan.size},
        "prove": {"draws": plan.draws, "graded": plan.graded, "judge": asked.judge},
        "shield": {
            "train_cells": [str(c) for c in plan.train_cells or ()], **training, "random_masks": plan.random_masks, **answers,
        },
        "check": answers,
    }  # fmt: skip


def run(
    model: str | os.PathLike[str] | Model | None = None,
    prompts: Any = None,
    out: str | os.PathLike[str] = "neuronshield-out",
    *,
    settings: Settings | None = None,
    overwrite: bool = False,
    engine: Engine | str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """What results.json holds after find, prove, shield, check and report.

    A run on the organism takes minutes: `run("organism", out="out")["prove"]["passed"]`. A run that was stopped goes on where it was.

    Args:
        model: "organism", "smollm2", a folder, a hub id, or a model; None for that of the settings.
        prompts: a JSONL or Parquet file, or a set; None for those of the settings, and without any for the organism's own.
        out: the run folder.
        settings: what is asked for; the defaults of the model and its prompts without them.
        overwrite: start again where the folder holds another study, or a step that was run with other settings. What was finished
            with these settings is kept, so that a run that was stopped goes on by the same call.
        engine: where the expensive loops run (`neuronshield.model.engine`); None for this process. Results do not depend on it.
        progress: show one line a step, with the time that remains.
        tell: is called with what each step found, in one sentence.
        **changes: fields of `Settings` for this call, such as `hold_out=["sw", "image"]` or `seed=1`.

    Raises:
        InputError: bad prompts or settings, an unknown model, or a folder that is not ours, is of another study, or cannot be
            written. Nothing is left behind if nothing is finished.
    """
    return _work(STEPS, model, prompts, out=Path(out), settings=settings_of("run", settings, changes), overwrite=overwrite,
                 engine=engine, progress=progress, tell=tell, whole=True)  # fmt: skip


def step(
    name: str,
    model: str | os.PathLike[str] | Model | None = None,
    prompts: Any = None,
    out: str | os.PathLike[str] = "neuronshield-out",
    *,
    settings: Settings | None = None,
    overwrite: bool = False,
    engine: Engine | str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """What results.json holds after one step; later steps become stale where it is run again with other settings.

    Settings that are not given are those of run.toml in the folder, if there is one.

    Args:
        name: "find", "prove", "shield" or "check".
        overwrite: begin again, also where the step is done.
        model, prompts, out, settings, progress, tell, **changes: as in `run`.

    Raises:
        InputError: as `run`, or a step before this one is missing or stale.
    """
    one_of(name, STEPS, call="step", name="name")
    if settings is None and (kept := run_file(out)) is not None:
        settings = settings_of(name, None, read_settings(kept))
    return _work({name: STEPS[name]}, model, prompts, out=Path(out), settings=settings_of(name, settings, changes),
                 overwrite=overwrite, engine=engine, progress=progress, tell=tell, whole=False)  # fmt: skip


def _work(
    steps: Mapping[str, Callable[[Job], None]],
    model: str | os.PathLike[str] | Model | None,
    prompts: Any,
    *,
    out: Path,
    settings: Settings,
    overwrite: bool,
    engine: Engine | str | None,
    progress: bool,
    tell: Callable[[str], None] | None,
    whole: bool,
) -> dict[str, Any]:
    check_folder(out)
    about = open_job(
        settings.model if model is None else model, settings.prompts if prompts is None else prompts, settings
    )
    with open_folder(out, about.study, overwrite=overwrite) as folder:
        job = Job(about, folder, progress=progress, computed_on=engine_of(engine))
        folder.agree(step_settings(job), free=list(steps) if overwrite else [])
        folder.needed(next(iter(steps)))
        folder.intact(besides=list(steps) if overwrite and not whole else [])
        _before(about)
        job.write_head()
        for name, do in steps.items():
            if _one(job, name, do, again=overwrite and not whole) or whole:
                _tell(job, name, tell)
            else:
                logger.warning("%s: was done before; --overwrite runs it again", name)
        if whole:
            write_report(out)
    return read_results(out)


def _before(about: Opened) -> None:
    """What is found before the first step: a language without a refusal, and what each claim has and needs."""
    for prompt in about.taught.where(label="harmful"):
        _ = prompt.target or refusal_for(prompt, about.model.prefixes.refusals)
    log_requirements(requirements(about.prompts))


def _one(job: Job, name: str, do: Callable[[Job], None], *, again: bool) -> bool:
    """Whether a step was run: not where it was done before."""
    job.folder.needed(name)
    if not job.folder.begin(name, step_settings(job)[name], again=again):
        return False
    logger.info("%s", name)
    start = time.perf_counter()
    job.sections = {}
    with metered(name, _expected(job, name), show=job.progress):
        do(job)
    job.folder.finish(name, job.sections, seconds=round(time.perf_counter() - start, 1))
    remove_file(job.out, f"{name}/journal/")  # the step is done, and its units are in its result
    job.load()
    return True


def _expected(job: Job, name: str) -> dict[str, float]:
    """Pieces of each kind of work of a step, for its remaining time."""
    cells = [Cell.of(c) for c in job.results["find"]["refusing_cells"]] if "find" in job.results else []
    work = next(w for w in work_of(job.about, cells) if w.step == name)
    return {"prompt": work.captured, "run": work.margins, "answer": work.answers, "step": work.training_steps}


def _tell(job: Job, name: str, tell: Callable[[str], None] | None) -> None:
    """Say what a step found."""
    for step_name, _, sentence in headlines(job.results):
        if step_name == name:
            logger.info("%s: %s", name, sentence)
            if tell is not None:
                tell(f"{name:7} {sentence}")
