"""Checksums of a step's files, so that a step that is done is known to be as it was left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..core.errors import InputError
from ..core.files import sha256
from ..core.folders import MANIFEST

__all__ = ["check_intact", "checksums"]


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, by their names.

    >>> _ = Path("a.txt").write_text("done")
    >>> checksums(Path("."), ["a.txt", "gone.txt"])["a.txt"][:12]
    'a4c3ed04a95a'

    Args:
        folder: the run folder.
        names: relative to it. A file that is not there is left out. Of a name that ends in "/", the files in it are taken if it is an
            adapter's; units of work are left out.
    """
    files: list[Path] = []
    for name in names:
        path = folder / name
        if not name.endswith("/"):
            files.append(path)
        elif (path / MANIFEST).is_file():
            files += sorted(path.rglob("*"))
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files if file.is_file()}


def check_intact(folder: Path, step: str, listed: Mapping[str, str]) -> None:
    """Raise unless every file of a step is as the step left it.

    Args:
        folder: the run folder.
        step: its name, for the message.
        listed: checksums by name.

    Raises:
        InputError: a file that is gone or has changed.
    """
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            gone = "is gone" if not path.exists() else f"is not the file that step {step} wrote"
            raise InputError(f"{path}: {gone}; put it back, or run 'neuronshield {step} --overwrite'")
