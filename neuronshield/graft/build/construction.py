"""The stages of the graft's build in order, what is written, and the model card."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...core.folders import replacing_folder
from ...core.results import to_json
from ...model.checkpoint import pretrained
from ...model.generation import generate
from ...model.load import load
from ...model.model import Model
from ...organism.train import Gallery
from ...organism.train import Recipe as Pictures
from .. import harms
from ..assembly import PROJECTORS, assembled, graft, trained_tower
from ..variants import NAMES
from . import tuning
from .backbone import Backbone
from .card import model_card
from .scoring import Naming, Refusals, named, naming, refusals
from .sight import Recipe, Said, caption, english_names, regress, views

__all__ = ["Scores", "build_graft"]

log = logging.getLogger(__name__)

SAYINGS = 1  # benign requests about each object whose answers the captioned projector learns
TOKENS_SAID = 16  # tokens of such an answer


@dataclass(frozen=True)
class Scores:
    """What was measured of a build, as scores.json has it.

    Attributes:
        seed: of the build.
        seconds: CPU time of each stage.
        memory: most memory that the process held, in GB.
        naming: held-out pictures named, by arm of the projector.
        refusals: held-out English text refused, by source and label, with the tuning.
    """

    seed: int
    seconds: dict[str, int]
    memory: float
    naming: dict[str, Naming]
    refusals: tuple[Refusals, ...]


@dataclass
class Clock:
    """CPU seconds of each stage."""

    seconds: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context whose CPU time is counted as that stage's.

        Args:
            name: of the stage.
        """
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + round(time.process_time() - start)
        log.info("%s: %d CPU-s", name, self.seconds[name])


def build_graft(out: str | os.PathLike[str], *, seed: int = 0, progress: bool = True) -> Scores:
    """Scores of the graft that was built and written to the folder `out`.

    >>> build_graft("smollm2-vision").naming["regressed"].drawings          # needs the network         # doctest: +SKIP
    0.93

    Args:
        out: the folder: missing, empty, or one that an earlier build wrote (see `replacing_folder`).
        seed: of pictures, initial weights and the order of requests.
        progress: show progress bars.

    Raises:
        InputError: a folder with other files in it, or SmolLM2 or AdvBench cannot be had.
    """
    found: list[Scores] = []

    def write(staging: Path) -> None:
        scores = raised(staging, Recipe(), seed=seed, progress=progress)
        (staging / "scores.json").write_text(json.dumps(to_json(scores), indent=1), encoding="utf-8")
        card = model_card(
            seed=seed, seconds=scores.seconds, memory=scores.memory, naming=scores.naming,
            refusals=scores.refusals, recipe=Recipe(),
        )  # fmt: skip
        (staging / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        found.append(scores)

    replacing_folder(out, write)
    return found[0]


def raised(folder: Path, recipe: Recipe, *, seed: int, progress: bool) -> Scores:
    """The scores of a graft whose files were written into the folder; everything is computed in float32.

    Args:
        folder: to write to.
        recipe: steps and rates.
        seed: of everything that is drawn.
        progress: show progress bars.
    """
    clock = Clock()
    with clock.stage("fetch"):
        wanted = tuning.requests(seed=seed)
        base = pretrained("smollm2", dtype=torch.float32, device="cpu")
    sight(folder, base, recipe=recipe, clock=clock, seed=seed, progress=progress)
    with clock.stage("tune"):
        model = load_graft(base, "smollm2-vision-untuned", folder)
        tuning.tune(model, wanted, recipe, folder=folder / "adapter", seed=seed, progress=progress)
    with clock.stage("score"):
        arms = {arm: load_graft(base, name, folder) for name, (arm, tuned) in NAMES.items() if tuned}
        found = {arm: naming(one, progress=progress) for arm, one in arms.items()}
        refused = refusals(arms["regressed"], wanted.held, progress=progress)  # a text is read without the projector
    return Scores(seed, clock.seconds, memory=_memory(), naming=found, refusals=refused)


def sight(folder: Path, base: tuple[Any, Any], *, recipe: Recipe, clock: Clock, seed: int, progress: bool) -> None:
    """Train both projectors and write them.

    Args:
        folder: to write to.
        base: SmolLM2 and its tokenizer.
        recipe: steps and rates.
        clock: counts the stages.
        seed: of pictures, initial weights and the choice of rows.
        progress: show progress bars.
    """
    torch.manual_seed(seed)
    model = graft(base[0], eyes=trained_tower())
    projector = model.model.multi_modal_projector.float()
    with clock.stage("paint"):
        shown = views(model.model.vision_tower, Gallery(Pictures()), recipe, seed=seed)
    backbone = Backbone(*base)
    with clock.stage("regress"):
        regress(projector, backbone, shown, recipe=recipe, bar=progress)
        tensors = {f"regressed.{name}": value.clone() for name, value in projector.state_dict().items()}
    with clock.stage("answer"):
        said = sayings(base, seed=seed, progress=progress)
    with clock.stage("caption"):
        caption(projector, backbone, shown, said=said, recipe=recipe, seed=seed, bar=progress)
        tensors |= {f"captioned.{name}": value for name, value in projector.state_dict().items()}
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, folder / PROJECTORS)


def sayings(base: tuple[Any, Any], *, seed: int, progress: bool) -> list[Said]:
    """What SmolLM2 answers to benign training requests, a few about each object; answers that do not name it are left out.

    Args:
        base: SmolLM2 and its tokenizer.
        seed: of the choice.
        progress: show a progress bar.
    """
    rng, numbers = random.Random(seed), {name: number for number, name in enumerate(english_names())}
    benign = [c for c in harms.training_combos() if harms.label(c) == "benign"]
    rng.shuffle(benign)
    by_object: dict[str, list[harms.Combo]] = {}
    for combo in benign:
        by_object.setdefault(combo.object, []).append(combo)
    chosen = [(combo, rng.randrange(3)) for mine in by_object.values() for combo in mine[:SAYINGS]]
    model = load(base[0], processor=base[1])
    asked = [harms.request(combo, frame=frame) for combo, frame in chosen]
    said = generate(model, asked, max_new_tokens=TOKENS_SAID, batch_size=64, progress=progress, desc="answer")
    return [
        Said(harms.request(combo, frame=frame, deictic=True), numbers[combo.object], text)
        for (combo, frame), text in zip(chosen, said, strict=True)
        if named(text, combo.object)
    ]


def load_graft(base: tuple[Any, Any], name: str, folder: Path) -> Model:
    """A graft from the files in a folder, around a copy of the language model.

    Args:
        base: SmolLM2 and its tokenizer.
        name: one of `NAMES`.
        folder: of the files.
    """
    module, processor = assembled(copy.deepcopy(base[0]), base[1], name=name, path=folder)
    return load(module, processor=processor)


def _memory() -> float:
    """The most memory that this process has held, in GB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / 1e9, 2)
