"""Pictures of prompts: found, decoded and checked when prompts are read; written beside a file of prompts.

A picture is used as a viewer shows it: turned by its EXIF orientation, transparency on white, 16 bits scaled to 8, in RGB. Of an
animation that is its first frame.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..core.errors import InputError
from ..core.files import replacing
from .columns import is_encoded_picture
from .decoding import FORMATS, decode, from_array, open_image

__all__ = ["image_bytes", "picture_file", "read_image", "read_images", "write_image"]

PNG = b"\x89PNG\r\n\x1a\n"
#: Modes of PIL images that PNG keeps as they are.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def read_images(value: Any, where: str, folder: Path | None) -> tuple[Any, ...]:
    """Pictures of a row, each decoded once: paths resolved inside `folder`, bytes as they are, others as images in RGB.

    >>> read_images(None, "row 1", None)
    ()

    Args:
        value: a path, bytes, a PIL image, an array of uint8 (height, width) or (height, width, 3 or 4), a Hugging Face image
            dict, or several of them; None for no picture.
        where: named in errors, e.g. "prompts.jsonl:7".
        folder: paths are relative to it and stay inside it; None takes no paths.

    Raises:
        InputError: a picture that is missing, outside the folder, on the web, enormous, damaged or not of `FORMATS`.
    """
    return tuple(_read(item, where, folder) for item in listed(value))


def listed(value: Any) -> list[Any]:
    """The pictures that a column holds, as a list; an array of two or three axes is one picture, a blank text none.

    >>> listed("a.png"), listed(None), listed(["a.png", b"..."])
    (['a.png'], [], ['a.png', b'...'])

    Args:
        value: of the column.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    array = hasattr(value, "dtype") and hasattr(value, "shape")
    numbers = array and getattr(value.dtype, "kind", "f") not in "OUS"
    single = value.ndim < 4 if numbers else not isinstance(value, Iterable)
    if single or isinstance(value, (str, bytes, bytearray, os.PathLike, Mapping, Image.Image)):
        return [value]
    return list(value)


def _read(item: Any, where: str, folder: Path | None) -> Any:
    """A picture as a prompt keeps it, decoded once."""
    if isinstance(item, Mapping):  # how Hugging Face datasets store an undecoded image
        item = _of_dict(item, where)
    if isinstance(item, (str, os.PathLike)):
        item = _inside(item, where, folder)
    elif isinstance(item, (bytearray, memoryview)):
        item = bytes(item)
    image = read_image(item, where)
    return item if isinstance(item, (bytes, Path)) else image


def _of_dict(item: Mapping[str, Any], where: str) -> Any:
    given = {key: value for key, value in item.items() if value is not None}
    if not given or not set(given) <= {"bytes", "path"}:
        has = ", ".join(map(str, given)) or "nothing"
        raise InputError(
            f"{where}: image must have 'bytes' or 'path', this one has {has[:80]}; give a path or the bytes"
        )
    return given.get("bytes", given.get("path"))


def _inside(item: str | os.PathLike[str], where: str, folder: Path | None) -> Path:
    name = local_name(os.fspath(item), where)
    if folder is None:
        raise InputError(f"{where}: image path {name[:80]!r} but no folder=; paths need a folder to stay inside")
    root = folder.resolve()
    try:
        path = (root / name).resolve()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, a loop of links
        raise InputError(f"{where}: image path {name[:80]!r} cannot be followed") from None
    if not path.is_relative_to(root):
        raise InputError(f"{where}: image {name!r} lies outside the prompt file's folder; move it inside")
    if not found:
        raise InputError(f"{where}: image {name!r} not found under the prompt file's folder")
    return path


def local_name(text: str, where: str) -> str:
    """The path that a string names: itself, or the path of a file: URL.

    >>> local_name("a.png", "row 1"), local_name("file:///tmp/a%20b.png", "row 1")
    ('a.png', '/tmp/a b.png')

    Args:
        text: a path or URL.
        where: named in errors.

    Raises:
        InputError: any other URL: nothing is fetched, and pictures inside URLs are not read.
    """
    scheme = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]+):", text)
    kind = scheme[1].lower() if scheme else ""
    if kind == "data":
        raise InputError(f"{where}: image is a data: URL; decode it and give the bytes, or the path of a file")
    if is_encoded_picture(text):
        raise InputError(f"{where}: image is base64; decode it and give the bytes, or the path of a file")
    if kind == "file":
        parts = urlsplit(text.strip())
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{where}: image {text[:80]!r} is on another machine; give the path of a file")
        return unquote(parts.path)
    if kind and ("//" in text or kind in ("http", "https")):
        raise InputError(f"{where}: image {text[:80]!r} is a URL; nothing is fetched, give the path of a file")
    return text


def read_image(item: Any, where: str) -> Image.Image:
    """The picture in RGB, as a viewer shows it.

    >>> read_image(Image.new("RGBA", (6, 4)), "row 1").getpixel((0, 0))
    (255, 255, 255)

    Args:
        item: a path, bytes, a PIL image or an array of uint8.
        where: named in errors.

    Raises:
        InputError: not a picture of `FORMATS`, damaged, or of more than `MAX_PIXELS` pixels.
    """
    name = repr(item.name) if isinstance(item, Path) else "image"
    if hasattr(item, "dtype") and hasattr(item, "shape"):
        item = from_array(item, where)
    return decode(open_image(item, f"{where}: {name}"), f"{where}: {name}")


def image_bytes(image: Any) -> bytes:
    """What a picture is hashed by: size and pixels of a PIL image or a PNG, the bytes of any other file.

    A PIL image and the PNG that it is saved as have the same hash.

    >>> image_bytes(Image.new("RGB", (2, 1)))
    b'2x1:\\x00\\x00\\x00\\x00\\x00\\x00'

    Args:
        image: a path, bytes or a PIL image.
    """
    if isinstance(image, (bytes, Path)):
        data = file_bytes(image)
        if not data.startswith(PNG):
            return data
        image = data
    try:
        pixels = read_image(image, "image")
    except InputError:  # damaged: said when the picture is decoded
        return image if isinstance(image, bytes) else repr(image).encode()
    return f"{pixels.width}x{pixels.height}:".encode() + pixels.tobytes()


def file_bytes(image: Path | bytes) -> bytes:
    """The bytes of a picture's file.

    >>> file_bytes(b"...")
    b'...'

    Args:
        image: a path, or the bytes.

    Raises:
        InputError: a file that is no longer there.
    """
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(f"{image}: the picture cannot be read ({error.strerror})") from None


def write_image(image: Any, folder: Path, root: Path) -> str:
    """Path of a picture relative to `root`, written to `folder` unless it is a file inside `root` already.

    Files keep their bytes. PIL images become PNG. The name is the hash of the content, so a picture is written once.

    >>> write_image(Image.new("RGB", (6, 4)), Path("pictures"), Path())
    'pictures/....png'

    Args:
        image: a path, bytes or a PIL image.
        folder: where new files go; inside `root`.
        root: the folder of the file of prompts.

    Raises:
        InputError: not a picture that can be read.
    """
    if isinstance(image, Path) and image.resolve().is_relative_to(root.resolve()):
        return image.resolve().relative_to(root.resolve()).as_posix()
    data, kind = picture_file(image)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.{kind}"
    if not path.exists():
        with replacing(path) as partial:
            partial.write_bytes(data)
    return path.relative_to(root).as_posix()


def picture_file(image: Any) -> tuple[bytes, str]:
    """The bytes of a picture as a file, and the ending of its name; a file keeps its bytes, a PIL image becomes PNG.

    >>> picture_file(Image.new("RGB", (6, 4)))[1]
    'png'

    Args:
        image: a path, bytes or a PIL image.

    Raises:
        InputError: not a picture that can be read.
    """
    import io

    if isinstance(image, (Path, bytes)):
        data = file_bytes(image)
        return data, FORMATS[str(open_image(data, "image").format)]
    buffer = io.BytesIO()
    plain = isinstance(image, Image.Image) and image.mode in PNG_MODES and not {"exif", "transparency"} & {*image.info}
    (image if plain else read_image(image, "image")).save(buffer, "PNG")
    return buffer.getvalue(), "png"
