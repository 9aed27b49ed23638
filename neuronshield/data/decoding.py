"""A file or an image in memory to the RGB pixels that a viewer shows.

Only the formats of `FORMATS` are opened: others are read by programs outside (PostScript) or by code that few files have tried.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import InputError

__all__ = ["FORMATS", "MAX_PIXELS", "decode", "from_array", "open_image"]

MAX_PIXELS = 50_000_000
#: Pillow's names of the formats that are read, with the ending of a file of each; MPO is a JPEG with more pictures behind it.
FORMATS = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
#: Names that Pillow opens files by; it finds that a JPEG is an MPO by itself.
OPENED = tuple(name for name in FORMATS if name != "MPO")
READABLE = "use PNG, JPEG, WebP, GIF, BMP or TIFF"
#: Largest value of a picture with one number of more than 8 bits a pixel.
SIXTEEN_BITS = 65535
ORIENTATION = 0x0112


def open_image(item: Any, what: str) -> Image.Image:
    """A PIL image, its header checked (the pixels are decoded later).

    >>> open_image(Image.new("RGB", (6, 4)), "row 1: image").size
    (6, 4)

    Args:
        item: a path, bytes or a PIL image.
        what: the row and the picture, for errors.

    Raises:
        InputError: more than `MAX_PIXELS` pixels, none, or not an image of `FORMATS`.
    """
    if not isinstance(item, (Image.Image, bytes, Path)):
        raise InputError(
            f"{what} must be a path, bytes, a PIL image or a uint8 array (height, width, 3), got {type(item).__name__}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = io.BytesIO(item) if isinstance(item, bytes) else item
            image = source if isinstance(source, Image.Image) else Image.open(source, formats=OPENED)
    except Image.DecompressionBombError:
        raise InputError(f"{what} is enormous; at most {MAX_PIXELS // 10**6} megapixels") from None
    except UnidentifiedImageError:
        raise InputError(f"{what} is not an image we can read; {READABLE}") from None
    except Exception as error:
        raise InputError(
            f"{what} is not an image we can read ({str(error) or type(error).__name__}); {READABLE}"
        ) from None
    if image.format is not None and image.format not in FORMATS:
        raise InputError(f"{what} is of format {image.format}, which is not read; {READABLE}")
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise InputError(f"{what} is enormous ({size}); at most {MAX_PIXELS // 10**6} megapixels")
    if not image.width * image.height:
        raise InputError(f"{what} has no pixels ({image.width} x {image.height})")
    return image


def decode(image: Image.Image, what: str) -> Image.Image:
    """The image in RGB, as a viewer shows it: turned by its EXIF orientation, transparency on white, 16 bits scaled to 8.

    >>> decode(Image.new("I;16", (6, 4), 65535), "row 1: image").getpixel((0, 0))
    (255, 255, 255)

    Args:
        image: a PIL image.
        what: the row and the picture, for errors.

    Raises:
        InputError: damaged, or of numbers that have no grey level.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _on_white(_eight_bits(_upright(image), image.format, what))
    except InputError:
        raise
    except Exception as error:  # a decoder of a damaged file may raise anything
        raise InputError(f"{what} cannot be decoded ({str(error) or type(error).__name__})") from None


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; as it is where its EXIF cannot be read."""
    try:
        turned = image.getexif().get(ORIENTATION, 1)
    except Exception:  # viewers show the picture all the same
        return image
    return ImageOps.exif_transpose(image) if turned in range(2, 9) else image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _eight_bits(image: Image.Image, form: str | None, what: str) -> Image.Image:
    """A picture of one number of 16 or 32 bits a pixel in 8 bits; every other as it is."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= SIXTEEN_BITS):
        raise InputError(f"{what} has values from {low:g} to {high:g}; give 8 or 16 bits a pixel")
    if image.mode.startswith("I;16") or form == "PNG" or high > 255:
        scale = 255 / SIXTEEN_BITS
    else:
        scale = 255.0 if image.mode == "F" and high <= 1 else 1.0
    grey = Image.fromarray(np.rint(values.astype(np.float32) * np.float32(scale)).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        grey = Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
    return grey


def from_array(array: Any, where: str) -> Image.Image:
    """The PIL image of an array.

    >>> from_array(np.zeros((4, 6, 3), dtype=np.uint8), "row 1").size
    (6, 4)

    Args:
        array: uint8 (height, width), (height, width, 3) or (height, width, 4), or uint16 (height, width).
        where: named in errors.

    Raises:
        InputError: another type or shape.
    """
    kind = f"{type(array).__module__.split('.')[0]} array of {array.dtype} {tuple(array.shape)}"
    right = isinstance(array, np.ndarray) and (
        (array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))))
        or (array.dtype == np.uint16 and array.ndim == 2)
    )
    if not right:
        raise InputError(f"{where}: image is a {kind}; give a PIL image, or uint8 (height, width, 3)")
    return Image.fromarray(array)
