"""Loading a saved adapter onto a model, and `ns.load`, which loads a model with or without one.

Both are in this part of the package because `neuronshield.model` knows nothing of updates.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.arguments import require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.languages import OpeningsArg
from ..model import load as loading
from ..model.families import PARTS, Site
from ..model.model import Model
from .adapter import Place, merge, places, quiet, shared_copy

__all__ = ["load", "load_adapter"]


def load_adapter(model: Model, path: str | os.PathLike[str]) -> Model:
    """The base model with a saved adapter merged in: only the chosen rows and columns, if it was masked.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> shielded = ns.load_adapter(model, update.save("adapter"))
    >>> bool((shielded.down_weight(0) == update.model.down_weight(0)).all())
    True

    Args:
        model: the base model; it is not changed.
        path: a folder that `Update.save` or PEFT wrote.

    Raises:
        InputError: a model that is loaded elsewhere or packed, no adapter there, or an adapter of another model: another
            shape, other weights, or projections that the model does not have.
    """
    call = "load_adapter(model, folder)"
    require(model, Model, call=call, name="model")
    require(path, (str, os.PathLike), call=call, name="folder", hint="pass the folder that update.save() returned")
    model.needs_here("load_adapter")
    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: no adapter here (adapter_config.json is missing)")
    file = path / "neurons.safetensors"
    neurons = NeuronSet.load(file) if file.exists() else None
    if neurons is not None:
        _check_origin(model, path, neurons)
    inner: Any = _peft_model(model, path).base_model
    wrapped = {n: m for n, m in inner.model.named_modules() if hasattr(m, "lora_A")}
    outside = neurons is not None and neurons.provenance.get("update", {}).get("train") == "frozen_set_update"
    known = {p.name: p for p in places(model, neurons, PARTS, outside=outside)}
    start = len(model.layers_path) + 1

    def place(name: str) -> Place:
        layer = int(name[start:].split(".", maxsplit=1)[0])
        return known.get(name) or Place(name, layer, down=name.endswith(model.site.down), own=None)

    return merge(model, wrapped, [place(name) for name in wrapped])


def _check_origin(model: Model, path: Path, neurons: NeuronSet) -> None:
    """Raise unless the adapter of this set was trained on a model of this shape and with these weights."""
    advice = "load the model that the adapter was trained on"
    shape, other = (model.n_layers, model.d_mlp), (neurons.n_layers, neurons.d_mlp)
    if None not in other and other != shape:
        raise InputError(
            f"{path}: the adapter is of a model of {other[0]} layers x {other[1]} neurons; {model.id!r} has {shape[0]} x "
            f"{shape[1]}: {advice}"
        )
    made_on = {**neurons.provenance, **neurons.provenance.get("update", {})}
    weights = made_on.get("fingerprint")
    if weights is not None and weights != model.fingerprint:
        raise InputError(
            f"{path}: the adapter was trained on {made_on.get('model')!r} with weights {weights}; {model.id!r} has "
            f"{model.fingerprint}: {advice}"
        )


def _peft_model(model: Model, path: Path) -> Any:
    """The adapter on a copy of the model's structure; every factor in the file has its place, and every place its factor."""
    with quiet():
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    try:
        with quiet():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            peft_model = PeftModel.from_pretrained(shared_copy(model.module), path)  # type: ignore[arg-type]
        saved = load_peft_weights(str(path), device="cpu")
    except (RuntimeError, ValueError, OSError, UserWarning) as error:
        raise InputError(
            f"{path}: the adapter does not fit {model.id!r} ({str(error).splitlines()[0]:.200})"
        ) from error
    used = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    if len(saved) != len(used):
        unused = sorted(saved.keys() - used.keys())
        raise InputError(
            f"{path}: the adapter does not fit {model.id!r}: {len(saved) - len(used)} of its {len(saved)} tensors have no "
            f"place in the model, such as {unused[0]!r}; load the model that the adapter was trained on"
        )
    return peft_model


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    processor: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantize: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    layers: str | None = None,
    site: Site | tuple[str, str, str | None] | None = None,
    remote: bool | str = False,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    template_options: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """A model with its MLP neurons addressed.

    >>> organism = ns.load("organism")
    >>> organism.n_layers, organism.d_mlp
    (6, 512)

    Args:
        model: "organism" (the embedded VLLM), "smollm2" (SmolLM2-135M-Instruct), a folder, a hub id, a transformers model
            that is already built, or a TransformerLens `TransformerBridge` (its transformers model is used).
        processor: of a built model, its processor, or a bare tokenizer for a text model; of any other, used instead of the
            checkpoint's own.
        revision: commit, tag or branch on the hub; of a built model, recorded only.
        dtype: torch dtype or its name; default float32 on a CPU, the checkpoint's own on a GPU.
        device: where to put a model loaded from a name; default a GPU if there is one.
        device_map: instead of `device`: "auto" or a map, to spread a model over GPUs (accelerate's).
        quantize: "4bit" (NF4) or "8bit", through bitsandbytes: to find and prove in, not to train. Statistics stay
            float32, and artefacts record it as their dtype.
        adapter: a folder that `Update.save` wrote; the result is `load_adapter` of the model and this folder.
        layers: for a family that is not known: address of its decoder layers, e.g. "model.layers".
        site: and of the MLP in each: (down, up, gate), gate None if there is none, e.g. ("ffn.w2", "ffn.w3", "ffn.w1").
        remote: True: a hub id's weights stay on NDIF and traces run there; "local": they run here, sent the same way, as a
            trial (see `neuronshield.model.remote`).
        refusals: how this model starts its refusals: a list for every language, or {language: list}. They become
            `model.prefixes`, which hold wherever none are given; default the built-in prefixes of each language.
        compliances: how it starts answers that comply, the same way.
        template_options: what the chat template is given beside the messages, such as {"enable_thinking": False}; each must be an
            option that the template reads. {"strftime_now": "2026-01-31"} fixes the date for a template that reads it.
        trust_remote_code: run code that the checkpoint brings. Off unless turned on.

    Raises:
        InputError: something that is no model, an unknown id, no processor, no decoder layers with an MLP that is known, mixture-of-experts layers, an option
            that the chat template does not read, or an adapter that does not fit.
    """
    base = loading.load(
        model, processor=processor, revision=revision, dtype=dtype, device=device, device_map=device_map,
        quantize=quantize, layers=layers, site=site, remote=remote, refusals=refusals,
        compliances=compliances, template_options=template_options, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return base if adapter is None else load_adapter(base, adapter)
