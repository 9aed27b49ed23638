"""neuronshield: find, prove, shield and check safety neurons in vision-language models.

The names below are the whole front door; every one is imported when it is first used, so `import neuronshield` costs
nothing. What is rarer lives in submodules that are names here too: `ns.scores`, `ns.rules`, `ns.signs`,
`ns.baselines`, `ns.overlaps`, `ns.attacks`, `ns.curves`, `ns.guard`, `ns.judges`, `ns.protocols`, `ns.figures`, `ns.report`,
`ns.shipped`, `ns.systems`, `ns.variants`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import figures, protocols, systems
    from .check import attacks, curves, judges
    from .check.evaluation import Evaluation, evaluate
    from .core.directions import Directions
    from .core.errors import InputError
    from .core.neurons import NeuronSet
    from .data import shipped
    from .data.conditions_of_images import image_conditions
    from .data.prompts import Cell, Prompt, PromptSet
    from .data.readers import read
    from .data.streams import PromptStream
    from .explorer.activations import activations
    from .explorer.extremes import top_prompts
    from .explorer.notebook import Explorer
    from .explorer.responses import before_after, dose_response
    from .explorer.words import vocabulary
    from .find import baselines, overlaps, rules, scores, signs
    from .find.attribution import attribution
    from .find.moments import Stats, capture, record
    from .find.overlaps import Overlap, overlap
    from .find.rules import select
    from .find.scores import Scores, contrast
    from .model.generation import generate
    from .model.intervention import Intervention
    from .model.model import Model
    from .model.ray_engine import RayEngine
    from .prove.controls import random_like
    from .prove.verdict import Proof
    from .prove.verify import verify
    from .run import report
    from .run.differences import compare_runs as compare
    from .run.doctor import doctor
    from .run.exploring import explore
    from .run.opened import Run
    from .run.opened import open_run as open
    from .shield import guard, variants
    from .shield.edits import clamp_edit, low_rank_edit
    from .shield.loading import load, load_adapter
    from .shield.training import TrainingConfig
    from .shield.unmasked import full_update, plain_lora
    from .shield.update import Update, masked_update
    from .systems.joint import system_update
    from .systems.nodes import Node
    from .systems.system import System

    __version__: str

_MEMBERS = {
    "check.evaluation": ("Evaluation", "evaluate"),
    "core.directions": ("Directions",),
    "core.errors": ("InputError",),
    "core.neurons": ("NeuronSet",),
    "data.conditions_of_images": ("image_conditions",),
    "data.prompts": ("Cell", "Prompt", "PromptSet"),
    "data.readers": ("read",),
    "data.streams": ("PromptStream",),
    "explorer.activations": ("activations",),
    "explorer.notebook": ("Explorer",),
    "explorer.extremes": ("top_prompts",),
    "explorer.responses": ("before_after", "dose_response"),
    "explorer.words": ("vocabulary",),
    "find.attribution": ("attribution",),
    "find.moments": ("Stats", "capture", "record"),
    "find.overlaps": ("Overlap", "overlap"),
    "find.rules": ("select",),
    "find.scores": ("Scores", "contrast"),
    "model.generation": ("generate",),
    "model.intervention": ("Intervention",),
    "model.model": ("Model",),
    "model.ray_engine": ("RayEngine",),
    "prove.controls": ("random_like",),
    "prove.verdict": ("Proof",),
    "prove.verify": ("verify",),
    "run.differences": ("compare_runs",),
    "run.doctor": ("doctor",),
    "run.exploring": ("explore",),
    "run.opened": ("Run", "open_run"),
    "shield.unmasked": ("full_update", "plain_lora"),
    "shield.edits": ("clamp_edit", "low_rank_edit"),
    "shield.loading": ("load", "load_adapter"),
    "shield.training": ("TrainingConfig",),
    "shield.update": ("Update", "masked_update"),
    "systems.nodes": ("Node",),
    "systems.system": ("System",),
    "systems.joint": ("system_update",),
}
#: Names that are shorter here than in their modules, where `open` would hide Python's own.
_SHORT = {"compare_runs": "compare", "open_run": "open"}
_HOME = {_SHORT.get(name, name): (module, name) for module, names in _MEMBERS.items() for name in names}
_SUBMODULES = {
    "attacks": "check.attacks",
    "baselines": "find.baselines",
    "curves": "check.curves",
    "figures": "figures",
    "guard": "shield.guard",
    "judges": "check.judges",
    "overlaps": "find.overlaps",
    "protocols": "protocols",
    "report": "run.report",
    "rules": "find.rules",
    "scores": "find.scores",
    "shipped": "data.shipped",
    "signs": "find.signs",
    "systems": "systems",
    "variants": "shield.variants",
}

__all__ = [
    "Cell",
    "Directions",
    "Evaluation",
    "Explorer",
    "InputError",
    "Intervention",
    "Model",
    "NeuronSet",
    "Node",
    "Overlap",
    "Prompt",
    "PromptSet",
    "PromptStream",
    "Proof",
    "RayEngine",
    "Run",
    "Scores",
    "Stats",
    "System",
    "TrainingConfig",
    "Update",
    "__version__",
    "activations",
    "attacks",
    "attribution",
    "baselines",
    "before_after",
    "capture",
    "clamp_edit",
    "compare",
    "contrast",
    "curves",
    "doctor",
    "dose_response",
    "evaluate",
    "explore",
    "figures",
    "full_update",
    "generate",
    "guard",
    "image_conditions",
    "judges",
    "load",
    "load_adapter",
    "low_rank_edit",
    "masked_update",
    "open",
    "overlap",
    "overlaps",
    "plain_lora",
    "protocols",
    "random_like",
    "read",
    "record",
    "report",
    "rules",
    "scores",
    "select",
    "shipped",
    "signs",
    "system_update",
    "systems",
    "top_prompts",
    "variants",
    "verify",
    "vocabulary",
]


def _resolve(name: str) -> Any:
    """The public name, imported now."""
    if name in _HOME:
        module, attribute = _HOME[name]
        value = getattr(import_module(f".{module}", __name__), attribute)
    elif name in _SUBMODULES:
        value = import_module(f".{_SUBMODULES[name]}", __name__)
    elif name == "__version__":
        value = version(__name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # a type checker reads the imports above, and so knows a name that does not exist
    __getattr__ = _resolve


def __dir__() -> list[str]:
    return sorted(__all__)
