"""Folders: an artefact of several files appears whole, and never in the place of files of somebody else.

`replacing_folder` writes a list of its files, `neuronshield.json`, into every folder that it makes: the checksum of each file by its
name. A folder is known by this list. One that holds anything else, or a file that was changed since, is not replaced, and nothing
in it is touched. A loader checks the files that it reads against the list.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .files import as_path, beside, reason, sha256
from .results import from_json, load_json, save_json

__all__ = ["MANIFEST", "check_files", "check_place", "list_files", "listed_files", "replacing_folder"]

#: The list of files in a folder that this program wrote.
MANIFEST = "neuronshield.json"
FORMAT = "neuronshield.Folder/1"
IN_PLACE = (
    "{}: what an earlier save left in this folder cannot be replaced in one step (it is a mount point, the working folder, or in a "
    "folder that cannot be written); empty it, or choose a folder in it"
)


@dataclass(frozen=True)
class _Manifest:
    """SHA-256 of every file by its path in the folder."""

    files: dict[str, str]


def replacing_folder(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Path of the folder that `write` filled; an error leaves what was there before.

    `write` fills an empty folder beside `path`, which then takes the place of `path` in one step: a crash leaves the old folder or
    the new one. (On a file system that cannot exchange two folders, such as NFS, a crash between two renames leaves the old one beside
    its place, as `.name.<random>.old`.) A symbolic link stays, and the folder that it leads to is replaced. A mount point, and a
    folder in a folder that cannot be written, are filled if they are empty.

    >>> def fill(folder: Path) -> None:
    ...     _ = (folder / "a.txt").write_text("done")
    >>> sorted(p.name for p in replacing_folder("out", fill).iterdir())
    ['a.txt', 'neuronshield.json']

    Args:
        path: the folder to write: missing, empty, or one that this function wrote and nobody changed.
        write: is called with the folder to fill.

    Raises:
        InputError: not a path, a folder with files that this function did not write, or it cannot be written; nothing of it is left.
    """
    from safetensors import SafetensorError

    check_place(path)
    place = Path(os.path.realpath(as_path(path, call="save(path)")))
    partial: Path | None = None
    try:
        empty = not place.exists() or not any(place.iterdir())
        partial = _staging(place, empty=empty)
        write(partial)
        list_files(partial)
        if partial.parent == place:
            _fill(place, partial)
        elif empty:
            _move(partial, place)
        else:
            check_place(path)  # `write` may have taken hours
            _exchange(partial, place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); nothing of it was left") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return Path(path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise unless a folder may be written: it is missing, empty, or one that `replacing_folder` wrote and nobody changed.

    >>> _ = Path("notes.txt").write_text("mine")
    >>> check_place(".")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: .: holds 'notes.txt', which neuronshield did not write; choose another folder

    Args:
        path: the folder.

    Raises:
        InputError: not a path, a file, or a folder that holds anything else; the message names one such file.
    """
    path = as_path(path, call="save(path)")
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; choose a folder")
        top = sorted(path.iterdir()) if path.is_dir() else []
        listed = _manifest(path).files if (path / MANIFEST).is_file() else {}
        folders = {str(parent) for name in listed for parent in Path(name).parents}
        for one in path.rglob("*") if listed else top:
            name = one.relative_to(path).as_posix()
            if name not in (folders if one.is_dir() and not one.is_symlink() else {*listed, MANIFEST}):
                raise InputError(f"{path}: holds {name!r:.80}, which neuronshield did not write; choose another folder")
        changed = [name for name in listed if not _unchanged(path, name, listed)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); choose another folder") from error
    if changed:
        raise InputError(f"{path}: {changed[0]!r:.80} was changed since neuronshield wrote it; choose another folder")


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Raise unless files of a folder that `replacing_folder` wrote are those that it wrote.

    >>> def fill(folder: Path) -> None:
    ...     _ = (folder / "a.txt").write_text("done")
    >>> check_files(replacing_folder("out", fill), ["a.txt"])

    Args:
        folder: holds the list of its files.
        names: the files to check; one that is not there is not missed.

    Raises:
        InputError: no list, a damaged one, or a file that is not in the list or was changed.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder}: has no {MANIFEST}: written by an older version, or a part of a folder; make it again"
        )
    listed = _manifest(folder).files
    for name in names:
        if (folder / name).exists() and not _unchanged(folder, name, listed):
            raise InputError(f"{folder / name}: is not the file that was saved in this folder; save it again")


def _manifest(folder: Path) -> _Manifest:
    """The list of files in a folder."""
    try:
        return from_json(_Manifest, load_json(folder / MANIFEST, FORMAT))
    except InputError as error:
        raise InputError(f"{folder}: its list of files cannot be read ({error})") from None


def _unchanged(folder: Path, name: str, listed: dict[str, str]) -> bool:
    file = folder / name
    return file.is_file() and listed.get(name) == sha256(file)


def list_files(folder: Path) -> None:
    """Write the list of a folder's files into it; all get the permissions of a new file.

    >>> folder = Path("out")
    >>> folder.mkdir()
    >>> list_files(folder)
    >>> [p.name for p in folder.iterdir()]
    ['neuronshield.json']

    Args:
        folder: the folder.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    listed = _Manifest({p.relative_to(folder).as_posix(): sha256(p) for p in files})
    mode = save_json(folder / MANIFEST, FORMAT, listed).stat().st_mode
    for file in files:  # safetensors makes files that only their owner can read
        file.chmod(mode)


def listed_files(folder: Path) -> list[str]:
    """Paths in the list of a folder's files.

    >>> folder = Path("out")
    >>> folder.mkdir()
    >>> _ = (folder / "a.txt").write_text("done")
    >>> list_files(folder)
    >>> listed_files(folder)
    ['a.txt']

    Args:
        folder: holds the list.

    Raises:
        InputError: a damaged list.
    """
    return list(_manifest(folder).files)


def _staging(place: Path, *, empty: bool) -> Path:
    """A new folder to write to: beside the place, or in it where that cannot be renamed or nothing can be made beside it."""
    folder = beside(place)
    if not (os.path.ismount(place) or place == Path.cwd()):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
        except OSError:
            if not place.is_dir():
                raise
    if not empty:
        raise InputError(IN_PLACE.format(place))
    folder = place / folder.name
    folder.mkdir()
    return folder


def _move(partial: Path, place: Path) -> None:
    """A finished folder to a place that is missing or empty."""
    try:
        partial.rename(place)
    except OSError:  # a folder that is mounted from the same disk cannot be renamed
        if not place.is_dir():
            raise
        _fill(place, partial)


def _fill(place: Path, partial: Path) -> None:
    """The files of a finished folder into an empty one, the list of them first: a part of them is known as such."""
    moved: list[Path] = []
    try:
        for item in sorted(partial.iterdir(), key=lambda p: (p.name != MANIFEST, p.name)):
            target = place / item.name
            if target.exists():
                raise InputError(f"{place}: {item.name!r} was written by another process; choose another folder")
            moved.append(target)
            shutil.move(item, target)
    except BaseException:
        for target in moved:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise


def _exchange(partial: Path, place: Path) -> None:
    """A finished folder to the place of an older one, which is left where the finished one was."""
    if sys.platform == "linux" and (call := getattr(ctypes.CDLL(None), "renameat2", None)) is not None:
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        both = (here, os.fsencode(partial), here, os.fsencode(place))
        if call(*both, swap) == 0:
            return
    old = beside(place, "old")
    try:
        place.rename(old)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise InputError(IN_PLACE.format(place)) from error
        raise
    try:
        partial.rename(place)
    except BaseException:
        with suppress(OSError):
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
