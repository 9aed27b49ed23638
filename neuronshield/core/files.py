"""Files: where the shipped ones are, and how results are written.

Every artefact is written beside its final place and renamed, so an interrupted write leaves the old file or folder as it
was. `replacing` does this for a file, `replacing_folder` for a folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .arguments import require
from .errors import InputError

__all__ = ["as_path", "beside", "replacing", "replacing_folder", "shipped", "write_text"]


def shipped() -> Path:
    """The folder of shipped files: inside an installed wheel, or `assets` at the root of a checkout.

    >>> (shipped() / "prompts" / "benign-en.txt").exists()
    True
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "assets"
    return inside if inside.is_dir() else package.parent / "assets"


def as_path(value: Any, *, call: str, hint: str = "") -> Path:
    """The path that a call was given.

    >>> as_path("a.txt", call="save(path)").name
    'a.txt'

    Args:
        value: what was given as the path.
        call: how the call reads when it is right, such as "save(path)".
        hint: what to do.

    Raises:
        InputError: not a string and not a path, or empty.
    """
    require(value, (str, os.PathLike), call=call, name="path", hint=hint)
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{call}: path is {text!r:.60}; give the name of a file")
    return Path(text)


def _why(error: Exception) -> str:
    """The reason that an error of the system or of safetensors gives, without its number."""
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def beside(path: Path, kind: str = "partial") -> Path:
    """The hidden path next to `path` that is written first; this process's own.

    >>> beside(Path("out/a.txt")).name.startswith(".a.txt.")
    True

    Args:
        path: the final place.
        kind: its ending: "partial" for what is being written, "old" for what is being replaced.
    """
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

    Raises:
        InputError: not a path, or the file cannot be written; what was there before stays.
    """
    from safetensors import SafetensorError

    path = as_path(path, call="save(path)")
    partial = beside(path, "partial") if path.name else path
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file, such as {path / 'result'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({_why(error)}); choose another path") from error
    finally:
        if partial != path:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Path of the file that the text was written to, as UTF-8.

    >>> write_text("a.txt", "done").read_text()
    'done'

    Args:
        path: the file to write; its folder is made if it is missing.
        text: its new content.

    Raises:
        InputError: not a path, or the file cannot be written; what was there before stays.
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
        InputError: not a path, or it cannot be written; nothing of it is left.
    """
    from safetensors import SafetensorError

    path = as_path(path, call="save(path)")
    partial, old = beside(path, "partial"), beside(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except (OSError, SafetensorError) as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise InputError(f"{path}: cannot be written ({_why(error)}); nothing of it was left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return path
