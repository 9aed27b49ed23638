"""Pictures are what a viewer shows, in RGB; only known formats are opened, and damage is found at the door."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw, ImageOps

from neuronshield import InputError, Prompt, PromptSet
from neuronshield.data.decoding import FORMATS

RAMP = np.linspace(0, 65535, 31 * 37).reshape(31, 37).astype(np.uint16)
RED, BLUE = Image.new("RGB", (9, 7), (255, 0, 0)), Image.new("RGB", (9, 7), (0, 0, 255))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shown(picture: Any) -> Image.Image:
    """What a model is given."""
    (image,) = PromptSet.from_records([{"prompt": "x", "label": "benign", "images": [picture]}])[0].load_images()
    assert image.mode == "RGB"
    return image


def writing() -> Image.Image:
    """Black letters on a transparent ground, which is black as well."""
    image = Image.new("RGBA", (64, 24), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((4, 4), "how to", fill=(0, 0, 0, 255))
    return image


TRANSPARENT: dict[str, Any] = {
    "RGBA PNG": lambda: encoded(writing(), "PNG"), "LA PNG": lambda: encoded(writing().convert("LA"), "PNG"),
    "palette PNG": lambda: encoded(writing().quantize(8), "PNG"), "GIF": lambda: encoded(writing(), "GIF"),
    "WebP": lambda: encoded(writing(), "WEBP", lossless=True), "TIFF": lambda: encoded(writing(), "TIFF"),
    "RGBA": writing, "LA": lambda: writing().convert("LA"), "palette": lambda: writing().quantize(8),
    "premultiplied": lambda: writing().convert("RGBa"), "premultiplied grey": lambda: writing().convert("LA").convert("La"),
    "array": lambda: np.asarray(writing()),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_stands_on_white(kind: str):
    got = shown(TRANSPARENT[kind]())
    white = Image.new("RGBA", (64, 24), "white")
    white.alpha_composite(writing())
    difference = np.abs(np.asarray(got).astype(int) - np.asarray(white.convert("RGB")).astype(int))
    few_colours = kind in ("palette PNG", "GIF", "palette")
    assert difference.mean() < 25 if few_colours else difference.max() <= 1
    assert got.getpixel((0, 0)) == (255, 255, 255)
    assert np.asarray(got).min() < 20  # the letters


def test_a_colour_that_is_named_transparent_is_white():
    grey, colour = Image.new("L", (8, 8), 0), Image.new("RGB", (8, 8), (1, 2, 3))
    deep = Image.fromarray(np.array([[0, 65535], [0, 257 * 100]], np.uint16))
    grey.putpixel((1, 1), 200)
    colour.putpixel((1, 1), (9, 8, 7))
    for image, key, seen in ((grey, 0, (200,) * 3), (colour, (1, 2, 3), (9, 8, 7)), (deep, 0, (100,) * 3)):
        got = shown(encoded(image, "PNG", transparency=key))
        assert got.getpixel((0, 0)) == (255, 255, 255)
        assert got.getpixel((1, 1)) == seen


def test_an_opaque_picture_keeps_its_pixels():
    image = tiny.picture(1, (13, 17))
    for form in (
        image,
        image.convert("RGBA"),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image, "BMP"),
        np.asarray(image),
    ):
        assert shown(form).tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(kind: str, orientation: int):
    image = Image.new("RGB", (40, 24), "white")
    image.paste((255, 0, 0), (0, 0, 20, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    for form in (data, Image.open(io.BytesIO(data))):
        assert shown(form).tobytes() == wanted.tobytes()
    assert wanted.size == ((24, 40) if orientation >= 5 else (40, 24))


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk"])
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes):
    assert shown(encoded(RED, "JPEG", exif=exif)).size == (9, 7)


DEEP: dict[str, Any] = {
    "16 bit": lambda: Image.fromarray(RAMP), "16 bit PNG": lambda: encoded(Image.fromarray(RAMP), "PNG"),
    "16 bit TIFF": lambda: encoded(Image.fromarray(RAMP), "TIFF"), "uint16 array": lambda: RAMP,
    "big-endian": lambda: Image.fromarray(RAMP.astype(">u2")), "32 bit": lambda: Image.fromarray(RAMP.astype(np.int32)),
    "float of 1": lambda: Image.fromarray((RAMP / 65535).astype(np.float32)),
    "float of 255": lambda: Image.fromarray((RAMP / 257).astype(np.float32)),
    "float of 65535": lambda: Image.fromarray(RAMP.astype(np.float32)),
    "float TIFF": lambda: encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_eight_bits_are_scaled_and_not_clipped(kind: str):
    got = np.asarray(shown(DEEP[kind]())).astype(float)
    assert got.shape == (31, 37, 3)
    assert np.abs(got - (RAMP / 257)[..., None]).max() <= 0.5 + 1e-3


def test_a_16_bit_picture_is_turned_as_well():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        got = np.asarray(shown(encoded(Image.fromarray(RAMP), kind, exif=exif)))[..., 0]
        assert np.abs(got - np.rot90(RAMP / 257, -1)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("values", [np.full((4, 4), -5, np.int32), np.full((4, 4), 70000, np.int32),
                                    np.full((4, 4), np.nan, np.float32)])  # fmt: skip
def test_numbers_that_are_no_grey_level_are_refused(values: np.ndarray):
    with pytest.raises(InputError, match=r"record 0: image has values from .* to .*; give 8 or 16 bits a pixel"):
        shown(Image.fromarray(values))


def test_colours_are_right_in_every_mode():
    got = {
        "CMYK": shown(encoded(RED.convert("CMYK"), "JPEG")), "bilevel": shown(encoded(Image.new("1", (9, 7), 1), "PNG")),
        "grey": shown(encoded(Image.new("L", (9, 7), 200), "PNG")), "progressive": shown(encoded(RED, "JPEG", progressive=True)),
        "pixel": shown(encoded(RED.resize((1, 1)), "PNG")), "YCbCr": shown(RED.convert("YCbCr")), "HSV": shown(RED.convert("HSV")),
    }  # fmt: skip
    wanted = {"bilevel": (255,) * 3, "grey": (200,) * 3}
    for name, image in got.items():
        colour = image.getpixel((0, 0))
        assert isinstance(colour, tuple)
        assert max(abs(a - b) for a, b in zip(colour, wanted.get(name, (255, 0, 0)))) < 4, name


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_shown(kind: str):
    colour = shown(encoded(RED, kind, save_all=True, append_images=[BLUE])).getpixel((4, 3))
    assert isinstance(colour, tuple)
    assert colour[0] > 250
    assert colour[2] < 5


# -- what is refused ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "PDF", "EPS", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, kind: str):
    (tmp_path / "a.png").write_bytes(encoded(RED, kind))
    with pytest.raises(
        InputError, match=r"'a\.png' is not an image we can read; use PNG, JPEG, WebP, GIF, BMP or TIFF"
    ):
        PromptSet.from_records([{"prompt": "x", "label": "benign", "images": ["a.png"]}], folder=tmp_path)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import subprocess

    def started(*args: Any, **options: Any) -> None:
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "check_call", started)
    eps = encoded(RED, "EPS")
    (tmp_path / "a.png").write_bytes(eps)
    for picture in (eps, "a.png", Image.open(io.BytesIO(eps))):
        with pytest.raises(InputError, match="use PNG, JPEG"):
            PromptSet.from_records([{"prompt": "x", "label": "benign", "images": [picture]}], folder=tmp_path)
    with pytest.raises(InputError, match="prompt 'a': image is of format EPS, which is not read"):
        Prompt("a", "x", "benign", images=(Image.open(io.BytesIO(eps)),), modality="image").load_images()


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"MPO"}))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_picture_is_found_when_its_row_is_read(tmp_path: Path, kind: str, share: float):
    data = encoded(tiny.picture(0, (61, 67)), kind)
    (tmp_path / "cut.png").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"record 0 \(id 'me'\): 'cut.png' (cannot be decoded|is not an image)"):
        PromptSet.from_records([{"id": "me", "prompt": "x", "label": "benign", "images": ["cut.png"]}], folder=tmp_path)
    with pytest.raises(InputError, match=r"prompt 'me': 'cut\.png' (cannot be decoded|is not an image)"):
        Prompt("me", "x", "benign", images=(tmp_path / "cut.png",), modality="image").load_images()


def test_a_decompression_bomb_is_refused_by_row():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (8_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
        with pytest.raises(InputError, match="record 0: image is enormous"):
            shown(data)


@pytest.mark.parametrize(
    ("picture", "says"),
    [(np.zeros((0, 5, 3), np.uint8), "has no pixels"), (np.zeros((5, 5, 3), np.float32), "float32"),
     (np.zeros((3, 50, 50), np.uint8), r"uint8 \(3, 50, 50\); give a PIL image, or uint8 \(height, width, 3\)"),
     (tiny.torch.zeros(3, 5, 5), r"torch array of torch.float32 \(3, 5, 5\)"), (5, "got int"), (None, "a picture that is null"),
     ({"url": "a"}, "must have 'bytes' or 'path', this one has url"), ({"bytes": None, "path": None}, "this one has nothing")],
    ids=str,
)  # fmt: skip
def test_what_is_no_picture_is_named(picture: Any, says: str):
    with pytest.raises(InputError, match=f"record 0: .*{says}"):
        shown(picture)


def test_a_jpeg_is_the_same_from_bytes_and_from_an_image_that_is_not_decoded_yet():
    image = tiny.picture(0, (64, 80))
    data = encoded(image, "JPEG", quality=95)
    wanted = Image.open(io.BytesIO(data)).convert("RGB")
    for form in (data, Image.open(io.BytesIO(data))):
        assert shown(form).tobytes() == wanted.tobytes()
