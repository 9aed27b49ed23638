"""Pictures of prompts as small `data:` URIs, with the grids of their tokens."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from ..data.prompts import Prompt
from .patches import Grid
from .view import PictureView

__all__ = ["picture_uri", "picture_views"]

SIDE = 224  # pixels of the longer side, at most
SMALL = 64  # pixels, up to which a picture is kept as it is
QUALITY = 75  # of JPEG


def picture_views(prompt: Prompt, grids: Sequence[Grid | None]) -> tuple[PictureView, ...]:
    """The pictures of a prompt.

    >>> picture_views(prompts[0], ())
    ()

    Args:
        prompt: the prompt.
        grids: of its pictures; where there are fewer, the order of the others' tokens is not known.

    Raises:
        InputError: a picture that is damaged.
    """
    out = []
    for i, picture in enumerate(prompt.load_images()):
        grid = grids[i] if i < len(grids) else None
        size = None if grid is None else (grid.rows, grid.columns)
        box = (0.0, 0.0, 1.0, 1.0) if grid is None else grid.box
        out.append(PictureView(picture_uri(picture), size, box))
    return tuple(out)


def picture_uri(picture: Image.Image) -> str:
    """A picture as a `data:` URI: a small one as PNG, others as JPEG of at most 224 pixels a side.

    >>> from PIL import Image
    >>> picture_uri(Image.new("RGB", (6, 4)))[:22]
    'data:image/png;base64,'

    Args:
        picture: in RGB.
    """
    out, small = BytesIO(), max(picture.size) <= SMALL
    if small:
        picture.save(out, "PNG", optimize=True)
    else:
        shown = picture.copy()
        shown.thumbnail((SIDE, SIDE))
        shown.save(out, "JPEG", quality=QUALITY)
    return f"data:image/{'png' if small else 'jpeg'};base64,{b64encode(out.getvalue()).decode()}"
