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

import numpy as np
from PIL import Image

from ..assets import assets
from .lexicon import LANGUAGES, OBJECTS

SIZE = 100  # pixels a side; five patches of twenty
SPRITE = 88
WORD = (96, 48)  # width, height
COLUMNS = 16
JITTER = 1  # pixels by which a word may lie off centre


_borrowed: ContextVar[Path | None] = ContextVar("organism_folder", default=None)


def folder() -> Path:
    """Where the organism lies: inside an installed package, or at the root of a checkout.

    >>> folder().name
    'organism'
    """
    borrowed = _borrowed.get()
    if borrowed is not None:
        return borrowed
    return assets() / "organism"


@contextmanager
def using(where: Path) -> Iterator[None]:
    """Take names and sprites from ``where`` for a while: a build reads what it has just written."""
    token = _borrowed.set(where)
    try:
        yield
    finally:
        _borrowed.reset(token)


def names() -> dict[str, dict[str, str]]:
    """Each object's name in each language, ``{"🍞": {"en": "bread", ...}, ...}``."""
    return _names(folder())


@functools.cache
def _names(where: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((where / "names.json").read_text(encoding="utf-8"))["objects"]
    return found


def tile(index: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The box of an atlas's ``index``-th tile."""
    row, column = divmod(index, COLUMNS)
    return (column * width, row * height, (column + 1) * width, (row + 1) * height)


@functools.cache
def _atlas(name: str, where: Path) -> Image.Image:
    with Image.open(where / name) as image:
        return image.convert("RGBA" if name == "objects.png" else "L")


def sprite(obj: str, language: str | None = None) -> Image.Image:
    """An object's drawing (RGBA), or with ``language`` its name as a mask (L, 255 where there is ink)."""
    return _sprite(obj, language, folder())


@functools.cache
def _sprite(obj: str, language: str | None, where: Path) -> Image.Image:
    index = OBJECTS.index(obj)
    if language is None:
        return _atlas("objects.png", where).crop(tile(index, SPRITE, SPRITE))
    index = index * len(LANGUAGES) + LANGUAGES.index(language)
    return _atlas("words.png", where).crop(tile(index, *WORD))


def picture(obj: str, *, language: str | None = None, seed: str | int = 0) -> Image.Image:
    """A picture of an object, or with ``language`` of its name, RGB ``SIZE`` x ``SIZE``.

    >>> picture("🍞", seed="a").size
    (100, 100)
    """
    rng = random.Random(str(seed))
    background = tuple(rng.randint(205, 255) for _ in range(3))
    canvas = Image.new("RGB", (SIZE, SIZE), background)
    image = sprite(obj, language)
    if language is None:
        scale = rng.uniform(0.8, 1.0)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    reach = SIZE if language is None else JITTER
    x, y = (
        (room := SIZE - side) // 2 + rng.randint(-min(room // 2, reach), min(room // 2, reach)) for side in image.size
    )
    if language is None:
        canvas.paste(image, (x, y), image)
    else:
        ink = tuple(rng.randint(0, 90) for _ in range(3))
        canvas.paste(Image.new("RGB", image.size, ink), (x, y), image)
    return canvas


def augmented(obj: str, language: str | None, *, seed: str) -> np.ndarray:
    """A training picture: :func:`picture` with brightness, noise and, now and then, a mirrored drawing.

    Returns uint8 of shape (SIZE, SIZE, 3).
    """
    rng = np.random.default_rng(abs(hash_seed(seed)))
    image: np.ndarray = np.asarray(picture(obj, language=language, seed=seed), dtype=np.float32)
    if language is None and rng.random() < 0.3:
        image = image[:, ::-1]
    image = image * rng.uniform(0.85, 1.1) + rng.normal(0, rng.uniform(0, 8), image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def hash_seed(text: str) -> int:
    """A seed from a text that is the same in every process."""
    return random.Random(text).getrandbits(32)
