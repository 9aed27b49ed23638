"""The vision tower of the graft and of the control organisms: few, large patches, so that a picture is four tokens.

    neuronshield organism build --kind tower --out tower

It learns to classify drawings and typeset words of ten languages by the object they mean, as the organism's own tower does
(`neuronshield.organism.train.see`). Ten minutes on one core, and no network.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from ...core.folders import replacing_folder
from ...organism.train import Gallery, Recipe, see
from ..assembly import TOWER, tower

__all__ = ["build_tower"]

STEPS, RATE = 1500, 2e-3


def build_tower(
    out: str | os.PathLike[str], *, steps: int = STEPS, seed: int = 0, progress: bool = True
) -> dict[str, float]:
    """The tower's accuracy on the last training batches, "drawings" and "words"; its weights are written to the folder `out`.

    >>> build_tower("tower", steps=1, progress=False)["drawings"] < 0.5
    True

    Args:
        out: the folder: missing, empty, or one that an earlier build wrote (see `replacing_folder`).
        steps: of training.
        seed: of pictures and initial weights.
        progress: show a progress bar.

    Raises:
        InputError: a folder with other files in it.
    """
    found: dict[str, float] = {}

    def write(staging: Path) -> None:
        start = time.process_time()
        torch.manual_seed(seed)
        eyes = tower()
        recipe = Recipe(see_steps=steps, see_rate=RATE)
        vessel = SimpleNamespace(model=SimpleNamespace(vision_tower=eyes))
        drawings, words = see(vessel, Gallery(recipe), recipe, seed=seed, bar=progress)
        found.update(drawings=round(drawings, 4), words=round(words, 4))
        save_file({name: value.half() for name, value in eyes.state_dict().items()}, staging / TOWER)
        about = {"seed": seed, "steps": steps, "seconds": round(time.process_time() - start), **found}
        (staging / "scores.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    replacing_folder(out, write)
    return found
