"""neuronshield: find, prove, shield and check safety neurons in vision-language models."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attack import attack, relearn
    from .attribution import attribution
    from .capture import Stats, capture, record
    from .causal import verify
    from .contrast import Scores, contrast
    from .data import matched_pairs, retention_prompts
    from .doctor import doctor
    from .edits import clamp_edit, low_rank_edit
    from .errors import InputError
    from .evaluate import Evaluation, evaluate
    from .guard import Guard, fit_guard
    from .intervene import generate
    from .intervention import Intervention
    from .literature import change_score, snip
    from .models import Model, load
    from .neurons import NeuronSet
    from .overlap import Overlap, anchored, overlap
    from .pipeline import run
    from .prompts import Cell, Prompt, PromptSet
    from .proof import Proof
    from .readers import read
    from .update import Update, full_update, masked_update, plain_lora

_HOME = {
    "attack": "attack",
    "relearn": "attack",
    "anchored": "overlap",
    "change_score": "literature",
    "snip": "literature",
    "attribution": "attribution",
    "Stats": "capture",
    "capture": "capture",
    "record": "capture",
    "verify": "causal",
    "Scores": "contrast",
    "contrast": "contrast",
    "matched_pairs": "data",
    "retention_prompts": "data",
    "doctor": "doctor",
    "clamp_edit": "edits",
    "low_rank_edit": "edits",
    "InputError": "errors",
    "Evaluation": "evaluate",
    "evaluate": "evaluate",
    "Intervention": "intervention",
    "Guard": "guard",
    "fit_guard": "guard",
    "generate": "intervene",
    "Model": "models",
    "load": "models",
    "NeuronSet": "neurons",
    "Overlap": "overlap",
    "overlap": "overlap",
    "run": "pipeline",
    "Proof": "proof",
    "Cell": "prompts",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "read": "readers",
    "Update": "update",
    "full_update": "update",
    "masked_update": "update",
    "plain_lora": "update",
}

__all__ = [
    "Cell",
    "Evaluation",
    "Guard",
    "InputError",
    "Intervention",
    "Model",
    "NeuronSet",
    "Overlap",
    "Prompt",
    "PromptSet",
    "Proof",
    "Scores",
    "Stats",
    "Update",
    "anchored",
    "attack",
    "attribution",
    "capture",
    "change_score",
    "clamp_edit",
    "contrast",
    "doctor",
    "evaluate",
    "fit_guard",
    "full_update",
    "generate",
    "load",
    "low_rank_edit",
    "masked_update",
    "matched_pairs",
    "overlap",
    "plain_lora",
    "read",
    "record",
    "relearn",
    "retention_prompts",
    "run",
    "snip",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import neuronshield` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keeps `neuronshield.capture` the function when the import system wants to put the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
