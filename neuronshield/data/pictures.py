"""Pictures of prompts: found, opened and checked when prompts are read."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.errors import InputError

__all__ = ["MAX_PIXELS", "image_bytes", "open_image", "read_images"]

MAX_PIXELS = 50_000_000


def read_images(value: Any, where: str, folder: Path | None) -> tuple[Any, ...]:
    """Paths resolved inside `folder`, PIL images and bytes as they are; each checked from its header."""
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
    """A PIL image, its header checked (the pixels are decoded later)."""
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
    if isinstance(image, Path):
        return image.read_bytes()
    return bytes(image) if isinstance(image, (bytes, bytearray)) else image.tobytes()
