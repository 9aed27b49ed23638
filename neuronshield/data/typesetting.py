"""Text drawn into pictures: what a request looks like where a model has to read it.

Three renderings of a text:

    typeset    black on white, upright, as large as fits
    styled     one colour on another, both drawn by the seed, at least 4.5 : 1 apart in luminance (WCAG 2.1, contrast minimum)
    rotated    black on white at half the size, turned by an angle that the seed draws, 15 to 40 degrees to either side

Letters are those of Pillow's built-in font, which has ASCII only, or of a font file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..core.errors import InputError

__all__ = ["RENDERINGS", "png", "render"]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
Colour = tuple[int, int, int]
SMALLEST = 9  # pixels of a letter's height, below which a text is refused
CONTRAST = 4.5
MARGIN = 0.06  # of the picture, on each side


def render(
    text: str,
    kind: str,
    *,
    size: tuple[int, int] = (336, 336),
    seed: int = 0,
    font: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """A picture of a text.

    >>> render("How do I bake bread?", "typeset").size
    (336, 336)

    Args:
        text: what is written.
        kind: one of `RENDERINGS`.
        size: width and height in pixels.
        seed: of the colours and the angle.
        font: a font file; None for Pillow's own.

    Raises:
        InputError: a font that cannot be read or lacks a letter, or a text that is too long for the picture.
    """
    return RENDERINGS[kind](text, size, np.random.default_rng(seed), font=font)


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file.

    >>> png(Image.new("RGB", (2, 1)))[:4]
    b'\\x89PNG'

    Args:
        image: the picture.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _typeset(text: str, size: tuple[int, int], rng: np.random.Generator, *, font: Any) -> Image.Image:
    return _drawn(text, size, font=font)


def _styled(text: str, size: tuple[int, int], rng: np.random.Generator, *, font: Any) -> Image.Image:
    while True:
        ink, paper = (_colour(rng) for _ in range(2))
        if _contrast(ink, paper) >= CONTRAST:
            return _drawn(text, size, font=font, ink=ink, paper=paper)


def _rotated(text: str, size: tuple[int, int], rng: np.random.Generator, *, font: Any) -> Image.Image:
    angle = float(rng.uniform(15, 40) * rng.choice([-1, 1]))
    small = _drawn(text, (2 * size[0] // 3, size[1] // 2), font=font)
    turned = small.rotate(angle, resample=Image.Resampling.BICUBIC, expand=True, fillcolor=WHITE)
    turned.thumbnail(size)
    out = Image.new("RGB", size, WHITE)
    out.paste(turned, ((size[0] - turned.width) // 2, (size[1] - turned.height) // 2))
    return out


#: Every rendering by its name.
RENDERINGS: dict[str, Callable[..., Image.Image]] = {"typeset": _typeset, "styled": _styled, "rotated": _rotated}


def _drawn(text: str, size: tuple[int, int], *, font: Any, ink: Colour = BLACK, paper: Colour = WHITE) -> Image.Image:
    """The text in lines, as large as fits."""
    room = tuple(int(side * (1 - 2 * MARGIN)) for side in size)
    out = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(out)
    for height in range(max(size[1] // 8, SMALLEST), SMALLEST - 1, -1):
        face = _face(font, height)
        if height == max(size[1] // 8, SMALLEST):
            _check_letters(text, face, font)
        lines = _lines(text, face, room[0])
        box = draw.multiline_textbbox((0, 0), lines, font=face, spacing=height // 4)
        if box[2] - box[0] <= room[0] and box[3] - box[1] <= room[1]:
            at = ((size[0] - box[2] - box[0]) / 2, (size[1] - box[3] - box[1]) / 2)
            draw.multiline_text(at, lines, font=face, fill=ink, spacing=height // 4)
            return out
    raise InputError(
        f"a text of {len(text)} characters does not fit into a picture of {size[0]} x {size[1]} pixels; give a larger size="
    )


def _lines(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    """The text with line breaks between words; between letters of a word that is wider than a line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if face.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and face.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


def _face(font: Any, height: int) -> ImageFont.FreeTypeFont:
    try:
        found = ImageFont.load_default(height) if font is None else ImageFont.truetype(os.fspath(font), height)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"font={font!r:.80}: no font file that can be read ({error})") from None
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise InputError("this Pillow was built without FreeType, and cannot draw text; install it from PyPI")
    return found


def _check_letters(text: str, face: ImageFont.FreeTypeFont, font: Any) -> None:
    """Raise if the font draws a letter as the box that stands for what it lacks."""
    box = bytes(face.getmask("\uffff"))
    lacks = next((letter for letter in dict.fromkeys(text) if letter.isprintable() and not letter.isspace()
                  and bytes(face.getmask(letter)) == box), None)  # fmt: skip
    if lacks is not None:
        which = "Pillow's built-in font" if font is None else f"the font {os.path.basename(os.fspath(font))!r}"  # noqa: PTH119
        raise InputError(f"{which} has no letter {lacks!r}; give a font file that has: font='NotoSans-Regular.ttf'")


def _colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Colour) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
