"""Files: where the shipped ones are, and how results are written.

Every artefact is written beside its final place and renamed, so an interrupted write leaves what was there. `replacing` does this
for a file, `neuronshield.core.folders.replacing_folder` for a folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .arguments import require
from .errors import InputError

__all__ = ["as_path", "beside", "is_partial", "reason", "replacing", "sha256", "shipped", "write_text"]

PARTIAL = re.compile(r"\..+\.[0-9a-f]{12}\.(partial|old)")  # as `beside` names them


@functools.cache
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


def reason(error: Exception) -> str:
    """The reason that an error of the system or of safetensors gives, without its number.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'

    Args:
        error: what was raised.
    """
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]


def beside(path: Path, kind: str = "partial") -> Path:
    """A hidden path next to `path` that no other process, thread or machine uses.

    >>> beside(Path("out/a.txt")).name.startswith(".a.txt."), beside(Path("a")) == beside(Path("a"))
    (True, False)

    Args:
        path: the final place.
        kind: its ending: "partial" for what is being written, "old" for what is being replaced.
    """
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(6)}.{kind}")


def is_partial(name: str) -> bool:
    """Whether a file or folder was being written when its process was killed.

    >>> is_partial(beside(Path("out/a.txt")).name), is_partial("a.txt")
    (True, False)

    Args:
        name: of the file or folder.
    """
    return PARTIAL.fullmatch(name) is not None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    >>> sha256(write_text("a.txt", "done"))[:12]
    'a4c3ed04a95a'

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` at the end, removed if the block raises.

    Where `path` is a symbolic link, the file that it leads to is replaced and the link stays.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> with replacing(target) as partial:
    ...     _ = partial.write_text("done")
    >>> target.read_text(), [p.name for p in target.parent.iterdir()]
    ('done', ['a.txt'])

    Args:
        path: the file to write; its folder is made if it is missing. Permissions stay, or are those of any new file.

    Raises:
        InputError: not a path, not the place of a plain file, or the file cannot be written; what was there before stays.
    """
    from safetensors import SafetensorError

    path = as_path(path, call="save(path)")
    partial: Path | None = None
    try:
        place = Path(os.path.realpath(path))
        if place.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file, such as {path / 'result'}")
        if place.exists() and not place.is_file():
            raise InputError(f"{path}: is not a plain file (a device or a pipe); give the name of a file")
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = beside(place)
        partial.touch(exist_ok=False)
        mode = (place if place.exists() else partial).stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors makes files that only their owner can read
        partial.replace(place)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({reason(error)}); choose another path") from error
    finally:
        if partial is not None:
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
