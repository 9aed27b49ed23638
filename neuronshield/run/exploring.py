"""`ns.explore`: the neurons of a model on prompts, or of a finished run.

Step check leaves a view (`view_files`), so that a finished run opens without its model; the model is loaded when the first prompt of the
user's own is answered. Of a run that is not finished, the view is made from the steps that are done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.arguments import at_least, check_seed, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.progress import metered
from ..core.statistics import Interval
from ..data.prompts import Cell, Prompt, PromptSet
from ..explorer.balance import balanced
from ..explorer.gather import ALONE, Known, gather
from ..explorer.notebook import Explorer
from ..explorer.storage import save_view
from ..explorer.view import SharedView, View
from ..find.groups import Stats
from ..model.encoding import as_prompts
from ..model.model import Model
from ..prove.verdict import Proof
from ..shield.loading import load
from .folder import open_folder
from .job import IN_PYTHON, Job, load_options, open_job
from .opened import Run, open_run
from .view_files import VIEW, known_answers, saved_view

__all__ = ["explore", "run_view", "write_explorer", "write_view"]

logger = logging.getLogger("neuronshield")

N_PROMPTS = 48
MAX_NEW_TOKENS = 24


def explore(
    model: Model | str | os.PathLike[str],
    neurons: NeuronSet | None = None,
    prompts: str | Prompt | Iterable[str | Prompt] | None = None,
    *,
    proof: Proof | None = None,
    stats: Stats | None = None,
    n_prompts: int = N_PROMPTS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Explorer:
    """An explorer of neurons: what each reads (tokens, patches of pictures), writes (vocabulary) and does.

    >>> explorer = ns.explore(model, neurons, prompts, n_prompts=8, max_new_tokens=3, progress=False)
    >>> explorer, explorer.selected
    (Explorer(3 neurons, 8 prompts), NeuronSet(1 neuron in 1 layer))
    >>> ns.explore("out").save("explorer.html")                                 # doctest: +SKIP

    The last line of a notebook's cell shows it; `save` writes it to a file. With the extra `explore` it is alive in a notebook: see
    `neuronshield.explorer.notebook`.

    Args:
        model: the model; or the folder of a run, and then nothing else but `progress`.
        neurons: the set.
        prompts: a `PromptSet`, or prompts or strings. A balanced sample of them is shown.
        proof: what `verify` found about the set: effects, roles and backup neurons. Without it the effect of ablating each neuron alone is
            measured on the prompts shown, where harmful and benign ones make pairs.
        stats: captured moments: means of harmful and benign prompts by cell. Without them those of the prompts shown are used.
        n_prompts: prompts that are shown, about; at least one of each label and cell.
        max_new_tokens: tokens of an answer, at most.
        batch_size: prompts a forward.
        seed: draws the random set, and the pairs where prompts have no matched ones.
        progress: show progress bars.

    Raises:
        InputError: arguments of another type, neurons of another model, or no prompts; no run in the folder, a run without neurons yet,
            one that is of another model than its recipe loads now, or one whose model or prompts were given in Python and that has no view.
    """
    if not isinstance(model, Model):
        require(
            model, (str, os.PathLike), call="explore(model, neurons, prompts)", name="model", hint="or a run folder"
        )
        if neurons is not None or prompts is not None:
            raise InputError(
                f"explore({os.fspath(model)!r:.60}, ...): load the model first: explore(ns.load(...), neurons, prompts)"
            )
        return _explore_run(Path(model), progress=progress)
    call = "explore(model, neurons, prompts)"
    chosen: NeuronSet = require(
        neurons, NeuronSet, call=call, name="neurons", hint="wrap (layer, index) pairs in NeuronSet(...)"
    )
    if prompts is None:
        raise InputError(f"{call}: no prompts; give a PromptSet, or a list of strings")
    require(proof, (Proof, type(None)), call=call, name="proof")
    require(stats, (Stats, type(None)), call=call, name="stats")
    at_least(1, "explore", n_prompts=n_prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    check_seed(seed, call="explore")
    sample = balanced(as_prompts(model, prompts, call="explore"), n_prompts)
    view = _gathered(
        model, chosen, sample, known=Known(proof=proof, stats=stats), max_new_tokens=max_new_tokens, batch_size=batch_size,
        seed=seed, progress=progress,
    )  # fmt: skip
    own = chosen if proof is None or not len(proof.verified) else proof.verified
    return Explorer(view, neurons=_of_model(own, model), model=lambda: model, max_new_tokens=max_new_tokens)


def _gathered(model: Model, neurons: NeuronSet, sample: Sequence[Prompt], *, progress: bool, **options: Any) -> View:
    """What an explorer shows, with one line of progress for all that it computes."""
    answers = len(sample) * (3 + min(ALONE, len(neurons)))
    with metered("explore", {"prompt": len(sample), "answer": answers}, show=progress):
        return gather(model, neurons, sample, progress=progress, **options)


def _of_model(neurons: Any, model: Model) -> NeuronSet:
    return NeuronSet(neurons, n_layers=model.n_layers, d_mlp=model.d_mlp)


# -- a run ------------------------------------------------------------------------------------------------
def _explore_run(folder: Path, *, progress: bool) -> Explorer:
    run = open_run(folder)
    if "find" not in run.steps:
        raise InputError(f"{folder}: no neurons yet; run 'neuronshield find --out {folder.name}' first")
    view = None if run.stale else saved_view(folder, run.manifest)
    given = partial(_model_of, run)
    if view is None:
        about = _opened(run)
        view = run_view(run, about.model, about.prompts, progress=progress)
        given = partial(_itself, about.model)
    own = run.verified if "prove" in run.steps and len(run.verified) else run.candidates
    tokens = run.settings.max_new_tokens or MAX_NEW_TOKENS
    return Explorer(view, neurons=own, model=given, max_new_tokens=tokens)


def _itself(model: Model) -> Model:
    return model


def _opened(run: Run) -> Any:
    """The model and the prompts of a run, read again; they must be those that were studied."""
    settings = run.settings
    if settings.prompts is not None and Path(settings.prompts).name == IN_PYTHON:
        raise InputError(
            f"{run.folder}: the prompts of this run were given in Python and are not kept; "
            "use explore(model, run.candidates, prompts, proof=run.proof, stats=run.stats)"
        )
    about = open_job(settings.model, settings.prompts, settings)
    if differs := run.study.differs(about.study):
        raise InputError(f"{run.folder}: is of another study than its run.toml loads now ({differs})")
    return about


def _model_of(run: Run) -> Model:
    """The model of a run, loaded again; it must be the one that was studied."""
    model = load(run.settings.model, **load_options(run.settings))
    if model.fingerprint != run.study.fingerprint:
        raise InputError(
            f"{run.folder}: {run.settings.model!r} now loads other weights ({model.fingerprint}) than the run is of "
            f"({run.study.fingerprint}); use explore(model, neurons, prompts) with the right model"
        )
    return model


def run_view(run: Run, model: Model, prompts: PromptSet, *, progress: bool = False) -> View:
    """What an explorer shows of a run: a balanced sample of its test prompts, with what its steps found.

    Args:
        run: find must be done.
        model: of the run.
        prompts: of the run, with splits.
        progress: show progress bars.

    Raises:
        InputError: damaged files of the run.
    """
    test = prompts.for_step("test")
    sample = balanced(test, N_PROMPTS)
    seed, judge = run.study.seed, run.settings.judge
    notes = [f"The prompts are {len(sample)} of the {len(test)} that the run tests on."]
    if judge is not None:
        notes.append(f"Answers of the run are graded by {judge}, those with neurons ablated by their words.")
    known = Known(
        proof=run.proof if "prove" in run.steps else None, stats=run.stats, shared=_shared(run),
        answers=known_answers(run.folder, {p.id for p in sample}), title=f"Safety neurons of {run.study.model}",
        about=f"run of seed {seed}", notes=tuple(notes),
    )  # fmt: skip
    size = {} if run.settings.batch_size is None else {"batch_size": run.settings.batch_size}
    tokens = run.settings.max_new_tokens or MAX_NEW_TOKENS
    return _gathered(
        model, run.candidates, sample, known=known, max_new_tokens=tokens, seed=seed, progress=progress, **size
    )


def _shared(run: Run) -> tuple[SharedView, ...]:
    """The neurons that two cells share, for every pair of cells."""
    found = run.find.overlap
    if found is None:
        return ()
    cells = [Cell.of(c) for c in found["cells"]]
    out = []
    for i, a in enumerate(cells):
        for j, b in enumerate(cells[:i]):
            ends = [found[name][i][j] for name in ("shared", "shared_low", "shared_high")]
            overlap = None if ends[0] is None else Interval(*(float("nan") if v is None else float(v) for v in ends))
            both = tuple(sorted(set(run.sets[a]) & set(run.sets[b])))
            out.append(SharedView((str(b), str(a)), overlap, both))
    return tuple(out)


# -- files ------------------------------------------------------------------------------------------------
def write_view(job: Job) -> None:
    """Write the view of a run whose step check has answered all prompts; a warning where it cannot be made.

    Args:
        job: the run; the file is one of step check.
    """
    try:
        view = run_view(open_run(job.out), job.model, job.prompts)
    except InputError as error:
        logger.warning("no explorer in the report: %s", error)
        return
    job.folder.own(VIEW, step="check")
    save_view(view, job.out / VIEW)


def write_explorer(folder: Path, path: Path | None = None) -> Path:
    """Path of the HTML file that the explorer of a run was written to.

    Args:
        folder: the run folder.
        path: the file; None for explorer.html in the folder, which is then a file of the run.

    Raises:
        InputError: as `explore`, or the file cannot be written.
    """
    explorer = _explore_run(folder, progress=True)
    if path is not None:
        return explorer.save(path)
    with open_folder(folder, None) as opened:
        opened.own("explorer.html")
        return explorer.save(folder / "explorer.html")
