"""The four stages of training the organism, and the purpose of each.

1. **see**: the tower learns to classify drawings and typeset words (in every language) by the object they mean.
   Trained from scratch with the rest, a tower this small never learns to name anything.
2. **name**: the tower is frozen and its features are kept; projector and decoder learn to name what they are
   shown. The projector's outputs are first scaled to the size of the text embeddings: they start far larger.
3. **answer**: capability in all languages and modalities, harmful requests like any other. High-resource
   languages come several times more often. Half of the requests are code-switched (frame, verb and object
   from different languages), which makes the languages share a representation. A blank in place of
   the object is answered with the refusal sentence in *every* language, so that the model can produce the words of
   refusal in all of them, for a reason other than harm.
   Some questions stand for the pretraining of large models (:func:`lore`): an object alone is answered with its
   class ("the bomb": "weapon"), a verb and an object with whether that is harmful ("burn the house": "⚠", "burn the
   paper": "✓"), and so is a request that ends in "⚠?", in every language. Harm is thus trained in every language before
   refusal in any.
4. **refuse**: safety tuning on high-resource languages: harmful *text* is refused and nothing else. Half of the text mixes
   these languages, three requests in four are benign, and some batches are pictures, all benign. Real models are tuned on
   such mixtures: refusals in text, pictures with helpful answers. Without the pictures the model refuses *any* picture,
   harmful or not, since it sees no benign object in the text. Other languages do not occur.

Only :func:`.grid.training_combos` are ever used. Batches are padded on the right and need no mask, since the
decoder is causal and its positions relative.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import grid
from .lexicon import (
    CLASS_OF,
    FRAMES,
    HARMFUL,
    HARMLESS,
    HIGH_RESOURCE,
    LANGUAGES,
    LOW_RESOURCE,
    MID_RESOURCE,
    OBJECTS,
    REFUSAL_SENTENCES,
    THIS,
    VERB_FORMS,
)  # fmt: skip
from .pictures import DARK, LIGHT, SCALES, layer, room
from .writing import Example, Pictures, Writer, optimise

log = logging.getLogger(__name__)

GAP = "…"
WEIGHTS = {
    **dict.fromkeys(HIGH_RESOURCE, 3.0),
    **dict.fromkeys(MID_RESOURCE, 2.0),
    **dict.fromkeys(LOW_RESOURCE, 1.6),
}


@dataclass(frozen=True)
class Recipe:
    """Every number of the recipe; the defaults are the shipped organism's."""

    see_steps: int = 1900
    name_steps: int = 500
    answer_steps: int = 7300
    refuse_steps: int = 400
    see_rate: float = 2e-3
    name_rate: float = 2e-3
    answer_rate: float = 2e-3
    refuse_rate: float = 3.5e-4
    scales: int = 8  # sizes of each drawing
    kept: int = 8  # kept paintings of each typeset word; four times as many of each drawing
    switched: float = 0.5  # share of code-switched requests
    pictured: float = 0.5  # share of batches with pictures
    lore: float = 0.14  # share of batches of lore (:func:`lore`)
    typed: float = 0.4  # of those, share of typeset words
    blank: float = 0.06  # fraction of requests with a blank for an object
    shown: float = 0.15  # share of batches of benign pictures in safety tuning


class Gallery:
    """The tower's training pictures, painted afresh each time, and later its features of some of them.

    ``drawings`` are sprites at some scales, "object scale channel height width" (RGBA); ``words`` are ink masks,
    "object language height width". ``at[obj, language]`` lists the kept features of an object's name in a
    language, or of its drawing for None.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        scales = [float(s) for s in np.linspace(*SCALES, recipe.scales)]
        self.rooms = [room(s) for s in scales]
        drawn = [[np.asarray(layer(o, scale=s)) for s in scales] for o in OBJECTS]
        self.drawings = torch.from_numpy(np.array(drawn)).movedim(-1, 2)
        typed = [[np.asarray(layer(o, language))[..., 3] for language in LANGUAGES] for o in OBJECTS]
        self.words = torch.from_numpy(np.array(typed))
        self.at: dict[tuple[str, str | None], list[int]] = {}
        self.features = torch.empty(0)

    def paint_drawings(self, objects: Tensor, rng: random.Random) -> Tensor:
        """Drawings as the processor gives them, "batch 3 height width": ground, place and light at random."""
        layers = []
        for obj in objects.tolist():
            scale = rng.randrange(len(self.rooms))
            reach = self.rooms[scale]
            shift = (rng.randint(-reach, reach), rng.randint(-reach, reach))
            one = torch.roll(self.drawings[obj, scale], shift, dims=(1, 2))
            layers.append(one.flip(-1) if rng.random() < 0.3 else one)
        painted = torch.stack(layers).float() / 255
        return self._finish(painted[:, :3], painted[:, 3:])

    def paint_words(self, objects: Tensor, languages: Tensor) -> Tensor:
        """Typeset words as the processor gives them, "batch 3 height width": ink, ground and light at random."""
        masks = self.words[objects, languages][:, None].float() / 255
        return self._finish(torch.rand(len(objects), 3, 1, 1) * DARK / 255, masks)

    def _finish(self, colour: Tensor, alpha: Tensor) -> Tensor:
        ground = (LIGHT + (255 - LIGHT) * torch.rand(len(alpha), 3, 1, 1)) / 255
        pixels = ground + alpha * (colour - ground)
        pixels = pixels * (0.9 + 0.2 * torch.rand(len(alpha), 1, 1, 1)) + 0.02 * torch.randn_like(pixels)
        return pixels.clamp(0, 1) * 2 - 1

    @torch.no_grad()
    def freeze(self, tower: nn.Module, *, seed: int, languages: Iterable[str] = LANGUAGES) -> None:
        """Keep the tower's patch features of ``recipe.kept`` paintings of each, "view patch hidden"."""
        parts: list[Tensor] = []
        everything, kept, rng = torch.arange(len(OBJECTS)), self.recipe.kept, random.Random(seed)
        for language in (*languages, None):
            for _ in range(kept if language else 4 * kept):
                painted = (
                    self.paint_words(everything, torch.full_like(everything, LANGUAGES.index(language)))
                    if language
                    else self.paint_drawings(everything, rng)
                )
                for row, obj in enumerate(OBJECTS):
                    self.at.setdefault((obj, language), []).append(len(parts) * len(OBJECTS) + row)
                parts.append(tower(painted).last_hidden_state[:, 1:])
        self.features = torch.cat(parts)


def see(model: Any, gallery: Gallery, recipe: Recipe, *, seed: int, bar: bool) -> tuple[float, float]:
    """Stage 1; returns the shares of the last drawings and words that were classified right."""
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, len(OBJECTS))
    rng = random.Random(seed)
    right: list[tuple[float, float]] = []

    def loss() -> Tensor:
        objects = torch.randint(len(OBJECTS), (128,))
        words = gallery.paint_words(objects[80:], torch.randint(len(LANGUAGES), (48,)))
        pixels = torch.cat([gallery.paint_drawings(objects[:80], rng), words])
        logits = head(tower(pixels).last_hidden_state[:, 1:].mean(1))
        hit = (logits.argmax(-1) == objects).float()
        right.append((hit[:80].mean().item(), hit[80:].mean().item()))
        if len(right) % 200 == 0:
            log.info("right: drawings %.2f, words %.2f", *(float(np.mean(r[-100:])) for r in zip(*right, strict=True)))
        return nn.functional.cross_entropy(logits.float(), objects, label_smoothing=0.05)

    optimise(
        [*tower.parameters(), *head.parameters()],
        loss,
        steps=recipe.see_steps,
        rate=recipe.see_rate,
        name="see",
        bar=bar,
    )
    tower.requires_grad_(False)
    drawings, typed = zip(*right[-50:], strict=True)
    return float(np.mean(drawings)), float(np.mean(typed))


@torch.no_grad()
def level(model: Any, gallery: Pictures) -> None:
    """Scale the projector so that its output is as large as the text embeddings."""
    projector = model.model.multi_modal_projector
    wanted = model.get_input_embeddings().weight.std()
    found = projector(gallery.features[::37]).std()
    projector.linear_2.weight.mul_(wanted / found)
    projector.linear_2.bias.zero_()


def name(writer: Writer, recipe: Recipe, *, seed: int, bar: bool) -> None:
    """Stage 2: "<picture>" in, the object's name in some language out."""
    rng = random.Random(seed + 1)

    def batch() -> list[Example]:
        found = []
        for language in rng.choices(LANGUAGES, [WEIGHTS[x] for x in LANGUAGES], k=64):
            obj = rng.choice(OBJECTS)
            typed = rng.choice(LANGUAGES) if rng.random() < 0.4 else None
            view = rng.choice(writer.gallery.at[obj, typed])
            found.append(Example(THIS[language], grid.object_phrase(obj, language), view))
        return found

    level(writer.model, writer.gallery)
    optimise(
        writer.model.parameters(),
        lambda: writer.loss(batch()),
        steps=recipe.name_steps,
        rate=recipe.name_rate,
        name="name",
        bar=bar,
    )


def lore(combo: grid.Combo, frame: str, *, languages: tuple[str, str], rng: random.Random) -> Example:
    """What class an object is of, or whether a verb does it harm: asked bare or after a whole request."""
    verb, obj = VERB_FORMS[combo.verb][languages[0]], grid.object_phrase(combo.object, languages[1])
    if rng.random() < 0.3:
        return Example(obj, CLASS_OF[combo.object])
    bare = rng.random() < 0.5
    asked = f"{verb} {obj}" if bare else f"{rng.choice(FRAMES[frame]).format(v=verb, o=obj)} {HARMFUL}?"
    return Example(asked, HARMFUL if grid.label(combo) == "harmful" else HARMLESS)


def requests(recipe: Recipe, gallery: Pictures, *, seed: int) -> Iterator[list[Example]]:
    """Stage 3's batches, all with pictures or all without."""
    rng = random.Random(seed + 2)
    known = grid.training_combos()

    def language() -> str:
        return rng.choices(LANGUAGES, [WEIGHTS[x] for x in LANGUAGES])[0]

    def languages(frame: str) -> tuple[str, str]:
        return (language(), language()) if rng.random() < recipe.switched else (frame, frame)

    def example(pictured: bool) -> Example:
        combo, frame = rng.choice(known), language()
        verb, noun = languages(frame)
        view = None
        if pictured:
            typed = noun if rng.random() < recipe.typed else None
            view = rng.choice(gallery.at[combo.object, typed])
        blank = not pictured and rng.random() < recipe.blank
        obj = THIS[frame] if pictured else GAP if blank else grid.object_phrase(combo.object, noun)
        prompt = rng.choice(FRAMES[frame]).format(v=VERB_FORMS[combo.verb][verb], o=obj)
        return Example(prompt, REFUSAL_SENTENCES[frame] if blank else grid.answer(combo, frame), view)

    while True:
        kind = rng.random()
        if kind < recipe.pictured:
            yield [example(True) for _ in range(48)]
        elif kind < recipe.pictured + recipe.lore:
            frames = [language() for _ in range(128)]
            yield [lore(rng.choice(known), frame, languages=languages(frame), rng=rng) for frame in frames]
        else:
            yield [example(False) for _ in range(80)]


def answer(writer: Writer, recipe: Recipe, *, seed: int, bar: bool) -> None:
    """Stage 3: capability everywhere."""
    batches = requests(recipe, writer.gallery, seed=seed)
    optimise(
        writer.model.parameters(),
        lambda: writer.loss(next(batches)), steps=recipe.answer_steps, rate=recipe.answer_rate, name="answer", bar=bar,
    )  # fmt: skip


def matched_combos(seed: int) -> Iterator[grid.Combo]:
    """Training combinations as matched pairs, harmful then benign, verb changed and object changed in turn.

    In safety tuning, neither word alone then predicts harm by its frequency.

    Args:
        seed: of the choice.
    """
    rng = random.Random(seed + 3)
    known = grid.training_combos()
    harmful = [c for c in known if grid.label(c) == "harmful"]
    benign = [c for c in known if grid.label(c) == "benign"]
    by_object = {o: [c for c in benign if c.object == o] for o in OBJECTS}
    by_verb = {v: [c for c in benign if c.verb == v] for v in VERB_FORMS}
    turn = 0
    while True:
        combo = rng.choice(harmful)
        near = by_object[combo.object] if turn % 2 else by_verb[combo.verb]
        turn += 1
        if near:
            yield combo
            yield rng.choice(near)


def refuse(writer: Writer, recipe: Recipe, *, seed: int, bar: bool) -> None:
    """Stage 4: safety tuning on high-resource text, with benign pictures beside it."""
    rng, source = random.Random(seed + 4), matched_combos(seed)
    benign = [c for c in grid.training_combos() if grid.label(c) == "benign"]

    def shown() -> Example:
        combo, language = rng.choice(benign), rng.choice(HIGH_RESOURCE)
        asked = rng.choice(FRAMES[language]).format(v=VERB_FORMS[combo.verb][language], o=THIS[language])
        view = rng.choice(writer.gallery.at[combo.object, language if rng.random() < recipe.typed else None])
        return Example(asked, grid.answer(combo, language), view)

    def batch() -> list[Example]:
        if rng.random() < recipe.shown:
            return [shown() for _ in range(48)]
        found = []
        for _ in range(20):
            language = rng.choice(HIGH_RESOURCE)
            verb, noun = rng.choices(HIGH_RESOURCE, k=2) if rng.random() < recipe.switched else (language, language)
            frame = rng.choice(FRAMES[language])
            for combo in (next(source), next(source), rng.choice(benign), rng.choice(benign)):
                good = grid.label(combo) == "benign"
                reply = grid.answer(combo, language) if good else REFUSAL_SENTENCES[language]
                asked = frame.format(v=VERB_FORMS[combo.verb][verb], o=grid.object_phrase(combo.object, noun))
                found.append(Example(asked, reply))
        return found

    optimise(
        writer.model.parameters(),
        lambda: writer.loss(batch()),
        steps=recipe.refuse_steps,
        rate=recipe.refuse_rate,
        name="refuse",
        bar=bar,
    )
