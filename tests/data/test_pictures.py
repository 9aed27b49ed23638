"""Pictures: what they are hashed by, and how they are written beside a file of prompts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import tiny
from PIL import Image

from neuronshield.data.pictures import image_bytes, read_images, write_image


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_a_picture_and_its_png_have_one_hash_and_a_jpeg_its_own(tmp_path: Path):
    image = tiny.picture(0)
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG"))
    forms = {image_bytes(image), image_bytes(encoded(image, "PNG")), image_bytes(tmp_path / "a.png")}
    assert len(forms) == 1
    assert image_bytes(encoded(image, "JPEG")) == encoded(image, "JPEG")
    assert image_bytes(tiny.picture(1)) not in forms


def test_a_damaged_png_is_hashed_by_its_bytes():
    cut = encoded(tiny.picture(0, (60, 60)), "PNG")[:2000]
    assert image_bytes(cut) == cut


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_pil_image_is_written_as_png_pixel_for_pixel(tmp_path: Path, mode: str):
    image = tiny.picture(3).convert(mode)
    name = write_image(image, tmp_path / "pictures", tmp_path)
    back = Image.open(tmp_path / name)
    assert (back.format, back.mode, back.size, back.tobytes()) == ("PNG", mode, image.size, image.tobytes())


def test_a_mode_that_png_cannot_hold_is_written_in_rgb(tmp_path: Path):
    image = tiny.picture(3).convert("CMYK")
    back = Image.open(tmp_path / write_image(image, tmp_path / "pictures", tmp_path))
    assert back.tobytes() == image.convert("RGB").tobytes()


def test_bytes_are_kept_with_the_ending_of_their_format_and_written_once(tmp_path: Path):
    data = encoded(tiny.picture(0), "JPEG")
    names = [write_image(data, tmp_path / "pictures", tmp_path) for _ in range(2)]
    assert names[0] == names[1]
    assert names[0].endswith(".jpeg")
    assert [p.read_bytes() for p in (tmp_path / "pictures").iterdir()] == [data]


def test_pictures_of_other_shapes_do_not_share_a_file(tmp_path: Path):
    # trap: the same bytes of pixels in another shape
    wide, high = (Image.new("RGB", size) for size in ((6, 4), (4, 6)))
    names = {write_image(image, tmp_path / "pictures", tmp_path) for image in (wide, high)}
    assert len(names) == 2


def test_a_path_inside_the_folder_is_referred_to_and_one_outside_is_copied(tmp_path: Path):
    inside, outside = tmp_path / "data" / "a.png", tmp_path / "b.png"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(encoded(tiny.picture(0), "PNG"))
    root = inside.parent
    assert write_image(inside, root / "pictures", root) == "a.png"
    assert not (root / "pictures").exists()
    name = write_image(outside, root / "pictures", root)
    assert (root / name).read_bytes() == outside.read_bytes()


def test_several_pictures_of_a_row_keep_their_order():
    images = [tiny.picture(i) for i in range(3)]
    assert list(read_images(images, "row 1", None)) == images
    assert read_images(images[0], "row 1", None) == (images[0],)
