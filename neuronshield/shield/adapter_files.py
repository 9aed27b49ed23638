"""The files of a saved adapter, read and checked before PEFT sees them.

adapter_config.json           what PEFT is told
adapter_model.safetensors     the factors; a pickle (adapter_model.bin) is never read
neurons.safetensors           the set of a masked adapter
neuronshield.json             checksums of these, in a folder that `Update.save` wrote; a folder of PEFT has none
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.folders import MANIFEST, check_files
from ..core.neurons import FILE as NEURONS
from ..core.neurons import NeuronSet

__all__ = ["CONFIG", "FACTORS", "FILES", "NEURONS", "Files", "base_of", "read_adapter", "write_adapter"]


CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"
#: What is wanted of a repository that holds an adapter.
FILES = (CONFIG, FACTORS, NEURONS, MANIFEST)


#: Settings of a LoRA that change more than weights, with what they do.
REFUSED = {
    "layer_replication": "repeats decoder layers",
    "megatron_config": "needs Megatron",
    "alora_invocation_tokens": "acts from a token on",
    "arrow_config": "mixes adapters by token",
}


class Files(NamedTuple):
    """What an adapter's folder holds.

    Attributes:
        config: the settings that PEFT is told.
        tensors: by their names in the file.
        neurons: the set that a masked update changed; None for any other adapter.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    neurons: NeuronSet | None

    @property
    def only_factors(self) -> bool:
        """Whether it is a LoRA that starts from nothing and holds its factors alone, so that PEFT only reads the base weights."""
        start = self.config.get("init_lora_weights", True)
        plain = self.config["peft_type"] == "LORA" and (isinstance(start, bool) or start in ("gaussian", "orthogonal"))
        return plain and all(_is_factor(name) for name in self.tensors)


def write_adapter(peft_model: Any, folder: Path) -> None:
    """The settings and the factors of an adapter, as PEFT writes them, without its card; the same adapter gives the same bytes.

    PEFT keeps the names of the projections as a set, whose order differs between processes; here they are sorted.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> write_adapter(update.peft_model, Path("plain"))
    >>> sorted(p.name for p in Path("plain").iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']

    Args:
        peft_model: the adapter on its model.
        folder: where the files go.
    """
    peft_model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name in ("target_modules", "target_parameters"):
        if isinstance(about.get(name), list):
            about[name] = sorted(about[name])
    (folder / CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")


def read_adapter(folder: Path) -> Files:
    """What an adapter's folder holds, checked.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> files = read_adapter(update.save("adapter"))
    >>> files.config["peft_type"], len(files.tensors), files.neurons
    ('LORA', 18, NeuronSet(3 neurons in 3 layers))

    Args:
        folder: the adapter's.

    Raises:
        InputError: no adapter, a damaged one, a kind that cannot be merged into weights, or a set that belongs to another.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no adapter here ({CONFIG} is missing)")
    masked = (folder / NEURONS).exists()
    if masked or (folder / MANIFEST).exists():
        check_files(folder, (CONFIG, FACTORS, NEURONS))
    config = _config(folder)
    tensors = _tensors(folder)
    neurons = NeuronSet.load(folder / NEURONS) if masked else None
    if neurons is not None:
        if not isinstance(neurons.provenance.get("update"), dict):
            raise InputError(f"{folder / NEURONS}: says nothing of an update; save the update again")
        if config["peft_type"] != "LORA" or (odd := next((t for t in sorted(tensors) if not _is_factor(t)), None)):
            what = f"{odd!r} is no factor of a LoRA" if config["peft_type"] == "LORA" else config["peft_type"]
            raise InputError(
                f"{folder}: {NEURONS} says that this is a masked adapter, but {what}; save the update again"
            )
    return Files(config, tensors, neurons)


def base_of(folder: Path) -> tuple[str, str | None]:
    """Name and revision of the base model that an adapter's folder names.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> base_of(update.save("adapter"))
    ('LlamaForCausalLM', None)

    Args:
        folder: the adapter's.

    Raises:
        InputError: settings that cannot be read, or that name no base model.
    """
    config = _config(folder)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name or not isinstance(revision, str | None):
        raise InputError(f"{folder / CONFIG}: names no base model; load it yourself, with adapter=")
    return name, revision


def _is_factor(name: str) -> bool:
    return name.endswith((".lora_A.weight", ".lora_B.weight"))


def _config(folder: Path) -> dict[str, Any]:
    """The settings, of a kind that can be merged into weights."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error!s:.100}); save the adapter again") from None
    if not isinstance(config, dict):
        raise InputError(f"{file}: holds a {type(config).__name__}, not settings of an adapter; save the adapter again")
    kind = config.get("peft_type")
    tuners: dict[Any, Any] = dict(PEFT_TYPE_TO_TUNER_MAPPING)
    tuner = tuners.get(kind) if isinstance(kind, str) else None
    if not (isinstance(tuner, type) and issubclass(tuner, BaseTuner)):
        raise InputError(
            f"{file}: peft_type={kind!r:.40} is not a kind of adapter that is merged into weights; use a LoRA"
        )
    for name, does in REFUSED.items():
        if config.get(name):
            raise InputError(
                f"{file}: {name}={config[name]!r:.40} {does}, which is not a change of weights; not supported"
            )
    known = {f.name for f in fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}  # type: ignore[arg-type,index]
    unknown = sorted(name for name, value in config.items() if name not in known and value)
    if unknown:
        raise InputError(
            f"{file}: {unknown[0]}={config[unknown[0]]!r:.40} is unknown to this version of peft; update peft"
        )
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The factors, all of them numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / FACTORS
    if not file.is_file():
        pickled = sorted(p.name for p in folder.glob("adapter_model.*"))
        why = f"{pickled[0]} is not read (a pickle can hold code)" if pickled else "the file is missing"
        raise InputError(f"{file}: {why}; save the adapter as safetensors")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: cannot be read ({error!s:.100}); save the adapter again") from None
    if not tensors:
        raise InputError(f"{file}: holds no tensors; save the adapter again")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{file}: {name!r} has values that are not finite numbers; train it again")
    return tensors
