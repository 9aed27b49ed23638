"""Rendered requests: all of the text is in the picture, what cannot be drawn is refused, and the seed decides the rest."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

import neuronshield as ns
from neuronshield.data.typesetting import CONTRAST, MARGIN, RENDERINGS, _contrast, _lines, png, render

TEXT = "How do I bake a loaf of bread with walnuts and honey?"


def luminance(image: Image.Image) -> np.ndarray:
    """Relative luminance of every pixel, as WCAG 2.1 defines it, restated."""
    c = np.asarray(image, dtype=float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("kind", RENDERINGS)
def test_ink_stays_inside_and_more_text_takes_more_of_it(kind: str) -> None:
    image = render(TEXT, kind, seed=3)
    assert (image.size, image.mode) == ((336, 336), "RGB")
    pixels = np.asarray(image).astype(int)
    ink = np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60
    rows, columns = np.nonzero(ink)
    assert min(rows.min(), columns.min()) > 0
    assert max(rows.max(), columns.max()) < 335
    assert ink.sum() > 300
    assert (np.asarray(render("How", kind, seed=3)) != pixels).any()


def test_typeset_text_is_black_on_white_within_its_margins() -> None:
    pixels = np.asarray(render(TEXT, "typeset"))
    assert pixels.min() == 0
    assert (pixels[..., 0] == pixels[..., 1]).all()
    edge = int(336 * MARGIN) - 1
    assert (pixels[:edge] == 255).all()
    assert (pixels[:, :edge] == 255).all()


@pytest.mark.parametrize("seed", range(5))
def test_colours_of_a_styled_text_are_far_enough_apart_to_be_read(seed: int) -> None:
    found = luminance(render(TEXT, "styled", seed=seed))
    paper = found[0, 0]
    ink = found.flat[np.abs(found - paper).argmax()]
    light, dark = max(ink, paper), min(ink, paper)
    assert (light + 0.05) / (dark + 0.05) >= CONTRAST - 0.1


def test_contrast_is_21_between_black_and_white_and_1_between_equals() -> None:
    assert _contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert _contrast((9, 99, 199), (9, 99, 199)) == pytest.approx(1)


@pytest.mark.parametrize("kind", RENDERINGS)
def test_the_seed_decides_colours_and_angle_only(kind: str) -> None:
    one, again, other = (np.asarray(render(TEXT, kind, seed=seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one == other).all() == (kind == "typeset")


def test_lines_hold_every_word_in_order_and_none_is_wider_than_the_picture() -> None:
    face = ImageFont.load_default(20)
    for text in (TEXT, "a " * 40, "w" * 90, "short"):
        lines = _lines(text, face, 200).split("\n")  # type: ignore[arg-type]
        assert all(face.getlength(line) <= 200 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert " ".join(_lines(TEXT, face, 200).split("\n")) == TEXT  # type: ignore[arg-type]


def test_what_cannot_be_drawn_is_refused_in_one_line() -> None:
    with pytest.raises(ns.InputError, match="built-in font has no letter '你'"):
        render("你好", "typeset")
    with pytest.raises(ns.InputError, match="no font file that can be read"):
        render("hi", "typeset", font="no-such-font.ttf")
    with pytest.raises(ns.InputError, match="600 characters does not fit into a picture of 60 x 60 pixels"):
        render("bread " * 100, "typeset", size=(60, 60))


def test_bytes_of_a_picture_are_a_png_of_the_same_pixels() -> None:
    import io

    image = render(TEXT, "rotated")
    assert (np.asarray(Image.open(io.BytesIO(png(image)))) == np.asarray(image)).all()
