"""Files: where the shipped ones are, and how results are written.

Every artefact is written beside its final place and renamed, so an interrupted write leaves the old file or folder as it
was. `replacing` does this for a file, `replacing_folder` for a folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

__all__ = ["replacing", "replacing_folder", "shipped", "write_text"]


def shipped() -> Path:
    """The folder of shipped files: inside an installed wheel, or `assets` at the root of a checkout.

    >>> (shipped() / "prompts" / "benign-en.txt").exists()
    True
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "assets"
    return inside if inside.is_dir() else package.parent / "assets"


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` at the end, removed if the block raises.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> with replacing(target) as partial:
    ...     _ = partial.write_text("done")
    >>> target.read_text(), [p.name for p in target.parent.iterdir()]
    ('done', ['a.txt'])

    Args:
        path: the file to write; its folder is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Path of the file that the text was written to, as UTF-8.

    >>> write_text("a.txt", "done").read_text()
    'done'

    Args:
        path: the file to write; its folder is made if it is missing.
        text: its new content.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def replacing_folder(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Path of the folder that `write` filled; an error leaves what was there before.

    `write` fills a folder beside `path`, which is then renamed to `path`.

    >>> def fill(folder: Path) -> None:
    ...     folder.mkdir()
    ...     _ = (folder / "a.txt").write_text("done")
    >>> [p.name for p in replacing_folder("out", fill).iterdir()]
    ['a.txt']

    Args:
        path: the folder to write.
        write: is called with the folder to fill.

    Raises:
        InputError: it cannot be written; nothing of it is left.
    """
    from safetensors import SafetensorError

    path = Path(path)
    partial, old = _beside(path, "partial"), _beside(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        if old.exists() and not path.exists():
            old.rename(path)
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({why}); nothing of it was left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return path
