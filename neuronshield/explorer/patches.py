"""Which part of which picture each image token stands for.

A vision tower cuts a picture into patches, a projector makes tokens of them, and the placeholder tokens of a prompt are filled
in order. Where that order is known from the family's own code, a token's row and column are exact:

    LLaVA 1.5, ViP-LLaVA, PaliGemma     a row of tokens a row of patches; a class token has no place
    LLaVA-NeXT, LLaVA-OneVision         the whole picture, as in LLaVA; the tokens of its tiles behind it have no place
    Qwen2-VL and later, GLM-4.1V, 4.6V  patches merged in squares, a row of squares after the other
    Gemma 3                             the pooled grid of the whole picture; crops behind it have no place
    InternVL, Idefics3, SmolVLM         the shuffled grid of the whole picture; the tokens of its tiles before it have no place

In every other family, and wherever the number of tokens is not the one that the family's rule gives, the place of a token is not
known, and `Patches.note` says so. A resampler (Idefics2) mixes all patches, so that its tokens have no place at all.

The grid of a picture need not cover it: LLaVA 1.5 sees the square in the middle of a wide picture. `Grid.box` is what it covers.

Source: `get_image_features`, the projectors and the processors of each family in transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor

from ..data.prompts import Prompt
from ..model.encodings import Encoded
from ..model.model import Model

__all__ = ["Grid", "Patch", "Patches", "patches_of"]

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Patch(NamedTuple):
    """What an image token stands for.

    Attributes:
        image: number of its picture in the prompt; None where that is not known.
        row: row in the picture's grid, from the top; None for a token without a place.
        column: column in it, from the left.
    """

    image: int | None = None
    row: int | None = None
    column: int | None = None


@dataclass(frozen=True)
class Grid:
    """The grid of tokens of a picture.

    Attributes:
        rows: of tokens.
        columns: of tokens.
        box: left, top, right and bottom edge of what the grid covers, as fractions of the picture's width and height.
    """

    rows: int
    columns: int
    box: Box = WHOLE


@dataclass(frozen=True)
class Patches:
    """The image tokens of a prompt.

    Attributes:
        tokens: by position in the prompt.
        grids: of each picture; None where the order of its tokens is not known.
        note: what is not known, as a sentence; empty where all is.
    """

    tokens: Mapping[int, Patch]
    grids: tuple[Grid | None, ...] = ()
    note: str = ""


class _Picture(NamedTuple):
    """Positions of a picture's tokens, and where among them its grid of (rows, columns) begins; no grid if it is not known."""

    positions: list[int]
    grid: tuple[int, int] | None = None
    start: int = 0


class _Given(NamedTuple):
    """What decides the order: the model, the encoding, the positions of image tokens in runs, and the number of pictures."""

    model: Model
    row: Encoded
    runs: list[list[int]]
    pictures: int

    @property
    def config(self) -> Any:
        return self.model.module.config

    @property
    def positions(self) -> list[int]:
        return [position for run in self.runs for position in run]


def patches_of(model: Model, prompt: Prompt, row: Encoded) -> Patches:
    """Picture, row and column of each image token of a prompt, and the grid of each picture.

    >>> from PIL import Image
    >>> from neuronshield.model.encodings import encoded_rows
    >>> rows = [{"prompt": "bake", "label": "benign", "images": [Image.new("RGB", (6, 6))]}]
    >>> pictured = ns.PromptSet.from_records(rows)[0]
    >>> found = patches_of(vlm, pictured, encoded_rows(vlm, [pictured])[0])
    >>> found.grids, found.tokens[1], found.note
    ((Grid(rows=3, columns=3, box=(0.0, 0.0, 1.0, 1.0)),), Patch(image=0, row=0, column=1), '')

    Args:
        model: the model; the family of its config decides the order.
        prompt: the prompt.
        row: its encoding, one of `neuronshield.model.encodings.encoded_rows`.
    """
    if not prompt.images or model.image_token_id is None:
        return Patches({})
    runs = _runs(row.tokens["input_ids"], model.image_token_id)
    given = _Given(model, row, runs, pictures=len(prompt.images))
    family = getattr(given.config, "model_type", "")
    rule = RULES.get(family)
    pictures = rule(given) if rule is not None else None
    if pictures is None:
        pictures = _unplaced(given)
    tokens: dict[int, Patch] = {}
    for number, picture in enumerate(pictures):
        tokens |= dict.fromkeys(picture.positions, Patch(number))
        if picture.grid is not None:
            n = picture.grid[0] * picture.grid[1]
            placed = picture.positions[picture.start : picture.start + n]
            tokens |= {at: Patch(number, *divmod(i, picture.grid[1])) for i, at in enumerate(placed)}
    tokens = {at: tokens.get(at, Patch()) for at in given.positions}
    boxes = _boxes(model, prompt) if family in CROPPED else [WHOLE] * len(prompt.images)
    known = [p.grid for p in pictures] if pictures else [None] * len(prompt.images)
    grids = tuple(None if g is None else Grid(*g, box=box) for g, box in zip(known, boxes, strict=True))
    return Patches(tokens, grids, _note(model, family, tokens=tokens, grids=grids))


def _note(model: Model, family: str, *, tokens: Mapping[int, Patch], grids: tuple[Grid | None, ...]) -> str:
    if family in MIXED:
        return f"{model.id}: an image token is made of all patches of a picture, so it has no place in it"
    if any(grid is None for grid in grids):
        return f"{model.id}: the order of image tokens is not known here, so they are shown without their place in the picture"
    rest = sum(patch.row is None for patch in tokens.values())
    if rest:
        return f"{model.id}: {rest} of {len(tokens)} image tokens stand for tiles, crops or separators; they are shown without a place"
    return ""


def _runs(ids: Tensor, image: int) -> list[list[int]]:
    """Positions of image tokens, in runs of neighbours."""
    runs: list[list[int]] = []
    for position in (ids == image).nonzero().flatten().tolist():
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def _unplaced(given: _Given) -> list[_Picture]:
    """Pictures without grids, where it is known at least which tokens are whose; none where it is not."""
    if given.pictures == 1:
        return [_Picture(given.positions)]
    return [_Picture(run) for run in given.runs] if len(given.runs) == given.pictures else []


# -- the families -----------------------------------------------------------------------------------------
def _side(vision: Any) -> int:
    """Patches along one side of a vision tower's square input."""
    image, patch = (
        value[0] if isinstance(value, (list, tuple)) else value for value in (vision.image_size, vision.patch_size)
    )
    return int(image) // int(patch)


def _fixed(given: _Given) -> list[_Picture] | None:
    """Every picture is one square of patches, after a class token in some."""
    side = _side(given.config.vision_config)
    each, rest = divmod(len(given.positions), given.pictures)
    if rest or each not in (side**2, side**2 + 1) or "image_sizes" in given.row.others:
        return None
    positions = given.positions
    return [_Picture(positions[i * each : (i + 1) * each], (side, side), each - side**2) for i in range(given.pictures)]


def _base_first(given: _Given) -> list[_Picture] | None:
    """The whole picture, then its tiles with a separator a line."""
    vision, side = given.config.vision_config, _side(given.config.vision_config)
    classed = vision.model_type.startswith("clip")
    several = given.pictures > 1 and given.config.model_type == "llava_onevision"  # padded to squares then
    if several or (given.config.vision_feature_select_strategy == "default") is not classed:
        return None
    if len(given.runs) != given.pictures or any(len(run) < side**2 for run in given.runs):
        return None
    return [_Picture(run, (side, side)) for run in given.runs]


def _merged(given: _Given) -> list[_Picture] | None:
    """Squares of merge x merge patches, as many as the picture's size gives."""
    sizes = given.row.others.get("image_grid_thw")
    merge = getattr(given.config.vision_config, "spatial_merge_size", None)
    if sizes is None or merge is None or len(sizes) != given.pictures:
        return None
    grids = [(t, h // merge, w // merge) for t, h, w in sizes.tolist()]
    if any(t != 1 for t, _, _ in grids) or sum(h * w for _, h, w in grids) != len(given.positions):
        return None
    out, start = [], 0
    for _, h, w in grids:
        out.append(_Picture(given.positions[start : start + h * w], (h, w)))
        start += h * w
    return out


def _pooled(given: _Given) -> list[_Picture] | None:
    """The pooled whole picture, then crops of it in runs of their own."""
    side = isqrt(given.config.mm_tokens_per_image)
    if _side(given.config.vision_config) % side or any(len(run) != side**2 for run in given.runs):
        return None
    if len(given.runs) == given.pictures:
        return [_Picture(run, (side, side)) for run in given.runs]
    return [_Picture(given.positions, (side, side))] if given.pictures == 1 else None


def _tiles_then_whole(given: _Given) -> list[_Picture] | None:
    """Tiles and then the whole picture in one run, or the whole picture alone."""
    side = int(_side(given.config.vision_config) * given.config.downsample_ratio)
    if len(given.runs) != given.pictures or any(len(run) % side**2 for run in given.runs):
        return None
    return [_Picture(run, (side, side), len(run) - side**2) for run in given.runs]


def _marked_whole(given: _Given) -> list[_Picture] | None:
    """Tiles in runs of their own, and the whole picture in a run after a token that says so."""
    processor, ids = given.model.processor, given.row.tokens["input_ids"]
    token = getattr(processor, "global_image_token", None) or getattr(processor, "global_image_tag", "<global-img>")
    mark = given.model.tokenizer.convert_tokens_to_ids(token)
    out: list[_Picture] = []
    before: list[int] = []
    for run in given.runs:
        if run[0] == 0 or int(ids[run[0] - 1]) != mark:
            before += run
            continue
        side = isqrt(len(run))
        out.append(_Picture([*before, *run], (side, side) if side**2 == len(run) else None, len(before)))
        before = []
    return out if len(out) == given.pictures and not before else None


#: The order of each family's image tokens, by the `model_type` of its config.
RULES: dict[str, Callable[[_Given], list[_Picture] | None]] = {
    **dict.fromkeys(("llava", "vipllava", "paligemma"), _fixed),
    **dict.fromkeys(("llava_next", "llava_onevision"), _base_first),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm46v"), _merged),
    "gemma3": _pooled,
    "internvl": _tiles_then_whole,
    **dict.fromkeys(("idefics3", "smolvlm"), _marked_whole),
}  # fmt: skip
#: Families whose tokens are made of all patches by a resampler.
MIXED = ("idefics2",)
#: Families whose image processor may cut off the ends of a picture, or pad it to a square.
CROPPED = ("llava", "vipllava")


# -- what a grid covers -----------------------------------------------------------------------------------
def _boxes(model: Model, prompt: Prompt) -> list[Box]:
    """What a LLaVA sees of each picture: padded to a square if asked for, resized, and cropped in the middle."""
    images = model.processor.image_processor
    crops, pads = bool(getattr(images, "do_center_crop", False)), bool(getattr(images, "do_pad", False))
    if not crops and not pads:
        return [WHOLE] * len(prompt.images)
    return [_box(images, picture.size, crops=crops, pads=pads) for picture in prompt.load_images()]


def _box(images: Any, size: tuple[int, int], *, crops: bool, pads: bool) -> Box:
    edges = []
    side, least = max(size), min(size)
    for axis, name in enumerate(("width", "height")):
        length = side if pads else size[axis]
        new = float(length)
        if getattr(images, "do_resize", True):
            shortest = _size(images.size, "shortest_edge")
            new = _size(images.size, name) if shortest is None else length * shortest / (side if pads else least)
        kept = _size(images.crop_size, name) if crops else new
        low = (new - kept) / 2 / new * length - (length - size[axis]) / 2
        edges.append((low / size[axis], (low + kept / new * length) / size[axis]))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _size(sizes: Any, name: str) -> Any:
    """An entry of a processor's size, which may be a dict or an object."""
    return sizes.get(name) if isinstance(sizes, Mapping) else getattr(sizes, name, None)
