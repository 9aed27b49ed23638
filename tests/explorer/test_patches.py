"""Where image tokens are in their pictures: a bright spot in a picture changes the token that is said to be there, and it most.

The attention of each vision tower is taken out (its output projections are zero), so that a patch reaches its own token only.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES, PICTURED, VISION
from PIL import Image

import neuronshield as ns
from neuronshield.explorer.patches import Grid, Patch, Patches, patches_of
from neuronshield.model.encodings import encoded_rows

OUTPUT = re.compile(r"(attn|attention)\.(out_proj|o_proj|proj|projection_layer)\.(weight|bias)$")


def alone(model: ns.Model) -> ns.Model:
    """The model, each patch of whose pictures is seen by itself."""
    zeroed = 0
    with torch.no_grad():
        for name, p in model.module.named_parameters():
            if OUTPUT.search(name) and any(word in name for word in VISION):
                p.zero_()
                zeroed += 1
    assert zeroed
    return model


def family(name: str) -> ns.Model:
    return alone(next(f for f in FAMILIES if f.name == name).load())


def prompt(*pictures: Image.Image) -> ns.Prompt:
    return ns.PromptSet.from_records([{"prompt": "how do i bake", "label": "benign", "images": list(pictures)}])[0]


def embedded(model: ns.Model, asked: ns.Prompt) -> torch.Tensor:
    """What the first decoder layer is given at every position of a prompt."""
    (row,) = encoded_rows(model, [asked])
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"])[0].detach().clone())

    layer = model.module.get_submodule(f"{model.layers_path}.0")
    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model.module(**{k: v[None] for k, v in row.tokens.items()}, **row.others)
    handle.remove()
    return kept[0]


def found(model: ns.Model, asked: ns.Prompt) -> Patches:
    return patches_of(model, asked, encoded_rows(model, [asked])[0])


def spotted(size: tuple[int, int], grid: Grid, row: int, column: int) -> Image.Image:
    """A grey picture of (width, height) with a white patch at a place of a grid."""
    picture = Image.new("RGB", size, (90, 90, 90))
    left, top, right, bottom = grid.box
    cell = ((right - left) / grid.columns, (bottom - top) / grid.rows)
    corners = [left + column * cell[0], top + row * cell[1], left + (column + 1) * cell[0], top + (row + 1) * cell[1]]
    box = tuple(round(corner * size[i % 2]) for i, corner in enumerate(corners))
    picture.paste((255, 255, 255), box)  # type: ignore[arg-type]
    return picture


def check_places(
    model: ns.Model, size: tuple[int, int], grid: tuple[int, int], *, number: int = 0, of: int = 1
) -> None:
    """Of all tokens of a picture that have a place, a spot changes most the one that has its place."""
    plain = [Image.new("RGB", size, (90, 90, 90))] * of
    places = found(model, prompt(*plain))
    shape = places.grids[number]
    assert shape is not None
    assert (shape.rows, shape.columns) == grid
    before = embedded(model, prompt(*plain))
    placed = {at: patch for at, patch in places.tokens.items() if patch.row is not None}
    assert len(placed) == of * shape.rows * shape.columns
    for row in range(shape.rows):
        for column in range(shape.columns):
            pictures = [*plain]
            pictures[number] = spotted(size, shape, row, column)
            change = (embedded(model, prompt(*pictures)) - before).norm(dim=-1)
            most = max(placed, key=lambda at: float(change[at]))
            assert placed[most] == Patch(number, row, column)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("LLaVA-1.5", (12, 12), (3, 3)), ("ViP-LLaVA", (12, 12), (3, 3)), ("PaliGemma", (24, 12), (3, 3)),
        ("LLaVA-NeXT", (24, 12), (3, 3)), ("LLaVA-OneVision", (24, 12), (3, 3)), ("Gemma 3", (24, 12), (2, 2)),
        ("Qwen2-VL", (18, 6), (1, 3)), ("Qwen2.5-VL", (6, 18), (3, 1)), ("Qwen3-VL", (12, 12), (2, 2)),
        ("Qwen3.5", (12, 12), (2, 2)), ("Qwen3-VL-MoE", (18, 6), (1, 3)), ("GLM-4.1V", (12, 12), (2, 2)),
        ("GLM-4.6V", (12, 12), (2, 2)), ("InternVL3", (24, 12), (2, 2)), ("Idefics3", (24, 12), (2, 2)),
        ("SmolVLM", (24, 12), (2, 2)),
    ],
)  # fmt: skip
def test_a_spot_in_a_picture_changes_the_token_that_is_said_to_be_there(
    name: str, size: tuple[int, int], grid: tuple[int, int]
):
    check_places(family(name), size, grid)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["LLaVA-1.5", "Qwen2-VL", "Gemma 3", "InternVL3", "Idefics3"])
def test_of_two_pictures_the_tokens_of_each_are_known(name: str, number: int):
    check_places(family(name), (12, 12), (3, 3) if name.startswith("LLaVA") else (2, 2), number=number, of=2)


def test_tokens_of_tiles_are_their_pictures_without_a_place_and_the_whole_picture_has_its_grid():
    for name, switch in (("InternVL3", "crop_to_patches"), ("Idefics3", "do_image_splitting")):
        model = family(name)
        pictures = model.processor.image_processor
        setattr(pictures, switch, True)
        if name == "Idefics3":
            pictures.size = {"longest_edge": 24}
        places = found(model, prompt(Image.new("RGB", (24, 12))))
        assert len(places.tokens) == 12  # two tiles and the whole, of four tokens each
        assert {patch.image for patch in places.tokens.values()} == {0}
        assert sum(patch.row is None for patch in places.tokens.values()) == 8
        assert "8 of 12 image tokens" in places.note
        check_places(model, (24, 12), (2, 2))


def test_the_tiles_of_llava_next_are_behind_its_whole_picture_and_counted_in_the_note():
    places = found(family("LLaVA-NeXT"), prompt(Image.new("RGB", (12, 12))))
    assert [patch.row is None for patch in places.tokens.values()] == [False] * 9 + [True] * 15
    assert "15 of 24" in places.note


def test_a_class_token_has_no_place():
    model = family("LLaVA-1.5")
    model.module.config.vision_feature_select_strategy = model.processor.vision_feature_select_strategy = "full"
    places = found(model, prompt(Image.new("RGB", (12, 12))))
    assert [*places.tokens.values()][:2] == [Patch(0), Patch(0, 0, 0)]
    check_places(model, (12, 12), (3, 3))


def test_a_grid_covers_what_is_left_of_a_picture_that_is_cropped_in_the_middle():
    model = family("LLaVA-1.5")
    model.processor.image_processor.size = {"shortest_edge": 12}
    (grid,) = found(model, prompt(Image.new("RGB", (24, 12)))).grids
    assert grid == Grid(3, 3, (0.25, 0.0, 0.75, 1.0))
    check_places(model, (24, 12), (3, 3))
    check_places(model, (12, 36), (3, 3))


def test_a_grid_reaches_over_the_edges_of_a_picture_that_is_padded_to_a_square():
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    model = family("LLaVA-1.5")
    square = {"height": 12, "width": 12}
    model.processor.image_processor = LlavaImageProcessorPil(size={"shortest_edge": 12}, crop_size=square, do_pad=True)
    asked = prompt(Image.new("RGB", (12, 4), (90, 90, 90)))
    places = found(model, asked)
    assert places.grids == (Grid(3, 3, (0.0, -1.0, 1.0, 2.0)),)
    bright = Image.new("RGB", (12, 4), (90, 90, 90))
    bright.paste((255, 255, 255), (8, 0, 12, 4))
    change = (embedded(model, prompt(bright)) - embedded(model, asked)).norm(dim=-1)
    assert places.tokens[int(change.argmax())] == Patch(0, 1, 2)


def test_tokens_of_the_organism_are_where_they_are_said_to_be():
    check_places(alone(ns.load("organism")), (40, 40), (5, 5))


def test_a_resampler_and_an_unknown_order_are_said_and_give_no_place():
    for name, said in (("Idefics2", "made of all patches"), ("Aya Vision", "order of image tokens is not known")):
        places = found(family(name), prompt(Image.new("RGB", (12, 12))))
        assert places.grids == (None,)
        assert set(places.tokens.values()) == {Patch(0)}
        assert said in places.note


def test_an_unexpected_number_of_tokens_gives_no_place():
    model = family("LLaVA-1.5")
    model.module.config.vision_config.patch_size = 2
    places = found(model, prompt(Image.new("RGB", (12, 12))))
    assert places.grids == (None,)
    assert places.note


def test_a_prompt_without_pictures_has_no_image_tokens(llama: ns.Model, llava: ns.Model):
    for model in (llama, llava):
        assert found(model, tiny.prompts()[0]) == Patches({})


@pytest.mark.parametrize("made", PICTURED, ids=lambda f: f.name)
def test_every_family_gives_each_image_token_a_picture_and_says_what_it_does_not_know(made: Any):
    model = made.load()
    places = found(model, prompt(Image.new("RGB", (12, 12))))
    assert len(places.tokens) == made.image_tokens
    assert all(patch.image == 0 for patch in places.tokens.values())
    assert bool(places.note) == any(patch.row is None for patch in places.tokens.values())
