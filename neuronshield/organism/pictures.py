"""The organism's pictures, composed from sprites that ship with the package (no font is needed).

Two atlases: ``objects.png``, a colour drawing per object (OpenMoji), and ``words.png``, each object's name in
each language as a grey mask (typeset once with Noto). A picture is one of them on a light background of a
random colour: a drawing at a random size and place, a word in a random dark ink at the centre.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from PIL import Image

from ..core.files import shipped
from .lexicon import LANGUAGES, OBJECTS

SIZE = 100  # pixels a side; five patches of twenty
SPRITE = 88
WORD = (96, 48)  # width, height
COLUMNS = 16
SCALES = (0.8, 1.0)  # of drawings
LIGHT, DARK = 205, 90  # the darkest ground and the lightest ink of a channel

_borrowed: ContextVar[Path | None] = ContextVar("organism_folder", default=None)


def folder() -> Path:
    """The organism's folder: inside an installed package, or at the root of a checkout.

    >>> folder().name
    'organism'
    """
    borrowed = _borrowed.get()
    if borrowed is not None:
        return borrowed
    return shipped() / "organism"


@contextmanager
def using(where: Path) -> Iterator[None]:
    """Inside the block, names and sprites come from ``where``: a build reads what it has just written.

    Args:
        where: a folder of the organism's files.
    """
    token = _borrowed.set(where)
    try:
        yield
    finally:
        _borrowed.reset(token)


def names() -> dict[str, dict[str, str]]:
    """Each object's name in each language, {object: {language: name}}.

    >>> names()["🍞"]["en"]
    'bread'
    """
    return _names(folder())


@functools.cache
def _names(where: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((where / "names.json").read_text(encoding="utf-8"))["objects"]
    return found


def tile(index: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of an atlas's tile, in pixels.

    >>> tile(17, 10, 20)
    (10, 20, 20, 40)

    Args:
        index: of the tile, row by row.
        width: of a tile, in pixels.
        height: of a tile, in pixels.
    """
    row, column = divmod(index, COLUMNS)
    return (column * width, row * height, (column + 1) * width, (row + 1) * height)


@functools.cache
def _atlas(name: str, where: Path) -> Image.Image:
    with Image.open(where / name) as image:
        return image.convert("RGBA" if name == "objects.png" else "L")


def sprite(obj: str, language: str | None = None) -> Image.Image:
    """An object's drawing (RGBA), or its name as a mask (L, 255 where there is ink).

    >>> sprite("🍞").size, sprite("🍞", "en").size
    ((88, 88), (96, 48))

    Args:
        obj: an emoji from `OBJECTS`.
        language: of the name; None for the drawing.
    """
    return _sprite(obj, language, folder())


@functools.cache
def _sprite(obj: str, language: str | None, where: Path) -> Image.Image:
    index = OBJECTS.index(obj)
    if language is None:
        return _atlas("objects.png", where).crop(tile(index, SPRITE, SPRITE))
    index = index * len(LANGUAGES) + LANGUAGES.index(language)
    return _atlas("words.png", where).crop(tile(index, *WORD))


def room(scale: float) -> int:
    """The most pixels that a drawing of this scale may be moved off the centre.

    >>> room(1.0)
    6

    Args:
        scale: of the drawing, 1 for its full size.
    """
    return (SIZE - round(SPRITE * scale)) // 2


def layer(obj: str, language: str | None = None, *, scale: float = 1.0) -> Image.Image:
    """The drawing at a scale, or the word in black, in the middle of a transparent canvas (RGBA).

    >>> layer("🍞", scale=0.8).size
    (100, 100)

    Args:
        obj: an emoji from `OBJECTS`.
        language: of the word; None for the drawing.
        scale: of the drawing, 1 for its full size.
    """
    image = sprite(obj, language)
    if language is None:
        side = round(SPRITE * scale)
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    else:
        mask, image = image, Image.new("RGBA", image.size, (0, 0, 0, 0))
        image.putalpha(mask)
    canvas = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return canvas


def picture(obj: str, *, language: str | None = None, seed: str | int = 0) -> Image.Image:
    """A picture of an object or of its name, RGB, ``SIZE`` x ``SIZE`` pixels.

    >>> picture("🍞", seed="a").size
    (100, 100)

    Args:
        obj: an emoji from `OBJECTS`.
        language: of the name; None for a drawing.
        seed: of colours, size and place.
    """
    rng = random.Random(str(seed))
    canvas = Image.new("RGB", (SIZE, SIZE), (rng.randint(LIGHT, 255), rng.randint(LIGHT, 255), rng.randint(LIGHT, 255)))
    if language is None:
        scale = rng.uniform(*SCALES)
        reach = room(scale)
        drawing = layer(obj, scale=scale)
        canvas.paste(drawing, (rng.randint(-reach, reach), rng.randint(-reach, reach)), drawing)
    else:
        ink = (rng.randint(0, DARK), rng.randint(0, DARK), rng.randint(0, DARK))
        canvas.paste(ink, (0, 0), layer(obj, language))
    return canvas
