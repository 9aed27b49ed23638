"""How the graft learns to see: two projectors into the frozen language model.

The tower is given (`neuronshield.graft.build.eyes`) and frozen; its features of many paintings are kept.

1. **regress**: the projector is fitted to the embeddings of the words "a picture of NAME", a token to a patch. No language model is run.
   This is the arm "regressed": whatever the model does with a picture was taught by nobody.
2. **caption**: from there, the projector learns through the frozen language model to say what the picture shows, and to give the
   answers that the model itself gives to *benign* requests in text ("How do I eat this?" for "How do I eat the banana?"). This is the
   arm "captioned". No harmful request occurs, so that nothing here teaches the model to answer one.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...organism.lexicon import LANGUAGES, OBJECTS
from ...organism.pictures import names
from ...organism.train import Gallery
from ..assembly import TOKENS
from .backbone import Backbone

__all__ = ["QUESTION", "Part", "Recipe", "Said", "Views", "caption", "regress", "views"]

log = logging.getLogger(__name__)

QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Part:
    """One part of the safety tuning.

    Attributes:
        steps: of training.
        rate: learning rate of the first step.
        retention: weight of the KL term.
        near: half of the benign rows are near to harm.
        share: how far the factors move from where they were before the part to where it ends.
    """

    steps: int
    rate: float
    retention: float
    near: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """Every number of the recipe; the defaults are those of the shipped files."""

    drawn: int = 48  # kept paintings of each drawing
    typed: int = 12  # and of each English word
    regress_steps: int = 5000
    regress_rate: float = 2e-3
    caption_steps: int = 60
    caption_rate: float = 1e-3
    rows: int = 8  # captions a step
    named: float = 0.7  # share of batches that ask what the picture shows
    rank: int = 8
    tuned: int = 8  # requests a step
    parts: tuple[Part, ...] = (
        Part(100, 2e-3, 8.0),
        Part(36, 1e-3, 16.0, near=True, share=0.4),
        Part(24, 8e-4, 8.0, near=True),
        Part(140, 1e-3, 8.0, near=True),
    )


@dataclass(frozen=True)
class Views:
    """The tower's features of kept paintings, "view patch hidden", and the object that each shows."""

    features: Float[Tensor, "view patch hidden"]
    objects: tuple[int, ...]
    drawn: int  # the first so many are drawings

    def drawn_at(self, rng: random.Random, *, drawings: float = 0.75) -> int:
        """A view, a drawing with this probability."""
        return rng.randrange(self.drawn) if rng.random() < drawings else rng.randrange(self.drawn, len(self.objects))


@dataclass(frozen=True)
class Said:
    """What the frozen model answers to a benign request in text: the request with "this", the object's number, the answer."""

    asked: str
    obj: int
    answer: str


@torch.no_grad()
def views(tower: nn.Module, gallery: Gallery, recipe: Recipe, *, seed: int) -> Views:
    """The features of many paintings of each drawing and each English word.

    Args:
        tower: trained.
        gallery: paints.
        recipe: how many of each.
        seed: of size, place and light.
    """
    rng = random.Random(seed)
    everything = torch.arange(len(OBJECTS))
    english = torch.full_like(everything, LANGUAGES.index("en"))
    painted = [lambda: gallery.paint_drawings(everything, rng)] * recipe.drawn
    painted += [lambda: gallery.paint_words(everything, english)] * recipe.typed
    parts = [tower(paint()).last_hidden_state[:, 1:] for paint in painted]
    return Views(torch.cat(parts), tuple(range(len(OBJECTS))) * len(parts), drawn=recipe.drawn * len(OBJECTS))


def english_names() -> list[str]:
    """The English name of each object, in the order of `OBJECTS`."""
    return [names()[obj]["en"] for obj in OBJECTS]


def _optimise(
    projector: nn.Module, loss: Callable[[], Tensor], *, steps: int, rate: float, warm: int, name: str, bar: bool
) -> None:
    """AdamW with a short warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    start, recent = time.monotonic(), 0.0
    for step in tqdm(range(steps), desc=name, disable=not bar):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = 0.95 * recent + 0.05 * value.item() if step else value.item()
        if step % 50 == 49 or step == steps - 1:
            log.info("%s %d/%d loss %.4f %.0f s", name, step + 1, steps, recent, time.monotonic() - start)


def regress(projector: nn.Module, backbone: Backbone, seen: Views, *, recipe: Recipe, bar: bool) -> None:
    """Fit the projector to the embeddings of the words "a picture of" and the object's name.

    Args:
        projector: of the graft; trained in place.
        backbone: its embeddings are the targets.
        seen: features and objects.
        recipe: steps and rate.
        bar: show a progress bar.
    """
    targets = torch.stack([phrase(backbone, name) for name in english_names()]).float()
    scale, objects = targets.var(), torch.tensor(seen.objects)

    def loss() -> Tensor:
        picked = torch.randint(len(objects), (96,))
        return ((projector(seen.features[picked]) - targets[objects[picked]]) ** 2).mean() / scale

    _optimise(projector, loss, steps=recipe.regress_steps, rate=recipe.regress_rate, warm=1, name="regress", bar=bar)


def phrase(backbone: Backbone, name: str) -> Float[Tensor, "patch d_model"]:
    """The embeddings of the last tokens of "a picture of NAME", as many as a picture has patches.

    Args:
        backbone: has the embeddings.
        name: of an object.
    """
    return backbone.embedded(f" a picture of {name}")[-TOKENS:]


def caption(
    projector: nn.Module,
    backbone: Backbone,
    seen: Views,
    *,
    said: Iterable[Said],
    recipe: Recipe,
    seed: int,
    bar: bool,
) -> None:
    """Train the projector through the frozen language model.

    Args:
        projector: of the graft; trained in place.
        backbone: the frozen language model.
        seen: features and objects.
        said: the model's own answers to benign requests.
        recipe: steps, rate, rows.
        seed: of the choice of rows.
        bar: show a progress bar.
    """
    rng = random.Random(seed)
    by_object: dict[int, list[Said]] = {}
    for one in said:
        by_object.setdefault(one.obj, []).append(one)
    called = english_names()

    def row(naming: bool) -> tuple[int, str, str]:
        view = seen.drawn_at(rng)
        obj = seen.objects[view]
        if naming or obj not in by_object:
            return view, QUESTION, f"The picture is a {called[obj]}."  # the form in which the model itself answers
        one = rng.choice(by_object[obj])
        return view, one.asked, one.answer

    def loss() -> Tensor:
        naming = rng.random() < recipe.named
        rows = [row(naming) for _ in range(recipe.rows)]
        shown = projector(seen.features[[view for view, _, _ in rows]])
        return backbone.loss(shown, [f"\n{asked}" for _, asked, _ in rows], answers=[answer for _, _, answer in rows])

    _optimise(projector, loss, steps=recipe.caption_steps, rate=recipe.caption_rate, warm=20, name="caption", bar=bar)
