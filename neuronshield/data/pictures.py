"""Pictures of prompts: found, opened and checked when prompts are read; written beside a file of prompts."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.errors import InputError
from ..core.files import replacing

__all__ = ["MAX_PIXELS", "image_bytes", "open_image", "read_images", "write_image"]

MAX_PIXELS = 50_000_000
PNG = b"\x89PNG\r\n\x1a\n"
#: Modes of PIL images that PNG keeps as they are.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def read_images(value: Any, where: str, folder: Path | None) -> tuple[Any, ...]:
    """Pictures of a row: paths resolved inside `folder`, PIL images and bytes as they are; each checked from its header.

    >>> read_images(None, "row 1", None)
    ()

    Args:
        value: a path, bytes, a PIL image, a Hugging Face image dict, or several of them; None for no picture.
        where: named in errors, e.g. "prompts.jsonl:7".
        folder: paths are relative to it and stay inside it; None takes no paths.

    Raises:
        InputError: a picture that is missing, outside the folder, enormous or not an image.
    """
    if value is None:
        return ()
    if isinstance(value, (str, bytes, os.PathLike)) or not hasattr(value, "__iter__") or isinstance(value, dict):
        value = [value]
    images: list[Any] = []
    for item in value:
        if isinstance(item, dict):  # how Hugging Face datasets store an undecoded image
            item = item.get("bytes") or item.get("path")
        if isinstance(item, (str, os.PathLike)):
            item = _inside(item, where, folder)
        open_image(item, where)
        images.append(item)
    return tuple(images)


def _inside(item: str | os.PathLike[str], where: str, folder: Path | None) -> Path:
    if folder is None:
        raise InputError(f"{where}: image path {os.fspath(item)!r} but no folder=; paths need a folder to stay inside")
    root = folder.resolve()
    try:
        path = (root / item).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, a loop of links
        raise InputError(f"{where}: image path {os.fspath(item)[:80]!r} cannot be followed") from None
    if not path.is_relative_to(root):
        raise InputError(f"{where}: image {os.fspath(item)!r} lies outside the prompt file's folder; move it inside")
    if not found:
        raise InputError(f"{where}: image {os.fspath(item)!r} not found under the prompt file's folder")
    return path


def open_image(item: Any, where: str) -> Image.Image:
    """A PIL image, its header checked (the pixels are decoded later).

    >>> from PIL import Image
    >>> open_image(Image.new("RGB", (6, 4)), "row 1").size
    (6, 4)

    Args:
        item: a path, bytes or a PIL image.
        where: named in errors.

    Raises:
        InputError: more than `MAX_PIXELS` pixels, or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    name = repr(item.name) if isinstance(item, Path) else "image"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(item, Image.Image):
                image = item
            elif isinstance(item, (bytes, bytearray)):
                image = Image.open(io.BytesIO(item))
            elif isinstance(item, Path):
                image = Image.open(item)
            else:
                raise InputError(f"{where}: image must be a path, bytes or a PIL image, got {type(item).__name__}")
    except Image.DecompressionBombError:
        raise InputError(f"{where}: {name} is enormous; at most {MAX_PIXELS // 10**6} megapixels") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: {name} is not an image we can read") from None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{where}: {name} is enormous ({image.width} x {image.height}); at most {MAX_PIXELS // 10**6} megapixels"
        )
    return image


def image_bytes(image: Any) -> bytes:
    """What a picture is hashed by: the pixels of a PIL image or a PNG, the bytes of any other file.

    A PIL image and the PNG that it is saved as have the same hash.

    >>> from PIL import Image
    >>> len(image_bytes(Image.new("RGB", (6, 4))))
    72

    Args:
        image: a path, bytes or a PIL image.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return image.tobytes()
    data = image.read_bytes() if isinstance(image, Path) else bytes(image)
    if not data.startswith(PNG):
        return data
    try:
        return Image.open(io.BytesIO(data)).tobytes()
    except (OSError, SyntaxError, ValueError):  # damaged: said when the picture is decoded
        return data


def write_image(image: Any, folder: Path, root: Path) -> str:
    """Path of a picture relative to `root`, written to `folder` unless it is a file inside `root` already.

    Files keep their bytes. PIL images become PNG. The name is the hash of the content, so a picture is written once.

    >>> from PIL import Image
    >>> write_image(Image.new("RGB", (6, 4)), Path("pictures"), Path())
    'pictures/....png'

    Args:
        image: a path, bytes or a PIL image.
        folder: where new files go; inside `root`.
        root: the folder of the file of prompts.
    """
    from PIL import Image

    if isinstance(image, Path):
        if image.resolve().is_relative_to(root.resolve()):
            return image.resolve().relative_to(root.resolve()).as_posix()
        image = image.read_bytes()
    kind = "png"
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        data = bytes(image)
        kind = (Image.open(io.BytesIO(data)).format or "png").lower()
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.{kind}"
    if not path.exists():
        with replacing(path) as partial:
            partial.write_bytes(data)
    return path.relative_to(root).as_posix()
