"""The run folder: locked while it is written, never mixed with another study, and never rid of a file that is not ours.

    manifest.json      the study, and of each step its state, its inputs and its files
    run.toml           the settings in force
    run.log            what was logged
    prompts.parquet    the rows as read, splits dealt, pictures by their hash
    find/ prove/ shield/ check/    result.json of each step, its arrays, and its finished units
    neurons/ adapter/ controls/ answers.parquet
    results.json       the results of all steps; report.html is made from it

A folder is ours if its manifest says so. Everything is written beside its place and renamed, and every file is in the manifest before
it is written, so that `--overwrite` can remove what is ours and nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from ..core.errors import InputError
from ..core.files import is_partial
from ..core.folders import MANIFEST, check_place
from ..core.provenance import versions
from ..core.results import load_json, save_json, to_json
from .checksums import check_intact, checksums
from .log import logged
from .manifest import BEFORE, STEP_NAMES, Manifest, StepState, Study, digest, read_manifest, write_manifest

__all__ = ["FORMAT", "RunFolder", "check_folder", "open_folder", "read_results"]

FORMAT = "neuronshield.results/6"
STEP_FORMAT = "neuronshield.step/1"
LOCK = ".lock"

#: Endings of the files of finished units.
UNITS = (".safetensors", ".json")

#: Files of a folder that are written before the first unit is finished.
FIRST = ("manifest.json", "run.toml", "run.log", "prompts.parquet", "results.json")


def check_folder(out: Path) -> Path:
    """The nearest existing folder above `out`, if `out` can be written there and holds nothing but a run.

    Args:
        out: the run folder; it need not exist.

    Raises:
        InputError: it is a file, holds something else or a manifest that is not ours, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose a folder")
    if out.is_dir() and read_manifest(out) is None and any(not _ours(p) for p in out.iterdir()):
        raise InputError(
            f"--out {out}: is not empty and holds no manifest.json of neuronshield, so it is not ours to write; choose another folder"
        )
    nearest = out if out.is_dir() else next(p for p in out.absolute().parents if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--out {out}: cannot be written ({nearest} is not a writable folder)")
    return nearest


def _ours(path: Path) -> bool:
    """Whether a file may be left of a run that was stopped before it wrote its manifest."""
    return path.name == LOCK or is_partial(path.name)


@dataclass
class RunFolder:
    """A run folder that this process has locked.

    Attributes:
        path: the folder.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    def own(self, *names: str, step: str | None = None) -> None:
        """Put files into the manifest, before they are written.

        Args:
            *names: relative to the folder; a name that ends in "/" is a folder of ours.
            step: whose files they are; None for no step.
        """
        holder: Manifest | StepState = self.manifest if step is None else self.manifest.steps[step]
        if new := tuple(name for name in names if name not in holder.files):
            files = (*holder.files, *new)
            if step is None:
                self._put(replace(self.manifest, files=files))
            else:
                self.put_step(step, replace(self.manifest.steps[step], files=files))

    def _put(self, manifest: Manifest) -> None:
        write_manifest(self.path, manifest)
        self.manifest = manifest

    def put_step(self, step: str, state: StepState | None) -> None:
        """Write the state of a step into the manifest.

        Args:
            step: its name.
            state: None to forget the step.
        """
        steps = {name: s for name, s in self.manifest.steps.items() if name != step}
        self._put(replace(self.manifest, steps=steps if state is None else {**steps, step: state}))

    # -- steps ----------------------------------------------------------------------------------------
    def needed(self, step: str) -> None:
        """Raise unless every step before this one is done and current.

        Args:
            step: its name.

        Raises:
            InputError: which step has to be run first.
        """
        for name in BEFORE[step]:
            self.require_done(name)

    def require_done(self, step: str) -> None:
        """Raise unless a step is done and current.

        Args:
            step: its name.

        Raises:
            InputError: it has to be run first.
        """
        state = self.manifest.steps.get(step)
        if state is None or not state.done:
            raise InputError(f"{self.path}: no {step} yet; run 'neuronshield {step}' first")
        if step in self.manifest.stale():
            raise InputError(
                f"{self.path}: {step} is stale (a step before it was run again since); run 'neuronshield {step}' first"
            )

    def intact(self, *, besides: Collection[str] = ()) -> None:
        """Raise unless the files of every step that is done and current are as it left them.

        Args:
            besides: steps that are not looked at.

        Raises:
            InputError: a file that is gone or has changed.
        """
        for step in self.done():
            if step not in besides and step not in self.manifest.stale():
                check_intact(self.path, step, self.manifest.steps[step].checksums)

    def agree(self, settings: Mapping[str, dict[str, Any]], *, free: Collection[str] = ()) -> None:
        """Raise unless every step that was begun, and is not stale, has the settings that are asked for now.

        Args:
            settings: by step, those that its results depend on.
            free: steps that may have other settings.

        Raises:
            InputError: which step was run with other settings.
        """
        for step, state in self.manifest.steps.items():
            if step not in free and state.inputs == self.manifest.inputs(step):
                told = _differences(state.settings, settings[step])
                if told:
                    raise InputError(
                        f"{self.path}: {step} was run with other settings ({told}); give the same, such as by --config "
                        f"{self.path / 'run.toml'}, or run 'neuronshield {step} --overwrite'"
                    )

    def begin(self, step: str, settings: dict[str, Any], *, again: bool = False) -> bool:
        """Whether a step has to be run: not where it is done already. A step that was begun goes on from its finished units.

        It begins again where its inputs or settings are others than those that it was begun with.

        Args:
            step: its name.
            settings: that its results depend on.
            again: begin again where it is done.

        Raises:
            InputError: a file of somebody else is where it writes.
        """
        state, inputs = self.manifest.steps.get(step), self.manifest.inputs(step)
        same = state is not None and state.inputs == inputs and not _differences(state.settings, settings)
        if state is not None and same and not (state.done and again):
            return not state.done
        if state is not None:
            self.remove(step)
        self.put_step(step, StepState(False, settings, inputs, versions=versions(), files=(f"{step}/result.json",)))
        return True

    def finish(self, step: str, sections: dict[str, Any], *, seconds: float) -> None:
        """Write the result of a step, and mark it as done.

        Args:
            step: its name.
            sections: of results.json.
            seconds: that it took; of a step that was continued, since then.
        """
        save_json(self.path / step / "result.json", STEP_FORMAT, {"sections": sections, "seconds": seconds})
        state = self.manifest.steps[step]
        self.put_step(
            step, replace(state, done=True, output=digest(sections), checksums=checksums(self.path, state.files))
        )

    def result(self, step: str) -> dict[str, Any]:
        """The result of a step that is done: its "sections" and "seconds".

        Args:
            step: its name.

        Raises:
            InputError: it is not the one that the manifest says.
        """
        path = self.path / step / "result.json"
        found = load_json(path, STEP_FORMAT)
        if digest(found.get("sections")) != self.manifest.steps[step].output:
            raise InputError(f"{path}: not the result that manifest.json names; run 'neuronshield {step} --overwrite'")
        return found

    def done(self) -> list[str]:
        """The steps that are done, in order."""
        return [name for name in STEP_NAMES if name in self.manifest.steps and self.manifest.steps[name].done]

    # -- removing -------------------------------------------------------------------------------------
    def remove(self, step: str | None = None) -> None:
        """Remove the files of a step, or of all of the run; nothing else.

        Args:
            step: its name; None for all.

        Raises:
            InputError: a file of somebody else is in a folder that would be removed; then nothing is.
        """
        states = self.manifest.steps if step is None else {step: self.manifest.steps[step]}
        files = [name for state in states.values() for name in state.files]
        for name in files:
            if (self.path / name / MANIFEST).is_file():
                check_place(self.path / name)
        for name in [*files, *([*self.manifest.files, *FIRST] if step is None else [])]:
            remove_file(self.path, name)
        if step is not None:
            self.put_step(step, None)

    def clean(self) -> None:
        """Remove what a killed process left half written: at the top, and beside the files of the manifest."""
        names = [name for state in self.manifest.steps.values() for name in state.files]
        for folder in {self.path, *((self.path / name).parent for name in names)}:
            for path in [p for p in folder.glob(".*") if is_partial(p.name)]:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that differ, with both values; empty where none does."""
    now = to_json(now)  # as the manifest has them
    differ = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    return "; ".join(f"{k} {before.get(k)!s:.40}, now {now.get(k)!s:.40}" for k in differ)


def remove_file(folder: Path, name: str) -> None:
    """Remove a file of the run, or a folder of units or of an adapter, and the folders above it that this leaves empty.

    Args:
        folder: the run folder.
        name: relative to it; a name that ends in "/" is a folder.
    """
    path = folder / name
    if not name.endswith("/"):
        path.unlink(missing_ok=True)
    elif (path / MANIFEST).is_file():
        shutil.rmtree(path, ignore_errors=True)
    else:
        _remove_units(path)
    for parent in list(path.parents)[: len(Path(name).parts) - 1]:
        with suppress(OSError):
            parent.rmdir()


def _remove_units(folder: Path) -> None:
    """Remove finished units, and folders that this leaves empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with suppress(OSError):
                path.rmdir()
        elif path.suffix in UNITS or is_partial(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


# -- opened and locked --------------------------------------------------------------------------------------------------
@contextmanager
def open_folder(out: Path, study: Study | None, *, overwrite: bool = False) -> Iterator[RunFolder]:
    """The run folder of a study, made if it is missing and locked while the block runs.

    If the block raises before anything is finished, the folders that this made are removed again.

    Args:
        out: the folder.
        study: what is studied; None for a run that is there already.
        overwrite: remove what is ours of another study, and start again.

    Raises:
        InputError: as `check_folder`, no run there, the folder of another study, or one that another process is writing.
    """
    nearest = check_folder(out)
    if study is None and (found := read_manifest(out)) is None:
        raise InputError(f"{out}: holds no run (there is no manifest.json); run 'neuronshield run' first")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    with lock:
        _hold(lock, out)
        found = read_manifest(out)
        folder = RunFolder(out, found or Manifest(study))  # type: ignore[arg-type]
        folder.clean()
        if found is not None and study is not None and (differs := found.study.differs(study)):
            if not overwrite:
                raise InputError(
                    f"--out {out}: holds another study ({differs}); choose another folder, or start again with --overwrite"
                )
            folder.remove()
            found, folder.manifest = None, Manifest(study)
        try:
            if found is None:
                write_manifest(out, folder.manifest)
            with logged(out / "run.log"):
                yield folder
        except BaseException:
            if found is None and not _any_finished(folder):
                folder.remove()
                (out / LOCK).unlink(missing_ok=True)
                for made in [
                    p for p in (out.absolute(), *out.absolute().parents) if p.is_relative_to(nearest) and p != nearest
                ]:
                    with suppress(OSError):
                        made.rmdir()
            raise


def _hold(lock: IO[str], out: Path) -> None:
    """Lock the folder until the file is closed; the system lets go of it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(lock.fileno()), (out / LOCK).stat())  # not removed since it was opened
    except OSError:
        same = False
    if not same:
        raise InputError(f"--out {out}: another run is writing there; wait for it, or choose another folder") from None


def _any_finished(folder: RunFolder) -> bool:
    """Whether the run has finished a step or a unit of one."""
    files = (path for path in folder.path.rglob("*") if path.is_file() and not is_partial(path.name))
    return any(str(path.relative_to(folder.path)) not in (*FIRST, LOCK) for path in files)


# -- results.json ---------------------------------------------------------------------------------------------
def read_results(folder: Path) -> dict[str, Any]:
    """What results.json in a folder holds.

    Args:
        folder: the run folder.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    path = folder / "results.json"
    if not path.exists():
        raise InputError(f"{folder}: no results.json; run 'neuronshield run' first")
    return {"format": FORMAT, **load_json(path, FORMAT)}


def write_results(folder: Path, results: Sequence[tuple[str, Any]] | dict[str, Any]) -> None:
    """Write results.json (beside first, then renamed).

    Args:
        folder: the run folder.
        results: by section.
    """
    save_json(folder / "results.json", FORMAT, {k: v for k, v in dict(results).items() if k != "format"})
